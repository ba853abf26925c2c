"""Tests of the identity systems against a model that computes each result from the list of all calls.

The short form runs a few hundred random sequences for each system; the long one, behind the marker `long`, 10,000
longer ones for each.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from string import hexdigits
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mixpanel_async._encoding.validation import is_anonymous_id
from mixpanel_async.identity import CREATE_ALIAS, DEVICE_LINK, IDENTIFY, MERGE, id_problem, verb_ids
from mixpanel_async.identity.systems import (
    Identities,
    LegacyIdentities,
    Link,
    OriginalIdentities,
    SimplifiedIdentities,
)

LIMIT = 4
ANONYMOUS = [
    str(uuid.UUID(int=1, version=4)),
    str(uuid.UUID(int=10, version=1)).upper(),
    f"$device:{uuid.UUID(int=1, version=4)}",
    "1a2b3c4d5e6f70-0123456789abcd-1f2e3d4c-75300-1a2b3c4d5e7081",
]
NAMES = [*ANONYMOUS, "u1", "u2", "u3", "u4"]


@dataclass(frozen=True)
class Step:
    verb: str
    first: str
    second: str


SHORT = settings(max_examples=300, deadline=None)
LONG = settings(max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def sequences(most: int) -> st.SearchStrategy[list[Step]]:
    verbs, names = st.sampled_from([IDENTIFY, CREATE_ALIAS, MERGE]), st.sampled_from(NAMES)
    return st.lists(st.builds(Step, verbs, names, names), max_size=most)


STEPS = sequences(12)


def reachable(edges: list[tuple[str, str]], start: str) -> set[str]:
    """Return all ids joined to an id, directly or indirectly."""
    found = {start}
    while True:
        more = {b for a, b in edges if a in found} | {a for a, b in edges if b in found}
        if more <= found:
            return found
        found |= more


def original_reason(accepted: list[Step], step: Step) -> str | None:
    """Return the reason why Mixpanel's diagrams refuse a call, given the accepted ones; None if they accept it."""
    edges = [(past.first, past.second) for past in accepted]
    theirs = reachable(edges, step.second)
    if step.verb == IDENTIFY:
        if step.first == step.second:
            return "errSameIDs"
        if step.second not in ANONYMOUS:
            return "errAnonDistinctIdNonGUIDForm"
        if any(past.verb == IDENTIFY and past.first in theirs for past in accepted):
            return "errAnonDistinctIdAssignedAlready"
    if step.verb == CREATE_ALIAS and any(past.verb == CREATE_ALIAS and past.second == step.second for past in accepted):
        return "errAliasAlreadyExists"
    if step.first not in theirs and len(theirs) + len(reachable(edges, step.first)) > LIMIT:
        return "errManyIDs"
    return None


def check_consistent(identities: Identities) -> None:
    for name in NAMES:
        cluster = identities.cluster(name)
        assert name in cluster
        assert {identities.resolve(member) for member in cluster} == {identities.resolve(name)}
        assert identities.resolve(name) in cluster


def check_adopted(identities: Identities, links: list[Link], empty: Callable[[], Identities]) -> None:
    """Check that identities restored from the accepted links, as after a restart, behave the same."""
    again = empty()
    for link in links:
        again.restore_link(link)
    for name in NAMES:
        assert (again.resolve(name), again.cluster(name)) == (identities.resolve(name), identities.cluster(name))
    if isinstance(identities, SimplifiedIdentities):
        return
    for verb in (IDENTIFY, CREATE_ALIAS, MERGE):
        for first, second in zip(NAMES, reversed(NAMES), strict=True):
            assert again.apply(verb, first, second) == identities.apply(verb, first, second)


@SHORT
@given(STEPS)
def test_original_matches_model(steps: list[Step]) -> None:
    check_original(steps, lambda first, second: first)


@SHORT
@given(STEPS, st.sampled_from([min, max, lambda first, second: second]))
def test_original_with_any_canonical_id_matches_model(steps: list[Step], choose: Callable[[str, str], str]) -> None:
    check_original(steps, choose)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@LONG
