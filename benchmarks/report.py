"""From the figures to the table that is printed, which is Markdown, and to the file of results."""

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
        section: where it belongs.
        name: what was measured.
        measured: the figures, in words.
        ratio: what the project's bar is about, in words; empty if there is nothing to compare with.
        wanted: the bar, in words; empty if there is none.
        met: whether it was met; None if there is none.
        figures: the same as plain numbers.
    """

    section: str
    name: str
    measured: str
    ratio: str = ""
    wanted: str = ""
    met: bool | None = None
    figures: dict[str, Any] = field(default_factory=dict)


def machine() -> Iterator[str]:
    """Where and with what it was measured."""
    yield f"{_cpu_name()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}"
    yield f"{platform.python_implementation()} {platform.python_version()}, {sys.platform}"
    yield ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name)))


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The rows as a Markdown table whose columns are also in line as plain text."""
    lines = [_HEAD, *((*_first(row), row.ratio, row.wanted, _met(row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    for number, line in enumerate(lines):
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        if not number:
            yield "| " + " | ".join("-" * max(3, width) for width in widths) + " |"


def results(rows: Sequence[Row], events: int, rounds: int) -> dict[str, Any]:
    """What goes to the file of results."""
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
