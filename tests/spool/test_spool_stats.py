"""Statistics for monitoring: age of the oldest pending record, size of the spool file and its dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from simulated import emulator_client_in

from mixpanel_async import BatchPolicy, SqliteSpool
from mixpanel_async._runtime.environment import Environment, real_environment
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio

LATER = BatchPolicy(linger=3600.0)
AT_ONCE = BatchPolicy(linger=0.0)


class Clock:
    """Real clocks that a test sets forward."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def environment(self) -> Environment:
        return replace(
            real_environment(),
            wall_time=lambda: time.time() + self.ahead,
            monotonic=lambda: time.monotonic() + self.ahead,
        )


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  a thread changes the condition
            await anyio.sleep(0.001)


async def test_oldest_age_is_that_of_the_oldest_pending_record() -> None:
    clock = Clock()
    async with emulator_client_in(clock.environment(), Emulator(), batching=LATER) as mp:
        assert mp.stats().oldest_age == 0.0
        await mp.track("user", "Event")
        assert mp.stats().pending == 1
        clock.ahead += 100.0
        await mp.people_set("user", {"plan": "free"})
        assert 100.0 <= mp.stats().oldest_age < 110.0
        await mp.flush()
        assert mp.stats().oldest_age == 0.0


async def test_oldest_age_counts_records_in_backoff() -> None:
    clock, emulator = Clock(), Emulator()
    async with emulator_client_in(clock.environment(), emulator, batching=AT_ONCE) as mp:
        emulator.fail_next(status=503, times=1)
        await mp.track("user", "Event")
        await until(lambda: mp.stats().retries or mp.stats().last_error)
        clock.ahead += 1.0
        assert mp.stats().oldest_age >= 1.0
        await mp.flush()


async def test_recovered_records_have_their_own_age(tmp_path: Path) -> None:
    spool, emulator = SqliteSpool(tmp_path / "spool.db"), Emulator()
    emulator.fail_next(status=503, times=1000)
    async with emulator.client(spool=spool, shutdown_timeout=0.0) as mp:
        await mp.track("user", "Event")
        await mp.people_set("user", {"plan": "free"})
    async with emulator_client_in(Clock(1_000.0).environment(), emulator, spool=spool, shutdown_timeout=0.0) as mp:
        await mp.track("user", "Event")
        await until(lambda: mp.stats().oldest_age > 900.0)
        assert 1_000.0 <= mp.stats().oldest_age < 1_030.0


async def test_size_and_dead_letters_of_the_spool_are_counted(tmp_path: Path) -> None:
    spool, emulator = SqliteSpool(tmp_path / "spool.db"), Emulator()
    async with emulator.client(spool=spool) as mp:
        emulator.fail_next(status=400, times=1)
        await mp.track("user", "Event")
        assert mp.stats().spool_bytes > 0
        assert (await mp.flush()).failed == 1
        await until(lambda: mp.stats().dead_letters == 1)
    async with emulator.client(spool=spool) as mp:
        assert (mp.stats().dead_letters, mp.stats().spool_bytes > 0) == (1, True)
    async with emulator.client() as mp:
        assert (mp.stats().dead_letters, mp.stats().spool_bytes) == (0, 0)
