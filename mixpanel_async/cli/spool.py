"""`mixpanel-async spool`: inspect and repair a durable spool."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from mixpanel_async import (
    DropReason,
    MixpanelException,
    SpoolCount,
    SpoolError,
    SpoolStatus,
    SqliteSpool,
)

from .examples import epilog
from .stored import age_of, check_purge, count_of, print_json, print_letters, print_result, print_table, seconds_of

EXIT_FAILED: Final = 1
EXIT_DAMAGED: Final = 2
_QUEUE_SCHEMES: Final = ("redis:", "rediss:", "unix:")

spool: Final = typer.Typer(
    help="Inspect and repair a durable spool, also while clients use it.\n\n"
    "Exit status: 0 success; 1 no spool at the path, or it cannot be used; 2 damaged spool, or invalid command line.",
    epilog=epilog("spool"),
    rich_markup_mode=None,
    no_args_is_help=True,
)


def _refuse_url(path: Path) -> Path:
    # A path has lost one of the two slashes.
    if str(path).startswith(_QUEUE_SCHEMES):
        raise typer.BadParameter("this is the URL of a queue: use mixpanel-async queue")
    return path


SpoolPath = Annotated[
    Path,
    typer.Argument(metavar="PATH", dir_okay=False, help="Spool file.", show_default=False, callback=_refuse_url),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Reasons = Annotated[
    list[DropReason] | None,
    typer.Option(
        "--reason",
        metavar="REASON",
        help="Only dead letters with this reason, such as rejected or unauthorized. Repeatable.",
        show_default=False,
    ),
]
Ids = Annotated[
    list[int] | None,
    typer.Option("--id", help="Only the dead letter with this id. Repeatable.", show_default=False),
]


@spool.command(epilog=epilog("spool status"), short_help="Show waiting records and dead letters.")
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
            print_json(asdict(found))
        else:
            _show_status(found)
        if found.integrity not in {"ok", "not checked"}:
            _fail(f"{path}: the spool is damaged; start a client to recover readable records", EXIT_DAMAGED)


@spool.command("list", epilog=epilog("spool list"), short_help="List the dead letters.")
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
                print_json(asdict(letter))
            return
        count = print_letters(letters)
        if limit and count == limit and next(found, None) is not None:
            print(f"There are more than {limit} dead letters; --limit 0 shows all.", file=sys.stderr)


@spool.command(epilog=epilog("spool retry"), short_help="Put dead letters back to be sent.")
def retry(path: SpoolPath, *, reason: Reasons = None, id: Ids = None, as_json: AsJson = False) -> None:
    """Put dead letters back to be sent, within ten seconds by a running client, or by the next one that starts.

    Records with the reason `uncertain` may have been applied already. They need `--reason uncertain`.
    """
    with _reporting_errors():
        found = SqliteSpool(path)
        count = found.retry(reasons=reason, ids=id)
        print_result({"retried": count}, f"put back {count_of(count)}", as_json=as_json)
        if reason is None:
            unsure = found.dead_letters(reasons=[DropReason.UNCERTAIN])
            left = sum(id is None or letter.id in id for letter in unsure)
            if left:
                text = f"skipped {count_of(left)} that may have been applied already; --reason uncertain includes them"
                print(text, file=sys.stderr)


@spool.command(epilog=epilog("spool purge"), short_help="Delete records permanently.")
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
    seconds = None if older_than is None else seconds_of(older_than)
    is_dead = dead or any(one is not None for one in (reason, seconds, id))
    check_purge(is_dead=is_dead, waiting=waiting, distinct_id=distinct_id, yes=yes)
    with _reporting_errors():
        gone = SqliteSpool(path).purge(
            dead=dead, reasons=reason, older_than=seconds, ids=id, waiting=waiting, distinct_id=distinct_id
        )
        text = f"deleted {count_of(gone.waiting, 'waiting record')} and {count_of(gone.dead, 'dead letter')}"
        print_result(asdict(gone), text, as_json=as_json)


@spool.command(epilog=epilog("spool export"), short_help="Write records as JSON lines.")
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
            print(f"wrote {count_of(count)} to {output}", file=sys.stderr)


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


def _show_status(found: SpoolStatus) -> None:
    now = time.time()
    rows = [
        ("waiting", *_row(kind, count, now), _held_count(found, kind)) for kind, count in sorted(found.waiting.items())
    ]
    rows += [("dead", *_row(reason, count, now), "") for reason, count in sorted(found.dead.items())]
    print_table(("state", "what", "records", "bytes", "oldest", "held by live clients"), rows, numbers=(2, 3, 4, 5))
    facts = {
        "in use": "by a live client" if found.is_in_use else "no",
        "being sent": f"{count_of(found.sending)} that must not be sent twice",
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
    return name, f"{count.records}", f"{count.bytes}", age_of(count.oldest, now)


def _held_count(found: SpoolStatus, kind: str) -> str:
    return str(found.held[kind].records if kind in found.held else 0)
