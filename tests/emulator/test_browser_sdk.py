"""Tests of the official browser SDK, from npm, in Chromium: pages of another origin use the emulator on a socket.

Every visit also checks that the console has no errors and that no request failed. A response that the page may not read
is such an error. `PARTS_NOT_COVERED` lists what is left out.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

OLD: Final = "2.45.0"
NEW: Final = "2.83.0"
TOKEN: Final = "tok"
SECONDS: Final = 40
FOREIGN_HOST: Final = "app.example.com"
PARTS_NOT_COVERED: Final = (
    "the snippet and the bundles that load parts of the SDK from Mixpanel's CDN",
    "heat maps, dead clicks and rage clicks of autocapture",
    "flags that a first-time event activates: the emulator has none, and does not serve /flags/<id>/first-time-events",
    "track_charge of 2.83.0, which sends nothing",
    "remote settings with values: a project of the emulator has none",
    "in-app messages and the visual editor of versions before 2.45",
    "requests by script tag, for browsers without XMLHttpRequest",
    "GDPR opt-in and opt-out, which change only whether the SDK sends",
)

CHROMIUM: Final = Path("/usr/bin/chromium")
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {FOREIGN_HOST} 127.0.0.1",
)
HTML: Final = (
    '<!DOCTYPE html><title>Shop</title><link rel="icon" href="data:,"><script src="/{}.js"></script><h1>Shop</h1>'
)

pytestmark = [
    pytest.mark.long,
    pytest.mark.browser,
    pytest.mark.node,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} does not exist"),
    pytest.mark.timeout(240),
]


@pytest.fixture(scope="module")
def sdk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Provide a directory with one file for each version of the SDK."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("browser-sdk")
    for version in (OLD, NEW):
        pack = [npm, "pack", "--silent", "--prefer-offline", f"mixpanel-browser@{version}"]
        result = subprocess.run(pack, cwd=folder, capture_output=True, text=True, timeout=120)
        if result.returncode != 0:
            pytest.skip(f"npm cannot download mixpanel-browser@{version}: {result.stderr[-300:]}")
        with tarfile.open(folder / f"mixpanel-browser-{version}.tgz") as archive:
            bundle = archive.extractfile("package/dist/mixpanel.umd.js")
            assert bundle is not None
            (folder / f"{version}.js").write_bytes(bundle.read())
    return folder


class PageHandler(http.server.SimpleHTTPRequestHandler):
    """Site with the SDK at `/<version>.js`, and at any other path below `/<version>/` a page that loads it."""

    def do_GET(self) -> None:
        if self.path.endswith(".js"):
            super().do_GET()
            return
        body = HTML.format(self.path.split("/")[1]).encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""


@pytest.fixture(scope="module")
def site_port(sdk_folder: Path) -> Iterator[int]:
    handler = functools.partial(PageHandler, directory=str(sdk_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Visitor:
    """Browser of one visitor, who opens pages of the site."""

    def __init__(self, page: Page, site: str, emulator_url: str, version: str, options: Mapping[str, Any]) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.emulator_url = emulator_url
        self._site = f"{site}/{version}"
        self._options = {"api_host": emulator_url, "batch_flush_interval_ms": 100, **options}
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on(
            "requestfailed",
            # The browser aborts requests of a page that the visitor leaves.
            lambda request: (
                None
                if request.failure == "net::ERR_ABORTED"
                else self.complaints.append(f"failed: {request.method} {request.url} {request.failure}")
            ),
        )
        page.on(
            "console",
            lambda message: (
                self.complaints.append(f"console: {message.text}") if message.type in {"error", "warning"} else None
            ),
        )

    def open(self, name: str) -> None:
        """Open a page and initialize the SDK."""
        self.leave_for(name)
        self.run(f"mixpanel.init({json.dumps(TOKEN)}, {json.dumps(self._options)})")

    def leave_for(self, name: str) -> None:
        """Open a page without the SDK's initialization."""
        self.page.goto(f"{self._site}/{name}")

    def run(self, script: str) -> Any:
        """Run JavaScript in the page. Return its value, after waiting for a promise."""
        late = f"new Promise((_, fail) => setTimeout(() => fail(new Error('no result')), {1000 * SECONDS}))"
        return self.page.evaluate(f"() => Promise.race([(async () => {{ {script} }})(), {late}])")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.complaints
            self.page.wait_for_timeout(20)


