"""Encoding of records: time and id are fixed at the call, and invalid arguments are rejected with their path."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import ConfigurationError, ValidationError
from mixpanel_async._delivery.callbacks import _records
from mixpanel_async._encoding.arguments import EventArguments
from mixpanel_async._encoding.hooks import DroppedByHook
from mixpanel_async._encoding.records import RecordEncoder
from mixpanel_async._encoding.size_check import MAX_RECORD_BYTES
from mixpanel_async._encoding.timestamps import event_time
from mixpanel_async._model.records import DropReason, Loss, NonIdempotentRecord, RecordKind
from mixpanel_async._model.version import VERSION

NOW = 1_700_000_000.0
NOW_MS = 1_700_000_000_000
HOUR, DAY = 3600.0, 86_400.0
CANARY = "canary-7f3a"
PROPERTY = settings(max_examples=200, deadline=None, derandomize=True, database=None)

# https://docs.mixpanel.com/reference/import-events, read 2026-08-21; `lmy47d` by Mixpanel's own importer.
PLACEHOLDERS = [
    "00000000-0000-0000-0000-000000000000",
    "anon",
    "anonymous",
    "nil",
    "none",
    "null",
    "n/a",
    "na",
    "undefined",
    "unknown",
    "<nil>",
    "0",
    "-1",
    "true",
    "false",
    "[]",
    "{}",
    "lmy47d",
]


def record(
    properties: Any = None,
    meta: Any = None,
    *,
    distinct_id: Any = "someone",
    event_name: Any = "Done",
    encoder: RecordEncoder | None = None,
    **arguments: Any,
) -> bytes:
    encoder = encoder or RecordEncoder("the token")
    recent = arguments.pop("recent", None)
    event = EventArguments(distinct_id, event_name, properties, meta, **arguments)
    return encoder.encode_event(event, now=NOW, new_id=lambda: "a-fresh-id", recent=recent)


def read(data: bytes) -> Any:
    """Decode a record. The memoryview is needed because orjson accepts no subclass of bytes."""
    return orjson.loads(memoryview(data))


def event(*args: Any, **arguments: Any) -> Any:
    return read(record(*args, **arguments))


def sent(*args: Any, **arguments: Any) -> Any:
    return event(*args, **arguments)["properties"]


def update(message: Any, meta: Any = None, **options: Any) -> bytes:
    return RecordEncoder("the token", **options).encode_profile(message, meta, now=NOW)


def rejection_of(call: Callable[[], object]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        call()
    assert CANARY not in str(caught.value)
    return caught.value


def kept_back(call: Callable[[], object]) -> DroppedByHook:
    with pytest.raises(DroppedByHook) as caught:
        call()
    return caught.value


class Raising:
    """Value whose methods raise an error with a canary, which must not be shown."""

    def __repr__(self) -> str:
        raise RuntimeError(CANARY)

    __str__ = __repr__

    def __format__(self, form: str) -> str:
        raise RuntimeError(CANARY)


class BadMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError(CANARY)

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError(CANARY)

    def __len__(self) -> int:
        return 1


# Fields of every event


def test_event_has_exactly_the_required_fields() -> None:
    assert event() == {
        "event": "Done",
        "properties": {
            "token": "the token",
            "distinct_id": "someone",
            "time": NOW_MS,
            "$insert_id": "a-fresh-id",
            "mp_lib": "python-async",
            "$lib_version": VERSION,
        },
    }


def test_arguments_become_properties() -> None:
    properties = sent({"plan": "pro"}, user_id="u", device_id="d", ip="203.0.113.9", time=NOW - 1, insert_id="mine")
    assert properties == {
        **sent(),
        "plan": "pro",
        "$user_id": "u",
        "$device_id": "d",
        "ip": "203.0.113.9",
        "time": NOW_MS - 1000,
        "$insert_id": "mine",
    }


@pytest.mark.parametrize(
    ("argument", "value", "name"),
    [
        ("user_id", "u", "$user_id"),
        ("device_id", "d", "$device_id"),
        ("ip", "203.0.113.9", "ip"),
        ("time", NOW_MS - 1000, "time"),
        ("insert_id", "mine", "$insert_id"),
    ],
)
def test_each_argument_alone_becomes_its_property(argument: str, value: Any, name: str) -> None:
    assert sent(**{argument: value}) == {**sent(), name: value}


def test_record_contains_the_deduplication_key() -> None:
    """Mixpanel counts equal (event, time, distinct_id, $insert_id) once, so a retry must send the same four."""
    first, second = (
        RecordEncoder("t").encode_event(EventArguments("u", "e"), now=NOW, new_id=iter(["one", "two"]).__next__)
        for _ in range(2)
    )
    assert first == second
    key = read(first)
    assert isinstance(key["event"], str)
    assert [type(key["properties"][name]) for name in ("time", "distinct_id", "$insert_id")] == [int, str, str]


def test_insert_id_is_generated_only_if_none_is_given() -> None:
    drawn = iter(["one", "two", "three"])
    encoder = RecordEncoder("t")
    for expected, insert_id in (("one", None), ("mine", "mine"), ("two", None)):
        data = encoder.encode_event(EventArguments("u", "e", insert_id=insert_id), now=NOW, new_id=drawn.__next__)
        assert read(data)["properties"]["$insert_id"] == expected


def test_properties_override_arguments_and_client_fields() -> None:
    mine = {
        "distinct_id": "other",
        "time": NOW - 5,
        "$insert_id": "mine",
        "mp_lib": "mine",
        "$lib_version": "9",
        "ip": "0",
        "$user_id": "other",
    }
    assert sent(mine, user_id="u", ip="203.0.113.9", time=NOW, insert_id="argument") == {
        **sent(),
        **mine,
        "time": NOW_MS - 5000,
    }


@given(now=st.floats(1_600_000_000, 4_000_000_000))
@PROPERTY
def test_default_time_is_the_clock_in_whole_milliseconds(now: float) -> None:
    data = RecordEncoder("t").encode_event(EventArguments("u", "e"), now=now, new_id=lambda: "id")
    stamp = read(data)["properties"]["time"]
    assert type(stamp) is int
    assert abs(stamp - now * 1000) <= 1


# Ids


def test_missing_distinct_id_is_derived_from_user_or_device() -> None:
    assert sent(distinct_id=None, user_id="u")["distinct_id"] == "u"
    assert sent(distinct_id=None, device_id="d")["distinct_id"] == "$device:d"
    assert sent(distinct_id=None, user_id="u", device_id="d")["distinct_id"] == "u"
    assert sent({"distinct_id": "p"}, distinct_id=None)["distinct_id"] == "p"
    assert rejection_of(lambda: record(distinct_id=None)).path == "distinct_id"


def test_empty_distinct_id_is_sent() -> None:
    assert sent(distinct_id="")["distinct_id"] == ""


ID_ARGUMENTS: dict[str, Callable[[Any], bytes]] = {
    "distinct_id": lambda value: record(distinct_id=value),
    "properties.distinct_id": lambda value: record({"distinct_id": value}),
    "user_id": lambda value: record(user_id=value),
    "properties.$user_id": lambda value: record({"$user_id": value}),
    "device_id": lambda value: record(device_id=value),
    "properties.$device_id": lambda value: record({"$device_id": value}),
    "insert_id": lambda value: record(insert_id=value),
    "properties.$insert_id": lambda value: record({"$insert_id": value}),
    "$distinct_id": lambda value: update({"$distinct_id": value, "$set": {}}),
    "$group_id": lambda value: update({"$group_key": "k", "$group_id": value, "$set": {}}),
}
every_id = pytest.mark.parametrize("where", list(ID_ARGUMENTS))


@every_id
@given(placeholder=st.sampled_from(PLACEHOLDERS), data=st.data())
@settings(PROPERTY, max_examples=60)
def test_placeholder_ids_are_rejected_in_any_case(where: str, placeholder: str, data: st.DataObject) -> None:
    written = "".join(data.draw(st.sampled_from([char.lower(), char.upper()])) for char in placeholder)
    assert rejection_of(lambda: ID_ARGUMENTS[where](written)).path == where


@every_id
@pytest.mark.parametrize("value", [5, 0, True, 1.5, b"id", ["id"], {"id": 1}, UUID(int=1)])
def test_id_that_is_not_a_string_is_rejected(where: str, value: object) -> None:
    error = rejection_of(lambda: ID_ARGUMENTS[where](value))
    assert error.path == where
    assert type(value).__name__ in error.problem


@every_id
@pytest.mark.parametrize("value", ["", " ", "\t\n", "\u2003"])
def test_blank_id_is_rejected(where: str, value: str) -> None:
    if value == "" and where in {"distinct_id", "properties.distinct_id"}:
        return
    assert rejection_of(lambda: ID_ARGUMENTS[where](value)).path == where


@every_id
def test_id_with_a_lone_surrogate_is_rejected(where: str) -> None:
    assert rejection_of(lambda: ID_ARGUMENTS[where]("\ud800")).path == where


@every_id
def test_id_whose_repr_raises_is_rejected(where: str) -> None:
    assert rejection_of(lambda: ID_ARGUMENTS[where](Raising())).path == where


def test_invalid_device_id_is_reported_with_an_id_path() -> None:
    for value in (5, Raising(), "\ud800", "", "null"):
        error = rejection_of(lambda value=value: record(distinct_id=None, device_id=value))  # type: ignore[misc]
        assert error.path == "device_id"


@pytest.mark.parametrize("value", ["名前", "a" * 300, "user@example.test", "a b", "00", "nullable", "-10", "é"])
def test_any_other_string_is_a_valid_id(value: str) -> None:
    for where, call in ID_ARGUMENTS.items():
        if "insert_id" not in where:
            assert value in json.dumps(read(call(value)), ensure_ascii=False)


def test_user_id_that_names_a_device_is_rejected() -> None:
    error = rejection_of(lambda: record({"$user_id": "$device:d"}))
    assert error.path == "properties.$user_id"
    assert "pass it as device_id" in error.problem


@pytest.mark.parametrize("value", ["$device:", "$device: ", "$device:null", "$device:$device:d"])
def test_prefix_does_not_hide_an_invalid_device_id(value: str) -> None:
    assert rejection_of(lambda: record({"$device_id": value})).path == "properties.$device_id"
    assert rejection_of(lambda: record(distinct_id=None, device_id=value)).path == "device_id"


@pytest.mark.parametrize("value", ["a", "A" * 36, "0-9", "Z-a-", "00000000-0000-0000-0000-000000000001"])
def test_insert_id_of_36_letters_digits_and_dashes_is_accepted(value: str) -> None:
    assert sent(insert_id=value)["$insert_id"] == value


@pytest.mark.parametrize("value", ["A" * 37, "a_b", "a.b", "a b", "ä", "１", "a\n", "\n", "a\x00", "a/b", "{a}", "²"])
def test_invalid_insert_id_is_rejected(value: str) -> None:
    for path, call in (
        ("insert_id", lambda: record(insert_id=value)),
        ("properties.$insert_id", lambda: record({"$insert_id": value})),
    ):
        error = rejection_of(call)
        assert error.path == path
        assert value.strip("A") == "" or value not in str(error)


def test_missing_insert_id_is_rejected() -> None:
    assert rejection_of(lambda: record({"$insert_id": None})).path == "properties.$insert_id"


# Names


class Name(str, Enum):
    SIGNED_UP = "Signed up"


@pytest.mark.parametrize("name", ["a", "x" * 255, "名前", " a ", "$create", "\U0001f600" * 255])
def test_event_name_has_1_to_255_characters(name: str) -> None:
    assert event(event_name=name)["event"] == name


def test_event_name_may_be_a_string_enum() -> None:
    assert event(event_name=Name.SIGNED_UP)["event"] == "Signed up"


@pytest.mark.parametrize("name", ["", " ", "\n\t", "\u2003", "x" * 256, None, 5, b"name", ["a"], "a\ud800"])
def test_invalid_event_name_is_rejected(name: object) -> None:
    assert rejection_of(lambda: record(event_name=name)).path == "event"


def test_event_name_whose_repr_raises_is_rejected() -> None:
    assert rejection_of(lambda: record(event_name=Raising())).path == "event"


# Time


class Year(IntEnum):
    PAST = 1_600_000_000


class Nowhere(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None

    dst = utcoffset

    def tzname(self, moment: datetime | None) -> str | None:
        return None


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=timezone.utc)  # type: ignore[arg-type,misc]


VALID_TIMES: list[tuple[str, Any, int]] = [
    ("seconds", 1_700_000_000, NOW_MS),
    ("seconds as a float", 1_700_000_000.0, NOW_MS),
    ("a fraction of a second", 1_699_999_999.1234, NOW_MS - 877),
    ("milliseconds", NOW_MS, NOW_MS),
    ("milliseconds as a float", 1_699_999_999_999.6, NOW_MS),
    ("an int enum", Year.PAST, 1_600_000_000_000),
    ("a datetime in UTC", utc(2023, 11, 14, 22, 13, 20), NOW_MS),
    ("a datetime elsewhere", datetime(2023, 11, 15, 7, 13, 20, tzinfo=timezone(timedelta(hours=9))), NOW_MS),
    ("a datetime with microseconds", utc(2023, 11, 14, 22, 13, 19, 123_456), NOW_MS - 877),
    ("the first moment, in seconds", 31_536_000, 31_536_000_000),
    ("the first moment, as a datetime", utc(1971, 1, 1), 31_536_000_000),
    ("the first milliseconds", 100_000_000_000, 100_000_000_000),
    ("an hour ahead, in seconds", NOW + HOUR, NOW_MS + 3_600_000),
    ("an hour ahead, in milliseconds", NOW_MS + 3_600_000, NOW_MS + 3_600_000),
    ("an hour ahead, as a datetime", utc(2023, 11, 14, 23, 13, 20), NOW_MS + 3_600_000),
]

INVALID_TIMES: list[tuple[str, Any, str]] = [
    ("microseconds", 1_700_000_000_000_000, "looks like microseconds"),
    ("nanoseconds", 1_700_000_000_000_000_000, "looks like microseconds"),
    ("the first microseconds", 100_000_000_000_000, "looks like microseconds"),
    ("the last milliseconds", 99_999_999_999_999, "one hour"),
    ("400 digits", 10**400, "looks like microseconds"),
    ("minus 400 digits", -(10**400), ""),
    ("nan", float("nan"), "finite"),
    ("infinity", float("inf"), "finite"),
    ("minus infinity", float("-inf"), "finite"),
    ("true", True, "not bool"),
    ("false", False, "not bool"),
    ("text", "1700000000", "not str"),
    ("a date in text", "2023-11-14T22:13:20Z", "not str"),
    ("bytes", b"1700000000", "not bytes"),
    ("a decimal", Decimal(1_700_000_000), "not decimal.Decimal"),
    ("a date", date(2023, 11, 14), "not date"),
    ("a list", [1_700_000_000], "not list"),
    ("a complex number", 1j, "not complex"),
    ("a naive datetime", datetime(2023, 11, 14, 22, 13, 20), "time zone"),
    ("a datetime nowhere", datetime(2023, 11, 14, tzinfo=Nowhere()), "time zone"),
    ("zero", 0, "1971"),
    ("minus one", -1, "1971"),
    ("the last second of 1970", 31_535_999, "1971"),
    ("the last millisecond of 1970", utc(1970, 12, 31, 23, 59, 59, 999_000), "1971"),
    ("the least datetime", datetime.min.replace(tzinfo=timezone.utc), "1971"),
    ("over an hour ahead, in seconds", NOW + HOUR + 0.001, "one hour"),
    ("over an hour ahead, in milliseconds", NOW_MS + 3_600_001, "one hour"),
    ("over an hour ahead, as a datetime", utc(2023, 11, 14, 23, 13, 20, 1000), "one hour"),
    ("the year 3000", utc(3000, 1, 1), "one hour"),
    ("the year 5500", utc(5500, 1, 1), "one hour"),
    ("the last datetime", datetime.max.replace(tzinfo=timezone.utc), "one hour"),
]


@pytest.mark.parametrize(("value", "expected"), [row[1:] for row in VALID_TIMES], ids=[row[0] for row in VALID_TIMES])
def test_time_is_sent_in_whole_milliseconds(value: Any, expected: int) -> None:
    for stamp in (sent(time=value)["time"], sent({"time": value})["time"]):
        assert (type(stamp), stamp) == (int, expected)


@pytest.mark.parametrize(("value", "why"), [row[1:] for row in INVALID_TIMES], ids=[row[0] for row in INVALID_TIMES])
def test_invalid_time_is_rejected(value: Any, why: str) -> None:
    for path, call in (("time", lambda: record(time=value)), ("properties.time", lambda: record({"time": value}))):
        error = rejection_of(call)
        assert error.path == path
        assert why in error.problem


def test_time_whose_repr_raises_is_rejected() -> None:
    assert rejection_of(lambda: record(time=Raising())).path == "time"


def test_time_none_is_now_as_argument_and_invalid_as_property() -> None:
    assert sent(time=None)["time"] == NOW_MS
    assert rejection_of(lambda: record({"time": None})).path == "properties.time"


def test_track_accepts_five_days_and_import_any_age() -> None:
    recent, old = NOW - 5 * DAY, NOW - 5 * DAY - 0.001
    tracking, importing = RecordEncoder("t", recent=True), RecordEncoder("t", recent=False)
    assert sent(time=recent, encoder=tracking)["time"] == NOW_MS - 432_000_000
    error = rejection_of(lambda: record(time=old, encoder=tracking))
    assert error.path == "time"
    assert "five days" in error.problem
    assert "import_data" in error.problem
    assert sent(time=old, encoder=importing)["time"] == NOW_MS - 432_000_001
    assert sent(time=old, encoder=tracking, recent=False)["time"] == NOW_MS - 432_000_001
    assert rejection_of(lambda: record(time=old, encoder=importing, recent=True)).path == "time"


@given(ms=st.integers(100_000_000_000, NOW_MS + 3_600_000))
@PROPERTY
def test_all_forms_of_a_time_give_the_same_milliseconds(ms: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ms)
    forms = (ms, float(ms), ms / 1000, moment, moment.astimezone(timezone(timedelta(hours=-11))))
    assert {event_time(form, "time", now=NOW, recent=False) for form in forms} == {ms}


# IP address


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("0", "0"),
        ("203.0.113.9", "203.0.113.9"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.9"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_ip_address_or_zero_is_sent(ip: str, expected: str) -> None:
    address = sent(ip=ip)["ip"]
    assert address == expected or address == "::ffff:cb00:7109"


@pytest.mark.parametrize(
    "ip",
    [
        "",
        " ",
        "1",
        "00",
        "localhost",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.9 ",
        "203.0.113.9:80",
        "203.0.113.9, 10.0.0.1",
        "203.0.113.0/24",
        "[::1]",
        "fe80::1%" + "x" * 60,
        "unknown",
        "٣.٣.٣.٣",
        0,
        1,
        3405803785,
        True,
        b"\xcb\x00\x71\x09",
        ["203.0.113.9"],
    ],
)
def test_invalid_ip_address_is_rejected(ip: object) -> None:
    assert rejection_of(lambda: record(ip=ip)).path == "ip"


# Path of an invalid argument


@pytest.mark.parametrize("properties", [None, {}, {"plan": "pro"}, MappingProxyType({"plan": "pro"})])
@pytest.mark.parametrize("encoder", [RecordEncoder("t"), RecordEncoder("t", super_properties={"$user_id": "super"})])
@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"distinct_id": 7}, "distinct_id"),
        ({"distinct_id": None, "user_id": 7}, "user_id"),
        ({"distinct_id": None, "user_id": "null", "device_id": "d"}, "user_id"),
        ({"distinct_id": None, "user_id": "u", "device_id": "null"}, "device_id"),
        ({"distinct_id": None, "device_id": "\ud800"}, "device_id"),
        ({"distinct_id": None, "device_id": "null"}, "device_id"),
        ({"time": "soon"}, "time"),
        ({"insert_id": "a b"}, "insert_id"),
        ({"ip": "localhost"}, "ip"),
    ],
)
def test_invalid_argument_is_named(arguments: Any, path: str, properties: Any, encoder: RecordEncoder) -> None:
    assert rejection_of(lambda: record(properties, encoder=encoder, **arguments)).path == path


@pytest.mark.parametrize(
    ("name", "argument"), [("distinct_id", "distinct_id"), ("$user_id", "user_id"), ("time", "time")]
)
def test_invalid_property_that_overrides_an_argument_is_named(name: str, argument: str) -> None:
    valid: Any = {argument: NOW if name == "time" else "u"}
    assert rejection_of(lambda: record({name: [7]}, **valid)).path == f"properties.{name}"


# Meta


def test_meta_is_merged_next_to_the_event() -> None:
    meta = {"$x": {"a": [1, (2,)]}, "when": datetime(2026, 1, 1)}
    before = copy.deepcopy(meta)
    assert event(meta=meta) == {**event(), "$x": {"a": [1, [2]]}, "when": "2026-01-01T00:00:00"}
    assert meta == before
    assert event(meta={}) == event()


@pytest.mark.parametrize("key", ["event", "properties"])
def test_meta_cannot_overwrite_the_event(key: str) -> None:
    assert rejection_of(lambda: record(meta={key: {}})).path == f"meta.{key}"
    assert rejection_of(lambda: RecordEncoder("t").encode_identity("$merge", {}, {key: {}})).path == f"meta.{key}"


@pytest.mark.parametrize(
    ("meta", "path"),
    [
        ({"a": float("nan")}, "meta.a"),
        ({"a": {"b": [1, float("inf")]}}, "meta.a.b[1]"),
        ({"a": "\ud800"}, "meta.a"),
        ({"a": 2**64}, "meta.a"),
        ({"a": b"x"}, "meta.a"),
        ({1: 1}, "meta.<int>"),
        ({"a": Raising()}, "meta.a"),
        (["a"], "meta"),
        ("text", "meta"),
        (BadMapping(), "meta"),
    ],
)
def test_meta_is_validated(meta: Any, path: str) -> None:
    assert rejection_of(lambda: record(meta=meta)).path == path
    assert rejection_of(lambda: RecordEncoder("t").encode_identity("$merge", {}, meta)).path == path


def test_serializer_applies_to_meta() -> None:
    encoder = RecordEncoder("t", serializer=bytes.decode)
    assert event(meta={"a": b"x"}, encoder=encoder)["a"] == "x"
    assert read(encoder.encode_identity("$merge", {}, {"a": b"x"}))["a"] == "x"
    message = {"$distinct_id": "u", "$set": {}}
    assert read(encoder.encode_profile(message, {"a": b"x"}, now=NOW))["a"] == "x"


# Super properties


def test_super_properties_are_defaults_of_event_properties() -> None:
    encoder = RecordEncoder("t", super_properties={"plan": "free", "app": {"version": 1}})
    assert sent(encoder=encoder)["plan"] == "free"
    properties = sent({"plan": "pro"}, encoder=encoder)
    assert (properties["plan"], properties["app"]) == ("pro", {"version": 1})


def test_super_properties_are_copied_at_creation() -> None:
    mine: dict[str, Any] = {"list": [1], "deep": {"list": [1]}}
    encoder = RecordEncoder("t", super_properties=mine)
    mine["list"].append(2)
    mine["deep"]["list"].append(2)
    mine["more"] = 1
    properties = sent(encoder=encoder)
    assert (properties["list"], properties["deep"]) == ([1], {"list": [1]})
    assert "more" not in properties


def test_arguments_override_super_properties() -> None:
    encoder = RecordEncoder(
        "t", super_properties={"distinct_id": "all", "$insert_id": "all", "$user_id": "all", "time": 1}
    )
    properties = sent(distinct_id="me", insert_id="mine", user_id="u", time=NOW, encoder=encoder)
    assert (properties["distinct_id"], properties["$insert_id"], properties["$user_id"], properties["time"]) == (
        "me",
        "mine",
        "u",
        NOW_MS,
    )


def test_super_properties_are_validated_at_creation() -> None:
    error = rejection_of(lambda: RecordEncoder("t", super_properties={"a": [b"x"]}))
    assert error.path == "super_properties.a[0]"


def test_super_properties_count_towards_the_limit() -> None:
    encoder = RecordEncoder("t", super_properties={f"s{number}": 1 for number in range(200)})
    assert len(sent({f"p{number}": 1 for number in range(48)}, encoder=encoder)) == 254
    assert rejection_of(lambda: record({f"p{number}": 1 for number in range(49)}, encoder=encoder)).path == "properties"


# before_send

Hook = Callable[[dict[str, Any]], Any]


def hooked(hook: Hook, properties: Any = None, **arguments: Any) -> Any:
    return event(properties, encoder=RecordEncoder("t", before_send=hook), **arguments)


def put(*path: str, value: Any) -> Hook:
    """Return a hook that sets one value, or deletes it if the value is `...`."""

    def hook(message: dict[str, Any]) -> dict[str, Any]:
        place: Any = message
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        return message

    return hook


def test_hook_can_change_the_message() -> None:
    seen: list[dict[str, Any]] = []

    def hook(message: dict[str, Any]) -> dict[str, Any]:
        seen.append(copy.deepcopy(message))
        message["event"] = "Renamed"
        message["properties"]["added"] = {"a": (1,)}
        del message["properties"]["secret"]
        return message

    changed = hooked(hook, {"secret": 1})
    assert seen == [{**event(), "properties": {**sent({"secret": 1}), "token": "t"}}]
    assert changed == {"event": "Renamed", "properties": {**sent({"added": {"a": [1]}}), "token": "t"}}


def test_hook_can_return_a_new_message() -> None:
    own = {"event": "Own", "properties": {"distinct_id": "u", "time": NOW - 1, "$insert_id": "id", "a": (1, 2)}, "x": 1}
    before = copy.deepcopy(own)
    for _ in range(2):
        changed = hooked(lambda _: own)
        sent = {**before["properties"], "token": "t", "time": NOW_MS - 1000, "a": [1, 2]}  # type: ignore[dict-item]
        assert changed == {**before, "properties": sent}
    assert own == before, "the hook's own was changed"


def test_hook_can_set_a_time_in_any_form() -> None:
    assert hooked(put("properties", "time", value=NOW - 1))["properties"]["time"] == NOW_MS - 1000
    assert hooked(put("properties", "time", value=utc(2023, 11, 14)))["properties"]["time"] == 1_699_920_000_000


def test_hook_that_returns_none_drops_the_message() -> None:
    kept = kept_back(lambda: hooked(lambda _: None, {"a": 1}))
    assert kept.reason is DropReason.BEFORE_SEND
    assert read(kept.record)["properties"]["a"] == 1


def test_hook_that_raises_drops_the_message() -> None:
    def hook(message: dict[str, Any]) -> None:
        raise RuntimeError(CANARY)

    kept = kept_back(lambda: hooked(hook, {"a": 1}))
    assert kept.reason is DropReason.BEFORE_SEND_FAILED
    assert kept.__suppress_context__
    assert CANARY not in str(kept)
    assert read(kept.record)["properties"]["a"] == 1


@pytest.mark.parametrize("junk", [0, 1, True, "text", b"x", [], [1], {}, {"event": "e"}, {"properties": 1}, object()])
def test_hook_that_returns_an_invalid_type_drops_the_message(junk: object) -> None:
    assert kept_back(lambda: hooked(lambda _: junk)).reason is DropReason.BEFORE_SEND_FAILED


BROKEN: dict[str, Hook] = {
    "nan": put("properties", "a", value=float("nan")),
    "nested nan": put("properties", "a", value={"b": [float("nan")]}),
    "nan beside the properties": put("a", value=float("nan")),
    "nested nan beside the properties": put("a", value={"b": float("inf")}),
    "bytes": put("properties", "a", value=b"x"),
    "bytes beside the properties": put("a", value=b"x"),
    "too large a number": put("properties", "a", value=2**64),
    "lone surrogate": put("properties", "a", value="\ud800"),
    "a key that is no string": put("properties", 1, value=1),  # type: ignore[arg-type]
    "time minus one": put("properties", "time", value=-1),
    "time zero": put("properties", "time", value=0),
    "time in text": put("properties", "time", value="now"),
    "no time": put("properties", "time", value=...),
    "no insert id": put("properties", "$insert_id", value=...),
    "bad insert id": put("properties", "$insert_id", value="a b"),
    "no id": put("properties", "distinct_id", value=...),
    "placeholder id": put("properties", "distinct_id", value="null"),
    "blank name": put("event", value=" "),
    "name of another type": put("event", value=5),
    "too many properties": put("properties", value=dict.fromkeys(map(str, range(300)), 1)),
    "too large": put("properties", "a", value="x" * 1_000_000),
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_hook_that_returns_an_invalid_message_drops_it(name: str) -> None:
    """`DropReason.BEFORE_SEND_FAILED`: the hook raised or returned an invalid message. The caller gets no error."""
    assert kept_back(lambda: hooked(BROKEN[name], {"b": 1})).reason is DropReason.BEFORE_SEND_FAILED


def test_invalid_arguments_raise_with_a_hook_too() -> None:
    for call in (
        lambda: hooked(lambda message: message, {"a": b"x"}),
        lambda: hooked(lambda message: message, time=0),
        lambda: hooked(lambda message: message, insert_id="a b"),
        lambda: update({"$distinct_id": "u", "$set": {"a": b"x"}}, before_send=lambda message: message),
    ):
        assert isinstance(rejection_of(call), ValidationError)


def scrub(value: Any) -> Any:
    """Hook that removes personal data in place, at any depth."""
    if isinstance(value, dict):
        value.pop("email", None)
        for entry in value.values():
            scrub(entry)
    elif isinstance(value, list):
        for entry in value:
            scrub(entry)
        value.append("scrubbed")
    return value


def test_hook_cannot_change_properties_of_the_caller() -> None:
    mine = {"user": {"email": "a@b.test", "tags": ["x"]}, "email": "a@b.test", "list": [{"email": 1}]}
    before = copy.deepcopy(mine)
    changed = hooked(scrub, mine)
    assert changed["properties"]["user"] == {"tags": ["x", "scrubbed"]}
    assert mine == before


def test_hook_cannot_change_profile_properties_of_the_caller() -> None:
    message = {"$distinct_id": "u", "$set": {"email": "a@b.test", "deep": {"email": 1}, "list": [1]}}
    before = copy.deepcopy(message)
    assert read(update(message, before_send=scrub))["$set"] == {"deep": {}, "list": [1, "scrubbed"]}
    assert message == before


def test_hook_cannot_change_super_properties_of_the_next_event() -> None:
    encoder = RecordEncoder("t", before_send=scrub, super_properties={"app": {"email": 1, "tags": ["x"]}})
    first, second = sent(encoder=encoder), sent(encoder=encoder)
    assert first["app"] == second["app"] == {"tags": ["x", "scrubbed"]}


def test_hook_cannot_change_meta_of_the_caller() -> None:
    meta = {"deep": {"email": 1}}
    assert hooked(scrub, meta=meta)["deep"] == {}
    assert meta == {"deep": {"email": 1}}


def test_message_kept_by_a_hook_cannot_change_the_record() -> None:
    kept: list[Any] = []

    def hook(message: dict[str, Any]) -> dict[str, Any]:
        for earlier in kept:
            scrub(earlier)
        kept.append(message)
        return message

    encoder = RecordEncoder("t", before_send=hook, super_properties={"list": [1]})
    assert [sent({"a": [1]}, encoder=encoder)["a"] for _ in range(3)] == [[1]] * 3
    assert sent(encoder=encoder)["list"] == [1]


def test_hook_is_called_with_profile_updates() -> None:
    message = {"$distinct_id": "u", "$set": {"a": 1}}
    data = update(message, before_send=put("$set", "b", value=2))
    assert read(data)["$set"] == {"a": 1, "b": 2}
    assert not isinstance(data, NonIdempotentRecord)
    assert isinstance(update(message, before_send=put("$add", value={"n": 1})), NonIdempotentRecord)
    assert kept_back(lambda: update(message, before_send=lambda _: None)).reason is DropReason.BEFORE_SEND


@pytest.mark.parametrize(
    "hook",
    [
        put("$set", "a", value=float("nan")),
        put("$set", value=5),
        put("$distinct_id", value=...),
        put("$distinct_id", value="null"),
        put("$add", value={"n": "1"}),
        put("$unset", value="name"),
        put("a", value=b"x"),
        lambda _: 5,
        lambda _: {},
    ],
)
def test_hook_that_invalidates_an_update_drops_it(hook: Hook) -> None:
    message = {"$distinct_id": "u", "$set": {"a": 1}}
    assert kept_back(lambda: update(message, before_send=hook)).reason is DropReason.BEFORE_SEND_FAILED


def test_identity_calls_bypass_the_hook() -> None:
    encoder = RecordEncoder("t", before_send=lambda _: None)
    assert b"$merge" in encoder.encode_identity("$merge", {"$distinct_ids": ["a", "b"]}, None)


async def an_async_hook(message: dict[str, Any]) -> dict[str, Any]:
    return message


@pytest.mark.parametrize("hook", [5, "text", an_async_hook, {}])
def test_hook_must_be_a_plain_function(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="before_send"):
        RecordEncoder("t", before_send=hook)


def test_dropped_message_is_reported_as_far_as_it_encodes() -> None:
    encoder = RecordEncoder("t", before_send=lambda message: message["properties"].update(a=b"x") or None)
    assert read(kept_back(lambda: record(encoder=encoder)).record)["properties"]["a"] == "<bytes>"
    encoder = RecordEncoder("t", before_send=lambda message: message["properties"].update({(1,): 1}) or None)
    assert kept_back(lambda: record(encoder=encoder)).record == b""


# Size


def test_record_of_999_999_bytes_is_accepted_and_one_byte_more_is_not() -> None:
    room = MAX_RECORD_BYTES - 1 - len(record({"pad": ""}))
    data = record({"pad": "x" * room})
    assert len(data) == 999_999
    error = rejection_of(lambda: record({"pad": "x" * (room + 1)}))
    assert (error.path, "1000000 bytes" in error.problem, len(str(error)) < 200) == ("properties", True, True)


def test_record_size_is_counted_in_bytes() -> None:
    assert rejection_of(lambda: record({"pad": "é" * 500_000})).path == "properties"
    assert rejection_of(lambda: record({"pad": '"' * 500_000})).path == "properties"


def test_update_has_the_same_size_limit() -> None:
    message = {"$distinct_id": "u", "$set": {"pad": ""}}
    room = MAX_RECORD_BYTES - 1 - len(update(message))
    message["$set"] = {"pad": "x" * room}
    assert len(update(message)) == 999_999
    message["$set"] = {"pad": "x" * (room + 1)}
    assert rejection_of(lambda: update(message)).path == "message"


def test_meta_counts_towards_the_size_limit() -> None:
    assert rejection_of(lambda: record(meta={"pad": "x" * 1_000_000}))
    assert rejection_of(lambda: RecordEncoder("t").encode_identity("$merge", {}, {"pad": "x" * 1_000_000}))


# Profiles


def test_update_has_token_and_time() -> None:
    message = {"$distinct_id": "u", "$set": {"a": 1}}
    data = update(message)
    assert read(data) == {"$token": "the token", "$time": NOW, **message}
    assert not isinstance(data, NonIdempotentRecord)


def test_message_and_meta_override_client_fields() -> None:
    message = {"$distinct_id": "u", "$set": {}, "$token": "the token", "$time": 5}
    before = copy.deepcopy(message)
    meta = {"$time": 6, "$ip": "0", "$ignore_time": True}
    assert read(update(message, meta)) == {**message, **meta}
    assert message == before


REPEATABLE = {"$set": {"a": 1}, "$set_once": {"a": 1}, "$union": {"a": [1]}, "$unset": ["a"], "$delete": ""}
NOT_REPEATABLE = {"$add": {"a": 1}, "$append": {"a": 1}, "$remove": {"a": 1}, "$new_verb": {"a": 1}}
ENVELOPE = {
    "$ip": "0",
    "$time": 1,
    "$ignore_time": True,
    "$ignore_alias": True,
    "$latitude": 1.5,
    "$longitude": 2.5,
    "$token": "the token",
}


@pytest.mark.parametrize("target", [{"$distinct_id": "u"}, {"$group_key": "company", "$group_id": "acme"}])
@pytest.mark.parametrize("operation", [*REPEATABLE, *NOT_REPEATABLE])
def test_update_that_is_not_idempotent_is_marked(target: dict[str, Any], operation: str) -> None:
    """Mixpanel does not de-duplicate updates of /engage and /groups."""
    value = {**REPEATABLE, **NOT_REPEATABLE}[operation]
    data = update({**target, operation: value}, ENVELOPE)
    assert read(data)[operation] == value
    assert isinstance(data, NonIdempotentRecord) is (operation in NOT_REPEATABLE)


def test_one_operation_that_is_not_idempotent_marks_the_update() -> None:
    assert isinstance(update({"$distinct_id": "u", "$set": {"a": 1}, "$add": {"b": 1}}), NonIdempotentRecord)


@pytest.mark.parametrize("operation", [*REPEATABLE, *NOT_REPEATABLE])
def test_on_drop_reports_every_kind_of_update(operation: str) -> None:
    message = {"$distinct_id": "u", operation: {**REPEATABLE, **NOT_REPEATABLE}[operation]}
    loss = Loss(kind=RecordKind.PEOPLE, reason=DropReason.UNCERTAIN, items=[update(message)], message="no answer")
    (told,) = _records(loss)
    assert (told.kind, told.payload, told.message) == ("people", {"$time": NOW, **message}, "no answer")


@pytest.mark.parametrize(
    ("message", "path"),
    [
        ({"$set": {}}, "$distinct_id"),
        ({"$distinct_id": None, "$set": {}}, "$distinct_id"),
        ({"$group_key": "k", "$set": {}}, "$group_id"),
        ({"$group_id": "g", "$set": {}}, "$group_key"),
        ({"$group_key": " ", "$group_id": "g", "$set": {}}, "$group_key"),
        ({"$group_key": 5, "$group_id": "g", "$set": {}}, "$group_key"),
        ({"$distinct_id": "u", "$set": {"a": b"x"}}, "$set.a"),
        ({"$distinct_id": "u", "$set": {"a": {"b": [float("nan")]}}}, "$set.a.b[0]"),
        ({"$distinct_id": "u", "$append": {"a": "\ud800"}}, "$append.a"),
        ({"$distinct_id": "u", "$set": {}, "$time": float("nan")}, "$time"),
        ({"$distinct_id": "u", 5: {}}, "<int>"),
        (["$set"], "message"),
        ("text", "message"),
        (None, "message"),
        (BadMapping(), "message"),
        ({"$distinct_id": "u", "$set": BadMapping()}, "$set"),
        ({"$distinct_id": "u", "$add": BadMapping()}, "$add"),
    ],
)
def test_invalid_update_is_rejected(message: Any, path: str) -> None:
    assert rejection_of(lambda: update(message)).path == path


@pytest.mark.parametrize("meta", [None, ENVELOPE])
def test_update_without_an_operation_is_rejected(meta: Any) -> None:
    assert rejection_of(lambda: update({"$distinct_id": "u"}, meta)).path == "message"
    assert rejection_of(lambda: update({"$group_key": "k", "$group_id": "g"}, meta)).path == "message"


@pytest.mark.parametrize("operation", ["$set", "$set_once", "$add", "$append", "$union", "$remove"])
@pytest.mark.parametrize("value", [None, 5, "name", ["name"], {"name"}, b"x"])
def test_operations_on_properties_require_a_mapping(operation: str, value: object) -> None:
    error = rejection_of(lambda: update({"$distinct_id": "u", operation: value}))
    assert error.path == operation
    assert type(value).__name__ in error.problem


@pytest.mark.parametrize("value", [1, -1.5, 0, 2**64 - 1, Decimal("1.5"), Year.PAST])
def test_add_accepts_numbers(value: Any) -> None:
    assert read(update({"$distinct_id": "u", "$add": {"n": value}}))["$add"]["n"] == value


class Grade(Enum):
    ONE = "1"


@pytest.mark.parametrize(
    "value",
    ["1", True, None, [1], (1,), {1}, {"a": 1}, date(2026, 1, 1), datetime(2026, 1, 1), UUID(int=1), Grade.ONE, b"1"],
    ids=str,
)
def test_add_rejects_values_that_are_not_numbers(value: object) -> None:
    assert rejection_of(lambda: update({"$distinct_id": "u", "$add": {"ok": 1, "n": value}})).path == "$add.n"


@pytest.mark.parametrize("value", [["a"], ("a", "b"), {"b", "a"}, frozenset("a")])
def test_unset_accepts_a_list_of_names(value: Any) -> None:
    assert sorted(read(update({"$distinct_id": "u", "$unset": value}))["$unset"]) == sorted(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("name", "$unset"),
        (b"name", "$unset"),
        ({"a": 1}, "$unset"),
        (None, "$unset"),
        (5, "$unset"),
        ([], "$unset"),
        (set(), "$unset"),
        (["a", 5], "$unset[1]"),
        ([None], "$unset[0]"),
        (["\ud800"], "$unset[0]"),
    ],
)
def test_unset_rejects_other_values(value: Any, path: str) -> None:
    assert rejection_of(lambda: update({"$distinct_id": "u", "$unset": value})).path == path


# Identity


def test_identity_events_have_the_fields_of_the_official_sdk() -> None:
    data = RecordEncoder("t").encode_identity("$create_alias", {"distinct_id": "a", "alias": "b"}, {"$x": 1})
    assert read(data) == {
        "event": "$create_alias",
        "properties": {"distinct_id": "a", "alias": "b", "token": "t"},
        "$x": 1,
    }


def test_identity_call_with_a_lone_surrogate_is_rejected() -> None:
    error = rejection_of(lambda: RecordEncoder("t").encode_identity("$merge", {"$distinct_ids": ["a", "\ud800"]}, None))
    assert error.path == "properties.$distinct_ids[1]"


# Bound properties


def test_bound_properties_are_a_deep_copy() -> None:
    mine: dict[str, Any] = {"a": [1], "b": (2,), "when": datetime(2026, 1, 1)}
    clean = RecordEncoder("t").clean_properties(mine, "properties")
    assert clean == {"a": [1], "b": [2], "when": "2026-01-01T00:00:00"}
    mine["a"].append(2)
    assert clean["a"] == [1]
    assert RecordEncoder("t").clean_properties(None, "properties") == {}
    assert rejection_of(lambda: RecordEncoder("t").clean_properties({"a": b"x"}, "bound")).path == "bound.a"


def test_insert_id_subclass_cannot_replace_its_text() -> None:
    class Lying(str):
        __slots__ = ()

        def encode(self, *_: object) -> bytes:
            return b'x","token":"evil'

    data = RecordEncoder("token").encode_event(
        EventArguments("u", "e", {"a": 1}, insert_id=Lying("one")), now=1.8e9, new_id=str
    )
    properties = orjson.loads(memoryview(data))["properties"]
    assert (properties["token"], properties["$insert_id"]) == ("token", "one")
