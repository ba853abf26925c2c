"""Command `mixpanel-async identity simulate`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from mixpanel_async import ConfigurationError, IdMerge
from mixpanel_async.identity import GraphDiff, History, Order, PersonChange

from ..importing.inputs import DamagedError, InputError
from . import options as opt
from .events import ExportFiles
from .messages import STOPPED, USAGE, fail, show_unreadable, write_output
from .tables import count, output, print_pairs, shown


def simulate(
    files: opt.ExportNames = None,
    *,
    id_merge: Annotated[
        IdMerge,
        typer.Option("--id-merge", case_sensitive=False, help="ID merge system to try.", show_default=False),
    ],
    now: Annotated[
        IdMerge,
        typer.Option(
            "--from",
            envvar="MIXPANEL_ID_MERGE",
            case_sensitive=False,
            help="ID merge system of the project that the events come from.",
        ),
    ] = IdMerge.ORIGINAL,
    cases: opt.ShownCases = 5,
    order: opt.ReplayOrder = Order.ARRIVAL,
    cluster_limit: opt.ClusterLimit = 500,
    as_json: opt.AsJson = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show what another ID merge system makes of the same events: persons before and after, who splits, who joins.

    Nothing is sent. A project that holds data cannot change its system: this shows what a new project would do with an
    import of the same events.
    """
    try:
        exports = ExportFiles(files or [])
        before = History(now, cluster_limit=cluster_limit, order=order)
        after = History(id_merge, cluster_limit=cluster_limit, order=order, use_recorded_failures=now is id_merge)
        exports.feed(before.add, after.add, quiet=quiet)
    except (InputError, ConfigurationError) as error:
        fail("simulate", str(error), USAGE)
    except DamagedError as error:
        fail("simulate", f"{error}; export it again", STOPPED)
    for history in (before, after):
        for _ in history.replay():
            pass
    diff = before.graph.diff(after.graph)
    if as_json:
        found = {"from": now.value, "id_merge": id_merge.value, "events": before.event_count, **_as_dict(diff, cases)}
        write_output(json.dumps(found, indent=2) + "\n", "simulate")
    else:
        with output("simulate") as console:
            _print(console, diff, now, id_merge, cases)
    show_unreadable(exports)


def _as_dict(diff: GraphDiff, cases: int) -> dict[str, Any]:
    def listed(changes: tuple[PersonChange, ...]) -> list[dict[str, Any]]:
        return [{"person": one.person, "parts": [list(part) for part in one.parts]} for one in changes[:cases]]

    return {
        "persons_before": diff.persons_before,
        "persons_after": diff.persons_after,
        "split": len(diff.split),
        "joined": len(diff.joined),
        "gone": len(diff.gone),
        "new": len(diff.new),
        "split_cases": listed(diff.split),
        "joined_cases": listed(diff.joined),
    }


def _print(console: Console, diff: GraphDiff, before: IdMerge, after: IdMerge, cases: int) -> None:
    rows = [
        (f"Persons in {before.value} (now)", f"{diff.persons_before:,}"),
        (f"Persons in {after.value}", f"{diff.persons_after:,}"),
        ("Persons that split", f"{len(diff.split):,}"),
        ("Persons that join", f"{len(diff.joined):,}"),
        (f"Ids that only {before.value} has", f"{len(diff.gone):,}"),
        (f"Ids that only {after.value} has", f"{len(diff.new):,}"),
    ]
    print_pairs(console, rows)
    for title, changes in (("Split", diff.split), ("Joined", diff.joined)):
        if changes and cases:
            console.print(f"\n[bold]{title}[/bold]")
        for one in changes[:cases]:
            parts = " | ".join(_part(part) for part in one.parts[:4])
            more = f" | and {count(len(one.parts) - 4, 'more', 'more')}" if len(one.parts) > 4 else ""
            console.print(f"  {shown(one.person)}: {parts}{more}", markup=False, overflow="fold")
        if len(changes) > cases > 0:
            console.print(f"  and {len(changes) - cases:,} more")


def _part(ids: tuple[str, ...]) -> str:
    return ", ".join(map(shown, ids[:3])) + (f" and {len(ids) - 3:,} more" if len(ids) > 3 else "")
