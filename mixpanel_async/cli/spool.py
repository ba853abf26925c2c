"""`mixpanel-async spool`: inspect and repair a durable spool."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mixpanel_async import (
    DropReason,
    MixpanelException,
    SpoolCount,
    SpooledRecord,
    SpoolError,
    SpoolStatus,
    SqliteSpool,
)

EXIT_FAILED: Final = 1
EXIT_DAMAGED: Final = 2
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

spool: Final = typer.Typer(
    help="Inspect and repair a durable spool, also while clients use it.\n\n"
    "Exit status: 0 success; 1 no spool at the path, or it cannot be used; 2 damaged spool, or invalid command line.",
    no_args_is_help=True,
)

SpoolPath = Annotated[Path, typer.Argument(metavar="PATH", dir_okay=False, help="Spool file.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reasons = Annotated[
    list[DropReason] | None,
    typer.Option("--reason", help="Only dead letters with this reason. Repeatable.", show_default=False),
]
Ids = Annotated[
    list[int] | None,
    typer.Option("--id", help="Only the dead letter with this id. Repeatable.", show_default=False),
]


@spool.command()
def status(
    path: SpoolPath,
    *,
    as_json: AsJson = False,
    check: Annotated[
        bool | None, typer.Option("--check/--no-check", help="Check the whole file. Default: if it has up to 256 MiB.")
    ] = None,
) -> None:
    """Show waiting records by kind, dead letters by reason, and the size and integrity of the file."""
    with _reporting_errors():
        found = SqliteSpool(path).status(check=check)
        if as_json:
            _print_json(asdict(found))
        else:
            _show_status(found)
        if found.integrity not in {"ok", "not checked"}:
            _fail(f"{path}: the spool is damaged; start a client to recover readable records", EXIT_DAMAGED)


@spool.command("list")
def list_(
    path: SpoolPath,
    *,
    reason: Reasons = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of dead letters; 0 for all.")] = 100,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each line, with the payload.")
    ] = False,
) -> None:
    """List the dead letters, the oldest first, with the reason why each will not be sent again."""
    with _reporting_errors():
        found = SqliteSpool(path).dead_letters(reasons=reason)
        letters = islice(found, limit or None)
        if as_json:
            for letter in letters:
                _print_json(asdict(letter))
            return
        now = time.time()
        rows = [(str(one.id), one.kind, one.reason, _age(one.died, now), _subject(one), one.message) for one in letters]
        _print_table(("id", "kind", "reason", "age", "what", "message"), rows)
        if limit and len(rows) == limit and next(found, None) is not None:
            print(f"There are more than {limit} dead letters; --limit 0 shows all.", file=sys.stderr)


@spool.command()
def retry(path: SpoolPath, *, reason: Reasons = None, id: Ids = None, as_json: AsJson = False) -> None:
    """Put dead letters back to be sent, within ten seconds by a running client, or by the next one that starts.

    Records with the reason `uncertain` may have been applied already. They need `--reason uncertain`.
    """
    with _reporting_errors():
        found = SqliteSpool(path)
        count = found.retry(reasons=reason, ids=id)
        _print_result({"retried": count}, f"put back {_records(count)}", as_json=as_json)
        if reason is None:
            unsure = found.dead_letters(reasons=[DropReason.UNCERTAIN])
            left = sum(id is None or letter.id in id for letter in unsure)
            if left:
                text = f"skipped {_records(left)} that may have been applied already; --reason uncertain includes them"
                print(text, file=sys.stderr)


@spool.command()
def purge(
    path: SpoolPath,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="Delete all dead letters.")] = False,
    reason: Reasons = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only dead letters older than 90s, 30m, 12h, 7d.", show_default=False),
    ] = None,
    id: Ids = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Delete waiting records of ended clients, of all projects.")
    ] = False,
    distinct_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Delete all records of this person, waiting and dead.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete permanently: dead letters, waiting records of ended clients, or all records of one person.

    A running client still sends the records that it holds in memory. Damaged files set aside are not changed.
    """
    seconds = None if older_than is None else _seconds(older_than)
    is_dead = dead or any(one is not None for one in (reason, seconds, id))
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
    with _reporting_errors():
        gone = SqliteSpool(path).purge(
            dead=dead, reasons=reason, older_than=seconds, ids=id, waiting=waiting, distinct_id=distinct_id
        )
        text = f"deleted {_records(gone.waiting, 'waiting record')} and {_records(gone.dead, 'dead letter')}"
        _print_result(asdict(gone), text, as_json=as_json)


