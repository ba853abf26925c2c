"""Command `mixpanel-async identity plan`."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from mixpanel_async import Checker, IdMerge, ValidationError
from mixpanel_async.identity import DEVICE_PREFIX, History, Order

from ...importing import typer_options as opt
from ...importing.inputs import DamagedError, InputError, InputFile, find_inputs
from ...importing.progress import print_line
from ...importing.project import ProjectOptions, project_options
from ..download import DownloadError, export_access
from ..events import ExportFiles
from ..options import ApiSecret, ClusterLimit, ProjectIdMerge, ReplayOrder
from ..profile_files import read_profiles
from ..profile_query import ProfileQuery
from .calls import CallKind, PlannedPair, Skip
from .journal import journal_path
from .known_ids import KnownIds
from .options import (
    EXIT_INCOMPLETE,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    client_message,
    counted,
)
from .pairs import PairKind, PairOptions, read_pairs
from .plan_file import Plan, PlanInput, describe_input, write_plan
from .planner import plan_pairs
from .profiles import profile_findings

_SHOWN: Final = 10
_MEANINGS: Final[Mapping[Skip, str]] = {
    Skip.JOINED: "left out: one person already",
    Skip.IMPLIED: "left out: joined by the calls for other pairs",
    Skip.FAILS: "left out: Mixpanel would refuse the call",
    Skip.NO_EFFECT: "left out: no call joins these ids in this project",
    Skip.HELD: "left out: merging two users was not allowed",
    Skip.INVALID: "left out: invalid",
}


def plan(
    pairs: Annotated[
        str,
        typer.Argument(
            metavar="PAIRS",
            help="CSV, NDJSON or JSON with a pair of ids on each line, and optionally its kind.",
            show_default=False,
        ),
    ],
    *,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Raw export of all events of the project. Repeatable, or a pattern."),
    ] = None,
    without_history: Annotated[
        bool, typer.Option("--without-history", help="Plan as if the project had no events yet.")
    ] = False,
    profiles: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Export of user profiles, to find conflicts. Repeatable.")
    ] = None,
    read_profiles: Annotated[
        bool, typer.Option("--read-profiles", help="Read the profiles from the project; it needs a service account.")
    ] = False,
    id_merge: ProjectIdMerge,
    kind: Annotated[
        PairKind, typer.Option(help="Kind of the pairs that name none; auto takes the call that joins any two ids.")
    ] = PairKind.AUTO,
    columns: Annotated[
        str | None, typer.Option(metavar="FIRST,SECOND", help="Names of the two columns or fields with the ids.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="CSV delimiter; default: comma, or tab for TSV.")] = None,
    allow_user_merge: Annotated[
        bool, typer.Option("--allow-user-merge", help="Also merge two people that both have a user id.")
    ] = False,
    order: ReplayOrder = Order.ARRIVAL,
    cluster_limit: ClusterLimit = 500,
    event: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the events that link a device to a user, in Simplified.")
    ] = "Ids linked",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Plan file to write; default: PAIRS.plan.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing plan that was not applied.")] = False,
    token: opt.Token = None,
    service_account: opt.ServiceAccount = None,
    service_account_secret: opt.ServiceAccountSecret = None,
    api_secret: ApiSecret = None,
    project_id: opt.ProjectId = None,
    region: opt.Region = None,
    api_host: opt.ApiHost = None,
    allow_http: opt.AllowHttp = False,
) -> None:
    """Plan which identity calls join pairs of ids, and what each of them would do. It sends nothing.

    PAIRS has two columns, with or without a header: `first,second`, `original,alias_id`, `distinct_id1,distinct_id2`,
    `identified_id,anon_id` or `user_id,device_id`; a column `kind` has alias, merge, identify or auto.

    Exit status: 0 every pair is joined by the plan or already; 3 some pairs stay apart, with the reason in the plan;
    1 a file cannot be written, or the project cannot be read; 2 usage error, or a file cannot be read.
    """
    path = output or Path(f"{pairs}.plan")
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
        options = PlanOptions(
            id_merge=id_merge,
            cluster_limit=cluster_limit,
            order=order,
            allow_user_merge=allow_user_merge,
            event=_checked_event(event),
            pairs=PairOptions(kind=kind, delimiter=_checked_delimiter(delimiter), columns=_column_names(columns)),
        )
        inputs = PlanInputs(
            pairs=_files([pairs])[0],
            history=_history(against, without_history=without_history),
            profiles=_files(profiles or []),
            query=_profile_query(project, api_secret) if read_profiles else None,
        )
        _check_output(path, inputs, replace=replace)
        found = make_plan(inputs, options)
    except (InputError, DamagedError, ValueError) as error:
        print_line(client_message(error), sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except DownloadError as error:
        print_line(str(error), sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None
    except OSError as error:
        _stop(error, pairs)
    try:
        write_plan(found, path)
    except OSError as error:
        _stop(error, path)
    for line in _summary(found, path):
        print_line(line, sys.stdout)
    raise typer.Exit(EXIT_INCOMPLETE if found.needs_attention else EXIT_OK)


def _profile_query(project: ProjectOptions, api_secret: str | None) -> ProfileQuery:
    """Return the reader of the project's profiles.

    Raises:
        ConfigurationError: if credentials are missing or the host is invalid.
    """
    return ProfileQuery(export_access(project.with_secret(api_secret), allow_http=project.allow_http))


def _stop(error: OSError, path: str | Path) -> NoReturn:
    print_line(f"{error.filename or path}: {error.strerror or error}", sys.stderr)
    raise typer.Exit(EXIT_STOPPED) from None


def _checked_event(name: str) -> str:
    try:
        Checker().event("user", name)
    except ValidationError as error:
        raise ValueError(f"--event {error.problem}") from None
    if name.startswith("$"):
        raise ValueError(f"--event must not start with $, which is Mixpanel's, as in {name[:40]!r}")
    return name


def _checked_delimiter(text: str | None) -> str | None:
    if text is not None and len(text) != 1:
        raise ValueError(f"--delimiter must be one character, not {text[:40]!r}")
    return text


def _column_names(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    first, separator, second = (one.strip() for one in text.partition(","))
    if not separator or not first or not second or first == second:
        raise ValueError(f"--columns must be two names, such as user,device, not {text[:80]!r}")
    return first, second


def _history(names: list[str] | None, *, without_history: bool) -> list[InputFile]:
    if without_history == bool(names):
        raise ValueError(
            "use --against with raw exports of the project, because a plan depends on what is joined already; or "
            "--without-history for a project without events"
        )
    return _files(names or [])


def _files(names: list[str]) -> list[InputFile]:
    """Return the files of names and patterns.

    Raises:
        InputError: if one is missing, or can be read only once.
    """
    files = find_inputs(names)[0] if names else []
    for one in files:
        if one.identity is None:
            raise InputError(f"{one.name} can be read only once: save it to a file first")
    return files


def _check_output(path: Path, inputs: PlanInputs, *, replace: bool) -> None:
    """Check that no plan and no input is lost.

    Raises:
        ValueError: if the file is an input or exists, or its calls were sent.
    """
    files = [inputs.pairs, *inputs.history, *inputs.profiles]
    if os.path.realpath(path) in {os.path.realpath(one.name) for one in files}:
        raise ValueError(f"{path} is an input of the plan; choose another file with --output")
    journal = journal_path(path)
    if journal.exists():
        raise ValueError(f"{path} was applied, as {journal} shows; choose another file with --output")
    if path.exists() and not replace:
        raise ValueError(f"{path} exists; choose another file with --output, or use --replace")


def _summary(found: Plan, path: Path) -> list[str]:
    """Return the lines about a new plan."""
    apart = [pair for pair in found.left_out if pair.skip is not None and pair.skip.needs_attention]
    lines = [f"{note}." for note in found.notes]
    sources: dict[str, list[str]] = {}
    for pair in apart:
        sources.setdefault(pair.reason, []).append(pair.source)
    for reason, places in itertools.islice(sources.items(), _SHOWN):
        more = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
        lines.append(f"  {places[0]}{more}: {reason}")
    rest = sum(map(len, itertools.islice(sources.values(), _SHOWN, None)))
    if rest:
        lines.append(f"  and {rest:,} more in the plan")
    if found.findings:
        lines.append(f"{len(found.findings):,} properties of user profiles conflict or are left behind: see the plan.")
    end = (
        f"Read {path}, then run: mixpanel-async identity apply {shlex.quote(str(path))} --limit 5"
        if found.groups
        else f"{path} has no calls."
    )
    return [*lines, end]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Inputs and options of a plan.

    Args:
        id_merge: ID merge system of the project.
        cluster_limit: maximum number of ids of one person, in Original.
        order: order in which the calls of the history are replayed.
        allow_user_merge: whether calls may merge two users.
        event: name of the event that links a device to a user, in Simplified.
        pairs: how the file of pairs is read.
    """

    id_merge: IdMerge
    cluster_limit: int
    order: Order
    allow_user_merge: bool
    event: str
    pairs: PairOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanInputs:
    """Files that a plan is made from.

    Args:
        pairs: file of pairs.
        history: raw exports of the project, in order.
        profiles: exports of its user profiles.
        query: reads the profiles of the people that the plan joins; None if only files are read.
    """

    pairs: InputFile
    history: Sequence[InputFile] = ()
    profiles: Sequence[InputFile] = ()
    query: ProfileQuery | None = None

    def described(self) -> tuple[PlanInput, ...]:
        """Return the sizes and hashes of the files."""
        roles = [("pairs", self.pairs), *(("history", one) for one in self.history)]
        roles += [("profiles", one) for one in self.profiles]
        return tuple(describe_input(role, one.name) for role, one in roles)


