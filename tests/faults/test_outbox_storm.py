"""Storms: producers and workers as processes, whose parts are killed, stopped and filled while records flow.

After each storm, no event is lost, copies have equal keys, the values of each person never step back, no `$add` is
applied twice, and the counters of the queue account for every record.
"""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
from outbox_storm import Storm

pytestmark = [pytest.mark.timeout(600)]
LONG_SECONDS = 180


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def test_killed_workers_lose_nothing_and_repeat_no_add(folder: Path) -> None:
    """The workers die after Mixpanel has applied an `$add`, and before they have its response."""
    with Storm(folder, producers=1, workers=2, rates=(1_000, 80, 60), latency=0.7) as storm:
        storm.wait_until(lambda: storm.emulator.profile("count-0-0") is not None)
        storm.kill_worker(0)
        storm.kill_worker(1)
        storm.end_leases_of_the_dead()
        storm.wait_until(lambda: storm.counters().get("uncertain", 0) > 0)
        result = storm.finish()
    result.check()
    assert result.uncertain > 0
    assert result.events > 1_000


@pytest.mark.long
def test_killed_workers_lose_nothing_in_three_minutes(folder: Path) -> None:
    with Storm(folder) as storm:
        storm.run(LONG_SECONDS, 1, storm.kill_next_worker)
        result = storm.finish()
    result.check()
    assert result.workers_killed > LONG_SECONDS / 6
    assert result.uncertain > 0


@pytest.mark.long
def test_killed_redis_loses_nothing_that_it_confirmed(folder: Path) -> None:
    """Redis writes its log before it answers, and a killed process leaves the written pages to the system."""

    def harm(number: int) -> None:
        storm.redis.kill()
        time.sleep(1 + number % 3)
        storm.redis.start()

    with Storm(folder) as storm:
        storm.run(LONG_SECONDS, 12, harm)
        result = storm.finish()
    result.check()


@pytest.mark.long
def test_read_only_redis_delays_everything_and_loses_nothing(folder: Path) -> None:
    """A primary that has become a replica refuses writes until it is a primary again."""

    def harm(_: int) -> None:
        storm.redis.command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(3)
        storm.redis.command("REPLICAOF", "NO", "ONE")

    with Storm(folder) as storm:
        storm.run(LONG_SECONDS, 15, harm)
        result = storm.finish()
    result.check()


@pytest.mark.long
def test_full_redis_is_drained_by_the_workers(folder: Path) -> None:
    """Redis at `maxmemory` refuses new entries, and lets workers take, mark and settle the old ones."""

    def harm(_: int) -> None:
        storm.redis.command("CONFIG", "SET", "maxmemory", "1")
        before = storm.counters()["records"]
        time.sleep(5)
        assert storm.counters()["records"] < max(before, 1_000)
        storm.redis.command("CONFIG", "SET", "maxmemory", "0")

    with Storm(folder) as storm:
        storm.run(LONG_SECONDS, 20, harm)
        result = storm.finish()
    result.check()
    assert result.uncertain == 0


@pytest.mark.long
def test_worker_that_was_stopped_beyond_its_lease_repeats_no_add(folder: Path) -> None:
    """A process that was stopped within a request may still let `$set` step back once; see docs/guides/outbox.md."""

    def harm(number: int) -> None:
        stopped: subprocess.Popen[bytes] = storm.workers[number % len(storm.workers)]
        stopped.send_signal(signal.SIGSTOP)
        time.sleep(20)
        stopped.send_signal(signal.SIGCONT)

    with Storm(folder) as storm:
        storm.run(LONG_SECONDS, 30, harm)
        result = storm.finish()
    result.check()
