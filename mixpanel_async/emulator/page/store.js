/**
 * What the page remembers of the stream, within bounds.
 *
 * Nothing here touches the page. At 2,000 events a second the bounds are reached within seconds, so each collection
 * forgets its oldest in strides rather than one by one.
 */

import { callKey, idsOf } from "./identity.js";

export const MAX_EVENTS = 5_000;
const MAX_EVENT_CHARACTERS = 40_000_000;
const MAX_PEOPLE = 5_000;
const MAX_PROBLEMS = 200;
const MAX_JOINS = 5_000;
const MAX_REJECTED = 200;
const MAX_NAMES = 500;
const RATE_SECONDS = 60;

export class Store {
  constructor() {
    this.info = {};
    // Survives `clear`, so that views notice that what they show is no more.
    this.generation = 0;
    this.clear();
  }

  /** Forget all data, as the emulator did. */
  clear() {
    this.generation += 1;
    /** Newest last. */
    this.events = [];
    this.characters = 0;
    // Each log of the emulator has numbers of its own, which begin at 1.
    this.lastSeq = { events: 0, identity: 0, rejected: 0 };
    this.names = new Map();
    this.stats = {};
    this.ingested = 0;
    /** By canonical id, the one that changed last at the end. */
    this.people = new Map();
    this.homes = new Map();
    this.hasForgottenPeople = false;
    /** Counts changes of who is who, so that views know when to look again. */
    this.moves = 0;
    /** Failed and ignored calls, equal ones in one entry, the latest at the end. */
    this.problems = new Map();
    /** Calls and events that joined ids, the latest at the end. */
    this.joins = [];
    /** What the calls came to, by `callKey`. */
    this.outcomes = new Map();
    this.rejected = [];
    this.rejectedCount = 0;
    this.perSecond = [];
  }

  /** Take the figures that every connection begins with. */
  begin(stats) {
    this.stats = stats;
    // What came before, or while the connection was away, belongs to no second of the rate.
    this.ingested = stats.events?.ingested ?? 0;
  }

  /** Take one batch of the stream, of so many characters. */
  take(batch, characters) {
    const events = batch.events ?? [];
    for (const person of batch.people ?? []) this.#takePerson(person);
    const weight = characters / Math.max(1, events.length);
    for (const event of events) this.#takeEvent(event, weight);
    this.#forgetEvents();
    for (const entry of batch.identity ?? []) this.#takeIdentity(entry);
    for (const record of batch.rejected ?? []) {
      if (!this.#isNew("rejected", record)) continue;
      this.rejected.push(record);
      this.rejectedCount += 1;
    }
    if (this.rejected.length > MAX_REJECTED * 2) this.rejected.splice(0, this.rejected.length - MAX_REJECTED);
    if (batch.stats) this.#takeStats(batch.stats);
    this.#forgetPeople();
  }

  /** Whether an entry of a log was not seen before: a connection made anew may repeat what an earlier one told. */
  #isNew(log, entry) {
    if (entry.seq <= this.lastSeq[log]) return false;
    this.lastSeq[log] = entry.seq;
    return true;
  }

  #takeStats(stats) {
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

  #takeEvent(event, weight) {
    if (!this.#isNew("events", event)) return;
    event.weight = weight;
    this.events.push(event);
    this.characters += weight;
    if (this.names.size < MAX_NAMES || this.names.has(event.event)) {
      this.names.set(event.event, (this.names.get(event.event) ?? 0) + 1);
    }
    if (event.distinct_id === "" || typeof event.distinct_id !== "string") return;
    const canonical = this.resolve(event.distinct_id);
    const person = this.people.get(canonical) ?? { canonical, ids: [canonical], profile: null, isTold: false };
    person.last = event.received_at;
    // Moved to the end, as the one who was active last.
    this.people.delete(canonical);
    this.people.set(canonical, person);
  }

