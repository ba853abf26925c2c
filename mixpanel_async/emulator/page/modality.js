/**
 * Whether the user currently uses the keyboard or a pointer.
 *
 * Browsers decide by their own rules whether an element that a script focuses shows a focus ring. A click on "Dismiss",
 * for example, moves the focus to the list and would leave a ring around it. The style sheet shows rings after a key
 * press only, except on text fields.
 */

const MODIFIERS = new Set(["Shift", "Control", "Alt", "Meta"]);

function set(input) {
  document.documentElement.dataset.input = input;
}

addEventListener("pointerdown", () => set("pointer"), true);
addEventListener(
  "keydown",
  (event) => {
    if (!MODIFIERS.has(event.key)) set("keyboard");
  },
  true,
);

/** Return whether the latest input came from a pointer. */
export function usesPointer() {
  return document.documentElement.dataset.input === "pointer";
}
