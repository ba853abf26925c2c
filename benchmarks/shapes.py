"""Shapes section: the cost of every way of calling the client, relative to the floor of the same process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
    # A process that other load slows down is slow for all its shapes, so compare with the floor of the same process.
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(3 * len(bench.few_rounds)):
        print(f"shapes: round {turn + 1} of {3 * len(bench.few_rounds)}", file=sys.stderr, flush=True)
        for name in names[: None if turn in bench.few_rounds else 1]:
            runs[name].append(bench.child("shapes", subject=name, origin=bench.origin, events=counts[name]))
    best = {
        name: {shape: min(run[shape] for run in measured) / counts[name] * 1e6 for shape in measured[0]}
        for name, measured in runs.items()
    }
    ours = best["mixpanel_async"]
    floor = ours.pop("floor")
    for shape, cost in ours.items():
        yield _row(shape, cost, floor, ours["track"], {name: best[name].get(shape) for name in names[1:]})
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


def _row(shape: str, cost: float, floor: float, usual: float, peers: dict[str, float | None]) -> Row:
    if shape in _ADDED:
        ratio, wanted, met = f"{cost - usual:+.2f} us", f"<= +{_ADDED_US} us", cost - usual <= _ADDED_US
    else:
        limit = _TIMES_FLOOR.get(shape, _USUAL_TIMES_FLOOR)
        ratio, wanted, met = f"{cost / floor:.2f} x floor", f"<= {limit}", cost / floor <= limit
    others = [f"{_PEERS[name]} {other:.1f}" for name, other in peers.items() if other is not None]
    return Row(
        section="shapes",
        name=shape,
        measured=", ".join((f"{cost:.2f} us of CPU per event", *others)),
        ratio=ratio,
        wanted=wanted,
        met=met,
        figures={
            "cpu_us": cost, "floor_us": floor, "times_floor": cost / floor, "added_us": cost - usual,
            **{f"{name}_us": other for name, other in peers.items() if other is not None},
        },
    )  # fmt: skip
