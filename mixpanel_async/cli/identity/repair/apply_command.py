"""Command `mixpanel-async identity apply`."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import anyio
import typer

from mixpanel_async import AsyncMixpanel, ConfigurationError, IdMerge

from ...importing import typer_options as opt
from ...importing.inputs import InputError, find_inputs
from ...importing.lock import LockedError, lock_file
from ...importing.progress import create_display, print_line
from ...importing.project import ProjectOptions, project_options
from ...importing.signals import SignalCounter
from .apply_run import ApplyLimits, ApplyRun, Remaining, remaining_calls
from .calls import CallKind
from .journal import CallState, Journal, JournalError, journal_path
from .options import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_STOPPED,
    EXIT_USAGE,
    PlanPath,
    client_message,
    counted,
    environment_id_merge,
)
from .plan_file import Plan, PlanError, StoredPlan, read_plan
from .sender import CallSender

_REQUEST_TIMEOUT: Final = 60.0
_SHOWN: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyOptions:
    """Options of `apply`.

    Args:
        path: path of the plan.
        accept_changed: apply a plan although it or a file it was made from has changed.
        yes: do not ask.
        quiet: show no progress.
        limits: limits of the run.
        project: destination and credentials.
    """

    path: Path
    accept_changed: bool
    yes: bool
    quiet: bool
    limits: ApplyLimits
    project: ProjectOptions


def apply(
    plan: PlanPath,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before sending.")] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Send at most so many calls, for a first trial. Run again for the rest.")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, max=1_000, help="Maximum number of calls per second.")] = 50.0,
    concurrency: Annotated[
        int, typer.Option(min=1, max=20, help="Maximum number of calls in flight, each for another person.")
    ] = 10,
    max_failures: Annotated[
        float,
        typer.Option(min=0, max=1, metavar="SHARE", help="Stop above this share of failed calls, after 20 calls."),
    ] = 0.05,
    repeat_uncertain: Annotated[
        bool,
        typer.Option(
            "--repeat-uncertain",
            help="Repeat every call that may have been applied. Mixpanel refuses an alias or identify that was, and "
            "nothing changes.",
        ),
    ] = False,
    accept_changed: Annotated[
        bool,
        typer.Option("--accept-changed", help="Apply a plan that was edited, or whose input files have changed."),
    ] = False,
    token: opt.Token = None,
    service_account: opt.ServiceAccount = None,
    service_account_secret: opt.ServiceAccountSecret = None,
    project_id: opt.ProjectId = None,
    region: opt.Region = None,
    api_host: opt.ApiHost = None,
    allow_http: opt.AllowHttp = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show progress.")] = False,
) -> None:
    """Send the calls of a plan. They cannot be undone.

    PLAN.journal has a line before and after each call, on disk. Run the command again after an interruption: accepted
    calls are not repeated, failed ones are sent again. A merge that may have been applied is repeated, which changes
    nothing; an alias or identify only with --repeat-uncertain.

    Exit status: 0 all calls are accepted, or --limit is reached; 3 done, but some calls failed or are uncertain;
    1 stopped by an error or by --max-failures; 2 nothing was sent: usage error, refused plan, or not confirmed;
    130 interrupted.
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
    limits = ApplyLimits(
        rate=rate,
        concurrency=concurrency,
        limit=limit,
        max_failures=max_failures,
        repeat_uncertain=repeat_uncertain,
    )
    options = ApplyOptions(
        path=plan, accept_changed=accept_changed, yes=yes, quiet=quiet, limits=limits, project=project
    )
    try:
        status = _apply(options)
    except (PlanError, JournalError, InputError, LockedError, ConfigurationError, ValueError) as error:
        print_line(client_message(error), sys.stderr)
        raise typer.Exit(EXIT_USAGE) from None
    except OSError as error:
        print_line(f"{error.filename or 'a file'}: {error.strerror or error}", sys.stderr)
        raise typer.Exit(EXIT_STOPPED) from None
    raise typer.Exit(status)


def _apply(options: ApplyOptions) -> int:
    """Apply a plan and return the exit status."""
    stored = read_plan(options.path)
    _check_plan(stored, options)
    plan = stored.plan
    client = _create_client(plan, options.project)
    path = journal_path(options.path)
    with ExitStack() as stack:
        stack.enter_context(lock_file(find_inputs([str(options.path)])[0][0], "apply"))
        project = _fingerprint(plan, options.project)
        journal = Journal(path, stored.sha256, project, time.time(), calls=len(plan.calls))
        remaining = remaining_calls(plan, journal.entries, repeat_uncertain=options.limits.repeat_uncertain)
        to_send = sum(map(len, remaining.limited(options.limits.limit)))
        for line in _summary(plan, remaining, client.api_host, to_send):
            print_line(line, sys.stdout)
        if to_send and not options.yes and (status := _ask(to_send)) != EXIT_OK:
            print_line("Nothing was sent.", sys.stdout)
            return status
        signals = stack.enter_context(SignalCounter())
        display = create_display("accepted", "failed", quiet=options.quiet)
        stack.callback(display.close)
        run = ApplyRun(remaining, journal, limits=options.limits, display=display, signals=signals)
        if to_send:
            stack.enter_context(journal)
            anyio.run(run.run, client, CallSender(client, plan.event, journal.created))
        display.close()
        left = remaining_calls(plan, journal.entries, repeat_uncertain=False)
        for line in _report(plan, options.path, journal, run, left):
            print_line(line, sys.stdout)
        return signals.status or _status(journal, run, left)


