/**
 * Problems: failed identity calls, rejected records, and the alert that is shown above all other views.
 */

import { brief, clock, count, h, plural, renewed, shown } from "./dom.js";
import { callName, explanation, headline, idsOf, plain, reason, sentence } from "./identity.js";
import { valueTree } from "./values.js";

const MAX_CARDS = 100;
// Minimum interval between announcements to screen readers, in milliseconds.
const ANNOUNCE_INTERVAL = 5000;

// The banner of a kind of problem stays dismissed for the life of the emulator, also after a reload of the page.
const DISMISSED = "mixpanel-emulator-dismissed";
const MAX_DISMISSED = 50;

const byId = (id) => document.getElementById(id);

export class ProblemsView {
  /** @param {{openPerson: function(string): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.dismissed = new Set();
    this.announced = { identity: -1, rejected: 0, at: -Infinity };
  }

  /** Update the banner under the tabs, which names the latest problem of a kind that was not dismissed. */
  renderAlert(view) {
    const alert = byId("alert");
    const open = this.store.problemList({ onlyOpen: true }).filter(({ entry }) => !this.dismissed.has(kindOf(entry)));
    alert.hidden = open.length === 0 || view === "identity";
    if (alert.hidden) return;
    const { entry } = open[0];
    renewed(alert, `${this.store.generation} ${entry.seq} ${open.length}`, () => [
      h("p", { class: "say cut" }, h("b", {}, sentence(headline(entry))), ". ", sentence(reason(entry))),
      h("div", { class: "buttons" }, [
        h(
          "a",
          { class: "button", href: "#/identity" },
          open.length === 1 ? "Show the call" : `Show all ${count(open.length)}`,
        ),
        h("button", { type: "button", onclick: () => this.#dismiss() }, "Dismiss"),
      ]),
    ]);
  }

  #dismiss() {
    for (const { entry } of this.store.problemList()) this.dismissed.add(kindOf(entry));
    saveDismissed(this.store.info.started, [...this.dismissed].slice(-MAX_DISMISSED));
    this.page.refresh();
    byId("main").focus();
  }

  /** Read which kinds of problems were dismissed, once the emulator is known. */
  restore() {
    this.dismissed = new Set([...this.dismissed, ...savedDismissed(this.store.info.started)]);
  }

  /** Announce new problems to screen readers, briefly and not too often. */
  announce(now = performance.now()) {
    const latest = this.store.problemList({ onlyOpen: true })[0]?.entry;
    const isNewProblem = latest !== undefined && latest.seq > this.announced.identity;
    const rejected = this.store.rejectedCount - this.announced.rejected;
    if ((!isNewProblem && rejected <= 0) || document.hidden) return;
    if (now - this.announced.at < ANNOUNCE_INTERVAL) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.announce(), ANNOUNCE_INTERVAL);
      return;
    }
    const words = [];
    if (isNewProblem) words.push(`${plain(headline(latest))}. ${plain(reason(latest))}`);
    if (rejected > 0) words.push(`${plural(rejected, "record")} rejected.`);
    byId("announcer").textContent = words.join(" ");
    this.announced = { identity: latest?.seq ?? this.announced.identity, rejected: this.store.rejectedCount, at: now };
  }

  /** Clear the dismissed and announced problems, because a reset restarts the numbers. */
  clear() {
    this.dismissed = new Set();
    saveDismissed(this.store.info.started, []);
    this.announced = { identity: -1, rejected: 0, at: -Infinity };
    byId("announcer").textContent = "";
  }

  renderIdentity() {
    const problems = this.store.problemList();
    const cards = problems.slice(0, MAX_CARDS);
    keyedCards(
      byId("identity-cards"),
      cards,
      ({ key }) => key,
      (problem) => this.#identityCard(problem),
    );
    const empty = byId("identity-empty");
    empty.hidden = problems.length > 0;
    empty.textContent = "No problems. All identity calls and linking events so far have joined their ids.";
  }

  #identityCard({ entry, times }) {
    const areOne = this.store.areOne(entry);
    const signature = `${entry.seq} ${times} ${areOne}`;
    const build = () => [
      h("div", { class: "card-top" }, [
        h(
          "span",
          { class: `tag ${areOne ? "calm" : ""}` },
          areOne ? "harmless" : entry.outcome === "ignored" ? "ignored" : "failed",
        ),
        times > 1 ? h("span", { class: "tag" }, `${count(times)} times`) : null,
        entry.received_at === undefined ? null : h("time", {}, clock(entry.received_at, { withMilliseconds: false })),
      ]),
      explanation(entry, areOne),
      h("div", { class: "buttons" }, [
        idsOf(entry)
          .filter((id, index, ids) => id !== "" && ids.indexOf(id) === index)
          .map((id) =>
            h(
              "button",
              { type: "button", onclick: () => this.page.openPerson(id) },
              "Show ",
              h("bdi", {}, shown(id, 40)),
            ),
          ),
      ]),
      details(callName(entry) === null ? "The event as sent" : "The call as sent", {
        event: entry.event,
        properties: entry.properties,
      }),
      h("p", { class: "code" }, codeOf(entry)),
    ];
    return { signature, build, isCalm: areOne };
  }

  renderRejected() {
    const { rejected, rejectedCount } = this.store;
    const cards = rejected.slice(-MAX_CARDS).reverse();
    keyedCards(
      byId("rejected-cards"),
      cards,
      (record) => String(record.seq),
      (record) => ({
        signature: String(record.seq),
        build: () => rejectedCard(record),
      }),
    );
    const empty = byId("rejected-empty");
    empty.hidden = rejectedCount > 0;
    empty.textContent = "No rejected records. /import?strict=1 has the strictest validation.";
  }
}