@contextmanager
def visiting(
    browser: Browser, port: int, emulator: Emulator, version: str, *, host: str = "localhost", **options: Any
) -> Iterator[Visitor]:
    """Provide a new visitor of the site, and close the browser at the end."""
    with emulator.serve() as server:
        context = browser.new_context()
        yield Visitor(context.new_page(), f"http://{host}:{port}", server.url, version, options)
        context.close()


def events(emulator: Emulator, *names: str) -> list[dict[str, Any]]:
    return [event["properties"] for event in emulator.events() if event["event"] in names]


def people(emulator: Emulator, *names: str) -> set[str]:
    """Return the canonical ids that events with these names count for."""
    return {properties["distinct_id"] for properties in events(emulator, *names)}


def has_events(emulator: Emulator, *names: str) -> Callable[[], bool]:
    return lambda: Counter(names) <= Counter(event["event"] for event in emulator.events())


def has_name(emulator: Emulator, distinct_id: str) -> bool:
    return "$name" in (emulator.profile(distinct_id) or {})


@pytest.mark.parametrize("id_merge", list(IdMerge))
@pytest.mark.parametrize("version", [OLD, NEW])
def test_visit_of_two_users(browser: Browser, site_port: int, version: str, id_merge: IdMerge) -> None:
    emulator = Emulator(id_merge, token=TOKEN)
    with visiting(browser, site_port, emulator, version) as visitor:
        visitor.open("one")
        first_anon_id = visitor.run("return mixpanel.get_distinct_id()")
        visitor.run(
            """
            mixpanel.register({plan: "free"});
            mixpanel.track("Viewed", {page: 1});
            mixpanel.identify("user-1");
            mixpanel.people.set({$name: "U", visits: 1});
            mixpanel.get_group("company", "acme").set({size: 1});
            mixpanel.track("Bought");
            """
        )
        visitor.wait_until(has_events(emulator, "Viewed", "$identify", "Bought"))
        visitor.wait_until(lambda: emulator.group("company", "acme") is not None and has_name(emulator, "user-1"))
        visitor.open("two")
        visitor.run('mixpanel.track("Returned")')
        visitor.wait_until(has_events(emulator, "Returned"))
        second_anon_id = visitor.run(
            'mixpanel.reset(); mixpanel.track("Looked around"); return mixpanel.get_distinct_id()'
        )
        visitor.run(
            """
            mixpanel.identify("user-2");
            mixpanel.track("Signed in");
            mixpanel.people.set({$name: "V"});
            """
        )
        visitor.wait_until(has_events(emulator, "Looked around", "$identify", "$identify", "Signed in"))
        visitor.run('mixpanel.alias("alias-2", "user-2")')
        visitor.wait_until(has_events(emulator, "$create_alias"))
        visitor.wait_until(lambda: has_name(emulator, "user-2"))
        visitor.run('mixpanel.track("Left", {}, {transport: "sendBeacon", send_immediately: true})')
        visitor.open("three")
        visitor.wait_until(has_events(emulator, "Left"))
        assert visitor.complaints == []
    assert emulator.rejected() == []
    assert events(emulator, "Bought")[0]["plan"] == "free"
    first, second = emulator.profile("user-1") or {}, emulator.profile("user-2") or {}
    assert (first["$name"], first["visits"], second["$name"]) == ("U", 1, "V")
    assert emulator.group("company", "acme") == {"size": 1}
    assert first_anon_id != second_anon_id
    check_people(emulator, id_merge, first_anon_id, second_anon_id)


