/**
 * Elements, and text made fit to be shown.
 *
 * What arrives was sent by anybody: it goes into the page as text nodes only, and characters that would reorder, hide
 * or break the text around them are replaced by something to see.
 */

/** An element with attributes (`on…` adds a listener) and children: nodes, texts, lists of them, or null. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return element;
}

const UNSEEN = new RegExp(
  [
    // Controls, and characters of no width or that change the direction of writing.
    "[\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069]",
    "[\\ufeff\\ufff9-\\ufffb]",
    // Halves of surrogate pairs.
    "[\\ud800-\\udbff](?![\\udc00-\\udfff])",
    "(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  ].join("|"),
  "g",
);

function seen(character) {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\\u${code.toString(16).padStart(4, "0")}`;
}

/** Any text as one that shows all it holds, cut at `limit` characters. */
export function shown(value, limit = 200) {
  const text = String(value);
  const cut = text.length > limit ? text.slice(0, limit) : text;
  const clean = cut.replace(UNSEEN, seen);
  return text.length > limit ? `${clean}…` : clean;
}

/** The same for a text of several lines. */
export function shownLines(value, limit = 20_000) {
  const text = String(value);
  const more = text.length - limit;
  const clean = text
    .slice(0, limit)
    .split("\n")
    .map((line) => line.replace(UNSEEN, (character) => (character === "\t" ? character : seen(character))))
    .join("\n");
  return more > 0 ? `${clean}\n… ${count(more)} more characters` : clean;
}

/** A JSON value in a line. */
export function brief(value, limit = 60) {
  if (typeof value === "string") return shown(value, limit);
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) return `[${value.length}]`;
  return `{${Object.keys(value).length}}`;
}

const WHOLE = new Intl.NumberFormat("en");

/** A number with its thousands apart. */
export function count(number) {
  return WHOLE.format(number);
}

/** "1 event", "2 events". */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Seconds or milliseconds since the epoch as milliseconds, told apart as the emulator does; NaN if it is neither. */
export function milliseconds(time) {
  if (typeof time !== "number" || !Number.isFinite(time)) return Number.NaN;
  return time < 1e11 ? time * 1000 : time;
}

function two(number, width = 2) {
  return String(number).padStart(width, "0");
}

/** The local time of day. */
export function clock(time, { withMilliseconds = true } = {}) {
  const date = new Date(milliseconds(time));
  if (Number.isNaN(date.getTime())) return "–";
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withMilliseconds ? `${text}.${two(date.getMilliseconds(), 3)}` : text;
}

/** The local date and time. */
export function moment(time) {
  const date = new Date(milliseconds(time));
  if (Number.isNaN(date.getTime())) return brief(time);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(time)}`;
}

/** One of eight hues for a person, so that the eye can follow one through the list. */
export function hue(text) {
  let hash = 0;
  for (let index = 0; index < Math.min(text.length, 200); index += 1) hash = (hash * 31 + text.charCodeAt(index)) | 0;
  return `hue-${Math.abs(hash) % 8}`;
}

/** An id in running text. */
export function idText(id, limit = 60) {
  return h(
    "bdi",
    { class: "id", title: id.length > limit ? shown(id, 2000) : null },
    id === "" ? "(empty)" : shown(id, limit),
  );
}

/** A button that copies a text. */
export function copyButton(label, text) {
  const button = h("button", { type: "button", class: "copy", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      // Without HTTPS only a loopback address may write to the clipboard.
      button.textContent = "Select it";
    }
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  });
  return button;
}

/** Replaces the children of an element only if what they show has changed, so that focus and selection survive. */
export function renewed(element, signature, build) {
  if (element.dataset.signature === signature) return;
  element.dataset.signature = signature;
  element.replaceChildren(...[build()].flat(3).filter((child) => child !== null));
}
