"""A worker that takes jobs from a queue, tracks each, and acknowledges them once Mixpanel has their events.

    MIXPANEL_TOKEN=... python examples/worker.py

`Overflow.WAIT` holds the worker back instead of dropping when Mixpanel is slower than the queue. Jobs are acknowledged
after `flush()` reports the events of their batch as delivered; those that were not are left to the queue, which hands
them out again. Each event carries the job's own id as `insert_id`, and a job handed out twice is counted once.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timezone

import anyio

from mixpanel_async import AsyncMixpanel, Overflow

BATCH = 500


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
        if result.failed or result.pending:
            raise RuntimeError(f"{result.failed + result.pending} events were not delivered: {mp.stats().last_error}")
        for _ in batch:
            jobs.task_done()


async def main() -> None:
    jobs: asyncio.Queue[Job] = asyncio.Queue()
    for number in range(2_000):
        jobs.put_nowait(Job(f"job-{number}", f"user-{number % 50}", datetime.now(timezone.utc), 0.2))
    async with AsyncMixpanel.from_env(overflow=Overflow.WAIT) as mp:
        # The task group ends the wait when the worker fails.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, jobs, mp)
            await jobs.join()
            tasks.cancel_scope.cancel()
        print(f"{mp.stats().delivered:,} events delivered")


if __name__ == "__main__":
    asyncio.run(main())
