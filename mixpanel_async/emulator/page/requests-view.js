/** List of requests, newest first, the endpoints asked for but not emulated, and the buttons that inject faults. */

import { clock, count, h, plural, renewed, shown } from "./dom.js";
import { enableArrowKeys, keepTabStop } from "./rows.js";
import { setFullTexts } from "./tips.js";

const MAX_ROWS = 200;
// At high rates, two updates per second remain readable.
const UPDATE_INTERVAL = 500;
// Enough for "until cleared".
const ALWAYS = 1_000_000_000;

/** Faults by the name of their button: the control request that plans each, and its body. */
const FAULTS = {
  503: { path: "fail-next", body: { status: 503 } },
  429: { path: "fail-next", body: { status: 429, retry_after: 5 } },
  slow: { path: "break-next", body: { kind: "slow", seconds: 10 } },
  hang: { path: "break-next", body: { kind: "hang" } },
  drop: { path: "break-next", body: { kind: "drop" } },
  html: { path: "break-next", body: { kind: "html" } },
};
const KINDS = {
  drop: "connection cut",
  hang: "no response (timeout)",
  half: "response cut in half",
  drip: "slow body",
  partial: "some records refused",
  html: "status 200 with a sign-in page",
  type: "wrong content type",
  zero: "status 200 with the body 0",
  empty: "status 200 without a body",
  truncated: "status 200 with half a body",
  redirect: "redirect",
};

const byId = (id) => document.getElementById(id);

export class RequestsView {
  /** @param {{refresh: function(): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.list = byId("request-rows");
    this.entries = new WeakMap();
    this.rendered = -Infinity;
    enableArrowKeys(this.list);
    setFullTexts(this.list, (row, index) => {
      const entry = this.entries.get(row);
      if (index === 2) return entry?.path;
      return index === 4 && entry !== undefined ? resultOf(entry) : undefined;
    });
    byId("fault-form").addEventListener("submit", (event) => event.preventDefault());
    for (const button of byId("fault-buttons").querySelectorAll("button"))
      button.addEventListener("click", () => this.#plan(button.dataset.fault));
    byId("fault-clear").addEventListener("click", () => this.#clear());
  }

  render({ now = performance.now(), isPaused = false } = {}) {
    this.#renderUnsupported();
    const isForced = this.rendered === -Infinity || this.store.generation !== this.generation;
    if (!isForced && isPaused) return;
    if (!isForced && now - this.rendered < UPDATE_INTERVAL) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.page.refresh(), UPDATE_INTERVAL - (now - this.rendered));
      return;
    }
    this.rendered = now;
    this.generation = this.store.generation;
    const entries = this.store.log.slice(-MAX_ROWS).reverse();
    const items = [...this.list.children];
    while (items.length < entries.length) {
      items.push(newItem());
      this.list.append(items.at(-1));
    }
    for (const [index, item] of items.entries()) {
      if (entries[index] === undefined) item.remove();
      else this.#fill(item.firstElementChild, entries[index]);
    }
    keepTabStop(this.list);
    byId("requests-empty").hidden = entries.length > 0;
    const note = byId("request-note");
    note.hidden = this.store.requestCount <= MAX_ROWS;
    note.textContent = `The latest ${count(entries.length)} of ${count(this.store.requestCount)} are shown.`;
  }

  #fill(row, entry) {
    if (this.entries.get(row) === entry) return;
    this.entries.set(row, entry);
    const [when, status, path, records, result] = row.children;
    when.textContent = clock(entry.received_at);
    status.textContent = entry.status === null ? "–" : String(entry.status);
    status.className = `status ${kindOf(entry)}`;
    path.textContent = `${shown(entry.method, 10)} ${shown(entry.path, 100)}`;
    records.textContent = entry.records > 0 ? plural(entry.records, "record") : "";
    result.textContent = shown(resultOf(entry), 200);
  }

  #renderUnsupported() {
    const endpoints = [...this.store.unsupported].reverse();
    const box = byId("unsupported");
    box.hidden = endpoints.length === 0;
    if (box.hidden) return;
    renewed(box, endpoints.map(({ method, path, count: number }) => `${method} ${path} ${number}`).join("\n"), () => [
      h("h3", {}, "Asked for, not emulated"),
      h("p", { class: "quiet" }, "Mixpanel has these endpoints. The emulator answers them with status 501."),
      h(
        "ul",
        {},
        endpoints.map(({ method, path, count: number, last }) =>
          h("li", {}, [
            h("code", { class: "cut" }, `${shown(method, 10)} ${shown(path, 200)}`),
            h("span", { class: "aside" }, plural(number, "request")),
            h("time", {}, clock(last, { withMilliseconds: false })),
          ]),
        ),
      ),
    ]);
  }

  /** Show the planned faults above all views. */
  renderFaults() {
    const faults = this.store.faults;
    const parts = partsOf(faults);
    const bar = byId("fault-bar");
    bar.hidden = parts.length === 0;
    if (!bar.hidden) {
      renewed(byId("fault-state"), parts.join("\n"), () => [h("b", {}, "Planned faults: "), parts.join("; ")]);
    }
  }