def make_plan(inputs: PlanInputs, options: PlanOptions) -> Plan:
    """Return the plan for a file of pairs.

    Args:
        inputs: files that it is made from.
        options: what else it is made from.

    Raises:
        InputError: if a file cannot be read, or has no pairs.
        DamagedError: if an export cannot be read to its end.
        DownloadError: if the profiles cannot be read.
    """
    pairs = [*read_pairs(inputs.pairs, options.pairs)]
    if not pairs:
        raise InputError(f"{inputs.pairs.name} has no pairs; check the command that wrote it")
    history = History(options.id_merge, cluster_limit=options.cluster_limit, order=options.order)
    known = KnownIds(history, watched=_with_devices(one for pair in pairs for one in (pair.first, pair.second)))
    unreadable = 0
    if inputs.history:
        exports = ExportFiles([one.name for one in inputs.history])
        exports.feed(known.add)
        unreadable = exports.unreadable
    known.replay()
    known.end_history()
    planned = plan_pairs(pairs, known, allow_user_merge=options.allow_user_merge)
    persons = {person: sorted(known.graph.cluster(person)) for person in planned.calls}
    groups = tuple(map(tuple, planned.calls.values()))
    calls = [pair for group in groups for pair in group]
    unknown = 0
    if inputs.history:
        unknown = known.count_unknown(one for pair in calls for one in (pair.first, pair.second))
    person_of = {one: person for person, ids in persons.items() for one in ids}
    profiles = read_profiles(inputs.profiles)
    if inputs.query is not None:
        profiles = itertools.chain(profiles, inputs.query.profiles([*person_of]))
    findings = profile_findings(
        profiles,
        person_of,
        options.id_merge,
        frozenset(pair.second for pair in calls),
    )
    return Plan(
        id_merge=options.id_merge,
        cluster_limit=options.cluster_limit,
        event=options.event,
        inputs=inputs.described(),
        shown_since=_day_before(known.all_seen_since(one for pair in calls for one in (pair.first, pair.second))),
        groups=groups,
        left_out=planned.left_out,
        notes=(
            *_notes(calls, planned.left_out, known.event_count, unreadable, options.id_merge),
            *_unknown_note(unknown),
        ),
        persons=[*persons.values()],
        findings=findings,
    )


