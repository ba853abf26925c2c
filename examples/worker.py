"""Workers that take jobs from queues, track each, and acknowledge them once Mixpanel has their events.

    MIXPANEL_TOKEN=... python examples/worker.py

All share one client, which holds at most 1,000 events: when Mixpanel is slower than the queue, the workers wait, and
`Overflow.WAIT` sees to it that nothing is dropped. There are two ways to acknowledge after delivery, and never before:

- In batches: jobs are acknowledged after their events have been flushed and the client has lost none; otherwise the
  program ends, and the queue hands them out again.
- One by one: `track_immediate` returns when Mixpanel has this one event, or raises, and the job goes back.

Each event carries the job's own id as `insert_id` and its own time, so that a job handed out twice is counted once.
SIGTERM ends the workers where they are: what they tracked is delivered, and what they have not acknowledged is handed
out again.
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
# Room for the batches of all workers, and for the single events beside them.
PENDING = BatchPolicy(max_pending_events=1_000)


@dataclass(frozen=True)
class Job:
    """One piece of work, as the queue hands it out."""

    id: str
    user: str
    finished: datetime
    seconds: float


async def in_batches(jobs: asyncio.Queue[Job], mp: AsyncMixpanel) -> None:
    """Track jobs batch by batch, until cancelled: many events a second."""
    while True:
        batch = [await jobs.get()]
        while len(batch) < BATCH and not jobs.empty():
            batch.append(jobs.get_nowait())
        for job in batch:
            await mp.track(job.user, "Job finished", {"seconds": job.seconds}, time=job.finished, insert_id=job.id)
        result = await mp.flush()
        stats = mp.stats()
        # What left before the flush is in no flush's result, but every loss is in the statistics.
        if result.pending or stats.losses:
            raise RuntimeError(f"{result.pending} events pending, lost {dict(stats.losses)}: {stats.last_error}")
        for _ in batch:
            jobs.task_done()


async def one_by_one(payments: asyncio.Queue[Job], mp: AsyncMixpanel) -> None:
    """Track jobs that come now and then and matter one by one, until cancelled."""
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
    # The task group ends the wait when a worker fails.
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
