"""Records as they are built: stamped and frozen at the call, and refused by name if Mixpanel would not take them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import ConfigurationError, ValidationError
from mixpanel_async._delivery.callbacks import _records
from mixpanel_async._encoding.fast_event import MAX_RECORD_BYTES
from mixpanel_async._encoding.records import DroppedByHook, EventArguments, RecordEncoder
from mixpanel_async._encoding.timestamps import event_time
from mixpanel_async._model.config import VERSION
from mixpanel_async._model.records import DropReason, Loss, NonIdempotentRecord, RecordKind

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
    builder: RecordEncoder | None = None,
    **arguments: Any,
) -> bytes:
    builder = builder or RecordEncoder("the token")
    recent = arguments.pop("recent", None)
    event = EventArguments(distinct_id, event_name, properties, meta, **arguments)
    return builder.encode_event(event, now=NOW, new_id=lambda: "a-fresh-id", recent=recent)


def read(data: bytes) -> Any:
    """What is in a record; orjson itself takes no subclass of bytes."""
    return orjson.loads(memoryview(data))


def event(*args: Any, **arguments: Any) -> Any:
    return read(record(*args, **arguments))


def sent(*args: Any, **arguments: Any) -> Any:
    return event(*args, **arguments)["properties"]


def update(message: Any, meta: Any = None, **options: Any) -> bytes:
    return RecordEncoder("the token", **options).encode_profile(message, meta, now=NOW)


def refused(call: Callable[[], object]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        call()
    assert CANARY not in str(caught.value)
    return caught.value


def kept_back(call: Callable[[], object]) -> DroppedByHook:
    with pytest.raises(DroppedByHook) as caught:
        call()
    return caught.value


class Raising:
    """Says what must not be repeated to whoever looks at it."""

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


# The frame


def test_an_event_carries_what_mixpanel_wants_and_nothing_else() -> None:
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


def test_every_argument_has_its_property() -> None:
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
def test_each_argument_alone_has_its_property(argument: str, value: Any, name: str) -> None:
    assert sent(**{argument: value}) == {**sent(), name: value}


def test_the_duplicate_key_is_frozen_in_the_bytes() -> None:
    """Mixpanel counts equal (event, time, distinct_id, $insert_id) once, so a second try must not differ."""
    first, second = (
        RecordEncoder("t").encode_event(EventArguments("u", "e"), now=NOW, new_id=iter(["one", "two"]).__next__)
        for _ in range(2)
    )
    assert first == second
    key = read(first)
    assert isinstance(key["event"], str)
    assert [type(key["properties"][name]) for name in ("time", "distinct_id", "$insert_id")] == [int, str, str]


def test_an_id_is_drawn_once_and_only_if_none_is_given() -> None:
    drawn = iter(["one", "two", "three"])
    builder = RecordEncoder("t")
    for expected, insert_id in (("one", None), ("mine", "mine"), ("two", None)):
        data = builder.encode_event(EventArguments("u", "e", insert_id=insert_id), now=NOW, new_id=drawn.__next__)
        assert read(data)["properties"]["$insert_id"] == expected


def test_properties_win_over_arguments_and_over_the_clients_own_fields() -> None:
    mine = {
        "distinct_id": "other",
        "time": NOW - 5,
        "$insert_id": "mine",
        "mp_lib": "mine",
        "$lib_version": "9",
        "token": "other token",
        "ip": "0",
        "$user_id": "other",
    }
    assert sent(mine, user_id="u", ip="203.0.113.9", time=NOW, insert_id="argument") == {
        **mine,
        "time": NOW_MS - 5000,
    }


@given(now=st.floats(1_600_000_000, 4_000_000_000))
@PROPERTY
def test_the_stamp_is_whole_milliseconds_of_the_clock(now: float) -> None:
    data = RecordEncoder("t").encode_event(EventArguments("u", "e"), now=now, new_id=lambda: "id")
    stamp = read(data)["properties"]["time"]
    assert type(stamp) is int
    assert abs(stamp - now * 1000) <= 1


# Ids


def test_the_id_comes_from_the_user_or_the_device_if_there_is_none() -> None:
    assert sent(distinct_id=None, user_id="u")["distinct_id"] == "u"
    assert sent(distinct_id=None, device_id="d")["distinct_id"] == "$device:d"
    assert sent(distinct_id=None, user_id="u", device_id="d")["distinct_id"] == "u"
    assert sent({"distinct_id": "p"}, distinct_id=None)["distinct_id"] == "p"
    assert refused(lambda: record(distinct_id=None)).path == "properties.distinct_id"


def test_an_empty_id_means_nobody() -> None:
    assert sent(distinct_id="")["distinct_id"] == ""


ID_ARGUMENTS: dict[str, Callable[[Any], bytes]] = {
    "properties.distinct_id": lambda value: record(distinct_id=value),
    "properties.distinct_id as property": lambda value: record({"distinct_id": value}),
    "properties.$user_id": lambda value: record(user_id=value),
    "properties.$user_id as property": lambda value: record({"$user_id": value}),
    "properties.$device_id": lambda value: record(device_id=value),
    "properties.$device_id as property": lambda value: record({"$device_id": value}),
    "properties.$insert_id": lambda value: record(insert_id=value),
    "properties.$insert_id as property": lambda value: record({"$insert_id": value}),
    "$distinct_id": lambda value: update({"$distinct_id": value, "$set": {}}),
    "$group_id": lambda value: update({"$group_key": "k", "$group_id": value, "$set": {}}),
}
every_id = pytest.mark.parametrize("where", list(ID_ARGUMENTS))


def path_of(where: str) -> str:
    return where.split(" ", maxsplit=1)[0]


@every_id
@given(placeholder=st.sampled_from(PLACEHOLDERS), data=st.data())
@settings(PROPERTY, max_examples=60)
def test_placeholders_are_refused_as_ids_in_any_case(where: str, placeholder: str, data: st.DataObject) -> None:
    written = "".join(data.draw(st.sampled_from([char.lower(), char.upper()])) for char in placeholder)
    assert refused(lambda: ID_ARGUMENTS[where](written)).path == path_of(where)


@every_id
@pytest.mark.parametrize("value", [5, 0, True, 1.5, b"id", ["id"], {"id": 1}, UUID(int=1)])
def test_an_id_must_be_a_string(where: str, value: object) -> None:
    error = refused(lambda: ID_ARGUMENTS[where](value))
    assert error.path == path_of(where)
    assert type(value).__name__ in error.problem


@every_id
@pytest.mark.parametrize("value", ["", " ", "\t\n", "\u2003"])
def test_a_blank_id_is_refused(where: str, value: str) -> None:
    if value == "" and where.startswith("properties.distinct_id"):
        return
    assert refused(lambda: ID_ARGUMENTS[where](value)).path == path_of(where)


@every_id
def test_a_lone_surrogate_in_an_id_is_refused(where: str) -> None:
    assert refused(lambda: ID_ARGUMENTS[where]("\ud800")).path == path_of(where)


@every_id
def test_an_id_that_cannot_even_be_shown_is_refused(where: str) -> None:
    assert refused(lambda: ID_ARGUMENTS[where](Raising())).path == path_of(where)


def test_a_device_that_is_no_string_is_named_as_the_device() -> None:
    for value in (5, Raising(), "\ud800", "", "null"):
        error = refused(lambda value=value: record(distinct_id=None, device_id=value))  # type: ignore[misc]
        assert error.path in {"properties.$device_id", "properties.distinct_id"}


@pytest.mark.parametrize("value", ["名前", "a" * 300, "user@example.test", "a b", "00", "nullable", "-10", "é"])
def test_any_other_text_is_an_id(value: str) -> None:
    for where, call in ID_ARGUMENTS.items():
        if "$insert_id" not in where:
            assert value in json.dumps(read(call(value)), ensure_ascii=False)


@pytest.mark.parametrize("name", ["$user_id", "$device_id"])
def test_the_device_prefix_is_mixpanels_to_add(name: str) -> None:
    assert refused(lambda: record({name: "$device:d"})).path == f"properties.{name}"


@pytest.mark.parametrize("value", ["a", "A" * 36, "0-9", "Z-a-", "00000000-0000-0000-0000-000000000001"])
def test_an_insert_id_of_36_letters_digits_and_dashes_is_taken(value: str) -> None:
    assert sent(insert_id=value)["$insert_id"] == value


@pytest.mark.parametrize("value", ["A" * 37, "a_b", "a.b", "a b", "ä", "１", "a\n", "\n", "a\x00", "a/b", "{a}", "²"])
def test_any_other_insert_id_is_refused(value: str) -> None:
    for call in (lambda: record(insert_id=value), lambda: record({"$insert_id": value})):
        error = refused(call)
        assert error.path == "properties.$insert_id"
        assert value.strip("A") == "" or value not in str(error)


def test_a_missing_insert_id_is_refused() -> None:
    assert refused(lambda: record({"$insert_id": None})).path == "properties.$insert_id"


# Names


class Name(str, Enum):
    SIGNED_UP = "Signed up"


@pytest.mark.parametrize("name", ["a", "x" * 255, "名前", " a ", "$create", "\U0001f600" * 255])
def test_a_name_has_1_to_255_characters(name: str) -> None:
    assert event(event_name=name)["event"] == name


def test_a_name_may_be_an_enum_of_texts() -> None:
    assert event(event_name=Name.SIGNED_UP)["event"] == "Signed up"


@pytest.mark.parametrize("name", ["", " ", "\n\t", "\u2003", "x" * 256, None, 5, b"name", ["a"], "a\ud800"])
def test_any_other_name_is_refused(name: object) -> None:
    assert refused(lambda: record(event_name=name)).path == "event"


def test_a_name_that_cannot_be_shown_is_refused() -> None:
    assert refused(lambda: record(event_name=Raising())).path == "event"


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


TAKEN_TIMES: list[tuple[str, Any, int]] = [
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

REFUSED_TIMES: list[tuple[str, Any, str]] = [
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


@pytest.mark.parametrize(("value", "expected"), [row[1:] for row in TAKEN_TIMES], ids=[row[0] for row in TAKEN_TIMES])
def test_a_time_is_sent_as_whole_milliseconds(value: Any, expected: int) -> None:
    for stamp in (sent(time=value)["time"], sent({"time": value})["time"]):
        assert (type(stamp), stamp) == (int, expected)


@pytest.mark.parametrize(("value", "why"), [row[1:] for row in REFUSED_TIMES], ids=[row[0] for row in REFUSED_TIMES])
def test_a_time_that_mixpanel_would_not_take_is_refused(value: Any, why: str) -> None:
    for call in (lambda: record(time=value), lambda: record({"time": value})):
        error = refused(call)
        assert error.path == "properties.time"
        assert why in error.problem


def test_a_time_that_cannot_be_shown_is_refused() -> None:
    assert refused(lambda: record(time=Raising())).path == "properties.time"


def test_a_time_of_none_is_now_as_an_argument_and_an_error_as_a_property() -> None:
    assert sent(time=None)["time"] == NOW_MS
    assert refused(lambda: record({"time": None})).path == "properties.time"


def test_track_takes_five_days_and_import_any_age() -> None:
    recent, old = NOW - 5 * DAY, NOW - 5 * DAY - 0.001
    tracking, importing = RecordEncoder("t", recent=True), RecordEncoder("t", recent=False)
    assert sent(time=recent, builder=tracking)["time"] == NOW_MS - 432_000_000
    error = refused(lambda: record(time=old, builder=tracking))
    assert error.path == "properties.time"
    assert "five days" in error.problem
    assert "import_data" in error.problem
    assert sent(time=old, builder=importing)["time"] == NOW_MS - 432_000_001
    assert sent(time=old, builder=tracking, recent=False)["time"] == NOW_MS - 432_000_001
    assert refused(lambda: record(time=old, builder=importing, recent=True)).path == "properties.time"


@given(ms=st.integers(100_000_000_000, NOW_MS + 3_600_000))
@PROPERTY
def test_all_forms_of_one_moment_are_one_time(ms: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(milliseconds=ms)
    forms = (ms, float(ms), ms / 1000, moment, moment.astimezone(timezone(timedelta(hours=-11))))
    assert {event_time(form, "time", now=NOW, recent=False) for form in forms} == {ms}


# Address


@pytest.mark.parametrize(
    ("ip", "expected"),
    [
        ("0", "0"),
        ("203.0.113.9", "203.0.113.9"),
        ("2001:DB8::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.9"),
        ("::1", "::1"),
    ],
)
def test_an_address_or_a_zero_is_sent(ip: str, expected: str) -> None:
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
def test_any_other_address_is_refused(ip: object) -> None:
    assert refused(lambda: record(ip=ip)).path == "properties.ip"


# Meta


def test_meta_is_merged_beside_the_event() -> None:
    meta = {"$x": {"a": [1, (2,)]}, "when": datetime(2026, 1, 1)}
    before = copy.deepcopy(meta)
    assert event(meta=meta) == {**event(), "$x": {"a": [1, [2]]}, "when": "2026-01-01T00:00:00"}
    assert meta == before
    assert event(meta={}) == event()


@pytest.mark.parametrize("key", ["event", "properties"])
def test_meta_must_not_replace_the_event(key: str) -> None:
    assert refused(lambda: record(meta={key: {}})).path == f"meta.{key}"
    assert refused(lambda: RecordEncoder("t").encode_identity("$merge", {}, {key: {}})).path == f"meta.{key}"


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
def test_meta_is_checked_like_everything_else(meta: Any, path: str) -> None:
    assert refused(lambda: record(meta=meta)).path == path
    assert refused(lambda: RecordEncoder("t").encode_identity("$merge", {}, meta)).path == path


def test_the_serializer_serves_meta_as_well() -> None:
    builder = RecordEncoder("t", serializer=bytes.decode)
    assert event(meta={"a": b"x"}, builder=builder)["a"] == "x"
    assert read(builder.encode_identity("$merge", {}, {"a": b"x"}))["a"] == "x"
    message = {"$distinct_id": "u", "$set": {}}
    assert read(builder.encode_profile(message, {"a": b"x"}, now=NOW))["a"] == "x"


# Super properties


def test_super_properties_lie_under_those_of_every_event() -> None:
    builder = RecordEncoder("t", super_properties={"plan": "free", "app": {"version": 1}})
    assert sent(builder=builder)["plan"] == "free"
    properties = sent({"plan": "pro"}, builder=builder)
    assert (properties["plan"], properties["app"]) == ("pro", {"version": 1})


def test_super_properties_are_copied_when_the_client_is_made() -> None:
    mine: dict[str, Any] = {"list": [1], "deep": {"list": [1]}}
    builder = RecordEncoder("t", super_properties=mine)
    mine["list"].append(2)
    mine["deep"]["list"].append(2)
    mine["more"] = 1
    properties = sent(builder=builder)
    assert (properties["list"], properties["deep"]) == ([1], {"list": [1]})
    assert "more" not in properties


def test_super_properties_lie_under_what_the_call_says() -> None:
    builder = RecordEncoder(
        "t", super_properties={"distinct_id": "all", "$insert_id": "all", "$user_id": "all", "time": 1}
    )
    properties = sent(distinct_id="me", insert_id="mine", user_id="u", time=NOW, builder=builder)
    assert (properties["distinct_id"], properties["$insert_id"], properties["$user_id"], properties["time"]) == (
        "me",
        "mine",
        "u",
        NOW_MS,
    )


def test_super_properties_are_checked_when_the_client_is_made() -> None:
    error = refused(lambda: RecordEncoder("t", super_properties={"a": [b"x"]}))
    assert error.path == "super_properties.a[0]"


def test_super_properties_count() -> None:
    builder = RecordEncoder("t", super_properties={f"s{number}": 1 for number in range(200)})
    assert len(sent({f"p{number}": 1 for number in range(48)}, builder=builder)) == 254
    assert refused(lambda: record({f"p{number}": 1 for number in range(49)}, builder=builder)).path == "properties"


# before_send

Hook = Callable[[dict[str, Any]], Any]


def hooked(hook: Hook, properties: Any = None, **arguments: Any) -> Any:
    return event(properties, builder=RecordEncoder("t", before_send=hook), **arguments)


def put(*path: str, value: Any) -> Hook:
    """A hook that sets one value, or deletes it if that is `...`."""

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


def test_a_hook_sees_the_message_and_may_change_it() -> None:
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


def test_a_hook_may_return_a_message_of_its_own() -> None:
    own = {"event": "Own", "properties": {"distinct_id": "u", "time": NOW - 1, "$insert_id": "id", "a": (1, 2)}, "x": 1}
    before = copy.deepcopy(own)
    for _ in range(2):
        changed = hooked(lambda _: own)
        assert changed == {**before, "properties": {**before["properties"], "time": NOW_MS - 1000, "a": [1, 2]}}  # type: ignore[dict-item]
    assert own == before, "the hook's own was changed"


def test_a_hook_may_set_a_time_in_any_form() -> None:
    assert hooked(put("properties", "time", value=NOW - 1))["properties"]["time"] == NOW_MS - 1000
    assert hooked(put("properties", "time", value=utc(2023, 11, 14)))["properties"]["time"] == 1_699_920_000_000


def test_a_hook_that_returns_none_drops_the_message() -> None:
    kept = kept_back(lambda: hooked(lambda _: None, {"a": 1}))
    assert kept.reason is DropReason.BEFORE_SEND
    assert read(kept.record)["properties"]["a"] == 1


def test_a_hook_that_raises_drops_the_message() -> None:
    def hook(message: dict[str, Any]) -> None:
        raise RuntimeError(CANARY)

    kept = kept_back(lambda: hooked(hook, {"a": 1}))
    assert kept.reason is DropReason.BEFORE_SEND_FAILED
    assert kept.__suppress_context__
    assert CANARY not in str(kept)
    assert read(kept.record)["properties"]["a"] == 1


@pytest.mark.parametrize("junk", [0, 1, True, "text", b"x", [], [1], {}, {"event": "e"}, {"properties": 1}, object()])
def test_a_hook_that_returns_junk_drops_the_message(junk: object) -> None:
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
def test_a_hook_that_returns_what_cannot_be_sent_drops_the_message(name: str) -> None:
    """`DropReason.BEFORE_SEND_FAILED`: "raised, or returned what cannot be sent". The caller did nothing wrong."""
    assert kept_back(lambda: hooked(BROKEN[name], {"b": 1})).reason is DropReason.BEFORE_SEND_FAILED


def test_what_the_caller_did_wrong_is_raised_at_the_caller_also_with_a_hook() -> None:
    for call in (
        lambda: hooked(lambda message: message, {"a": b"x"}),
        lambda: hooked(lambda message: message, time=0),
        lambda: hooked(lambda message: message, insert_id="a b"),
        lambda: update({"$distinct_id": "u", "$set": {"a": b"x"}}, before_send=lambda message: message),
    ):
        assert isinstance(refused(call), ValidationError)


def scrub(value: Any) -> Any:
    """What a hook does that removes personal data in place, however deep."""
    if isinstance(value, dict):
        value.pop("email", None)
        for entry in value.values():
            scrub(entry)
    elif isinstance(value, list):
        for entry in value:
            scrub(entry)
        value.append("scrubbed")
    return value


def test_a_hook_cannot_change_what_the_caller_holds() -> None:
    mine = {"user": {"email": "a@b.test", "tags": ["x"]}, "email": "a@b.test", "list": [{"email": 1}]}
    before = copy.deepcopy(mine)
    changed = hooked(scrub, mine)
    assert changed["properties"]["user"] == {"tags": ["x", "scrubbed"]}
    assert mine == before


def test_a_hook_cannot_change_the_profile_properties_that_the_caller_holds() -> None:
    message = {"$distinct_id": "u", "$set": {"email": "a@b.test", "deep": {"email": 1}, "list": [1]}}
    before = copy.deepcopy(message)
    assert read(update(message, before_send=scrub))["$set"] == {"deep": {}, "list": [1, "scrubbed"]}
    assert message == before


def test_a_hook_cannot_change_super_properties_for_the_next_event() -> None:
    builder = RecordEncoder("t", before_send=scrub, super_properties={"app": {"email": 1, "tags": ["x"]}})
    first, second = sent(builder=builder), sent(builder=builder)
    assert first["app"] == second["app"] == {"tags": ["x", "scrubbed"]}


def test_a_hook_cannot_change_meta_that_the_caller_holds() -> None:
    meta = {"deep": {"email": 1}}
    assert hooked(scrub, meta=meta)["deep"] == {}
    assert meta == {"deep": {"email": 1}}


def test_what_a_hook_keeps_cannot_change_what_is_sent() -> None:
    kept: list[Any] = []

    def hook(message: dict[str, Any]) -> dict[str, Any]:
        for earlier in kept:
            scrub(earlier)
        kept.append(message)
        return message

    builder = RecordEncoder("t", before_send=hook, super_properties={"list": [1]})
    assert [sent({"a": [1]}, builder=builder)["a"] for _ in range(3)] == [[1]] * 3
    assert sent(builder=builder)["list"] == [1]


def test_a_hook_sees_updates_of_profiles() -> None:
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
def test_a_hook_that_breaks_an_update_drops_it(hook: Hook) -> None:
    message = {"$distinct_id": "u", "$set": {"a": 1}}
    assert kept_back(lambda: update(message, before_send=hook)).reason is DropReason.BEFORE_SEND_FAILED


def test_identity_calls_do_not_pass_through_the_hook() -> None:
    builder = RecordEncoder("t", before_send=lambda _: None)
    assert b"$merge" in builder.encode_identity("$merge", {"$distinct_ids": ["a", "b"]}, None)


async def an_async_hook(message: dict[str, Any]) -> dict[str, Any]:
    return message


@pytest.mark.parametrize("hook", [5, "text", an_async_hook, {}])
def test_a_hook_must_be_a_plain_function(hook: Any) -> None:
    with pytest.raises(ConfigurationError, match="before_send"):
        RecordEncoder("t", before_send=hook)


def test_a_message_kept_back_is_reported_as_far_as_it_encodes() -> None:
    builder = RecordEncoder("t", before_send=lambda message: message["properties"].update(a=b"x") or None)
    assert read(kept_back(lambda: record(builder=builder)).record)["properties"]["a"] == "<bytes>"
    builder = RecordEncoder("t", before_send=lambda message: message["properties"].update({(1,): 1}) or None)
    assert kept_back(lambda: record(builder=builder)).record == b""


# Size


def test_a_record_of_999_999_bytes_is_taken_and_one_byte_more_is_not() -> None:
    room = MAX_RECORD_BYTES - 1 - len(record({"pad": ""}))
    data = record({"pad": "x" * room})
    assert len(data) == 999_999
    error = refused(lambda: record({"pad": "x" * (room + 1)}))
    assert (error.path, "1000000 bytes" in error.problem, len(str(error)) < 200) == ("properties", True, True)


def test_the_size_is_that_of_the_bytes_and_not_of_the_characters() -> None:
    assert refused(lambda: record({"pad": "é" * 500_000})).path == "properties"
    assert refused(lambda: record({"pad": '"' * 500_000})).path == "properties"


def test_an_update_has_the_same_bound() -> None:
    message = {"$distinct_id": "u", "$set": {"pad": ""}}
    room = MAX_RECORD_BYTES - 1 - len(update(message))
    message["$set"] = {"pad": "x" * room}
    assert len(update(message)) == 999_999
    message["$set"] = {"pad": "x" * (room + 1)}
    assert refused(lambda: update(message)).path == "message"


def test_meta_counts_as_well() -> None:
    assert refused(lambda: record(meta={"pad": "x" * 1_000_000}))
    assert refused(lambda: RecordEncoder("t").encode_identity("$merge", {}, {"pad": "x" * 1_000_000}))


# Profiles


def test_an_update_carries_the_token_and_the_time() -> None:
    message = {"$distinct_id": "u", "$set": {"a": 1}}
    data = update(message)
    assert read(data) == {"$token": "the token", "$time": NOW, **message}
    assert not isinstance(data, NonIdempotentRecord)


def test_message_and_meta_win_over_the_clients_own_fields() -> None:
    message = {"$distinct_id": "u", "$set": {}, "$token": "mine", "$time": 5}
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
    "$token": "t",
}


@pytest.mark.parametrize("target", [{"$distinct_id": "u"}, {"$group_key": "company", "$group_id": "acme"}])
@pytest.mark.parametrize("operation", [*REPEATABLE, *NOT_REPEATABLE])
def test_what_a_second_try_could_apply_twice_is_marked(target: dict[str, Any], operation: str) -> None:
    """Mixpanel has no duplicate key for /engage and /groups."""
    value = {**REPEATABLE, **NOT_REPEATABLE}[operation]
    data = update({**target, operation: value}, ENVELOPE)
    assert read(data)[operation] == value
    assert isinstance(data, NonIdempotentRecord) is (operation in NOT_REPEATABLE)


def test_one_operation_that_is_not_safe_makes_the_update_unsafe() -> None:
    assert isinstance(update({"$distinct_id": "u", "$set": {"a": 1}, "$add": {"b": 1}}), NonIdempotentRecord)


@pytest.mark.parametrize("operation", [*REPEATABLE, *NOT_REPEATABLE])
def test_on_drop_is_told_of_every_kind_of_update_that_was_lost(operation: str) -> None:
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
def test_an_update_that_mixpanel_would_not_take_is_refused(message: Any, path: str) -> None:
    assert refused(lambda: update(message)).path == path


@pytest.mark.parametrize("meta", [None, ENVELOPE])
def test_an_update_has_an_operation(meta: Any) -> None:
    assert refused(lambda: update({"$distinct_id": "u"}, meta)).path == "message"
    assert refused(lambda: update({"$group_key": "k", "$group_id": "g"}, meta)).path == "message"


@pytest.mark.parametrize("operation", ["$set", "$set_once", "$add", "$append", "$union", "$remove"])
@pytest.mark.parametrize("value", [None, 5, "name", ["name"], {"name"}, b"x"])
def test_operations_on_properties_take_a_mapping(operation: str, value: object) -> None:
    error = refused(lambda: update({"$distinct_id": "u", operation: value}))
    assert error.path == operation
    assert type(value).__name__ in error.problem


@pytest.mark.parametrize("value", [1, -1.5, 0, 2**64 - 1, Decimal("1.5"), Year.PAST])
def test_what_is_added_is_a_number(value: Any) -> None:
    assert read(update({"$distinct_id": "u", "$add": {"n": value}}))["$add"]["n"] == value


class Grade(Enum):
    ONE = "1"


@pytest.mark.parametrize(
    "value",
    ["1", True, None, [1], (1,), {1}, {"a": 1}, date(2026, 1, 1), datetime(2026, 1, 1), UUID(int=1), Grade.ONE, b"1"],
    ids=str,
)
def test_anything_else_cannot_be_added(value: object) -> None:
    assert refused(lambda: update({"$distinct_id": "u", "$add": {"ok": 1, "n": value}})).path == "$add.n"


@pytest.mark.parametrize("value", [["a"], ("a", "b"), {"b", "a"}, frozenset("a")])
def test_what_is_unset_is_a_list_of_names(value: Any) -> None:
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
def test_any_other_unset_is_refused(value: Any, path: str) -> None:
    assert refused(lambda: update({"$distinct_id": "u", "$unset": value})).path == path


# Identity


def test_identity_events_carry_exactly_what_the_official_sdk_sends() -> None:
    data = RecordEncoder("t").encode_identity("$create_alias", {"distinct_id": "a", "alias": "b"}, {"$x": 1})
    assert read(data) == {
        "event": "$create_alias",
        "properties": {"distinct_id": "a", "alias": "b", "token": "t"},
        "$x": 1,
    }


def test_a_lone_surrogate_in_an_identity_is_refused() -> None:
    error = refused(lambda: RecordEncoder("t").encode_identity("$merge", {"$distinct_ids": ["a", "\ud800"]}, None))
    assert error.path == "properties.$distinct_ids[1]"


# Properties that are kept


def test_bound_properties_are_a_clean_copy() -> None:
    mine: dict[str, Any] = {"a": [1], "b": (2,), "when": datetime(2026, 1, 1)}
    clean = RecordEncoder("t").clean_properties(mine, "properties")
    assert clean == {"a": [1], "b": [2], "when": "2026-01-01T00:00:00"}
    mine["a"].append(2)
    assert clean["a"] == [1]
    assert RecordEncoder("t").clean_properties(None, "properties") == {}
    assert refused(lambda: RecordEncoder("t").clean_properties({"a": b"x"}, "bound")).path == "bound.a"


def test_an_insert_id_that_encodes_itself_is_not_taken_at_its_word() -> None:
    class Lying(str):
        __slots__ = ()

        def encode(self, *_: object) -> bytes:
            return b'x","token":"evil'

    data = RecordEncoder("token").encode_event(
        EventArguments("u", "e", {"a": 1}, insert_id=Lying("one")), now=1.8e9, new_id=str
    )
    properties = orjson.loads(memoryview(data))["properties"]
    assert (properties["token"], properties["$insert_id"]) == ("token", "one")
