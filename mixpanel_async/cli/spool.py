"""`mixpanel-async spool`: what a durable spool holds, and mending it."""

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

CANNOT: Final = 1
DAMAGED: Final = 2
# Of a profile update, all that is no operation.
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
    help="Show and mend a durable spool, also while clients use it.\n\n"
    "Exit status: 0 done; 1 there is no spool, or it cannot be used; 2 it is damaged, or the command line is wrong.",
    no_args_is_help=True,
)

Place = Annotated[
    Path, typer.Argument(metavar="PATH", dir_okay=False, help="The file of the spool.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for machines.")]
Reasons = Annotated[
    list[DropReason] | None,
    typer.Option("--reason", help="Only dead letters with this reason; may be given again.", show_default=False),
]
Ids = Annotated[
    list[int] | None,
    typer.Option("--id", help="Only the dead letter with this number; may be given again.", show_default=False),
]


@spool.command()
def status(
    path: Place,
    *,
    as_json: AsJson = False,
    check: Annotated[
        bool | None, typer.Option("--check/--no-check", help="Check the whole file; by default up to 256 MiB.")
    ] = None,
) -> None:
    """What waits, by kind, with the age of the oldest; dead letters by reason; size and soundness of the file."""
    with _told():
        found = SqliteSpool(path).status(check=check)
        if as_json:
            _print_json(asdict(found))
        else:
            _show_status(found)
        if found.integrity not in {"ok", "not checked"}:
            _fail(f"{path}: the spool is damaged", DAMAGED)


@spool.command("list")
def list_(
    path: Place,
    *,
    reason: Reasons = None,
    limit: Annotated[int, typer.Option(min=0, help="Dead letters at most; 0 for all.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with the payload.")] = False,
) -> None:
    """The dead letters, the oldest first: what will not be sent again by itself, and why."""
    with _told():
        found = SqliteSpool(path).dead_letters(reasons=reason)
        letters = islice(found, limit or None)
        if as_json:
            for letter in letters:
                _print_json(asdict(letter))
            return
        now = time.time()
        rows = [(str(one.id), one.kind, one.reason, _age(one.died, now), _subject(one), one.message) for one in letters]
        _table(("id", "kind", "reason", "age", "what", "message"), rows)
        if limit and len(rows) == limit and next(found, None) is not None:
            print(f"There are more than {limit}: --limit 0 shows all.", file=sys.stderr)


@spool.command()
def retry(path: Place, *, reason: Reasons = None, id: Ids = None, as_json: AsJson = False) -> None:
    """Put dead letters back, to be sent by the next client that starts, or by one that runs within ten seconds.

    Those with the reason `uncertain` may have been applied already: they are put back only with `--reason uncertain`.
    """
    with _told():
        found = SqliteSpool(path)
        count = found.retry(reasons=reason, ids=id)
        _say({"retried": count}, f"{_records(count)} put back", as_json=as_json)
        if reason is None:
            unsure = found.dead_letters(reasons=[DropReason.UNCERTAIN])
            left = sum(id is None or letter.id in id for letter in unsure)
            if left:
                was, it = ("was", "it") if left == 1 else ("were", "them")
                text = f"{_records(left)} that may have been applied {was} left: --reason uncertain puts {it} back"
                print(text, file=sys.stderr)