@given(sequences(30))
def test_original_matches_model_long(steps: list[Step]) -> None:
    check_original(steps, lambda first, second: first)


def check_original(steps: list[Step], choose: Callable[[str, str], str]) -> None:
    identities = OriginalIdentities(LIMIT, choose)
    accepted: list[Step] = []
    links: list[Link] = []
    for step in steps:
        expected = original_reason(accepted, step)
        before = {name: identities.resolve(name) for name in NAMES}
        verdict = identities.apply(step.verb, step.first, step.second)
        assert verdict.failure_code == expected
        if expected is None:
            accepted.append(step)
            links.append(Link(step.verb, step.first, step.second, verdict.kept))
        if verdict.outcome == "merged":
            assert verdict.kept == choose(before[step.first], before[step.second])
        # People that the call does not name keep their canonical id. Without a merge, all people do.
        moved = {name for name in NAMES if identities.resolve(name) != before[name]}
        assert {before[name] for name in moved} <= {verdict.absorbed}
        edges = [(past.first, past.second) for past in accepted]
        for name in NAMES:
            assert identities.cluster(name) == reachable(edges, name)
    check_consistent(identities)
    check_adopted(identities, links, lambda: OriginalIdentities(LIMIT, choose))


def legacy_root(pointers: list[Step], name: str) -> str:
    for pointer in pointers:
        if pointer.second == name:
            return legacy_root(pointers, pointer.first)
    return name


@SHORT
@given(STEPS, st.lists(st.integers(0, 12), max_size=6))
def test_legacy_matches_model(steps: list[Step], tracked_before: list[int]) -> None:
    check_legacy(steps, tracked_before)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@LONG
@given(sequences(30), st.lists(st.integers(0, 30), max_size=10))
def test_legacy_matches_model_long(steps: list[Step], tracked_before: list[int]) -> None:
    check_legacy(steps, tracked_before)


def check_legacy(steps: list[Step], tracked_before: list[int]) -> None:
    identities = LegacyIdentities()
    pointers: list[Step] = []
    placed: list[tuple[str, str]] = []
    for number, step in enumerate(steps):
        if number in tracked_before:
            person, _ = identities.attribute_event({"distinct_id": step.second})
            assert person == legacy_root(pointers, step.second)
            placed.append((person, person))
        verdict = identities.apply(step.verb, step.first, step.second)
        if step.verb != CREATE_ALIAS:
            assert verdict.outcome == "ignored"
        elif any(pointer.second == step.second for pointer in pointers):
            assert verdict.failure_code == "errAliasAlreadyExists"
        elif legacy_root(pointers, step.first) == step.second:
            assert verdict.failure_code == "errSameIDs"
        else:
            assert verdict.outcome == "merged"
            pointers.append(step)
        assert {name: identities.resolve(name) for name in NAMES} == {
            name: legacy_root(pointers, name) for name in NAMES
        }
        # Stored events never change their person.
        assert all(identities.current_id(person) == then for person, then in placed)
    for name in NAMES:
        root = legacy_root(pointers, name)
        assert identities.cluster(name) == {other for other in NAMES if legacy_root(pointers, other) == root}
    check_adopted(identities, [Link(each.verb, each.first, each.second, None) for each in pointers], LegacyIdentities)


GROUPS = st.lists(st.text("0123456789abcdefABCDEF-g$:", min_size=0, max_size=5), min_size=3, max_size=7)


@SHORT
@given(st.sampled_from(["", "", "$device:", "$Device:", "$device", "$device:$device:"]), GROUPS)
@example("$device:", ["1", "a", "F", "0", "9"])
@example("", ["1", "a", "F", "0", ""])
def test_form_of_anonymous_id_matches_model(prefix: str, groups: list[str]) -> None:
    """The client refuses exactly the ids that the engine does not join."""
    anonymous = prefix + "-".join(groups)
    parts = anonymous.removeprefix("$device:").split("-")
    expected = len(parts) == 5 and all(part and set(part) <= set(hexdigits) for part in parts)
    outcome = OriginalIdentities(LIMIT, lambda first, second: first).apply(IDENTIFY, "user", anonymous)
    assert (outcome.outcome == "merged") is expected
    assert is_anonymous_id(anonymous) is expected


