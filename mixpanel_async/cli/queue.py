"""`mixpanel-async queue`: inspect and repair a queue that many hosts share."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Final, NoReturn, TypeVar

import anyio
import typer

from mixpanel_async import ConfigurationError, DropReason, MixpanelException

from . import require
from .examples import epilog
from .stored import age_of, check_purge, count_of, print_json, print_letters, print_result, print_table, seconds_of

if TYPE_CHECKING:
    from mixpanel_async.outbox import QueueAdmin, QueueCount, QueuedRecord, QueueStatus, QueueWorker

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_BOUND: Final = 3
_T = TypeVar("_T")

queue: Final = typer.Typer(
    help="Inspect and repair a queue in Redis or Valkey, also while producers and workers use it.\n\n"
    "URL is redis://, rediss:// or unix://, by default the value of MIXPANEL_OUTBOX.\n\n"
    "Exit status: 0 success; 1 no queue of this name, or Redis cannot be used; 2 invalid command line; 3 a bound of"
    " `status` is exceeded.",
    epilog=epilog("queue"),
    rich_markup_mode=None,
    no_args_is_help=True,
)

Url = Annotated[
    str, typer.Argument(metavar="URL", envvar="MIXPANEL_OUTBOX", help="URL of Redis or Valkey.", show_default=False)
]
Name = Annotated[str, typer.Option("--queue", help="Name of the queue, as in RedisOutbox(name=...).")]
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
    list[str] | None,
    typer.Option("--id", help="Only the dead letter with this id. Repeatable.", show_default=False),
]


@queue.command(epilog=epilog("queue status"), short_help="Show waiting records, dead letters and workers.")
def status(
    url: Url,
    *,
    name: Name = "mixpanel",
    as_json: AsJson = False,
    max_lag: Annotated[
        int | None,
        typer.Option(min=0, help="Exit with status 3 if more records than this wait.", show_default=False),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(
            metavar="AGE", help="Exit with status 3 if one has waited longer than 90s, 5m, 1h.", show_default=False
        ),
    ] = None,
) -> None:
    """Show waiting records by lane, dead letters by reason, workers, shared pauses, the server, and advice."""
    seconds = None if max_age is None else seconds_of(max_age)

    async def read(admin: QueueAdmin) -> QueueStatus:
        return await admin.status()

    found, now = _run(url, name, read), time.time()
    if as_json:
        print_json({**asdict(found), "advice": found.advice})
    else:
        _show_status(found, now)
    exceeded = []
    if max_lag is not None and found.records > max_lag:
        exceeded.append(f"{count_of(found.records)} wait, more than {max_lag}")
    if seconds is not None and found.oldest is not None and now - found.oldest > seconds:
        exceeded.append(f"the oldest has waited for {age_of(found.oldest, now)}, more than {max_age}")
    if exceeded:
        _fail("; ".join(exceeded), EXIT_BOUND)


@queue.command("list", epilog=epilog("queue list"), short_help="List the dead letters.")
def list_(
    url: Url,
    *,
    name: Name = "mixpanel",
    reason: Reasons = None,
    limit: Annotated[int, typer.Option(min=0, help="Maximum number of dead letters; 0 for all.")] = 100,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object for each line, with the payload.")
    ] = False,
) -> None:
    """List the dead letters, the oldest first, with the reason why each will not be sent again."""

    async def read(admin: QueueAdmin) -> None:
        rows: list[QueuedRecord] = []
        count = 0
        has_more = False
        async for letter in admin.dead_letters(reasons=reason):
            has_more = bool(limit) and count == limit
            if has_more:
                break
            count += 1
            if as_json:
                print_json(asdict(letter))
            else:
                rows.append(letter)
        if not as_json:
            print_letters(rows)
            if has_more:
                print(f"There are more than {limit} dead letters; --limit 0 shows all.", file=sys.stderr)

    _run(url, name, read)


@queue.command(epilog=epilog("queue retry"), short_help="Put dead letters back to be sent.")
def retry(
    url: Url, *, name: Name = "mixpanel", reason: Reasons = None, id: Ids = None, as_json: AsJson = False
) -> None:
    """Put dead letters back behind the waiting records, for the workers to send.

    Records with the reason `uncertain` may have been applied already. They need `--reason uncertain`.
    """

    async def change(admin: QueueAdmin) -> tuple[int, int, set[str]]:
        unknown = set(id or ())
        if unknown:
            unknown.difference_update([letter.id async for letter in admin.dead_letters()])
        count = await admin.retry(reasons=reason, ids=id)
        if reason is not None:
            return count, 0, unknown
        unsure = admin.dead_letters(reasons=[DropReason.UNCERTAIN])
        return count, len([letter.id async for letter in unsure if id is None or letter.id in id]), unknown

    count, left, unknown = _run(url, name, change)
    print_result({"retried": count}, f"put back {count_of(count)}", as_json=as_json)
    if left:
        text = f"skipped {count_of(left)} that may have been applied already; --reason uncertain includes them"
        print(text, file=sys.stderr)
    if unknown:
        print(f"no dead letter has the id {', '.join(sorted(unknown))}; see mixpanel-async queue list", file=sys.stderr)


@queue.command(epilog=epilog("queue purge"), short_help="Delete records permanently.")
def purge(
    url: Url,
    *,
    name: Name = "mixpanel",
    dead: Annotated[bool, typer.Option("--dead", help="Delete all dead letters.")] = False,
    reason: Reasons = None,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Only dead letters older than 90s, 30m, 12h, 7d.", show_default=False),
    ] = None,
    id: Ids = None,
    waiting: Annotated[
        bool, typer.Option("--waiting", help="Delete waiting records that no live worker has read.")
    ] = False,
    distinct_id: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Erase this person: dead letters now, waiting records by the workers."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete permanently: dead letters, waiting records, or all records of one person.

    Records of an erased person that wait are dropped when a worker comes to them, and count as `purged`. Later records
    of the person are sent.
    """
    seconds = None if older_than is None else seconds_of(older_than)
    is_dead = dead or any(one is not None for one in (reason, seconds, id))
    check_purge(is_dead=is_dead, waiting=waiting, distinct_id=distinct_id, yes=yes)
    gone = _run(
        url,
        name,
        lambda admin: admin.purge(
            dead=dead, reasons=reason, older_than=seconds, ids=id, waiting=waiting, distinct_id=distinct_id
        ),
    )
    if gone.waiting is None:
        text = f"deleted {count_of(gone.dead, 'dead letter')}; workers drop the person's waiting records"
    else:
        text = f"deleted {count_of(gone.waiting, 'waiting record')} and {count_of(gone.dead, 'dead letter')}"
    print_result(asdict(gone), text, as_json=as_json)


