"""Tests of `IdentityGraph` against a model that keeps the people as a list of sets."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import ConfigurationError, IdMerge, ValidationError
from mixpanel_async.identity import CREATE_ALIAS, IDENTIFY, MERGE, IdentityGraph, Reason, Step

VISITORS = [str(uuid.UUID(int=number, version=4)) for number in range(3)]
IDS = [*VISITORS, "user-1", "user-2", "user-3"]

SETTINGS = settings(max_examples=150, deadline=None)
CALLS = st.tuples(st.sampled_from([IDENTIFY, CREATE_ALIAS, MERGE]), st.sampled_from(IDS), st.sampled_from(IDS))
DEVICE_EVENTS = st.tuples(st.just("Viewed"), st.sampled_from(["user-1", "user-2", ""]), st.sampled_from(VISITORS))


def event(name: str, first: str, second: str) -> dict[str, Any]:
    """Return an identity call, or an event of a user on a device."""
    names: dict[str, dict[str, Any]] = {
        IDENTIFY: {"$identified_id": first, "$anon_id": second},
        CREATE_ALIAS: {"distinct_id": first, "alias": second},
        MERGE: {"$distinct_ids": [first, second]},
    }
    user = {"$user_id": first} if first else {}
    device = {"$device_id": second, "distinct_id": first or f"$device:{second}", **user}
    return {"event": name, "properties": {"time": 1_700_000_000, **names.get(name, device)}}


def ids_of(system: IdMerge, name: str, first: str, second: str) -> set[str]:
    """Return the ids that an event adds to the graph."""
    if name != "Viewed":
        # Without effect in Simplified, a call counts for the person of its event.
        return {first, second} if system is not IdMerge.SIMPLIFIED else {first} if name != MERGE else set()
    if system is not IdMerge.SIMPLIFIED:
        return {first or f"$device:{second}"}
    return {first, f"$device:{second}"} - {""}


def joined(people: list[set[str]], first: str, second: str) -> list[set[str]]:
    whole = next(one for one in people if first in one) | next(one for one in people if second in one)
    return [*(one for one in people if not one & whole), whole]


@SETTINGS
@given(st.sampled_from(IdMerge), st.lists(CALLS | DEVICE_EVENTS, max_size=14))
def test_graph_matches_model(system: IdMerge, events: list[tuple[str, str, str]]) -> None:
    """The people are those of the calls that joined, and the explanation of a person is a tree of such calls."""
    graph = IdentityGraph(system, cluster_limit=4)
    people: list[set[str]] = []
    calls: list[Step] = []
    for name, first, second in events:
        before = graph.copy()
        result = graph.apply(event(name, first, second))
        for distinct_id in ids_of(system, name, first, second):
            people += [] if any(distinct_id in one for one in people) else [{distinct_id}]
        if result.joined:
            second = second if name != "Viewed" else f"$device:{second}"
            assert not before.is_same_person(first, second)
            people = joined(people, first, second)
            verb = name if name != "Viewed" else "$device"
            calls.append(Step(verb=verb, first=first, second=second, at=1_700_000_000))
            assert result.reason is None
        else:
            assert result.reason is not None
            assert before.diff(graph).split == before.diff(graph).joined == ()
    assert sorted(map(sorted, graph.persons())) == sorted(map(sorted, people))
    assert list(graph.steps()) == calls
    assert (graph.person_count, len(graph)) == (len(people), sum(map(len, people)))
    for person in people:
        steps = [step for step in calls if step.first in person]
        for distinct_id in person:
            assert graph.cluster(distinct_id) == person
            assert graph.resolve(distinct_id) in person
            assert list(graph.explain(distinct_id)) == steps
        assert len(steps) == len(person) - 1
    assert system is not IdMerge.ORIGINAL or max(map(len, people), default=0) <= 4


@SETTINGS
@given(st.lists(CALLS, max_size=8), st.lists(CALLS, max_size=8))
def test_diff_matches_model(before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]) -> None:
    graphs = IdentityGraph("original"), IdentityGraph("original")
    for graph, calls in zip(graphs, (before, after), strict=True):
        for distinct_id in IDS[:-1]:
            graph.add(distinct_id)
        for call in calls:
            graph.call(*call)
    one, other = graphs
    diff = one.diff(other)
    shared = set(one.ids()) & set(other.ids())
    for first, second, changes in ((one, other, diff.split), (other, one, diff.joined)):
        expected = {}
        for person in map(frozenset, first.persons()):
            parts = {frozenset(second.cluster(each) & person & shared) for each in person & shared}
            if len(parts) > 1:
                expected[first.resolve(next(iter(person)))] = parts
        assert {change.person: set(map(frozenset, change.parts)) for change in changes} == expected
    assert set(diff.gone) == set(one.ids()) - shared
    assert set(diff.new) == set(other.ids()) - shared
    assert (diff.persons_before, diff.persons_after) == (one.person_count, other.person_count)
    assert one.diff(one.copy()).is_empty


def test_copy_is_independent() -> None:
    graph = IdentityGraph("original")
    graph.add("user-1")
    trial = graph.copy()
    assert trial.identify("user-1", VISITORS[0]).joined
    assert (len(graph), len(trial)) == (1, 2)


def test_diff_with_another_system_matches_devices_with_and_without_prefix() -> None:
    """A server-side `$identify` joins in Original, and a device with a user in Simplified."""
    history = [
        {"event": "Viewed", "properties": {"distinct_id": VISITORS[0], "$device_id": VISITORS[0]}},
        event(IDENTIFY, "user-1", VISITORS[0]),
        {"event": "Bought", "properties": {"distinct_id": "user-1"}},
    ]
    original, simplified = IdentityGraph("original"), IdentityGraph("simplified")
    for one in history:
        original.apply(one)
        simplified.apply(one)
    diff = original.diff(simplified)
    (change,) = diff.split
    assert (change.person, set(change.parts)) == ("user-1", {("user-1",), (VISITORS[0],)})
    assert (diff.persons_before, diff.persons_after, diff.joined) == (1, 2, ())


def test_export_counts_the_id_that_was_sent() -> None:
    graph = IdentityGraph("original")
    sent = {"distinct_id": "user-1", "$distinct_id_before_identity": VISITORS[0]}
    graph.apply({"event": "Viewed", "properties": sent})
    graph.apply({"event": CREATE_ALIAS, "properties": {**sent, "alias": "short"}})
    assert set(graph.ids()) == {VISITORS[0], "short"}


def test_recorded_failure_joins_nothing() -> None:
    refused = event(IDENTIFY, "user-1", VISITORS[0])
    refused["properties"]["$failure_reason"] = "errAnonDistinctIdAssignedAlready"
    result = IdentityGraph("original").apply(refused)
    assert (result.outcome, result.reason) == ("failed", Reason.ALREADY_ASSIGNED)
    assert "reset()" in result.advice
    assert IdentityGraph("original", use_recorded_failures=False).apply(refused).joined
    refused["properties"].update({"$failure_reason": "errNew", "$failure_description": "something new"})
    result = IdentityGraph("original").apply(refused)
    assert (result.reason, result.description, result.failure_code) == (Reason.REFUSED, "something new", None)


@pytest.mark.parametrize(
    ("system", "name", "first", "second", "reason"),
    [
        ("original", IDENTIFY, "user-1", "user-1", Reason.SAME_IDS),
        ("original", IDENTIFY, "user-1", "visitor", Reason.NOT_ANONYMOUS),
        ("original", IDENTIFY, "user-1", "", Reason.INVALID_ID),
        ("original", MERGE, "user-1", "user-1", Reason.ALREADY_ONE_PERSON),
        ("original", "Viewed", "user-1", "device", Reason.ORDINARY_EVENT),
        ("legacy", MERGE, "user-1", "user-2", Reason.NOT_IN_LEGACY),
        ("simplified", CREATE_ALIAS, "user-1", "user-2", Reason.NOT_IN_SIMPLIFIED),
    ],
)
def test_reason_says_why_nothing_joined(system: Any, name: str, first: str, second: str, reason: Reason) -> None:
    result = IdentityGraph(system).apply(event(name, first, second))
    assert (result.joined, result.reason) == (False, reason)
    is_wrong = reason not in {Reason.ORDINARY_EVENT, Reason.ALREADY_ONE_PERSON}
    assert bool(result.advice) is is_wrong


def test_merge_on_track_is_ignored() -> None:
    graph = IdentityGraph("original")
    result = graph.apply(event(MERGE, "user-1", "user-2"), endpoint="/track")
    assert (result.outcome, result.reason) == ("ignored", Reason.NEEDS_IMPORT)
    assert graph.person_count == 2


def test_device_keeps_its_first_user() -> None:
    graph = IdentityGraph("simplified")
    assert graph.link_device("phone", "user-1").joined
    assert graph.link_device("$device:phone", "user-1").outcome == "unchanged"
    assert graph.link_device("phone", "user-2").reason is Reason.DEVICE_TAKEN
    assert graph.identified_ids("$device:phone") == {"user-1"}
    assert "user-2" in graph


def test_identified_ids_are_those_of_accepted_identify_calls() -> None:
    graph = IdentityGraph("original")
    graph.identify("user-1", VISITORS[0])
    graph.identify("user-2", VISITORS[1])
    graph.alias("user-1", "short")
    assert graph.identified_ids("short") == {"user-1"}
    graph.merge("user-1", "user-2")
    assert graph.identified_ids("short") == {"user-1", "user-2"}
    assert graph.identified_ids("unknown") == set()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"id_merge": "new"}, "id_merge must be legacy, original or simplified, not 'new'"),
        ({"id_merge": None}, "id_merge must be legacy, original or simplified, not None"),
        ({"id_merge": "original", "cluster_limit": 1}, "cluster_limit must be an integer of at least 2, not 1"),
    ],
)
def test_invalid_option_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        IdentityGraph(**arguments)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"properties": {}}, "event: must be a text"),
        ({"event": "Viewed", "properties": []}, "properties: must be an object"),
    ],
)
def test_malformed_event_is_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        IdentityGraph("original").apply(wrong)


def test_unknown_call_and_empty_id_are_refused() -> None:
    graph = IdentityGraph("original")
    with pytest.raises(ValidationError, match="verb: must be"):
        graph.call("$join", "user-1", "user-2")
    with pytest.raises(ValidationError, match="id: must not be empty"):
        graph.merge("user-1", "")
