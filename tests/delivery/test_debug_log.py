"""DEBUG lines about each request, without those of the HTTP library, and log handlers that track each line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import anyio.lowlevel
import pytest

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, TransportError
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio


def sent(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Return the data of the lines about one event, after a check of the measured values."""
    found: list[dict[str, Any]] = []
    for record in caplog.records:
        data: dict[str, Any] = {**getattr(record, "mixpanel", {})}
        if data.pop("event", "") == event:
            assert record.levelno == logging.DEBUG
            assert 0 <= data.pop("milliseconds") < 20_000
            assert 0 < data.pop("bytes") < 10_000
            found.append(data)
    return found


async def test_each_attempt_of_a_batch_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mixpanel_async")
    emulator = Emulator()
    retry = RetryPolicy(initial=0.0, maximum=0.0)
    async with emulator.client(retry=retry, batching=BatchPolicy(linger=3600.0)) as mp:
        emulator.fail_next(status=503, times=1)
        for _ in range(3):
            await mp.track("private-person", "Private event", {"private": "value"})
        await mp.flush()
        emulator.drop_connections(path="/engage")
        await mp.people_set("private-person", {"private": "value"})
        await mp.flush()
    events = {"kind": "events", "records": 3}
    people = {"kind": "people", "records": 1}
    assert sent(caplog, "batch_sent") == [
        {**events, "status": 503, "attempt": 1},
        {**events, "status": 200, "attempt": 2},
        {**people, "status": None, "attempt": 1},
        {**people, "status": 200, "attempt": 2},
    ]
    assert "private" not in caplog.text.lower()
    assert "events: batch of 3 records, " in caplog.text


async def test_each_attempt_of_an_awaited_call_is_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mixpanel_async")
    emulator = Emulator()
    retry = RetryPolicy(initial=0.0, maximum=0.0, attempts=2)
    async with emulator.client(identity_retry=retry) as mp:
        emulator.fail_next(status=503, times=1)
        await mp.alias("private-user", "private-visitor")
        emulator.drop_connections(2)
        with pytest.raises(TransportError):
            await mp.alias("private-user", "private-visitor")
    assert sent(caplog, "call_sent") == [
        {"endpoint": "/track", "status": status, "attempt": attempt}
        for status, attempt in ((503, 1), (200, 2), (None, 1), (None, 2))
    ]
    assert "private" not in caplog.text


async def test_nothing_is_logged_about_requests_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mixpanel_async")
    async with Emulator().client() as mp:
        await mp.track("user", "Event")
        await mp.flush()
        await mp.alias("user", "visitor")
    assert not [record for record in caplog.records if "batch" in record.message or "/track" in record.message]


class TrackingHandler(logging.Handler):
    """Tracks an event for each log line."""

    def __init__(self, mp: AsyncMixpanel) -> None:
        super().__init__(logging.DEBUG)
        self._mp = mp
        self.lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        self._mp.track_nowait("log", "Line")


@contextlib.contextmanager
def tracking(mp: AsyncMixpanel, *names: str) -> Iterator[TrackingHandler]:
    handler = TrackingHandler(mp)
    levels = [(logger := logging.getLogger(name), logger.level) for name in names]
    for logger, _ in levels:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield handler
    finally:
        for logger, level in levels:
            logger.removeHandler(handler)
            logger.setLevel(level)


async def settle(mp: AsyncMixpanel) -> None:
    """Let everything run that is ready to run, until no further request is made."""
    requests = -1
    while requests != mp.stats().requests or mp.stats().in_flight:
        requests = mp.stats().requests
        for _ in range(200):
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("max_events", [1, 2, 2_000])
async def test_events_tracked_by_a_debug_handler_cause_no_chain_of_requests(max_events: int) -> None:
    emulator = Emulator()
    async with emulator.client(batching=BatchPolicy(max_events=max_events, linger=0.0)) as mp:
        with tracking(mp, "mixpanel_async") as handler:
            for number in range(1, 11):
                await mp.track("user", "Event")
                await settle(mp)
                assert handler.lines == number
                assert mp.stats().pending <= 1
                await mp.flush()
                await settle(mp)
            # A flush sends the event about the last request, and causes no further one.
            assert handler.lines <= 20
            assert mp.stats().requests <= 20
    assert len(emulator.events("Event")) == 10
    assert len(emulator.events("Line")) + mp.stats().losses.get("closed", 0) == handler.lines


async def test_events_about_the_lines_of_the_http_library_wait_in_full_batches() -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        batching = BatchPolicy(max_events=3, linger=0.0)
        async with AsyncMixpanel("token", api_host=server.url, batching=batching) as mp:
            with tracking(mp, "httpcore") as handler:
                await mp.track("user", "Event")
                while not mp.stats().delivered:  # noqa: ASYNC110  polled, so that no line is caused
                    await anyio.sleep(0.001)
                lines, requests = handler.lines, mp.stats().requests
                assert lines > 3
                for _ in range(20):
                    await anyio.sleep(0.005)
                assert (handler.lines, mp.stats().requests, mp.stats().pending) == (lines, requests, lines)
            assert (await mp.flush()).delivered == lines
    assert len(emulator.events()) == lines + 1


async def test_debug_handler_may_track_while_the_client_closes() -> None:
    emulator = Emulator()
    mp = emulator.client(batching=BatchPolicy(linger=3600.0))
    with tracking(mp, "mixpanel_async") as handler:
        await mp.track("user", "Event")
        await mp.aclose()
    assert handler.lines >= 1
    stats = mp.stats()
    assert stats.delivered == len(emulator.events()) == 1
    assert stats.losses["closed"] <= handler.lines
