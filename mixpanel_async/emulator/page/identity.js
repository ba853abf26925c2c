/**
 * Identity calls in words: which ids a call named, what it joined, and why it joined nobody.
 *
 * A sentence is a list of texts and `{id}` parts, so that ids can be shown apart from the words around them.
 */

import { h, idText, milliseconds, shown } from "./dom.js";

const DEVICE = "$device:";

function asId(value) {
  return typeof value === "string" || typeof value === "number" ? String(value) : "";
}

/** The two ids that an entry of the identity log names: the one that the call is for, and the one to be joined to it. */
export function idsOf(entry) {
  const properties = entry.properties ?? {};
  switch (entry.event) {
    case "$identify":
      return [asId(properties.$identified_id), asId(properties.$anon_id)];
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

/** The call as a developer writes it. */
export function callName(entry) {
  const names = { $identify: "identify", $create_alias: "alias", $merge: "merge" };
  return names[entry.event] ?? null;
}

/** Text and ids as nodes. */
export function sentence(parts) {
  return parts.map((part) => (typeof part === "string" ? part : idText(part.id)));
}

/** A sentence as plain text, for the region that is read aloud. */
export function plain(parts) {
  return parts.map((part) => (typeof part === "string" ? part : `“${shown(part.id, 60)}”`)).join("");
}

/** What a call that joined nobody came to, in one sentence, given whether its two ids are one person by now. */
export function headline(entry, areOne = false) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  const name = callName(entry);
  if (areOne) return [`${name ?? "The event"} changed nothing: `, second, " and ", first, " are one person"];
  if (name === null) return ["An event did not link the device ", second, " to ", first];
  if (name === "identify") return ["identify did not merge ", second, " into ", first];
  if (name === "alias") return ["alias did not add ", second, " to ", first];
  return ["merge did not join ", first, " and ", second];
}

const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-([0-9a-f])[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

function notUuid4(id) {
  const version = UUID.exec(id)?.[1];
  if (version !== undefined) return ` is a UUID, but of version ${version} and not 4, so Mixpanel ignores the call.`;
  if (/^[0-9a-f]{32}$/i.test(id))
    return " is a UUID without its dashes, which is not taken, so Mixpanel ignores the call.";
  return " is not a UUID version 4, so Mixpanel ignores the call.";
}

/** Why a call joined nobody. */
export function reason(entry) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  switch (entry.$failure_reason) {
    case "errAnonDistinctIdNonGUIDForm":
      return ["The anonymous id ", second, notUuid4(second.id)];
    case "errSameIDs":
      return ["Both ids are the same, ", first, ", so there is nothing to join."];
    case "errAnonDistinctIdAssignedAlready":
      return ["The anonymous id ", second, " belongs already to a person who was identified, and cannot change hands."];
    case "errAliasAlreadyExists":
      return ["The alias ", second, " was given out before, and an alias can be used once only."];
    case "errManyIDs":
      return ["The person would have more ids than Mixpanel allows."];
    default: {
      const words = shown(entry.$failure_description || "Mixpanel takes the call, but it has no effect here.", 500);
      return [`${words.charAt(0).toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`];
    }
  }
}

/** What it means for the data. */
function consequence(entry) {
  const [first, second] = idsOf(entry).map((id) => ({ id }));
  if (callName(entry) === null || first.id === second.id || first.id === "" || second.id === "") return null;
  return ["So ", first, " and ", second, " stay two people in every report."];
}

/** How two ids came together, for a call or an event that joined them. */
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

/** When the entry happened as far as its own properties tell, in milliseconds; NaN if they do not. */
export function timeOf(entry) {
  return milliseconds(entry.received_at ?? entry.properties?.time);
}

/** One text for all calls of this kind with these ids. */
export function callKey(entry) {
  return JSON.stringify([callName(entry), ...idsOf(entry)]);
}

/**
 * What became of an identity call, for its row in the list of events: a text and a kind, or null for another event.
 *
 * @param {string|undefined} outcome of the latest call like it.
 * @param {boolean} areOne whether its ids are one person by now.
 */
export function flagOf(event, outcome, areOne) {
  const properties = event.properties ?? {};
  const hasFailed = Boolean(properties.$failure_reason || properties.$identity_failure_reason);
  if (callName(event) === null || (!hasFailed && outcome === undefined)) return null;
  if (!hasFailed && outcome === "merged") return { text: "merged", kind: "good" };
  if (areOne) return { text: "one person already", kind: "calm" };
  return { text: event.event === "$create_alias" ? "did not link" : "did not merge", kind: "bad" };
}

/** An explanation as elements: what happened, why, what follows, what to do. */
export function explanation(entry, areOne, heading = "h3") {
  const title = h(heading, { class: "what" }, sentence(headline(entry, areOne)));
  if (areOne)
    return [title, h("p", { class: "why" }, "Mixpanel marks such a call as failed, but there is nothing to repair.")];
  const follows = consequence(entry);
  return [
    title,
    h("p", { class: "why" }, sentence(reason(entry)), " ", follows === null ? null : sentence(follows)),
    entry.advice ? h("p", { class: "advice" }, h("b", {}, "What to do: "), shown(entry.advice, 1000)) : null,
  ];
}
