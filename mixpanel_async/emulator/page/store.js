/**
 * Data received from the stream, within bounds.
 *
 * This module does not access the DOM. At 2,000 events per second the bounds are reached within seconds, so each
 * collection removes its oldest entries in groups instead of one by one.
 */

import { callKey, idsOf } from "./identity.js";

export const MAX_EVENTS = 5_000;
const MAX_EVENT_CHARACTERS = 40_000_000;
const MAX_PEOPLE = 5_000;
const MAX_PROBLEMS = 200;
const MAX_JOINS = 5_000;
const MAX_REJECTED = 200;
const MAX_NAMES = 500;
const MAX_GROUPS = 2_000;
const MAX_LOG = 500;
const TOKEN_FIELDS = new Set(["properties.token", "$token"]);
const RATE_SECONDS = 60;
const OPERATIONS = new Set([
  "$set",
  "$set_once",
  "$add",
  "$append",
  "$union",
  "$remove",
  "$unset",
  "$delete",
]);

export class Store {
  constructor() {
    this.info = {};
    // Incremented by `clear`, so that views notice that their data was deleted.
    this.generation = 0;
    this.clear();
  }

  /** Delete all data after a reset of the emulator. */
  clear() {
    this.generation += 1;
    /** Events and profile updates (`kind` is "update"), newest last. */
    this.events = [];
    this.characters = 0;
    // Each log of the emulator numbers its entries from 1.
    this.lastSeq = { events: 0, identity: 0, rejected: 0, updates: 0, log: 0 };
    /** Number of the latest item of `events` in order of display. */
    this.order = 0;
    this.names = new Map();
    this.stats = {};
    this.ingested = 0;
    /** People by canonical id, the latest change last. */
    this.people = new Map();
    this.canonicalIds = new Map();
    this.hasRemovedPeople = false;
    /** Number of changes of canonical ids, so that views know when to update. */
    this.identityChanges = 0;
    /** Failed and ignored calls, grouped by call and reason, the latest last. */
    this.problems = new Map();
    /** Calls and events that joined ids, the latest last. */
    this.joins = [];
    /** Outcomes of identity calls by `callKey`. */
    this.outcomes = new Map();
    this.rejected = [];
    this.rejectedCount = 0;
    /** Number of rejected records with the token of another project. */
    this.foreignTokens = 0;
    this.perSecond = [];
    /** Groups with a profile by key and id, the latest update last. */
    this.groups = new Map();
    this.groupChanges = 0;
    /** Requests, the latest last. */
    this.log = [];
    this.requestCount = 0;
    this.unsupported = [];
    this.faults = { planned: [], number: 0, random: null, latency: 0 };
    this.hasHistory = false;
  }

  /** Store what a connection starts with. */
  greet(hello) {
    this.info = hello;
    this.setInitialStats(hello.stats ?? {});
    this.faults = hello.faults ?? this.faults;
    const second = Math.floor(Date.now() / 1000);
    this.perSecond = (hello.rates ?? []).map(([age, number]) => ({ second: second - age, number }));
  }

  /** Store the statistics sent at the start of a connection. */
  setInitialStats(stats) {
    this.stats = stats;
    // Events from before the connection, or from an interruption, are not part of the rate.
    this.ingested = stats.events?.ingested ?? 0;
  }

  /** Store one batch of the stream with its size in characters. */
  addBatch(batch, characters) {
    const events = batch.events ?? [];
    for (const person of batch.people ?? []) this.#storePerson(person);
    const size = characters / Math.max(1, events.length);
    for (const event of events) this.#storeEvent(event, size);
    for (const update of batch.updates ?? []) this.#storeUpdate(update);
    // The batch with the earlier profile updates ends the history of events, in which they belong.
    if (batch.stats && !this.hasHistory) this.#sortHistory();
    this.#removeOldEvents();
    for (const group of batch.groups ?? []) this.#storeGroup(group);
    for (const entry of batch.log ?? []) this.#storeRequest(entry);
    this.unsupported = batch.unsupported ?? this.unsupported;
    this.faults = batch.faults ?? this.faults;
    for (const entry of batch.identity ?? []) this.#storeIdentity(entry);
    for (const record of batch.rejected ?? []) {
      if (!this.#isNew("rejected", record)) continue;
      this.rejected.push(record);
      this.rejectedCount += 1;
      if (TOKEN_FIELDS.has(record.field) && record.silent) this.foreignTokens += 1;
    }
    if (this.rejected.length > MAX_REJECTED * 2) this.rejected.splice(0, this.rejected.length - MAX_REJECTED);
    if (batch.stats) this.#storeStats(batch.stats);
    this.#removeOldPeople();
  }

  /** Return whether a log entry is new. A new connection may repeat entries of an earlier one. */
  #isNew(log, entry) {
    if (entry.seq <= this.lastSeq[log]) return false;
    this.lastSeq[log] = entry.seq;
    return true;
  }

