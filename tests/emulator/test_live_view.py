"""Browser tests of the live page, with Playwright and Debian's Chromium.

Every test also checks that the page reports no errors, sends requests only to the emulator, and never executes data.
"""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator, Server

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import expect, sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, ViewportSize

CHROMIUM: Final = Path("/usr/bin/chromium")
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDE: Final[ViewportSize] = {"width": 1440, "height": 900}
NARROW: Final[ViewportSize] = {"width": 360, "height": 740}
LOCAL: Final = re.compile(r"http://127\.0\.0\.1:\d+/")
MARKUP: Final = "<img src=x onerror=alert(1)>"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} does not exist"),
    pytest.mark.timeout(180),
]

Open = Callable[..., "Page"]


class App:
    """Emulator on a socket, and an HTTP client for it."""

    def __init__(self, id_merge: IdMerge, port: int = 0, **options: Any) -> None:
        self.emulator = Emulator(id_merge, **options)
        self.server = start_server(self.emulator, port)
        self.url = self.server.url
        self.port = int(self.url.rpartition(":")[2])
        # On a busy machine a response may take longer than httpx's default of 5 seconds.
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=60)

    def restart_server(self) -> None:
        self.server = start_server(self.emulator, self.port)

    def close(self) -> None:
        self.http.close()
        self.server.close()

    def track(self, distinct_id: str, name: str, **properties: Any) -> None:
        record = {"event": name, "properties": {"token": "t", "distinct_id": distinct_id, **properties}}
        assert self.http.post("/track", json=[record]).text == "1"

    def identify(self, identified_id: str, anon_id: str) -> None:
        self.track(identified_id, "$identify", **{"$identified_id": identified_id, "$anon_id": anon_id})

    def alias(self, distinct_id: str, alias: str) -> None:
        self.track(distinct_id, "$create_alias", alias=alias)

    def send_import(self, *records: Any) -> int:
        return self.http.post("/import?strict=1", json=list(records), auth=("t", "")).status_code

    def set_profile(self, distinct_id: str, **properties: Any) -> None:
        record = {"$token": "t", "$distinct_id": distinct_id, "$set": properties}
        assert self.http.post("/engage", json=[record]).text == "1"

    def set_group(self, key: str, group_id: str, **properties: Any) -> None:
        record = {"$token": "t", "$group_key": key, "$group_id": group_id, "$set": properties}
        assert self.http.post("/groups", json=[record]).text == "1"


