/**
 * Live page of the emulator. The stream fills the store, and each animation frame updates the visible view.
 *
 * The URL fragment selects the view (`#/events`, `#/people/<id>`, `#/groups`, `#/identity`, `#/health`,
 * `#/rejected`, `#/requests`, `#/flags`), so that the browser's
 * Back button works and people can be linked.
 */

import { count } from "./dom.js";
import { Detail } from "./detail.js";
import { EventsView } from "./events-view.js";
import { FlagsView } from "./flags-view.js";
import { GroupsView } from "./groups-view.js";
import { HealthView } from "./health-view.js";
import { PeopleView } from "./people-view.js";
import { ProblemsView } from "./problems-view.js";
import { RequestsView } from "./requests-view.js";
import { Store } from "./store.js";
import { listen } from "./stream.js";
import { Tips } from "./tips.js";

const VIEWS = ["events", "people", "groups", "identity", "health", "rejected", "requests", "flags"];
const SYSTEMS = { original: "Original ID Merge", simplified: "Simplified ID Merge", legacy: "Legacy, no ID Merge" };
const STATES = { connecting: "Connecting", connected: "Connected", reconnecting: "Reconnecting", paused: "Paused" };

const byId = (id) => document.getElementById(id);

class Page {
  constructor() {
    this.store = new Store();
    this.connection = "connecting";
    this.paused = false;
    this.view = "events";
    this.isScheduled = false;
    this.sparkAt = 0;
    this.detail = new Detail(this.store, this);
    this.events = new EventsView(this.store, this);
    this.people = new PeopleView(this.store, this);
    this.problems = new ProblemsView(this.store, this);
    this.groups = new GroupsView(this.store, this);
    this.requests = new RequestsView(this.store, this);
    this.flags = new FlagsView(this.store, this);
    this.health = new HealthView(this.store, this);
    this.tips = new Tips();
    this.#listen();
    this.#route();
    listen({
      state: (state) => {
        this.connection = state;
        this.refresh();
      },
      hello: (hello) => this.#hello(hello),
      batch: (batch, characters) => {
        this.store.addBatch(batch, characters);
        this.refresh();
      },
      reset: () => this.#clear(),
    });
    setInterval(() => this.refresh(), 1000);
  }

  // -- called by views --

