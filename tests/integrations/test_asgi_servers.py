"""Apps of the ASGI and Django integrations under real servers: SIGTERM delivers every event."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from app_servers import EXAMPLES, started

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_tracked

pytestmark = pytest.mark.sample(every=2)

MAYA = "maya@example.com"
DJANGO = str(EXAMPLES / "django_app.py")
EVENTS = 24


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty database of the Django example."""
    path = tmp_path_factory.mktemp("django") / "db"
    environment = {**os.environ, "DATABASE": str(path), "MIXPANEL_TOKEN": "token"}
    subprocess.run([sys.executable, DJANGO, "migrate", "-v0"], env=environment, check=True, timeout=20)
    return path


@pytest.fixture
def database(template: Path, tmp_path: Path) -> str:
    path = tmp_path / "db"
    path.write_bytes(template.read_bytes())
    return str(path)


def stops_and_delivers(server: str, paths: list[str], **environment: str) -> Emulator:
    """Request paths in turn, send SIGTERM at once, and return what arrived."""
    emulator = Emulator()
    with emulator.serve() as mixpanel, started(server, mixpanel.url, **environment) as app, app.browser() as browser:
        for number in range(EVENTS):
            assert browser.get(paths[number % len(paths)]).status_code == 200, app.output
        status = app.stop()
    # uvicorn raises the signal again after shutdown.
    assert status in {0, -signal.SIGTERM}, app.output
    assert "Traceback" not in app.output
    assert "RuntimeWarning" not in app.output
    return emulator


@pytest.mark.parametrize(
    "server",
    [
        "asgi-uvicorn",
        "asgi-hypercorn",
        "plain-uvicorn",
        "plain-uvicorn-off",
        "plain-hypercorn",
        "plain-hypercorn-trio",
        "plain-gunicorn",
        "quart-hypercorn",
        "quart-uvicorn",
    ],
)
def test_termination_signal_delivers_events_of_any_asgi_app(server: str) -> None:
    emulator = stops_and_delivers(server, ["/"])
    assert_tracked(emulator, "Page viewed", times=EVENTS)
    assert len(emulator.events("Page viewed")) == EVENTS
    if server.startswith("asgi"):
        assert_tracked(emulator, "Request", properties={"path": "/", "status": 200}, times=EVENTS)


@pytest.mark.parametrize(
    "server",
    [
        "django-uvicorn",
        "django-uvicorn-off",
        "django-hypercorn",
        "django-gunicorn",
        "django-sync",
        "django-gthread",
        "django-preload",
    ],
)
def test_termination_signal_delivers_events_of_sync_and_async_django_views(server: str, database: str) -> None:
    emulator = stops_and_delivers(server, ["/", "/async"], DATABASE=database)
    assert_tracked(emulator, "Page viewed", times=EVENTS)
    assert len(emulator.events("Page viewed")) == EVENTS


@pytest.mark.parametrize("server", ["plain-uvicorn", "plain-uvicorn-off"])
def test_app_serves_if_its_client_cannot_be_made(server: str) -> None:
    with started(server, "http://127.0.0.1:9", UNUSABLE="1") as app, app.browser() as browser:
        assert browser.get("/").status_code == 200
        app.stop()
    assert app.output.count("tracking is off, because the Mixpanel client could not start") == 1


@pytest.mark.parametrize("server", ["django-uvicorn", "django-gthread"])
@pytest.mark.parametrize("system", IdMerge, ids=lambda system: system.value)
def test_visits_of_one_user_form_one_person(server: str, system: IdMerge, database: str) -> None:
    """Anonymous visit, sign-up, login on a second device, logout, anonymous visit."""
    emulator = Emulator(system)
    form = {"email": MAYA, "password": "secret"}
    with (
        emulator.serve() as mixpanel,
        started(server, mixpanel.url, DATABASE=database, MIXPANEL_ID_MERGE=system.value) as app,
        app.browser() as laptop,
        app.browser() as phone,
    ):
        assert laptop.get("/").json() == {"hello": "visitor"}
        assert laptop.post("/signup", data=form).status_code == 201
        assert laptop.get("/async").json() == {"hello": MAYA}
        hers = [laptop.cookies["mp_visitor"]]
        assert phone.get("/async").json() == {"hello": "visitor"}
        assert phone.post("/login", data=form).status_code == 200
        assert phone.get("/").json() == {"hello": MAYA}
        hers.append(phone.cookies["mp_visitor"])
        assert laptop.post("/logout").status_code == 204
        assert laptop.get("/").json() == {"hello": "visitor"}
        other = laptop.cookies["mp_visitor"]
        app.stop()
    prefix = "$device:" if system is IdMerge.SIMPLIFIED else ""
    assert emulator.cluster(MAYA) == {MAYA, *(prefix + one for one in hers)}
    assert_tracked(emulator, "Signed up", distinct_id=MAYA)
    assert_tracked(emulator, "Signed in", distinct_id=MAYA)
    assert_tracked(emulator, "Signed out", distinct_id=MAYA)
    assert_tracked(emulator, "Page viewed", distinct_id=prefix + other)


FORK = """
import os, django_app
from mixpanel_async.integrations.django import mixpanel
mixpanel.track("parent", "Forked")
child = os.fork()
mixpanel.track("child" if child == 0 else "parent", "Forked")
if child:
    _, status = os.waitpid(child, 0)
    assert status == 0
"""


def test_forked_child_has_a_client_of_its_own(database: str) -> None:
    emulator = Emulator()
    with emulator.serve() as mixpanel:
        environment = {
            **os.environ,
            "DATABASE": database,
            "MIXPANEL_TOKEN": "token",
            "MIXPANEL_API_HOST": mixpanel.url,
            "PYTHONPATH": str(EXAMPLES),
        }
        subprocess.run([sys.executable, "-c", FORK], env=environment, check=True, timeout=20)
    assert_tracked(emulator, "Forked", distinct_id="parent", times=2)
    assert_tracked(emulator, "Forked", distinct_id="child")


@pytest.mark.parametrize("server", ["django-unwrapped", "django-unwrapped-hypercorn", "django-unwrapped-gunicorn"])
def test_termination_signal_delivers_events_of_the_asgi_app_of_django(server: str) -> None:
    emulator = stops_and_delivers(
        server, ["/sync/cached?cache=public", "/async/cached?cache=public"], MIXPANEL_ID_MERGE="simplified"
    )
    assert_tracked(emulator, "Page viewed", times=EVENTS)
    assert len(emulator.events("Page viewed")) == EVENTS


def test_management_command_delivers_before_it_ends(database: str) -> None:
    emulator = Emulator()
    with emulator.serve() as mixpanel:
        environment = {**os.environ, "DATABASE": database, "MIXPANEL_TOKEN": "token", "MIXPANEL_API_HOST": mixpanel.url}
        subprocess.run([sys.executable, "-X", "dev", DJANGO, "report"], env=environment, check=True, timeout=20)
    assert_tracked(emulator, "Report sent", times=EVENTS)


def test_system_check_warns_about_a_missing_token(database: str) -> None:
    command = [sys.executable, DJANGO, "check", "--fail-level", "ERROR"]
    result = subprocess.run(
        command, env={**os.environ, "DATABASE": database}, check=True, timeout=20, capture_output=True, text=True
    )
    assert "mixpanel_async.W001" in result.stderr
