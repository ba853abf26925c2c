/** Display of JSON values as readable, selectable text. */

import { brief, h, moment, milliseconds, shown, shownLines } from "./dom.js";

const MAX_PROPERTIES = 300;
const TIMES = new Set(["time", "$time", "received_at"]);

/** Return a value as indented JSON. */
export function valueTree(value) {
  return h(
    "pre",
    { class: "json", tabindex: "0", "aria-label": "JSON" },
    shownLines(JSON.stringify(value ?? null, null, 2)),
  );
}

function valueCell(name, value) {
  if (value !== null && typeof value === "object" && Object.keys(value).length > 0) return valueTree(value);
  if (TIMES.has(name) && !Number.isNaN(milliseconds(value)))
    return [String(value), h("span", { class: "aside" }, moment(value))];
  if (value === "") return h("span", { class: "aside" }, "empty text");
  if (typeof value === "string")
    return h("div", { class: "text", tabindex: value.length > 1000 ? "0" : null }, h("bdi", {}, shownLines(value)));
  return h(
    "span",
    { class: "literal" },
    value !== null && typeof value === "object" ? JSON.stringify(value) : brief(value),
  );
}

function rows(names, properties) {
  return names.map((name) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("bdi", {}, name === "" ? "(empty)" : shown(name, 255))),
      h("td", {}, valueCell(name, properties[name])),
    ),
  );
}

/**
 * Return properties as a table.
 *
 * @param {object} properties by name.
 * @param {function(string): boolean} isOwn returns true for properties of the app, false for those of Mixpanel.
 */
export function propertyTable(properties, label, isOwn = () => true) {
  const names = Object.keys(properties ?? {});
  if (names.length === 0) return h("p", { class: "quiet" }, "None.");
  const shownNames = names.slice(0, MAX_PROPERTIES);
  const [own, others] = [shownNames.filter(isOwn), shownNames.filter((name) => !isOwn(name))];
  return [
    h("table", { class: "properties", "aria-label": label }, [
      own.length > 0 ? h("tbody", {}, rows(own, properties)) : null,
      others.length > 0 ? h("tbody", { class: "others" }, rows(others, properties)) : null,
    ]),
    names.length > MAX_PROPERTIES ? h("p", { class: "quiet" }, `… and ${names.length - MAX_PROPERTIES} more`) : null,
  ];
}