  #forgetEvents() {
    let first = this.events.length > MAX_EVENTS * 1.2 ? this.events.length - MAX_EVENTS : 0;
    for (let index = 0; index < first; index += 1) this.characters -= this.events[index].weight;
    while (this.characters > MAX_EVENT_CHARACTERS && first < this.events.length - 1) {
      this.characters -= this.events[first].weight;
      first += 1;
    }
    if (first > 0) this.events.splice(0, first);
  }

  #takePerson({ canonical, ids, profile }) {
    const known = this.people.get(canonical);
    const person = { canonical, ids: ids ?? [canonical], profile: profile ?? null, isTold: true, last: known?.last };
    for (const id of person.ids) {
      if (this.homes.get(id) === canonical) continue;
      const former = this.people.get(id);
      if (former !== undefined && id !== canonical) {
        person.last ??= former.last;
        this.people.delete(id);
      }
      if (id !== canonical || this.homes.has(id)) this.moves += 1;
      this.homes.set(id, canonical);
    }
    this.people.delete(canonical);
    this.people.set(canonical, person);
  }

  #forgetPeople() {
    if (this.people.size <= MAX_PEOPLE * 1.2) return;
    this.hasForgottenPeople = true;
    for (const [canonical, person] of this.people) {
      if (this.people.size <= MAX_PEOPLE) break;
      this.people.delete(canonical);
      for (const id of person.ids) this.homes.delete(id);
    }
  }

  #takeIdentity(entry) {
    if (!this.#isNew("identity", entry)) return;
    const call = callKey(entry);
    // The call that joined two ids stays the one that did, however often it is repeated in vain.
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

  /** Events in each of the last 60 whole seconds, the latest last. */
  rates(now = Date.now()) {
    const current = Math.floor(now / 1000);
    const rates = new Array(RATE_SECONDS).fill(0);
    for (const { second, number } of this.perSecond) {
      const index = RATE_SECONDS - (current - second);
      if (index >= 0 && index < RATE_SECONDS) rates[index] = number;
    }
    return rates;
  }

  /** Whom an id stands for by now. */
  resolve(id) {
    return this.homes.get(id) ?? id;
  }

  /** All ids of the person whom an id stands for, the canonical one first. */
  idsOf(id) {
    const canonical = this.resolve(id);
    const ids = this.people.get(canonical)?.ids ?? [canonical];
    return [canonical, ...ids.filter((other) => other !== canonical)];
  }

  /** Whether the two ids of an identity call are one person by now, so that its failure did no harm. */
  areOne(entry) {
    const [first, second] = idsOf(entry);
    return first !== second && this.resolve(first) === this.resolve(second);
  }

  /** Problems, the latest first; `onlyOpen` leaves out those that did no harm. */
  problemList({ onlyOpen = false } = {}) {
    const list = [...this.problems.values()].reverse();
    return onlyOpen ? list.filter(({ entry }) => !this.areOne(entry)) : list;
  }

  /** What joined these ids or failed to, in order. */
  story(ids) {
    const members = new Set(ids);
    const isAbout = (entry) => idsOf(entry).some((id) => members.has(id));
    const failed = [...this.problems.values()].map(({ entry }) => entry);
    return [...this.joins.filter(isAbout), ...failed.filter(isAbout)].sort((one, other) => one.seq - other.seq);
  }

  /** A test of events by name (a part of it, any letter case) and by person (any id of the person, or a part of one). */
  filter(name, person) {
    const part = name.trim().toLowerCase();
    const who = person.trim();
    const whose = who === "" ? null : this.resolve(who);
    const whoPart = who.toLowerCase();
    const isKnown = whose !== null && this.people.has(whose);
    return (event) => {
      if (part !== "" && !event.event.toLowerCase().includes(part)) return false;
      if (whose === null) return true;
      const canonical = this.resolve(event.distinct_id);
      if (isKnown) return canonical === whose;
      return (
        canonical.toLowerCase().includes(whoPart) ||
        String(event.sent_id ?? "")
          .toLowerCase()
          .includes(whoPart)
      );
    };
  }
}
