"""Burst section: all events at once through every subject, rounds interleaved, each in a new process.

Other load on the machine only increases the CPU time of a run, and by a varying amount. The minimum of many runs is
therefore the best estimate.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from .bench import Bench
from .report import Row
from .subjects import SUBJECTS, installed

TITLES: Final = {
    "floor": "floor (orjson, gzip, socket)",
    "mixpanel_async": "mixpanel-async",
    "official": "mixpanel BufferedConsumer",
    "posthog": "posthog AsyncPosthog",
}
_OURS: Final = ("harness", "floor", "mixpanel_async")
_EVENT_BYTES: Final = 420
_MAX_TIMES_FLOOR: Final = 1.5
_MAX_TIMES_MEMORY: Final = 1.3
_ABOUT: Final = "import platform, mixpanel_async; print(platform.python_implementation(), platform.python_version())"


@dataclass(frozen=True)
class Run:
    """One measurement of one subject: seconds, peak bytes, and the counts of the sink."""

    cpu: float
    wall: float
    peak: float
    requests: int
    events: int
    distinct: int


@dataclass(frozen=True)
class Summary:
    """Results of one subject over all rounds: minimum and median CPU time, and the worst counts."""

    cpu_us: float
    median_us: float
    events_per_second: float
    peak_mb: float
    requests: int
    most: int
    distinct: int


def summarise(runs: Sequence[Run], harness: Sequence[Run], events: int) -> Summary:
    """Summarise the runs: CPU time net of the harness, medians of other figures, worst counts."""
    return Summary(
        cpu_us=(min(run.cpu for run in runs) - min(run.cpu for run in harness)) / events * 1e6,
        median_us=(median(run.cpu for run in runs) - median(run.cpu for run in harness)) / events * 1e6,
        events_per_second=events / median(run.wall for run in runs),
        peak_mb=median(run.peak for run in runs) / 1e6,
        requests=max(run.requests for run in runs),
        most=max(run.events for run in runs),
        distinct=min(run.distinct for run in runs),
    )


def burst(bench: Bench) -> Iterator[Row]:
    """Measure CPU and memory of every subject; mixpanel-async also without isal, on uvloop and other interpreters."""
    peers = [name for name in SUBJECTS if name not in _OURS and installed(name)]
    variants = [("", sys.executable, {}), *_variants()]
    for python in bench.pythons:
        about = _about(bench, python)
        if about is None:
            yield Row(section="burst", name=f"mixpanel-async with {python}", measured="cannot be imported there")
        else:
            variants.append((f"on {about}", python, {}))
    runs: dict[tuple[str, str], list[Run]] = {}
    for turn in range(bench.rounds):
        print(f"burst: round {turn + 1} of {bench.rounds}", file=sys.stderr, flush=True)
        # These runs take half a second each; more runs make differences of a few microseconds visible.
        for title, python, options in variants * len(bench.few_rounds):
            for name in _OURS:
                runs.setdefault((title, name), []).append(_run(bench, name, python, options))
        for name in peers if turn in bench.few_rounds else ():
            runs.setdefault(("", name), []).append(_run(bench, name, sys.executable, {}))
    for title, _, _ in variants:
        yield from _rows(title, runs, bench.events)


def _variants() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield optional variants of mixpanel-async in this interpreter: title, interpreter, options."""
    if installed("isal"):
        yield "without isal", sys.executable, {"speedups": False}
    if installed("uvloop"):
        yield "on uvloop", sys.executable, {"loop": "uvloop"}


def _rows(title: str, runs: Mapping[tuple[str, str], list[Run]], events: int) -> Iterator[Row]:
    """Yield rows that compare the subjects with the floor in the same interpreter."""
    harness = runs[title, "harness"]
    floor = summarise(runs[title, "floor"], harness, events)
    for name, words in TITLES.items():
        if (title, name) not in runs:
            if not title:
                yield Row(section="burst", name=words, measured="not installed")
            continue
        if title and name == "floor":
            continue
        summary = summarise(runs[title, name], harness, events)
        is_ours = name == "mixpanel_async"
        times = summary.cpu_us / floor.cpu_us
        yield Row(
            section="burst",
            name=f"{words} {title}".strip(),
            measured=f"{summary.cpu_us:.2f} us of CPU per event (median {summary.median_us:.2f}), "
            f"{summary.events_per_second:,.0f}/s, {_delivered(summary, events)}",
            ratio=f"{times:.2f} x floor" + (f" of {floor.cpu_us:.2f} us" if title else ""),
            wanted=f"<= {_MAX_TIMES_FLOOR}" if is_ours else "",
            met=times <= _MAX_TIMES_FLOOR if is_ours else None,
            figures={
                "cpu_us": summary.cpu_us, "median_us": summary.median_us, "times_floor": times,
                "floor_us": floor.cpu_us, "events_per_second": summary.events_per_second, "peak_mb": summary.peak_mb,
                "requests": summary.requests, "delivered": summary.distinct,
                "duplicates": summary.most - summary.distinct, "complete": summary.distinct == events,
            },
        )  # fmt: skip
        if not title:
            yield _memory(words, summary, floor, events, is_ours=is_ours)


def _memory(words: str, summary: Summary, floor: Summary, events: int, *, is_ours: bool) -> Row:
    """Return the row for peak memory; the queued events themselves are subtracted."""
    queue_mb = events * _EVENT_BYTES / 1e6
    times = (summary.peak_mb - queue_mb * is_ours) / floor.peak_mb
    return Row(
        section="memory",
        name=words,
        measured=f"{summary.peak_mb:.0f} MB at the peak" + f", a queue of {queue_mb:.0f} MB" * is_ours,
        ratio=f"{times:.2f} x floor" + ", net of the queue" * is_ours,
        wanted=f"<= {_MAX_TIMES_MEMORY}" if is_ours else "",
        met=times <= _MAX_TIMES_MEMORY if is_ours else None,
        figures={"peak_mb": summary.peak_mb, "queue_mb": queue_mb * is_ours, "times_floor": times},
    )


def _run(bench: Bench, name: str, python: str, options: Mapping[str, object]) -> Run:
    figures = bench.child("burst", python, subject=name, origin=bench.origin, events=bench.events, **options)
    counts = bench.take()
    return Run(**figures, requests=counts["requests"], events=counts["events"], distinct=counts["distinct"])


def _about(bench: Bench, python: str) -> str | None:
    command = [python, "-c", _ABOUT]
    try:
        done = subprocess.run(command, env=bench.environment, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _delivered(summary: Summary, events: int) -> str:
    text = f"{summary.distinct:,} of {events:,} in {summary.requests:,} requests"
    if summary.most > summary.distinct:
        text += f", {summary.most - summary.distinct:,} duplicates"
    return text