def _check_plan(stored: StoredPlan, options: ApplyOptions) -> None:
    """Refuse a plan that is not the one that was made, or is for another project.

    Raises:
        PlanError: with the reason.
        ValueError: if `MIXPANEL_ID_MERGE` is unknown.
    """
    given = environment_id_merge()
    if given not in {None, stored.plan.id_merge}:
        raise PlanError(
            f"{options.path} is for a project with {stored.plan.id_merge.value} ID merge, but MIXPANEL_ID_MERGE is "
            f"{given.value if given else ''}"
        )
    if options.accept_changed:
        return
    if not stored.is_unchanged:
        raise PlanError(f"{options.path} was edited; make a new plan, or use --accept-changed")
    for one in stored.plan.inputs:
        difference = one.difference()
        if difference is not None:
            raise PlanError(f"{difference}; make a new plan, or use --accept-changed")


def _create_client(plan: Plan, project: ProjectOptions) -> AsyncMixpanel:
    """Create the client.

    Raises:
        ConfigurationError: if the token or part of the service account is missing or invalid.
    """
    allowed = {"MIXPANEL_ALLOW_HTTP": "1"} if project.allow_http else {}
    return AsyncMixpanel.from_env(
        {**project.environ, **allowed},
        # A disabled client would report success without sending.
        enabled=True,
        id_merge=plan.id_merge,
        # Links of a resumed run may be older than `/track` accepts.
        events_endpoint="import" if plan.is_simplified else "auto",
        timeout=_REQUEST_TIMEOUT,
        spool=None,
    )


def _fingerprint(plan: Plan, project: ProjectOptions) -> str:
    """Return a fingerprint of the project that the calls go to.

    Mixpanel goes by the project id of the service account for what comes by `/import`: merges and linking events.
    """
    is_by_account = any(pair.call.kind in {CallKind.MERGE, CallKind.LINK} for pair in plan.calls)
    account = project.account_fingerprints() if is_by_account else {}
    return "-".join([project.fingerprint(), *account.values()])


def _ask(count: int) -> int:
    """Ask whether to send. Return `EXIT_OK`, or the exit status if the answer is no.

    Raises:
        PlanError: if there is no terminal to ask on.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise PlanError("there is no terminal to ask on, so nothing was sent; use --yes")
    try:
        return EXIT_OK if typer.confirm(f"Send {counted(count, 'call')} now?") else EXIT_USAGE
    except typer.Abort as error:
        print_line("", sys.stdout)
        return EXIT_INTERRUPTED if isinstance(error.__context__, KeyboardInterrupt) else EXIT_USAGE


def _summary(plan: Plan, remaining: Remaining, host: str, to_send: int) -> Iterator[str]:
    kinds = Counter(call.kind.value for group in remaining.groups for _, call in group)
    listed = ", ".join(f"{number:,} {kind}" for kind, number in sorted(kinds.items()))
    yield f"Project: {plan.id_merge.value} ID merge, at {host}"
    people, left_out = counted(len(plan.groups), "person", "people"), counted(len(plan.left_out), "pair")
    yield f"Plan: {counted(len(plan.calls), 'call')} for {people}; {left_out} left out"
    if remaining.accepted:
        yield f"Accepted earlier: {remaining.accepted:,}"
    if remaining.count:
        yield f"To send: {remaining.count:,} ({listed})" + (f"; now {to_send:,}" if to_send < remaining.count else "")
        yield "These calls cannot be undone."
    elif not plan.groups:
        yield "The plan has no calls."
    if plan.needs_attention:
        yield f"Staying apart: {counted(plan.needs_attention, 'pair')}, with the reasons in the plan"


def _report(plan: Plan, path: Path, journal: Journal, run: ApplyRun, left: Remaining) -> Iterator[str]:
    """Yield the lines about a run, and about every call that failed or is uncertain."""
    calls = plan.calls
    yield f"{run.accepted:,} accepted now, {left.accepted:,} of {len(calls):,} in total"
    entries = sorted(journal.entries.items())
    bad = [(number, entry) for number, entry in entries if entry.state is not CallState.ACCEPTED]
    for number, entry in bad[:_SHOWN]:
        pair = calls[number - 1]
        state = "failed" if entry.state is CallState.FAILED else "uncertain"
        reason = entry.reason or "the run was interrupted before the answer"
        yield f"  {pair.source}: {pair.kind} {state}: {reason}"
    if len(bad) > _SHOWN:
        yield f"  and {len(bad) - _SHOWN:,} more in {journal.path}"
    if left.uncertain:
        yield (
            f"{counted(len(left.uncertain), 'call')} may have been applied: `identity verify` shows it, and "
            "--repeat-uncertain sends it again"
        )
    if left.waiting:
        yield f"Waiting for an uncertain call of the same person: {counted(left.waiting, 'call')}"
    if run.failure is not None:
        yield f"Stopped: {run.failure}"
    if run.is_interrupted and left.count:
        yield "Interrupted: no further call was sent"
    if left.count:
        yield f"Left: {counted(left.count, 'call')}; run the command again"
    elif calls and not left.uncertain:
        yield "Reports show the result after up to 60 minutes, in rare cases 24 hours. To read it back:"
        yield f"  mixpanel-async identity verify {shlex.quote(str(path))}{_from_date(plan)}"


def _from_date(plan: Plan) -> str:
    """Return the option that lets `verify` read events of all ids of the calls. In Legacy, old events stay apart."""
    if plan.shown_since is None or plan.id_merge is IdMerge.LEGACY:
        return ""
    return f" --from-date {plan.shown_since}"


def _status(journal: Journal, run: ApplyRun, left: Remaining) -> int:
    if run.failure is not None:
        return EXIT_STOPPED
    states = {entry.state for entry in journal.entries.values()}
    return EXIT_INCOMPLETE if states - {CallState.ACCEPTED} or left.uncertain else EXIT_OK