  #storeStats(stats) {
    this.stats = stats;
    const ingested = stats.events?.ingested ?? this.ingested;
    const second = Math.floor(Date.now() / 1000);
    const number = Math.max(0, ingested - this.ingested);
    this.ingested = ingested;
    const latest = this.perSecond.at(-1);
    if (latest?.second === second) latest.number += number;
    else this.perSecond.push({ second, number });
    while (this.perSecond.length > RATE_SECONDS + 1) this.perSecond.shift();
  }

  #storeEvent(event, size) {
    if (!this.#isNew("events", event)) return;
    this.#append(event, size);
    if (this.names.size < MAX_NAMES || this.names.has(event.event)) {
      this.names.set(event.event, (this.names.get(event.event) ?? 0) + 1);
    }
    if (event.distinct_id === "" || typeof event.distinct_id !== "string") return;
    const canonical = this.resolve(event.distinct_id);
    const person = this.people.get(canonical) ?? { canonical, ids: [canonical], profile: null, isComplete: false };
    person.last = event.received_at;
    // Moved to the end as the most recently active person.
    this.people.delete(canonical);
    this.people.set(canonical, person);
  }

  #append(item, size) {
    this.order += 1;
    item.order = this.order;
    item.size = size;
    this.events.push(item);
    this.characters += size;
  }

  #storeUpdate(update) {
    if (!this.#isNew("updates", update)) return;
    const { group_key: groupKey, id, record, received_at: receivedAt } = update;
    const operations = Object.keys(record ?? {}).filter((name) => OPERATIONS.has(name));
    const item = {
      kind: "update",
      seq: update.seq,
      event: `${groupKey === "" ? "Profile" : "Group"} ${operations.join(", ")}`,
      groupKey,
      distinct_id: id,
      sent_id: id,
      properties: Object.fromEntries(operations.map((name) => [name, record[name]])),
      record,
      endpoint: groupKey === "" ? "/engage" : "/groups",
      received_at: receivedAt,
    };
    this.#append(item, 200);
  }

  #sortHistory() {
    this.hasHistory = true;
    if (!this.events.some(({ kind }) => kind === "update")) return;
    this.events.sort((one, other) => one.received_at - other.received_at);
    for (const item of this.events) item.order = this.order += 1;
    this.generation += 1;
  }

  #storeGroup({ key, id, profile }) {
    const name = JSON.stringify([key, id]);
    this.groups.delete(name);
    if (profile !== null) this.groups.set(name, { key, id, profile });
    if (this.groups.size > MAX_GROUPS) this.groups.delete(this.groups.keys().next().value);
    this.groupChanges += 1;
  }

  #storeRequest(entry) {
    if (entry.number <= this.lastSeq.log) return;
    this.lastSeq.log = this.requestCount = entry.number;
    this.log.push(entry);
    if (this.log.length > MAX_LOG * 1.2) this.log.splice(0, this.log.length - MAX_LOG);
  }

  #removeOldEvents() {
    let first = this.events.length > MAX_EVENTS * 1.2 ? this.events.length - MAX_EVENTS : 0;
    for (let index = 0; index < first; index += 1) this.characters -= this.events[index].size;
    while (this.characters > MAX_EVENT_CHARACTERS && first < this.events.length - 1) {
      this.characters -= this.events[first].size;
      first += 1;
    }
    if (first > 0) this.events.splice(0, first);
  }

  #storePerson({ canonical, ids, profile }) {
    const known = this.people.get(canonical);
    const person = { canonical, ids: ids ?? [canonical], profile: profile ?? null, isComplete: true, last: known?.last };
    for (const id of person.ids) {
      if (this.canonicalIds.get(id) === canonical) continue;
      const former = this.people.get(id);
      if (former !== undefined && id !== canonical) {
        person.last ??= former.last;
        this.people.delete(id);
      }
      if (id !== canonical || this.canonicalIds.has(id)) this.identityChanges += 1;
      this.canonicalIds.set(id, canonical);
    }
    this.people.delete(canonical);
    this.people.set(canonical, person);
  }

  #removeOldPeople() {
    if (this.people.size <= MAX_PEOPLE * 1.2) return;
    this.hasRemovedPeople = true;
    for (const [canonical, person] of this.people) {
      if (this.people.size <= MAX_PEOPLE) break;
      this.people.delete(canonical);
      for (const id of person.ids) this.canonicalIds.delete(id);
    }
  }

  #storeIdentity(entry) {
    if (!this.#isNew("identity", entry)) return;
    const call = callKey(entry);
    // A call that joined two ids keeps that outcome, even if repetitions of it fail.
    if (this.outcomes.get(call) !== "merged") this.outcomes.set(call, entry.outcome);
    if (this.outcomes.size > MAX_JOINS) this.outcomes.delete(this.outcomes.keys().next().value);
    if (entry.outcome === "merged" || entry.outcome === "unchanged") {
      this.joins.push(entry);
      if (this.joins.length > MAX_JOINS * 1.2) this.joins.splice(0, this.joins.length - MAX_JOINS);
      return;
    }
    const key = `${callKey(entry)} ${entry.$failure_reason} ${entry.$failure_description}`;
    const times = (this.problems.get(key)?.times ?? 0) + 1;
    this.problems.delete(key);
    this.problems.set(key, { key, entry, times });
    if (this.problems.size > MAX_PROBLEMS) this.problems.delete(this.problems.keys().next().value);
  }

  /** Return the number of events in each of the last 60 whole seconds, the latest last. */
  rates(now = Date.now()) {
    const current = Math.floor(now / 1000);
    const rates = new Array(RATE_SECONDS).fill(0);
    for (const { second, number } of this.perSecond) {
      const index = RATE_SECONDS - (current - second);
      if (index >= 0 && index < RATE_SECONDS) rates[index] = number;
    }
    return rates;
  }

  /** Return the canonical id of an id. */
  resolve(id) {
    return this.canonicalIds.get(id) ?? id;
  }

  /** Return all ids of the person with this id, the canonical id first. */
  idsOf(id) {
    const canonical = this.resolve(id);
    const ids = this.people.get(canonical)?.ids ?? [canonical];
    return [canonical, ...ids.filter((other) => other !== canonical)];
  }

  /** Return whether the two ids of an identity call belong to one person now, so that its failure is harmless. */
  areOne(entry) {
    const [first, second] = idsOf(entry);
    return first !== second && this.resolve(first) === this.resolve(second);
  }

  /** Return the problems, the latest first. `onlyOpen` leaves out harmless ones. */
  problemList({ onlyOpen = false } = {}) {
    const list = [...this.problems.values()].reverse();
    return onlyOpen ? list.filter(({ entry }) => !this.areOne(entry)) : list;
  }

  /** Return the calls and events that joined these ids or failed to, in order. */
  historyOf(ids) {
    const members = new Set(ids);
    const isAbout = (entry) => idsOf(entry).some((id) => members.has(id));
    const failed = [...this.problems.values()].map(({ entry }) => entry);
    return [...this.joins.filter(isAbout), ...failed.filter(isAbout)].sort((one, other) => one.seq - other.seq);
  }

  /**
   * Return a filter for events and profile updates by part of the name, ignoring case, and by an id of the person or
   * part of an id.
   */
  filter(name, person, { withUpdates = true } = {}) {
    const part = name.trim().toLowerCase();
    const personText = person.trim();
    const canonicalFilter = personText === "" ? null : this.resolve(personText);
    const personPart = personText.toLowerCase();
    const isKnown = canonicalFilter !== null && this.people.has(canonicalFilter);
    return (event) => {
      if (!withUpdates && event.kind === "update") return false;
      if (part !== "" && !event.event.toLowerCase().includes(part)) return false;
      if (canonicalFilter === null) return true;
      const canonical = event.groupKey ? event.distinct_id : this.resolve(event.distinct_id);
      if (isKnown && event.groupKey) return false;
      if (isKnown) return canonical === canonicalFilter;
      return (
        canonical.toLowerCase().includes(personPart) ||
        String(event.sent_id ?? "")
          .toLowerCase()
          .includes(personPart)
      );
    };
  }
}
