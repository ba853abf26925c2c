"""Command `mixpanel-async identity audit`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from mixpanel_async import ConfigurationError
from mixpanel_async.identity import Audit, AuditReport, Order

from ..importing.inputs import DamagedError, InputError
from ..importing.progress import print_line
from . import options as opt
from .events import ExportFiles
from .html_page import audit_page
from .tables import print_audit

STOPPED: Final = 1
USAGE: Final = 2
FOUND: Final = 3


def audit(
    files: opt.ExportNames = None,
    *,
    id_merge: opt.ProjectIdMerge,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as one HTML page.", show_default=False)
    ] = None,
    fail_on: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Exit with status 3 if there are more than N findings.", show_default=False
        ),
    ] = None,
    cases: opt.ShownCases = 5,
    order: opt.ReplayOrder = Order.ARRIVAL,
    cluster_limit: opt.ClusterLimit = 500,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find what is wrong with the ids in a raw export: who is who, which identity calls failed, and what to do.

    The identity calls are replayed as Mixpanel would, in order of arrival, although an export is not sorted. Calls that
    Mixpanel has marked with `$failure_reason` count as failed. Nothing is sent.

    Examples:

        mixpanel-async identity audit export.ndjson.gz --id-merge original

        mixpanel-async identity audit 2024-*.json --id-merge simplified --html report.html --fail-on 0
    """
    try:
        exports = ExportFiles(files or [])
        check = Audit(id_merge, cluster_limit=cluster_limit, order=order, cases=cases)
        exports.feed(check.add, quiet=quiet)
        report = check.report()
        if html is not None:
            html.write_text(audit_page(report, exports.unreadable), encoding="utf-8")
    except (InputError, ConfigurationError) as error:
        fail("audit", str(error), USAGE)
    except DamagedError as error:
        fail("audit", f"a file is {error}; export it again", STOPPED)
    except OSError as error:
        fail("audit", f"{error.filename or 'a file'}: {error.strerror or error}", STOPPED)
    _show(report, exports, as_json=as_json)
    if fail_on is not None and report.finding_count > fail_on:
        raise typer.Exit(FOUND)


def _show(report: AuditReport, exports: ExportFiles, *, as_json: bool) -> None:
    if as_json:
        found = {**report.as_dict(), "unreadable": exports.unreadable}
        print_line(json.dumps(found, ensure_ascii=False, indent=2), sys.stdout)
    else:
        print_audit(report)
    show_unreadable(exports)


def show_unreadable(exports: ExportFiles) -> None:
    """Print to standard error how many lines are no events, and the first of them."""
    for problem in exports.problems:
        print_line(problem, sys.stderr)
    if exports.unreadable:
        print_line(f"{exports.unreadable:,} lines are no events and were left out", sys.stderr)


def fail(command: str, message: str, status: int) -> NoReturn:
    """Print an error and exit.

    Args:
        command: name of the command in the group.
        message: what is wrong and what to do.
        status: exit status.
    """
    print_line(f"mixpanel-async identity {command}: {message}", sys.stderr)
    raise typer.Exit(status)
