"""Write the figures of `docs/explanation/performance.md`, its tables and the chart, and those of the README.

    python -m benchmarks --output NEW                          # measure
    python -m tools.performance NEW/results.json --date 2026-11-30
    python -m tools.performance                                # only write tables and chart again

Figures are kept in `docs/assets/performance.json`, by section of the benchmarks, each with its date and machine. A
results file replaces the sections that it has.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

DOCS: Final = Path(__file__).parents[1] / "docs"
FIGURES: Final = DOCS / "assets/performance.json"
CHART: Final = DOCS / "assets/performance.svg"
PAGE: Final = DOCS / "explanation/performance.md"
README: Final = DOCS.parent / "README.md"

Row = Mapping[str, Any]
Sections = Mapping[str, Mapping[str, Any]]

# Facts of a row that belong to the report of the benchmarks, not to the figures.
_LEFT_OUT: Final = frozenset({"section", "measured", "ratio", "wanted", "met", "complete"})
_FLOOR: Final = "floor (orjson, gzip, socket)"
_SUBJECTS: Final = {
    _FLOOR: "floor",
    "mixpanel-async": "mixpanel-async",
    "mixpanel-async on uvloop": "mixpanel-async on uvloop",
    "mixpanel-async without isal": "mixpanel-async without isal",
    "mixpanel BufferedConsumer": "official SDK, `BufferedConsumer`",
    "posthog AsyncPosthog": "PostHog, `AsyncPosthog`",
}
_IN_CHART: Final = {
    _FLOOR: "floor (least possible work)",
    "mixpanel-async": "mixpanel-async",
    "mixpanel BufferedConsumer": "official SDK, BufferedConsumer",
    "posthog AsyncPosthog": "PostHog, AsyncPosthog",
}
_SHAPES: Final = {
    "track": "`await track` with seven properties",
    "track_nowait": "`track_nowait`",
    "no properties": "without properties",
    "super_properties": "with `super_properties`",
    "time and insert_id": "with `time=` and `insert_id=`",
    "user_id and device_id": "with `user_id=` and `device_id=`",
    "bound client": "on a bound client",
    "bound client per event": "on a new bound client for each event",
    "datetime property": "with a `datetime` property",
    "UUID property": "with a `UUID` property",
    "Decimal property": "with a `Decimal` property",
    "nested property": "with a nested property",
    "serializer": "with `serializer=`, unused",
    "serializer used": "with `serializer=`, used",
    "before_send": "with `before_send=`",
    "import_data": "`await import_data`",
    "people_set": "`await people_set`",
    "people_increment": "`await people_increment`",
    "group_set": "`await group_set`",
}


def _growth(row: Row) -> str:
    return " / ".join(f"{cost:.1f}" for cost in row["costs_us"]) + " µs of CPU"


def _identity(row: Row) -> str:
    return f"{row['cpu_us']:.0f} µs of CPU per call. httpx alone: {row['bare_cpu_us']:.0f}"


def _backfill(row: Row) -> str:
    return f"{row['events_per_second']:,.0f} events/s, {row['cpu_us']:.0f} µs of CPU per event"


def _spool(row: Row) -> str:
    rate, cpu = f"{row['tracked_per_second']:,.0f} events/s on disk", f"{row['cpu_us']:.0f} µs of CPU per event"
    return f"{rate}, 99 % of the calls within {row['p99_ms']:.1f} ms, {cpu}"


def _first_use(row: Row) -> str:
    return f"{row['request_ms']:.2f} ms of CPU in the event loop, up to the first response"


def _start(row: Row) -> str:
    return f"{row['cpu_ms']:.0f} ms of CPU. Its dependencies alone: {row['base_ms']:.0f}"


def _emulator(row: Row) -> str:
    return f"{row['events_per_cpu_second']:,.0f} events per second of CPU"


def _paced(row: Row) -> str:
    return f"event loop held for at most {row['held_cpu_ms']:.1f} ms of CPU"


def _apps(row: Row) -> str:
    cpu = f", {row['cpu_us']:.0f} µs of CPU" if "cpu_us" in row else ""
    return f"median {row['median_ms']:.2f} ms, 99 % within {row['p99_ms']:.2f} ms{cpu}"


def _flags(row: Row) -> str:
    return f"{row['cpu_us']:.1f} µs of CPU. Official SDK: {row['official_us']:.0f}"


def _importer(row: Row) -> str:
    return f"{row['events_per_second']:,.0f} events/s of one core"


def _outbox(row: Row) -> str:
    if "bytes" in row:
        return f"{row['bytes']:.0f} bytes per waiting event"
    if "oldest_s" in row:
        return f"{row['delivered']:,} delivered, {row['duplicates']:,} twice, the oldest waited {row['oldest_s']:.1f} s"
    direct = f". Sent to Mixpanel: {row['direct_us']:.1f}" if "direct_us" in row else ""
    return f"{row['cpu_us']:.1f} µs of CPU per event{direct}"


# Sections of the last table: their title, and the words for a row.
_OTHERS: Final[Mapping[str, tuple[str, Callable[[Row], str]]]] = {
    "paced": ("event loop", _paced),
    "growth": ("growth", _growth),
    "spool": ("spool", _spool),
    "outbox": ("outbox", _outbox),
    "identity": ("identity", _identity),
    "backfill": ("import", _backfill),
    "importer": ("command `import`", _importer),
    "apps": ("web request", _apps),
    "flags": ("local flags", _flags),
    "first use": ("first use", _first_use),
    "start": ("start", _start),
    "emulator": ("emulator", _emulator),
}


def load() -> dict[str, dict[str, Any]]:
    """Return the stored figures by section."""
    sections: dict[str, dict[str, Any]] = json.loads(FIGURES.read_text("utf-8"))
    return sections


def merge(sections: Sections, results: Mapping[str, Any], date: str) -> dict[str, dict[str, Any]]:
    """Return the figures with the sections of a results file in place of the earlier ones."""
    merged = {name: dict(section) for name, section in sections.items()}
    machine = f"{'; '.join(results['machine'])}; {results['events']:,} events, {results['rounds']} rounds"
    for name in dict.fromkeys(row["section"] for row in results["rows"]):
        rows = [
            {key: _short(value) for key, value in row.items() if key not in _LEFT_OUT}
            for row in results["rows"]
            if row["section"] == name
        ]
        merged[name] = {"date": date, "machine": machine, "rows": rows}
    return merged


def _short(value: Any) -> Any:
    if isinstance(value, list):
        return [_short(one) for one in value]
    return round(value, 3) if isinstance(value, float) else value


def page(sections: Sections, text: str) -> str:
    """Return the text of the page with the tables of these figures."""
    for name, table in (("subjects", subjects), ("calls", calls), ("others", others)):
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        if not found or end not in rest:
            sys.exit(f"{PAGE} has no place for the table {name!r}")
        text = before + begin + "\n" + "\n".join(table(sections)) + "\n\n" + end + rest.partition(end)[2]
    return text


def readme(sections: Sections, text: str) -> str:
    """Return the text of the README with these figures in the row of its comparison."""
    cost = {row["name"]: f"{row['cpu_us']:.0f} µs" for row in sections["burst"]["rows"]}
    cells = [cost["mixpanel BufferedConsumer"], "not measured", cost["posthog AsyncPosthog"], cost["mixpanel-async"]]
    text, found = re.subn(
        r"^\| CPU per `track` call \|.*$", f"| CPU per `track` call | {' | '.join(cells)} |", text, flags=re.MULTILINE
    )
    if found != 1:
        sys.exit(f"{README} has no row 'CPU per `track` call'")
    return text


def _origin(section: Mapping[str, Any]) -> str:
    return f"Measured on {section['date']}. {section['machine']}."


def subjects(sections: Sections) -> Iterator[str]:
    """Return the table of the libraries."""
    peaks = {row["name"]: row["peak_mb"] for row in sections["memory"]["rows"] if "peak_mb" in row}
    yield "| Subject | CPU per event | Times the floor | Events per second | Peak memory |"
    yield "| --- | --- | --- | --- | --- |"
    for row in sections["burst"]["rows"]:
        if row["name"] in _SUBJECTS:
            peak = peaks.get(row["name"], row.get("peak_mb"))
            yield (
                f"| {_SUBJECTS[row['name']]} | {row['cpu_us']:.1f} µs | {row['times_floor']:.1f} "
                f"| {row['events_per_second']:,.0f} | {peak:.0f} MB |"
            )
    yield ""
    yield _origin(sections["burst"])


def calls(sections: Sections) -> Iterator[str]:
    """Return the table of the ways of calling the client."""
    yield "| Call | CPU per call | Times the floor | Official SDK | PostHog |"
    yield "| --- | --- | --- | --- | --- |"
    for row in sections["shapes"]["rows"]:
        if row["name"] in _SHAPES:
            peers = [f"{row[name]:.0f} µs" if name in row else "" for name in ("official_us", "posthog_us")]
            cells = [_SHAPES[row["name"]], f"{row['cpu_us']:.1f} µs", f"{row['times_floor']:.1f}", *peers]
            yield f"| {' | '.join(cells)} |"
    yield ""
    yield _origin(sections["shapes"])


def others(sections: Sections) -> Iterator[str]:
    """Return the table of the other sections."""
    yield "| Subject | Case | Result | Date |"
    yield "| --- | --- | --- | --- |"
    for name, (title, words) in _OTHERS.items():
        if name in sections:
            for row in sections[name]["rows"]:
                yield f"| {title} | {row['name']} | {words(row)} | {sections[name]['date']} |"
    machines = dict.fromkeys(sections[name]["machine"] for name in _OTHERS if name in sections)
    yield ""
    yield f"Machines: {' '.join(f'({number}) {one}.' for number, one in enumerate(machines, 1))}"


_STYLE: Final = """
  text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #7d8590; }
  .bar { fill: #9aa4af; } .ours { fill: #7856ff; }
"""


def chart(sections: Sections) -> str:
    """Return the chart of the CPU per event as SVG."""
    by_name = {row["name"]: row for row in sections["burst"]["rows"]}
    bars = [(label, by_name[name]["cpu_us"]) for name, label in _IN_CHART.items() if name in by_name]
    return "\n".join(_svg("CPU time to track one event, in microseconds. Shorter is better.", bars)) + "\n"


def _svg(title: str, bars: Sequence[tuple[str, float]]) -> Iterator[str]:
    width, labels, step, room = 760, 250, 30, 80
    height = 40 + step * len(bars)
    most = max(value for _, value in bars)
    summary = "; ".join(f"{name}: {value:.1f} µs" for name, value in bars)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">'
    )
    yield f"<title>{escape(title)}</title>"
    yield f"<desc>{escape(summary)}</desc>"
    yield f"<style>{_STYLE}</style>"
    yield f'<text x="8" y="20">{escape(title)}</text>'
    for number, (name, value) in enumerate(bars):
        y = 36 + step * number
        length = max(1.5, (width - labels - room) * value / most)
        yield f'<text x="{labels - 10}" y="{y + 15}" text-anchor="end">{escape(name)}</text>'
        kind = "ours" if name == "mixpanel-async" else "bar"
        yield f'<rect class="{kind}" x="{labels}" y="{y}" width="{length:.1f}" height="20" rx="3"/>'
        yield f'<text x="{labels + length + 8:.1f}" y="{y + 15}">{value:.1f}</text>'
    yield "</svg>"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tools.performance", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="results.json of a run of the benchmarks")
    parser.add_argument("--date", help="date of the run, such as 2026-11-30; needed with a results file")
    arguments = parser.parse_args()
    if arguments.results and not re.fullmatch(r"\d{4}-\d\d-\d\d", arguments.date or ""):
        parser.error("--date must be the date of the run, such as 2026-11-30")
    sections = load()
    for file in arguments.results:
        sections = merge(sections, json.loads(file.read_text("utf-8")), arguments.date)
    if missing := {"burst", "memory", "shapes"} - sections.keys():
        parser.error(f"no figures of these sections of the benchmarks: {', '.join(sorted(missing))}")
    FIGURES.write_text(json.dumps(sections, indent=1, ensure_ascii=False) + "\n", "utf-8")
    CHART.write_text(chart(sections), "utf-8")
    PAGE.write_text(page(sections, PAGE.read_text("utf-8")), "utf-8")
    README.write_text(readme(sections, README.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
