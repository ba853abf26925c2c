"""`python -m benchmarks`: run all sections, print one table, and write a results file and a chart.

Most figures are CPU time of the sending process with all its threads, because wall time depends on the load of the
machine. "Net of the harness" means: minus the same loop around a coroutine that does nothing. No result passes or fails
by time; the exit status is 0 if every event was delivered.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from .bench import open_bench
from .burst import burst
from .chart import chart
from .outbox import outbox
from .report import Row, machine, results, table
from .sections import backfill, emulator, first_use, growth, identity, paced, spool, start
from .shapes import shapes

SECTIONS = {
    "burst": burst,
    "shapes": shapes,
    "paced": paced,
    "growth": growth,
    "identity": identity,
    "backfill": backfill,
    "first-use": first_use,
    "spool": spool,
    "outbox": outbox,
    "start": start,
    "emulator": emulator,
}


def main() -> int:
    """Measure, print and write the results. Return 0 if every event arrived, otherwise 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the cost of mixpanel-async.")
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"sections to run: {', '.join(SECTIONS)} (default: all)"
    )
    parser.add_argument("--events", type=int, default=40_000, help="events in a burst (default: 40000)")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each subject (default: 5)")
    parser.add_argument(
        "--python", action="append", default=[], metavar="PATH",
        help="another interpreter for the burst, if it can import the package; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder for results.json and, with the burst, chart.svg; created if missing (default: this package)",
    )
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"unknown section: {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    if options.events < 1 or options.rounds < 1:
        parser.error("--events and --rounds must be at least 1")

    rows: list[Row] = []
    with open_bench(options.events, options.rounds, tuple(options.python)) as bench:
        for name in options.sections or SECTIONS:
            began = time.monotonic()
            rows += SECTIONS[name](bench)
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    print(*machine(), f"{options.events:,} events, {options.rounds} rounds", "", *table(rows), sep="\n")
    # A partial run does not replace the stored results of a full run; it needs an explicit --output.
    folder = options.output if options.output or options.sections else Path(__file__).resolve().parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        content = results(rows, options.events, options.rounds)
        (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if any(row.section == "burst" for row in rows):
            (folder / "chart.svg").write_text(chart(rows), "utf-8")
    return 0 if all(row.figures.get("complete", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
