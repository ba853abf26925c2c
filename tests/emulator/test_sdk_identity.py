"""What the three ID Merge systems do with the identity calls of Mixpanel's browser and mobile SDKs.

The SDKs send `$identify` with `distinct_id` and `$anon_distinct_id`, beside `$device_id` and `$user_id`.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from emulator_wire import Wire
from hypothesis import given, settings
from hypothesis import strategies as st
from sdk_requests import BROWSER_245, BROWSER_283, FORMS, REACT_NATIVE, TOKEN, VARIANTS, Record, Sdk

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.testing import assert_different_people, assert_profile, assert_same_person

A1 = "5b1d7c52-6a0e-4f5b-9c7d-10aa20bb30c1"
A2 = "5b1d7c52-6a0e-4f5b-9c7d-10aa20bb30c2"
FORM, SAME, TAKEN = "errAnonDistinctIdNonGUIDForm", None, "an earlier event linked the device to another user: user-2"

variants = pytest.mark.parametrize(
    ("sdk", "form"), VARIANTS, ids=[f"{sdk.name.rpartition('-')[2]} {form}" for sdk, form in VARIANTS]
)
sdks = pytest.mark.parametrize("sdk", [BROWSER_245, BROWSER_283, REACT_NATIVE], ids=lambda sdk: sdk.name)


def replay(system: IdMerge, sdk: Sdk, form: str) -> Wire:
    """Send all requests of an SDK to a new project, which has to accept each of them."""
    wire = Wire(Emulator(system, token=TOKEN))
    for path, records in (("/track", sdk.events()), ("/engage", [sdk.profile_update()])):
        for request in FORMS[form](path, records):
            response = wire.request(request.method, request.url, **request.options)
            assert (response.status_code, response.text.replace(" ", "")[:11]) in {(200, "1"), (200, '{"error":nu')}
    assert wire.emulator.rejected() == []
    return wire


def people(emulator: Emulator) -> set[frozenset[str]]:
    return {frozenset(cluster) for cluster in emulator.clusters()}


def pages(emulator: Emulator) -> list[str]:
    """Return the person of each page, in order."""
    events = sorted(emulator.events("Viewed"), key=lambda event: event["properties"]["page"])
    return [event["properties"]["distinct_id"] for event in events]


def calls(emulator: Emulator) -> list[tuple[str, str, str | None]]:
    log = [entry for entry in emulator.identity_log() if entry["event"][0] == "$"]
    return [(entry["event"], entry["outcome"], entry["$failure_reason"]) for entry in log]


@variants
def test_original_joins_each_visitor_to_the_user(sdk: Sdk, form: str) -> None:
    emulator = replay(IdMerge.ORIGINAL, sdk, form).emulator
    visitor = sdk.visitor
    assert people(emulator) == {
        frozenset({"user-1", visitor(1)}),
        frozenset({"user-2", visitor(2)}),
        frozenset({"user-3", "alias-1"}),
        frozenset({"user-4", visitor(3)}),
    }
    new = emulator.resolve("user-4")
    assert pages(emulator) == ["user-1", "user-1", "user-2", "user-2", "user-3", "user-3", new, new]
    after_alias = [("$identify", "failed", FORM)] if sdk.identifies_alias else []
    after_sign_up = [("$identify", "unchanged", None)] if sdk.identifies_alias else []
    assert calls(emulator) == [
        ("$identify", "merged", None),
        ("$identify", "merged", None),
        ("$identify", "failed", FORM),
        ("$create_alias", "merged", None),
        *after_alias,
        ("$create_alias", "merged", None),
        *after_sign_up,
    ]
    assert_profile(emulator, visitor(1), {"plan": "free"})


@variants
def test_legacy_joins_by_alias_only(sdk: Sdk, form: str) -> None:
    emulator = replay(IdMerge.LEGACY, sdk, form).emulator
    first, second, third = (sdk.visitor(number) for number in (1, 2, 3))
    assert people(emulator) == {
        *(frozenset({one}) for one in ("user-1", first, "user-2", second)),
        frozenset({"user-3", "alias-1"}),
        frozenset({"user-4", third}),
    }
    assert pages(emulator) == [first, "user-1", second, "user-2", "user-3", "user-3", third, third]
    assert {outcome for name, outcome, _ in calls(emulator) if name == "$identify"} == {"ignored"}
    assert [outcome for name, outcome, _ in calls(emulator) if name == "$create_alias"] == ["merged", "merged"]
    assert_profile(emulator, "user-1", {"plan": "free"})


@variants
def test_simplified_joins_by_device_and_user(sdk: Sdk, form: str) -> None:
    emulator = replay(IdMerge.SIMPLIFIED, sdk, form).emulator
    first, second, third = (f"$device:{device}" for device in sdk.devices)
    # `alias` joins nothing in this system. Only the SDKs that send `$identify` after it name the device and the user.
    new = "user-4" if sdk.identifies_alias else third
    joined = {
        frozenset({"user-1", first}),
        frozenset({"user-2", second}),
        frozenset({"user-3"}),
        frozenset({new, third}),
    }
    assert people(emulator) - {frozenset({"alias-1"})} == joined
    assert pages(emulator) == ["user-1", "user-1", "user-2", "user-2", "user-3", "user-3", new, new]
    log = emulator.identity_log()
    assert [entry["outcome"] for entry in log if entry["event"] == "$identify"][:3] == ["merged", "merged", "ignored"]
    # An event that joins is shown as any other.
    joining = [event["properties"] for event in emulator.events("$identify")][:2]
    assert all("$identity_failure_reason" not in properties for properties in joining)
    assert_profile(emulator, first, {"plan": "free"})
    assert_same_person(emulator, "user-1", sdk.devices[0])


@sdks
def test_reports_name_the_ids_of_an_sdk(sdk: Sdk) -> None:
    """`assert_*` and advice say what happened to the ids that the SDK sent."""
    original = replay(IdMerge.ORIGINAL, sdk, "batch, JSON")
    visitor = sdk.visitor(1)
    with pytest.raises(AssertionError) as caught:
        assert_different_people(original.emulator, "user-1", visitor)
    assert f"$identify of 'user-1' and '{visitor}' joined them" in str(caught.value)
    with pytest.raises(AssertionError) as caught:
        assert_same_person(original.emulator, "user-2", "user-3")
    assert "$identify of 'user-3' and 'user-2' was refused: the anonymous id is not five groups" in str(caught.value)
    advice = [entry["advice"] for entry in original.request("GET", "/_emulator/identity-log").json() if entry["advice"]]
    assert all("call reset()" in words for words in advice)

    simplified = replay(IdMerge.SIMPLIFIED, sdk, "batch, JSON")
    device = f"$device:{sdk.devices[0]}"
    with pytest.raises(AssertionError) as caught:
        assert_different_people(simplified.emulator, "user-1", device)
    assert f"$identify of 'user-1' and '{device}' joined them" in str(caught.value)
    log = simplified.request("GET", "/_emulator/identity-log").json()
    taken = [entry for entry in log if entry["event"] == "$identify" and entry["outcome"] == "ignored"]
    assert {entry["$failure_description"] for entry in taken} == {TAKEN}
    assert all(entry["advice"].startswith("A device keeps its first user.") for entry in taken)


def identify(**properties: Any) -> Record:
    return {"event": "$identify", "properties": {"token": TOKEN, "time": time.time(), **named(properties)}}


def named(properties: dict[str, Any]) -> dict[str, Any]:
    """Return properties with the dollar sign, which Python names cannot have."""
    return {name if name == "distinct_id" else f"${name}": value for name, value in properties.items()}


@pytest.mark.parametrize("path", ["/track", "/import", "/import?strict=1"])
@pytest.mark.parametrize(
    ("properties", "joined"),
    [
        ({"distinct_id": "u1", "anon_distinct_id": A1}, {"u1", A1}),
        ({"distinct_id": 17, "anon_distinct_id": A1}, {"17", A1}),
        ({"identified_id": "u1", "anon_id": A1, "distinct_id": "u1", "anon_distinct_id": A1}, {"u1", A1}),
        # The documented spelling wins if both are complete.
        ({"identified_id": "u1", "anon_id": A1, "distinct_id": "u2", "anon_distinct_id": A2}, {"u1", A1}),
        ({"identified_id": "u1", "anon_id": A1, "anon_distinct_id": None}, {"u1", A1}),
        ({"identified_id": "u1", "anon_id": "", "distinct_id": "u2", "anon_distinct_id": A2}, {"u2", A2}),
        ({"identified_id": None, "anon_id": A1, "distinct_id": "u2", "anon_distinct_id": A2}, {"u2", A2}),
        ({"identified_id": ["u1"], "anon_id": A1, "distinct_id": "u2", "anon_distinct_id": A2}, {"u2", A2}),
    ],
)
def test_either_spelling_joins(path: str, properties: dict[str, Any], joined: set[str]) -> None:
    wire = Wire(Emulator(IdMerge.ORIGINAL))
    assert wire.post(path, [identify(**properties)]).status_code == 200
    assert joined in wire.emulator.clusters()
    assert [entry["outcome"] for entry in wire.emulator.identity_log()] == ["merged"]
    assert wire.emulator.rejected() == []


@pytest.mark.parametrize(
    ("properties", "name", "problem"),
    [
        ({}, "$identified_id", "must not be missing"),
        ({"distinct_id": "u1"}, "$identified_id", "must not be missing"),
        ({"identified_id": "u1"}, "$anon_id", "must not be missing"),
        ({"identified_id": "u1", "anon_id": ""}, "$anon_id", "must not be empty"),
        ({"identified_id": True, "anon_id": A1}, "$identified_id", "must be a string"),
        ({"identified_id": "u1", "anon_id": {"id": A1}}, "$anon_id", "must be a string"),
        ({"identified_id": "u1", "anon_distinct_id": A1}, "$anon_id", "must not be missing"),
        ({"anon_distinct_id": A1}, "distinct_id", "must not be missing"),
        ({"distinct_id": "", "anon_distinct_id": A1}, "distinct_id", "must not be empty"),
        ({"distinct_id": "u1", "anon_distinct_id": None}, "$anon_distinct_id", "must not be missing"),
        ({"distinct_id": "u1", "anon_distinct_id": ""}, "$anon_distinct_id", "must not be empty"),
        ({"distinct_id": "u1", "anon_distinct_id": [A1]}, "$anon_distinct_id", "must be a string"),
    ],
)
def test_rejection_names_the_property_of_its_spelling(properties: dict[str, Any], name: str, problem: str) -> None:
    wire = Wire(Emulator(IdMerge.ORIGINAL))
    words = f"'properties.{name}' is invalid: {problem}"
    # `ip=1` derives the `distinct_id` of an event from the address, but not an id to be joined.
    assert wire.post("/track?verbose=1&ip=1", [identify(**properties)]).json() == {"error": words, "status": 0}
    failed = wire.post("/import?strict=1", [identify(**properties)]).json()["failed_records"]
    assert [(one["field"], one["message"]) for one in failed] == [(f"properties.{name}", words)]
    assert [entry["message"] for entry in wire.emulator.rejected()] == [words, words]
    assert wire.emulator.clusters() == []


@pytest.mark.parametrize("system", [IdMerge.LEGACY, IdMerge.SIMPLIFIED])
def test_identify_without_ids_is_an_ordinary_event_where_it_joins_nothing(system: IdMerge) -> None:
    wire = Wire(Emulator(system))
    assert wire.post("/track?verbose=1", [identify(distinct_id="u1")]).json()["status"] == 1
    assert wire.counted("$identify") == ["u1"]
    assert wire.emulator.identity_log() == wire.emulator.rejected() == []


def test_strict_import_of_a_simplified_project_refuses_identify() -> None:
    wire = Wire(Emulator(IdMerge.SIMPLIFIED))
    event = identify(distinct_id="u1", anon_distinct_id=A1, device_id=A1, user_id="u1")
    refused = wire.post("/import?strict=1", [event])
    assert refused.status_code == 400
    assert "identity events are not allowed" in refused.json()["failed_records"][0]
    assert wire.emulator.clusters() == []
    assert wire.post("/import", [event]).status_code == 200
    assert wire.emulator.clusters() == [{"u1", f"$device:{A1}"}]


def test_alias_of_an_older_browser_sdk_counts_for_its_device() -> None:
    """Its `distinct_id` has no prefix, and would be a user of this name."""
    wire = Wire(Emulator(IdMerge.SIMPLIFIED, token=TOKEN))
    wire.post("/track", [BROWSER_245.anonymous(1, "$create_alias", alias="user-1")])
    assert wire.counted("$create_alias") == [f"$device:{BROWSER_245.devices[0]}"]


def test_long_anonymous_id_is_not_truncated() -> None:
    wire = Wire(Emulator(IdMerge.ORIGINAL))
    anonymous = f"{A1}{'0' * 300}"
    wire.post("/track", [identify(distinct_id="u1", anon_distinct_id=anonymous)])
    assert wire.emulator.cluster("u1") == {"u1", anonymous}


LOGINS = st.lists(
    st.tuples(st.sampled_from(["d1", "d2", "$device:d3", "", None]), st.sampled_from(["u1", "u2", "", None])),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(LOGINS)
def test_identify_of_sdks_joins_like_any_event_in_simplified(logins: list[tuple[str | None, str | None]]) -> None:
    """The model is the same sequence of ordinary events."""
    found = []
    for name in ("$identify", "Viewed"):
        wire = Wire(Emulator(IdMerge.SIMPLIFIED))
        batch = [
            {
                "event": name,
                "properties": {"token": TOKEN, "distinct_id": "someone", "$device_id": device, "$user_id": user},
            }
            for device, user in logins
        ]
        wire.post("/track", batch)
        found.append((people(wire.emulator), wire.counted(name), len(wire.emulator.identity_log())))
    assert found[0] == found[1]
