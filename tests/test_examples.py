"""Each example runs unchanged against the emulator, told where it is by the environment only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from aiohttp.test_utils import TestClient, TestServer

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
ACCOUNT = "maya@example.com"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A project on a socket, to which the environment points."""
    emulator = Emulator(id_merge=IdMerge.ORIGINAL)
    with emulator.serve() as server:
        monkeypatch.setenv("MIXPANEL_TOKEN", "example-token")
        monkeypatch.setenv("MIXPANEL_API_HOST", server.url)
        yield emulator


def example(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return import_module(name)


def run_example(name: str, *runner: str) -> str:
    command = [sys.executable, "-W", "error", *runner, str(EXAMPLES / name)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def assert_one_person(emulator: Emulator, visitor: str) -> None:
    """The anonymous page view and the sign-up belong to one person with both ids."""
    assert emulator.cluster(ACCOUNT) == {visitor, ACCOUNT}
    (view,), (sign_up,) = emulator.events("Page viewed"), emulator.events("Signed up")
    assert view["properties"]["distinct_id"] == sign_up["properties"]["distinct_id"] == emulator.resolve(ACCOUNT)


def test_quick_start(emulator: Emulator) -> None:
    run_example("quick_start.py")
    (visitor,) = emulator.cluster(ACCOUNT) - {ACCOUNT}
    assert_one_person(emulator, visitor)
    profile = emulator.profile(ACCOUNT)
    assert profile is not None
    assert profile["$name"] == "Maya"


def test_a_test_of_the_sign_up() -> None:
    # Without plugins that have no part in it and take seconds to import.
    unneeded = [f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "respx")]
    run_example("test_signup.py", "-m", "pytest", "-q", *unneeded)


def test_worker(emulator: Emulator) -> None:
    assert run_example("worker.py") == "10,000 events delivered\n"
    events = emulator.events("Job finished")
    assert len({event["properties"]["$insert_id"] for event in events}) == len(events) == 10_000


def test_feature_flags(emulator: Emulator) -> None:
    variants = [{"key": "one-page", "value": {"layout": "one page"}, "is_control": False, "split": 1.0}]
    rollout = {"rollout_percentage": 1.0, "runtime_evaluation_rule": {"==": [{"var": "plan"}, "Pro"]}}
    emulator.set_flags([{"key": "checkout", "ruleset": {"variants": variants, "rollout": [rollout]}}])
    printed = run_example("feature_flags.py").splitlines()
    assert printed == ["user-1: classic (NO_ROLLOUT_MATCH)", "user-2: one page", "user-3: one page"]
    exposed = [event["properties"]["distinct_id"] for event in emulator.events("$experiment_started")]
    assert sorted(exposed) == ["user-2", "user-3"]


def test_feature_flags_without_definitions(emulator: Emulator) -> None:
    printed = run_example("feature_flags.py").splitlines()
    assert printed == [f"user-{number}: classic (FLAG_NOT_FOUND)" for number in (1, 2, 3)]


@pytest.mark.anyio
async def test_fastapi_app(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    app = example("fastapi_app", monkeypatch).app
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as browser:
            assert (await browser.get("/")).status_code == 200
            assert (await browser.post("/signup", json={"email": ACCOUNT})).status_code == 201
            visitor = browser.cookies["visitor"]
    assert_one_person(emulator, visitor)
    profile = emulator.profile(visitor)
    assert profile is not None
    assert profile["$email"] == ACCOUNT


@pytest.mark.anyio
async def test_fastapi_app_refuses_the_sign_up_when_the_alias_fails(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = example("fastapi_app", monkeypatch).app
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as browser:
            await browser.get("/")
            emulator.fail_next(status=400, times=1, path="/track")
            assert (await browser.post("/signup", json={"email": ACCOUNT})).status_code == 503
            assert (await browser.post("/signup", json={"email": ACCOUNT})).status_code == 201
    assert_one_person(emulator, browser.cookies["visitor"])


@pytest.mark.asyncio
async def test_aiohttp_app(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    app = example("aiohttp_app", monkeypatch).create_app()
    async with TestClient(TestServer(app)) as browser:
        assert (await browser.get("/")).status == 200
        visitor = browser.session.cookie_jar.filter_cookies(browser.make_url("/"))["visitor"].value
        assert (await browser.post("/signup", data={"email": ACCOUNT})).status == 201
    assert_one_person(emulator, visitor)


@pytest.mark.asyncio
async def test_aiohttp_app_signs_up_although_the_alias_fails(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = example("aiohttp_app", monkeypatch).create_app()
    async with TestClient(TestServer(app)) as browser:
        await browser.get("/")
        emulator.fail_next(status=400, times=1, path="/track")
        assert (await browser.post("/signup", data={"email": ACCOUNT})).status == 201
    assert "to be repeated: alias of visitor" in caplog.text
    assert emulator.cluster(ACCOUNT) == {ACCOUNT}
