"""Burst section: track all events at once, then close."""

from __future__ import annotations

import time

from ..child import peak_bytes
from ..event import NAME, distinct_id, properties
from ..subjects import SUBJECTS, without_isal
from .loops import run


def measure(
    subject: str, origin: str, events: int, loop: str = "asyncio", *, speedups: bool = True
) -> dict[str, float]:
    """Return seconds of CPU (all threads) and of wall time, and peak memory in bytes."""
    if not speedups:
        without_isal()
    return run(_measured(subject, origin, events), loop=loop)


async def _measured(name: str, origin: str, events: int) -> dict[str, float]:
    async with SUBJECTS[name](origin, events) as subject:
        track = subject.track
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(events):
            await track(distinct_id(number), NAME, properties(number))
        await subject.close()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "peak": float(peak_bytes())}
