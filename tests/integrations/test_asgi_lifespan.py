"""Lifespan of apps wrapped by the ASGI integration: with a lifespan, without one, and under servers that run none."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from lifespans import LifespanFailed, lifespan_of

from mixpanel_async import AsyncMixpanel, BatchPolicy, ConfigurationError, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.asgi import MixpanelIntegration
from mixpanel_async.testing import assert_tracked

pytestmark = pytest.mark.anyio

Make = Callable[[], AsyncMixpanel]


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def make(emulator: Emulator) -> Make:
    return lambda: emulator.client(id_merge=IdMerge.SIMPLIFIED, batching=BatchPolicy(linger=3600.0))


async def answer(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def browser_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")


def app_that(on_lifespan: Callable[[Any, Any], Any], mixpanel: MixpanelIntegration) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await on_lifespan(receive, send)
        else:
            await (await mixpanel.bound(scope)).track("Page viewed")
            await answer(send)

    return mixpanel.wrap(app)


async def raises(receive: Any, send: Any) -> None:
    raise ValueError("only http")


async def raises_after_reading(receive: Any, send: Any) -> None:
    await receive()
    raise KeyError("path")


async def returns(receive: Any, send: Any) -> None:
    await anyio.lowlevel.checkpoint()


async def answers_as_to_http(receive: Any, send: Any) -> None:
    await answer(send)


async def supports(receive: Any, send: Any) -> None:
    for phase in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{phase}"
        await send({"type": f"lifespan.{phase}.complete"})


async def supports_startup(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize(
    "on_lifespan", [raises, raises_after_reading, returns, answers_as_to_http, supports, supports_startup]
)
async def test_shutdown_delivers_with_and_without_a_lifespan_of_the_app(
    on_lifespan: Any, make: Make, emulator: Emulator
) -> None:
    app = app_that(on_lifespan, MixpanelIntegration(make))
    async with lifespan_of(app) as answers, browser_of(app) as browser:
        for _ in range(3):
            assert (await browser.get("/")).status_code == 200
        assert emulator.requests() == []
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert_tracked(emulator, "Page viewed", times=3)


async def test_records_are_delivered_before_the_last_message(make: Make, emulator: Emulator) -> None:
    mixpanel = MixpanelIntegration(make)
    delivered = []

    async def serve(receive: Any, send: Any) -> None:
        await supports(receive, send)

    app = app_that(serve, mixpanel)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def watch(message: Any) -> None:
            if message["type"] == "lifespan.shutdown.complete":
                delivered.extend(emulator.events("Page viewed"))
            await send(message)

        await app(scope, receive, watch)

    async with lifespan_of(watched), browser_of(app) as browser:
        await browser.get("/")
    assert len(delivered) == 1


async def test_failed_startup_of_the_app_is_passed_on_after_delivery(make: Make, emulator: Emulator) -> None:
    mixpanel = MixpanelIntegration(make)

    async def fails(receive: Any, send: Any) -> None:
        await receive()
        await mixpanel.client.track("app", "Began")
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    with pytest.raises(BaseException) as caught:  # noqa: PT011  anyio wraps the error in a group of the backend
        async with lifespan_of(app_that(fails, mixpanel)):
            pass
    group = caught.value
    assert isinstance(group, LifespanFailed) or isinstance(group.exceptions[0], LifespanFailed)  # type: ignore[attr-defined]
    assert_tracked(emulator, "Began")


async def test_error_of_a_running_lifespan_is_raised_after_shutdown(make: Make, emulator: Emulator) -> None:
    async def breaks(receive: Any, send: Any) -> None:
        await supports_startup(receive, send)
        raise RuntimeError("lost the database")

    app = app_that(breaks, MixpanelIntegration(make))
    answers: list[str] = []
    with pytest.raises(BaseException) as caught:  # noqa: PT011  anyio wraps the error in a group of the backend
        async with lifespan_of(app) as answers, browser_of(app) as browser:
            assert (await browser.get("/")).status_code == 200
    assert "lost the database" in repr(getattr(caught.value, "exceptions", caught.value))
    assert answers == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert_tracked(emulator, "Page viewed")


async def test_each_request_delivers_if_the_server_runs_no_lifespan(make: Make, emulator: Emulator) -> None:
    mixpanel = MixpanelIntegration(make)
    app = app_that(raises, mixpanel)
    async with browser_of(app) as browser:
        await browser.get("/")
        assert_tracked(emulator, "Page viewed")
        await browser.get("/")
        assert_tracked(emulator, "Page viewed", times=2)
    await mixpanel.client.aclose()


async def test_one_request_delivers_for_all_if_the_server_runs_no_lifespan(make: Make, emulator: Emulator) -> None:
    mixpanel = MixpanelIntegration(make)
    app = app_that(raises, mixpanel)
    async with browser_of(app) as browser, anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(browser.get, "/")
    assert_tracked(emulator, "Page viewed", times=50)
    assert len(emulator.requests()) < 25
    await mixpanel.client.aclose()


@pytest.mark.parametrize("has_lifespan", [True, False])
async def test_app_starts_without_tracking_if_the_client_cannot_be_made(
    has_lifespan: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> AsyncMixpanel:
        raise ConfigurationError("MIXPANEL_TOKEN is not set")

    app = app_that(supports, MixpanelIntegration(fails))
    with caplog.at_level(logging.ERROR, "mixpanel_async"):
        if has_lifespan:
            async with lifespan_of(app), browser_of(app) as browser:
                assert (await browser.get("/")).status_code == 200
        else:
            async with browser_of(app) as browser:
                assert (await browser.get("/")).status_code == 200
    assert [record.getMessage() for record in caplog.records] == [
        "tracking is off, because the Mixpanel client could not start: MIXPANEL_TOKEN is not set"
    ]


async def test_app_starts_without_tracking_if_the_client_cannot_start(
    make: Make, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    client = make()
    await client.aclose()
    app = app_that(supports, MixpanelIntegration(client))
    async with lifespan_of(app), browser_of(app) as browser:
        assert (await browser.get("/")).status_code == 200
    assert "tracking is off" in caplog.text
    assert emulator.events() == []


async def test_wrong_route_option_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="route must be callable"):
        MixpanelIntegration(route="/items")  # type: ignore[arg-type]


async def test_app_that_ignores_the_type_of_the_scope_tracks_only_requests(make: Make, emulator: Emulator) -> None:
    mixpanel = MixpanelIntegration(make)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (await mixpanel.bound(scope)).track("Page viewed")
        await answer(send)

    wrapped = mixpanel.wrap(app)
    async with lifespan_of(wrapped), browser_of(wrapped) as browser:
        await browser.get("/")
    assert_tracked(emulator, "Page viewed")


async def test_unwrapped_app_says_what_is_missing(make: Make) -> None:
    mixpanel = MixpanelIntegration(make)
    with pytest.raises(RuntimeError, match="lacks the Mixpanel middleware"):
        await mixpanel.bound({"type": "http", "headers": []})
