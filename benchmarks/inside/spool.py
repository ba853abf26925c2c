"""`track()` with a spool: on disk before it returns. The process keeps to one core."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from ..event import NAME, TOKEN, distinct_id, properties
from .loops import pin_to_one_core, run


def measure(origin: str, path: str, events: int, callers: int, rate: int) -> dict[str, float]:
    """Seconds until every event was on disk, and delivered; and how long each call took.

    Args:
        origin: the server.
        path: where the spool goes.
        events: how many.
        callers: coroutines that track one event after the other.
        rate: events a second, each from a task of its own; 0 lets the callers go as fast as they can.
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
