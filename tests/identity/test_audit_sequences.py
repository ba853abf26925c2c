"""Every example sequence in Mixpanel's identity documents, through an audit of its export.

A* are UUIDs, N1 is an id that Mixpanel does not join, U* are user ids, D* are devices. The export is given in reverse,
because exports are not sorted.
"""

from __future__ import annotations

import random
from typing import Any

import orjson
import pytest
from emulator_wire import Wire
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from identity_events import Event, alias, dated, device, identify, merge, track, visitor
from sdk_requests import BROWSER_245, BROWSER_283, REACT_NATIVE, Sdk

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.identity import Audit, FindingKind, IdentityGraph, Order

A1, A2, A3 = visitor(1), visitor(2), visitor(3)
N1 = "visitor-1"
U1, U2, U9 = "user-1", "user-2", "user-9"
D1, D2 = "device-1", "device-2"
DEVICE_1, DEVICE_2 = f"$device:{D1}", f"$device:{D2}"

FORM, SAME = "errAnonDistinctIdNonGUIDForm", "errSameIDs"
TAKEN, EXISTS, MANY = "errAnonDistinctIdAssignedAlready", "errAliasAlreadyExists", "errManyIDs"

sign_up = [track(A1), identify(U1, A1)]
filled = [identify(U1, A1), identify(U1, A2), identify(U1, A3), identify(U1, visitor(4))]

# Name, ID merge, events, people, and reason of each refused or ignored call whose ids are different people.
SEQUENCES: list[tuple[str, str, list[Event], list[set[str]], list[str]]] = [
    ("legacy 1 to 4", "legacy", [track(D1), track(U1), alias(D1, U1), track(U1)], [{D1, U1}], []),
    (
        "legacy 5 to 7",
        "legacy",
        [track(D1), alias(D1, U1), track(U1), track(D2), alias(D2, U1), track(U1)],
        [{D1, U1}, {D2}],
        [EXISTS],
    ),
    ("legacy identify", "legacy", [track(A1), identify(U1, A1)], [{A1}, {U1}], ["notInLegacy"]),
    ("legacy merge", "legacy", [merge(U1, U2)], [{U1}, {U2}], ["notInLegacy"]),
    ("legacy chain", "legacy", [alias(D1, U1), alias(U1, U9)], [{D1, U1, U9}], []),
    ("original 1", "original", sign_up, [{U1, A1}], []),
    ("original 2", "original", [*sign_up, track(A2), identify(U1, A2)], [{U1, A1, A2}], []),
    ("original 3", "original", [*sign_up, track(A1), track(U1)], [{U1, A1}], []),
    ("original 4", "original", [*sign_up, track(A2), identify(U2, A2)], [{U1, A1}, {U2, A2}], []),
    ("original 5", "original", [*sign_up, identify(U2, A1)], [{U1, A1}, {U2}], [TAKEN]),
    ("original 6", "original", [identify(U1, N1)], [{U1}, {N1}], [FORM]),
    ("original 7", "original", [identify(A1, A1)], [{A1}], [SAME]),
    ("original 8", "original", [alias(A1, A2), alias(A2, A3), identify(U1, A1)], [{U1, A1, A2, A3}], []),
    ("original 9", "original", [merge(A1, A2), merge(A2, A3), identify(U1, A1)], [{U1, A1, A2, A3}], []),
    ("original 10", "original", [alias(U1, A1), alias(U1, A2)], [{U1, A1, A2}], []),
    ("original 11", "original", [alias(U1, "x"), alias(U2, "x")], [{U1, "x"}, {U2}], [EXISTS]),
    ("original 12", "original", [track(A1), track(U1, device_id=A1, user_id=U1)], [{A1}, {U1}], []),
    ("original 13", "original", [identify(U1, A1), identify(U2, A2), merge(U1, U2)], [{U1, U2, A1, A2}], []),
    ("original 14", "original", [merge(A1, A2)], [{A1, A2}], []),
    ("original 15", "original", [alias(U1, U9)], [{U1, U9}], []),
    (
        "original 16",
        "original",
        [identify(U1, visitor(number)) for number in range(510)],
        [{U1, *(visitor(number) for number in range(499))}, *({visitor(number)} for number in range(499, 510))],
        [MANY] * 11,
    ),
    (
        "original 17",
        "original",
        [identify(U1, visitor(number)) for number in range(499)] + [identify(U1, visitor(511))],
        [{U1, *(visitor(number) for number in range(499))}, {visitor(511)}],
        [MANY],
    ),
    (
        "original 18",
        "original",
        [
            *(merge("a0", f"a{number}") for number in range(1, 250)),
            *(merge("b0", f"b{number}") for number in range(1, 251)),
            merge("a0", "b0"),
        ],
        [{f"a{number}" for number in range(250)}, {f"b{number}" for number in range(251)}],
        [MANY],
    ),
    ("original 19", "original", [track(A1), track(A1), identify(U1, A1)], [{U1, A1}], []),
    ("original 20", "original", [*sign_up, identify(U1, A1)], [{U1, A1}], []),
    ("original 21", "original", [identify(U1, A1), alias(U1, A2), identify(U2, A2)], [{U1, A1, A2}, {U2}], [TAKEN]),
    ("simplified sign-up", "simplified", [device(D1), device(D1), device(D1, U1)], [{U1, DEVICE_1}], []),
    (
        "simplified second device",
        "simplified",
        [device(D1), device(D1, U1), device(D2), device(D2), device(D2, U1)],
        [{U1, DEVICE_1, DEVICE_2}],
        [],
    ),
    (
        "simplified two users with reset",
        "simplified",
        [device(D1), device(D1, U1), device(D2), device(D2, U2)],
        [{U1, DEVICE_1}, {U2, DEVICE_2}],
        [],
    ),
    ("simplified plain id", "simplified", [track("charlie")], [{"charlie"}], []),
    ("simplified prefixed id", "simplified", [track("$device:anonymous111")], [{"$device:anonymous111"}], []),
    (
        "simplified second user without reset",
        "simplified",
        [device(D1, U1), device(D1, U2), device(D1)],
        [{U1, DEVICE_1}, {U2}],
        [],
    ),
    (
        "simplified second user id",
        "simplified",
        [device("+6512345678", "charlie"), track("+6512345678", user_id="+6512345678")],
        [{"charlie", "$device:+6512345678"}, {"+6512345678"}],
        [],
    ),
    ("simplified user only", "simplified", [device(D1, U1), track(U1, user_id=U1)], [{U1, DEVICE_1}], []),
    ("simplified two devices", "simplified", [device(D1), device(D2)], [{DEVICE_1}, {DEVICE_2}], []),
    ("simplified prefix in device", "simplified", [device(DEVICE_1, U1), device(D1)], [{U1, DEVICE_1}], []),
    ("simplified user before device", "simplified", [device(D1, U1), device(D1)], [{U1, DEVICE_1}], []),
    ("simplified alias", "simplified", [alias(U1, U9)], [{U1}], ["notInSimplified"]),
    ("simplified identify", "simplified", [track(A1), identify(U1, A1)], [{A1}, {U1}], ["notInSimplified"]),
    ("simplified merge", "simplified", [track(U1), merge(U1, U2)], [{U1}], ["notInSimplified"]),
]


