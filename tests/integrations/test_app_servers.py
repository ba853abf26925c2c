"""The example apps under real servers: requests, shutdown by a signal, and Mixpanel outages."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from urllib.parse import unquote

import httpx
import pytest
from aiohttp import ClientResponse, ClientSession, DummyCookieJar, TCPConnector
from app_servers import App, free_port, started

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_profile, assert_tracked

MAYA = "maya@example.com"
NOAH = "noah@example.com"


def post(app: App, browser: httpx.Client, path: str, email: str) -> httpx.Response:
    # One app expects a form, the other JSON.
    if "aiohttp_app" in str(app.process.args):
        return browser.post(path, data={"email": email})
    return browser.post(path, json={"email": email})


@pytest.mark.parametrize("system", IdMerge, ids=lambda system: system.value)
@pytest.mark.parametrize("server", ["uvicorn", "aiohttp"])
def test_visits_of_one_user_form_one_person(server: str, system: IdMerge) -> None:
    """Anonymous visit, sign-up, login on a second device, sign-out, second user in the same browser."""
    emulator = Emulator(system)
    with (
        emulator.serve() as mixpanel,
        started(server, mixpanel.url, MIXPANEL_ID_MERGE=system.value) as app,
        app.browser() as laptop,
        app.browser() as phone,
    ):
        assert laptop.get("/").json() == {"hello": "visitor"}
        signed_up = post(app, laptop, "/signup", MAYA)
        assert signed_up.status_code == 201
        maya = signed_up.json()["account"]
        assert laptop.get("/").json() == {"hello": maya}
        hers = [laptop.cookies["mp_visitor"]]
        assert phone.get("/").json() == {"hello": "visitor"}
        assert post(app, phone, "/login", MAYA).status_code == 200
        hers.append(phone.cookies["mp_visitor"])
        assert laptop.post("/logout").status_code == 204
        assert laptop.get("/").json() == {"hello": "visitor"}
        noah = post(app, laptop, "/signup", NOAH).json()["account"]
        assert laptop.get("/").json() == {"hello": noah}
        his = laptop.cookies["mp_visitor"]
        assert app.stop() in {0, -signal.SIGTERM}
    prefix = "$device:" if system is IdMerge.SIMPLIFIED else ""
    assert emulator.cluster(maya) == {maya, *(prefix + one for one in hers)}
    assert emulator.cluster(noah) == {noah, prefix + his}
    for person, email in ((maya, MAYA), (noah, NOAH)):
        assert_tracked(emulator, "Signed up", distinct_id=person)
        assert_profile(emulator, person, {"$email": email})
    assert_tracked(emulator, "Signed in", distinct_id=maya)
    assert_tracked(emulator, "Signed out", distinct_id=maya)
    views = [event["properties"] for event in emulator.events("Page viewed")]
    # In a Legacy project, the phone's earlier events belong to the user only if they are still queued at login.
    sure = [view for view in views if system is not IdMerge.LEGACY or view["$device_id"] != hers[1]]
    assert [view["distinct_id"] for view in sure].count(emulator.resolve(maya)) == len(sure) - 2
    assert_tracked(emulator, "Page viewed", distinct_id=noah, times=2)
    assert len(views) == 5
    assert emulator.rejected() == []


# SIGINT applies to servers stopped from a terminal; gunicorn treats it as a request not to wait for workers.
@pytest.mark.parametrize(
    ("server", "number"),
    [
        ("uvicorn", signal.SIGTERM),
        ("uvicorn", signal.SIGINT),
        ("aiohttp", signal.SIGTERM),
        ("aiohttp", signal.SIGINT),
        ("gunicorn", signal.SIGTERM),
        pytest.param("gunicorn-asgi", signal.SIGTERM, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_termination_signal_delivers_pending_events(server: str, number: signal.Signals) -> None:
    emulator = Emulator()
    with emulator.serve() as mixpanel, started(server, mixpanel.url) as app, app.browser() as browser:
        for _ in range(50):
            assert browser.get("/").status_code == 200
        status = app.stop(number)
    # Some servers re-raise the signal after cleanup.
    assert status in {0, -number}, app.output
    assert "Warning" not in app.output
    assert "ERROR" not in app.output
    assert_tracked(emulator, "Page viewed", times=50)


@pytest.mark.asyncio
@pytest.mark.parametrize("server", ["uvicorn", "aiohttp"])
async def test_500_concurrent_requests(server: str) -> None:
    emulator = Emulator()
    with emulator.serve() as mixpanel, started(server, mixpanel.url) as app:
        connector, jar = TCPConnector(limit=0), DummyCookieJar()
        async with ClientSession(app.url, connector=connector, cookie_jar=jar) as browsers:

            async def visit() -> ClientResponse:
                answer = await browsers.get("/")
                # A response that was not read keeps its connection, and warns.
                await answer.read()
                return answer

            answers = await asyncio.gather(*(visit() for _ in range(500)))
        app.stop()
    assert {answer.status for answer in answers} == {200}
    visitors = {answer.cookies["mp_visitor"].value for answer in answers}
    assert len(visitors) == 500
    events = emulator.events("Page viewed")
    assert {event["properties"]["$device_id"] for event in events} == visitors
    assert len(events) == 500


@pytest.mark.parametrize("server", ["uvicorn", "aiohttp"])
def test_requests_and_sign_up_succeed_during_an_outage(server: str) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with started(server, nowhere, MIXPANEL_ID_MERGE="original") as app, app.browser() as browser:
        for _ in range(20):
            assert browser.get("/").status_code == 200
        signed_up = post(app, browser, "/signup", MAYA)
        assert signed_up.status_code == 201
        assert browser.get("/").json() == {"hello": signed_up.json()["account"]}
        assert app.output.count("it is queued and sent later") == 1


def test_sign_up_does_not_wait_for_a_mixpanel_that_hangs() -> None:
    """It answers at once, and the ids are joined when Mixpanel responds again."""
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.break_next("hang", times=100_000)
    with (
        emulator.serve() as mixpanel,
        started("sign-in", mixpanel.url, MIXPANEL_ID_MERGE="original") as app,
        app.browser() as browser,
    ):
        assert browser.get("/").status_code == 200
        began = time.monotonic()
        signed_up = browser.post("/signup")
        assert (signed_up.status_code, time.monotonic() - began < 2.0) == (200, True)
        emulator.stop_faults()
        assert app.stop() in {0, -signal.SIGTERM}, app.output
    names = [event["event"] for event in emulator.raw_events()]
    assert names == ["Page viewed", "$identify", "Signed up"]
    assert emulator.cluster("7") == {"7", signed_up.json()}


def test_frontend_app_shares_its_visitor_with_the_page() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    with (
        emulator.serve() as mixpanel,
        started("frontend", mixpanel.url, MIXPANEL_ID_MERGE="original") as app,
        app.browser() as browser,
    ):
        assert 'mixpanel.init("example-token", {api_host: "/mp"})' in browser.get("/").text
        visitor = json.loads(unquote(browser.cookies["mp_example-token_mixpanel"]))
        event = {"event": "Page viewed", "properties": {"token": "example-token", **visitor}}
        assert browser.post("/mp/track/?ip=1", data={"data": json.dumps([event])}).text == "1"
        assert browser.post("/login/maya").status_code == 303
        app.stop()
    names = {
        event["event"] for event in emulator.events() if emulator.resolve("maya") == event["properties"]["distinct_id"]
    }
    assert {"Page served", "Page viewed", "Signed up"} <= names
