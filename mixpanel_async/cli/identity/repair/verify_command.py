"""Command `mixpanel-async identity verify`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

from mixpanel_async import ConfigurationError, IdMerge

from ...importing import typer_options as opt
from ...importing.inputs import DamagedError, InputError
from ...importing.progress import print_line
from ...importing.project import ProjectOptions, project_options
from ..download import DownloadError, ExportDownload, export_access
from ..events import ExportFiles
from ..messages import report_line, write_output
from ..options import ApiSecret
from .journal import JournalError, journal_created, journal_path
from .options import (
    EXIT_INCOMPLETE,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    PlanPath,
    client_message,
    counted,
)
from .plan_file import Plan, PlanError, read_plan
from .verification import Finding, ReadBack, Status

_SHOWN: Final = 20
# An hour allows 60 requests, and each day is one.
_INTERVAL: Final = 180.0
_MAX_WAIT: Final = 1_440.0
_MEANINGS: Final[Mapping[Status, str]] = {
    Status.JOINED: "joined: events of both ids count for one person",
    Status.ACCEPTED: "accepted, with no later events of both ids to show it",
    Status.PENDING: "accepted, but not visible yet: reports may take 60 minutes, in rare cases 24 hours",
    Status.REFUSED: "refused by Mixpanel",
    Status.APART: "apart: events of the two ids count for two people, and no call is in the export",
    Status.UNKNOWN: "unknown: neither the call nor events of both ids are in the export",
}

Read = Callable[[ReadBack], None]
"""Reads the exported events into a comparison."""


def verify(
    plan: PlanPath,
    *,
    export: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Raw export made after `apply`, instead of reading the project. Repeatable."),
    ] = None,
    from_date: Annotated[
        str | None, typer.Option(metavar="DATE", help="First day to read; default: the day before the first `apply`.")
    ] = None,
    to_date: Annotated[str | None, typer.Option(metavar="DATE", help="Last day to read; default: today.")] = None,
    wait: Annotated[
        float,
        typer.Option(min=0, max=_MAX_WAIT, metavar="MINUTES", help="Read again until all pairs are joined, so long."),
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object for each pair.")] = False,
    token: opt.Token = None,
    service_account: opt.ServiceAccount = None,
    service_account_secret: opt.ServiceAccountSecret = None,
    api_secret: ApiSecret = None,
    project_id: opt.ProjectId = None,
    region: opt.Region = None,
    api_host: opt.ApiHost = None,
    allow_http: opt.AllowHttp = False,
) -> None:
    """Read back which pairs of a plan are joined. It needs a service account, or an export file.

    Mixpanel joins people in reports within 60 minutes, in rare cases 24 hours: use --wait. An export shows it for ids
    with events in the days that are read; --from-date reads earlier days.

    Exit status: 0 every pair is joined or accepted; 3 some are not, or not yet; 1 the project cannot be read; 2 usage
    error, or a file cannot be read.
    """
    project = project_options(
        token=token,
        service_account=service_account,
        service_account_secret=service_account_secret,
        project_id=project_id,
        region=region,
        api_host=api_host,
        allow_http=allow_http,
    )
    try:
        stored = read_plan(plan).plan
        reads_files = _check_export(export, has_other=bool(wait or from_date or to_date))
        read = (
            _file_reader(reads_files)
            if reads_files
            else _project_reader(project, api_secret, _days(from_date, to_date, plan))
        )
        findings = verify_until(stored, read, seconds=wait * 60.0)
    except (PlanError, JournalError, InputError, DamagedError, ConfigurationError, ValueError) as error:
        print_line(client_message(error), sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except DownloadError as error:
        print_line(str(error), sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None
    except OSError as error:
        print_line(f"{error.filename or 'a temporary file'}: {error.strerror or error}", sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None
    if as_json:
        write_output("".join(f"{line}\n" for line in _json_lines(findings)), "verify")
    else:
        for line in _lines(stored, findings):
            print_line(line, sys.stdout)
    raise typer.Exit(EXIT_OK if all(one.status.is_good for one in findings) else EXIT_INCOMPLETE)


def verify_until(
    plan: Plan,
    read: Read,
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Sequence[Finding]:
    """Compare a plan with exported events, again and again until all pairs are joined or time is up.

    Args:
        plan: the plan.
        read: reads the exported events.
        seconds: time until the last comparison.
        clock: returns monotonic seconds.
        sleep: waits for some seconds.
    """
    end = clock() + seconds
    while True:
        comparison = ReadBack(plan)
        read(comparison)
        findings = [*comparison.findings()]
        left = end - clock()
        if left <= 0 or all(one.status.is_good for one in findings):
            return findings
        bad = sum(not one.status.is_good for one in findings)
        print_line(f"{counted(bad, 'pair')} not joined yet, reading again in {_INTERVAL:.0f} s", sys.stderr)
        sleep(min(_INTERVAL, left))


def _check_export(names: list[str] | None, *, has_other: bool) -> list[str]:
    """Return the names of export files.

    Raises:
        ValueError: if there are files, and options for reading the project.
    """
    if names and has_other:
        raise ValueError("--export reads files once; --wait, --from-date and --to-date read the project")
    return names or []


def _file_reader(names: Sequence[str]) -> Read:
    def read(comparison: ReadBack) -> None:
        ExportFiles(names).feed(comparison.add)

    return read


def _project_reader(project: ProjectOptions, api_secret: str | None, days: _Days) -> Read:
    """Return the reader of the project's export.

    Raises:
        ConfigurationError: if credentials are missing or the host is invalid.
    """
    access = export_access(project.with_secret(api_secret), allow_http=project.allow_http)

    def read(comparison: ReadBack) -> None:
        last = days.last or datetime.now(timezone.utc).date()
        with TemporaryDirectory() as folder:
            download = ExportDownload(access, Path(folder), report=_ignore, report_wait=report_line)
            files = download.run(min(days.first, last), last)
            ExportFiles([str(one) for one in files]).feed(comparison.add)

    return read


def _ignore(line: str) -> None:
    """Drop a line about a request: a comparison has its own lines."""


@dataclass(frozen=True, slots=True)
class _Days:
    """Days to read. Without `last`, they end today."""

    first: date
    last: date | None


def _days(first: str | None, last: str | None, plan: Path) -> _Days:
    """Return the days to read.

    Raises:
        ValueError: if a date is malformed, or the first day is not known.
    """
    end = _date(last, "--to-date")
    start = _date(first, "--from-date")
    if start is None:
        created = journal_created(journal_path(plan))
        if created is None:
            raise ValueError(f"{plan} was not applied here; name the first day to read with --from-date")
        # The day before, because the project's time zone may be behind UTC.
        start = datetime.fromtimestamp(created, timezone.utc).date() - timedelta(days=1)
    if end is not None and end < start:
        raise ValueError(f"--to-date must not be before {start}")
    return _Days(start, end)


def _date(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{option} must be a date such as 2026-11-30, not {text[:40]!r}") from None


def _lines(plan: Plan, findings: Sequence[Finding]) -> Iterator[str]:
    counts = Counter(one.status for one in findings)
    yield f"{counted(len(findings), 'pair')} of the plan:"
    for status, meaning in _MEANINGS.items():
        if counts[status]:
            yield f"  {counts[status]:,} {meaning}"
    bad = [one for one in findings if not one.status.is_good]
    for one in bad[:_SHOWN]:
        yield f"{one.pair.source}: {one.status.value}" + (f": {one.reason}" if one.reason else "")
    if len(bad) > _SHOWN:
        yield f"and {len(bad) - _SHOWN:,} more; --json lists all"
    if counts[Status.ACCEPTED]:
        yield f"Not proven yet: {counted(counts[Status.ACCEPTED], 'accepted pair')}. {_proof(plan)}"
    if plan.needs_attention:
        yield f"Not part of it: {counted(plan.needs_attention, 'pair')} that the plan leaves apart"


def _proof(plan: Plan) -> str:
    """Return what shows whether accepted pairs are joined."""
    if plan.id_merge is IdMerge.LEGACY:
        return "Only events after the alias show it: verify again when both ids have some."
    since = f"--from-date {plan.shown_since}" if plan.shown_since else "--from-date and a day when both ids had events"
    return f"The events that were read do not show both ids: use {since}."


def _json_lines(findings: Sequence[Finding]) -> Iterator[str]:
    for one in findings:
        fields: dict[str, Any] = {
            "source": one.pair.source,
            "kind": one.pair.kind,
            "first": one.pair.first,
            "second": one.pair.second,
            "status": one.status.value,
        }
        yield json.dumps(fields | ({"reason": one.reason} if one.reason else {}))
