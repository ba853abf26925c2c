"""Shapes section: the cost of every way of calling the client, relative to the floor of the same process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from statistics import median
from typing import Final

from .bench import Bench
from .report import Row
from .subjects import installed

_ADDED: Final = frozenset({"datetime property", "UUID property", "Decimal property", "nested property"})
_TIMES_FLOOR: Final = {"track": 1.5, "bound client": 2.5, "bound client per event": 2.5}
_USUAL_TIMES_FLOOR: Final = 3.0
_ADDED_US: Final = 1.5
_TIMES_SIZE: Final = 1.2
_PEERS: Final = {"official": "official SDK", "posthog": "PostHog"}


def shapes(bench: Bench) -> Iterator[Row]:
    """Measure CPU and memory per event of each shape, beside the other libraries that have it."""
    counts = {
        name: max(1, bench.events // (1 if name == "mixpanel_async" else 20)) for name in ("mixpanel_async", *_PEERS)
    }
    names = ["mixpanel_async", *filter(installed, _PEERS)]
    runs: dict[str, list[dict[str, list[float]]]] = {name: [] for name in names}
    turns = 3 * len(bench.few_rounds)
    for turn in range(turns):
        print(f"shapes: round {turn + 1} of {turns}", file=sys.stderr, flush=True)
        for name in names[: None if turn in bench.few_rounds else 1]:
            found = bench.child("shapes", subject=name, origin=bench.origin, events=counts[name], turn=2 * turn)
            per_event = {shape: [seconds / counts[name] * 1e6 for seconds in both] for shape, both in found.items()}
            runs[name].append(per_event)
    for shape in runs["mixpanel_async"][0]:
        others = {name: median(run[shape][0] for run in runs[name]) for name in names[1:] if shape in runs[name][0]}
        yield _row(shape, runs["mixpanel_async"], others)
    # So many that the bodies of requests in flight, at most a batch each, do not matter.
    memory = bench.child("shapes", memory=True, origin=bench.origin, events=bench.events)
    for shape, times in memory.items():
        yield Row(
            section="shapes",
            name=f"{shape}, queued",
            measured=f"{times:.2f} bytes of memory per byte of JSON",
            ratio=f"{times:.2f} x its size",
            wanted=f"<= {_TIMES_SIZE}",
            met=times <= _TIMES_SIZE,
            figures={"times_size": times},
        )


def _row(shape: str, runs: list[dict[str, list[float]]], others: dict[str, float]) -> Row:
    """Return the medians of the runs. Load that slows a shape down also slows the floor right before and after it."""
    cost, floor = (median(run[shape][at] for run in runs) for at in (0, 1))
    times = median(run[shape][0] / run[shape][1] for run in runs)
    added = median(run[shape][0] - run["track"][0] for run in runs)
    if shape in _ADDED:
        ratio, wanted, met = f"{added:+.2f} us", f"<= +{_ADDED_US} us", added <= _ADDED_US
    else:
        limit = _TIMES_FLOOR.get(shape, _USUAL_TIMES_FLOOR)
        ratio, wanted, met = f"{times:.2f} x floor", f"<= {limit}", times <= limit
    beside = [f"floor {floor:.2f}", *(f"{_PEERS[name]} {other:.1f}" for name, other in others.items())]
    return Row(
        section="shapes",
        name=shape,
        measured=", ".join((f"{cost:.2f} us of CPU per event", *beside)),
        ratio=ratio,
        wanted=wanted,
        met=met,
        figures={
            "cpu_us": cost, "floor_us": floor, "times_floor": times, "added_us": added,
            **{f"{name}_us": other for name, other in others.items()},
        },
    )  # fmt: skip
