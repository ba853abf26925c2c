"""Growth section: cost per event for growing numbers of events, properties, callers or clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ..event import NAME, TOKEN, distinct_id, properties
from ..sink import ask
from .loops import run

Track = Callable[[str, str, dict[str, Any]], Awaitable[object]]


def measure(what: str, plan: list[tuple[int, int]], origin: str) -> dict[str, list[dict[str, float]]]:
    """Return for each size the seconds of CPU net of the harness, and the counts of the server.

    Args:
        what: growing dimension: `events`, `properties`, `callers` or `clients`.
        plan: pairs of a size and a number of events; for `events`, the size is the number of events between flushes.
        origin: origin of the server.
    """
    return {"runs": [run(_measured(what, size, origin, events)) for size, events in plan]}


async def _measured(what: str, size: int, origin: str, events: int) -> dict[str, float]:
    from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow

    policy = BatchPolicy(wait_timeout=3600.0)
    async with AsyncMixpanel(TOKEN, api_host=origin, batching=policy, overflow=Overflow.WAIT) as client:

        async def empty_track(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:
            """Take the arguments."""

        async def empty_bound_track(event_name: str, properties: dict[str, Any]) -> None:
            """Take the arguments."""

        for number in range(2_000):
            await client.track(distinct_id(number), NAME, properties(number))
        await client.flush()
        ask(origin, "/take")
        if what == "clients":
            shared = {"plan": "pro"}
            bound = [client.bind(distinct_id=distinct_id(number), properties=shared) for number in range(size)]
            idle = await _cpu(lambda: _clients([empty_bound_track] * size, events))
            busy = await _cpu(lambda: _clients([one.track for one in bound], events), client.flush)
        else:
            drive = {"events": _events, "properties": _properties, "callers": _callers}[what]
            idle = await _cpu(lambda: drive(empty_track, size, events, _no_flush))
            busy = await _cpu(lambda: drive(client.track, size, events, client.flush), client.flush)
        return {"cpu": busy - idle, **ask(origin, "/take")}


async def _no_flush() -> None:
    return None


async def _cpu(*steps: Callable[[], Awaitable[object]]) -> float:
    cpu = time.process_time()
    for step in steps:
        await step()
    return time.process_time() - cpu


async def _events(track: Track, size: int, events: int, flush: Callable[[], Awaitable[object]]) -> None:
    for _ in range(max(1, events // size)):
        for number in range(size):
            await track(distinct_id(number), NAME, properties(number))
        await flush()


async def _properties(track: Track, size: int, events: int, _: object) -> None:
    usual = {f"property_{index:03d}": f"the value of property {index:03d}" for index in range(size)}
    for number in range(events):
        await track(distinct_id(number), NAME, {**usual})


async def _callers(track: Track, size: int, events: int, _: object) -> None:
    async def caller(first: int) -> None:
        for number in range(first, events, size):
            await track(distinct_id(number), NAME, properties(number))

    await asyncio.gather(*map(caller, range(size)))


async def _clients(tracks: list[Callable[[str, dict[str, Any]], Awaitable[None]]], events: int) -> None:
    for number in range(events):
        await tracks[number % len(tracks)](NAME, properties(number))