/** Return what problems of one kind share: the call and the reason, without the ids. */
function kindOf(entry) {
  return `${callName(entry)} ${entry.$failure_reason || entry.outcome}`;
}

/** Return the dismissed kinds of an emulator. Storage may be disabled, full, or contain anything. */
function savedDismissed(started) {
  try {
    const saved = JSON.parse(localStorage.getItem(DISMISSED));
    return saved.started === started ? saved.kinds.filter((kind) => typeof kind === "string") : [];
  } catch {
    return [];
  }
}

function saveDismissed(started, kinds) {
  try {
    localStorage.setItem(DISMISSED, JSON.stringify({ started, kinds }));
  } catch {
    // The banner then comes back after a reload.
  }
}

function codeOf(entry) {
  const named = entry.event === "" ? "" : shown(entry.event, 60);
  return entry.$failure_reason
    ? `${named} · $failure_reason: ${shown(entry.$failure_reason, 100)}`
    : `${named} · ${entry.outcome}`;
}

function rejectedCard(record) {
  return [
    h("div", { class: "card-top" }, [
      h("span", { class: "tag" }, record.silent ? "dropped" : "refused"),
      h("code", {}, shown(record.endpoint ?? "", 40)),
      record.received_at === undefined ? null : h("time", {}, clock(record.received_at, { withMilliseconds: false })),
    ]),
    h("h3", { class: "what" }, [
      record.field ? [h("code", { class: "id" }, shown(record.field, 200)), " "] : null,
      messageOf(record),
    ]),
    h(
      "p",
      { class: "why" },
      recordName(record.record),
      record.silent ? " The response reported success, as Mixpanel's does." : null,
    ),
    record.record === null || record.record === undefined ? null : details("The record as sent", record.record),
  ];
}

/** Return the message without the field, which is shown separately. */
function messageOf({ field, message }) {
  const words = String(message ?? "");
  const prefix = `'${field}' `;
  return shown(field && words.startsWith(prefix) ? words.slice(prefix.length) : words, 500);
}

function recordName(record) {
  if (record === null || record === undefined) return "The request as a whole was refused.";
  if (typeof record !== "object") return "";
  if (record.event !== undefined) return `In the event “${brief(record.event, 80)}”.`;
  if (record.$distinct_id !== undefined) return `In a profile update of “${brief(record.$distinct_id, 80)}”.`;
  if (record.$group_id !== undefined) return `In a group update of “${brief(record.$group_id, 80)}”.`;
  return "";
}

/** Return a collapsed value. Its content is created when it is first opened, because most never are. */
function details(summary, value) {
  const element = h("details", {}, h("summary", {}, summary));
  element.addEventListener("toggle", () => {
    if (element.childElementCount === 1) element.append(valueTree(value));
  });
  return element;
}

/** Update a list of cards, without changing cards whose content is unchanged. */
function keyedCards(list, items, keyOf, describe) {
  const present = new Map([...list.children].map((card) => [card.dataset.key, card]));
  let previous = null;
  for (const item of items) {
    const key = keyOf(item);
    const card = present.get(key) ?? h("li", { class: "card", "data-key": key });
    present.delete(key);
    const { signature, build, isCalm = false } = describe(item);
    card.classList.toggle("calm", isCalm);
    renewed(card, signature, build);
    const place = previous === null ? list.firstElementChild : previous.nextElementSibling;
    if (card !== place) list.insertBefore(card, place);
    previous = card;
  }
  for (const card of present.values()) card.remove();
}
