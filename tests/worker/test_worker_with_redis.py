"""A worker at a real Redis whose data was changed by others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis_server import RedisServer
from worker_samples import TOKEN, Mixpanel, entry, events, put, set_value

from mixpanel_async.outbox import RedisOutbox
from mixpanel_async.worker import Worker

pytestmark = pytest.mark.anyio
GOOD = '{"event":"By hand","properties":{"distinct_id":"by hand"}}'


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"debug": True})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_worker_made_before_a_fork_delivers_in_each_child(redis_server: RedisServer) -> None:
    outbox, mixpanel = RedisOutbox(redis_server.url, partitions=1), Mixpanel()
    worker = Worker(outbox, TOKEN, http_client=mixpanel.client())

    async def in_child() -> None:
        await put(outbox, entry([set_value("ada", 1)], "people:0"))
        assert await worker.drain(timeout=10)
        assert worker.name == str(os.getpid())
        assert (worker.stats().delivered, len(mixpanel.updates())) == (1, 1)
        await worker.aclose()

    for _ in range(2):
        assert run_in_child(in_child) == 0


def run_in_child(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a coroutine in a forked process and return the exit status."""
    child = os.fork()
    if not child:
        status = 1
        try:
            asyncio.run(main())
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def test_worker_counts_a_removed_part_of_the_queue(redis_server: RedisServer) -> None:
    outbox, mixpanel = RedisOutbox(redis_server.url, partitions=1), Mixpanel()
    await put(outbox, *(entry([set_value("ada", number)], "people:0") for number in range(3)))
    redis_server.command("DEL", "{mixpanel}:people:0")
    async with Worker(outbox, TOKEN, http_client=mixpanel.client()) as worker:
        assert await worker.drain(timeout=10)
        stats = worker.stats()
        assert (stats.queue_losses, stats.queue_lost_records, stats.claimed) == (1, 3, 0)
        assert await worker.drain(timeout=10)
        assert (worker.stats().queue_losses, worker.stats().queue_lost_records) == (1, 3)


@pytest.mark.parametrize("at", [-1.0, -1e9, 1e20])
async def test_record_of_a_host_whose_clock_is_not_set_is_delivered(redis_server: RedisServer, at: float) -> None:
    outbox, mixpanel = RedisOutbox(redis_server.url, partitions=1), Mixpanel()
    await put(outbox, entry([set_value("ada", 1)], "people:0", at=at))
    async with Worker(outbox, TOKEN, http_client=mixpanel.client()) as worker:
        assert await worker.drain(timeout=10)
        assert worker.stats().delivered == 1


@pytest.mark.parametrize(
    "fields",
    [
        ["b", GOOD],
        ["", ""],
        ["t", "1", "n", "2", "b", GOOD],
        ["t", "1", "n", "-5", "b", GOOD],
        ["t", "1", "n", "0", "b", GOOD],
        ["t", "1", "n", "1.5", "b", GOOD],
        ["t", "1", "n", "9" * 30, "b", GOOD],
        ["t", "1", "n", "nan", "b", GOOD],
        ["t", "9" * 400, "n", "1", "b", GOOD],
        ["t", "nan", "n", "1", "b", GOOD],
        ["t", "1", "n", "1", "o", "a,,b", "b", GOOD],
        ["t", "1", "n", "1", "z", "g", "b", GOOD],
        ["t", "1", "n", "1", "b", ""],
    ],
    ids=lambda fields: " ".join(field[:9] for field in fields[:6]),
)
async def test_entry_written_by_hand_stops_nothing(redis_server: RedisServer, fields: list[str]) -> None:
    outbox, mixpanel = RedisOutbox(redis_server.url, partitions=1), Mixpanel()
    await put(outbox, entry(events(0, 1)))
    redis_server.command("XADD", "{mixpanel}:events", "*", *fields)
    await put(outbox, entry(events(1, 2)))
    async with Worker(outbox, TOKEN, http_client=mixpanel.client()) as worker:
        assert await worker.drain(timeout=10)
        stats = worker.stats()
    assert {"user-0", "user-1"} <= {*mixpanel.events}
    assert stats.claimed == stats.delivered + stats.failed
    assert stats.claimed >= 3
    async with outbox.admin() as queue:
        counted = (await queue.status()).counters
    assert counted["in"] == 2
    assert counted["out"] + counted["dead"] == stats.claimed
