"""The real browser SDK in Chromium, in the page of `examples/frontend_app.py` under uvicorn, through its proxy."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import pytest
from app_servers import started

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

CHROMIUM: Final = Path("/usr/bin/chromium")
# A host with a domain, so that the SDK shares its cookie among subdomains.
HOST: Final = "www.shop.example"
ARGUMENTS: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {HOST} 127.0.0.1",
)
TOKEN: Final = "example-token"
PAGE_COOKIE: Final = f"mp_{TOKEN}_mixpanel"
PATIENCE: Final = 60.0

pytestmark = [
    pytest.mark.browser,
    pytest.mark.long,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} does not exist"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def sdks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Provide the directories with the files of each version of the SDK."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    found = {}
    for version in ("2.45.0", "2.83.0"):
        folder = tmp_path_factory.mktemp("sdk")
        install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", f"mixpanel-browser@{version}"]
        result = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=120)
        if result.returncode != 0:
            pytest.skip(f"npm cannot install mixpanel-browser@{version}: {result.stderr[-300:]}")
        found[version] = folder / "node_modules" / "mixpanel-browser" / "dist"
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


class Shop:
    """Page of the app, and the events that have arrived from it."""

    def __init__(self, page: Page, url: str, emulator: Emulator) -> None:
        self.page = page
        self._url = url
        self._emulator = emulator
        self._views = 0

    def open(self) -> None:
        self.page.goto(self._url)
        self._wait_for_view()

    def press(self, button: str) -> None:
        with self.page.expect_navigation(url=self._url):
            self.page.get_by_text(button).click()
        self._wait_for_view()

    def _wait_for_view(self) -> None:
        """Wait until the emulator has the event of the page. The SDK sends its batch when the page is hidden."""
        self._views += 1
        deadline = time.monotonic() + PATIENCE
        while len(self._emulator.events("Page viewed")) < self._views:
            assert time.monotonic() < deadline, self._emulator.events()
            self.page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")
            self.page.wait_for_timeout(100)

    @property
    def visitors(self) -> list[dict[str, Any]]:
        """Visitors in the cookies of the SDK, of which there must be one."""
        cookies = self.page.context.cookies()
        return [json.loads(unquote(str(one.get("value")))) for one in cookies if one.get("name") == PAGE_COOKIE]


def complaint_about(response: Response) -> list[str]:
    is_expected = response.status < 400 or response.url.endswith("/favicon.ico")
    return [] if is_expected else [f"{response.status} {response.url}"]


@pytest.mark.parametrize("is_reset", [False, True], ids=["no-reset", "reset"])
@pytest.mark.parametrize("version", ["2.45.0", "2.83.0"])
@pytest.mark.parametrize("system", list(IdMerge), ids=str)
def test_visitor_of_page_and_server_is_one_person(
    browser: Browser, sdks: dict[str, Path], system: IdMerge, version: str, is_reset: bool
) -> None:
    emulator = Emulator(system, token=TOKEN)
    complaints: list[str] = []
    environment = {"SDK": str(sdks[version]), "MIXPANEL_ID_MERGE": system.value}
    with emulator.serve() as mixpanel, started("frontend", mixpanel.url, **environment) as app:
        page = browser.new_context().new_page()
        page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
        page.on("request", lambda sent: None if HOST in sent.url else complaints.append(f"asked {sent.url}"))
        page.on("response", lambda response: complaints.extend(complaint_about(response)))
        shop = Shop(page, f"http://{HOST}:{urlsplit(app.url).port}/", emulator)
        shop.open()
        (first,) = shop.visitors
        shop.press("Log in as maya")
        shop.open()
        (known,) = shop.visitors
        assert (known["$device_id"], known["$user_id"]) == (first["$device_id"], "maya")
        if is_reset:
            page.evaluate("mixpanel.reset()")
        shop.press("Log out")
        (second,) = shop.visitors
        assert second["$device_id"] != first["$device_id"]
        assert "$user_id" not in second
        shop.press("Log in as noah")
        shop.open()
        (known,) = shop.visitors
        assert (known["$device_id"], known["$user_id"]) == (second["$device_id"], "noah")
        page.context.close()
        assert app.stop() in {0, -15}
    # Each event of the page comes with one of the server, and both belong to the same person.
    persons = Counter(
        (event["event"], event["properties"]["distinct_id"])
        for event in emulator.events()
        if not event["event"].startswith("$")
    )
    maya, noah = emulator.resolve("maya"), emulator.resolve("noah")
    assert persons == {
        ("Page served", maya): 3,
        ("Page viewed", maya): 3,
        ("Signed up", maya): 1,
        ("Page served", noah): 3,
        ("Page viewed", noah): 3,
        ("Signed up", noah): 1,
    }
    assert maya != noah
    assert complaints == []
    assert emulator.rejected() == []
