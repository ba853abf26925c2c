"""Analytics never fail a request: neither the app's functions, nor what browsers send, nor the client."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import pytest
from fastapi import HTTPException
from framework_apps import serving

from mixpanel_async import AsyncMixpanel, BatchPolicy, IdMerge, Overflow
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_tracked

pytestmark = pytest.mark.anyio

VISITOR = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
USER = uuid.UUID("7d1f1b1e-6c7a-4b27-8f5c-0d6b1f0a9c11")
# aiohttp supports only asyncio.
FRAMEWORKS = [
    ("starlette", "asyncio"),
    ("starlette", "trio"),
    ("fastapi", "asyncio"),
    ("aiohttp", "asyncio"),
    ("asgi", "asyncio"),
]


class Level(IntEnum):
    """Number whose `str` is its name on Python 3.10."""

    ADMIN = 3


class Hostile:
    """Value whose methods raise."""

    def __bool__(self) -> bool:
        raise LookupError("canary")

    def __str__(self) -> str:
        raise LookupError("canary")


def raises(error: Exception) -> Callable[..., Any]:
    def hook_of_a_request(request: Any) -> Any:
        raise error

    return hook_of_a_request


@pytest.fixture(params=FRAMEWORKS, ids="-".join)
def framework_and_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def anyio_backend(framework_and_backend: tuple[str, str]) -> Any:
    return framework_and_backend[1]


@pytest.fixture
def framework(framework_and_backend: tuple[str, str]) -> str:
    return framework_and_backend[0]


async def visit(framework: str, emulator: Emulator, path: str = "/", **options: Any) -> Any:
    """Request a page twice. Return the last response, after the client has delivered."""
    client, headers = options.pop("client", {}), options.pop("headers", {})

    def make() -> AsyncMixpanel:
        return emulator.client(**{"id_merge": emulator.id_merge, **client})

    async with serving(framework, make, track_requests="Request", **options) as served, served.browser() as browser:
        for _ in range(2):
            response = await browser.get(path, headers=headers)
            assert response.status_code == 200, response.text
    return response


USERS: list[tuple[str, object, str | None]] = [
    ("int", 7, "7"),
    ("large int", 2**80, str(2**80)),
    ("UUID", USER, str(USER)),
    ("IntEnum", Level.ADMIN, "3"),
    ("text", "maya", "maya"),
    ("None", None, None),
    ("no text", "", None),
    ("bool", True, None),
    ("float", 7.0, None),
    ("bytes", b"maya", None),
    ("tuple", (7,), None),
    ("hostile object", Hostile(), None),
    ("placeholder", "null", None),
    ("blank text", "  ", None),
    ("device id", "$device:7", None),
    ("text that is not UTF-8", "\ud800", None),
]


@pytest.mark.parametrize(("value", "user"), [case[1:] for case in USERS], ids=[case[0] for case in USERS])
async def test_every_result_of_user_id_keeps_the_page(
    framework: str, value: object, user: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    def dependency() -> Any:
        return value

    emulator = Emulator(IdMerge.SIMPLIFIED)
    user_id = dependency if framework == "fastapi" else lambda request: value
    response = await visit(framework, emulator, user_id=user_id)
    assert response.json()["user"] == user
    assert_tracked(emulator, "Request", times=2, properties={"$user_id": user} if user else None)
    is_refused = user is None and value not in {None, ""}
    assert len([record for record in caplog.records if "without its user" in record.message]) == int(is_refused)


HOOKS: dict[str, tuple[dict[str, Any], int, int]] = {
    # Options, tracked requests and log lines.
    "user_id raises": ({"user_id": raises(LookupError("canary"))}, 2, 1),
    "user_id raises a response": ({"user_id": raises(HTTPException(401))}, 2, 1),
    "consent raises": ({"consent": raises(LookupError("canary"))}, 0, 1),
    "consent raises a response": ({"consent": raises(HTTPException(401))}, 0, 1),
    "consent returns text": ({"consent": lambda request: "no"}, 0, 1),
    "consent returns a hostile object": ({"consent": lambda request: Hostile()}, 0, 1),
    "consent returns None": ({"consent": lambda request: None}, 0, 0),
    "consent returns True": ({"consent": lambda request: True}, 2, 0),
}


@pytest.mark.parametrize(("options", "events", "lines"), HOOKS.values(), ids=HOOKS)
async def test_failing_functions_of_the_app_keep_the_page(
    framework: str, options: dict[str, Any], events: int, lines: int, caplog: pytest.LogCaptureFixture
) -> None:
    if framework == "fastapi" and "user_id" in options:
        # FastAPI itself calls the dependency.
        return
    emulator = Emulator(IdMerge.SIMPLIFIED)
    headers = {"Cookie": f"mp_visitor={VISITOR}; mp_visitor_user=x"}
    response = await visit(framework, emulator, headers=headers, **options)
    assert len(emulator.events("Request")) == events
    assert len([record for record in caplog.records if record.name == "mixpanel_async"]) == lines
    assert "canary" not in caplog.text
    if lines:
        # After a failure, the visitor must not become another one.
        assert "set-cookie" not in response.headers


BROWSERS: dict[str, dict[str, str]] = {
    "broken cookies": {"Cookie": 'mp_visitor="\\; =; ;;=x; mp_visitor_user="'},
    "cookie without a name": {"Cookie": "=x; a b=c; [=]; mp_visitor"},
    "link without a device": {"Cookie": "mp_visitor_user=abc"},
    "link of any text": {"Cookie": f"mp_visitor={VISITOR}; mp_visitor_user=\u00ff" + "x" * 3000},
    "device of another form": {"Cookie": "mp_visitor=7; mp_visitor_user=7"},
    "odd addresses": {"X-Forwarded-For": ",,[::1, 300.1.1.1, x", "X-Forwarded-Proto": ",", "Referer": "http://[::1"},
    "odd texts": {"User-Agent": "\u00ff" * 5000, "Referer": "http://\u00ff:99999999/"},
}


@pytest.mark.parametrize("path", ["/items/%ff%00%0a", "/signin/maya?new"])
@pytest.mark.parametrize("headers", BROWSERS.values(), ids=BROWSERS)
async def test_every_request_of_a_browser_is_answered(framework: str, headers: dict[str, str], path: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    await visit(framework, emulator, path, headers=encoded, trusted_proxies=1)
    assert len(emulator.events("Request")) == 2


CLIENTS: dict[str, dict[str, Any]] = {
    "full queue": {"overflow": Overflow.RAISE, "batching": BatchPolicy(max_pending_events=1, linger=3600.0)},
    "queue that waits": {
        "overflow": Overflow.WAIT,
        "batching": BatchPolicy(max_pending_events=1, linger=3600.0, wait_timeout=60.0),
    },
    "hook that drops": {"before_send": lambda message: None},
}


@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
async def test_sign_in_and_tracked_requests_survive_the_queue(framework: str, client: dict[str, Any]) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(503, times=100_000)
    quick = {**client, "shutdown_timeout": 0.1}
    await visit(framework, emulator, "/signin/maya?new", client=quick, sign_in_timeout=0.05)


async def test_sign_in_survives_an_outage_and_is_delivered_afterwards(framework: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.break_next("hang", times=1)
    await visit(framework, emulator, "/signin/maya?new", sign_in_timeout=0.05)
    assert "maya" in emulator.cluster("maya")
    assert len(emulator.cluster("maya")) == 2
    assert_tracked(emulator, "Signed up", distinct_id="maya", times=2)


async def test_requests_after_shutdown_are_answered(framework: str) -> None:
    """A server may finish requests after the app's lifespan has ended."""
    if framework == "aiohttp":
        # The test server of aiohttp ends with the app.
        return
    emulator = Emulator(IdMerge.SIMPLIFIED)
    client = emulator.client(id_merge=IdMerge.SIMPLIFIED)
    async with serving(framework, client, track_requests="Request") as served:  # type: ignore[arg-type]
        browser = served.browser()
    async with browser:
        assert (await browser.get("/signout")).status_code == 200
        assert (await browser.get("/signin/maya")).status_code == 200
