/** List of groups, the latest update first, with search. */

import { brief, count, h, hue, shown } from "./dom.js";
import { enableArrowKeys, keepTabStop } from "./rows.js";
import { setFullTexts } from "./tips.js";

const MAX_ROWS = 200;
const PREVIEWED = 4;

const byId = (id) => document.getElementById(id);

export class GroupsView {
  /** @param {{openGroup: function(object): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.list = byId("group-rows");
    this.query = byId("group-query");
    this.groups = new WeakMap();
    this.seen = "";
    this.query.addEventListener("input", () => page.refresh());
    byId("group-search").addEventListener("submit", (event) => event.preventDefault());
    this.list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) page.openGroup(this.groups.get(row));
    });
    enableArrowKeys(this.list, (row) => {
      if (page.isDetailOpen()) page.openGroup(this.groups.get(row), { moveFocus: false });
    });
    setFullTexts(this.list, (row, index) => {
      const group = this.groups.get(row);
      return [group?.key, group?.id, undefined][index];
    });
  }

  focusRow(group) {
    const row = [...this.list.querySelectorAll(".row")].find((candidate) => this.groups.get(candidate)?.id === group.id);
    (row ?? this.list.querySelector(".row"))?.focus();
  }

  render({ isPaused = false } = {}) {
    const query = this.query.value.trim().toLowerCase();
    const seen = `${this.store.generation} ${this.store.groupChanges} ${query}`;
    if (seen === this.seen || (isPaused && this.list.childElementCount > 0)) return;
    this.seen = seen;
    const groups = [...this.store.groups.values()]
      .reverse()
      .filter(({ key, id, profile }) =>
        [key, id, String(profile.$name ?? "")].some((text) => text.toLowerCase().includes(query)),
      );
    this.list.replaceChildren(...groups.slice(0, MAX_ROWS).map((group) => this.#item(group)));
    keepTabStop(this.list);
    byId("group-matches").textContent =
      query !== "" || groups.length > MAX_ROWS
        ? `${count(Math.min(groups.length, MAX_ROWS))} of ${count(this.store.groups.size)}`
        : "";
    const empty = byId("groups-empty");
    empty.hidden = groups.length > 0;
    empty.textContent =
      query === "" ? "No groups yet. A group update (such as group_set) creates one." : "No group matches.";
  }

  #item(group) {
    const names = Object.keys(group.profile);
    const preview = names
      .slice(0, PREVIEWED)
      .map((name) => `${shown(name, 40)}: ${brief(group.profile[name], 60)}`)
      .join("  ·  ");
    const row = h(
      "button",
      { type: "button", class: "row group", tabindex: "-1" },
      h("span", { class: "key" }, h("bdi", {}, shown(group.key, 80))),
      h("span", { class: `who ${hue(group.id)}` }, h("bdi", {}, shown(group.id, 80))),
      h("span", { class: "preview" }, preview),
    );
    this.groups.set(row, group);
    return h("li", {}, row);
  }
}
