"""arq: the hooks of the guide of workers in arq's worker, with an in-memory Redis."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
from arq.connections import ArqRedis
from arq.worker import Worker
from fakeredis import FakeAsyncRedis, FakeServer

from mixpanel_async import AsyncMixpanel, BatchPolicy
from mixpanel_async.emulator import Emulator

TASKS = 12
# arq closes its Redis client with a method that redis-py has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated close:DeprecationWarning")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # arq supports no other


@pytest.fixture
async def redis(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ArqRedis]:
    async def log_nothing(*_: object) -> None:
        """Replace the log line about the server: the in-memory Redis has no command INFO."""

    monkeypatch.setattr("arq.worker.log_redis_info", log_nothing)
    pool = FakeAsyncRedis(server=FakeServer()).connection_pool
    redis = ArqRedis(connection_pool=pool)
    yield redis
    await redis.aclose()
    await pool.disconnect()


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


def hooks(emulator: Emulator) -> dict[str, Any]:
    async def startup(ctx: dict[str, Any]) -> None:
        ctx["mixpanel"] = emulator.client(batching=BatchPolicy(linger=3600.0))
        await ctx["mixpanel"].start()

    async def shutdown(ctx: dict[str, Any]) -> None:
        await ctx["mixpanel"].aclose()

    return {"on_startup": startup, "on_shutdown": shutdown}


async def work(ctx: dict[str, Any], number: int) -> None:
    mp: AsyncMixpanel = ctx["mixpanel"]
    await mp.track("user", "Worked", {"number": number})
    await mp.people_increment("user", {"jobs": 1})


async def wait_forever(ctx: dict[str, Any]) -> None:
    await ctx["mixpanel"].track("user", "Began")
    ctx["began"].set()
    await anyio.sleep_forever()


@pytest.mark.anyio
async def test_worker_delivers_before_it_ends(redis: ArqRedis, emulator: Emulator) -> None:
    for number in range(TASKS):
        await redis.enqueue_job("work", number)
    worker = Worker([work], redis_pool=redis, burst=True, handle_signals=False, poll_delay=0.01, **hooks(emulator))
    await worker.main()
    assert not emulator.events("Worked")
    await worker.close()
    assert sorted(event["properties"]["number"] for event in emulator.events("Worked")) == list(range(TASKS))
    assert (emulator.profile("user") or {})["jobs"] == TASKS


@pytest.mark.anyio
async def test_stopped_worker_delivers_what_its_cancelled_jobs_have_tracked(
    redis: ArqRedis, emulator: Emulator
) -> None:
    await redis.enqueue_job("wait_forever")
    began = anyio.Event()
    options = {"handle_signals": False, "poll_delay": 0.01, "ctx": {"began": began}, **hooks(emulator)}
    worker = Worker([wait_forever], redis_pool=redis, **options)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_until_stopped, worker)
        with anyio.fail_after(10):
            await began.wait()
        worker.handle_sig(signal.SIGTERM)
    await worker.close()
    assert len(emulator.events("Began")) == 1


async def run_until_stopped(worker: Worker) -> None:
    try:
        await worker.async_run()
    except anyio.get_cancelled_exc_class():
        # The worker cancels its own task, not the one of this test.
        return
