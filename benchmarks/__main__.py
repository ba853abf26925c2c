"""`python -m benchmarks`: every subject in fresh processes, rounds interleaved, one table at the end.

What is counted is the CPU time of the sending process, all its threads, from the first call to the end of delivery:
importing a library, making its client and opening it come before. "Net of the harness" means minus the same loop around
a coroutine that does nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .report import Run, complete, machine, ratios, summarise, table
from .subjects import SUBJECTS, installed


@contextmanager
def sink(variables: dict[str, str]) -> Iterator[str]:
    """The origin of the server that all subjects talk to."""
    command = [sys.executable, "-m", "benchmarks.sink"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def _run(name: str, origin: str, events: int, variables: dict[str, str]) -> Run:
    command = [sys.executable, "-m", "benchmarks.child", name, origin, str(events)]
    child = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{origin}/take") as reply:
        counts = json.load(reply)
    return Run(**json.loads(child.stdout), **counts)


def environment() -> dict[str, str]:
    """This process's environment without proxies, which would come between the subjects and the server."""
    variables = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    root = str(Path(__file__).resolve().parent.parent)
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (root, variables.get("PYTHONPATH"))))
    return variables


def main() -> int:
    """Measure, print, and say by the exit status whether every subject delivered every event."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="What one tracked event costs.")
    parser.add_argument("--events", type=int, default=40_000, help="events in each run (default: 40000)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each subject (default: 5)")
    options = parser.parse_args()

    names = [name for name in SUBJECTS if installed(name)]
    runs: dict[str, list[Run]] = {name: [] for name in names}
    variables = environment()
    with sink(variables) as origin:
        for turn in range(options.rounds):
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
            for name in names:
                runs[name].append(_run(name, origin, options.events, variables))

    harness = runs.pop("harness")
    rows = {name: summarise(name, measured, harness, options.events) for name, measured in runs.items()}
    print(*machine(), sep="\n")
    print(f"{options.events:,} events, medians of {options.rounds} rounds (spread: from the lowest to the highest)\n")
    print(*table(rows, options.events), "", *ratios(rows), sep="\n")
    return 0 if all(complete(row, options.events) for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