def check_people(emulator: Emulator, id_merge: IdMerge, first_anon_id: str, second_anon_id: str) -> None:
    assert people(emulator, "Bought", "Returned") == {emulator.resolve("user-1")}
    assert people(emulator, "Signed in") == {emulator.resolve("user-2")}
    assert emulator.resolve("user-1") != emulator.resolve("user-2")
    before_login = people(emulator, "Viewed"), people(emulator, "Looked around")
    if id_merge is IdMerge.LEGACY:
        assert before_login == ({first_anon_id}, {second_anon_id})
    else:
        assert before_login == (people(emulator, "Bought"), people(emulator, "Signed in"))
    alias_is_joined = emulator.resolve("alias-2") == emulator.resolve("user-2")
    assert alias_is_joined == (id_merge is not IdMerge.SIMPLIFIED)


@pytest.mark.parametrize("version", [OLD, NEW])
def test_queued_events_are_sent_by_beacon_at_the_end_of_the_page(
    browser: Browser, site_port: int, version: str
) -> None:
    emulator = Emulator(token=TOKEN)
    with visiting(browser, site_port, emulator, version, batch_flush_interval_ms=60_000) as visitor:
        visitor.open("one")
        visitor.run('await new Promise((queued) => mixpanel.track("Viewed", {}, queued))')
        assert emulator.events() == []
        visitor.leave_for("two")
        visitor.wait_until(has_events(emulator, "Viewed"))
        assert visitor.complaints == []
    assert [request.headers["content-type"] for request in emulator.requests()] == ["text/plain;charset=UTF-8"]


# Calls whose last argument is a callback, with an operation for each method of the SDK that sends a request.
CALLS: Final = (
    'mixpanel.track("A", {a: 1}, C)',
    'mixpanel.track("A", {a: 1}, {send_immediately: true}, C)',
    'mixpanel.track_with_groups("A", {a: 1}, {company: "acme"}, C)',
    'mixpanel.set_group("company", "acme", C)',
    'mixpanel.add_group("company", "other", C)',
    'mixpanel.remove_group("company", "other", C)',
    "mixpanel.people.set({a: 1}, C)",
    'mixpanel.people.set("b", 1, C)',
    "mixpanel.people.set_once({first: 1}, C)",
    'mixpanel.people.increment("visits", 2, C)',
    'mixpanel.people.append("tags", "a", C)',
    'mixpanel.people.union("tags", ["b"], C)',
    'mixpanel.people.remove("tags", "a", C)',
    'mixpanel.people.unset("first", C)',
    "mixpanel.people.clear_charges(C)",
    'mixpanel.get_group("company", "acme").set({size: 1, gone: 1}, C)',
    'mixpanel.get_group("company", "acme").set_once("size", 2, C)',
    'mixpanel.get_group("company", "acme").union("tags", ["a", "b"], C)',
    'mixpanel.get_group("company", "acme").remove("tags", "a", C)',
    'mixpanel.get_group("company", "acme").unset("gone", C)',
    'mixpanel.get_group("company", "old").delete(C)',
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"api_method": "GET"},
        {"verbose": False},
        {"api_payload_format": "json"},
        {"xhr_headers": {"X-Requested-With": "shop"}},
    ],
    ids=["post", "get", "not verbose", "json", "own header"],
)
@pytest.mark.parametrize("version", [OLD, NEW])
def test_every_call_gets_a_readable_response(
    browser: Browser, site_port: int, version: str, options: dict[str, Any]
) -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token=TOKEN)
    with visiting(
        browser, site_port, emulator, version, **{"batch_requests": False, "verbose": True, **options}
    ) as visitor:
        visitor.open("one")
        visitor.run('mixpanel.identify("user-1")')
        results = [visitor.run(f"return await new Promise((C) => {{ {call}; }})") for call in CALLS]
        assert visitor.complaints == []
    success = {"error": None, "status": 1} if options.get("verbose", True) else 1
    assert results == [success] * len(CALLS)
    profile = emulator.profile("user-1") or {}
    del profile["$last_seen"]
    automatic = {name for name in profile if name.startswith("$")}
    assert {name: profile[name] for name in profile if name not in automatic} == {
        "a": 1,
        "b": 1,
        "visits": 2,
        "tags": ["b"],
        "company": ["acme"],
    }
    assert profile["$transactions"] == []
    assert emulator.group("company", "acme") == {"size": 1, "tags": ["b"]}
    assert emulator.rejected() == []


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize(
    "options", [{"img": True, "api_method": "GET"}, {"api_transport": "sendBeacon"}], ids=["image", "beacon"]
)
def test_other_transports(browser: Browser, site_port: int, options: dict[str, Any], version: str) -> None:
    emulator = Emulator(token=TOKEN)
    with visiting(browser, site_port, emulator, version, batch_requests=False, **options) as visitor:
        visitor.open("one")
        visitor.run('mixpanel.track("Viewed")')
        visitor.wait_until(has_events(emulator, "Viewed"))
        assert visitor.complaints == []


