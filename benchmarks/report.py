"""From the raw runs to the table that is printed."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Final

TITLES: Final = {
    "floor": "floor (orjson, gzip, socket)",
    "mixpanel_async": "mixpanel-async",
    "official": "mixpanel BufferedConsumer",
    "posthog": "posthog AsyncPosthog",
}
_PACKAGES: Final = ("mixpanel-async", "httpx", "anyio", "orjson", "isal", "mixpanel", "requests", "posthog")


@dataclass(frozen=True)
class Run:
    """One subject measured once; times in seconds, and what the server says it was sent."""

    cpu: float
    wall: float
    peak: float
    requests: int
    events: int
    distinct: int


@dataclass(frozen=True)
class Row:
    """One subject over all rounds: medians, and the counts of its worst round."""

    name: str
    cpu_us: float
    spread_us: float
    events_per_second: float
    peak_mb: float
    requests: int
    most: int
    distinct: int


def summarise(name: str, runs: Sequence[Run], harness: Sequence[Run], events: int) -> Row:
    """Medians of all rounds, the CPU net of the harness."""
    base = median(run.cpu for run in harness)
    net = [(run.cpu - base) / events * 1e6 for run in runs]
    return Row(
        name=name,
        cpu_us=median(net),
        spread_us=max(net) - min(net),
        events_per_second=events / median(run.wall for run in runs),
        peak_mb=median(run.peak for run in runs) / 1e6,
        requests=max(run.requests for run in runs),
        most=max(run.events for run in runs),
        distinct=min(run.distinct for run in runs),
    )


def complete(row: Row, events: int) -> bool:
    """Whether every event arrived in every round; one that arrived twice is shown, but no failure."""
    return row.distinct == events


def machine() -> Iterator[str]:
    """Where and with what it was measured."""
    yield f"{_cpu_name()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    yield f"{platform.python_implementation()} {platform.python_version()}, {sys.platform}"
    yield ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))


def table(rows: Mapping[str, Row], events: int) -> Iterator[str]:
    """The rows side by side, each with its ratio to the floor."""
    yield f"{'':30}{'CPU/event':>10}{'spread':>8}{'x floor':>9}{'events/s':>10}{'peak':>8}  delivered"
    floor = rows["floor"].cpu_us
    for name, title in TITLES.items():
        row = rows.get(name)
        if row is None:
            yield f"{title:30}not installed"
            continue
        yield (
            f"{title:30}{row.cpu_us:7.2f} us{row.spread_us:8.2f}{row.cpu_us / floor:9.2f}"
            f"{row.events_per_second:10,.0f}{row.peak_mb:5.0f} MB  {_delivered(row, events)}"
        )


def ratios(rows: Mapping[str, Row]) -> Iterator[str]:
    """The comparisons that the project sets itself bars for."""
    ours = rows["mixpanel_async"]
    yield f"mixpanel-async / floor: {ours.cpu_us / rows['floor'].cpu_us:.2f} times the CPU"
    for name in ("official", "posthog"):
        if name in rows:
            yield f"{TITLES[name]} / mixpanel-async: {rows[name].cpu_us / ours.cpu_us:.1f} times the CPU"


def _delivered(row: Row, events: int) -> str:
    text = f"{row.distinct:,} of {events:,} in {row.requests:,} requests"
    if row.most > row.distinct:
        text += f", {row.most - row.distinct:,} of them twice"
    return text


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
