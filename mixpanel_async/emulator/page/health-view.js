/** Identity health: what is wrong with the ids of the stored events, as `mixpanel-async identity audit` finds it. */

import { count, h, plural, renewed, shown } from "./dom.js";

const MAX_CARDS = 100;
const MAX_CASES = 20;
const MAX_IDS = 6;
// The audit reads all events. It is repeated while it is visible, but takes at most a tenth of the emulator's time.
const UPDATE_INTERVAL = 2_000;
const REST = 10;

const byId = (id) => document.getElementById(id);

export class HealthView {
  /** @param {{refresh: function(): void, openPerson: function(string): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.clear();
  }

  /** Number of findings, or null until they are known. */
  get number() {
    return this.report?.finding_count ?? null;
  }

  /** Forget the report after a reset of the emulator. */
  clear() {
    this.report = null;
    this.checked = null;
    this.next = -Infinity;
  }

  /** Request the report if events have arrived since the last one. */
  async request(now = performance.now()) {
    const version = `${this.store.generation} ${JSON.stringify(this.store.stats.events ?? null)}`;
    if (now < this.next || document.hidden || version === this.checked) return;
    this.next = Infinity;
    const { generation } = this.store;
    try {
      const answer = await fetch("/_emulator/audit");
      const report = answer.ok ? await answer.json() : null;
      if (report !== null && generation === this.store.generation) {
        this.report = report;
        this.checked = version;
      }
    } catch {
      // The emulator is not reachable. The page says so, and asks again.
    } finally {
      const end = performance.now();
      this.next = end + Math.max(UPDATE_INTERVAL, REST * (end - now));
    }
    this.page.refresh();
  }

  render() {
    this.request();
    const { report } = this;
    const findings = report?.findings ?? [];
    byId("health-empty").hidden = report === null || findings.length > 0;
    const figures = report === null ? "Checking the ids of the stored events…" : figuresOf(report);
    if (byId("health-figures").textContent !== figures) byId("health-figures").textContent = figures;
    renewed(byId("health-cards"), JSON.stringify(findings), () =>
      findings.slice(0, MAX_CARDS).map((finding) => this.#card(finding)),
    );
  }

  #card(finding) {
    const cases = finding.cases.slice(0, MAX_CASES);
    const rest = finding.count - cases.length;
    return h("li", { class: "card" }, [
      h("div", { class: "card-top" }, h("span", { class: "tag" }, plural(finding.count, "case"))),
      h("h3", { class: "what" }, [
        shown(finding.title, 200),
        finding.reason === null ? null : [": ", h("code", {}, shown(finding.reason, 100))],
      ]),
      h("p", { class: "why" }, shown(finding.advice, 2_000)),
      h("details", {}, [
        h("summary", {}, "The ids"),
        h(
          "ul",
          { class: "cases" },
          cases.map((one) => this.#case(one)),
        ),
        rest > 0 ? h("p", {}, `and ${count(rest)} more`) : null,
      ]),
    ]);
  }

  #case({ ids, detail, events }) {
    const more = ids.length - MAX_IDS;
    const words = [
      more > 0 ? `and ${count(more)} more` : "",
      detail === "" ? "" : shown(detail, 300),
      events > 0 ? plural(events, "event") : "",
    ].filter((text) => text !== "");
    return h("li", {}, [
      h(
        "div",
        { class: "buttons" },
        ids
          .slice(0, MAX_IDS)
          .map((id) =>
            h("button", { type: "button", onclick: () => this.page.openPerson(id) }, h("bdi", {}, shown(id, 40))),
          ),
      ),
      words.length === 0 ? null : h("p", {}, words.join(", ")),
    ]);
  }
}

function figuresOf(report) {
  const people = plural(report.persons, "person", "people");
  const joined = `${count(report.joined_persons)} of them with several ids`;
  const found = report.finding_count === 0 ? "no findings" : plural(report.finding_count, "finding");
  return `${plural(report.ids, "id")} of ${people}, ${joined}, from ${plural(report.events, "event")}: ${found}.`;
}
