"""`mixpanel-async import`: files of events or profiles into Mixpanel."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Final, NoReturn

import anyio
import typer

from mixpanel_async import Checker, ConfigurationError

from ._checkpoint import CheckpointError
from ._delivery import Importer, Limits
from ._dry_run import DryRun
from ._inputs import Format, Input, InputError, found
from ._jobs import Job
from ._lock import LockedError, locked
from ._outcome import STOPPED, USAGE, Outcome
from ._plan import Columns, Places, Project
from ._progress import display, tell
from ._shape import InsertIds, Kind, Operation
from ._signals import Signals
from ._sources import source
from ._stream import Position

# As long as a token, which counts in the size of an event.
_ANY_TOKEN: Final = "0" * 32
_GRACE: Final = 20.0


def import_(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files or patterns; - is the standard input.", show_default=False),
    ],
    kind: Annotated[Kind, typer.Option(help="What the records are.")] = Kind.EVENTS,
    format: Annotated[
        Format, typer.Option(help="How records lie in the files; auto goes by their first bytes and their names.")
    ] = Format.AUTO,
    map: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=COLUMN", help="Take a field or property from a column; a.b is the b within a."),
    ] = None,
    set: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Give every record this field or property.")
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Leave a column out.")] = None,
    type: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN=TYPE", help="Read a column as text, number, boolean, time or json."),
    ] = None,
    infer_types: Annotated[  # noqa: FBT002  an option of a command, here and below
        bool, typer.Option("--infer-types", help="Read text that looks like a number or a boolean as one.")
    ] = False,
    time_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="auto (seconds, milliseconds or ISO 8601), iso, seconds, milliseconds, microseconds, nanoseconds, or "
            "a pattern such as '%d.%m.%Y %H:%M'.",
        ),
    ] = "auto",
    timezone: Annotated[
        str | None,
        typer.Option(metavar="ZONE", help="Zone of times that name none, such as Europe/Vienna, UTC or +02:00."),
    ] = None,
    operation: Annotated[
        Operation, typer.Option(help="What to do with the properties of profiles whose records do not say.")
    ] = Operation.SET,
    insert_ids: Annotated[
        InsertIds,
        typer.Option(help="What a missing $insert_id is made of: content (equal events count once) or line."),
    ] = InsertIds.CONTENT,
    delimiter: Annotated[str | None, typer.Option(help="Of CSV: a comma, or a tab in TSV.")] = None,
    encoding: Annotated[str, typer.Option(help="Of CSV.")] = "utf-8",
    token: Annotated[str | None, typer.Option(help="The project's token; or MIXPANEL_TOKEN.")] = None,
    service_account: Annotated[
        str | None, typer.Option(metavar="USER", help="Or MIXPANEL_SERVICE_ACCOUNT_USERNAME.")
    ] = None,
    service_account_secret: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET",
            help="Better in MIXPANEL_SERVICE_ACCOUNT_SECRET: others on this machine may see a command line.",
        ),
    ] = None,
    project_id: Annotated[str | None, typer.Option(help="Of the service account; or MIXPANEL_PROJECT_ID.")] = None,
    region: Annotated[str | None, typer.Option(help="us, eu or in; or MIXPANEL_REGION.")] = None,
    api_host: Annotated[str | None, typer.Option(help="A host or an origin instead; or MIXPANEL_API_HOST.")] = None,
    allow_http: Annotated[  # noqa: FBT002
        bool, typer.Option("--allow-http", help="Take an http:// origin that is not on this machine.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, max=50, help="Requests at once, at most; fewer after a 429.")] = 10,
    patience: Annotated[
        float, typer.Option(min=1, max=86_400, metavar="SECONDS", help="Give up if nothing was taken for so long.")
    ] = 600.0,
    at_least_once: Annotated[  # noqa: FBT002
        bool, typer.Option("--at-least-once", help="Send $add, $append and $remove again that may have been applied.")
    ] = False,
    rejects: Annotated[
        Path | None, typer.Option(help="One file for rejected records, instead of FILE.import-rejects for each.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Directory for checkpoints and rejects, instead of beside the files.")
    ] = None,
    checkpoint: Annotated[  # noqa: FBT002
        bool, typer.Option("--checkpoint/--no-checkpoint", help="Keep in FILE.import-state what it takes to go on.")
    ] = True,
    restart: Annotated[  # noqa: FBT002
        bool, typer.Option("--restart", help="Begin anew, whatever was imported before.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and send nothing.")] = False,  # noqa: FBT002
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,  # noqa: FBT002
) -> None:
    """Import events, user profiles or groups from NDJSON, JSON, CSV and Parquet, plain or with gzip or zstd.

    An import that was interrupted goes on when the same command is given again. Exit status: 0 done; 1 stopped by an
    error, or a file is damaged; 2 wrong usage, nothing was sent; 3 done, now or before, but some records were rejected
    or are uncertain; 130 interrupted.
    """
    columns = Columns(
        kind=kind,
        format=format,
        map=tuple(map or ()),
        set=tuple(set or ()),
        drop=tuple(drop or ()),
        type=tuple(type or ()),
        infer_types=infer_types,
        time_format=time_format,
        timezone=timezone,
        operation=operation,
        insert_ids=insert_ids,
        delimiter=delimiter,
        encoding=encoding,
    )
    given = {
        "TOKEN": token,
        "SERVICE_ACCOUNT_USERNAME": service_account,
        "SERVICE_ACCOUNT_SECRET": service_account_secret,
        "PROJECT_ID": project_id,
        "REGION": region,
        "API_HOST": api_host,
    }
    options = {f"MIXPANEL_{name}": value for name, value in given.items() if value is not None}
    project = Project(environ={**os.environ, **options}, allow_http=allow_http)
    limits = Limits(concurrency=concurrency, patience=patience, grace=_GRACE, at_least_once=at_least_once)
    places = Places(directory=state_dir, rejects=rejects, keeps_checkpoints=checkpoint, restart=restart)
    try:
        inputs = _inputs(files, columns)
        if dry_run:
            outcome = _checked(inputs, columns, places, quiet=quiet)
        else:
            outcome = _imported(inputs, columns, project, limits, places, quiet=quiet)
    except (InputError, CheckpointError, LockedError, ConfigurationError, ValueError) as error:
        _fail(str(error), USAGE)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", STOPPED)
    for line in outcome.lines():
        tell(line, sys.stdout)
    raise typer.Exit(outcome.status)


def _inputs(files: Sequence[str], columns: Columns) -> list[Input]:
    """The files, each looked at: what cannot be read is told before anything is sent."""
    reading = columns.reading()
    inputs, passed = found(files)
    for one in inputs:
        if one.identity is not None:
            source(one, reading, Position()).close()
    for name in passed:
        tell(f"passing over {name}, which an earlier import has left", sys.stderr)
    return inputs


def _checked(inputs: Sequence[Input], columns: Columns, places: Places, *, quiet: bool) -> Outcome:
    shape, jobs = columns.shape(), places.dry(inputs)
    shows = display("good", quiet=quiet)
    run = DryRun(jobs, reading=columns.reading(), shape=shape, checker=Checker(_ANY_TOKEN), display=shows)
    signal = None
    try:
        run.run()
    except KeyboardInterrupt:
        signal = 130
    finally:
        shows.close()
        jobs[0].rejects.close()
    return Outcome(
        jobs=jobs,
        noun=columns.kind.value,
        is_dry=True,
        reasons=run.journal.reasons,
        named=run.journal.first,
        unused=shape.idle(),
        signal=signal,
    )


def _imported(
    inputs: Sequence[Input], columns: Columns, project: Project, limits: Limits, places: Places, *, quiet: bool
) -> Outcome:
    with ExitStack() as stack:
        for one in inputs:
            stack.enter_context(locked(one))
        shape = columns.shape()
        jobs = places.jobs(inputs, project.fingerprint(), columns.decisive())
        left = [job for job in jobs if not job.is_complete]
        for job in jobs:
            stack.callback(job.rejects.close)
            if job not in left:
                tell(_passed(job), sys.stderr)
        signals = stack.enter_context(Signals())
        shows = display("imported", quiet=quiet)
        stack.callback(shows.close)
        importer = Importer(
            left,
            partial(project.connect, limits),
            reading=columns.reading(),
            shape=shape,
            limits=limits,
            display=shows,
            signals=signals,
        )
        if left:
            # Not before everything is known to be well.
            places.begin(left)
            anyio.run(importer.run)
    return Outcome(
        jobs=jobs,
        noun=columns.kind.value,
        is_dry=False,
        reasons=importer.journal.reasons,
        unused=shape.idle(),
        failure=importer.failure,
        signal=signals.status,
    )


def _passed(job: Job) -> str:
    """What is said of a file that is done."""
    refused = job.settled.refused
    but = f", but for {refused:,} record{'s' if refused > 1 else ''}" if refused else ""
    return f"{job.name} was imported before{but}; --restart imports it again"


def _fail(words: str, status: int) -> NoReturn:
    tell(f"mixpanel-async import: {words}", sys.stderr)
    raise typer.Exit(status)