VALUES = st.sampled_from(["u1", "u2", "", None, 7, 1.5, True, ["u1"], {"a": "u1"}])
SPELLINGS = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("$identified_id", "$anon_id", "distinct_id", "$anon_distinct_id"), VALUES)
)


@settings(max_examples=500, deadline=None)
@given(SPELLINGS)
def test_ids_of_identify_match_model(properties: dict[str, Any]) -> None:
    """The first complete spelling counts. A rejection names a property that has no id, of a spelling that was used."""
    usable = {
        name: str(value) for name, value in properties.items() if type(value) in {str, int, float} and value != ""
    }
    spellings = [("$identified_id", "$anon_id"), ("distinct_id", "$anon_distinct_id")]
    complete = [(usable[first], usable[second]) for first, second in spellings if {first, second} <= usable.keys()]
    found = verb_ids(IDENTIFY, properties)
    if complete:
        assert found == complete[0]
        return
    assert isinstance(found, str)
    is_sdk = "$anon_distinct_id" in properties and not {"$identified_id", "$anon_id"} & properties.keys()
    assert found in spellings[is_sdk]
    assert found not in usable
    is_missing = properties.get(found) is None
    assert (id_problem(found, properties.get(found)) == "must not be missing") is is_missing


EVENT = st.fixed_dictionaries(
    {},
    optional={
        "$device_id": st.sampled_from(["d1", "d2", "$device:d1", ""]),
        "$user_id": st.sampled_from(["u1", "u2", "null", "$device:d2"]),
        "distinct_id": st.sampled_from(["u1", "$device:d1", ""]),
    },
)
VERB = st.sampled_from([IDENTIFY, CREATE_ALIAS, MERGE])


def simplified_pair(event: dict[str, Any]) -> tuple[str, str]:
    """Return the device and user of an event by the documented rules; empty if absent."""
    device, user = event.get("$device_id", ""), event.get("$user_id", "")
    if user == "null":
        user = ""
    if user.startswith("$device:"):
        device, user = device or user, ""
    if not device and not user:
        sent = event.get("distinct_id", "")
        device, user = (sent, "") if sent.startswith("$device:") else ("", sent)
    return device.replace("$device:", ""), user


@SHORT
@given(st.lists(EVENT | VERB, max_size=10))
def test_simplified_matches_model(happenings: list[dict[str, Any] | str]) -> None:
    check_simplified(happenings)


@pytest.mark.long
@pytest.mark.timeout(1_800)
@LONG
@given(st.lists(EVENT | VERB, max_size=30))
def test_simplified_matches_model_long(happenings: list[dict[str, Any] | str]) -> None:
    check_simplified(happenings)


def check_simplified(happenings: list[dict[str, Any] | str]) -> None:
    """Check events with ids, mixed with identity calls, which have no effect in Simplified."""
    identities = SimplifiedIdentities()
    placed: list[str] = []
    links: list[Link] = []
    for happening in happenings:
        if isinstance(happening, str):
            assert identities.apply(happening, "u1", "u2").outcome == "ignored"
            continue
        person, device = identities.attribute_event(dict(happening))
        verdict = None if device is None else identities.link_device(device, person)
        if device is not None and verdict is not None and verdict.outcome == "merged":
            links.append(Link(DEVICE_LINK, person, device, verdict.kept))
        placed.append(person)
    events = [happening for happening in happenings if not isinstance(happening, str)]
    pairs = [simplified_pair(event) for event in events]
    for (device, user), person in zip(pairs, placed, strict=True):
        claims = [other_user for other, other_user in pairs if device and other == device and other_user]
        expected = user or (claims[0] if claims else f"$device:{device}" if device else "")
        assert identities.current_id(person) == expected
    check_consistent(identities)
    check_adopted(identities, links, SimplifiedIdentities)
