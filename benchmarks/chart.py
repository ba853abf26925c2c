"""Bar chart of the burst as SVG, readable on light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final

from .report import Row

_WIDTH: Final = 760
_LABELS: Final = 250
_BAR: Final = 18
_STEP: Final = 28
_ROOM: Final = 90
_STYLE: Final = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
  .head { font-weight: 600; } .small { font-size: 11px; fill: #57606a; }
  .bar { fill: #8c959f; } .ours { fill: #7856ff; } .axis { stroke: #d0d7de; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9198a1; }
    .bar { fill: #6e7681; } .ours { fill: #a48bff; } .axis { stroke: #3d444d; }
  }
"""


def chart(rows: Sequence[Row]) -> str:
    """Return the SVG with the CPU time per event and the peak memory of every subject in the rows."""
    panels = [
        ("CPU per event, less is better", "burst", "cpu_us", lambda value: f"{value:.1f} µs"),
        ("Memory at the peak, less is better", "memory", "peak_mb", lambda value: f"{value:.0f} MB"),
    ]
    parts: list[str] = []
    top = 8
    for title, section, figure, words in panels:
        bars = [
            (row.name, float(row.figures[figure])) for row in rows if row.section == section and figure in row.figures
        ]
        if bars:
            parts += _panel(title, bars, words, top)
            top += 30 + _STEP * len(bars) + 18
    summary = "; ".join(f"{row.name}: {row.measured}" for row in rows if row.section in {"burst", "memory"})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'role="img">\n<title>What one tracked event costs</title>\n<desc>{escape(summary)}</desc>\n'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(title: str, bars: Sequence[tuple[str, float]], words: Callable[[float], str], top: float) -> Iterator[str]:
    most = max(value for _, value in bars) or 1.0
    yield f'<text class="head" x="8" y="{top + 16}">{escape(title)}</text>'
    first = top + 30
    yield f'<line class="axis" x1="{_LABELS}" y1="{first - 4}" x2="{_LABELS}" y2="{first + _STEP * len(bars) - 4}"/>'
    for number, (name, value) in enumerate(bars):
        y = first + _STEP * number
        length = max(1.5, (_WIDTH - _LABELS - _ROOM) * value / most)
        kind = "ours" if name.startswith("mixpanel-async") else "bar"
        yield f'<text x="{_LABELS - 10}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
        yield f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
        yield f'<text class="small" x="{_LABELS + length + 8:.1f}" y="{y + 13}">{escape(words(value))}</text>'
