/**
 * Descriptions of identity calls: the ids of a call, its result, and the reason why it failed.
 *
 * A sentence is a list of texts and `{id}` parts, so that ids can be displayed differently from text.
 */

import { h, idText, milliseconds, shown } from "./dom.js";

const DEVICE = "$device:";

function asId(value) {
  return typeof value === "string" || typeof value === "number" ? String(value) : "";
}

/** Return the two ids of an `$identify`. The browser and mobile SDKs spell them in their own way. */
function idsOfIdentify(properties) {
  const documented = [asId(properties.$identified_id), asId(properties.$anon_id)];
  const ofSdks = [asId(properties.distinct_id), asId(properties.$anon_distinct_id)];
  return documented.includes("") && !ofSdks.includes("") ? ofSdks : documented;
}

/** Return the two ids of an identity log entry: the main id of the call, and the id to join to it. */
export function idsOf(entry) {
  const properties = entry.properties ?? {};
  switch (entry.event) {
    case "$identify":
      return idsOfIdentify(properties);
    case "$create_alias":
      return [asId(properties.distinct_id), asId(properties.alias)];
    case "$merge": {
      const pair = Array.isArray(properties.$distinct_ids) ? properties.$distinct_ids : [];
      return [asId(pair[0]), asId(pair[1])];
    }
    default: {
      const device = asId(properties.$device_id);
      return [asId(properties.$user_id), device.startsWith(DEVICE) ? device : DEVICE + device];
    }
  }
}

/** Return the method name of the call, or null for another event. */
export function callName(entry) {
  const names = { $identify: "identify", $create_alias: "alias", $merge: "merge" };
  return names[entry.event] ?? null;
}

/** Return the parts of a sentence as nodes. */
export function sentence(parts) {
  return parts.map((part) => (typeof part === "string" ? part : idText(part.id)));
}

/** Return a sentence as plain text, for screen readers. */
export function plain(parts) {
  return parts.map((part) => (typeof part === "string" ? part : `“${shown(part.id, 60)}”`)).join("");
}

/** Return the result of a failed call in one sentence. `areOne`: its ids belong to one person now. */
export function headline(entry, areOne = false) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  const name = callName(entry);
  if (areOne) return [`${name ?? "The event"} changed nothing: `, second, " and ", first, " are one person"];
  if (name === null) return ["An event did not link the device ", second, " to ", first];
  if (name === "identify") return ["identify did not merge ", second, " into ", first];
  if (name === "alias") return ["alias did not add ", second, " to ", first];
  return ["merge did not join ", first, " and ", second];
}

function notAnonymous(id) {
  if (/^(\$device:)?[0-9a-f]{32}$/i.test(id)) return " is a UUID without its dashes, so Mixpanel ignores the call.";
  return " is not five groups of hexadecimal digits joined by dashes, so Mixpanel ignores the call.";
}

/** Return the reason why a call failed. */
export function reason(entry) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  switch (entry.$failure_reason) {
    case "errAnonDistinctIdNonGUIDForm":
      return ["The anonymous id ", second, notAnonymous(second.id)];
    case "errSameIDs":
      return ["Both ids are the same, ", first, ", so there is nothing to join."];
    case "errAnonDistinctIdAssignedAlready":
      return ["The anonymous id ", second, " already belongs to another identified person and cannot be reassigned."];
    case "errAliasAlreadyExists":
      return ["The alias ", second, " is already in use. An alias can be assigned only once."];
    case "errManyIDs":
      return ["The person would have more ids than Mixpanel allows."];
    default: {
      const words = shown(entry.$failure_description || "Mixpanel accepts the call, but it has no effect here.", 500);
      return [`${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`];
    }
  }
}

/** Return the consequence for the data, or null. */
function consequence(entry) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  if (callName(entry) === null || first.id === second.id || first.id === "" || second.id === "") return null;
  return ["Reports keep showing ", first, " and ", second, " as two people."];
}

/** Describe a call or event that joined two ids. */
export function joined(entry) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  const again = entry.outcome === "unchanged";
  switch (callName(entry)) {
    case "identify":
      return again
        ? ["identify named ", first, " and ", second, ", one person already"]
        : ["identify joined the anonymous id ", second, " to ", first];
    case "alias":
      return again
        ? ["alias named ", first, " and ", second, ", one person already"]
        : ["alias added ", second, " as another id of ", first];
    case "merge":
      return again
        ? ["merge named ", first, " and ", second, ", one person already"]
        : ["merge joined ", first, " and ", second];
    default:
      return [`The event “${shown(entry.event, 60)}” carried both ids, and joined `, second, " to ", first];
  }
}

/** Return the time of an entry in milliseconds; NaN if unknown. */
export function timeOf(entry) {
  return milliseconds(entry.received_at ?? entry.properties?.time);
}

/** Return a key that equal calls with equal ids share. */
export function callKey(entry) {
  return JSON.stringify([callName(entry), ...idsOf(entry)]);
}

/**
 * Return the label of an identity call in the list of events, as text and kind; null for other events.
 *
 * @param {string|undefined} outcome outcome of the latest equal call.
 * @param {boolean} areOne whether its ids belong to one person now.
 */
export function flagOf(event, outcome, areOne) {
  const properties = event.properties ?? {};
  const hasFailed = Boolean(properties.$failure_reason || properties.$identity_failure_reason);
  if (callName(event) === null || (!hasFailed && outcome === undefined)) return null;
  if (!hasFailed && outcome === "merged") return { text: "merged", kind: "good" };
  if (areOne) return { text: "one person already", kind: "calm" };
  return { text: event.event === "$create_alias" ? "did not link" : "did not merge", kind: "bad" };
}

/** Return an explanation as elements: result, reason, consequence and advice. */
export function explanation(entry, areOne, heading = "h3") {
  const title = h(heading, { class: "what" }, sentence(headline(entry, areOne)));
  if (areOne)
    return [title, h("p", { class: "why" }, "Mixpanel marks such a call as failed, but no action is needed.")];
  const follows = consequence(entry);
  return [
    title,
    h("p", { class: "why" }, sentence(reason(entry)), " ", follows === null ? null : sentence(follows)),
    entry.advice ? h("p", { class: "advice" }, h("b", {}, "What to do: "), shown(entry.advice, 1000)) : null,
  ];
}
