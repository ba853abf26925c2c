/**
 * List of events, newest first.
 *
 * It shows a bounded number of rows, and reuses the last row for the next event, so that high event rates create no
 * elements. The list does not move while it is scrolled down, paused, focused by keyboard or pressed with the mouse. In
 * that case, a button shows the number of new events.
 */

import { brief, clock, count, h, hue, plural, shown } from "./dom.js";
import { callKey, callName, flagOf, idsOf } from "./identity.js";
import { keepTabStop, enableArrowKeys } from "./rows.js";
import { setFullTexts } from "./tips.js";
import { usesPointer } from "./modality.js";
import { welcome } from "./welcome.js";

const MAX_ROWS = 300;
const PREVIEWED = 4;
const NAMES_OFFERED = 100;
// Properties of nearly every event, which are left out of the preview.
const COMMON = new Set([
  "token",
  "time",
  "distinct_id",
  "mp_lib",
  "sent_by_lib_version",
  "mp_sent_by_lib_version",
  "ip",
  "alias",
]);

const byId = (id) => document.getElementById(id);

export class EventsView {
  /** @param {{open: function(object): void, close: function(): void, isPaused: function(): boolean}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.list = byId("event-rows");
    this.newer = byId("newer");
    this.name = byId("filter-name");
    this.person = byId("filter-person");
    this.updates = byId("filter-updates");
    this.events = new WeakMap();
    this.shownOrder = 0;
    this.seen = { generation: -1, identityChanges: -1, filter: null, names: 0 };
    this.atTop = true;
    this.isPressed = false;
    this.selected = null;
    this.#listen();
  }

  #listen() {
    const edge = byId("event-edge");
    new IntersectionObserver((entries) => {
      const { isIntersecting, boundingClientRect } = entries.at(-1);
      // An edge below the visible part of a small window does not mean that the list is scrolled.
      this.atTop = isIntersecting || boundingClientRect.top >= innerHeight;
      if (this.atTop) this.page.refresh();
    }).observe(edge);
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.#open(row);
    });
    enableArrowKeys(this.list, (row) => {
      if (this.page.isDetailOpen()) this.#open(row, { moveFocus: false });
    });
    // A row must not move between press and release of the mouse button.
    this.list.addEventListener("pointerdown", () => {
      this.isPressed = true;
    });
    for (const type of ["pointerup", "pointercancel"]) {
      addEventListener(type, () => {
        this.isPressed = false;
        this.page.refresh();
      });
    }
    this.list.addEventListener("focusout", () => this.page.refresh());
    this.newer.addEventListener("click", () => this.showNewest());
    setFullTexts(this.list, (row, index) => this.#fullText(this.events.get(row), index));
    for (const input of [this.name, this.person, this.updates]) input.addEventListener("input", () => this.page.refresh());
    byId("filter-clear").addEventListener("click", () => {
      this.setFilter("", "");
      this.name.focus();
    });
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
  }

  setFilter(name, person) {
    this.name.value = name;
    this.person.value = person;
    this.page.refresh();
  }

  #open(row, options) {
    const event = this.events.get(row);
    if (event !== undefined) this.page.open(event, options);
  }

  /** Mark the event whose details are open; null marks none. */
  select(order) {
    this.selected = order;
    for (const row of this.list.querySelectorAll(".row")) this.#mark(row);
  }

