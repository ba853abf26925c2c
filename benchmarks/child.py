"""One measurement in a process of its own: `python -m benchmarks.child SUBJECT ORIGIN EVENTS` prints one JSON line."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path

from .event import NAME, distinct_id, properties
from .subjects import SUBJECTS


def peak_bytes() -> int:
    """The most memory that this process has held at once."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss outlives exec on Linux, and would then show the parent's size instead of ours.
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


async def measure(name: str, origin: str, events: int) -> dict[str, float]:
    """Track `events` events and close; seconds of CPU (all threads) and of wall time, and bytes at the peak."""
    async with SUBJECTS[name](origin, events) as subject:
        track = subject.track
        cpu, wall = time.process_time(), time.perf_counter()
        for number in range(events):
            await track(distinct_id(number), NAME, properties(number))
        await subject.close()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": cpu, "wall": wall, "peak": float(peak_bytes())}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], sys.argv[2], int(sys.argv[3])))))
