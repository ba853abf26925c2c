"""Outbox section: a producer with all events at once or at a fixed rate, and a worker that empties the queue."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from uuid import uuid4

from ..event import NAME, TOKEN, distinct_id, properties
from .loops import run


def measure(part: str, **arguments: Any) -> dict[str, float]:
    """Return the figures of one process: `burst`, `spread`, `paced`, `worker` or `serve`."""
    parts: dict[str, Callable[..., Coroutine[Any, Any, dict[str, float]]]] = {
        "burst": _burst, "spread": _spread, "paced": _paced, "worker": _worker, "serve": _serve,
    }  # fmt: skip
    return run(parts[part](**arguments))


async def _burst(subject: str, origin: str, url: str, name: str, events: int, batch: int) -> dict[str, float]:
    """Track all events at once and close. `subject` is `harness`, `direct` or `outbox`."""
    if subject == "harness":
        return await _track(_nothing, events)
    client = _client(origin, url if subject == "outbox" else "", name, max_events=batch, pending=events)
    async with client:
        cpu = await _track(client.track, events)
        began = time.process_time()
        result = await client.aclose()
        cpu["cpu"] += time.process_time() - began
    return {**cpu, "delivered": result.delivered}


async def _track(track: Callable[..., Awaitable[None]], events: int) -> dict[str, float]:
    began = time.process_time()
    for number in range(events):
        await track(distinct_id(number), NAME, properties(number))
    return {"cpu": time.process_time() - began}


async def _nothing(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:
    """Take the arguments."""


async def _spread(url: str, name: str, events: int) -> dict[str, float]:
    """Track events whose random ids have nothing in common, as those of a slow producer, and close."""
    async with _client("", url, name, max_events=500, pending=events) as client:
        for number in range(events):
            await client.track(distinct_id(number), NAME, properties(number), insert_id=uuid4().hex)
        return {"delivered": (await client.aclose()).delivered}


async def _paced(url: str, name: str, events: int, rate: float) -> dict[str, float]:
    """Track events at a fixed rate, and close."""
    client = _client("", url, name)
    async with client:
        cpu, began = time.process_time(), time.perf_counter()
        for number in range(events):
            if (early := began + number / rate - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            await client.track(distinct_id(number), NAME, properties(number))
        await client.aclose()
        cpu = time.process_time() - cpu
    return {"cpu": cpu, "delivered": client.stats().delivered}


async def _worker(origin: str, url: str, name: str) -> dict[str, float]:
    """Deliver everything in the queue."""
    from mixpanel_async.outbox import RedisOutbox
    from mixpanel_async.worker import Worker

    async with Worker(RedisOutbox(url, name=name), TOKEN, api_host=origin) as worker:
        cpu, began = time.process_time(), time.perf_counter()
        await worker.drain()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - began
        return {"cpu": cpu, "wall": wall, "delivered": worker.stats().delivered}


async def _serve(origin: str, url: str, name: str) -> dict[str, float]:
    """Deliver until standard input closes."""
    from mixpanel_async.outbox import RedisOutbox
    from mixpanel_async.worker import Worker

    async with Worker(RedisOutbox(url, name=name), TOKEN, api_host=origin) as worker:
        task = asyncio.create_task(worker.run())
        await asyncio.to_thread(sys.stdin.read)
        worker.stop()
        await task
        return {"delivered": worker.stats().delivered}


def _client(origin: str, url: str, name: str, *, max_events: int = 0, pending: int = 250_000) -> Any:
    from mixpanel_async import AsyncMixpanel, BatchPolicy

    options: dict[str, Any] = {"api_host": origin} if origin else {}
    if url:
        from mixpanel_async.outbox import RedisOutbox

        options["outbox"] = RedisOutbox(url, name=name)
    if max_events:
        options["batching"] = BatchPolicy(max_events=max_events, max_pending_events=max(pending, max_events))
    return AsyncMixpanel(TOKEN, shutdown_timeout=120.0, **options)