  /** Update the visible view in the next frame. */
  refresh() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => {
      this.isScheduled = false;
      this.#render();
    });
  }

  isPaused() {
    return this.paused;
  }

  isDetailOpen() {
    return this.detail.isOpen;
  }

  resume() {
    this.paused = false;
    this.refresh();
  }

  /** Open an event. */
  open(event, { moveFocus = true } = {}) {
    const wasOpen = this.detail.isOpen;
    if (!wasOpen) this.opener = this.view;
    if (this.view === "events" || this.detail.event !== null) history.replaceState(null, "", "#/events");
    this.detail.showEvent(event);
    this.events.select(event.order);
    this.people.select(null);
    this.#focusDetail(moveFocus);
    this.refresh();
  }

  /** Open a person, by any id. */
  openPerson(id, { moveFocus = true } = {}) {
    const hash = `#/people/${encodeURIComponent(id.toWellFormed?.() ?? id)}`;
    if (moveFocus && location.hash !== hash) history.pushState(null, "", hash);
    else history.replaceState(null, "", hash);
    this.#showPerson(id, moveFocus);
  }

  /** Open a group. */
  openGroup(group, { moveFocus = true } = {}) {
    this.detail.showGroup(group);
    this.#focusDetail(moveFocus);
    this.refresh();
  }

  /** Show only the events of one person. */
  filterPerson(canonical) {
    this.closeDetail({ restoreFocus: false });
    location.hash = "#/events";
    this.events.setFilter("", canonical);
    byId("filter-person").focus();
  }

  closeDetail({ restoreFocus = true, keepAddress = false } = {}) {
    if (!this.detail.isOpen) return;
    const { event, person, group } = this.detail;
    this.detail.close();
    this.events.select(null);
    this.people.select(null);
    if (person !== null && !keepAddress) history.replaceState(null, "", "#/people");
    if (restoreFocus && this.view === "events" && event !== null) this.events.focusRow(event.order);
    else if (restoreFocus && this.view === "groups" && group !== null) this.groups.focusRow(group);
    else if (restoreFocus && this.view === "people")
      this.people.focusRow(person === null ? null : this.store.resolve(person));
    this.refresh();
  }

  // -- private --

  #showPerson(id, moveFocus) {
    this.view = "people";
    this.detail.showPerson(id);
    this.events.select(null);
    this.people.select(this.store.resolve(id));
    this.#focusDetail(moveFocus);
    this.refresh();
  }

  #focusDetail(moveFocus) {
    if (moveFocus) this.detail.element.focus({ preventScroll: true });
  }

  #listen() {
    // Fired for links to another fragment and for the Back button.
    addEventListener("popstate", () => this.#route());
    addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !byId("confirm").open && this.detail.isOpen) {
        event.preventDefault();
        this.closeDetail();
      }
    });
    byId("skip").addEventListener("click", (event) => {
      event.preventDefault();
      (byId("main").querySelector('.row[tabindex="0"]') ?? byId("main")).focus();
    });
    byId("pause").addEventListener("click", () => {
      this.paused = !this.paused;
      this.refresh();
    });
    byId("reset").addEventListener("click", () => byId("confirm").showModal());
    byId("confirm").addEventListener("close", () => {
      if (byId("confirm").returnValue === "reset") this.#reset();
      byId("confirm").returnValue = "";
    });
    document.addEventListener("visibilitychange", () => this.refresh());
  }

  /** Scroll the tabs of a narrow page to the current one. */
  #showTab() {
    if (this.tabShown === this.view) return;
    this.tabShown = this.view;
    // Not scrollIntoView: in Chromium, it moves the start of Tab navigation to the element.
    const tab = document.querySelector(`[data-view="${this.view}"]`);
    const bar = tab.parentElement;
    const [inner, outer] = [tab.getBoundingClientRect(), bar.getBoundingClientRect()];
    bar.scrollLeft += Math.min(0, inner.left - outer.left) + Math.max(0, inner.right - outer.right);
  }

  #route() {
    const [, view, ...rest] = location.hash.split("/");
    const id = rest.join("/");
    const wanted = VIEWS.includes(view) ? view : "events";
    if (wanted === "people" && id !== "") {
      const person = decoded(id);
      if (this.detail.person !== person || this.view !== "people") this.#showPerson(person, false);
      return;
    }
    if (wanted !== this.view || wanted !== "events") this.closeDetail({ restoreFocus: false, keepAddress: true });
    this.view = wanted;
    this.refresh();
  }

  #hello(hello) {
    // A different `started` means another emulator, so the stored data is not its data.
    if (this.store.info.started !== undefined && this.store.info.started !== hello.started) this.#clear();
    this.store.greet(hello);
    this.problems.restore();
    this.connection = "connected";
    this.refresh();
  }

  #clear() {
    this.store.clear();
    this.problems.clear();
    this.health.clear();
    this.closeDetail({ restoreFocus: false });
    this.refresh();
  }

  async #reset() {
    try {
      const answer = await fetch("/_emulator/reset", { method: "POST" });
      byId("announcer").textContent = answer.ok
        ? "All data was deleted."
        : `The reset failed with status ${answer.status}.`;
    } catch {
      byId("announcer").textContent = "The emulator is not reachable. No data was deleted.";
    }
  }

  #render() {
    const { store } = this;
    this.#renderHeader();
    const open = store.problemList({ onlyOpen: true });
    const totals = {
      events: store.stats.events?.ingested ?? store.events.length,
      people: store.people.size,
      // Without harmless problems, such as repeated calls for ids that are one person already.
      identity: open.length,
      rejected: store.stats.rejected ?? store.rejectedCount,
      groups: store.groups.size,
      requests: store.requestCount,
      health: this.health.number,
    };
    for (const view of VIEWS) {
      byId(view).hidden = view !== this.view;
      const tab = document.querySelector(`[data-view="${view}"]`);
      if (view === this.view) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
      const badge = tab.querySelector(".count");
      if (badge === null) continue;
      // The health is known once its view was open.
      badge.hidden = totals[view] === null;
      if (badge.hidden) continue;
      setText(badge, count(totals[view]) + (view === "people" && store.hasRemovedPeople ? "+" : ""));
      badge.classList.toggle("bad", ["identity", "health", "rejected"].includes(view) && totals[view] > 0);
    }
    this.#showTab();
    setText(
      document.querySelector("title"),
      open.length > 0 ? `(${open.length}) Mixpanel emulator` : "Mixpanel emulator",
    );
    this.problems.renderAlert(this.view);
    this.problems.announce();
    this.requests.renderFaults();
    if (this.view === "events") this.events.render();
    else if (this.view === "people") this.people.render({ isPaused: this.paused });
    else if (this.view === "groups") this.groups.render({ isPaused: this.paused });
    else if (this.view === "requests") this.requests.render({ isPaused: this.paused });
    else if (this.view === "flags") this.flags.render();
    else if (this.view === "health") this.health.render();
    else if (this.view === "identity") this.problems.renderIdentity();
    else this.problems.renderRejected();
    this.detail.render();
    this.tips.refresh();
    byId("columns").classList.toggle("with-detail", this.detail.isOpen);
  }

  #renderHeader() {
    const state = this.connection === "connected" && this.paused ? "paused" : this.connection;
    const element = byId("state");
    element.dataset.state = state;
    setText(element, STATES[state]);
    byId("pause").setAttribute("aria-pressed", String(this.paused));
    setText(byId("pause"), this.paused ? "Resume" : "Pause");
    const system = SYSTEMS[this.store.info.id_merge];
    byId("system").hidden = system === undefined;
    setText(byId("system"), system ?? "");
    const second = Math.floor(Date.now() / 1000);
    if (second === this.sparkAt) return;
    this.sparkAt = second;
    const rates = this.store.rates();
    const highest = Math.max(1, ...rates);
    setText(byId("rate"), count(rates.at(-1)));
    const points = rates.map((rate, index) => `${index},${(19 - (rate / highest) * 18).toFixed(1)}`).join(" ");
    byId("spark").firstElementChild.setAttribute("points", points);
  }
}

/** Set a text only if it differs, because even an equal text would cause layout and be read aloud again. */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

new Page();
