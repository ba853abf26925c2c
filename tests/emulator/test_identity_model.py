"""The identity graph against a model that keeps no graph: it works everything out from the list of what happened."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async.emulator.identity import (
    CREATE_ALIAS,
    IDENTIFY,
    MERGE,
    Identities,
    LegacyIdentities,
    OriginalIdentities,
    SimplifiedIdentities,
)

LIMIT = 4
UUIDS = [str(uuid.UUID(int=number, version=4)) for number in range(4)]
NAMES = [*UUIDS, "u1", "u2", "u3", "u4"]


@dataclass(frozen=True)
class Step:
    verb: str
    first: str
    second: str


STEPS = st.lists(
    st.builds(Step, st.sampled_from([IDENTIFY, CREATE_ALIAS, MERGE]), st.sampled_from(NAMES), st.sampled_from(NAMES)),
    max_size=12,
)


def reachable(edges: list[tuple[str, str]], start: str) -> set[str]:
    """Everybody joined to an id, directly or not, by walking the edges until nothing is added."""
    found = {start}
    while True:
        more = {b for a, b in edges if a in found} | {a for a, b in edges if b in found}
        if more <= found:
            return found
        found |= more


def original_reason(accepted: list[Step], step: Step) -> str | None:
    """Why Mixpanel's decision diagrams refuse a verb, given those accepted before; None if they do not."""
    edges = [(past.first, past.second) for past in accepted]
    theirs = reachable(edges, step.second)
    if step.verb == IDENTIFY:
        if step.first == step.second:
            return "errSameIDs"
        if step.second not in UUIDS:
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


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_original(steps: list[Step]) -> None:
    identities = OriginalIdentities(LIMIT, lambda first, second: first)
    accepted: list[Step] = []
    for step in steps:
        expected = original_reason(accepted, step)
        assert identities.apply(step.verb, step.first, step.second).reason == expected
        if expected is None:
            accepted.append(step)
        edges = [(past.first, past.second) for past in accepted]
        for name in NAMES:
            assert identities.cluster(name) == reachable(edges, name)
    check_consistent(identities)


def legacy_root(pointers: list[Step], name: str) -> str:
    for pointer in pointers:
        if pointer.second == name:
            return legacy_root(pointers, pointer.first)
    return name


@settings(max_examples=300, deadline=None)
@given(STEPS, st.lists(st.integers(0, 12), max_size=6))
def test_legacy(steps: list[Step], tracked_before: list[int]) -> None:
    identities = LegacyIdentities()
    pointers: list[Step] = []
    placed: list[tuple[str, str]] = []
    for number, step in enumerate(steps):
        if number in tracked_before:
            person, _ = identities.place({"distinct_id": step.second})
            assert person == legacy_root(pointers, step.second)
            placed.append((person, person))
        verdict = identities.apply(step.verb, step.first, step.second)
        if step.verb != CREATE_ALIAS:
            assert verdict.outcome == "ignored"
        elif any(pointer.second == step.second for pointer in pointers):
            assert verdict.reason == "errAliasAlreadyExists"
        elif legacy_root(pointers, step.first) == step.second:
            assert verdict.reason == "errSameIDs"
        else:
            assert verdict.outcome == "merged"
            pointers.append(step)
        assert {name: identities.resolve(name) for name in NAMES} == {
            name: legacy_root(pointers, name) for name in NAMES
        }
        # Nothing stored ever moves.
        assert all(identities.counts_as(person) == then for person, then in placed)
    for name in NAMES:
        root = legacy_root(pointers, name)
        assert identities.cluster(name) == {other for other in NAMES if legacy_root(pointers, other) == root}


EVENTS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "$device_id": st.sampled_from(["d1", "d2", "$device:d1", ""]),
            "$user_id": st.sampled_from(["u1", "u2", "null", "$device:d2"]),
            "distinct_id": st.sampled_from(["u1", "$device:d1", ""]),
        },
    ),
    max_size=10,
)


def simplified_pair(event: dict[str, Any]) -> tuple[str, str]:
    """Device and user that an event names by the documents' rules; empty if none."""
    device, user = event.get("$device_id", ""), event.get("$user_id", "")
    if user == "null":
        user = ""
    if user.startswith("$device:"):
        device, user = device or user, ""
    if not device and not user:
        sent = event.get("distinct_id", "")
        device, user = (sent, "") if sent.startswith("$device:") else ("", sent)
    return device.replace("$device:", ""), user


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_simplified(events: list[dict[str, Any]]) -> None:
    identities = SimplifiedIdentities()
    placed: list[str] = []
    for event in events:
        person, device = identities.place(dict(event))
        if device is not None:
            identities.claim(device, person)
        placed.append(person)
    pairs = [simplified_pair(event) for event in events]
    for (device, user), person in zip(pairs, placed, strict=True):
        claims = [other_user for other, other_user in pairs if device and other == device and other_user]
        expected = user or (claims[0] if claims else f"$device:{device}" if device else "")
        assert identities.counts_as(person) == expected
    check_consistent(identities)
