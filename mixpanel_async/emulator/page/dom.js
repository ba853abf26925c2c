/**
 * Creation of elements, and safe display of text.
 *
 * Received data is untrusted. It is inserted as text nodes only, and characters that would reorder, hide or break the
 * surrounding text are replaced by visible ones.
 */

/** Create an element with attributes (`on…` adds a listener) and children: nodes, texts, lists of them, or null. */
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

const INVISIBLE = new RegExp(
  [
    // Control characters, zero-width characters and characters that change the text direction.
    "[\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u2069]",
    "[\\ufeff\\ufff9-\\ufffb]",
    // Halves of surrogate pairs.
    "[\\ud800-\\udbff](?![\\udc00-\\udfff])",
    "(?<![\\ud800-\\udbff])[\\udc00-\\udfff]",
  ].join("|"),
  "g",
);

function visible(character) {
  const code = character.charCodeAt(0);
  if (code < 0x20) return String.fromCharCode(0x2400 + code);
  if (code === 0x7f) return "\u2421";
  return `\\u${code.toString(16).padStart(4, "0")}`;
}

/** Return a text with invisible characters replaced by visible ones, truncated to `limit` characters. */
export function shown(value, limit = 200) {
  const text = String(value);
  const cut = text.length > limit ? text.slice(0, limit) : text;
  const clean = cut.replace(INVISIBLE, visible);
  return text.length > limit ? `${clean}…` : clean;
}

/** Like `shown`, for text of several lines. */
export function shownLines(value, limit = 20_000) {
  const text = String(value);
  const more = text.length - limit;
  const clean = text
    .slice(0, limit)
    .split("\n")
    .map((line) => line.replace(INVISIBLE, (character) => (character === "\t" ? character : visible(character))))
    .join("\n");
  return more > 0 ? `${clean}\n… ${count(more)} more characters` : clean;
}

/** Return a JSON value as a short text of one line. */
export function brief(value, limit = 60) {
  if (typeof value === "string") return shown(value, limit);
  if (value === null || typeof value !== "object") return String(value);
  if (Array.isArray(value)) {
    const isFlat = value.length <= 10 && value.every((one) => one === null || typeof one !== "object");
    return isFlat ? shown(`[${value.map((one) => brief(one, limit)).join(", ")}]`, limit) : `[${value.length}]`;
  }
  return `{${Object.keys(value).length}}`;
}

const WHOLE = new Intl.NumberFormat("en");

/** Format a number with thousands separators. */
export function count(number) {
  return WHOLE.format(number);
}

/** Format a number with its noun: "1 event", "2 events". */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Convert seconds or milliseconds since the epoch to milliseconds, as the emulator does; NaN for other values. */
export function milliseconds(time) {
  if (typeof time !== "number" || !Number.isFinite(time)) return Number.NaN;
  return time < 1e11 ? time * 1000 : time;
}

function two(number, width = 2) {
  return String(number).padStart(width, "0");
}

/** Format the local time of day. */
export function clock(time, { withMilliseconds = true } = {}) {
  const date = new Date(milliseconds(time));
  if (Number.isNaN(date.getTime())) return "–";
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return withMilliseconds ? `${text}.${two(date.getMilliseconds(), 3)}` : text;
}

/** Format the local date and time. */
export function moment(time) {
  const date = new Date(milliseconds(time));
  if (Number.isNaN(date.getTime())) return brief(time);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(time)}`;
}

/** Return one of eight colour classes for a person, so that a person is easy to follow in the list. */
export function hue(text) {
  let hash = 0;
  for (let index = 0; index < Math.min(text.length, 200); index += 1) hash = (hash * 31 + text.charCodeAt(index)) | 0;
  return `hue-${Math.abs(hash) % 8}`;
}

/** Return an element for an id in a sentence. */
export function idText(id, limit = 60) {
  return h(
    "bdi",
    { class: "id", title: id.length > limit ? shown(id, 2000) : null },
    id === "" ? "(empty)" : shown(id, limit),
  );
}

/** Return a button that copies a text. */
export function copyButton(label, text) {
  const button = h("button", { type: "button", class: "copy", "aria-label": label }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text());
      button.textContent = "Copied";
    } catch {
      // Without HTTPS, browsers allow clipboard access only on loopback addresses.
      button.textContent = "Copy failed";
    }
    setTimeout(() => {
      button.textContent = "Copy";
    }, 1500);
  });
  return button;
}

/** Replace the children of an element only if their signature has changed, which preserves focus and selection. */
export function renewed(element, signature, build) {
  if (element.dataset.signature === signature) return;
  element.dataset.signature = signature;
  element.replaceChildren(...[build()].flat(3).filter((child) => child !== null));
}
