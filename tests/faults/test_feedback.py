"""Callbacks that track records, which cause the next call of the callback."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow, RetryPolicy
from mixpanel_async.emulator import Emulator

SECONDS = 1.5
# Pauses of 0.05, 0.1, 0.2, 0.4 and 0.8 s.
MAX_CALLS = 12


class Proxy:
    """Client that is set after its callbacks were made."""

    client: AsyncMixpanel

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)


def on_drop(mp: Any, calls: list[object]) -> dict[str, Any]:
    def callback(*args: object) -> None:
        calls.append(args)
        mp.track_nowait("user", "Lost", {"a": 1})

    return {"on_drop": callback}


def on_drop_again(mp: Any, calls: list[object]) -> dict[str, Any]:
    def callback(records: list[Any], _: object) -> None:
        calls.append(records)
        for record in records:
            mp.track_nowait("user", "Again", record.payload["properties"])

    return {"on_drop": callback}


def on_drop_coroutine(mp: Any, calls: list[object]) -> dict[str, Any]:
    async def callback(*args: object) -> None:
        calls.append(args)
        await mp.track("user", "Lost", {"a": 1})
        await mp.people_increment("user", {"lost": 1})

    return {"on_drop": callback}


def on_drop_flush(mp: Any, calls: list[object]) -> dict[str, Any]:
    async def callback(*args: object) -> None:
        calls.append(args)
        await mp.track("user", "Lost", {"a": 1})
        await mp.flush(0.01)

    return {"on_drop": callback}


def on_delivered(mp: Any, calls: list[object]) -> dict[str, Any]:
    def callback(*args: object) -> None:
        calls.append(args)
        mp.track_nowait("user", "Delivered", {"a": 1})

    return {"on_delivered": callback}


def on_delivered_coroutine(mp: Any, calls: list[object]) -> dict[str, Any]:
    async def callback(*args: object) -> None:
        calls.append(args)
        await mp.track("user", "Delivered", {"a": 1})

    return {"on_delivered": callback}


def on_delivered_flush(mp: Any, calls: list[object]) -> dict[str, Any]:
    async def callback(*args: object) -> None:
        calls.append(args)
        await mp.track("user", "Delivered", {"a": 1})
        await mp.flush()

    return {"on_delivered": callback}


def on_delivered_task(mp: Any, calls: list[object]) -> dict[str, Any]:
    async def callback(*args: object) -> None:
        calls.append(args)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.track, "user", "Delivered", {"a": 1})

    return {"on_delivered": callback}


SHAPES = {
    "on_drop": (on_drop, on_drop_again, on_drop_coroutine, on_drop_flush),
    "on_delivered": (on_delivered, on_delivered_coroutine, on_delivered_flush, on_delivered_task),
}


async def feed_back(shape: Callable[..., Any], *, is_loss: bool) -> None:
    """Use a client whose callback tracks, and check how often it is called."""
    emulator, calls, proxy = Emulator(), list[object](), Proxy()
    if is_loss:
        emulator.fail_next(503, times=1_000_000)
    proxy.client = mp = emulator.client(
        batching=BatchPolicy(linger=0.0, max_pending_events=20),
        overflow=Overflow.DROP_OLDEST,
        retry=RetryPolicy(initial=0.05, maximum=0.05),
        shutdown_timeout=0.1,
        **shape(proxy, calls),
    )
    async with mp:
        for number in range(50 if is_loss else 1):
            await mp.track("user", "Event", {"n": number})
        await anyio.sleep(SECONDS)
        assert 1 <= len(calls) <= MAX_CALLS, shape.__name__
    stats = mp.stats()
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending


@pytest.mark.anyio
@pytest.mark.parametrize("callback", SHAPES)
async def test_callback_that_feeds_back_is_called_at_a_bounded_rate(callback: str) -> None:
    began = time.process_time()
    async with anyio.create_task_group() as tasks:
        for shape in SHAPES[callback]:
            tasks.start_soon(partial(feed_back, shape, is_loss=callback == "on_drop"))
    # All of them together.
    assert time.process_time() - began < SECONDS / 2


@pytest.mark.anyio
async def test_callback_that_does_not_track_is_not_slowed_down() -> None:
    emulator, calls = Emulator(), list[object]()
    async with emulator.client(on_delivered=calls.append) as mp:
        with anyio.fail_after(10):
            for number in range(100):
                await mp.track("user", "Event", {"n": number})
                await mp.flush()
        assert len(calls) == 100


@pytest.mark.anyio
async def test_deliveries_of_other_records_do_not_pile_up() -> None:
    emulator, calls, proxy = Emulator(), list[object](), Proxy()
    proxy.client = mp = emulator.client(batching=BatchPolicy(max_events=1), **on_delivered(proxy, calls))
    async with mp:
        for number in range(40):
            await mp.track("user", "Event", {"n": number})
        with anyio.fail_after(5):
            while len(calls) < 40:
                await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
async def test_log_handler_that_tracks_causes_no_loop() -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=1_000_000)
    mp = emulator.client(
        batching=BatchPolicy(linger=0.0, max_pending_events=20), retry=RetryPolicy(initial=0.05, maximum=0.05),
        shutdown_timeout=0.1,
    )  # fmt: skip
    lines: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record)
            mp.track_nowait("user", "Log line", {"text": record.getMessage()})

    logger, handler = logging.getLogger("mixpanel_async"), Handler()
    logger.addHandler(handler)
    try:
        for number in range(50):
            await mp.track("user", "Event", {"n": number})
        await anyio.sleep(0.5)
        assert len(lines) <= MAX_CALLS
    finally:
        logger.removeHandler(handler)
    await mp.aclose()