  async #plan(name) {
    const { path, body } = FAULTS[name];
    const times = Number(byId("fault-times").value) || ALWAYS;
    const endpoint = byId("fault-path").value || null;
    await this.#post(path, { ...body, times, path: endpoint });
  }

  async #clear() {
    const hasLatency = this.store.faults.latency > 0;
    await this.#post("stop-faults", {});
    if (hasLatency) await this.#post("latency", { seconds: 0 });
    // The bar with the button disappears.
    byId("main").focus({ preventScroll: true });
  }

  async #post(name, body) {
    const error = byId("fault-error");
    try {
      const answer = await fetch(`/_emulator/${name}`, { method: "POST", body: JSON.stringify(body) });
      error.textContent = answer.ok ? "" : `The emulator refused this with status ${answer.status}.`;
    } catch {
      error.textContent = "The emulator is not reachable.";
    }
  }
}

function kindOf({ status, rejected, reason }) {
  if (status === null || status >= 400) return "bad";
  return rejected > 0 || reason !== "" ? "warn" : "good";
}

/** Return the result of a request in words; empty for a success. */
function resultOf({ status, records, rejected, reason, fault }) {
  const parts = [];
  if (rejected > 0) parts.push(records > 0 ? `${count(rejected)} not stored` : "refused");
  if (fault !== "") parts.push(fault === "status" ? "planned fault" : `planned fault ${fault}`);
  if (status === null && fault === "") parts.push("no response");
  const prefix = `${status}: `;
  const why = reason.startsWith(prefix) ? reason.slice(prefix.length) : reason;
  return [parts.join(", "), why].filter((part) => part !== "").join(": ");
}

/** Return descriptions of the planned faults. */
function partsOf({ planned, number, random, latency }) {
  const parts = planned.map(({ kind, path, status, retry_after: after, seconds, times }) => {
    const requests = times > ALWAYS / 2 ? "every request" : `the next ${plural(times, "request")}`;
    return `${faultName(kind, status, after, seconds)} for ${requests}${path === null ? "" : ` to ${shown(path, 40)}`}`;
  });
  if (number > planned.length) parts.push(`${count(number - planned.length)} more`);
  if (random !== null) parts.push(`random faults for ${count(Math.round(random * 100))} % of requests`);
  if (latency > 0) parts.push(`${latency} s latency`);
  return parts;
}

function faultName(kind, status, after, seconds) {
  if (kind === "status") return `${status}${after === null ? "" : ` with Retry-After ${shown(after, 40)}`}`;
  if (kind === "slow") return `response after ${seconds} s`;
  return KINDS[kind] ?? kind;
}

function newItem() {
  return h(
    "li",
    {},
    h(
      "div",
      { class: "row request", tabindex: "-1" },
      h("time", { class: "when" }),
      h("span", { class: "status" }),
      h("span", { class: "path" }),
      h("span", { class: "records" }),
      h("span", { class: "result" }),
    ),
  );
}
