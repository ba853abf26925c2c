/** First steps, shown while there are no events: the address of the emulator and code for each SDK. */

import { copyButton, h, plural, renewed, shown } from "./dom.js";

function snippets(token) {
  const url = location.origin;
  return {
    "mixpanel-async": `from mixpanel_async import AsyncMixpanel

async with AsyncMixpanel("${token}", api_host="${url}") as mp:
    await mp.track("user-1", "Signed up", {"plan": "pro"})`,
    "Official Python SDK": `from mixpanel import Consumer, Mixpanel

consumer = Consumer(
    events_url="${url}/track",
    people_url="${url}/engage",
    groups_url="${url}/groups",
    import_url="${url}/import",
)
mp = Mixpanel("${token}", consumer=consumer)
mp.track("user-1", "Signed up", {"plan": "pro"})
# mp.alias() does not use the consumer: it always goes to api.mixpanel.com.`,
    "Official Node SDK": `const Mixpanel = require("mixpanel");

const mixpanel = Mixpanel.init("${token}", {
  host: "${location.host}",
  protocol: "${location.protocol.replace(":", "")}",
});
mixpanel.track("Signed up", { distinct_id: "user-1", plan: "pro" });`,
    "Browser SDK": `import mixpanel from "mixpanel-browser";

mixpanel.init("${token}", { api_host: "${url}" });
mixpanel.track("Signed up", { plan: "pro" });`,
    curl: `curl ${url}/track -H 'Content-Type: application/json' -d '[{
  "event": "Signed up",
  "properties": {"token": "${token}", "distinct_id": "user-1", "plan": "pro"}
}]'`,
  };
}

/** Show or hide the first steps in an element, or the reason why requests arrive and nothing is stored. */
export function welcome(element, { isHidden, isFiltered, store }) {
  element.hidden = isHidden;
  if (isHidden) return;
  const { info, foreignTokens, rejectedCount, requestCount } = store;
  const token = typeof info.token === "string" && /^[\w-]{1,64}$/.test(info.token) ? info.token : "PROJECT_TOKEN";
  const latest = store.rejected.at(-1)?.message ?? "";
  renewed(element, JSON.stringify([isFiltered, token, foreignTokens, rejectedCount, requestCount, latest]), () => {
    if (isFiltered)
      return [
        h("h3", {}, "No event matches"),
        h("p", {}, "Change or clear the filter. Only the latest events are searched."),
      ];
    if (foreignTokens > 0) return [...otherToken(info.token, foreignTokens), ...firstSteps(snippets(token))];
    if (requestCount > 0) return [...nothingStored(requestCount, latest), ...firstSteps(snippets(token))];
    return [
      h("h3", {}, "Waiting for the first event"),
      h(
        "p",
        {},
        "Point an SDK at ",
        h("code", { class: "origin" }, location.origin),
        " and track an event. It appears here immediately.",
      ),
      ...firstSteps(snippets(token)),
    ];
  });
}

/** Explain that all records have another token. The other token is not shown: it may be a secret in the wrong place. */
function otherToken(token, number) {
  return [
    h("h3", { class: "warn" }, "Records arrive with the token of another project"),
    h(
      "p",
      {},
      "This emulator was started with the project token ",
      h("code", { class: "origin" }, shown(token ?? "", 80)),
      `. ${plural(number, "record")} had another token, and ${number === 1 ? "was" : "were"} dropped without an error, `,
      "as Mixpanel does. Use this token in the SDK, or start the emulator without a token, which accepts every token.",
    ),
  ];
}

function nothingStored(number, latest) {
  return [
    h("h3", { class: "warn" }, "Requests arrive, but no event was stored"),
    h(
      "p",
      {},
      `${plural(number, "request")} so far. `,
      latest === "" ? "See " : ["The latest reason: ", h("b", {}, shown(latest, 300)), ". See "],
      h("a", { href: "#/requests" }, "all requests"),
      latest === "" ? "." : [" and ", h("a", { href: "#/rejected" }, "rejected records"), "."],
    ),
  ];
}

function firstSteps(texts) {
  const code = h("code", {});
  const names = Object.keys(texts);
  let chosen = names[0];
  const buttons = names.map((name) => h("button", { type: "button", onclick: () => choose(name) }, name));
  function choose(name) {
    chosen = name;
    code.textContent = texts[name];
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.textContent === name));
  }
  choose(chosen);
  return [
    h("div", { class: "snippet" }, [
      h(
        "div",
        { class: "choices", role: "group", "aria-label": "SDK" },
        buttons,
        copyButton("Copy this code", () => texts[chosen]),
      ),
      h("pre", { tabindex: "0", "aria-label": "Code to send a first event" }, code),
    ]),
  ];
}
