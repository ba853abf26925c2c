"""Tests of profile and group updates, for each operation."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from emulator_wire import TOKEN, Wire

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

A1 = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL))


def profile(mixpanel: Wire, distinct_id: str = "u") -> dict[str, Any] | None:
    """Return the profile without `$last_seen`."""
    properties = mixpanel.emulator.profile(distinct_id)
    if properties is not None:
        properties.pop("$last_seen", None)
    return properties


@pytest.mark.parametrize(
    ("before", "operation", "value", "after"),
    [
        ({"a": 1}, "set", {"a": 2, "b": None}, {"a": 2, "b": None}),
        ({"a": None}, "set_once", {"a": 2, "b": 3}, {"a": None, "b": 3}),
        ({"a": 1, "t": "x"}, "add", {"a": -3, "n": 0.5, "t": 1}, {"a": -2, "n": 0.5, "t": "x"}),
        ({"f": True}, "add", {"f": 1}, {"f": True}),
        ({"a": 2**62}, "add", {"a": 2**62}, {"a": float(2**63)}),
        ({"l": [1], "t": "x"}, "append", {"l": [1], "n": 1, "t": 1}, {"l": [1, [1]], "n": [1], "t": "x"}),
        ({"l": [1]}, "append", {"l": 1}, {"l": [1, 1]}),
        ({"l": [1, "a"]}, "union", {"l": ["a", True, 2, 2, None, {}]}, {"l": [1, "a", True, 2]}),
        ({"t": "x"}, "union", {"n": "one", "t": ["y"]}, {"n": ["one"], "t": "x"}),
        ({"l": [1, "a", 1, True]}, "remove", {"l": 1, "n": 1}, {"l": ["a", True]}),
        ({"l": [1, {"k": 1}, 2, 3]}, "remove", {"l": [{"k": 1}, 3]}, {"l": [1, 2]}),
        ({"t": "x"}, "remove", {"t": "x"}, {"t": "x"}),
        ({"a": 1, "b": 2}, "unset", ["a", "n"], {"b": 2}),
        ({"a": 1}, "delete", "", None),
        (None, "set", {}, {}),
        (None, "set_once", {"a": 1}, {"a": 1}),
        (None, "add", {"a": 1}, {"a": 1}),
        (None, "append", {"a": 1}, {"a": [1]}),
        (None, "union", {"a": [1]}, {"a": [1]}),
        (None, "remove", {"a": 1}, None),
        (None, "unset", ["a"], None),
        (None, "delete", "", None),
    ],
    ids=str,
)  # fmt: skip
def test_operation_changes_profile(mixpanel: Wire, before: Any, operation: str, value: Any, after: Any) -> None:
    if before is not None:
        mixpanel.engage("u", set=before)
    assert mixpanel.engage("u", **{operation: value}) == "1"
    # Compared as JSON, where `true` differs from `1`.
    assert json.dumps(profile(mixpanel), sort_keys=True) == json.dumps(after, sort_keys=True)


@pytest.mark.parametrize(
    "record",
    [
        {"set": 1},
        {"set_once": []},
        {"add": {"a": "1"}},
        {"add": {"a": True}},
        {"add": {"big": 1e308}},
        {"append": "a"},
        {"union": ["a"]},
        {"remove": None},
        {"unset": "a"},
        {"unset": [1]},
        {},
        {"unknown": {"a": 1}},
        {"set": {"a": 2}, "unset": "a"},
        {"set": {f"p{number}": 1 for number in range(2000)}},
        {"set": {"x": "y" * 1_048_576}},
    ],
    ids=lambda value: str(value)[:40],
)
def test_refused_record_changes_nothing(mixpanel: Wire, record: dict[str, Any]) -> None:
    mixpanel.engage("u", set={"a": 1, "big": 1e308})
    assert mixpanel.engage("u", **record) == "0"
    assert profile(mixpanel) == {"a": 1, "big": 1e308}


class TestGeolocation:
    """Tests of geolocation by `$ip` and `ip`."""

    @pytest.fixture
    def mixpanel(self) -> Wire:
        cities = {"127.0.0.1": "Data centre", "203.0.113.9": "Rome"}
        return Wire(Emulator(IdMerge.ORIGINAL, geolocate=lambda ip: {"$city": cities.get(ip, f"not known: {ip}")}))

    def city(self, mixpanel: Wire, **record: Any) -> Any:
        mixpanel.engage("u", **record)
        return (profile(mixpanel) or {}).get("$city")

    def test_sender_address_is_used_without_ip(self, mixpanel: Wire) -> None:
        assert self.city(mixpanel, set={"a": 1}) == "Data centre"

    @pytest.mark.parametrize(
        ("forwarded", "city"),
        [
            ("203.0.113.9", "Rome"),
            ("203.0.113.9, 192.0.2.1", "Rome"),
            ("unknown", "Data centre"),
            ("", "Data centre"),
        ],
    )
    def test_address_from_a_proxy_is_that_of_its_client(self, mixpanel: Wire, forwarded: str, city: str) -> None:
        record = {"$token": TOKEN, "$distinct_id": "u", "$set": {"a": 1}}
        mixpanel.post("/engage?ip=1", [record], headers={"X-Forwarded-For": forwarded})
        assert profile(mixpanel) == {"a": 1, "$city": city}

    def test_ip_of_record_wins(self, mixpanel: Wire) -> None:
        assert self.city(mixpanel, set={"a": 1}, ip="203.0.113.9") == "Rome"
        assert profile(mixpanel) == {"a": 1, "$city": "Rome"}

    @pytest.mark.parametrize("zero", [0, "0", ""])
    def test_zero_ip_disables_geolocation(self, mixpanel: Wire, zero: Any) -> None:
        assert self.city(mixpanel, set={"a": 1}, ip=zero) is None

    def test_ip_parameter_zero_disables_sender_address(self, mixpanel: Wire) -> None:
        record = {"$token": TOKEN, "$distinct_id": "u", "$set": {"a": 1}}
        mixpanel.post("/engage?ip=0", [record])
        assert profile(mixpanel) == {"a": 1}
        mixpanel.post("/engage", data={"data": json.dumps(record), "ip": "0"})
        assert profile(mixpanel) == {"a": 1}
        mixpanel.post("/engage?ip=0", [{**record, "$ip": "203.0.113.9"}])
        assert profile(mixpanel) == {"a": 1, "$city": "Rome"}
        mixpanel.post("/engage?ip=1", [record])
        assert profile(mixpanel) == {"a": 1, "$city": "Data centre"}

    def test_only_set_operations_write_location(self, mixpanel: Wire) -> None:
        assert self.city(mixpanel, add={"n": 1}) is None
        assert self.city(mixpanel, set_once={"a": 1}, ip="203.0.113.9") == "Rome"
        assert self.city(mixpanel, union={"l": [1]}) == "Rome"
        assert self.city(mixpanel, set_once={"a": 2}) == "Data centre"

    def test_properties_of_update_win(self, mixpanel: Wire) -> None:
        assert self.city(mixpanel, set={"$city": "Oslo"}) == "Oslo"

    def test_coordinates_replace_ip(self, mixpanel: Wire) -> None:
        mixpanel.engage("u", set={"a": 1}, latitude=59.9, longitude=10.7)
        assert profile(mixpanel) == {"a": 1, "$geo_source": "reverse_geocoding"}

    def test_groups_are_not_geolocated(self, mixpanel: Wire) -> None:
        mixpanel.groups("company", "acme", set={"a": 1}, ip="203.0.113.9")
        assert mixpanel.emulator.group("company", "acme") == {"a": 1}

    def test_geolocation_is_off_by_default(self) -> None:
        mixpanel = Wire(Emulator())
        mixpanel.engage("u", set={"a": 1}, ip="203.0.113.9")
        assert profile(mixpanel) == {"a": 1}


def test_envelope_is_not_stored_in_profile(mixpanel: Wire) -> None:
    envelope = {"ip": "0", "time": 1_700_000_000, "ignore_time": True, "ignore_alias": False, "unknown": 1}
    assert mixpanel.engage("u", set={"a": 1}, **envelope) == "1"
    assert mixpanel.emulator.profile("u") == {"a": 1}


def test_names_and_text_are_truncated(mixpanel: Wire) -> None:
    long, cut = "x" * 300, "x" * 255
    mixpanel.engage("u", set={long: long, "l": [long], "o": {long: long}}, append={"a": long}, union={"n": [long]})
    assert profile(mixpanel) == {cut: cut, "l": [cut], "o": {cut: cut}, "a": [cut], "n": [cut]}
    mixpanel.engage("u", remove={"l": long}, unset=[long, "o", "a", "n"])
    assert profile(mixpanel) == {"l": []}


def test_several_operations_of_record_apply_in_order(mixpanel: Wire) -> None:
    mixpanel.engage("u", unset=["b"], set={"a": 1, "b": 1}, add={"a": 2}, append={"l": 1}, union={"l": [1, 2]})
    assert profile(mixpanel) == {"a": 3, "l": [1, 2]}
    mixpanel.engage("u", set={"a": 1}, delete="")
    assert profile(mixpanel) is None


@pytest.mark.parametrize("value", ["", "null", None, {}, 0], ids=str)
def test_delete_accepts_any_value(mixpanel: Wire, value: Any) -> None:
    mixpanel.track("u")
    mixpanel.engage("u", set={"a": 1})
    assert mixpanel.engage("u", delete=value) == "1"
    assert mixpanel.emulator.profiles() == {}
    # The events remain, and the next update creates a new profile.
    assert mixpanel.counted() == ["u"]
    mixpanel.engage("u", set={"b": 1})
    assert profile(mixpanel) == {"b": 1}


@pytest.mark.parametrize("by", ["u", A1, "nick"])
def test_delete_works_by_any_id_of_person(mixpanel: Wire, by: str) -> None:
    mixpanel.identify("u", A1)
    mixpanel.alias("u", "nick")
    mixpanel.engage("u", set={"a": 1})
    mixpanel.engage(by, delete="")
    assert mixpanel.emulator.profiles() == {}
    assert mixpanel.emulator.cluster("u") == {"u", A1, "nick"}


@pytest.mark.parametrize("flag", [True, "true"])
def test_ignore_alias_addresses_exact_id(mixpanel: Wire, flag: Any) -> None:
    mixpanel.alias("u", "nick")
    mixpanel.engage("u", set={"a": 1})
    mixpanel.engage("nick", delete="", ignore_alias=flag)
    assert profile(mixpanel) == {"a": 1}
    mixpanel.engage("u", delete="", ignore_alias=flag)
    assert profile(mixpanel) is None


@pytest.mark.parametrize("flag", [False, "false", None, 1])
def test_ignore_alias_false_has_no_effect(mixpanel: Wire, flag: Any) -> None:
    mixpanel.alias("u", "nick")
    mixpanel.engage("nick", set={"a": 1}, ignore_alias=flag)
    assert set(mixpanel.emulator.profiles()) == {"u"}


@pytest.mark.parametrize(
    "clear", [{"unset": ["$transactions"]}, {"set": {"$transactions": []}}], ids=["python", "node"]
)
def test_charges_of_either_sdk_can_be_cleared(mixpanel: Wire, clear: dict[str, Any]) -> None:
    for amount in (9.99, -5):
        charge = {"$amount": amount, "$time": "2026-08-21T10:00:00"}
        assert mixpanel.engage("u", append={"$transactions": charge}) == "1"
    assert [each["$amount"] for each in (profile(mixpanel) or {})["$transactions"]] == [9.99, -5]
    mixpanel.engage("u", **clear)
    assert not (profile(mixpanel) or {}).get("$transactions")


def test_numeric_id_is_accepted(mixpanel: Wire) -> None:
    mixpanel.post("/engage", [{"$token": TOKEN, "$distinct_id": 7, "$set": {"a": 1}}])
    assert profile(mixpanel, "7") == {"a": 1}


def test_invalid_record_does_not_affect_others(mixpanel: Wire) -> None:
    envelope = {"$token": TOKEN}
    batch = [
        {**envelope, "$distinct_id": "u", "$set": {"a": 1}},
        {**envelope, "$distinct_id": "u", "$add": {"a": "x"}},
        {**envelope, "$distinct_id": "v", "$union": {"l": ["x"]}},
        {**envelope, "$distinct_id": "u", "$add": {"a": 1}},
    ]
    answer = mixpanel.post("/engage?strict=1", batch).json()
    assert (answer["num_good_events"], [each["index"] for each in answer["failed_records"]]) == (3, [1])
    assert (profile(mixpanel), profile(mixpanel, "v")) == ({"a": 2}, {"l": ["x"]})


def test_profile_is_limited_to_2000_properties(mixpanel: Wire) -> None:
    assert mixpanel.engage("u", set={f"p{number}": 1 for number in range(2_000)}) == "1"
    assert mixpanel.engage("u", set={"p0": 2}) == "1"
    assert mixpanel.engage("u", set={"more": 1}, ignore_time=True) == "0"
    assert mixpanel.engage("u", unset=["p1"]) == "1"


@pytest.mark.parametrize("missing", ["$token", "$distinct_id"])
def test_incomplete_envelope_is_refused(mixpanel: Wire, missing: str) -> None:
    record = {"$token": TOKEN, "$distinct_id": "u", "$set": {"a": 1}}
    del record[missing]
    assert mixpanel.post("/engage", [record]).text == "0"
    assert mixpanel.emulator.profiles() == {}


def test_records_of_other_project_are_silently_ignored() -> None:
    mixpanel = Wire(Emulator(token="mine"))
    assert mixpanel.engage("u", set={"a": 1}) == "1"
    assert mixpanel.groups("k", "g", set={"a": 1}) == "1"
    assert mixpanel.emulator.profile("u") is None
    assert mixpanel.emulator.group("k", "g") is None


def test_updates_of_a_batch_apply_in_order(mixpanel: Wire) -> None:
    base = {"$token": TOKEN, "$distinct_id": "u"}
    batch = [{**base, "$set": {"a": 1}}, {**base, "$unset": ["a"]}, {**base, "$set_once": {"a": 2}}]
    assert mixpanel.post("/engage", batch).text == "1"
    assert profile(mixpanel) == {"a": 2}


def test_last_seen_uses_time_or_clock(mixpanel: Wire) -> None:
    def last_seen() -> Any:
        return (mixpanel.emulator.profile("u") or {}).get("$last_seen")

    mixpanel.engage("u", add={"n": 1})
    assert last_seen() is None
    mixpanel.engage("u", set={"a": 1}, time=1_700_000_000)
    assert last_seen() == "2023-11-14T22:13:20"
    mixpanel.engage("u", set={"a": 2}, time=1_800_000_000_000, ignore_time=True)
    assert last_seen() == "2023-11-14T22:13:20"
    mixpanel.engage("u", set_once={"a": 3}, time=1_800_000_000_000)
    assert last_seen() == "2027-01-15T08:00:00"
    mixpanel.engage("u", set={"a": 4}, time=1e300)
    assert last_seen()[:4] == time.strftime("%Y", time.gmtime())


def test_any_id_of_person_reaches_profile(mixpanel: Wire) -> None:
    mixpanel.identify("u", A1)
    mixpanel.engage(A1, set={"a": 1})
    mixpanel.engage("u", add={"n": 1})
    assert profile(mixpanel, A1) == profile(mixpanel, "u") == {"a": 1, "n": 1}
    assert set(mixpanel.emulator.profiles()) == {"u"}


def test_merge_combines_profiles_and_prefers_canonical_id(mixpanel: Wire) -> None:
    mixpanel.engage(A1, set={"plan": "free", "seen": 1})
    mixpanel.engage("u", set={"plan": "pro"})
    mixpanel.identify("u", A1)
    assert profile(mixpanel) == {"plan": "pro", "seen": 1}


def test_profile_follows_chosen_canonical_id() -> None:
    mixpanel = Wire(Emulator(IdMerge.ORIGINAL, choose_canonical=lambda first, second: second))
    mixpanel.engage(A1, set={"plan": "free"})
    mixpanel.engage("u", set={"plan": "pro", "name": "U"})
    mixpanel.identify("u", A1)
    assert set(mixpanel.emulator.profiles()) == {A1}
    assert profile(mixpanel) == {"plan": "free", "name": "U"}


def test_merge_moves_single_profile(mixpanel: Wire) -> None:
    mixpanel.engage(A1, set={"seen": 1})
    mixpanel.identify("u", A1)
    assert profile(mixpanel) == {"seen": 1}


def test_refused_merge_does_not_change_profiles(mixpanel: Wire) -> None:
    mixpanel.engage("anon", set={"seen": 1})
    mixpanel.identify("u", "anon")
    assert profile(mixpanel) is None
    assert profile(mixpanel, "anon") == {"seen": 1}


def test_legacy_keeps_aliased_profile_for_ignore_alias() -> None:
    mixpanel = Wire(Emulator(IdMerge.LEGACY))
    mixpanel.engage("new", set={"kind": "duplicate"})
    mixpanel.engage("old", set={"kind": "original"})
    mixpanel.alias("old", "new")
    mixpanel.engage("new", set={"more": 1})
    assert profile(mixpanel, "new") == {"kind": "original", "more": 1}
    mixpanel.engage("new", delete="", ignore_alias="true")
    assert set(mixpanel.emulator.profiles()) == {"old"}


def test_returned_data_is_a_copy(mixpanel: Wire) -> None:
    mixpanel.engage("u", set={"l": [1]})
    (profile(mixpanel) or {})["l"].append(2)
    mixpanel.emulator.profiles()["u"].clear()
    assert profile(mixpanel) == {"l": [1]}


def test_group_operations_change_group_profile(mixpanel: Wire) -> None:
    mixpanel.groups("company", "acme", set={"size": 10, "tags": ["a"]})
    mixpanel.groups("company", "acme", set_once={"size": 11, "city": "Rome"})
    mixpanel.groups("company", "acme", union={"tags": ["a", "b"]})
    mixpanel.groups("company", "acme", remove={"tags": "a"})
    mixpanel.groups("company", "acme", unset=["city"])
    number = {"$token": TOKEN, "$group_key": "company", "$group_id": 7, "$set": {"other": True}}
    mixpanel.post("/groups", [number])
    assert mixpanel.emulator.group("company", "acme") == {"size": 10, "tags": ["b"]}
    assert mixpanel.emulator.group("company", "7") == {"other": True}
    assert mixpanel.emulator.group("other", "acme") is None
    mixpanel.groups("company", "acme", delete="")
    assert mixpanel.emulator.group("company", "acme") is None


def test_group_has_no_last_seen_and_no_alias(mixpanel: Wire) -> None:
    mixpanel.alias("acme", "acme-inc")
    mixpanel.groups("company", "acme", set={"size": 1}, time=1_700_000_000)
    assert mixpanel.emulator.group("company", "acme") == {"size": 1}
    assert mixpanel.emulator.group("company", "acme-inc") is None
    assert mixpanel.emulator.profiles() == {}


@pytest.mark.parametrize("missing", ["$token", "$group_key", "$group_id"])
def test_incomplete_group_envelope_is_refused(mixpanel: Wire, missing: str) -> None:
    record = {"$token": TOKEN, "$group_key": "k", "$group_id": "g", "$set": {"a": 1}}
    del record[missing]
    assert mixpanel.post("/groups", [record]).text == "0"
    assert mixpanel.emulator.group("k", "g") is None


def test_group_updates_apply_in_order_to_their_group(mixpanel: Wire) -> None:
    envelope = {"$token": TOKEN, "$group_key": "k"}
    batch = [
        {**envelope, "$group_id": "g", "$set": {"a": 1, "l": [1, 2]}},
        {**envelope, "$group_id": "g", "$add": {"a": 1}},
        {**envelope, "$group_id": "h", "$set_once": {"a": 3}},
        {**envelope, "$group_id": "g", "$remove": {"l": [1]}, "$unset": ["a"]},
    ]
    answer = mixpanel.post("/groups?strict=1", batch).json()
    assert [each["index"] for each in answer["failed_records"]] == [1]
    assert mixpanel.emulator.group("k", "g") == {"l": [2]}
    assert mixpanel.emulator.group("k", "h") == {"a": 3}


@pytest.mark.parametrize("operation", ["add", "append"])
def test_groups_support_neither_add_nor_append(mixpanel: Wire, operation: str) -> None:
    assert mixpanel.groups("company", "acme", **{operation: {"size": 1}}) == "0"
    assert mixpanel.emulator.group("company", "acme") is None