  #mark(row) {
    if (this.selected !== null && this.events.get(row)?.order === this.selected) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
  }

  /** Return the focus to the row of an event, or to the list. */
  focusRow(order) {
    const row = [...this.list.querySelectorAll(".row")].find((candidate) => this.events.get(candidate)?.order === order);
    (row ?? this.list.querySelector(".row"))?.focus();
  }

  showNewest() {
    this.page.resume();
    if (this.list.contains(document.activeElement)) document.activeElement.blur();
    byId("event-scroller").scrollTop = 0;
    byId("event-edge").scrollIntoView({ block: "nearest" });
    this.#update();
    this.list.querySelector(".row")?.focus({ preventScroll: true });
  }

  #isHeld() {
    if (this.page.isPaused() || !this.atTop || this.isPressed) return true;
    return !usesPointer() && this.list.querySelector(".row:focus-visible") !== null;
  }

  render() {
    const { store } = this;
    const filter = `${this.name.value}\n${this.person.value}\n${this.updates.checked}`;
    const isFresh = store.generation !== this.seen.generation || filter !== this.seen.filter;
    const hasIdentityChanges = store.identityChanges !== this.seen.identityChanges;
    if (isFresh || (hasIdentityChanges && this.person.value.trim() !== "" && !this.#isHeld())) {
      this.seen.generation = store.generation;
      this.seen.filter = filter;
      this.shownOrder = 0;
      this.list.replaceChildren();
      this.#update();
    } else if (this.#isHeld()) {
      this.#showNewer();
    } else {
      this.#update();
    }
    if (hasIdentityChanges) {
      this.seen.identityChanges = store.identityChanges;
      for (const row of this.list.querySelectorAll(".row")) {
        this.#fillPerson(row, this.events.get(row));
        this.#fillFlag(row, this.events.get(row));
      }
    }
    this.#renderNames();
    this.#renderNotes();
  }

  #filter() {
    return this.store.filter(this.name.value, this.person.value, { withUpdates: this.updates.checked });
  }

  /** Return matching events newer than those in the list, newest first, at most `MAX_ROWS`. */
  #fresh() {
    const matches = this.#filter();
    const fresh = [];
    const { events } = this.store;
    for (let index = events.length - 1; index >= 0 && fresh.length < MAX_ROWS; index -= 1) {
      if (events[index].order <= this.shownOrder) break;
      if (matches(events[index])) fresh.push(events[index]);
    }
    return fresh;
  }

  #update() {
    const fresh = this.#fresh();
    this.newer.hidden = true;
    if (fresh.length > 0) {
      const items = fresh.map((event, index) => this.#item(event, index));
      this.list.prepend(...items);
    }
    this.shownOrder = this.store.events.at(-1)?.order ?? this.shownOrder;
    keepTabStop(this.list);
  }

  /** Return an item for an event: the reused last item of a full list, or a new one. */
  #item(event, pending) {
    const { list } = this;
    const item = list.childElementCount + pending >= MAX_ROWS ? (list.lastElementChild ?? newItem()) : newItem();
    item.remove();
    const row = item.firstElementChild;
    row.tabIndex = -1;
    this.#fill(row, event);
    return item;
  }

  #fill(row, event) {
    this.events.set(row, event);
    const [when, name, , preview] = row.children;
    when.textContent = clock(event.received_at);
    name.textContent = event.event === "" ? "(no name)" : shown(event.event, 80);
    row.classList.toggle("update", event.kind === "update");
    this.#fillPerson(row, event);
    preview.textContent = previewOf(event);
    this.#fillFlag(row, event);
    this.#mark(row);
  }

  #fillFlag(row, event) {
    const flag = row.lastElementChild;
    const isCall = callName(event) !== null;
    const label = isCall ? flagOf(event, this.store.outcomes.get(callKey(event)), this.store.areOne(event)) : null;
    flag.hidden = label === null;
    if (label === null) return;
    flag.textContent = label.text;
    flag.className = `flag ${label.kind}`;
  }

  #fillPerson(row, event) {
    const who = row.children[2];
    const canonical = this.#who(event);
    const text = canonical === "" ? "(no id)" : shown(canonical, 60);
    if (who.textContent === text) return;
    who.firstElementChild.textContent = text;
    who.className = `who ${canonical === "" ? "no-person" : hue(canonical)}`;
  }

  /** Return the canonical id of the person, or the key and id of a group. */
  #who(event) {
    return event.groupKey ? `${event.groupKey} ${event.distinct_id}` : this.store.resolve(event.distinct_id ?? "");
  }

  #fullText(event, index) {
    if (event === undefined) return undefined;
    if (index === 1) return event.event;
    if (index === 2) return this.#who(event);
    return index === 3 ? previewOf(event, { limit: 500, number: 50 }) : undefined;
  }

  #showNewer() {
    const number = this.#fresh().length;
    this.newer.hidden = number === 0;
    if (number === 0) return;
    const words = number >= MAX_ROWS ? `${count(MAX_ROWS)}+ new events` : plural(number, "new event");
    this.newer.textContent = this.page.isPaused() ? `${words} – resume` : `${words} – show`;
  }

  #renderNames() {
    const { names } = this.store;
    if (names.size === this.seen.names) return;
    this.seen.names = names.size;
    const often = [...names].sort((one, other) => other[1] - one[1]).slice(0, NAMES_OFFERED);
    byId("names").replaceChildren(...often.map(([name]) => h("option", { value: name.slice(0, 200) })));
  }

  #renderNotes() {
    const isFiltered = this.name.value.trim() !== "" || this.person.value.trim() !== "";
    const isEmpty = this.list.childElementCount === 0;
    byId("filter-clear").hidden = !isFiltered;
    const { events } = this.store;
    const matches = this.#filter();
    // Counted only with an active filter, because it checks every stored event.
    const number = isFiltered ? events.filter(matches).length : 0;
    byId("matches").textContent = isFiltered ? `${count(number)} of the latest ${count(events.length)}` : "";
    const note = byId("event-note");
    note.hidden = this.list.childElementCount < MAX_ROWS;
    note.textContent = `The latest ${count(this.list.childElementCount)} are shown. All are at /_emulator/events.`;
    welcome(byId("event-empty"), { isHidden: !isEmpty, isFiltered: isFiltered || events.length > 0, store: this.store });
  }
}

function newItem() {
  return h(
    "li",
    {},
    h(
      "button",
      { type: "button", class: "row event", tabindex: "-1" },
      h("time", { class: "when" }),
      h("span", { class: "name" }),
      h("span", { class: "who" }, h("bdi", {})),
      h("span", { class: "preview" }),
      h("span", { class: "flag" }),
    ),
  );
}

function previewOf(event, { limit = 60, number = PREVIEWED } = {}) {
  const { properties } = event;
  if (event.kind === "update") return updatePreview(properties, limit, number);
  if (callName(event) !== null) {
    const [first, second] = idsOf(event);
    return `${shown(second, limit)} → ${shown(first, limit)}`;
  }
  const parts = [];
  for (const name in properties ?? {}) {
    if (name.startsWith("$") || COMMON.has(name)) continue;
    parts.push(`${shown(name, 40)}: ${brief(properties[name], limit)}`);
    if (parts.length === number) break;
  }
  return parts.join("  ·  ");
}

function updatePreview(operations, limit, number) {
  const parts = [];
  for (const values of Object.values(operations)) {
    if (values === null || typeof values !== "object") continue;
    if (Array.isArray(values)) parts.push(...values.map((name) => brief(name, limit)));
    else for (const name in values) parts.push(`${shown(name, 40)}: ${brief(values[name], limit)}`);
  }
  return parts.slice(0, number).join("  ·  ");
}
