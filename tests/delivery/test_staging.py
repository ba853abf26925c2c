"""Staged events: none is lost, whatever loop or thread tracks, and the bounds hold."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import orjson
import pytest
import trio
from simulated import client_in

from mixpanel_async import AsyncMixpanel, BatchPolicy, ClientClosedError, Overflow, QueueFullError
from mixpanel_async._runtime.environment import Environment, real_environment

TOKEN = "canary-token-0123456789"
NEVER = 3600.0


def client(
    seen: list[str],
    on_request: Callable[[AsyncMixpanel], None] = lambda _: None,
    *,
    environment: Environment | None = None,
    **options: Any,
) -> Any:
    """Return a client whose requests are all accepted. The names of the received events are added to `seen`."""

    async def answer(request: httpx.Request) -> httpx.Response:
        on_request(mp)
        body = httpx.Response(200, headers=request.headers, content=request.content).content
        seen.extend(event["event"] for event in orjson.loads(body))
        return httpx.Response(200, json={"status": 1, "error": None})

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    mp = client_in(environment or real_environment(), TOKEN, http_client=http, **options)
    return mp


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_event_that_joins_the_batch_of_a_hook_is_sent_after_linger() -> None:
    seen: list[str] = []
    hooks = [lambda mp: mp.track_nowait("u", "of the hook", {"a": 1})]
    async with client(seen, lambda mp: hooks.pop()(mp) if hooks else None, batching=BatchPolicy(linger=0.05)) as mp:
        await mp.track("u", "first", {"a": 1})
        await until(lambda: "first" in seen and not mp.stats().in_flight)
        assert mp.stats().pending == 1
        await mp.track("u", "second", {"a": 1})
        await until(lambda: seen == ["first", "of the hook", "second"])


@pytest.mark.anyio
async def test_event_tracked_during_a_request_causes_no_request() -> None:
    names: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        body = httpx.Response(200, headers=request.headers, content=request.content).content
        names.extend(event["event"] for event in orjson.loads(body))
        if not mp._queue.closed:
            await mp.track("u", "inner", {"a": 1})
        return httpx.Response(200, json={"status": 1, "error": None})

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with AsyncMixpanel(TOKEN, http_client=http_client, batching=BatchPolicy(linger=0.0)) as mp:
        await mp.track("u", "outer", {"a": 1})
        await until(lambda: names and not mp.stats().in_flight)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert names == ["outer"]
        assert mp.stats().pending == 1
    assert names == ["outer", "inner"]


@pytest.mark.parametrize("first", ["asyncio", "trio"])
def test_second_trio_loop_delivers_its_events(first: str) -> None:
    seen: list[str] = []
    mp = client(seen, batching=BatchPolicy(linger=0.05))

    async def one() -> None:
        for name in ("one", "two"):
            await mp.track("u", name, {"a": 1})

    async def other() -> None:
        await mp.track("u", "three", {"a": 1})
        await until(lambda: "three" in seen)
        await mp.aclose()

    anyio.run(one, backend=first)
    trio.run(other)
    assert seen == ["one", "two", "three"]


def test_trio_loop_in_another_thread_stages_nothing() -> None:
    seen: list[str] = []
    mp = client(seen, batching=BatchPolicy(linger=NEVER))

    async def other() -> None:
        for properties in ({"a": 1}, {}):
            await mp.track("u", "other", properties)

    async def main() -> None:
        async with mp:
            await mp.track("u", "one", {"a": 1})
            await anyio.to_thread.run_sync(trio.run, other)
            assert mp.stats().pending == 3

    trio.run(main)
    assert seen == ["one", "other", "other"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_forked_child_sends_only_its_own_events(backend: str) -> None:
    seen: list[str] = []
    mp = client(seen, batching=BatchPolicy(linger=NEVER))

    async def child() -> None:
        await mp.track("u", "child", {"a": 1})
        await mp.aclose()

    for name in ("one", "two"):
        mp.track_nowait("u", name, {"a": 1})
    pid = os.fork()
    if not pid:
        try:
            anyio.run(child, backend=backend)
        finally:
            os._exit(0 if seen == ["child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    anyio.run(mp.aclose, backend=backend)
    assert seen == ["one", "two"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_forked_child_drops_staged_events_of_its_parent() -> None:
    seen: list[str] = []
    async with client(seen, batching=BatchPolicy(linger=NEVER)) as mp:
        for name in ("one", "two"):
            await mp.track("u", name, {"a": 1})
        pid = os.fork()
        if not pid:
            took = 0
            try:
                with contextlib.suppress(ClientClosedError):
                    await mp.track("u", "child", {"a": 1})
                    took = 1
                mp.track_nowait("u", "child", {"a": 1})
                took += 1
            finally:
                stats = mp.stats()
                os._exit(0 if stats.accepted == stats.pending == took > 0 else 1)
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert mp.stats().pending == 2
    assert seen == ["one", "two"]


@pytest.mark.parametrize("most", [200, 500])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_small_updates_use_room_of_staged_events(most: int) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    http = httpx.AsyncClient(transport=httpx.MockTransport(never))
    policy = BatchPolicy(linger=NEVER, max_pending_events=most)
    mp = AsyncMixpanel(TOKEN, http_client=http, overflow=Overflow.RAISE, batching=policy, shutdown_timeout=0.0)
    for name in ("one", "two"):
        await mp.track("u", name, {"a": 1})
    for _ in range(most * 3 // 4):
        await mp.people_unset("u", ["a"])
    taken = 2 + most * 3 // 4
    for _ in range(most):
        with contextlib.suppress(QueueFullError):
            await mp.track("u", "more", {"a": 1})
            taken += 1
    stats = mp.stats()
    assert stats.accepted == stats.pending == taken == most
    assert stats.losses == {}
    await mp.aclose()


@pytest.mark.parametrize("overflow", [Overflow.WAIT, Overflow.RAISE])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.anyio
async def test_events_staged_while_a_thread_updates_the_limits_fit(overflow: Overflow) -> None:
    inside, go = threading.Event(), threading.Event()
    real, seen = real_environment(), list[str]()

    def monotonic() -> float:
        if threading.current_thread().name == "producer":
            inside.set()
            go.wait(5)
        return real.monotonic()

    most, large = 13_000, {"text": "x" * 2_800}
    mp = client(
        seen,
        overflow=overflow,
        batching=BatchPolicy(linger=NEVER, max_pending_bytes=most, wait_timeout=0),
        environment=replace(real, monotonic=monotonic),
    )
    accepted = ["one", "two", "of the thread"]
    async with mp:
        for name in ("one", "two"):
            await mp.track("u", name, large)
        thread = threading.Thread(target=mp.track_nowait, args=("u", "of the thread", large), name="producer")
        thread.start()
        assert inside.wait(5)
        # The thread is between draining the staging buffer and updating its limits, and holds the lock.
        threading.Timer(0.05, go.set).start()
        for name in ("four", "five"):
            try:
                await mp.track("u", name, large)
            except QueueFullError:
                continue
            accepted.append(name)
        thread.join()
        assert mp.stats().pending_bytes <= most
    assert sorted(seen) == sorted(accepted)
    assert mp.stats().dropped == 0


@pytest.mark.anyio
@pytest.mark.parametrize("properties", [{"a": 1}, {"a": 1, "b": [{"c": [1]}]}], ids=["usual", "odd"])
async def test_traceback_of_a_full_queue_shows_no_token(properties: dict[str, Any]) -> None:
    policy = BatchPolicy(linger=NEVER, max_pending_events=1, max_events=1)
    async with client([], batching=policy, overflow=Overflow.RAISE, shutdown_timeout=0) as mp:
        with pytest.raises(QueueFullError) as caught:  # noqa: PT012  the event that does not fit depends on the size
            for _ in range(3):
                await mp.track("u", "x", properties)
        trace = caught.value.__traceback__
        shown = []
        while trace is not None:
            names = trace.tb_frame.f_locals
            shown += [name for name, value in names.items() if TOKEN in repr(value)]
            trace = trace.tb_next
        assert shown == []
