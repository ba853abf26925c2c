/** Feature flags: definitions, and the exposures among the latest events. */

import { brief, count, h, plural, renewed, shown } from "./dom.js";
import { valueTree } from "./values.js";

const MAX_CARDS = 100;
const MAX_VARIANTS = 20;
// The file of the flags may change at any time. The definitions are requested while they are visible.
const UPDATE_INTERVAL = 2_000;

const byId = (id) => document.getElementById(id);

export class FlagsView {
  /** @param {{refresh: function(): void}} page */
  constructor(store, page) {
    this.store = store;
    this.page = page;
    this.flags = null;
    this.requested = -Infinity;
  }

  /** Number of flags, or null until they are known. */
  get number() {
    return this.flags === null ? null : this.flags.length;
  }

  /** Request the definitions, at most every two seconds. */
  async request(now = performance.now()) {
    if (now - this.requested < UPDATE_INTERVAL || document.hidden) return;
    this.requested = now;
    try {
      const answer = await fetch("/_emulator/flags");
      const flags = answer.ok ? await answer.json() : null;
      if (Array.isArray(flags)) this.flags = flags;
    } catch {
      return;
    }
    this.page.refresh();
  }

  render() {
    this.request();
    const flags = this.flags ?? [];
    const exposures = this.#exposures();
    const signature = JSON.stringify([flags.slice(0, MAX_CARDS), [...exposures]]);
    renewed(byId("flag-cards"), signature, () =>
      flags.slice(0, MAX_CARDS).map((flag) => flagCard(flag, exposures.get(flag.key) ?? new Map())),
    );
    byId("flags-empty").hidden = this.flags === null || flags.length > 0;
    const asked = this.store.log.filter(({ path }) => path.startsWith("/flags"));
    const refused = asked.filter(({ status }) => status === null || status >= 400).length;
    byId("flag-requests").textContent =
      asked.length === 0
        ? "No client has asked for flags among the latest requests."
        : `${plural(asked.length, "request")} for flags among the latest, ${count(refused)} of them failed.`;
  }

  /** Return the number of exposures among the latest events, by flag and variant. */
  #exposures() {
    const exposures = new Map();
    for (const { event, properties } of this.store.events) {
      if (event !== "$experiment_started" || properties === null) continue;
      const flag = String(properties["Experiment name"]);
      const variant = String(properties["Variant name"]);
      if (!exposures.has(flag)) {
        if (exposures.size >= MAX_CARDS) continue;
        exposures.set(flag, new Map());
      }
      const variants = exposures.get(flag);
      if (variants.size < MAX_VARIANTS || variants.has(variant)) variants.set(variant, (variants.get(variant) ?? 0) + 1);
    }
    return exposures;
  }
}

function flagCard(flag, exposures) {
  const { variants = [], rollout = [] } = flag.ruleset ?? {};
  const isOn = flag.status === "enabled";
  const shares = rollout.map((one) => `${count(Math.round(100 * one.rollout_percentage))} %`).join(", ");
  const definition = h("details", {}, h("summary", {}, "Definition"));
  definition.addEventListener("toggle", () => {
    if (definition.childElementCount === 1) definition.append(valueTree(flag));
  });
  return h("li", { class: isOn ? "card" : "card calm" }, [
    h("div", { class: "card-top" }, [
      h("span", { class: `tag ${isOn ? "good" : "calm"}` }, shown(flag.status, 40)),
      h("span", {}, rollout.length === 0 ? "no rollout" : `rollout ${shares} by ${shown(flag.context, 60)}`),
    ]),
    h("h3", { class: "what" }, h("bdi", {}, shown(flag.key, 200))),
    h("table", { class: "variants", "aria-label": "Variants" }, [
      h(
        "thead",
        {},
        h("tr", {}, [
          h("th", { scope: "col" }, "Variant"),
          h("th", { scope: "col" }, "Value"),
          h("th", { scope: "col", class: "number" }, "Share"),
          h("th", { scope: "col", class: "number" }, "Exposures"),
        ]),
      ),
      h(
        "tbody",
        {},
        variants.slice(0, MAX_VARIANTS).map((one) =>
          h("tr", {}, [
            h("th", { scope: "row" }, h("bdi", {}, shown(one.key, 100))),
            h("td", {}, h("code", {}, brief(one.value, 100))),
            h("td", { class: "number" }, `${count(Math.round(100 * one.split))} %`),
            h("td", { class: "number" }, count(exposures.get(one.key) ?? 0)),
          ]),
        ),
      ),
    ]),
    definition,
  ]);
}
