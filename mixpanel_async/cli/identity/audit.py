"""Command `mixpanel-async identity audit`."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mixpanel_async import ConfigurationError
from mixpanel_async.identity import Audit, AuditReport, IdentityGraph, Order

from ..importing.inputs import STDIN, DamagedError, InputError
from ..importing.typer_options import AllowHttp, ApiHost, ProjectId, Region, ServiceAccount, ServiceAccountSecret
from . import options as opt
from .download import DownloadError
from .events import ExportFiles
from .html_page import audit_page
from .messages import FOUND, STOPPED, USAGE, fail, show_unreadable, write_output
from .profile_files import ProfileFiles
from .profile_query import ProfileQuery
from .source import ApiExport, open_events, project_access
from .tables import print_audit


def audit(
    files: opt.ExportNames = None,
    *,
    id_merge: opt.ProjectIdMerge,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the report as one HTML page.", show_default=False)
    ] = None,
    persons: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write the ids of each person, as NDJSON.", show_default=False),
    ] = None,
    fail_on: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Exit with status 3 if there are more than N findings.", show_default=False
        ),
    ] = None,
    profiles: opt.Profiles = None,
    read_profiles: opt.ReadProfiles = False,
    cases: opt.ShownCases = 5,
    order: opt.ReplayOrder = Order.ARRIVAL,
    cluster_limit: opt.ClusterLimit = 500,
    from_api: opt.FromApi = False,
    from_date: opt.FromDate = None,
    to_date: opt.ToDate = None,
    download_dir: opt.DownloadDirectory = Path("mixpanel-export"),
    service_account: ServiceAccount = None,
    service_account_secret: ServiceAccountSecret = None,
    project_id: ProjectId = None,
    api_secret: opt.ApiSecret = None,
    region: Region = None,
    api_host: ApiHost = None,
    allow_http: AllowHttp = False,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find the faults in the ids of a raw export: who is who, which identity calls failed, and what to do.

    The identity calls are replayed as Mixpanel would, in order of arrival, although an export is not sorted. Calls that
    Mixpanel has marked with `$failure_reason` count as failed. Nothing is sent.

    Events seldom have an e-mail address. With user profiles, persons with one `$email` in their profiles are found too.
    """
    api = ApiExport(
        is_wanted=from_api,
        first=from_date,
        last=to_date,
        directory=download_dir,
        variables={
            "SERVICE_ACCOUNT_USERNAME": service_account,
            "SERVICE_ACCOUNT_SECRET": service_account_secret,
            "PROJECT_ID": project_id,
            "API_SECRET": api_secret,
            "REGION": region,
            "API_HOST": api_host,
        },
        allow_http=allow_http,
        quiet=quiet,
    )
    try:
        people = _open_profiles(files, profiles)
        query = ProfileQuery(project_access(api)) if read_profiles else None
        exports = open_events(files, api)
        _check_outputs(exports.paths | people.paths, html, persons)
        check = Audit(id_merge, cluster_limit=cluster_limit, order=order, cases=cases)
        exports.feed(check.add, quiet=quiet)
        for profile in itertools.chain(people.profiles(), query.all_profiles(["$email"]) if query else ()):
            check.add_profile(*profile)
        report = check.report()
        if html is not None:
            _write(html, [audit_page(report, exports.unreadable, people.unreadable)])
        if persons is not None:
            _write(persons, _person_lines(check.graph))
    except (InputError, ConfigurationError) as error:
        fail("audit", str(error), USAGE)
    except DownloadError as error:
        fail("audit", str(error), STOPPED)
    except DamagedError as error:
        fail("audit", f"{error}; export it again", STOPPED)
    except OSError as error:
        fail("audit", f"{error.filename or 'a file'}: {error.strerror or error}", STOPPED)
    _show(report, exports, people, as_json=as_json)
    if fail_on is not None and report.finding_count > fail_on:
        raise typer.Exit(FOUND)


def _open_profiles(files: Sequence[str] | None, profiles: Sequence[str] | None) -> ProfileFiles:
    """Return the files of profiles.

    Raises:
        InputError: if one cannot be read.
        ConfigurationError: if events and profiles would come from one standard input.
    """
    if STDIN in (files or ()) and STDIN in (profiles or ()):
        raise ConfigurationError("standard input has either events or profiles: give a file in place of one -")
    return ProfileFiles(profiles or [])


def _check_outputs(inputs: frozenset[str], *outputs: Path | None) -> None:
    """Check that no report would replace a file that is read, or another report.

    Raises:
        ConfigurationError: if one would.
    """
    paths = [os.path.realpath(one) for one in outputs if one is not None]
    for path in paths:
        if path in inputs or paths.count(path) > 1:
            raise ConfigurationError(f"{path} is already used as another file of this command; choose another name")


def _write(path: Path, parts: Iterable[str]) -> None:
    """Write a report. Lone surrogates, which UTF-8 cannot hold, are escaped.

    Raises:
        OSError: if it cannot be written; its `filename` is the path.
    """
    try:
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(parts)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _person_lines(graph: IdentityGraph) -> Iterator[str]:
    for ids in graph.persons():
        person = graph.resolve(next(iter(ids)))
        yield json.dumps({"person": person, "ids": [person, *sorted(ids - {person})]}, ensure_ascii=False) + "\n"


def _show(report: AuditReport, exports: ExportFiles, people: ProfileFiles, *, as_json: bool) -> None:
    if as_json:
        unreadable = {"unreadable": exports.unreadable, "unreadable_profiles": people.unreadable}
        found = {**report.as_dict(), **unreadable}
        write_output(json.dumps(found, indent=2) + "\n", "audit")
    else:
        print_audit(report)
    show_unreadable(exports)
    show_unreadable(people, "profiles")
