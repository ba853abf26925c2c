"""Random histories and pairs: what `plan` predicts is what the emulator does on `apply`, also after kills.

The short form runs a hundred, the long one, behind the marker `long`, 10,000.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from emulator_export import exported_lines, import_events
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from repair_command import anonymous

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.cli.identity.repair.apply_run import ApplyLimits, ApplyRun, remaining_calls
from mixpanel_async.cli.identity.repair.calls import Call, CallKind, Skip, can_repeat
from mixpanel_async.cli.identity.repair.journal import CallState, Journal
from mixpanel_async.cli.identity.repair.pairs import PairKind, PairOptions
from mixpanel_async.cli.identity.repair.plan_command import PlanInputs, PlanOptions, make_plan
from mixpanel_async.cli.identity.repair.plan_file import Plan, read_plan, write_plan
from mixpanel_async.cli.identity.repair.sender import CallSender, SendResult
from mixpanel_async.cli.importing.inputs import find_inputs
from mixpanel_async.cli.importing.progress import create_display
from mixpanel_async.cli.importing.signals import SignalCounter
from mixpanel_async.emulator import Emulator
from mixpanel_async.identity import Order

LIMIT = 4
NAMES = [anonymous(1), anonymous(2), anonymous(3), "u1", "u2", "u3"]
LIMITS = ApplyLimits(rate=1e6, concurrency=2, limit=None, max_failures=1.0, repeat_uncertain=True)

names = st.sampled_from(NAMES)
device_names = st.sampled_from(["d1", "d2", "$device:d1", "$device:d3", "u1"])


@dataclass(frozen=True)
class Case:
    """Project with a history, pairs to join, and the calls at which `apply` is killed."""

    system: IdMerge
    history: Sequence[tuple[str, str, str]]
    pairs: Sequence[tuple[str, str, str]]
    allow_user_merge: bool
    kills: Sequence[tuple[int, bool, int]]
    """Calls until a kill, whether it comes after the request, and bytes of the next line that are on disk."""


def cases() -> st.SearchStrategy[Case]:
    verbs = st.sampled_from(["Viewed", "$identify", "$create_alias", "$merge"])
    kinds = st.sampled_from([kind.value for kind in PairKind])
    kill = st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 20))

    def of_system(system: IdMerge) -> st.SearchStrategy[Case]:
        second = st.one_of(names, device_names) if system is IdMerge.SIMPLIFIED else names
        return st.builds(
            Case,
            system=st.just(system),
            history=st.lists(st.tuples(verbs, names, second), max_size=8),
            pairs=st.lists(st.tuples(kinds, second, second), min_size=1, max_size=10),
            allow_user_merge=st.booleans(),
            kills=st.lists(kill, max_size=3),
        )

    return st.sampled_from(IdMerge).flatmap(of_system)


class Killed(BaseException):
    """The process ends."""


def is_killed(error: BaseException) -> bool:
    """Return whether nothing but kills ended a group of tasks."""
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return isinstance(error, Killed) or (bool(members) and all(map(is_killed, members)))


class MortalSender(CallSender):
    """Sender whose process ends before or after some requests."""

    def __init__(self, client: AsyncMixpanel, event: str, created: float, *, until: int, after: bool) -> None:
        super().__init__(client, event, created)
        self._until = until
        self._after = after

    async def send(self, call: Call) -> SendResult:
        self._until -= 1
        if self._until < 0 and not self._after:
            raise Killed
        result = await super().send(call)
        if self._until < 0:
            raise Killed
        return result


def as_event(verb: str, first: str, second: str, number: int) -> dict[str, Any]:
    """Return a step of a history as an event. Ordinary ones have a device, which links in Simplified only."""
    own: dict[str, Any] = {"distinct_id": first, "$user_id": first, "$device_id": second}
    if verb == "$identify":
        own = {"$identified_id": first, "$anon_id": second}
    elif verb == "$create_alias":
        own = {"distinct_id": first, "alias": second}
    elif verb == "$merge":
        own = {"$distinct_ids": [first, second]}
    elif number % 2:
        own = {"distinct_id": first}
    return {"event": verb, "properties": {"time": 1_700_000_000 + number, "$insert_id": f"i-{number}", **own}}


def planned(case: Case, emulator: Emulator, folder: Path) -> Plan:
    (folder / "history.ndjson").write_bytes(exported_lines(emulator) or b"\n")
    records = [{"kind": kind, "first": first, "second": second} for kind, first, second in case.pairs]
    (folder / "pairs.ndjson").write_text("".join(json.dumps(one) + "\n" for one in records))
    options = PlanOptions(
        id_merge=case.system,
        cluster_limit=LIMIT,
        order=Order.ARRIVAL,
        allow_user_merge=case.allow_user_merge,
        event="Ids linked",
        pairs=PairOptions(),
    )
    (pairs,), (history,) = (find_inputs([str(folder / name)])[0] for name in ("pairs.ndjson", "history.ndjson"))
    made = make_plan(PlanInputs(pairs=pairs, history=[history]), options)
    write_plan(made, folder / "plan")
    stored = read_plan(folder / "plan")
    assert stored.is_unchanged
    assert (stored.plan.groups, stored.plan.left_out) == (made.groups, made.left_out)
    return made


def open_journal(folder: Path) -> Journal:
    return Journal(folder / "journal", "plan", "project", 1_700_000_000.0, calls=100)


def apply_with_kills(case: Case, plan: Plan, emulator: Emulator, folder: Path) -> Counter[int]:
    """Apply a plan in as many runs as it takes. Return how often each call was sent."""
    sent: Counter[int] = Counter()
    for until, after, torn in itertools.chain(case.kills, [(1_000, False, 0)]):
        with open_journal(folder) as journal, SignalCounter() as signals:
            confirmed = {number for number, entry in journal.entries.items() if entry.state is CallState.ACCEPTED}
            remaining = remaining_calls(plan, journal.entries, repeat_uncertain=True)
            assert confirmed.isdisjoint(number for group in remaining.groups for number, _ in group)
            display = create_display("accepted", quiet=True)
            run = ApplyRun(remaining, journal, limits=LIMITS, display=display, signals=signals)
            client = emulator.client(id_merge=case.system, events_endpoint="import")
            sender = MortalSender(client, plan.event, journal.created, until=until, after=after)
            try:
                anyio.run(run.run, client, sender)
            except BaseException as error:
                if not is_killed(error):
                    raise
        lines = [json.loads(line) for line in (folder / "journal").read_bytes().splitlines()[1:]]
        sent = Counter(line["call"] for line in lines if line["state"] == "started")
        with (folder / "journal").open("ab") as file:
            file.write(b'{"call": 1, "state": "accepted"}'[:torn])
    return sent


def check(case: Case) -> None:
    emulator = Emulator(case.system, cluster_limit=LIMIT)
    steps = [as_event(*step, number) for number, step in enumerate(case.history)]
    import_events(emulator, steps)
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        folder = Path(name)
        ids = [*NAMES, *(f"$device:d{number}" for number in (1, 2, 3)), "d1", "d2", "$device:u1"]
        before = {one: frozenset(emulator.cluster(one)) for one in ids}
        plan = planned(case, emulator, folder)
        known = len(emulator.identity_log())
        sent = apply_with_kills(case, plan, emulator, folder)
    entries = emulator.identity_log()[known:]
    calls = plan.calls
    event(f"{case.system.value}: {min(len(calls), 3)} calls")
    assert set(sent) == set(range(1, len(calls) + 1))
    # Every call joined people, once. A repetition changed nothing.
    assert sum(entry["outcome"] == "merged" for entry in entries) == len(calls)
    for pair in calls:
        assert emulator.resolve(pair.first) == emulator.resolve(pair.second)
    expected = {one: frozenset(person) for person in plan.persons for one in person}
    for one in ids:
        assert frozenset(emulator.cluster(one)) == expected.get(one, before[one]), one
    check_left_out(plan, emulator)


def check_left_out(plan: Plan, emulator: Emulator) -> None:
    """Check that pairs without a call are joined, or that their call joins nothing."""
    for pair in plan.left_out:
        if pair.skip in {Skip.JOINED, Skip.IMPLIED} and not plan.is_simplified:
            assert emulator.resolve(pair.first) == emulator.resolve(pair.second)
        elif pair.skip is Skip.FAILS:
            people = emulator.clusters()
            link = {"distinct_id": pair.first, "$user_id": pair.first, "$device_id": pair.second}
            verb = {"identify": "$identify", "alias": "$create_alias", "merge": "$merge"}.get(pair.kind, "Viewed")
            late = as_event(verb, pair.first, pair.second, 99)
            if pair.kind == "link":
                late["properties"] |= link
            import_events(emulator, [late])
            assert emulator.identity_log()[-1]["outcome"] in {"failed", "ignored"}
            assert [person for person in emulator.clusters() if person in people] == people


@given(cases())
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_plan_predicts_what_apply_does(case: Case) -> None:
    check(case)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@given(cases())
@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_plan_predicts_what_apply_does_in_10_000_histories(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("system", IdMerge)
@pytest.mark.parametrize("kind", CallKind)
def test_only_calls_that_leave_no_trace_are_repeated(system: IdMerge, kind: CallKind) -> None:
    silent = {(IdMerge.ORIGINAL, CallKind.MERGE), (IdMerge.SIMPLIFIED, CallKind.LINK)}
    assert can_repeat(system, kind) is ((system, kind) in silent)
