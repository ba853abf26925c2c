"""`mixpanel-async import`: files of events or profiles into Mixpanel."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Final, NoReturn

import anyio
import typer

from mixpanel_async import Checker, ConfigurationError

from . import options as opt
from .checkpoint import CheckpointError
from .column_mapping import ColumnMapping, ImportKind, InsertIds, Operation
from .dry_run import DryRun
from .file_import import FileImport
from .importer import Importer, ImportLimits
from .inputs import Format, Input, InputError, found
from .lock import LockedError, locked
from .open_source import source
from .outcome import STOPPED, USAGE, Outcome
from .progress import display, tell
from .setup import ColumnOptions, ImportPaths, ProjectOptions
from .signals import Signals
from .source import Position

# As long as a token, which counts in the size of an event.
_ANY_TOKEN: Final = "0" * 32
_GRACE: Final = 20.0


def import_(
    files: opt.Files,
    *,
    kind: opt.KindOf = ImportKind.EVENTS,
    format: opt.FormatOf = Format.AUTO,
    map: opt.Maps = None,
    set: opt.Sets = None,
    drop: opt.Drops = None,
    type: opt.Types = None,
    infer_types: opt.InferTypes = False,
    time_format: opt.TimeFormat = "auto",
    timezone: opt.Timezone = None,
    operation: opt.OperationOf = Operation.SET,
    insert_ids: opt.InsertIdsOf = InsertIds.CONTENT,
    delimiter: opt.Delimiter = None,
    encoding: opt.Encoding = "utf-8",
    token: opt.Token = None,
    service_account: opt.ServiceAccount = None,
    service_account_secret: opt.ServiceAccountSecret = None,
    project_id: opt.ProjectId = None,
    region: opt.Region = None,
    api_host: opt.ApiHost = None,
    allow_http: opt.AllowHttp = False,
    concurrency: opt.Concurrency = 10,
    patience: opt.Patience = 600.0,
    at_least_once: opt.AtLeastOnce = False,
    rejects: opt.RejectsFile = None,
    state_dir: opt.StateDirectory = None,
    checkpoint: opt.KeepsCheckpoints = True,
    restart: opt.Restarts = False,
    dry_run: opt.IsDry = False,
    quiet: opt.IsQuiet = False,
) -> None:
    """Import events, user profiles or groups from NDJSON, JSON, CSV and Parquet, plain or with gzip or zstd.

    An import that was interrupted goes on when the same command is given again. Exit status: 0 done; 1 stopped by an
    error, or a file is damaged; 2 wrong usage, nothing was sent; 3 done, now or before, but some records were rejected
    or are uncertain; 130 interrupted.
    """
    columns = ColumnOptions(
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
    project = ProjectOptions(environ={**os.environ, **options}, allow_http=allow_http)
    limits = ImportLimits(concurrency=concurrency, patience=patience, grace=_GRACE, at_least_once=at_least_once)
    places = ImportPaths(directory=state_dir, rejects=rejects, keeps_checkpoints=checkpoint, restart=restart)
    try:
        inputs = _inputs(files, columns)
        if dry_run:
            outcome = _checked(inputs, columns, places, quiet=quiet)
        else:
            outcome = _imported(inputs, columns, project, limits, places, quiet=quiet)
    except (InputError, CheckpointError, LockedError, ConfigurationError, ValueError) as error:
        _fail(str(error).replace("allow_http=True", "--allow-http"), USAGE)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", STOPPED)
    for line in outcome.lines():
        tell(line, sys.stdout)
    raise typer.Exit(outcome.status)


def _inputs(files: Sequence[str], columns: ColumnOptions) -> list[Input]:
    """The files, each looked at: what cannot be read is told before anything is sent."""
    reading = columns.reading()
    inputs, passed = found(files)
    for one in inputs:
        if one.identity is not None:
            source(one, reading, Position()).close()
    for name in passed:
        tell(f"passing over {name}, which an earlier import has left", sys.stderr)
    return inputs


def _checked(inputs: Sequence[Input], columns: ColumnOptions, places: ImportPaths, *, quiet: bool) -> Outcome:
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
        can_map=_can_map(columns, shape),
        signal=signal,
    )


def _imported(
    inputs: Sequence[Input],
    columns: ColumnOptions,
    project: ProjectOptions,
    limits: ImportLimits,
    places: ImportPaths,
    *,
    quiet: bool,
) -> Outcome:
    with ExitStack() as stack:
        for one in inputs:
            stack.enter_context(locked(one))
        shape = columns.shape()
        jobs = places.jobs(inputs, project.fingerprint(), {**columns.decisive(), **project.account()})
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
        can_map=_can_map(columns, shape),
        delivered=importer.delivered,
        failure=importer.failure,
        mend=importer.mend,
        signal=signals.status,
    )


def _can_map(columns: ColumnOptions, shape: ColumnMapping) -> bool:
    """Whether it helps to say which column the time comes from."""
    return columns.kind is ImportKind.EVENTS and "time" not in shape.columns


def _passed(job: FileImport) -> str:
    """What is said of a file that is done."""
    refused = job.settled.refused
    but = f", but for {refused:,} record{'s' if refused > 1 else ''}" if refused else ""
    return f"{job.name} was imported before{but}; --restart imports it again"


def _fail(words: str, status: int) -> NoReturn:
    tell(f"mixpanel-async import: {words}", sys.stderr)
    raise typer.Exit(status)
