"""Flask apps under its development server and gunicorn, in real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import pytest
from host_process import EXAMPLES, HERE, HostProcess, host_process

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_profile, assert_tracked

pytestmark = pytest.mark.sample(every=3)

REQUESTS: Final = 60
THREADS: Final = 6
GUNICORN: Final = ("-m", "gunicorn", "--bind", "127.0.0.1:0", "--no-control-socket", "--graceful-timeout", "8")
# Test id of a server -> arguments of the interpreter.
SERVERS: Final[dict[str, Sequence[str]]] = {
    "werkzeug": (str(HERE / "flask_program.py"),),
    "gunicorn sync": (*GUNICORN, "--chdir", str(HERE), "flask_program:app"),
    "gunicorn gthread": (*GUNICORN, "--chdir", str(HERE), "-k", "gthread", "--threads", "6", "flask_program:app"),
    "gunicorn preload": (*GUNICORN, "--chdir", str(HERE), "--preload", "--workers", "2", "flask_program:app"),
}
NO_CONTROLLER: Final = (0, -signal.SIGTERM)


def visit(app: HostProcess, path: str, requests: int = REQUESTS) -> list[int]:
    """Make requests in several threads and return the statuses."""
    with app.browser() as browser, ThreadPoolExecutor(THREADS) as threads:
        return [*threads.map(lambda number: browser.get(f"{path}/{number}").status_code, range(requests))]


@pytest.mark.parametrize("view", ["blocking", "async"])
@pytest.mark.parametrize("server", SERVERS)
def test_requests_from_six_threads(server: str, view: str) -> None:
    """0 requests fail, and all 60 events arrive, at the latest after SIGTERM."""
    emulator = Emulator()
    with (
        emulator.serve() as mixpanel,
        host_process(*SERVERS[server], MIXPANEL=mixpanel.url, VIEW=view) as app,
    ):
        app.listen()
        assert visit(app, f"/{view}") == [200] * REQUESTS
        with app.browser() as browser:
            uncertain = browser.get("/stats").json()["uncertain"]
        status = app.stop()
        errors = app.stderr
    assert status in NO_CONTROLLER, errors
    assert [line for line in errors.splitlines() if "mixpanel_async" in line or "Error" in line] == []
    numbers = [event["properties"]["number"] for event in emulator.events("Event")]
    assert sorted(numbers) == [*range(REQUESTS)]
    visits = (emulator.profile("user") or {})["visits"]
    assert (visits, uncertain) == (REQUESTS, 0)


def test_async_views_while_mixpanel_does_not_respond() -> None:
    """Each view waits at its end for at most `loop_end_timeout`; no request fails, and nothing is applied twice."""
    emulator = Emulator()
    requests = THREADS
    with emulator.serve() as mixpanel, host_process(*SERVERS["werkzeug"], MIXPANEL=mixpanel.url, VIEW="async") as app:
        app.listen()
        emulator.latency = 60.0
        began = time.monotonic()
        assert visit(app, "/async", requests) == [200] * requests
        assert time.monotonic() - began < 12.0
        emulator.latency = 0.0
        with app.browser() as browser:
            assert browser.get(f"/async/{requests}").status_code == 200
            lost = browser.get("/stats").json()
        app.stop()
    numbers = [event["properties"]["number"] for event in emulator.events("Event")]
    assert sorted(numbers) == [*range(requests + 1)]
    visits = (emulator.profile("user") or {})["visits"]
    # A request that an ending event loop cut may have been applied.
    assert requests + 1 - lost["uncertain"] <= visits <= requests + 1
    assert (lost["failed"], lost["dropped"]) == (0, 0)


@pytest.mark.parametrize("system", [IdMerge.ORIGINAL, IdMerge.SIMPLIFIED], ids=lambda system: system.value)
@pytest.mark.parametrize("server", ["python", "gunicorn"])
def test_example(server: str, system: IdMerge) -> None:
    emulator = Emulator(system)
    gunicorn = (*GUNICORN, "--chdir", str(EXAMPLES), "--threads", "6", "--preload", "flask_app:app")
    arguments = gunicorn if server == "gunicorn" else (str(EXAMPLES / "flask_app.py"), "--port", "0")
    environment = {"MIXPANEL_TOKEN": "token", "MIXPANEL_ID_MERGE": system.value}
    with emulator.serve() as mixpanel, host_process(*arguments, MIXPANEL_API_HOST=mixpanel.url, **environment) as app:
        app.listen()
        with app.browser() as browser:
            assert browser.get("/").json() == {"hello": "visitor"}
            assert browser.post("/signup", data={"email": "maya@example.com"}).status_code == 201
            assert browser.get("/").json() == {"hello": "maya@example.com"}
            assert browser.post("/logout").status_code == 204
            assert browser.get("/").json() == {"hello": "visitor"}
        assert app.stop() in NO_CONTROLLER
        assert "Traceback" not in app.stderr
    maya = "maya@example.com"
    assert_tracked(emulator, "Signed up", distinct_id=maya)
    assert_tracked(emulator, "Page viewed", distinct_id=maya, times=2)
    assert_tracked(emulator, "Page viewed", times=3)
    assert_profile(emulator, maya, {"$email": maya})
    assert len(emulator.cluster(maya)) == 2