def start_server(emulator: Emulator, port: int) -> Server:
    """Serve on a port, and wait up to 20 seconds if an outgoing connection of another process uses it."""
    deadline = time.monotonic() + 20
    while True:
        server = emulator.serve(port=port)
        try:
            server.start()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # The page reacts within a second, unless other processes keep the machine busy.
    expect.set_options(timeout=40_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    app = App(getattr(request, "param", IdMerge.ORIGINAL))
    yield app
    app.close()


@pytest.fixture
def open_page(browser: Browser, app: App) -> Iterator[Open]:
    contexts = []
    complaints: list[str] = []

    def open_page(
        path: str = "/", *, viewport: ViewportSize = WIDE, scheme: Any = "light", connected: bool = True
    ) -> Page:
        context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.on(
            "console",
            # The browser itself reports broken streams and 404 responses as errors.
            lambda message: (
                complaints.append(f"console: {message.text}")
                if message.type == "error" and "net::ERR_" not in message.text and "404" not in message.text
                else None
            ),
        )
        page.on(
            "request",
            lambda sent: None if LOCAL.match(sent.url) else complaints.append(f"asked {sent.url}"),
        )
        page.goto(app.url + path)
        if connected:
            expect(state(page)).to_have_text("Connected")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def state(page: Page) -> Any:
    return page.locator("#state")


def rows(page: Page) -> Any:
    return page.locator("#event-rows .row")


def names(page: Page) -> list[str]:
    return [text or "" for text in page.locator("#event-rows .row .name").all_text_contents()]


def shows(page: Page, *wanted: str) -> None:
    """Wait until the list of events shows these names, newest first."""
    expect(page.locator("#event-rows .row .name")).to_have_text(list(wanted))


def has_ids(page: Page, *wanted: str) -> None:
    """Wait until the open person has exactly these ids, in any order."""
    ids = detail(page).locator(".id-list .id")
    expect(ids).to_have_count(len(wanted))
    for one in wanted:
        expect(ids.filter(has_text=re.compile(f"^{re.escape(one)}$"))).to_have_count(1)


def scroll_events(page: Page, top: int) -> None:
    """Scroll the list of events, and wait until the page has noticed.

    The page learns of scrolling from an `IntersectionObserver`, whose callback runs some time after the scroll. An
    event that arrives before the callback is still inserted at the top. Observers are called in order of creation, so
    the callback of a new observer runs after that of the page.
    """
    page.locator("#event-scroller").evaluate(
        """(scroller, top) => new Promise((done) => {
          scroller.scrollTo(0, top);
          const observer = new IntersectionObserver(() => { observer.disconnect(); done(null); });
          observer.observe(document.getElementById("event-edge"));
        })""",
        top,
    )


def badge(page: Page, view: str) -> Any:
    return page.locator(f'[data-count="{view}"]')


def detail(page: Page) -> Any:
    return page.locator("#detail")


def test_empty_page_shows_first_steps(app: App, open_page: Open) -> None:
    page = open_page()
    welcome = page.locator("#event-empty")
    expect(welcome).to_contain_text("Waiting for the first event")
    expect(welcome.locator(".origin")).to_have_text(app.url)
    expect(welcome.locator("pre")).to_contain_text(f'AsyncMixpanel("PROJECT_TOKEN", api_host="{app.url}")')
    welcome.get_by_role("button", name="Official Python SDK").click()
    expect(welcome.locator("pre")).to_contain_text(f'events_url="{app.url}/track"')
    welcome.get_by_role("button", name="Official Node SDK").click()
    expect(welcome.locator("pre")).to_contain_text(f'host: "127.0.0.1:{app.port}"')
    welcome.get_by_role("button", name="Browser SDK").click()
    expect(welcome.locator("pre")).to_contain_text(f'api_host: "{app.url}"')
    for view in ("people", "groups", "identity", "health", "rejected", "requests", "flags"):
        page.locator(f'[data-view="{view}"]').click()
        expect(page.locator(f"#{view}-empty")).to_be_visible()
    app.track("user-1", "Signed up")
    page.locator('[data-view="events"]').click()
    shows(page, "Signed up")
    expect(welcome).to_be_hidden()


def test_events_appear_and_can_be_filtered(app: App, open_page: Open) -> None:
    visitor = str(uuid.uuid4())
    app.track("user-2", "Before the page was opened")
    page = open_page()
    shows(page, "Before the page was opened")
    app.track(visitor, "Viewed page")
    app.track("user-2", "Paid")
    app.track("user-1", "Paid")
    shows(page, "Paid", "Paid", "Viewed page", "Before the page was opened")
    expect(badge(page, "events")).to_have_text("4")

    page.locator("#filter-name").fill("PAI")
    shows(page, "Paid", "Paid")
    expect(page.locator("#matches")).to_have_text("2 of the latest 4")
    page.locator("#filter-person").fill("user-1")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Clear").click()
    expect(rows(page)).to_have_count(4)

    # The filter accepts any id of the person, and covers earlier events.
    page.locator("#filter-person").fill(visitor)
    shows(page, "Viewed page")
    app.identify("user-1", visitor)
    shows(page, "$identify", "Paid", "Viewed page")
    expect(page.locator("#event-rows .flag:visible")).to_have_text("merged")
    expect(page.locator("#event-rows .row .who")).to_have_text(["user-1"] * 3)
    page.locator("#filter-person").fill("nobody")
    expect(page.locator("#event-empty")).to_contain_text("No event matches")


def test_row_opens_with_every_property(app: App, open_page: Open) -> None:
    basket = {"items": [{"sku": "A-1"}]}
    app.track("user-1", "Paid", amount=9.5, coupon=None, basket=basket, note="two\nlines", mp_lib="x")
    page = open_page()
    rows(page).click()
    for name, value in {"amount": "9.5", "coupon": "null", "note": "two\nlines", "mp_lib": "x", "token": "t"}.items():
        row = detail(page).locator("tr", has=page.get_by_role("rowheader", name=name, exact=True))
        assert row.locator("td").inner_text().strip() == value
    expect(detail(page)).to_contain_text('"sku": "A-1"')
    expect(detail(page)).to_contain_text("/track")
    expect(rows(page)).to_have_attribute("aria-current", "true")
    detail(page).get_by_role("button", name="user-1").click()
    expect(detail(page).locator("h2")).to_have_text("user-1")
    page.go_back()
    expect(detail(page)).to_be_hidden()


def test_person_shows_all_ids_and_their_history(app: App, open_page: Open) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    app.track(first, "Viewed page")
    app.identify("user-1", first)
    app.alias("user-1", "ada@example.com")
    assert app.send_import({"event": "$merge", "properties": {"$distinct_ids": ["user-1", second]}}) == 200
    app.set_profile("user-1", **{"$name": "Ada Lovelace", "plan": "pro"})
    page = open_page("/#/people")
    row = page.locator("#people-rows .row", has_text="Ada Lovelace")
    expect(row).to_contain_text("4 ids")
    page.locator("#person-query").fill("LOVELACE")
    row.click()
    expect(detail(page).locator("h2")).to_have_text("Ada Lovelace")
    has_ids(page, *app.emulator.cluster("user-1"))
    story = detail(page).locator(".story li")
    expect(story).to_have_count(3)
    expect(story.nth(0)).to_contain_text(f"identify joined the anonymous id {first} to user-1")
    expect(story.nth(1)).to_contain_text("alias added ada@example.com as another id of user-1")
    expect(story.nth(2)).to_contain_text(f"merge joined user-1 and {second}")
    expect(detail(page)).to_contain_text("plan")
    expect(detail(page).locator(".recent button").last).to_have_text("Viewed page")

    app.set_profile(first, plan="team")
    expect(detail(page).locator(".properties")).to_contain_text("team")
    detail(page).get_by_role("button", name="Show only").click()
    shows(page, "Profile $set", "Profile $set", "$create_alias", "$identify", "Viewed page")
    page.get_by_label("Profile updates").click()
    shows(page, "$create_alias", "$identify", "Viewed page")
    # A link to a person works with any id, in a new page too.
    expect(open_page(f"/#/people/{first}").locator("#detail h2")).to_have_text("Ada Lovelace")


@pytest.mark.parametrize("app", [IdMerge.SIMPLIFIED], indirect=True)
def test_simplified_joins_by_event_and_ignores_identity_calls(app: App, open_page: Open) -> None:
    app.track("", "Signed in", **{"$device_id": "d1", "$user_id": "user-1"})
    page = open_page("/#/people/user-1")
    expect(page.locator("#system")).to_have_text("Simplified ID Merge")
    has_ids(page, "user-1", "$device:d1")
    expect(detail(page).locator(".story li")).to_contain_text(
        "The event “Signed in” carried both ids, and joined $device:d1 to user-1"
    )
    app.identify("user-1", str(uuid.uuid4()))
    expect(page.locator("#alert")).to_contain_text("identify did not merge")
    page.locator("#alert").get_by_role("link", name="Show the call").click()
    card = page.locator("#identity-cards .card")
    expect(card).to_contain_text("send any one event with both $device_id and $user_id")


@pytest.mark.parametrize("app", [IdMerge.ORIGINAL, IdMerge.SIMPLIFIED], indirect=True)
def test_login_by_a_browser_sdk_is_shown_as_a_success(app: App, open_page: Open) -> None:
    device = str(uuid.uuid4())
    page = open_page()
    app.track(f"$device:{device}", "Viewed page", **{"$device_id": device})
    sent = {"$device_id": device, "$user_id": "user-1", "$anon_distinct_id": f"$device:{device}"}
    app.track("user-1", "$identify", **sent)
    expect(rows(page).first.locator(".flag")).to_have_text("merged")
    expect(page.locator("#alert")).to_be_hidden()
    expect(badge(page, "identity")).to_have_text("0")
    story = open_page("/#/people/user-1")
    has_ids(story, "user-1", f"$device:{device}")
    expect(detail(story).locator(".story")).to_contain_text(
        f"identify joined the anonymous id $device:{device} to user-1"
    )


def test_page_explains_why_identify_did_not_merge(app: App, open_page: Open) -> None:
    page = open_page()
    app.track("abc", "Viewed page")
    app.identify("user-1", "abc")
    # The banner is visible on the initial page, without a click, and has one line.
    alert = page.locator("#alert")
    expect(alert.locator("b")).to_have_text("identify did not merge abc into user-1")
    expect(alert).to_contain_text("The anonymous id abc is not five groups of hexadecimal digits")
    assert alert.evaluate("(element) => element.offsetHeight") < 45
    expect(page.locator("#announcer")).to_contain_text("identify did not merge “abc” into “user-1”")
    expect(badge(page, "identity")).to_have_text("1")
    expect(page).to_have_title("(1) Mixpanel emulator")
    # The event shows the problem.
    expect(rows(page).first.locator(".flag")).to_have_text("did not merge")
    rows(page).first.click()
    expect(detail(page).locator(".trouble")).to_contain_text("is not five groups of hexadecimal digits")
    # The person shows the problem.
    detail(page).get_by_role("button", name="user-1").click()
    expect(detail(page).locator(".story .failed")).to_contain_text("identify did not merge abc into user-1")
    # The list of problems shows the call.
    alert.get_by_role("link", name="Show the call").click()
    card = page.locator("#identity-cards .card")
    expect(card).to_contain_text("identify did not merge abc into user-1")
    expect(card).to_contain_text("errAnonDistinctIdNonGUIDForm")
    expect(card).to_contain_text("Reports keep showing user-1 and abc as two people.")
    expect(card).to_contain_text("What to do:")
    expect(card).to_contain_text("uuid.uuid4()")
    card.get_by_text("The call as sent").click()
    expect(card.locator(".json")).to_contain_text('"$anon_id": "abc"')
    # The banner can be dismissed. The count remains.
    page.locator('[data-view="events"]').click()
    alert.get_by_role("button", name="Dismiss").click()
    expect(alert).to_be_hidden()
    expect(badge(page, "identity")).to_have_text("1")
    # It stays dismissed for problems of this kind, after a reload too.
    app.identify("user-2", "abc")
    expect(badge(page, "identity")).to_have_text("2")
    expect(alert).to_be_hidden()
    page.reload()
    expect(badge(page, "identity")).to_have_text("2")
    expect(alert).to_be_hidden()
    app.identify("user-1", "user-1")
    expect(alert).to_contain_text("Both ids are the same")


def test_page_works_without_local_storage(app: App, open_page: Open) -> None:
    page = open_page()
    page.add_init_script(
        "delete window.localStorage; Object.defineProperty(window, 'localStorage', {get() { throw 1 }})"
    )
    page.reload()
    app.identify("user-1", "abc")
    alert = page.locator("#alert")
    alert.get_by_role("button", name="Dismiss").click()
    expect(alert).to_be_hidden()


def test_requests_show_endpoint_records_result_and_first_reason(app: App, open_page: Open) -> None:
    page = open_page("/#/requests")
    app.track("u", "Paid")
    app.http.post("/import?strict=1", json=[{"event": "Paid", "properties": {}}] * 2, auth=("t", ""))
    app.http.post("/nothing?in=query", json=[])
    items = page.locator("#request-rows .row")
    expect(items).to_have_count(3)
    assert [[text.strip() for text in row.locator("> *").all_text_contents()[1:]] for row in items.all()] == [
        ["404", "POST /nothing", "", "Mixpanel has no such endpoint, or the emulator does not know it"],
        ["400", "POST /import", "2 records", "2 not stored: 'properties.time' is invalid: must not be missing"],
        ["200", "POST /track", "1 record", ""],
    ]
    expect(badge(page, "requests")).to_have_text("3")
    # A new page shows them too.
    expect(open_page("/#/requests").locator("#request-rows .row")).to_have_count(3)
    expect(page.locator("#unsupported")).to_be_hidden()
    for number in (1, 2):
        app.http.get(f"/api/2.0/annotations/{number}")
    box = page.locator("#unsupported")
    expect(box).to_contain_text("Asked for, not emulated")
    expect(box.locator("li")).to_contain_text("GET /api/2.0/annotations/{id}2 requests")
    app.emulator.reset()
    expect(items).to_have_count(0)
    expect(box).to_be_hidden()
    expect(page.locator("#requests-empty")).to_be_visible()


def test_buttons_inject_faults_and_clear_removes_them(app: App, open_page: Open) -> None:
    page = open_page("/#/requests")
    bar = page.locator("#fault-bar")
    expect(bar).to_be_hidden()
    plan = page.get_by_role("group", name="Fail with")
    for button, words in {
        "503": "503 for the next 1 request",
        "429": "429 with Retry-After 5 for the next 1 request",
        "Slow": "response after 10 s for the next 1 request",
        "Timeout": "no response (timeout) for the next 1 request",
        "Cut": "connection cut for the next 1 request",
        "Bad 200": "status 200 with a sign-in page for the next 1 request",
    }.items():
        plan.get_by_role("button", name=button).click()
        expect(bar).to_contain_text(words)
        bar.get_by_role("button", name="Clear").click()
        expect(bar).to_be_hidden()
    page.get_by_label("Number of requests").select_option("3 requests")
    page.get_by_label("Endpoint").select_option("/track")
    plan.get_by_role("button", name="429").click()
    expect(bar).to_contain_text("429 with Retry-After 5 for the next 3 requests to /track")
    answer = app.http.post("/track", json=[])
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
    expect(bar).to_contain_text("for the next 2 requests to /track")
    page.get_by_label("Number of requests").select_option("requests until cleared")
    page.get_by_label("Endpoint").select_option("any endpoint")
    plan.get_by_role("button", name="503").click()
    expect(bar).to_contain_text("503 for every request")
    assert app.http.post("/engage", json=[]).status_code == 503
    # The state is visible in every tab and new page, also of faults that a program plans.
    app.emulator.latency = 0.01
    app.emulator.random_faults(1, rate=0.0)
    other = open_page("/#/people").locator("#fault-bar")
    expect(other).to_contain_text("random faults for 0 % of requests; 0.01 s latency")
    other.get_by_role("button", name="Clear").click()
    expect(bar).to_be_hidden()
    assert app.http.post("/engage", json=[]).text == "0"
    assert app.emulator.latency == 0.0


def test_preview_shows_short_lists_and_leaves_out_properties_of_sdks(app: App, open_page: Open) -> None:
    app.track(
        "user-1", "In groups", company=["Acme", "Beta"], deep=[[1]], long=[0] * 11, mp_sent_by_lib_version="2.83.0"
    )
    preview = rows(open_page()).first.locator(".preview")
    expect(preview).to_have_text("company: [Acme, Beta]  ·  deep: [1]  ·  long: [11]")


def test_profile_updates_and_groups_are_shown(app: App, open_page: Open) -> None:
    app.track("user-1", "Before")
    app.set_profile("user-1", plan="pro")
    app.track("user-1", "After")
    page = open_page()
    # In order of arrival, also in a new page.
    shows(page, "After", "Profile $set", "Before")
    app.set_group("company", "Acme", seats=30)
    shows(page, "Group $set", "After", "Profile $set", "Before")
    expect(rows(page).first.locator(".who")).to_have_text("company Acme")
    expect(rows(page).first.locator(".preview")).to_have_text("seats: 30")
    rows(page).nth(2).click()
    expect(detail(page)).to_contain_text("Profile update")
    expect(detail(page).locator("table")).to_contain_text("planpro")
    page.keyboard.press("Escape")
    page.locator("#filter-name").fill("$set")
    page.locator("#filter-person").fill("user-1")
    shows(page, "Profile $set")
    page.locator('[data-view="groups"]').click()
    group = page.locator("#group-rows .row")
    expect(group).to_have_text(re.compile("companyAcmeseats: 30"))
    expect(badge(page, "groups")).to_have_text("1")
    group.click()
    expect(detail(page).locator("h2")).to_have_text("Acme")
    app.set_group("company", "Acme", seats=31)
    expect(detail(page).locator("table")).to_contain_text("seats31")
    page.keyboard.press("Escape")
    expect(group).to_be_focused()
    page.locator("#group-query").fill("other")
    expect(page.locator("#groups-empty")).to_have_text("No group matches.")


def test_flags_show_variants_and_exposures(app: App, open_page: Open) -> None:
    app.emulator.set_flag("checkout", "one page")
    page = open_page("/#/flags")
    card = page.locator("#flag-cards .card")
    expect(card.locator("h3")).to_have_text("checkout")
    expect(card.locator("tbody tr")).to_have_text("onone page100 %0")
    app.track("u", "$experiment_started", **{"Experiment name": "checkout", "Variant name": "on"})
    expect(card.locator("tbody tr")).to_have_text("onone page100 %1")
    app.http.get("/flags")
    expect(page.locator("#flag-requests")).to_have_text("1 request for flags among the latest, 1 of them failed.")
    app.emulator.set_flags([])
    expect(page.locator("#flags-empty")).to_be_visible()


def test_health_shows_findings_with_advice_and_people(app: App, open_page: Open) -> None:
    page = open_page("/#/health")
    expect(page.locator("#health-empty")).to_be_visible()
    badge = page.locator('[data-count="health"]')
    expect(badge).to_have_text("0")
    app.track("undefined", "Viewed")
    app.track("User-1", "Viewed")
    app.track("user-1", "Viewed")
    app.identify("user-1", "guest-1")
    cards = page.locator("#health-cards .card")
    expect(cards).to_have_count(3)
    expect(badge).to_have_text("3")
    expect(page.locator("#health-figures")).to_contain_text("from 4 events: 3 findings.")
    variants = cards.filter(has_text="Variants of one id")
    expect(variants).to_contain_text("Mixpanel compares ids character by character")
    variants.locator("summary").click()
    variants.get_by_role("button", name="User-1", exact=True).click()
    expect(page.locator("#detail-title")).to_contain_text("User-1")
    app.http.post("/_emulator/reset")
    page.goto(f"{app.url}/#/health")
    expect(page.locator("#health-empty")).to_be_visible()


def test_page_names_the_configured_token_when_requests_have_another(app: App, open_page: Open) -> None:
    with closing(App(IdMerge.SIMPLIFIED, token="right-token")) as other:
        page = open_page()
        page.goto(other.url)
        other.track("u", "Paid", token="secret-of-another-project")
        other.set_profile("u", plan="pro")
        welcome = page.locator("#event-empty")
        expect(welcome).to_contain_text("Records arrive with the token of another project")
        expect(welcome.locator(".origin")).to_have_text("right-token")
        expect(welcome).to_contain_text("2 records had another token")
        expect(welcome).not_to_contain_text("Waiting for the first event")
        page.goto(f"{other.url}/#/rejected")
        card = page.locator("#rejected-cards .card").last
        card.get_by_text("The record as sent").click()
        expect(card.locator(".json")).to_contain_text('"token": "***"')
        assert "secret-of-another-project" not in page.content()
        other.track("u", "Paid", token="right-token")
        page.goto(f"{other.url}/#/events")
        shows(page, "Paid")


def test_page_says_so_when_requests_arrive_and_nothing_is_stored(app: App, open_page: Open) -> None:
    page = open_page()
    app.http.post("/import", json=[])
    welcome = page.locator("#event-empty")
    expect(welcome).to_contain_text("Requests arrive, but no event was stored")
    expect(welcome).to_contain_text("no credentials")
    welcome.get_by_role("link", name="all requests").click()
    expect(page.locator("#request-rows .row")).to_have_count(1)


def test_mouse_leaves_no_focus_ring(app: App, open_page: Open) -> None:
    app.identify("user-1", "abc")
    app.track("user-1", "Paid")
    page = open_page()
    outlines = """() => [...document.querySelectorAll("*")].filter((element) =>
      getComputedStyle(element).outlineStyle !== "none" && !element.matches("input, select"))
      .map((element) => element.id || element.className)"""
    for click in (
        lambda: page.locator("#alert").get_by_role("button", name="Dismiss").click(),
        lambda: rows(page).first.click(),
        lambda: detail(page).get_by_role("button", name="Close").click(),
        lambda: page.locator('[data-view="people"]').click(),
        lambda: page.locator("#people-rows .row").first.click(),
        lambda: page.get_by_role("button", name="Pause").click(),
    ):
        # After a key press, Chromium shows a ring around an element that a script focuses, such as the closed row.
        page.keyboard.press("Tab")
        click()
        assert page.evaluate(outlines) == []
    page.keyboard.press("Tab")
    assert len(page.evaluate(outlines)) == 1


def test_list_moves_on_after_a_click_shows_new_events(app: App, open_page: Open) -> None:
    page = open_page()
    app.track("u", "First")
    shows(page, "First")
    page.locator("#filter-name").press("ArrowDown")
    page.get_by_role("button", name="Pause").click()
    app.track("u", "Second")
    page.locator("#newer").click()
    shows(page, "Second", "First")
    app.track("u", "Third")
    shows(page, "Third", "Second", "First")


def test_rate_chart_starts_with_its_history(app: App, open_page: Open) -> None:
    now = int(time.monotonic())
    while int(time.monotonic()) == now:
        app.track("u", "Before")
    page = open_page()
    # The highest rate is at the top of the chart.
    expect(page.locator("#spark polyline")).to_have_attribute("points", re.compile(r"\d,1\.0 "))


def test_full_text_of_a_cut_cell_is_shown_for_pointer_and_keyboard(app: App, open_page: Open) -> None:
    name, person = "Name " + "n" * 200 + MARKUP, "id " + "i" * 200
    app.track(person, name, note="v" * 100)
    app.track("u", "Short")
    page = open_page()
    tip = page.locator("#tip")
    rows(page).last.locator(".name").hover()
    expect(tip).to_have_text(name)
    rows(page).last.locator(".preview").hover()
    expect(tip).to_have_text("note: " + "v" * 100)
    rows(page).first.locator(".name").hover()
    expect(tip).to_be_hidden()
    rows(page).first.focus()
    page.keyboard.press("ArrowDown")
    expect(tip).to_contain_text(name)
    expect(tip).to_contain_text(person)
    expect(rows(page).last).to_have_attribute("aria-describedby", "tip")
    left, right = tip.evaluate("(e) => [e.getBoundingClientRect().left, e.getBoundingClientRect().right]")
    assert 0 <= left < right <= WIDE["width"]
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    assert page.locator("img").count() == 0


def test_explanation_matches_mistake(app: App, open_page: Open) -> None:
    visitor = str(uuid.uuid4())
    page = open_page("/#/identity")
    cards = page.locator("#identity-cards .card")
    app.identify("user-1", uuid.uuid4().hex)
    expect(cards.first).to_contain_text("is a UUID without its dashes")
    app.identify("user-1", "5b8a7c0e-9d4a-11ee-8c90-0242ac12000g")
    expect(cards.first).to_contain_text("is not five groups of hexadecimal digits")
    app.identify("user-1", "user-1")
    expect(cards.first).to_contain_text("Both ids are the same")
    app.alias("user-1", "other")
    app.alias("user-2", "other")
    expect(cards.first).to_contain_text("alias did not add other to user-2")
    expect(badge(page, "identity")).to_have_text("4")
    for _ in range(3):
        app.identify("user-1", "abc")
    expect(cards.first).to_contain_text("3 times")
    expect(badge(page, "identity")).to_have_text("5")
    # A repeated identify at log-in is refused too, but is harmless and raises no alert.
    app.identify("user-1", visitor)
    app.identify("user-1", visitor)
    expect(cards.first).to_contain_text("harmless")
    expect(cards.first).to_contain_text("are one person")
    expect(badge(page, "identity")).to_have_text("5")


def test_rejected_record_shows_field_and_message(app: App, open_page: Open) -> None:
    page = open_page("/#/rejected")
    record = {"event": "Paid", "properties": {"time": "yesterday", "distinct_id": "u", "$insert_id": "1"}}
    assert app.send_import(record) == 400
    card = page.locator("#rejected-cards .card").first
    expect(card.locator("h3 code")).to_have_text("properties.time")
    expect(card.locator("h3")).to_contain_text("is invalid")
    expect(card).to_contain_text("/import")
    expect(card).to_contain_text("In the event “Paid”")
    expect(badge(page, "rejected")).to_have_text("1")
    card.get_by_text("The record as sent").click()
    expect(card.locator(".json")).to_contain_text("yesterday")
    expect(page.locator("#announcer")).to_contain_text("1 record rejected")


def test_list_stays_still_while_paused_focused_or_scrolled(app: App, open_page: Open) -> None:
    page = open_page()
    app.track("u", "First")
    shows(page, "First")
    page.get_by_role("button", name="Pause").click()
    expect(state(page)).to_have_text("Paused")
    app.track("u", "Second")
    newer = page.locator("#newer")
    expect(newer).to_have_text("1 new event – resume")
    assert names(page) == ["First"]
    newer.click()
    shows(page, "Second", "First")
    expect(state(page)).to_have_text("Connected")
    # A row with keyboard focus does not move.
    rows(page).first.focus()
    page.keyboard.press("ArrowDown")
    app.track("u", "Third")
    expect(newer).to_have_text("1 new event – show")
    assert names(page) == ["Second", "First"]
    newer.click()
    shows(page, "Third", "Second", "First")
    # A scrolled list does not move.
    more = [{"event": "More", "properties": {"token": "t", "distinct_id": "u"}}] * 50
    app.http.post("/track", json=more)
    expect(rows(page)).to_have_count(53)
    scroll_events(page, 300)
    app.track("u", "Last")
    expect(newer).to_have_text("1 new event – show")
    expect(rows(page)).to_have_count(53)
    newer.click()
    expect(rows(page)).to_have_count(54)


def test_page_reconnects_after_server_restart(app: App, open_page: Open) -> None:
    page = open_page()
    app.track("u", "Before")
    shows(page, "Before")
    app.server.close()
    expect(state(page)).to_have_text("Reconnecting")
    # The same emulator: no event is repeated or missing.
    app.restart_server()
    expect(state(page)).to_have_text("Connected")
    app.track("u", "After")
    shows(page, "After", "Before")
    # Another emulator on the same port: the data of the first one disappears.
    app.server.close()
    other = App(IdMerge.SIMPLIFIED, app.port)
    try:
        other.track("u", "Elsewhere")
        shows(page, "Elsewhere")
        expect(state(page)).to_have_text("Connected")
        expect(page.locator("#system")).to_have_text("Simplified ID Merge")
    finally:
        other.close()


def test_reset_asks_first(app: App, open_page: Open) -> None:
    page = open_page()
    app.track("u", "First")
    app.identify("u", "abc")
    shows(page, "$identify", "First")
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Cancel").click()
    assert len(app.emulator.events()) == 2
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Delete all data").click()
    expect(page.locator("#event-empty")).to_be_visible()
    expect(page.locator("#alert")).to_be_hidden()
    assert app.emulator.events() == []
    app.track("u", "Second")
    shows(page, "Second")
    expect(badge(page, "events")).to_have_text("1")


def test_page_works_with_keyboard_only(app: App, open_page: Open) -> None:
    for number in range(3):
        app.track("user-1", f"Event {number}")
    page = open_page()
    expect(rows(page)).to_have_count(3)
    press = page.keyboard.press
    focused = page.locator(":focus")
    press("Tab")
    expect(focused).to_have_text("Skip to the events")
    press("Enter")
    expect(focused.locator(".name")).to_have_text("Event 2")
    press("ArrowDown")
    expect(focused.locator(".name")).to_have_text("Event 1")
    press("Enter")
    expect(detail(page)).to_be_focused()
    expect(detail(page).locator("h2")).to_have_text("Event 1")
    press("Tab")
    expect(focused).to_have_text("Close")
    press("Escape")
    expect(detail(page)).to_be_hidden()
    expect(focused.locator(".name")).to_have_text("Event 1")
    press("Enter")
    press("Shift+Tab")
    expect(focused.locator(".name")).to_have_text("Event 1")
    press("End")
    expect(detail(page).locator("h2")).to_have_text("Event 0")
    press("Escape")

    # Tab stops are in order and have a visible outline. The list is a single stop.
    page.locator("#skip").focus()
    stops = []
    for _ in range(14):
        press("Tab")
        stops.append(
            page.evaluate(
                "() => { const e = document.activeElement; return [e.id || e.dataset.view || e.className,"
                " getComputedStyle(e).outlineStyle] }"
            )
        )
    assert [name for name, _ in stops] == [
        "pause", "reset", "events", "people", "groups", "identity", "health", "rejected", "requests", "flags",
        "filter-name", "filter-person", "filter-updates", "row event",
    ]  # fmt: skip
    assert {outline for _, outline in stops} == {"solid"}
    page.locator('[data-view="people"]').focus()
    press("Enter")
    expect(page.locator("#people-rows .row")).to_have_count(1)
    page.locator("#person-query").focus()
    press("Tab")
    press("Enter")
    expect(detail(page).locator("h2")).to_have_text("user-1")
    press("Escape")
    expect(focused.locator(".who")).to_have_text("user-1")
    page.locator("#reset").focus()
    press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert len(app.emulator.events()) == 3


# Contrast of each visible text with its background. A canvas converts colours of any notation to numbers.
CONTRASTS: Final = """() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 1, height: 1});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  const over = (colours) => {
    context.clearRect(0, 0, 1, 1);
    for (const colour of colours) { context.fillStyle = colour; context.fillRect(0, 0, 1, 1); }
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const seen = {};
  for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility() || element.closest("svg, .sr, .skip")) continue;
    const layers = [];
    for (let node = element; node; node = node.parentElement) layers.unshift(getComputedStyle(node).backgroundColor);
    const back = luminance(over(["white", ...layers]));
    const front = luminance(over(["white", ...layers, getComputedStyle(element).color]));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    const name = element.tagName + "." + element.className;
    seen[name] = Math.min(seen[name] ?? 99, ratio);
  }
  return seen;
}"""


@pytest.mark.parametrize(
    ("scheme", "viewport"),
    [
        pytest.param("light", WIDE, id="light-wide"),
        pytest.param("dark", NARROW, id="dark-narrow"),
        pytest.param("dark", WIDE, id="dark-wide", marks=pytest.mark.long),
        pytest.param("light", NARROW, id="light-narrow", marks=pytest.mark.long),
    ],
)
def test_text_has_enough_contrast_in_each_theme_and_size(
    scheme: str, viewport: ViewportSize, app: App, open_page: Open, tmp_path: Path
) -> None:
    visitor = str(uuid.uuid4())
    app.track(visitor, "Viewed page", path="/pricing")
    app.identify("user-1", visitor)
    app.identify("user-1", "abc")
    app.set_profile("user-1", plan="pro", seats=3)
    app.send_import({"event": "Paid", "properties": {}})
    app.set_group("company", "Acme", seats=3)
    app.http.get("/api/2.0/jql")
    app.emulator.set_flag("checkout", "one page")
    app.emulator.fail_next(503)
    page = open_page(viewport=viewport, scheme=scheme)
    expect(rows(page)).to_have_count(5)
    looked = 0
    views = (
        "#/events",
        "#/groups",
        "#/identity",
        "#/health",
        "#/rejected",
        "#/requests",
        "#/flags",
        "#/people",
        "#/people/user-1",
    )
    for path in views:
        page.goto(f"{app.url}/{path}")
        if path == "#/people/user-1":
            expect(detail(page)).to_be_visible()
        else:
            expect(page.locator(f"#{path[2:]}")).to_be_visible()
        page.screenshot(path=tmp_path / f"{path[2:].replace('/', '-')}-{scheme}-{viewport['width']}.png")
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        contrasts = page.evaluate(CONTRASTS)
        assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
        looked += len(contrasts)
    assert looked > 50


@pytest.mark.parametrize(
    "viewport", [pytest.param(NARROW, id="narrow"), pytest.param(WIDE, id="wide", marks=pytest.mark.long)]
)
def test_sent_markup_is_shown_and_never_executed(viewport: ViewportSize, app: App, open_page: Open) -> None:
    page = open_page(viewport=viewport)
    script = "<script>alert(2)</script>"
    odd = {
        MARKUP: MARKUP,
        "nested": {"list": [1, {MARKUP: None}], "empty": {}},
        "long": "y" * 5000,
        "one word of many": "z" * 250,
        "control": "a\x00b\x1b[31m\u202egnp.exe\u200bc",
        "emoji": "👩‍👩‍👧 🇩🇪",
        "nothing": None,
        "": "no name",
        "large": 1e300,
        "__proto__": "p",
        "constructor": "c",
    }
    app.track(script, MARKUP, **odd)
    app.track("w" * 250, "W" * 250)
    app.identify(MARKUP, script)
    app.set_profile(script, **{"$name": MARKUP, MARKUP: MARKUP})
    app.send_import({"event": MARKUP, "properties": {MARKUP: MARKUP, "time": MARKUP}})
    app.send_import(None)
    app.set_group(MARKUP, script, **{MARKUP: MARKUP, "list": [script]})
    app.http.post(f"/{MARKUP}", json=[])
    app.http.get(f"/api/2.0/{MARKUP}")
    app.emulator.set_flag(MARKUP, {MARKUP: script}, variant_key=script)
    app.emulator.fail_next(429, retry_after=MARKUP)
    expect(rows(page)).to_have_count(5)
    elements = page.evaluate("document.querySelectorAll('img, script, iframe').length")

    def check() -> None:
        assert page.evaluate("document.querySelectorAll('img, script, iframe').length") == elements
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]

    check()
    expect(page.locator("#fault-bar")).to_contain_text(MARKUP)
    row = rows(page).last
    expect(row.locator(".name")).to_have_text(MARKUP)
    row.hover()
    row.click()
    text = detail(page)
    expect(text).to_contain_text("a␀b␛[31m\\u202egnp.exe\\u200bc")
    expect(text).to_contain_text("👩‍👩‍👧 🇩🇪")
    expect(text).to_contain_text("__proto__")
    check()
    page.goto(f"{app.url}/#/people/{script}")
    expect(text.locator("h2")).to_have_text(MARKUP)
    check()
    for view in ("identity", "rejected"):
        page.goto(f"{app.url}/#/{view}")
        page.locator(f"#{view} .card", has_text=MARKUP).locator("summary").click()
        check()
    page.goto(f"{app.url}/#/flags")
    page.locator("#flags .card", has_text=MARKUP).locator("summary").click()
    check()
    page.goto(f"{app.url}/#/requests")
    expect(page.locator("#request-rows .row", has_text=MARKUP)).to_have_count(2)
    expect(page.locator("#unsupported li")).to_contain_text(MARKUP)
    check()
    page.goto(f"{app.url}/#/groups")
    page.locator("#group-rows .row", has_text=MARKUP).click()
    expect(text.locator("h2")).to_have_text(script)
    check()


