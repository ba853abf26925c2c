"""Workers that take jobs from a queue, track each, and acknowledge them once Mixpanel has their events.

    MIXPANEL_TOKEN=... python examples/worker.py

All workers share one client, which holds at most 1,000 events: when Mixpanel is slower than the queue, `Overflow.WAIT`
makes them wait instead of dropping. Jobs are acknowledged after their events have been flushed and the client has lost
none; otherwise the program ends, and the queue hands them out again. Each event carries the job's own id as
`insert_id`, so that a job handed out twice is counted once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timezone

import anyio

from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow

WORKERS = 4
BATCH = 500
PENDING = BatchPolicy(max_pending_events=1_000)


@dataclass(frozen=True)
class Job:
    """One piece of work, as the queue hands it out."""

    id: str
    user: str
    finished: datetime
    seconds: float


async def work(jobs: asyncio.Queue[Job], mp: AsyncMixpanel) -> None:
    """Track jobs batch by batch, until cancelled."""
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


async def main() -> None:
    jobs: asyncio.Queue[Job] = asyncio.Queue()
    for number in range(10_000):
        jobs.put_nowait(Job(f"job-{number}", f"user-{number % 50}", datetime.now(timezone.utc), 0.2))
    async with AsyncMixpanel.from_env(batching=PENDING, overflow=Overflow.WAIT) as mp:
        # The task group ends the wait when a worker fails.
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(work, jobs, mp)
            await jobs.join()
            tasks.cancel_scope.cancel()
        print(f"{mp.stats().delivered:,} events delivered")


if __name__ == "__main__":
    asyncio.run(main())
