"""Spool section: `track()` with a spool in a process pinned to one core."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ..event import NAME, TOKEN, distinct_id, properties
from .loops import pin_to_one_core, run

Track = Callable[[str, str, dict[str, Any]], Awaitable[None]]


def measure(origin: str, path: str, events: int, callers: int, rate: int) -> dict[str, float]:
    """Return the CPU time net of the harness, the seconds until all events were on disk and delivered, and the p99.

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

    began_cpu = time.process_time()
    await _track_all(_nothing, events, callers, rate)
    harness = time.process_time() - began_cpu
    spool = SqliteSpool(Path(path) / "spool.sqlite3")
    async with AsyncMixpanel(TOKEN, api_host=origin, spool=spool, shutdown_timeout=120.0) as client:
        await _track_all(client.track, 10, 10, 0)
        await client.flush()
        cpu, began = time.process_time(), time.perf_counter()
        took = sorted(await _track_all(client.track, events, callers, rate))
        tracked = time.perf_counter() - began
        await client.flush()
        cpu, delivered = time.process_time() - cpu, time.perf_counter() - began
    p99 = took[int(0.99 * (len(took) - 1))]
    return {"cpu": cpu - harness, "harness": harness, "tracked": tracked, "delivered": delivered, "p99": p99}


async def _track_all(track: Track, events: int, callers: int, rate: int) -> list[float]:
    """Track events, and return the seconds of each call."""
    took: list[float] = []

    async def one(number: int) -> None:
        began = time.perf_counter()
        await track(distinct_id(number), NAME, properties(number))
        took.append(time.perf_counter() - began)

    async def caller(first: int) -> None:
        for number in range(first, events, callers):
            await one(number)

    if not rate:
        await asyncio.gather(*map(caller, range(callers)))
        return took
    began, tasks = time.perf_counter(), []
    for number in range(events):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)
    return took


async def _nothing(*_: object) -> None:
    """Take the arguments."""