# The frame rate depends on the load of the machine, so only the long form requires a high one.
@pytest.mark.parametrize(("seconds", "frames"), [(1.0, 20), pytest.param(15.0, 150, marks=pytest.mark.long)])
def test_page_stays_responsive_at_high_event_rate(seconds: float, frames: int, app: App, open_page: Open) -> None:
    """Check that at 2,000 events per second the page keeps drawing, stays small and reacts to input."""
    page = open_page()
    sent = 0
    stop = threading.Event()

    def send() -> None:
        nonlocal sent
        while not stop.is_set():
            began = time.monotonic()
            app.http.post(
                "/track",
                json=[
                    {
                        "event": f"Event {n % 10}",
                        "properties": {"token": "t", "distinct_id": f"user-{sent + n}", "n": n, "path": "/some/where"},
                    }
                    for n in range(200)
                ],
            )
            sent += 200
            stop.wait(max(0.0, 0.1 - (time.monotonic() - began)))

    sender = threading.Thread(target=send)
    sender.start()
    try:
        expect(rows(page)).to_have_count(300)
        # A blocked page would never draw 20 frames.
        measure = """(seconds) => new Promise((done) => {
          const gaps = [];
          const began = performance.now();
          let last = began;
          let nodes = 0;
          const frame = (now) => {
            gaps.push(now - last);
            last = now;
            nodes = Math.max(nodes, document.querySelectorAll("*").length);
            if (now - began < seconds * 1000 || gaps.length < 20) requestAnimationFrame(frame);
            else done({frames: gaps.length, longest: Math.max(...gaps), nodes});
          };
          requestAnimationFrame(frame);
        })"""
        seen = page.evaluate(measure, seconds)
        assert seen["nodes"] < 3000
        assert seen["frames"] >= frames, seen
        page.get_by_role("button", name="Pause").click()
        expect(state(page)).to_have_text("Paused")
        before = names(page)
        expect(page.locator("#newer")).to_contain_text("new events")
        assert names(page) == before
        page.locator('[data-view="people"]').click()
        expect(page.locator("#people-rows .row")).to_have_count(200)
        page.locator('[data-view="events"]').click()
        page.get_by_role("button", name="Resume", exact=True).click()
        page.locator("#filter-name").fill("Event 3")
        expect(page.locator("#event-rows .row .name").first).to_have_text("Event 3")
    finally:
        stop.set()
        sender.join()
    total = len(app.emulator.raw_events())
    assert total == sent
    expect(badge(page, "events")).to_have_text(f"{total:,}")
