"""Each lost record is part of the number in a log line, once per episode, except losses that were asked for."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import anyio
import pytest
from simulated import emulator_client_in

from mixpanel_async import (
    AsyncMixpanel,
    AuthenticationError,
    BatchPolicy,
    DropReason,
    RetryPolicy,
    SqliteSpool,
)
from mixpanel_async._runtime.environment import real_environment
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio

DELIBERATE = {DropReason.BEFORE_SEND, DropReason.PURGED}


def lines(caplog: pytest.LogCaptureFixture, *events: str) -> list[dict[str, Any]]:
    """Return the data of these log events, or of all."""
    data: list[dict[str, Any]] = [record.mixpanel for record in caplog.records if hasattr(record, "mixpanel")]
    return [one for one in data if not events or one["event"] in events]


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition."""
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  a thread changes the condition
            await anyio.sleep(0.001)


async def lose(emulator: Emulator, events: int = 2, **options: Any) -> AsyncMixpanel:
    async with emulator.client(batching=BatchPolicy(linger=3600.0), **options) as mp:
        for number in range(events):
            await mp.track("user", "Event", {"number": number})
        await mp.flush()
    return mp


async def lose_to_a_full_queue(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    async with emulator.client(batching=BatchPolicy(linger=3600.0, max_pending_events=2)) as mp:
        for number in range(5):
            await mp.track("user", "Event", {"number": number})
    return mp


async def lose_to_a_full_disk(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    spool = SqliteSpool(tmp_path / "spool.db", max_bytes=1_000_000)
    text = {"text": "x" * 40_000}
    async with (
        emulator.client(spool=spool, batching=BatchPolicy(linger=3600.0)) as mp,
        emulator.client(spool=spool, batching=BatchPolicy(linger=3600.0)) as other,
    ):
        for _ in range(19):
            other.track_nowait("other", "Event", text)
        await other.track("other", "Event", text)
        # One record: after a commit, the first client would know how much of the file the other one uses.
        mp.track_nowait("user", "Event", {"text": "x" * 700_000})
        await until(lambda: mp.stats().losses)
    return mp


async def lose_to_a_failing_disk(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    path = tmp_path / "my.env"
    path.write_bytes(b"KEY=value\n")
    mp = emulator.client(spool=SqliteSpool(path), shutdown_timeout=0.0)
    mp.track_nowait("user", "Event")
    await until(lambda: mp.stats().last_error)
    await mp.aclose()
    return mp


async def purge(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    spool = SqliteSpool(tmp_path / "spool.db")
    policy = BatchPolicy(linger=0.0, max_pending_events=2)
    async with emulator.client(spool=spool, batching=policy, retry=RetryPolicy(initial=0.01)) as mp:
        emulator.fail_next(status=503, times=1000)
        # One is in memory, the others are only on disk.
        for _ in range(4):
            await mp.track("user", "Event")
        assert spool.purge(distinct_id="user").waiting == 4
        emulator.stop_faults()
        await mp.flush()
    return mp


async def lose_at_the_end(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    emulator.fail_next(status=503, times=100)
    return await lose(emulator, 3, shutdown_timeout=0.02)


async def lose_old_events(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    days = 0
    environment = replace(
        real_environment(),
        wall_time=lambda: time.time() + days * 86_400.0,
        monotonic=lambda: time.monotonic() + days * 86_400.0,
    )
    emulator.fail_next(status=503, times=1)
    async with emulator_client_in(environment, emulator, batching=BatchPolicy(linger=0.0)) as mp:
        await mp.track("user", "Event")
        await until(lambda: mp.stats().last_error)
        days = 6
        await mp.flush()
    return mp


async def lose_rejected(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    emulator.fail_next(status=400, times=3)
    return await lose(emulator)


async def lose_large(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    emulator.fail_next(status=413, times=3)
    return await lose(emulator)


async def lose_after_attempts(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    emulator.fail_next(status=503, times=1)
    return await lose(emulator, retry=RetryPolicy(attempts=1))


async def lose_invalid(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    async with emulator.client(invalid="drop") as mp:
        for _ in range(3):
            await mp.track("user", "Event", {"object": object()})
    return mp


async def lose_unauthorized(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    async with emulator.client() as mp:
        emulator.fail_next(status=401, times=1)
        with pytest.raises(AuthenticationError):
            await mp.track_immediate("user", "Event")
    return mp


async def lose_uncertain(emulator: Emulator, tmp_path: Path) -> AsyncMixpanel:
    async with emulator.client(batching=BatchPolicy(linger=3600.0)) as mp:
        emulator.fail_next(status=500, times=1)
        await mp.people_set("user", {"plan": "free"})
        for _ in range(2):
            await mp.people_increment("user", {"visits": 1})
        await mp.flush()
    return mp


def _raise(message: Any) -> Any:
    raise ValueError(message)


SCENARIOS: dict[DropReason, Callable[[Emulator, Path], Awaitable[AsyncMixpanel]]] = {
    DropReason.QUEUE_FULL: lose_to_a_full_queue,
    DropReason.SPOOL_FULL: lose_to_a_full_disk,
    DropReason.SPOOL_FAILED: lose_to_a_failing_disk,
    DropReason.PURGED: purge,
    DropReason.BEFORE_SEND: lambda emulator, _: lose(emulator, before_send=lambda message: None),
    DropReason.BEFORE_SEND_FAILED: lambda emulator, _: lose(emulator, before_send=_raise),
    DropReason.INVALID: lose_invalid,
    DropReason.CLOSED: lose_at_the_end,
    DropReason.TOO_OLD: lose_old_events,
    DropReason.REJECTED: lose_rejected,
    DropReason.TOO_LARGE: lose_large,
    DropReason.EXHAUSTED: lose_after_attempts,
    DropReason.UNAUTHORIZED: lose_unauthorized,
    DropReason.UNCERTAIN: lose_uncertain,
}


# The death of the process that sends a record is in `faults/test_killer_rows.py`, a spoiled entry of an outbox in
# `worker/test_ownership.py`.
OTHER_TESTS: Final = {DropReason.CRASHED, DropReason.SPOILED}


@pytest.mark.parametrize("reason", [reason for reason in DropReason if reason not in OTHER_TESTS])
async def test_every_loss_is_logged_with_its_number(
    reason: DropReason, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "mixpanel_async")
    mp = await SCENARIOS[reason](Emulator(), tmp_path)
    lost = mp.stats().losses
    assert lost[reason.value] >= 1
    logged: Counter[str] = Counter()
    for line in lines(caplog, "records_dropped", "records_lost"):
        logged[line["reason"]] += line["records"]
        assert line["total"] == logged[line["reason"]]
        assert line["kind"] in {"events", "people"}
    expected = {name: count for name, count in lost.items() if name not in DELIBERATE}
    assert logged == expected
    is_dropped = mp.stats().dropped > 0
    if reason not in DELIBERATE:
        (first, *_) = lines(caplog, "records_dropped" if is_dropped else "records_lost")
        assert first["reason"] == reason.value


async def test_losses_of_an_episode_are_added_up(caplog: pytest.LogCaptureFixture) -> None:
    seconds = 0.0
    environment = replace(real_environment(), monotonic=lambda: time.monotonic() + seconds)
    policy = BatchPolicy(linger=3600.0, max_pending_events=1)
    async with emulator_client_in(environment, Emulator(), batching=policy) as mp:
        for _ in range(101):
            await mp.track("user", "Event")
        assert [line["records"] for line in lines(caplog, "records_dropped")] == [1]
        seconds = 30.0
        # The next batch reports what was lost since.
        await mp.flush()
        assert [(line["records"], line["total"]) for line in lines(caplog, "records_dropped")] == [(1, 1), (99, 100)]
    assert len(lines(caplog, "records_dropped")) == 2


async def test_losses_in_several_threads_are_all_in_the_numbers(caplog: pytest.LogCaptureFixture) -> None:
    policy = BatchPolicy(linger=3600.0, max_pending_events=1)
    async with Emulator().client(batching=policy) as mp:
        mp.track_nowait("user", "Event")

        def work() -> None:
            for _ in range(500):
                mp.track_nowait("user", "Event")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
    lost = mp.stats().losses["queue_full"]
    assert lost > 1_000
    assert sum(line["records"] for line in lines(caplog, "records_dropped")) == lost


async def test_log_handler_that_raises_does_not_stop_delivery() -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError(record.getMessage())

    emulator = Emulator()
    logger, handler = logging.getLogger("mixpanel_async"), Broken()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    try:
        async with emulator.client(retry=RetryPolicy(initial=0.0, maximum=0.0)) as mp:
            emulator.fail_next(status=503, times=1)
            await mp.track("user", "Event")
            assert (await mp.flush()).delivered == 1
            await mp.track_immediate("user", "Event")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert mp.stats().delivered == len(emulator.events()) == 2
    assert mp.stats().requests == 3
