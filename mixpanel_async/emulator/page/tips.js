/**
 * One popover that shows the full text of a cell that is cut off, for the pointer and for keyboard focus.
 *
 * Escape hides it. The text is inserted as a text node, like all received data.
 */

import { shown } from "./dom.js";
import { usesPointer } from "./modality.js";

const MAX_CHARACTERS = 2_000;
const CELLS = ".row > *, .buttons bdi, .recent .aside, .head h2, .count, .cut";
const GAP = 4;

/** Functions that return the full text of a cell, by list. */
const sources = new WeakMap();

/**
 * Set where the full texts of a list of rows come from.
 *
 * @param {Element} list
 * @param {function(Element, number): (string|undefined)} textOf gets a row and the index of a cell. Undefined means that
 *   the cell contains its full text.
 */
export function setFullTexts(list, textOf) {
  sources.set(list, textOf);
}

export class Tips {
  constructor() {
    this.element = document.getElementById("tip");
    this.anchor = null;
    document.addEventListener("pointerover", (event) => this.#point(event.target.closest?.(CELLS) ?? null));
    document.addEventListener("focusin", (event) => {
      if (!usesPointer()) this.#point(event.target.closest?.(`.row, ${CELLS}`) ?? null);
    });
    document.addEventListener("focusout", () => this.hide());
    document.documentElement.addEventListener("pointerleave", () => this.hide());
    addEventListener("scroll", () => this.hide(), true);
    addEventListener("pointerdown", () => this.hide(), true);
    addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.hide();
    });
  }

  /** Hide the popover if the content under it has changed. Called after each update of the page. */
  refresh() {
    if (this.anchor === null) return;
    if (!this.anchor.isConnected || textFor(this.anchor) !== this.text) this.hide();
  }

  hide() {
    if (this.anchor === null) return;
    this.anchor.removeAttribute("aria-describedby");
    this.anchor = null;
    this.element.hidden = true;
  }

  #point(target) {
    if (target === this.anchor) return;
    this.hide();
    const text = target === null ? "" : textFor(target);
    if (text === "") return;
    this.anchor = target;
    this.text = text;
    this.element.textContent = text;
    this.element.hidden = false;
    target.setAttribute("aria-describedby", "tip");
    const place = target.getBoundingClientRect();
    const { offsetWidth, offsetHeight } = this.element;
    const below = place.bottom + GAP;
    const top = below + offsetHeight < innerHeight ? below : Math.max(GAP, place.top - GAP - offsetHeight);
    const left = Math.max(GAP, Math.min(place.left, innerWidth - offsetWidth - GAP));
    this.element.style.setProperty("top", `${top}px`);
    this.element.style.setProperty("left", `${left}px`);
  }
}

/** Return the texts that are cut off in a cell, or in all cells of a row; empty if none is. */
function textFor(target) {
  if (!target.classList.contains("row")) return cellText(target);
  return [...target.children].map(cellText).filter((text) => text !== "").join("\n");
}

function cellText(cell) {
  const row = cell.parentElement;
  const textOf = row?.classList.contains("row") ? sources.get(row.closest("ol")) : undefined;
  const full = textOf?.(row, [...row.children].indexOf(cell));
  const text = full === undefined ? cell.textContent : shown(full, MAX_CHARACTERS);
  const isCut = cell.scrollWidth > cell.clientWidth + 1 || cell.scrollHeight > cell.clientHeight + 4;
  const isShortened = full !== undefined && cell.textContent !== text;
  return cell.clientWidth > 0 && (isCut || isShortened) ? text : "";
}
