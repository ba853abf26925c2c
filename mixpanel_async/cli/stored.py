"""Parts shared by the commands `spool` and `queue`: ages, counts, tables, JSON, and the confirmation of a purge."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# Keys of a profile update that are not operations.
_ENVELOPE: Final = frozenset(
    {
        "$distinct_id",
        "$group_id",
        "$group_key",
        "$ignore_alias",
        "$ignore_time",
        "$ip",
        "$latitude",
        "$longitude",
        "$time",
    }
)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_AGE: Final = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhd]?)")


class DeadLetter(Protocol):
    """Dead letter of a spool or queue; see `SpooledRecord`."""

    @property
    def id(self) -> int | str: ...
    @property
    def kind(self) -> str: ...
    @property
    def payload(self) -> Mapping[str, Any] | None: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def died(self) -> float | None: ...


def print_json(value: Mapping[str, Any]) -> None:
    """Print one line of JSON."""
    print(json.dumps(value))


def print_result(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result as JSON or as text."""
    if as_json:
        print_json(value)
    else:
        print(text)


def age_of(since: float | None, now: float) -> str:
    """Return an age in its largest unit, such as `3h`."""
    if since is None:
        return "unknown"
    seconds = max(0, int(now - since))
    for name in ("d", "h", "m"):
        if seconds >= _UNITS[name]:
            return f"{seconds // _UNITS[name]}{name}"
    return f"{seconds}s"


def seconds_of(age: str) -> float:
    """Return the seconds of an age such as `90s` or `7d`.

    Raises:
        BadParameter: if it is not an age.
    """
    match = _AGE.fullmatch(age)
    if match is None:
        raise typer.BadParameter(f"{age!r} is not an age; use a number and s, m, h or d, such as 7d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def count_of(count: int, name: str = "record") -> str:
    """Return a number with its noun."""
    return f"1 {name}" if count == 1 else f"{count} {name}s"


def subject_of(record: DeadLetter) -> str:
    """Return the event name or the operations, without the person's id."""
    payload = record.payload
    if payload is None:
        return "unreadable"
    return str(payload.get("event") or " ".join(key for key in payload if key not in _ENVELOPE))


def print_letters(letters: Iterable[DeadLetter]) -> int:
    """Print a table of dead letters. Return their number."""
    now = time.time()
    rows = [(str(one.id), one.kind, one.reason, age_of(one.died, now), subject_of(one), one.message) for one in letters]
    print_table(("id", "kind", "reason", "age", "what", "message"), rows)
    return len(rows)


def check_purge(*, is_dead: bool, waiting: bool, distinct_id: str | None, yes: bool) -> None:
    """Check the options of a purge, and ask for confirmation.

    Args:
        is_dead: whether an option selects dead letters.
        waiting: whether waiting records are deleted.
        distinct_id: person to delete.
        yes: whether not to ask.

    Raises:
        BadParameter: if the options do not fit together, or standard input cannot answer.
        Abort: if the answer is no.
    """
    if not (is_dead or waiting or distinct_id is not None):
        raise typer.BadParameter(
            "nothing to delete: give --dead, --reason, --older-than, --id, --waiting or --distinct-id"
        )
    if distinct_id is not None and (is_dead or waiting):
        raise typer.BadParameter(
            "--distinct-id deletes all records of a person and cannot be combined with other filters"
        )
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(
                "this deletes records; add --yes to confirm, because standard input is not a terminal"
            )
        typer.confirm("Delete these records permanently?", abort=True, err=True)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
    """Print a table on a terminal; elsewhere, tab-separated lines."""
    if not sys.stdout.isatty():
        for row in (columns, *rows):
            print("\t".join(map(_plain, row)))
        return
    table = Table(box=box.ROUNDED)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_plain(cell)) for cell in row))
    Console(highlight=False).print(table)


def _plain(cell: str) -> str:
    """Return one line without control characters: events may contain hostile text."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(cell.split()))
