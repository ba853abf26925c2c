"""`import_data` as fast as one caller can, against a server that takes its time."""

from __future__ import annotations

import time

from ..child import peak_bytes
from ..event import NAME, TOKEN, distinct_id, properties
from .loops import run, seconds_in_line


def measure(origin: str, events: int, in_flight: int, batch: int, pending: int) -> dict[str, float]:
    """Seconds of CPU and of wall time, seconds that the loop's thread stood in line for a core, bytes at the peak."""
    return run(_measured(origin, events, in_flight, batch, pending))


async def _measured(origin: str, events: int, in_flight: int, batch: int, pending: int) -> dict[str, float]:
    from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow

    policy = BatchPolicy(max_events=batch, max_pending_events=pending, max_in_flight=in_flight, wait_timeout=3600.0)
    async with AsyncMixpanel(TOKEN, api_host=origin, batching=policy, overflow=Overflow.WAIT) as client:
        base = time.time() - 86_400 * 30
        cpu, wall, line = time.process_time(), time.perf_counter(), seconds_in_line()
        for number in range(events):
            await client.import_data(None, distinct_id(number), NAME, base + number, properties(number))
        await client.flush()
        cpu, wall, line = time.process_time() - cpu, time.perf_counter() - wall, seconds_in_line() - line
    return {"cpu": cpu, "wall": wall, "line": line, "peak": float(peak_bytes())}
