"""`python -m benchmarks.importer`: throughput of a dry run on one core, and peak memory of a long import.

The first figure is the throughput of `mixpanel-async import FILE --dry-run` with NDJSON in a child process pinned to
one core. With `--gigabytes`, that amount of data is also piped into an import to an emulator, and the peak memory is
printed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import orjson

from mixpanel_async.emulator import Emulator

from .event import NAME, TOKEN, distinct_id, properties
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


def lines(events: int, *, insert_ids: bool) -> bytes:
    """Return events as NDJSON in Mixpanel's export format."""
    past = int(time.time()) - 10 * 86_400
    made = []
    for number in range(events):
        own = {"$insert_id": f"{number:032x}"} if insert_ids else {}
        record = {"distinct_id": distinct_id(number), "time": past + number % 86_400, **properties(number), **own}
        made.append(orjson.dumps({"event": NAME, "properties": record}) + b"\n")
    return b"".join(made)


def _command(start: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"{start}; {_MAIN}", "import", *arguments]


def dry_run_rates(path: Path, events: int) -> tuple[float, float]:
    """Return events per second of CPU time and of wall time, including interpreter start."""
    before, started = os.times(), time.perf_counter()
    result = subprocess.run(_command(_PINNED, str(path), "--dry-run"), capture_output=True, text=True, check=True)
    after, took = os.times(), time.perf_counter() - started
    assert result.stdout.endswith(f"{events:,} events valid, 0 rejected\n"), result.stdout
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return events / cpu, events / took


def import_stream(block: bytes, times: int) -> tuple[int, str]:
    """Pipe a block repeatedly into an import; return its peak memory in bytes and its output."""
    with Emulator(max_events=1_000).serve() as server, tempfile.TemporaryDirectory() as directory:
        options = ("-", "--quiet", "--token", TOKEN, "--api-host", server.url, "--state-dir", directory)
        with subprocess.Popen(
            _command(_PEAK, *options), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            for _ in range(times):
                process.stdin.write(block)
            process.stdin.close()
            words, errors = process.stdout.read().decode(), process.stderr.read().decode()
    return int(errors.rpartition("peak ")[2]), words.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.importer", description="Measure the cost of an import.")
    parser.add_argument("--events", type=int, default=1_000_000, help="events in the file (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=3, help="dry runs of each file (default: 3)")
    parser.add_argument(
        "--gigabytes", type=float, default=0.0, help="amount of data to pipe into an import (default: 0)"
    )
    options = parser.parse_args(arguments)
    print(*machine(), sep="\n")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.ndjson"
        for insert_ids in (True, False):
            path.write_bytes(lines(options.events, insert_ids=insert_ids))
            rates = [dry_run_rates(path, options.events) for _ in range(options.rounds)]
            best = max(cpu for cpu, _ in rates)
            middle = sorted(cpu for cpu, _ in rates)[len(rates) // 2]
            wall = sorted(wall for _, wall in rates)[len(rates) // 2]
            title = "with $insert_id" if insert_ids else "$insert_id derived from content"
            print(
                f"dry run, {title}: {middle:,.0f} events per second of CPU on one core "
                f"(best {best:,.0f}; {wall:,.0f} per second of wall time)"
            )
    if options.gigabytes:
        block = lines(50_000, insert_ids=False)
        times = max(1, round(options.gigabytes * 1e9 / len(block)))
        peak, words = import_stream(block, times)
        print(f"{times * len(block) / 1e9:.2f} GB through a pipe: {words}; peak memory {peak / 1e6:,.0f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
