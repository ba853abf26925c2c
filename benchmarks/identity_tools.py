"""`python -m benchmarks.identity_tools`: throughput and peak memory of `mixpanel-async identity audit`.

The events are written to a temporary file as a stream: visitors, log-ins on several devices, properties as a browser
SDK sends them. The audit runs in a child process that is pinned to one core, once for each ID merge system.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from .report import machine

_MAIN: Final = "from mixpanel_async.cli import main; main()"
_PINNED: Final = (
    "import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})"
)
# The child reports its peak memory itself, because the parent's figure includes the parent's memory before exec.
_PEAK: Final = (
    "import atexit, sys; from benchmarks.child import peak_bytes; "
    "atexit.register(lambda: print(f'peak {peak_bytes()}', file=sys.stderr))"
)
_SYSTEMS: Final = ("original", "simplified", "legacy")
_CALL_SHARE: Final = 0.1
_ANONYMOUS_SHARE: Final = 0.5


def lines(events: int, ids: int) -> Iterator[bytes]:
    """Yield events in the format of a raw export. Half of the ids are users, half are their anonymous ids."""
    chance = random.Random(7)
    users = ids // 2
    start = int(time.time()) - 30 * 86_400
    for number in range(events):
        # Every user occurs before any occurs again.
        user = number % users if number < users else chance.randrange(users)
        yield orjson.dumps(_event(number, user, chance.random(), start), option=orjson.OPT_APPEND_NEWLINE)


def _event(number: int, user: int, kind: float, start: int) -> dict[str, Any]:
    anonymous = str(uuid.UUID(int=(user * 0x9E3779B97F4A7C15) % 2**128, version=4))
    known = f"user-{user}"
    properties: dict[str, Any] = {
        "time": start + number // 2,
        "$insert_id": f"{number:016x}",
        "$os": "Mac OS X",
        "$browser": "Chrome",
        "$current_url": f"https://shop.example.com/products/{number % 5000}",
        "$screen_height": 1080,
        "$screen_width": 1920,
        "mp_lib": "web",
        "$lib_version": "2.45.0",
        "$city": "Vienna",
        "mp_country_code": "AT",
        "mp_processing_time_ms": (start + number // 2) * 1000 + number % 1000,
        "$device_id": anonymous,
    }
    if kind < _CALL_SHARE:
        ids = {"distinct_id": known, "$user_id": known, "$anon_distinct_id": anonymous}
        return {"event": "$identify", "properties": {**properties, **ids}}
    if kind < _ANONYMOUS_SHARE:
        return {"event": "Viewed", "properties": {**properties, "distinct_id": anonymous}}
    ids = {"distinct_id": known, "$user_id": known, "$email": f"{known}@example.com"}
    return {"event": "Viewed", "properties": {**properties, **ids}}


def audit(path: Path, system: str) -> tuple[float, int, dict[str, Any]]:
    """Run an audit. Return its seconds of CPU time, its peak memory in bytes, and its report."""
    command = [sys.executable, "-c", f"{_PINNED}; {_PEAK}; {_MAIN}", "identity", "audit", str(path), "--json"]
    before = os.times()
    result = subprocess.run([*command, "--id-merge", system], capture_output=True, text=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu, int(result.stderr.rpartition("peak ")[2]), json.loads(result.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.identity_tools", description="Measure the cost of an identity audit."
    )
    parser.add_argument("--events", type=int, default=5_000_000, help="events in the file (default: 5000000)")
    parser.add_argument("--ids", type=int, default=500_000, help="different ids among them (default: 500000)")
    parser.add_argument(
        "--id-merge", action="append", choices=_SYSTEMS, help="ID merge system; repeatable (default: original)"
    )
    options = parser.parse_args(arguments)
    if options.ids < 2 or options.events < options.ids:
        parser.error("--ids must be at least 2, and --events at least --ids")
    print(*machine(), sep="\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "export.ndjson"
        with path.open("wb") as file:
            file.writelines(lines(options.events, options.ids))
        print(f"{options.events:,} events, {path.stat().st_size / 1e9:.2f} GB")
        for system in options.id_merge or ["original"]:
            cpu, peak, report = audit(path, system)
            print(
                f"{system}: {options.events / cpu:,.0f} events per second of CPU on one core, peak memory "
                f"{peak / 1e6:,.0f} MB; {report['ids']:,} ids, {report['persons']:,} persons, "
                f"{report['calls']:,} identity calls, {report['finding_count']:,} findings"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
