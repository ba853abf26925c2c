"""Spool section: `track()` with a spool in a process pinned to one core."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ..event import NAME, TOKEN, distinct_id, properties
from .loops import pin_to_one_core, run


def measure(origin: str, path: str, events: int, callers: int, rate: int) -> dict[str, float]:
    """Return CPU time, seconds until all events were on disk and delivered, and the 99th percentile of the calls.

    Args:
        origin: origin of the server.
        path: folder of the spool.
        events: number of events.
        callers: number of coroutines that each track events one after another.
        rate: events per second, each from a new task; 0 lets the callers track without pause.
    """
    pin_to_one_core()
    return run(_measured(origin, path, events, callers, rate))


async def _measured(origin: str, path: str, events: int, callers: int, rate: int) -> dict[str, float]:
    from mixpanel_async import AsyncMixpanel, SqliteSpool

    took: list[float] = []
    spool = SqliteSpool(Path(path) / "spool.sqlite3")
    async with AsyncMixpanel(TOKEN, api_host=origin, spool=spool, shutdown_timeout=120.0) as client:

        async def one(number: int) -> None:
            began = time.perf_counter()
            await client.track(distinct_id(number), NAME, properties(number))
            took.append(time.perf_counter() - began)

        async def caller(first: int) -> None:
            for number in range(first, events, callers):
                await one(number)

        await asyncio.gather(*map(one, range(10)))
        await client.flush()
        took.clear()
        cpu, began = time.process_time(), time.perf_counter()
        if rate:
            tasks = []
            for number in range(events):
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
                tasks.append(asyncio.create_task(one(number)))
            await asyncio.gather(*tasks)
        else:
            await asyncio.gather(*map(caller, range(callers)))
        tracked = time.perf_counter() - began
        await client.flush()
        cpu, delivered = time.process_time() - cpu, time.perf_counter() - began
    took.sort()
    return {"cpu": cpu, "tracked": tracked, "delivered": delivered, "p99": took[int(0.99 * (len(took) - 1))]}
