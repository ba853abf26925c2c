"""Reports of identity commands as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixpanel_async import IdMerge
from mixpanel_async.identity import AuditReport, Case, Finding

from ..visible import visible
from .messages import write_output

_MAX_ID: Final = 60
_MAX_DETAIL: Final = 300
# The width of the text if the output is no terminal.
_WIDTH: Final = 120


@contextmanager
def output(command: str) -> Iterator[Console]:
    """Yield a console, and write its output to standard output. Its width is fixed without a terminal.

    Args:
        command: name of the command in the group.
    """
    console = Console(soft_wrap=False, highlight=False)
    if not console.is_terminal:
        console = Console(width=_WIDTH, highlight=False)
    with console.capture() as captured:
        yield console
    write_output(captured.get(), command)


def count(number: int, one: str, several: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else several}"


def figures(report: AuditReport) -> list[tuple[str, str]]:
    """Return the figures of a report, each with its name."""
    outcomes = ", ".join(f"{number:,} {outcome}" for outcome, number in report.outcomes.items())
    is_simplified = report.id_merge is IdMerge.SIMPLIFIED
    rows = [
        ("Events", f"{report.events:,}"),
        *([("Profiles", f"{report.profiles:,}")] if report.profiles else []),
        ("Ids", f"{report.ids:,}"),
        ("Persons", f"{report.persons:,}, {report.joined_persons:,} with several ids"),
        ("Ids per person", sizes_line(report)),
        ("Identity calls", f"{report.calls:,}" + (f" ({outcomes})" if outcomes and not is_simplified else "")),
    ]
    if is_simplified:
        rows.append(("Calls and device links", outcomes or "none"))
    if report.persons_of_several_users:
        rows.append(("Persons with several users", f"{report.persons_of_several_users:,}"))
    if report.incomplete_calls:
        rows.append(("Calls without two ids", f"{report.incomplete_calls:,}"))
    if report.ordered_by_time > 0:
        rows.append(("Ordered by time", f"{report.ordered_by_time:,} events without time of arrival"))
    return rows


def size_groups(report: AuditReport) -> list[tuple[str, int]]:
    """Return the number of people by number of ids, in a few groups."""
    bounds = ((1, 1), (2, 2), (3, 3), (4, 10), (11, 100), (101, 10**12))
    groups = []
    for low, high in bounds:
        number = sum(people for size, people in report.sizes.items() if low <= size <= high)
        label = str(low) if low == high else f"{low}-{high}" if high < 10**12 else f"over {low - 1}"
        if number:
            groups.append((label, number))
    return groups


def sizes_line(report: AuditReport) -> str:
    return ", ".join(f"{label}: {number:,}" for label, number in size_groups(report))


def shown(text: str) -> str:
    """Return an id for display: shortened, with invisible characters visible."""
    visible = text if text.isprintable() and text == text.strip() else repr(text)
    return visible if len(visible) <= _MAX_ID else f"{visible[: _MAX_ID - 1]}…"


def case_line(case: Case) -> str:
    """Return a case as one line."""
    line = ", ".join(map(shown, case.ids))
    # A detail may name ids, and a reason of Mixpanel.
    detail = visible(case.detail)
    details = [detail if len(detail) <= _MAX_DETAIL else f"{detail[: _MAX_DETAIL - 1]}…"] if detail else []
    if case.events:
        details.append(count(case.events, "event", "events"))
    return f"{line} ({'; '.join(details)})" if details else line


def finding_title(finding: Finding) -> str:
    return finding.title if finding.reason is None else f"{finding.title}: {finding.reason.value}"


def print_audit(report: AuditReport) -> None:
    """Print a report."""
    with output("audit") as console:
        _print_audit(console, report)


def _print_audit(console: Console, report: AuditReport) -> None:
    print_pairs(console, figures(report))
    console.print()
    if not report.findings:
        console.print("No findings.")
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("count", justify="right")
    table.add_column("finding")
    for finding in report.findings:
        table.add_row(f"{finding.count:,}", escape(finding_title(finding)))
    console.print(table)
    for finding in report.findings:
        console.print(f"\n[bold]{escape(finding_title(finding))}[/bold]: {finding.count:,}")
        console.print(escape(finding.advice))
        for case in finding.cases:
            console.print(f"  {escape(case_line(case))}", overflow="fold")
        rest = finding.count - len(finding.cases)
        if rest and finding.cases:
            console.print(f"  and {rest:,} more")


def print_pairs(console: Console, rows: Iterable[Sequence[str]]) -> None:
    """Print names and values in two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