def test_flags_settings_autocapture_and_recording(browser: Browser, site_port: int) -> None:
    emulator = Emulator(IdMerge.ORIGINAL, token=TOKEN)
    emulator.set_flag("checkout", "fast")
    emulator.set_flag("banner", True)
    options: dict[str, Any] = {
        "flags": True,
        "remote_settings_mode": "fallback",
        "autocapture": True,
        "record_min_ms": 0,
    }
    with visiting(browser, site_port, emulator, NEW, **options) as visitor:
        visitor.open("one")
        found = visitor.run(
            """
            return [
                await mixpanel.flags.get_variant_value("checkout", "slow"),
                await mixpanel.flags.is_enabled("banner", false),
                await mixpanel.flags.is_enabled("unknown", false),
                (await mixpanel.flags.get_variant("checkout", {value: "slow"})).variant_source,
            ];
            """
        )
        assert found == ["fast", True, False, "network"]
        visitor.run('mixpanel.identify("user-1"); mixpanel.start_session_recording();')
        visitor.page.locator("h1").click()
        # The SDK sends a batch every 10 seconds.
        visitor.wait_until(lambda: bool(emulator.recordings()))
        visitor.wait_until(has_events(emulator, "$mp_web_page_view", "$mp_click", "$experiment_started"))
        assert visitor.complaints == []
    (recording,) = emulator.recordings()
    assert (recording["distinct_id"], recording["batches"]) == ("user-1", 1)
    assert recording["body_bytes"] > 0
    assert {"/settings", "/flags", "/record"} <= {request.path for request in emulator.requests()}
    assert emulator.rejected() == []


@pytest.mark.parametrize("version", [OLD, NEW])
def test_planned_fault_is_readable_and_events_are_sent_again(browser: Browser, site_port: int, version: str) -> None:
    emulator = Emulator(token=TOKEN)
    emulator.fail_next(503, path="/track")
    with visiting(browser, site_port, emulator, version) as visitor:
        visitor.open("one")
        visitor.run('mixpanel.track("Viewed")')
        visitor.wait_until(has_events(emulator, "Viewed"))
        # The browser reports the status. It would report the missing permission otherwise.
        assert len(visitor.complaints) == 1
        assert "503 (Service Unavailable)" in visitor.complaints[0]


@pytest.mark.parametrize("version", [OLD, NEW])
def test_page_of_another_site_needs_permission(browser: Browser, site_port: int, version: str) -> None:
    origin = f"http://{FOREIGN_HOST}:{site_port}"
    script = 'return await new Promise((C) => mixpanel.track("Viewed", {}, C))'
    for allowed, result in (((), None), ((origin,), 1)):
        emulator = Emulator(token=TOKEN, allow_origins=allowed)
        with visiting(browser, site_port, emulator, version, host=FOREIGN_HOST, batch_requests=False) as visitor:
            visitor.open("one")
            answer = visitor.run(script)
            assert bool(answer) == bool(result)
            assert bool(visitor.complaints) == (result is None)
            visitor.complaints.clear()
            status = visitor.run(
                f"""
                const read = (path) => fetch({json.dumps(visitor.emulator_url)} + path).then(() => true, () => false);
                return [await read("/_emulator/events"), await read("/"), await read("/api/2.0/export")];
                """
            )
            assert status == [False, False, False]


def test_parts_not_covered_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print("\nmixpanel-browser: not covered:", *PARTS_NOT_COVERED, sep="\n  - ")  # noqa: T201  output for the reader of the test run
