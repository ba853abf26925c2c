/** List of people, the most recently active first, with search. */

import { clock, count, h, hue, plural, shown } from "./dom.js";
import { keepTabStop, enableArrowKeys } from "./rows.js";
import { usesPointer } from "./modality.js";
import { setFullTexts } from "./tips.js";

const MAX_ROWS = 200;
// The order of people changes constantly. Two updates per second remain readable.
const UPDATE_INTERVAL = 500;

const byId = (id) => document.getElementById(id);

/** Return the display name of a profile, or null. */
export function profileName(profile) {
  if (profile === null || typeof profile !== "object") return null;
  const full = [profile.$first_name, profile.$last_name]
    .filter((part) => typeof part === "string" && part !== "")
    .join(" ");
  for (const value of [profile.$name, full, profile.$email])
    if (typeof value === "string" && value.trim() !== "") return value;
  return null;
}

export class PeopleView {
  /** @param {{openPerson: function(string): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.list = byId("people-rows");
    this.query = byId("person-query");
    this.ids = new WeakMap();
    this.rendered = -Infinity;
    this.selected = null;
    this.query.addEventListener("input", () => {
      this.rendered = -Infinity;
      page.refresh();
    });
    byId("people-search").addEventListener("submit", (event) => {
      event.preventDefault();
      // The emulator may know an id that the page has removed.
      if (this.query.value.trim() !== "") page.openPerson(this.query.value.trim());
    });
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) page.openPerson(this.ids.get(row));
    });
    setFullTexts(this.list, (row, index) => {
      const canonical = this.ids.get(row);
      if (index === 0) return canonical;
      return index === 1 ? (profileName(store.people.get(canonical)?.profile ?? null) ?? undefined) : undefined;
    });
    enableArrowKeys(this.list, (row) => {
      if (page.isDetailOpen()) page.openPerson(this.ids.get(row), { moveFocus: false });
    });
  }

  select(canonical) {
    this.selected = canonical;
    for (const row of this.list.querySelectorAll(".row")) this.#mark(row);
  }

  #mark(row) {
    if (this.selected !== null && this.ids.get(row) === this.selected) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }

  focusRow(canonical) {
    const row = [...this.list.querySelectorAll(".row")].find((candidate) => this.ids.get(candidate) === canonical);
    (row ?? this.list.querySelector(".row"))?.focus();
  }

  render({ now = performance.now(), isPaused = false } = {}) {
    const isForced = this.rendered === -Infinity;
    const held = usesPointer() ? ".row:active" : ".row:focus-visible, .row:active";
    if (!isForced && (isPaused || this.list.querySelector(held) !== null)) return;
    if (now - this.rendered < UPDATE_INTERVAL) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.page.refresh(), UPDATE_INTERVAL - (now - this.rendered));
      return;
    }
    this.rendered = now;
    const people = this.#matching();
    const items = [...this.list.children];
    while (items.length < Math.min(people.length, MAX_ROWS)) {
      items.push(newItem());
      this.list.append(items.at(-1));
    }
    for (const [index, item] of items.entries()) {
      const person = people[index];
      if (person === undefined) item.remove();
      else this.#fill(item.firstElementChild, person);
    }
    keepTabStop(this.list);
    const isSearched = this.query.value.trim() !== "";
    byId("people-matches").textContent =
      isSearched || people.length > MAX_ROWS
        ? `${count(Math.min(people.length, MAX_ROWS))} of ${count(this.store.people.size)}`
        : "";
    const empty = byId("people-empty");
    empty.hidden = people.length > 0;
    empty.textContent = isSearched
      ? "No match. Press Enter to request exactly this id from the emulator."
      : "No people yet. A person appears with the first event or profile update that has a distinct_id.";
  }

  #matching() {
    const query = this.query.value.trim().toLowerCase();
    const people = [...this.store.people.values()].reverse();
    if (query === "") return people;
    return people.filter((person) =>
      [...person.ids, profileName(person.profile) ?? "", String(person.profile?.$email ?? "")].some((text) =>
        text.toLowerCase().includes(query),
      ),
    );
  }

  #fill(row, person) {
    this.ids.set(row, person.canonical);
    const [who, name, ids, seen] = row.children;
    who.firstElementChild.textContent = shown(person.canonical, 80);
    who.className = `who ${hue(person.canonical)}`;
    name.firstElementChild.textContent = shown(profileName(person.profile) ?? "", 80);
    ids.textContent = person.ids.length > 1 ? plural(person.ids.length, "id") : "";
    const unseen = person.profile === null ? "identity calls only" : "profile only";
    seen.textContent =
      person.last === undefined ? unseen : `seen ${clock(person.last, { withMilliseconds: false })}`;
    this.#mark(row);
  }
}

function newItem() {
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: "row person", tabindex: "-1" },
      h("span", { class: "who" }, h("bdi", {})),
      h("span", { class: "name" }, h("bdi", {})),
      h("span", { class: "ids" }),
      h("span", { class: "when" }),
    ),
  );
}
