"""Tracking from signal handlers, hooks and log handlers while the client is busy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from typing import Any

import pytest

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
)
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async.emulator import Emulator

with_timers = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no interval timers here")


@contextlib.contextmanager
def alarms(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Install a handler for the timers that the block sets."""
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@with_timers
def test_tracking_in_a_signal_handler_keeps_the_counters_consistent() -> None:
    emulator = Emulator()
    mp = emulator.client()
    handled = 0

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        with contextlib.suppress(ClientClosedError):
            mp.track_nowait("signal", "Signal")

    async def main() -> None:
        async with mp:
            for _ in range(30_000):
                await mp.track("user", "Event")

    with alarms(handler):
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        asyncio.run(main())
    stats = mp.stats()
    assert handled
    assert stats.pending == 0
    # Tracking during one of the client's own requests while it closes is counted instead of rejected.
    assert stats.delivered == stats.accepted - stats.losses.get("closed", 0) == len(emulator.events())
    assert set(stats.losses) <= {"closed"}


@with_timers
@pytest.mark.parametrize("is_closing", [True, False])
def test_nested_signal_handlers_are_all_counted(*, is_closing: bool) -> None:
    """Signals arrive during a request, faster than they are handled. A closed client counts rejected records."""
    emulator = Emulator()
    handled = depth = 0

    def more() -> None:
        if handled < 500:
            signal.setitimer(signal.ITIMER_REAL, 0.00002)

    def handler(number: int, frame: object) -> None:
        nonlocal handled, depth
        handled += 1
        depth += 1
        if depth < 4:
            more()
        mp.track_nowait("signal", "Signal")
        depth -= 1
        if depth == 3:
            more()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while handled < 500:
            more()
        await emulator.app(scope, receive, send)

    mp = AsyncMixpanel(
        "token",
        http_client=asgi_client(app),
        batching=BatchPolicy(linger=3600.0),
        before_send=lambda message: message if is_closing or message["event"] != "Signal" else None,
    )

    async def main() -> None:
        await mp.track("user", "Event")
        if not is_closing:
            await mp.flush()
        await mp.aclose()

    with alarms(handler):
        asyncio.run(main())
    stats = mp.stats()
    assert (handled, stats.accepted, stats.delivered) == (500, 501, 1)
    assert stats.losses == {"closed" if is_closing else "before_send": 500}


@with_timers
def test_statistics_interrupted_by_a_signal_are_consistent() -> None:
    emulator = Emulator()
    mp = emulator.client(
        batching=BatchPolicy(linger=3600.0),
        before_send=lambda message: None if message["properties"]["number"] % 2 else message,
    )
    handled = 0

    def more() -> None:
        if handled < 1_000:
            signal.setitimer(signal.ITIMER_REAL, 0.00005)

    def handler(number: int, frame: object) -> None:
        nonlocal handled
        handled += 1
        mp.track_nowait("signal", "Signal", {"number": handled})
        more()

    async def main() -> None:
        more()
        tracked = 0
        while handled < 1_000:
            before = handled
            await mp.track("user", "Event", {"number": 2})
            tracked += 1
            stats = mp.stats()
            assert stats.accepted == stats.dropped + stats.pending
            assert stats.losses.get("before_send", 0) == stats.dropped
            assert tracked + before <= stats.accepted <= tracked + handled
        await mp.aclose()

    with alarms(handler):
        asyncio.run(main())


@pytest.mark.anyio
async def test_tracking_in_a_hook_during_close_ends_no_request() -> None:
    emulator = Emulator()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        mp.track_nowait("hook", "Of the hook")
        await emulator.app(scope, receive, send)

    mp = AsyncMixpanel(
        "token",
        http_client=asgi_client(app),
        batching=BatchPolicy(linger=3600.0),
        before_send=lambda message: None if message["event"] == "Of the hook" else message,
    )
    await mp.track("user", "Event")
    assert (await mp.aclose()).delivered == 1
    assert mp.stats().losses == {"before_send": 1}


@pytest.mark.anyio
async def test_tracking_in_a_log_handler_does_not_recurse(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    mp = emulator.client(batching=BatchPolicy(max_pending_events=1, linger=3600.0))

    class Tracking(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with contextlib.suppress(ClientClosedError):
                mp.track_nowait("log", "Logged")

    handler = Tracking()
    logger = logging.getLogger("mixpanel_async")
    logger.addHandler(handler)
    try:
        for _ in range(10):
            mp.track_nowait("user", "Event")
        await mp.aclose()
    finally:
        logger.removeHandler(handler)
    await mp.aclose()
    assert mp.stats().losses["queue_full"] >= 9


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no such signals here")
@pytest.mark.anyio
async def test_signal_during_the_conversion_of_a_value_reaches_the_caller() -> None:
    class StopNow(BaseException):
        pass

    class Zone(tzinfo):
        def utcoffset(self, _moment: datetime | None) -> timedelta:
            signal.raise_signal(signal.SIGUSR1)
            return timedelta(0)

        def dst(self, _moment: datetime | None) -> None:
            return None

        def tzname(self, _moment: datetime | None) -> None:
            return None

    def stop(*_: object) -> None:
        raise StopNow

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        async with Emulator().client() as mp:
            await mp.track("user", "Event")
            with pytest.raises(StopNow):
                await mp.track("user", "Event", {"at": datetime(2026, 8, 21, tzinfo=Zone())})
            assert mp.stats().accepted == 1
    finally:
        signal.signal(signal.SIGUSR1, before)
