"""Command `mixpanel-async import`: parses the options, runs the import and prints the summary."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NoReturn

import anyio
import typer

from mixpanel_async import Checker, ConfigurationError

from . import typer_options as opt
from .arrival_order import ArrivalOrder
from .checkpoint import CheckpointError
from .client import create_client
from .column_check import ColumnCheck
from .column_mapping import ColumnMapping
from .dry_run import DryRun
from .dry_run_report import DryRunReport
from .fault_finder import FaultGroups
from .file_import import FileImport
from .importer import Importer
from .inputs import InputError, InputFile, find_inputs
from .limits import ImportLimits
from .lock import LockedError, lock_file
from .option_values import Format, ImportKind, InsertIds, Nesting, Operation
from .options import ColumnOptions, ImportOptions
from .paths import ImportPaths
from .progress import create_display, print_line
from .project import project_options
from .record_source import Position, Row
from .signals import SignalCounter
from .source_factory import ReadOptions, StreamCheck, open_source
from .summary import INTERRUPTED, STOPPED, USAGE, ImportSummary
from .time_check import unused_timezone

# As long as a real token: the token counts towards the size of an event.
_PLACEHOLDER_TOKEN: Final = "0" * 32
_GRACE_SECONDS: Final = 20.0


def import_(
    files: opt.Files,
    *,
    kind: opt.Kind = ImportKind.EVENTS,
    format: opt.FileFormat = Format.AUTO,
    map: opt.Maps = None,
    set: opt.Sets = None,
    drop: opt.Drops = None,
    type: opt.Types = None,
    spread: opt.Spreads = None,
    preset: opt.Preset = None,
    infer_types: opt.InferTypes = False,
    decimal: opt.Decimal = None,
    time_format: opt.TimeFormat = "auto",
    timezone: opt.Timezone = None,
    project_timezone: opt.ProjectTimezone = None,
    operation: opt.ProfileOperation = Operation.SET,
    insert_ids: opt.InsertIdSource = InsertIds.CONTENT,
    nesting: opt.DeepValues = Nesting.TEXT,
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
    rejects: opt.RejectsPath = None,
    state_dir: opt.StateDirectory = None,
    checkpoint: opt.UseCheckpoints = True,
    restart: opt.Restart = False,
    dry_run: opt.IsDryRun = False,
    as_json: opt.AsJson = False,
    quiet: opt.IsQuiet = False,
) -> None:
    """Import events, user profiles or groups from NDJSON, JSON, CSV and Parquet, plain or with gzip, zstd or zip.

    Rerun the same command to resume an interrupted import. Exit status: 0 done; 1 stopped by an error, or a file is
    damaged; 2 usage error, nothing was sent; 3 done, now or before, but some records were rejected or are uncertain;
    130 interrupted.
    """
    columns = ColumnOptions(
        kind=kind,
        format=format,
        map=tuple(map or ()),
        set=tuple(set or ()),
        drop=tuple(drop or ()),
        type=tuple(type or ()),
        spread=tuple(spread or ()),
        preset=preset,
        infer_types=infer_types,
        decimal=decimal,
        time_format=time_format,
        timezone=timezone,
        project_timezone=project_timezone,
        operation=operation,
        insert_ids=insert_ids,
        nesting=nesting,
        delimiter=delimiter,
        encoding=encoding,
    )
    project = project_options(
        token=token,
        service_account=service_account,
        service_account_secret=service_account_secret,
        project_id=project_id,
        region=region,
        api_host=api_host,
        allow_http=allow_http,
    )
    options = ImportOptions(
        files=tuple(files),
        columns=columns,
        project=project,
        limits=ImportLimits(
            concurrency=concurrency, patience=patience, grace=_GRACE_SECONDS, at_least_once=at_least_once
        ),
        paths=ImportPaths(directory=state_dir, rejects=rejects, use_checkpoints=checkpoint, restart=restart),
        is_dry_run=dry_run,
        quiet=quiet,
        as_json=as_json,
    )
    raise typer.Exit(_run(options))


def _run(options: ImportOptions) -> int:
    """Run the command, print the summary and return the exit status."""
    if options.as_json and not options.is_dry_run:
        _fail("--json applies to --dry-run only", USAGE)
    try:
        inputs = _open_inputs(options)
        summary = _run_dry(inputs, options) if options.is_dry_run else _run_import(inputs, options)
    except (InputError, CheckpointError, LockedError, ConfigurationError, ValueError) as error:
        _fail(str(error).replace("allow_http=True", "--allow-http").replace(" for from_env()", ""), USAGE)
    except KeyboardInterrupt:
        # Nothing was sent yet: later, signals are counted.
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}", STOPPED)
    for line in [summary.as_json()] if options.as_json else summary.lines():
        print_line(line, sys.stdout)
    return summary.status


def _open_inputs(options: ImportOptions) -> list[InputFile]:
    """Find the input files and open each once, so that unreadable files are reported before anything is sent."""
    read_options = options.columns.read_options()
    inputs, skipped = find_inputs(options.files)
    for input_file in inputs:
        if input_file.identity is not None:
            open_source(input_file, read_options, Position()).close()
    for name in skipped:
        print_line(f"skipping {name}: it was written by an earlier import", sys.stderr)
    return inputs


def _run_dry(inputs: Sequence[InputFile], options: ImportOptions) -> ImportSummary:
    checked = _check_options(inputs, options)
    mapping, column_check, order = checked.mapping, checked.column_check, ArrivalOrder()
    files = options.paths.prepare_dry_run(inputs)
    report = (
        DryRunReport(mapping, FaultGroups(mapping), options.columns.nesting)
        if options.as_json or not options.quiet
        else None
    )
    display = create_display("valid", quiet=options.quiet)
    run = DryRun(
        files,
        read_options=checked.read_options,
        mapping=mapping,
        checker=Checker(_PLACEHOLDER_TOKEN, nesting=options.columns.nesting.of_client),
        order=order,
        report=report,
        display=display,
    )
    signal_status = None
    try:
        run.run()
    except KeyboardInterrupt:
        signal_status = INTERRUPTED
    finally:
        display.close()
        files[0].rejects.close()
    return ImportSummary(
        files=files,
        noun=options.columns.kind.value,
        is_dry_run=True,
        reason_counts=run.rejects.reason_counts,
        first_rejects=run.rejects.first_rejects,
        report=report,
        unmatched_options=_unmatched_options(inputs, mapping, column_check),
        unused_option=_unused_option(inputs, options.columns, mapping),
        order_warning=order.warning(),
        suggest_time_mapping=_can_suggest_time_mapping(mapping),
        signal_status=signal_status,
    )


def _run_import(inputs: Sequence[InputFile], options: ImportOptions) -> ImportSummary:
    columns, project, limits = options.columns, options.project, options.limits
    with ExitStack() as stack:
        for input_file in inputs:
            stack.enter_context(lock_file(input_file))
        fingerprints = {**columns.fingerprints(), **project.account_fingerprints()}
        files = options.paths.file_imports(inputs, project.fingerprint(), fingerprints)
        remaining = [file for file in files if not file.is_complete]
        for file in files:
            stack.callback(file.rejects.close)
            if file not in remaining:
                print_line(_already_imported(file), sys.stderr)
        checked = _check_options([file.input for file in remaining], options)
        mapping, column_check = checked.mapping, checked.column_check
        order = ArrivalOrder()
        if checked.order_warning is not None:
            print_line(checked.order_warning, sys.stderr)
        signals = stack.enter_context(SignalCounter())
        display = create_display("imported", quiet=options.quiet)
        stack.callback(display.close)
        importer = Importer(
            remaining,
            partial(create_client, project, limits, columns.nesting),
            read_options=checked.read_options,
            mapping=mapping,
            limits=limits,
            order=order if checked.order_warning is None else None,
            display=display,
            signals=signals,
        )
        if remaining:
            # Every check has passed: only now are files created or changed.
            options.paths.prepare(remaining)
            anyio.run(importer.run)
    return ImportSummary(
        files=files,
        noun=columns.kind.value,
        is_dry_run=False,
        reason_counts=importer.rejects.reason_counts,
        unmatched_options=_unmatched_options(inputs, mapping, column_check),
        unused_option=_unused_option(inputs, options.columns, mapping),
        order_warning=order.warning(),
        suggest_time_mapping=_can_suggest_time_mapping(mapping),
        delivered=importer.delivered,
        failure=importer.failure,
        advice=importer.advice,
        signal_status=signals.status,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _CheckedOptions:
    """Options that agree with the records.

    Args:
        mapping: maps the columns of the files to fields and properties.
        read_options: options for reading the files, which check streams later.
        column_check: check of the columns.
        order_warning: warning about the order of the events, or None.
    """

    mapping: ColumnMapping
    read_options: ReadOptions
    column_check: ColumnCheck
    order_warning: str | None


def _check_options(inputs: Sequence[InputFile], options: ImportOptions) -> _CheckedOptions:
    """Check the options against the records."""
    columns, read_options = options.columns, options.columns.read_options()
    mapping = columns.column_mapping()
    column_check = columns.column_check(mapping, read_options)
    column_check.run(inputs)
    # A dry run counts the order of all records itself.
    order = None if options.is_dry_run else ArrivalOrder()
    time_check = columns.time_check(mapping, read_options, partial(_report, quiet=options.quiet), order)

    def check_stream(name: str) -> StreamCheck:
        check_columns, check_times = column_check.check_stream(name), time_check.check_stream()

        def check(listed: Sequence[str], rows: Sequence[Row]) -> None:
            check_columns(listed, rows)
            check_times(rows)

        return check

    return _CheckedOptions(
        mapping=time_check.run(inputs),
        read_options=replace(read_options, check_stream=check_stream),
        column_check=column_check,
        order_warning=None if order is None else order.warning(),
    )


def _report(text: str, *, quiet: bool) -> None:
    if not quiet:
        print_line(text, sys.stderr)


def _unmatched_options(inputs: Sequence[InputFile], mapping: ColumnMapping, check: ColumnCheck) -> list[str]:
    """Return the options whose column no record had. Without a stream, most are reported before anything is sent."""
    unmatched = [f"--map {text}" for text in mapping.unmatched()]
    if any(input_file.identity is None for input_file in inputs):
        unmatched += [option for option in check.unmatched() if not option.startswith("--map ")]
    return unmatched


def _unused_option(inputs: Sequence[InputFile], columns: ColumnOptions, mapping: ColumnMapping) -> str | None:
    """Return a message if `--timezone` applied to no time of a stream. For other files this is checked before."""
    is_stream = any(input_file.identity is None for input_file in inputs)
    if columns.timezone is None or mapping.time_parser.is_zone_used or not is_stream:
        return None
    return unused_timezone(columns.timezone, columns.kind)


def _can_suggest_time_mapping(mapping: ColumnMapping) -> bool:
    """Return whether `--map time=COLUMN` could be a fix: the records are events and the time is not mapped yet."""
    return mapping.kind is ImportKind.EVENTS and "time" not in mapping.columns


def _already_imported(file: FileImport) -> str:
    count = file.settled.not_imported
    exception = f" except {count:,} record{'s' if count > 1 else ''}" if count else ""
    return f"{file.name} is already imported{exception}; use --restart to import it again"


def _fail(message: str, status: int) -> NoReturn:
    print_line(f"mixpanel-async import: {message}", sys.stderr)
    raise typer.Exit(status)
