/** First steps, shown while there are no events: the address of the emulator and code for each SDK. */

import { copyButton, h, renewed } from "./dom.js";

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
    curl: `curl ${url}/track -H 'Content-Type: application/json' -d '[{
  "event": "Signed up",
  "properties": {"token": "${token}", "distinct_id": "user-1", "plan": "pro"}
}]'`,
  };
}

/** Show or hide the first steps in an element. */
export function welcome(element, { isHidden, isFiltered, info }) {
  element.hidden = isHidden;
  if (isHidden) return;
  const token = typeof info.token === "string" && /^[\w-]{1,64}$/.test(info.token) ? info.token : "PROJECT_TOKEN";
  renewed(element, `${isFiltered} ${token}`, () =>
    isFiltered
      ? [
          h("h3", {}, "No event matches"),
          h("p", {}, "Change or clear the filter. Only the latest events are searched."),
        ]
      : firstSteps(snippets(token)),
  );
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
    h("h3", {}, "Waiting for the first event"),
    h(
      "p",
      {},
      "Point an SDK at ",
      h("code", { class: "origin" }, location.origin),
      " and track an event. It appears here immediately.",
    ),
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
