"""Tests of the assertions in `mixpanel_async.testing` and of their failure messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from emulator_wire import Wire

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import (
    assert_different_people,
    assert_group,
    assert_not_tracked,
    assert_profile,
    assert_same_person,
    assert_tracked,
)

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
A2 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0002"


@pytest.fixture
def emulator() -> Emulator:
    return Emulator(IdMerge.ORIGINAL)


@pytest.fixture
def wire(emulator: Emulator) -> Wire:
    return Wire(emulator)


def failure(check: Callable[..., Any], *args: Any, **options: Any) -> list[str]:
    """Return the lines of the failure message of an assertion."""
    with pytest.raises(AssertionError) as caught:
        check(*args, **options)
    return str(caught.value).splitlines()


def test_assert_tracked_returns_event(emulator: Emulator, wire: Wire) -> None:
    wire.track("user-1", "Signed up", plan="free", price=0.1 + 0.2)
    wire.track("user-2", "Signed up")
    event = assert_tracked(
        emulator,
        "Signed up",
        distinct_id="user-1",
        properties={"plan": ANY, "price": pytest.approx(0.3)},
    )
    assert event["properties"]["plan"] == "free"
    assert assert_tracked(emulator, "Signed up", times=2) == event
    assert assert_tracked(emulator, "Signed up", times=None) == event
    assert_not_tracked(emulator, "Signed up", distinct_id="user-3")
    assert_not_tracked(emulator, "Signed up", properties={"plan": "pro"})
    with pytest.raises(ValueError, match="assert_not_tracked"):
        assert_tracked(emulator, "Signed up", times=0)


def test_assert_tracked_accepts_any_id_of_person(emulator: Emulator, wire: Wire) -> None:
    wire.track(A1, "Viewed")
    wire.identify("user-1", A1)
    for distinct_id in (A1, "user-1"):
        assert_tracked(emulator, "Viewed", distinct_id=distinct_id)


def test_failure_lists_closest_events_first(emulator: Emulator, wire: Wire) -> None:
    wire.track("user-1", "Viewed")
    wire.track(A1, "Signed up", plan="free")
    wire.track("user-1", "Signed up", plan="pro")
    wire.identify("user-2", A1)
    wire.identify("user-1", A1)
    wire.track("user-3", "Viewed")
    expected = {"plan": "free", "source": "ad"}
    assert failure(assert_tracked, emulator, "Signed up", distinct_id="user-1", properties=expected) == [
        "expected one 'Signed up' for 'user-1' with {'plan': 'free', 'source': 'ad'}; got:",
        "  - 'Signed up' for 'user-1', but plan is 'pro' instead of 'free', source is missing instead of 'ad'",
        f"  - 'Signed up' for 'user-2' (sent as '{A1}')",
        "  - 'Viewed' for 'user-1'",
        (
            f"  - $identify of 'user-1' and '{A1}' was refused: the anonymous id is already merged with an identified "
            "user (errAnonDistinctIdAssignedAlready)"
        ),
    ]


def test_failure_states_number_of_events(emulator: Emulator, wire: Wire) -> None:
    for _ in range(12):
        wire.track("user-1", "Viewed")
    lines = failure(assert_tracked, emulator, "Viewed", distinct_id="user-1")
    assert lines[0] == "expected one 'Viewed' for 'user-1'; got 12:"
    assert lines[1:] == ["  - 'Viewed' for 'user-1'"] * 10 + ["  ... and 2 more"]
    assert failure(assert_tracked, emulator, "Viewed", times=3)[0] == "expected 3 times 'Viewed'; got 12:"
    assert failure(assert_not_tracked, emulator, "Viewed")[:2] == [
        "expected no 'Viewed'; got 12:",
        "  - 'Viewed' for 'user-1'",
    ]


def test_failure_without_similar_event_describes_arrivals(emulator: Emulator, wire: Wire) -> None:
    wanted = "expected at least one 'Signed up' for 'user-1'"
    ask = {"distinct_id": "user-1", "times": None}
    assert failure(assert_tracked, emulator, "Signed up", **ask) == [
        f"{wanted}; got none, and no request arrived; was the client flushed?"
    ]
    wire.track("user-2", "Viewed")
    assert failure(assert_tracked, emulator, "Signed up", **ask) == [
        f"{wanted}; got none; 1 request arrived with 'Viewed'; was the client flushed?"
    ]
    emulator.reset()
    wire.post("/import", [], auth=None)
    assert failure(assert_tracked, emulator, "Signed up", **ask) == [
        f"{wanted}; got none; 1 request arrived with no event; failed: /import with 401"
    ]


def test_failure_lists_calls_that_joined_ids(emulator: Emulator, wire: Wire) -> None:
    wire.identify("user-1", A1)
    wire.merge("user-1", "user-2")
    assert assert_same_person(emulator, A1, "user-2") == emulator.resolve("user-1")
    assert_different_people(emulator, "user-1", A2)
    lines = failure(assert_different_people, emulator, A1, "user-2")
    assert lines == [
        f"expected '{A1}' and 'user-2' to be different people; they are one: '{A1}', 'user-1', 'user-2'",
        f"  - $identify of 'user-1' and '{A1}' joined them",
        "  - $merge of 'user-1' and 'user-2' joined them",
    ]


def test_failure_explains_why_ids_are_two_people(emulator: Emulator, wire: Wire) -> None:
    wire.identify("user-9", A2)
    wire.identify("user-1", "visitor")
    assert failure(assert_same_person, emulator, "user-1", "visitor") == [
        "expected 'user-1' and 'visitor' to be one person; they are two: 'user-1' and 'visitor'",
        (
            "  - $identify of 'user-1' and 'visitor' was refused: the anonymous id is not five groups of hexadecimal "
            "digits joined by dashes (errAnonDistinctIdNonGUIDForm)"
        ),
    ]


@pytest.mark.parametrize(
    ("id_merge", "words"),
    [
        (IdMerge.ORIGINAL, "no $identify, $create_alias or $merge named either of them, and no request arrived"),
        (IdMerge.LEGACY, "no $create_alias named either of them"),
        (IdMerge.SIMPLIFIED, "no event carried both ids, one as $user_id and the other as $device_id"),
    ],
)
def test_failure_names_missing_identity_call(id_merge: IdMerge, words: str) -> None:
    assert words in failure(assert_same_person, Emulator(id_merge), "a", "b")[1]


def test_failure_explains_identity_calls_in_simplified_project() -> None:
    emulator = Emulator()
    wire = Wire(emulator)
    wire.alias("user-1", A1)
    assert failure(assert_same_person, emulator, "user-1", A1)[1:] == [
        (
            f"  - $create_alias of 'user-1' and '{A1}' had no effect: $create_alias has no effect in a project with "
            "Simplified ID Merge"
        )
    ]
    for user in ("user-1", "user-2"):
        wire.track(None, "Logged in", **{"$device_id": "d", "$user_id": user})
    assert_same_person(emulator, "user-1", "$device:d")
    lines = failure(assert_same_person, emulator, "user-2", "$device:d")
    assert lines[0].endswith("they are two: 'user-2' and '$device:d', 'user-1'")
    assert lines[-1] == (
        "  - 'Logged in' of 'user-2' and '$device:d' had no effect: "
        "an earlier event linked the device to another user: user-1"
    )


def test_assert_profile_lists_differences(emulator: Emulator, wire: Wire) -> None:
    assert failure(assert_profile, emulator, "user-1", {}) == [
        "expected a profile for 'user-1'; got profiles for no person"
    ]
    wire.engage("user-1", set={"$name": "Maya", "about": "x" * 200}, ignore_time=True)
    wire.identify("user-1", A1)
    assert assert_profile(emulator, A1, {"$name": "Maya"})["about"] == "x" * 200
    first, second = failure(assert_profile, emulator, "user-1", {"$name": "Mia", "about": ANY})
    assert first.startswith("expected profile of 'user-1' with {'$name': 'Mia', ")
    assert "x" * 200 not in first
    assert second == "  - $name is 'Maya' instead of 'Mia'"


def test_assert_group_lists_differences(emulator: Emulator, wire: Wire) -> None:
    assert failure(assert_group, emulator, "company", "acme", {})[0].startswith(
        "expected a profile for company 'acme'; got none"
    )
    wire.groups("company", "acme", set={"size": 3})
    assert assert_group(emulator, "company", "acme", {"size": 3}) == {"size": 3}
    assert failure(assert_group, emulator, "company", "acme", {"seats": 3})[1:] == ["  - seats is missing instead of 3"]


@pytest.mark.anyio
async def test_assertions_of_a_simplified_project_accept_the_bare_id_of_a_device() -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    async with emulator.client(id_merge="simplified") as mp:
        visitor = mp.bind(device_id=A1)
        await visitor.track("Viewed page")
        assert_not_tracked(emulator, "Signed in", distinct_id=A1)
        await visitor.sign_in("user-1")
        await mp.bind(device_id=A2).track("Viewed page")
        await visitor.people_set({"plan": "pro"})
        await mp.flush()
    for device in (A1, f"$device:{A1}"):
        assert assert_same_person(emulator, "user-1", device) == emulator.resolve("user-1")
        assert_tracked(emulator, "Signed in", distinct_id=device)
        assert_profile(emulator, device, {"plan": "pro"})
        assert_different_people(emulator, device, A2)
        failure(assert_different_people, emulator, device, "user-1")
        failure(assert_same_person, emulator, device, A2)


def test_bare_id_that_is_also_a_person_is_not_taken_for_the_device() -> None:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    wire = Wire(emulator)
    wire.track("d", "Viewed page")
    wire.track(None, "Signed in", **{"$device_id": "d", "$user_id": "user-1"})
    lines = failure(assert_same_person, emulator, "user-1", "d")
    assert lines[0] == "expected 'user-1' and 'd' to be one person; they are two: '$device:d', 'user-1' and 'd'"
    assert lines[-1] == "  in a Simplified project the device 'd' has the id '$device:d'"
    assert_different_people(emulator, "user-1", "d")
    assert_same_person(emulator, "user-1", "$device:d")
