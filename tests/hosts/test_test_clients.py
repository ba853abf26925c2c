"""Apps under test clients: the recipes of the guide of testing, and other ways to call an app from a test."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import anyio.to_thread
import httpx
import pytest
from fastapi import FastAPI

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.fastapi import MixpanelIntegration

with warnings.catch_warnings():
    # It prefers another HTTP library, and works with this one.
    warnings.simplefilter("ignore", UserWarning)
    from starlette.testclient import TestClient

# Seconds for one request. The client waits for 0.5 seconds before it takes over from a loop that does not respond.
FAST: Final = 0.4
PATHS: Final = ("/tracks", "/aliases", "/plain")


def app_of(mp: AsyncMixpanel) -> FastAPI:
    app = FastAPI()

    @app.get("/tracks")
    async def tracks() -> None:
        await mp.track("user", "Event", {"path": "/tracks"})

    @app.get("/aliases")
    async def aliases() -> None:
        await mp.alias("new", "user")

    @app.get("/plain")
    def plain() -> None:
        mp.track_nowait("user", "Event", {"path": "/plain"})

    return app


@pytest.fixture(params=["in-process", "served"])
def emulated(request: pytest.FixtureRequest) -> Iterator[tuple[Emulator, AsyncMixpanel]]:
    emulator = Emulator(IdMerge.ORIGINAL)
    if request.param == "in-process":
        yield emulator, emulator.client(id_merge=IdMerge.ORIGINAL)
        return
    with emulator.serve() as server:
        yield emulator, AsyncMixpanel("token", api_host=server.url, id_merge=IdMerge.ORIGINAL)


@contextmanager
def fast() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < FAST


def paths_of(emulator: Emulator) -> list[str]:
    return [event["properties"]["path"] for event in emulator.events("Event")]


def test_plain_test_client_delivers_with_each_request(emulated: tuple[Emulator, AsyncMixpanel]) -> None:
    """Each request has an event loop, which delivers before it ends."""
    emulator, mp = emulated
    client = TestClient(app_of(mp))
    client.get("/tracks")
    emulator.reset()
    for number, path in enumerate(["/tracks", "/aliases", "/tracks"]):
        with fast():
            assert client.get(path).status_code == 200
        assert mp.stats().pending == 0
        assert len(emulator.requests()) == number + 1
    assert paths_of(emulator) == ["/tracks", "/tracks"]
    assert emulator.cluster("new") == {"new", "user"}
    asyncio.run(mp.aclose())


def test_entered_test_client_flushes_by_its_portal(emulated: tuple[Emulator, AsyncMixpanel]) -> None:
    emulator, mp = emulated
    with TestClient(app_of(mp)) as client:
        for path in PATHS:
            assert client.get(path).status_code == 200
        assert client.portal is not None
        with fast():
            client.portal.call(mp.flush)
        assert sorted(paths_of(emulator)) == ["/plain", "/tracks"]
        client.get("/tracks")
        client.portal.call(mp.aclose)
    assert len(paths_of(emulator)) == 3


def test_integration_delivers_at_the_end_of_the_block(emulated: tuple[Emulator, AsyncMixpanel]) -> None:
    emulator, mp = emulated
    mixpanel = MixpanelIntegration(mp)
    app = FastAPI(lifespan=mixpanel.lifespan)
    app.add_middleware(mixpanel.middleware)

    @app.get("/")
    async def home() -> None:
        await mp.track("user", "Event", {"path": "/"})

    with TestClient(app) as client:
        assert client.get("/").status_code == 200
    assert paths_of(emulator) == ["/"]


async def call_all(app: FastAPI, emulator: Emulator, mp: AsyncMixpanel) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app.example") as client:
        for path in PATHS:
            with fast():
                assert (await client.get(path)).status_code == 200
        with fast():
            await mp.flush()
    assert sorted(paths_of(emulator)) == ["/plain", "/tracks"]


@pytest.mark.anyio
async def test_asgi_transport_in_an_async_test(emulated: tuple[Emulator, AsyncMixpanel]) -> None:
    emulator, mp = emulated
    app = app_of(mp)
    await anyio.to_thread.run_sync(import_once)
    await mp.track("user", "Before")
    await call_all(app, emulator, mp)
    await mp.aclose()


def import_once() -> None:
    """Import what the first request of an app imports."""
    TestClient(FastAPI()).get("/")


@pytest.mark.asyncio
async def test_test_client_in_a_thread_of_an_async_test(emulated: tuple[Emulator, AsyncMixpanel]) -> None:
    emulator, mp = emulated
    client = TestClient(app_of(mp))
    await mp.track("user", "Before")
    await asyncio.to_thread(import_once)
    for path in PATHS:
        with fast():
            assert (await asyncio.to_thread(client.get, path)).status_code == 200
    with fast():
        await mp.flush()
    assert sorted(paths_of(emulator)) == ["/plain", "/tracks"]
    await mp.aclose()


@pytest.mark.asyncio
@pytest.mark.parametrize("is_entered", [True, False], ids=["entered", "plain"])
async def test_test_client_that_blocks_an_async_test(
    emulated: tuple[Emulator, AsyncMixpanel], *, is_entered: bool
) -> None:
    """No request fails. The first call that awaits a response waits until the client takes over."""
    emulator, mp = emulated
    await mp.track("user", "Before")
    client: Any = TestClient(app_of(mp))
    if is_entered:
        with client:
            answers = [client.get(path).status_code for path in PATHS]
    else:
        answers = [client.get(path).status_code for path in PATHS]
    assert answers == [200, 200, 200]
    with fast():
        await mp.flush()
    assert sorted(paths_of(emulator)) == ["/plain", "/tracks"]
    assert len(emulator.events("Before")) == 1
    await mp.aclose()