def _with_devices(ids: Iterable[str]) -> frozenset[str]:
    """Return ids, and each as the id of a device in Simplified."""
    return frozenset(form for one in ids for form in (one, DEVICE_PREFIX + one.removeprefix(DEVICE_PREFIX)))


def _day_before(seconds: float | None) -> date | None:
    """Return the day before a time, because the project's time zone may be behind UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc).date() - timedelta(days=1)


def _unknown_note(unknown: int) -> Iterator[str]:
    if unknown:
        yield (
            f"{counted(unknown, 'id')} of these calls in no event that was read: check the pairs, and that the export "
            "has all days of this project"
        )


def _notes(
    calls: Sequence[PlannedPair], left_out: Sequence[PlannedPair], events: int, unreadable: int, id_merge: IdMerge
) -> Iterator[str]:
    """Yield the summary of a plan, which is part of its file."""
    kinds = Counter(pair.kind for pair in calls)
    listed = ", ".join(f"{kinds[kind.value]:,} {kind.value}" for kind in CallKind if kinds[kind.value])
    found = f"{counted(len(calls) + len(left_out), 'pair')}: {counted(len(calls), 'call')}"
    yield found + (f" ({listed}), each one request" if listed else "")
    reasons = Counter(pair.skip for pair in left_out)
    for skip, meaning in _MEANINGS.items():
        if reasons[skip]:
            yield f"{counted(reasons[skip], 'pair')} {meaning}"
    yield f"{counted(events, 'event')} of the project read" + (
        f", {counted(unreadable, 'line')} without an event ignored" if unreadable else ""
    )
    if id_merge is IdMerge.LEGACY and calls:
        yield "Legacy: an alias applies to later events only"
    if id_merge is IdMerge.SIMPLIFIED and calls:
        yield "Simplified: each call is an event with $device_id and $user_id, which counts in reports"
    if calls:
        yield "None of these calls can be undone"