@spool.command()
def export(
    path: SpoolPath,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New file, readable by you only. Default: standard output."),
    ] = None,
    waiting: Annotated[bool, typer.Option("--waiting/--no-waiting", help="Include waiting records.")] = True,
    dead: Annotated[bool, typer.Option("--dead/--no-dead", help="Include dead letters.")] = True,
) -> None:
    """Write records as JSON lines, without the project token. They stay in the spool."""
    with _reporting_errors():
        found = SqliteSpool(path)
        if output is None:
            found.export(sys.stdout.buffer, waiting=waiting, dead=dead)
            sys.stdout.buffer.flush()
        else:
            count = found.export(output, waiting=waiting, dead=dead)
            print(f"wrote {_records(count)} to {output}", file=sys.stderr)


@contextmanager
def _reporting_errors() -> Iterator[None]:
    """Print an error in one line and exit."""
    try:
        yield
    except BrokenPipeError:
        # The reader closed the pipe: typer exits silently.
        raise
    except SpoolError as error:
        _fail(str(error), EXIT_DAMAGED if error.is_damaged else EXIT_FAILED)
    except MixpanelException as error:
        _fail(str(error), EXIT_FAILED)
    except OSError as error:
        _fail(error.strerror or type(error).__name__, EXIT_FAILED)


def _fail(message: str, code: int) -> NoReturn:
    print(f"mixpanel-async spool: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value))


def _print_result(value: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(value)
    else:
        print(text)


def _show_status(found: SpoolStatus) -> None:
    now = time.time()
    rows = [
        ("waiting", *_row(kind, count, now), _held_count(found, kind)) for kind, count in sorted(found.waiting.items())
    ]
    rows += [("dead", *_row(reason, count, now), "") for reason, count in sorted(found.dead.items())]
    _print_table(("state", "what", "records", "bytes", "oldest", "held by live clients"), rows, numbers=(2, 3, 4, 5))
    facts = {
        "in use": "by a live client" if found.is_in_use else "no",
        "being sent": f"{_records(found.sending)} that must not be sent twice",
        "projects": str(found.projects),
        "file": f"{found.file_bytes:,} bytes; log {found.log_bytes:,} bytes; used in both {found.used_bytes:,} bytes",
        "schema": str(found.schema),
        "integrity": found.integrity,
    }
    for name in found.set_aside:
        facts[f"set aside: {name}"] = "damaged; contains the records that could not be recovered"
    for name, text in facts.items():
        print(f"{name}\t{text}" if not sys.stdout.isatty() else f"{name + ':':12} {text}")


def _row(name: str, count: SpoolCount, now: float) -> tuple[str, str, str, str]:
    return name, f"{count.records}", f"{count.bytes}", _age(count.oldest, now)


def _held_count(found: SpoolStatus, kind: str) -> str:
    return str(found.held[kind].records if kind in found.held else 0)


def _age(since: float | None, now: float) -> str:
    if since is None:
        return "unknown"
    seconds = max(0, int(now - since))
    for name in ("d", "h", "m"):
        if seconds >= _UNITS[name]:
            return f"{seconds // _UNITS[name]}{name}"
    return f"{seconds}s"


def _seconds(age: str) -> float:
    match = _AGE.fullmatch(age)
    if match is None:
        raise typer.BadParameter(f"{age!r} is not an age; use a number and s, m, h or d, such as 7d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _records(count: int, name: str = "record") -> str:
    return f"1 {name}" if count == 1 else f"{count} {name}s"


def _subject(record: SpooledRecord) -> str:
    """Return the event name or the operations, without the person's id."""
    payload = record.payload
    if payload is None:
        return "unreadable"
    return str(payload.get("event") or " ".join(key for key in payload if key not in _ENVELOPE))


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
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
