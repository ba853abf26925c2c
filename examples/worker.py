"""Queue workers that track each job and acknowledge it after Mixpanel has accepted its event.

    MIXPANEL_TOKEN=... python examples/worker.py

All workers share one client that holds at most 1,000 events. If Mixpanel is slower than the queue, `Overflow.WAIT`
makes the workers wait instead of dropping events. There are two ways to acknowledge a job only after delivery:

- In batches: jobs are acknowledged after their events were flushed without a loss. Otherwise the program ends, and the
  queue delivers the jobs again.
- One by one: `track_immediate` returns after Mixpanel has accepted this event. If it raises, the job is put back.

Each event has the job's id as `insert_id` and the job's time, so a job that is delivered twice is counted once. SIGTERM
stops the workers immediately: tracked events are still delivered, and unacknowledged jobs are delivered again.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from datetime import datetime, timezone

import anyio
from anyio.abc import TaskGroup

from mixpanel_async import AsyncMixpanel, BatchPolicy, MixpanelException, Overflow

WORKERS = 4
BATCH = 200
# Enough for the batches of all workers, plus single events.
PENDING = BatchPolicy(max_pending_events=1_000)


@dataclass(frozen=True)
class Job:
    """Job from the queue."""

    id: str
    user: str
    finished: datetime
    seconds: float


async def in_batches(jobs: asyncio.Queue[Job], mp: AsyncMixpanel) -> None:
    """Track jobs in batches until cancelled, for many events per second."""
    while True:
        batch = [await jobs.get()]
        while len(batch) < BATCH and not jobs.empty():
            batch.append(jobs.get_nowait())
        for job in batch:
            await mp.track(job.user, "Job finished", {"seconds": job.seconds}, time=job.finished, insert_id=job.id)
        result = await mp.flush()
        stats = mp.stats()
        # The flush result excludes batches sent before the flush, but the statistics include every loss.
        if result.pending or stats.losses:
            raise RuntimeError(f"{result.pending} events pending, lost {dict(stats.losses)}: {stats.last_error}")
        for _ in batch:
            jobs.task_done()


async def one_by_one(payments: asyncio.Queue[Job], mp: AsyncMixpanel) -> None:
    """Track infrequent, individually important jobs until cancelled."""
    while True:
        job = await payments.get()
        try:
            await mp.track_immediate(job.user, "Paid", {"job": job.id}, time=job.finished, insert_id=job.id)
        except MixpanelException:
            payments.put_nowait(job)
            await asyncio.sleep(1.0)
        payments.task_done()


async def stop_at_signal(tasks: TaskGroup) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            tasks.cancel_scope.cancel()


async def main() -> None:
    now = datetime.now(timezone.utc)
    jobs: asyncio.Queue[Job] = asyncio.Queue()
    payments: asyncio.Queue[Job] = asyncio.Queue()
    for number in range(10_000):
        jobs.put_nowait(Job(f"job-{number}", f"user-{number % 50}", now, 0.2))
    for number in range(20):
        payments.put_nowait(Job(f"payment-{number}", f"user-{number}", now, 0.0))
    # If a worker fails, the task group cancels the two `join` calls.
    async with (
        AsyncMixpanel.from_env(batching=PENDING, overflow=Overflow.WAIT) as mp,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(stop_at_signal, tasks)
        for _ in range(WORKERS):
            tasks.start_soon(in_batches, jobs, mp)
        tasks.start_soon(one_by_one, payments, mp)
        await jobs.join()
        await payments.join()
        tasks.cancel_scope.cancel()
    print(f"{mp.stats().delivered:,} events delivered")


if __name__ == "__main__":
    asyncio.run(main())
