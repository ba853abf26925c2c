"""Convert figures to the printed Markdown table and the results file."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = (
    "mixpanel-async", "httpx", "anyio", "orjson", "isal", "uvloop", "mixpanel", "requests", "posthog",
)  # fmt: skip
_HEAD: Final = ("", "measured", "ratio", "wanted", "met")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Args:
        section: name of the section.
        name: name of the measurement.
        measured: formatted figures.
        ratio: formatted figure to which the target applies; empty without comparison.
        wanted: formatted target; empty without target.
        met: whether the target was met; None without target.
        figures: the figures as numbers.
    """

    section: str
    name: str
    measured: str
    ratio: str = ""
    wanted: str = ""
    met: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def machine() -> Iterator[str]:
    """Yield lines that describe the machine, the interpreter and the package versions."""
    yield f"{_cpu_name()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    yield f"{platform.python_implementation()} {platform.python_version()}, {sys.platform}"
    yield ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table with padded columns."""
    lines = [_HEAD, *((*_first(row), row.ratio, row.wanted, _met(row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    for number, line in enumerate(lines):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        if not number:
            yield "| " + " | ".join("-" * max(3, width) for width in widths) + " |"


def results(rows: Sequence[Row], events: int, rounds: int) -> dict[str, Any]:
    """Return the content of the results file."""
    return {
        "machine": list(machine()),
        "events": events,
        "rounds": rounds,
        "rows": [
            {
                "section": row.section, "name": row.name, "measured": row.measured, "ratio": row.ratio,
                "wanted": row.wanted, "met": row.met, **row.figures,
            }
            for row in rows
        ],
    }  # fmt: skip


def _first(row: Row) -> tuple[str, str]:
    return f"{row.section}: {row.name}", row.measured


def _met(row: Row) -> str:
    return "" if row.met is None else "yes" if row.met else "no"


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