@spool.command()
def purge(
    path: Place,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="Delete all dead letters.")] = False,
    reason: Reasons = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only dead letters older than 90s, 30m, 12h, 7d.", show_default=False),
    ] = None,
    id: Ids = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Delete what clients have left that live no more, of every project.")
    ] = False,
    distinct_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Delete every record of this person, waiting or dead.", show_default=False),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete for good: dead letters, what dead clients have left, or whatever names one person.

    What a running client holds in memory it still sends. Files set aside as damaged are not touched.
    """
    seconds = None if older_than is None else _seconds(older_than)
    is_dead = dead or any(one is not None for one in (reason, seconds, id))
    if not (is_dead or waiting or distinct_id is not None):
        raise typer.BadParameter("say what: --dead, --reason, --older-than, --id, --waiting or --distinct-id")
    if distinct_id is not None and (is_dead or waiting):
        raise typer.BadParameter("--distinct-id goes alone: it deletes whatever names the person")
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter("this deletes records; add --yes, as nobody can be asked")
        typer.confirm("Delete them for good?", abort=True, err=True)
    with _told():
        gone = SqliteSpool(path).purge(
            dead=dead, reasons=reason, older_than=seconds, ids=id, waiting=waiting, distinct_id=distinct_id
        )
        text = f"{_records(gone.waiting)} that waited and {_records(gone.dead, 'dead letter')} deleted"
        _say(asdict(gone), text, as_json=as_json)


@spool.command()
def export(
    path: Place,
    *,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A new file, for you alone to read; by default standard output."),
    ] = None,
    waiting: Annotated[bool, typer.Option("--waiting/--no-waiting", help="What waits.")] = True,
    dead: Annotated[bool, typer.Option("--dead/--no-dead", help="Dead letters.")] = True,
) -> None:
    """Write records as JSON, one a line, without the project's token. They stay in the spool."""
    with _told():
        found = SqliteSpool(path)
        if output is None:
            found.export(sys.stdout.buffer, waiting=waiting, dead=dead)
            sys.stdout.buffer.flush()
        else:
            count = found.export(output, waiting=waiting, dead=dead)
            print(f"{_records(count)} written to {output}", file=sys.stderr)


@contextmanager
def _told() -> Iterator[None]:
    """Say what went wrong in one line."""
    try:
        yield
    except BrokenPipeError:
        # Whoever reads has seen enough: typer ends the program without a word.
        raise
    except SpoolError as error:
        _fail(str(error), DAMAGED if error.is_damaged else CANNOT)
    except MixpanelException as error:
        _fail(str(error), CANNOT)
    except OSError as error:
        _fail(error.strerror or type(error).__name__, CANNOT)


def _fail(words: str, code: int) -> NoReturn:
    print(f"mixpanel-async spool: {words}", file=sys.stderr)
    raise typer.Exit(code)


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value))


def _say(value: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(value)
    else:
        print(words)


def _show_status(found: SpoolStatus) -> None:
    now = time.time()
    rows = [("waiting", *_row(kind, count, now), _held(found, kind)) for kind, count in sorted(found.waiting.items())]
    rows += [("dead", *_row(reason, count, now), "") for reason, count in sorted(found.dead.items())]
    _table(("state", "what", "records", "bytes", "oldest", "held by live clients"), rows, numbers=(2, 3, 4, 5))
    facts = {
        "in use": "by a live client" if found.is_in_use else "by nobody",
        "being sent": f"{_records(found.sending)} that must not be sent twice",
        "projects": str(found.projects),
        "file": f"{found.file_bytes:,} bytes; log {found.log_bytes:,} bytes; in use of both {found.used_bytes:,} bytes",
        "schema": str(found.schema),
        "integrity": found.integrity,
    }
    for name in found.set_aside:
        facts[f"set aside: {name}"] = "damaged; holds what could not be saved"
    for name, text in facts.items():
        print(f"{name}\t{text}" if not sys.stdout.isatty() else f"{name + ':':12} {text}")


def _row(name: str, count: SpoolCount, now: float) -> tuple[str, str, str, str]:
    return name, f"{count.records}", f"{count.bytes}", _age(count.oldest, now)


def _held(found: SpoolStatus, kind: str) -> str:
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
        raise typer.BadParameter("an age is a number and s, m, h or d, such as 7d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _records(count: int, name: str = "record") -> str:
    return f"1 {name}" if count == 1 else f"{count} {name}s"


def _subject(record: SpooledRecord) -> str:
    """What it is about, without saying whom."""
    payload = record.payload
    if payload is None:
        return "unreadable"
    return str(payload.get("event") or " ".join(key for key in payload if key not in _ENVELOPE))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = ()) -> None:
    """A table on a terminal; elsewhere a line each, with tabs between."""
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
    """One line, and nothing that could steer a terminal: events may come from anybody."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(cell.split()))