@queue.command(epilog=epilog("queue export"), short_help="Write records as JSON lines.")
def export(
    url: Url,
    *,
    name: Name = "mixpanel",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="New file, readable by you only. Default: standard output."),
    ] = None,
    waiting: Annotated[bool, typer.Option("--waiting/--no-waiting", help="Include waiting records.")] = True,
    dead: Annotated[bool, typer.Option("--dead/--no-dead", help="Include dead letters.")] = True,
) -> None:
    """Write records as JSON lines, without the project token. They stay in the queue."""

    async def read(admin: QueueAdmin) -> int:
        found = admin.records(waiting=waiting, dead=dead)
        return await (_write(found, sys.stdout.buffer) if output is None else _write_file(found, output))

    count = _run(url, name, read)
    if output is not None:
        print(f"wrote {count_of(count)} to {output}", file=sys.stderr)


async def _write(found: AsyncIterator[QueuedRecord], file: IO[bytes]) -> int:
    count = 0
    async for record in found:
        file.write(json.dumps(asdict(record), separators=(",", ":"), ensure_ascii=False).encode() + b"\n")
        count += 1
    file.flush()
    return count


async def _write_file(found: AsyncIterator[QueuedRecord], path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        handle = os.open(path, flags, 0o600)
    except OSError as error:
        raise ConfigurationError(f"cannot create the export file {path} ({error.strerror})") from None
    try:
        with open(handle, "wb") as file:  # noqa: ASYNC230  nothing else runs
            return await _write(found, file)
    except BaseException:
        # An incomplete export must not be mistaken for a complete one.
        os.unlink(path)
        raise


def _run(url: str, name: str, work: Callable[[QueueAdmin], Awaitable[_T]]) -> _T:
    """Call a function with a connection to the queue. Print an error in one line, without the URL, and exit."""
    require("redis", "redis")
    from mixpanel_async.outbox import RedisOutbox

    try:
        outbox = RedisOutbox(url, name=name)
    except ConfigurationError as error:
        _fail(str(error).replace("the url of RedisOutbox", "URL"), EXIT_USAGE)

    async def main() -> _T:
        async with outbox.admin() as admin:
            return await work(admin)

    try:
        return anyio.run(main)
    except MixpanelException as error:
        _fail(str(error), EXIT_FAILED)


def _fail(message: str, code: int) -> NoReturn:
    # The standard output may be closed as well.
    with suppress(BrokenPipeError):
        sys.stdout.flush()
    print(f"mixpanel-async queue: {message}", file=sys.stderr)
    raise typer.Exit(code)


# Status


def _show_status(found: QueueStatus, now: float) -> None:
    rows = [("waiting", *_row(lane, count, now), str(count.held)) for lane, count in found.waiting.items()]
    rows += [("dead", *_row(reason, count, now), "") for reason, count in sorted(found.dead.items())]
    print_table(("state", "what", "records", "bytes", "oldest", "entries held"), rows, numbers=(2, 3, 4, 5))
    if found.workers:
        columns = ("worker", "kinds", "counts as dead in", "entries held", "ordered lanes")
        print_table(columns, [_worker_row(one) for one in found.workers], numbers=(2, 3))
    counters = ", ".join(f"{name} {count}" for name, count in found.counters.items())
    server = found.server
    facts = {
        "waiting": f"{count_of(found.records)} in {found.bytes:,} bytes, the oldest {_oldest(found, now)}",
        "counters": counters,
        "partitions": str(found.partitions),
        "server": f"{server.name} {server.version}, role: {_known(server.role)}, replicas: {_known(server.replicas)}",
        "persistence": f"append-only file: {_known(server.append_only)}, fsync: {_known(server.append_fsync)}",
        "memory": f"{_memory(server.memory)} of {_memory(server.max_memory)}, policy: {_known(server.policy)}",
    }
    if found.erased:
        facts["erased"] = f"{count_of(found.erased, 'person id')} whose older records are dropped"
    for label, text in facts.items():
        print(f"{label}\t{text}" if not sys.stdout.isatty() else f"{label + ':':12} {text}")
    for text in found.advice:
        print(f"advice\t{text}" if not sys.stdout.isatty() else f"{'advice:':12} {text}")


def _row(name: str, count: QueueCount, now: float) -> tuple[str, str, str, str]:
    return name, f"{count.records}", f"{count.bytes}", age_of(count.oldest, now)


def _worker_row(worker: QueueWorker) -> tuple[str, str, str, str, str]:
    lanes = Counter(lane.partition(":")[0] for lane in worker.lanes)
    return (
        worker.name,
        ", ".join(worker.kinds) or "all",
        f"{worker.alive_for:.0f}s" if worker.alive_for else "dead",
        str(worker.held),
        ", ".join(f"{kind} {count}" for kind, count in sorted(lanes.items())),
    )


def _oldest(found: QueueStatus, now: float) -> str:
    return "none" if found.oldest is None else age_of(found.oldest, now)


def _memory(count: int | None) -> str:
    if not count:
        return "unknown" if count is None else "no limit"
    return f"{count:,} bytes"


def _known(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)
