"""Tests of the propagation delay of identity links in reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from emulator_wire import Wire
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.emulator.project.propagation import DelayedIdentities
from mixpanel_async.identity import CREATE_ALIAS, IDENTIFY, MERGE
from mixpanel_async.identity.systems import Link, OriginalIdentities

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
A2 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"
START = 1_700_000_000.0
HOUR = 3_600.0


class Clock:
    """Clock that advances only when a test sets it."""

    def __init__(self) -> None:
        self.time = START

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def wire(clock: Clock, id_merge: IdMerge = IdMerge.ORIGINAL, delay: float = HOUR, **options: Any) -> Wire:
    return Wire(Emulator(id_merge, propagation_delay=delay, now=clock, **options))


def test_reports_apply_links_at_once_without_delay(clock: Clock) -> None:
    mixpanel = wire(clock, delay=0.0)
    mixpanel.track(A1)
    mixpanel.identify("u", A1)
    assert mixpanel.counted() == ["u"]
    assert mixpanel.emulator.resolve(A1) == "u"


def test_reports_apply_merge_after_delay(clock: Clock) -> None:
    mixpanel = wire(clock)
    mixpanel.track(A1)
    assert mixpanel.identify("u", A1)["outcome"] == "merged"
    for late in (0.0, HOUR - 1):
        clock.time = START + late
        assert mixpanel.counted() == [A1]
        assert mixpanel.emulator.resolve(A1) == A1
    clock.time = START + HOUR
    assert mixpanel.counted() == ["u"]
    assert mixpanel.emulator.resolve(A1) == "u"


def test_delay_affects_reports_only(clock: Clock) -> None:
    mixpanel = wire(clock)
    mixpanel.engage(A1, set={"seen": 1})
    mixpanel.identify("u", A1)
    mixpanel.engage(A1, set={"plan": "pro"})
    assert mixpanel.emulator.cluster(A1) == {"u", A1}
    assert mixpanel.emulator.clusters() == [{"u", A1}]
    assert [entry["outcome"] for entry in mixpanel.emulator.identity_log()] == ["merged"]
    profile = mixpanel.emulator.profile(A1) or {}
    assert (profile["seen"], profile["plan"]) == (1, "pro")
    assert set(mixpanel.emulator.profiles()) == {"u"}
    assert mixpanel.identify("u2", A1)["$failure_reason"] == "errAnonDistinctIdAssignedAlready"


def test_each_link_has_its_own_delay(clock: Clock) -> None:
    mixpanel = wire(clock)
    mixpanel.track(A1)
    mixpanel.track(A2)
    mixpanel.identify("u", A1)
    clock.time += HOUR / 2
    mixpanel.identify("u", A2)
    clock.time = START + HOUR
    assert mixpanel.counted() == ["u", A2]
    clock.time = START + 1.5 * HOUR
    assert mixpanel.counted() == ["u", "u"]


def test_simplified_device_link_is_delayed(clock: Clock) -> None:
    mixpanel = wire(clock, IdMerge.SIMPLIFIED)
    mixpanel.track(None, **{"$device_id": "d"})
    mixpanel.track(None, **{"$device_id": "d", "$user_id": "u"})
    # The second event names the user itself, so it needs no mapping.
    assert mixpanel.counted() == ["$device:d", "u"]
    assert mixpanel.emulator.cluster("u") == {"u", "$device:d"}
    clock.time += HOUR
    assert mixpanel.counted() == ["u", "u"]


def test_legacy_redirects_new_records_at_once(clock: Clock) -> None:
    mixpanel = wire(clock, IdMerge.LEGACY)
    mixpanel.alias("old", "new")
    mixpanel.track("new")
    assert mixpanel.counted() == ["old"]
    assert mixpanel.emulator.resolve("new") == "new"
    clock.time += HOUR
    assert mixpanel.emulator.resolve("new") == "old"


def test_reports_use_canonical_id_chosen_at_merge(clock: Clock) -> None:
    mixpanel = wire(clock, choose_canonical=lambda first, second: second)
    mixpanel.track("u")
    mixpanel.identify("u", A1)
    assert mixpanel.counted() == ["u"]
    clock.time += HOUR
    assert mixpanel.counted() == [A1]


def test_delay_continues_after_restart(clock: Clock, tmp_path: Path) -> None:
    mixpanel = wire(clock, data_dir=tmp_path)
    mixpanel.track(A1)
    mixpanel.identify("u", A1)
    mixpanel.emulator.close()
    clock.time += HOUR / 2
    again = wire(clock, data_dir=tmp_path)
    assert again.counted() == [A1]
    clock.time += HOUR / 2
    assert again.counted() == ["u"]
    again.emulator.close()


def test_reset_discards_pending_links(clock: Clock) -> None:
    mixpanel = wire(clock)
    mixpanel.identify("u", A1)
    mixpanel.emulator.reset()
    clock.time += HOUR
    mixpanel.track(A1)
    assert mixpanel.counted() == [A1]


@pytest.mark.parametrize("delay", [-1.0, float("nan"), float("inf")])
def test_invalid_delay_is_refused(delay: float) -> None:
    with pytest.raises(ValueError, match="propagation_delay"):
        Emulator(propagation_delay=delay)


NAMES = [A1, A2, "u1", "u2", "x"]
STEPS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.sampled_from([IDENTIFY, CREATE_ALIAS, MERGE]),
        st.sampled_from(NAMES),
        st.sampled_from(NAMES),
    ),
    max_size=10,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.integers(1, 12))
def test_reports_equal_earlier_state_of_project(steps: list[tuple[int, str, str, str]], delay: int) -> None:
    """Check that reports show the canonical ids that the project had one delay earlier."""

    def empty() -> OriginalIdentities:
        return OriginalIdentities(4, max)

    time = 0
    live = empty()
    reports = DelayedIdentities(live, empty, delay, lambda: time)
    history: list[dict[str, str]] = []
    for pause, verb, first, second in [*steps, (delay + 1, MERGE, "x", "x")]:
        for _ in range(pause):
            history.append({name: live.resolve(name) for name in NAMES})
            time += 1
            known = {name: reports.identities().resolve(name) for name in NAMES}
            # Links within one second of this clock become visible at its end.
            assert known == (history[time - delay] if 0 <= time - delay < time else {name: name for name in NAMES})
        verdict = live.apply(verb, first, second)
        if verdict.outcome in {"merged", "unchanged"}:
            reports.add(time, Link(verb, first, second, verdict.kept))
