"""Backfill section: one caller of `import_data` against a slow server."""

from __future__ import annotations

import time

from ..child import peak_bytes
from ..event import NAME, TOKEN, distinct_id, properties
from .loops import run, seconds_waiting_for_cpu


def measure(origin: str, events: int, in_flight: int, batch: int, pending: int) -> dict[str, float]:
    """Return seconds of CPU, of wall time and of waiting for a CPU, and peak memory in bytes."""
    return run(_measured(origin, events, in_flight, batch, pending))


async def _measured(origin: str, events: int, in_flight: int, batch: int, pending: int) -> dict[str, float]:
    from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow

    policy = BatchPolicy(max_events=batch, max_pending_events=pending, max_in_flight=in_flight, wait_timeout=3600.0)
    async with AsyncMixpanel(TOKEN, api_host=origin, batching=policy, overflow=Overflow.WAIT) as client:
        base = time.time() - 86_400 * 30
        cpu, wall, waiting = time.process_time(), time.perf_counter(), seconds_waiting_for_cpu()
        for number in range(events):
            await client.import_data(None, distinct_id(number), NAME, base + number, properties(number))
        await client.flush()
        cpu, wall, waiting = time.process_time() - cpu, time.perf_counter() - wall, seconds_waiting_for_cpu() - waiting
    return {"cpu": cpu, "wall": wall, "waiting": waiting, "peak": float(peak_bytes())}
