/** Detail panel: one event with all properties, or one person with all ids and the calls that joined them. */

import { clock, copyButton, count, h, hue, idText, moment, renewed, shown } from "./dom.js";
import { explanation, headline, idsOf, joined, reason, sentence, timeOf } from "./identity.js";
import { profileName } from "./people-view.js";
import { propertyTable, valueTree } from "./values.js";

const MAX_IDS = 100;
const MAX_STORY = 100;
const MAX_RECENT = 25;
// At high event rates, the panel is updated twice per second.
const UPDATE_INTERVAL = 500;

const MIXPANEL_OWN = new Set([
  "token",
  "time",
  "distinct_id",
  "mp_lib",
  "sent_by_lib_version",
  "mp_sent_by_lib_version",
]);
const isOwn = (name) => !name.startsWith("$") && !MIXPANEL_OWN.has(name);

export class Detail {
  /** @param {{openPerson: function(string): void, filterPerson: function(string): void, closeDetail: function(): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.element = document.getElementById("detail");
    this.event = null;
    this.person = null;
    this.group = null;
    this.rendered = -Infinity;
    /** Data of the open person that the stream did not contain, by id. */
    this.requested = new Map();
  }

  get isOpen() {
    return this.event !== null || this.person !== null || this.group !== null;
  }

  showEvent(event) {
    this.#open({ event, person: null, group: null });
  }

  showPerson(id) {
    this.#open({ event: null, person: id, group: null });
    this.#request(id);
  }

  showGroup(group) {
    this.#open({ event: null, person: null, group });
  }

  close() {
    this.event = null;
    this.person = null;
    this.group = null;
    this.element.hidden = true;
    this.element.replaceChildren();
  }

  #open(subject) {
    Object.assign(this, subject);
    this.element.hidden = false;
    this.element.replaceChildren();
    this.element.scrollTop = 0;
    this.rendered = -Infinity;
    this.render();
  }

  render(now = performance.now()) {
    if (!this.isOpen) return;
    if (now - this.rendered < UPDATE_INTERVAL) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.page.refresh(), UPDATE_INTERVAL - (now - this.rendered));
      return;
    }
    this.rendered = now;
    if (this.element.childElementCount === 0)
      this.element.append(h("div", { class: "head" }), h("div", { class: "body" }));
    if (this.group !== null) this.#renderGroup(this.group);
    else if (this.event?.kind === "update") this.#renderUpdate(this.event);
    else if (this.event !== null) this.#renderEvent(this.event);
    else this.#renderPerson(this.person);
  }

  #head(signature, kind, title, extra = null) {
    renewed(this.element.querySelector(".head"), signature, () => [
      h("div", { class: "head-line" }, [
        h("p", { class: "kind" }, kind),
        h(
          "button",
          { type: "button", class: "close", "aria-label": "Close the details", onclick: () => this.page.closeDetail() },
          "Close",
        ),
      ]),
      h("h2", { id: "detail-title" }, h("bdi", {}, title)),
      extra,
    ]);
  }

  /** Update one part of the panel, without changing the others. */
  #part(name, signature, build) {
    const body = this.element.querySelector(".body");
    let part = body.querySelector(`[data-part="${name}"]`);
    if (part === null) {
      part = h("section", { "data-part": name });
      body.append(part);
    }
    renewed(part, signature, build);
  }

  #renderEvent(event) {
    const canonical = this.store.resolve(event.distinct_id ?? "");
    this.#head(`event ${event.order}`, "Event", event.event === "" ? "(no name)" : shown(event.event, 300));
    this.#part("who", canonical, () =>
      canonical === ""
        ? h("p", { class: "quiet" }, "Counts for no person, because it has no distinct_id.")
        : h("p", { class: "person-line" }, [
            "Counts for ",
            h(
              "button",
              { type: "button", class: `link who ${hue(canonical)}`, onclick: () => this.page.openPerson(canonical) },
              idText(canonical),
            ),
            event.sent_id && event.sent_id !== canonical ? [" and was sent as ", idText(event.sent_id)] : null,
          ]),
    );
    const entry = this.#entryOf(event);
    const areOne = entry !== null && this.store.areOne(entry);
    if (entry !== null) {
      this.#part("trouble", `${entry.seq} ${areOne}`, () =>
        h("div", { class: `trouble ${areOne ? "calm" : ""}` }, explanation(entry, areOne)),
      );
    }
    this.#part("facts", "", () => h("dl", { class: "facts" }, facts(event)));
    this.#part("properties", "", () => [
      h(
        "div",
        { class: "section-line" },
        h("h3", {}, "Properties"),
        copyButton("Copy the event as JSON", () => eventAsJson(event)),
      ),
      propertyTable(event.properties, "Properties of the event", isOwn),
    ]);
  }

  #renderUpdate(update) {
    const { groupKey, distinct_id: id } = update;
    this.#head(`update ${update.order}`, groupKey ? "Group update" : "Profile update", shown(update.event, 300));
    const canonical = groupKey ? id : this.store.resolve(id);
    this.#part("who", canonical, () =>
      h("p", { class: "person-line" }, [
        groupKey ? ["Of the group ", idText(groupKey), " "] : "Of ",
        groupKey
          ? idText(id)
          : h(
              "button",
              { type: "button", class: `link who ${hue(canonical)}`, onclick: () => this.page.openPerson(canonical) },
              idText(canonical),
            ),
      ]),
    );
    this.#part("facts", "", () => h("dl", { class: "facts" }, facts(update)));
    this.#part("properties", "", () =>
      Object.entries(update.properties).map(([operation, values]) => [
        h("h3", {}, operation),
        values !== null && typeof values === "object" && !Array.isArray(values)
          ? propertyTable(values, operation, isOwn)
          : valueTree(values),
      ]),
    );
  }

  #renderGroup({ key, id }) {
    const profile = this.store.groups.get(JSON.stringify([key, id]))?.profile ?? null;
    this.#head(`group ${key} ${id}`, `Group ${shown(key, 100)}`, shown(id, 300));
    this.#part("profile", JSON.stringify(profile), () => [
      h("h3", {}, "Profile"),
      profile === null
        ? h("p", { class: "quiet" }, "This group was deleted.")
        : propertyTable(profile, "Properties of the group", isOwn),
    ]);
    this.#part("use", "", () =>
      h("p", { class: "quiet" }, [
        "Events belong to this group if their property ",
        h("code", { class: "id" }, shown(key, 100)),
        " is its id.",
      ]),
    );
  }

  /** Return the identity log entry of an event, if it is a failed identity call. */
  #entryOf(event) {
    const key = JSON.stringify(idsOf(event));
    for (const { entry } of this.store.problems.values()) {
      if (entry.event === event.event && JSON.stringify(idsOf(entry)) === key) return entry;
    }
    return null;
  }

  #renderPerson(id) {
    const { store } = this;
    const ids = this.#idsOf(id);
    const canonical = ids[0];
    const profile = store.people.get(canonical)?.profile ?? this.requested.get(id)?.profile ?? null;
    const name = profileName(profile);
    this.#head(`person ${canonical} ${name}`, "Person", shown(name ?? canonical, 300));
    const story = store.historyOf(ids);
    this.#part("actions", canonical, () =>
      h(
        "div",
        { class: "buttons" },
        h(
          "button",
          { type: "button", onclick: () => this.page.filterPerson(canonical) },
          "Show only this person’s events",
        ),
      ),
    );
    this.#part("ids", JSON.stringify(ids.slice(0, MAX_IDS + 1)), () => [
      h("h3", {}, ids.length === 1 ? "One id" : `All ${count(ids.length)} ids`),
      h(
        "ul",
        { class: "id-list" },
        ids.slice(0, MAX_IDS).map((member, index) => this.#idItem(member, index, ids.length)),
      ),
      ids.length > MAX_IDS ? h("p", { class: "quiet" }, `… and ${count(ids.length - MAX_IDS)} more`) : null,
    ]);
    const signature = story.map((entry) => `${entry.seq} ${entry.outcome} ${store.areOne(entry)}`).join();
    this.#part("story", `${ids.length} ${signature}`, () => [
      h("h3", {}, ids.length > 1 ? "How these ids were joined" : "Identity calls"),
      story.length === 0 ? h("p", { class: "quiet" }, "No identity call has named this id.") : null,
      h(
        "ol",
        { class: "story" },
        story.slice(-MAX_STORY).map((entry) => this.#storyItem(entry)),
      ),
    ]);
    this.#part("profile", JSON.stringify(profile), () => [
      h("h3", {}, "Profile"),
      profile === null
        ? h("p", { class: "quiet" }, "No profile. A people update (such as people_set) creates one.")
        : propertyTable(profile, "Profile properties", isOwn),
    ]);
    const recent = this.#recent(ids);
    this.#part("recent", recent.map((event) => `${event.seq}`).join(), () => [
      h("h3", {}, "Recent events"),
      recent.length === 0 ? h("p", { class: "quiet" }, "None among the latest events.") : null,
      h(
        "ol",
        { class: "recent" },
        recent.map((event) => this.#recentItem(event)),
      ),
    ]);
  }

  #idsOf(id) {
    const ids = this.store.idsOf(id);
    const more = this.requested.get(id)?.ids ?? [];
    return ids.length >= more.length ? ids : more;
  }

  #idItem(id, index, total) {
    const note = index === 0 && total > 1 ? "canonical: what reports and exports show" : null;
    return h("li", {}, idText(id, 200), note === null ? null : h("span", { class: "aside" }, note));
  }

  #storyItem(entry) {
    const time = timeOf(entry);
    const when = Number.isNaN(time) ? null : h("time", {}, clock(time, { withMilliseconds: false }));
    if (entry.outcome === "merged" || entry.outcome === "unchanged")
      return h("li", { class: entry.outcome }, sentence(joined(entry)), when);
    if (this.store.areOne(entry)) return h("li", { class: "unchanged" }, sentence(headline(entry, true)), when);
    return h("li", { class: "failed" }, [
      h("b", {}, sentence(headline(entry)), "."),
      " ",
      sentence(reason(entry)),
      entry.advice ? [" ", shown(entry.advice, 1000)] : null,
      when,
    ]);
  }

  #recent(ids) {
    const members = new Set(ids);
    const recent = [];
    const { events } = this.store;
    for (let index = events.length - 1; index >= 0 && recent.length < MAX_RECENT; index -= 1) {
      if (events[index].kind === "update") continue;
      if (members.has(events[index].distinct_id) || members.has(this.store.resolve(events[index].distinct_id)))
        recent.push(events[index]);
    }
    return recent;
  }

  #recentItem(event) {
    return h(
      "li",
      {},
      h(
        "button",
        { type: "button", class: "link", onclick: () => this.page.open(event) },
        h("bdi", {}, shown(event.event, 80) || "(no name)"),
      ),
      h(
        "span",
        { class: "aside" },
        event.sent_id && event.sent_id !== event.distinct_id ? ["as ", idText(event.sent_id, 40)] : null,
      ),
      h("time", {}, clock(event.received_at, { withMilliseconds: false })),
    );
  }

  /** Request a person from the emulator that the stream did not contain, or that the page has removed. */
  async #request(id) {
    if (this.store.people.get(this.store.resolve(id))?.isComplete) return;
    const [resolved, cluster] = await Promise.all([requested("resolve", id), requested("cluster", id)]);
    const profile = this.store.stats.profiles === 0 ? null : await requested("profile", id);
    if (this.person !== id || !Array.isArray(cluster)) return;
    const canonical = resolved?.distinct_id ?? id;
    this.requested.clear();
    this.requested.set(id, { ids: [canonical, ...cluster.filter((other) => other !== canonical)], profile });
    this.rendered = -Infinity;
    this.page.refresh();
  }
}

async function requested(what, id) {
  try {
    const answer = await fetch(`/_emulator/${what}?distinct_id=${encodeURIComponent(id)}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function facts(event) {
  const list = [
    ["Arrived", moment(event.received_at)],
    ["Endpoint", event.endpoint ?? "–"],
  ];
  if (event.time !== undefined && event.time !== null) list.splice(1, 0, ["Happened", moment(event.time)]);
  if (event.insert_id) list.push(["$insert_id", shown(event.insert_id, 100)]);
  return list.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, shown(value, 200))));
}

function eventAsJson(event) {
  return JSON.stringify({ event: event.event, properties: event.properties }, null, 2);
}