def people(graph: IdentityGraph) -> set[frozenset[str]]:
    return set(map(frozenset, graph.persons()))


@pytest.mark.parametrize(
    ("system", "events", "expected", "reasons"), [row[1:] for row in SEQUENCES], ids=[row[0] for row in SEQUENCES]
)
def test_sequence(system: str, events: list[Event], expected: list[set[str]], reasons: list[str]) -> None:
    check = Audit(IdMerge(system))
    for event in reversed(dated(events)):
        check.add(event)
    report = check.report()
    assert people(check.graph) == set(map(frozenset, expected))
    assert report.persons == len(expected)
    found = {
        one.reason.value: one.count
        for one in report.findings
        if one.kind in {FindingKind.FAILED_CALLS, FindingKind.IGNORED_CALLS} and one.reason is not None
    }
    assert found == {reason: reasons.count(reason) for reason in reasons}


@pytest.mark.parametrize("system", IdMerge)
@pytest.mark.parametrize("sdk", [BROWSER_245, BROWSER_283, REACT_NATIVE], ids=lambda sdk: sdk.name)
def test_sequence_of_sdk(system: IdMerge, sdk: Sdk) -> None:
    """The people of an SDK's requests are those of the emulator."""
    check = Audit(system)
    for event in dated(sdk.events()):
        check.add(event)
    check.report()
    first, second, third = (sdk.visitor(number) for number in (1, 2, 3))
    if system is IdMerge.ORIGINAL:
        assert people(check.graph) == {
            frozenset(one) for one in ({"user-1", first}, {"user-2", second}, {"user-3", "alias-1"}, {"user-4", third})
        }
    elif system is IdMerge.LEGACY:
        pairs: list[set[str]] = [{"user-3", "alias-1"}, {"user-4", third}]
        assert people(check.graph) == {frozenset(one) for one in [{"user-1"}, {first}, {"user-2"}, {second}, *pairs]}
    else:
        one, two, three = (f"$device:{device_id}" for device_id in sdk.devices)
        joined = [{"user-1", one}, {"user-2", two}, {"user-3"}, {three, "user-4"} if sdk.identifies_alias else {three}]
        assert {frozenset(one) for one in joined} == people(check.graph) - {frozenset({"alias-1"})}


IDS = [A1, A2, "$device:d1", "d1", "user-1", "user-2"]
CALLS = st.builds(
    lambda make, first, second: make(first, second),
    st.sampled_from([identify, alias, merge]),
    st.sampled_from(IDS),
    st.sampled_from(IDS),
)
EVENT = (
    CALLS
    | st.builds(track, st.sampled_from(IDS))
    | st.builds(device, st.sampled_from([A1, "d1", "d2"]), st.sampled_from(["", "user-1", "user-2"]))
)
EVENTS = st.lists(EVENT, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(IdMerge), EVENTS, st.randoms(use_true_random=False))
def test_audit_of_an_export_finds_the_people_of_the_emulator(
    system: IdMerge, events: list[Event], chance: random.Random
) -> None:
    check_export(system, events, chance)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(IdMerge), st.lists(EVENT, max_size=40), st.randoms(use_true_random=False))
def test_audit_of_an_export_finds_the_people_of_the_emulator_long(
    system: IdMerge, events: list[Event], chance: random.Random
) -> None:
    check_export(system, events, chance)


def check_export(system: IdMerge, events: list[Event], chance: random.Random) -> None:
    emulator = Emulator(system, cluster_limit=4)
    exported = export(emulator, events)
    chance.shuffle(exported)
    check = Audit(system, cluster_limit=4, order=Order.TIME)
    for event in exported:
        check.add(event)
    check.report()
    assert people(check.graph) == set(map(frozenset, emulator.clusters()))


def export(emulator: Emulator, events: list[Event]) -> list[Any]:
    """Send the events and return the raw export. Their times have the order in which they are sent."""
    wire = Wire(emulator)
    assert not events or wire.post("/import", dated(events)).status_code == 200
    dates = "from_date=2023-01-01&to_date=2023-12-31"
    answer = wire.request("GET", f"/api/2.0/export?{dates}", auth=("any", ""))
    assert answer.status_code == 200
    return list(map(orjson.loads, answer.text.splitlines()))
