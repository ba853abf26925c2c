"""A template produces the same record as the general encoder, or None."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import MixpanelException
from mixpanel_async._encoding.arguments import EventArguments
from mixpanel_async._encoding.event_template import EventTemplate
from mixpanel_async._encoding.hooks import DroppedByHook
from mixpanel_async._encoding.records import RecordEncoder
from mixpanel_async._encoding.size_check import MAX_RECORD_BYTES
from mixpanel_async._encoding.timestamps import time_fragment

NOW = 1_790_000_000.25
STAMP = int(NOW * 1000)
MADE = "0123456789abcdef0123456789abcdef"


class Plan(Enum):
    FREE = "free"
    ODD = math.nan


class Text(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


ODD: list[Any] = [
    math.nan,
    math.inf,
    -0.0,
    1e308,
    2**63,
    2**64,
    -(2**63) - 1,
    None,
    b"bytes",
    (1, 2),
    {1, 2},
    {1: 2},
    {"a": {"b": {"c": {"d": 1}}}},
    {"a": {"b": [1]}},
    [[[1]]],
    [[[[1]]]],
    [math.nan],
    [None] * 254,
    [None] * 255,
    ["a"] * 255,
    [{}] * 10,
    {str(number): number for number in range(254)},
    {str(number): number for number in range(255)},
    "null",
    "[[[[",
    '"},{"event":"e","properties":{',
    "},{",
    ["},{", "},{", "event"],
    {"},{": "},{"},
    {"event": "e"},
    [{"event": "e"}, {"event": "e"}],
    "\ud800",
    "\0",
    "x" * 300,
    "x" * MAX_RECORD_BYTES,
    Text("sub"),
    Number(1.0),
    Plan.FREE,
    Plan.ODD,
    Decimal("1.5"),
    UUID(int=7),
    date(2026, 1, 2),
    datetime(2026, 1, 2),
    datetime(2026, 1, 2, tzinfo=timezone.utc),
    OrderedDict(a=1),
    object(),
]
KEYS = st.one_of(
    st.text(max_size=5),
    st.sampled_from(
        [
            "a",
            "$browser",
            '},{"event":',
            "},{",
            "event",
            "token",
            "distinct_id",
            "time",
            "$insert_id",
            "mp_lib",
            "$lib_version",
            "$user_id",
            "$device_id",
        ]
    ),
)
VALUES = st.recursive(
    st.one_of(st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none(), st.sampled_from(ODD)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=6,
)
IDS: Any = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["u", '},{"', "},{", "NULL", "undefined", "0", " ", "", "$device:x", None, 7, Text("u"), "\ud800"]),
)
NAMES: Any = st.one_of(
    st.text(max_size=4), st.sampled_from(["e", '},{"', "", " ", "x" * 255, "x" * 256, None, 7, Text("e")])
)


def encode_generally(distinct_id: Any, name: Any, properties: dict[str, Any] | None) -> Any:
    """Return the record of the general encoder, or None if it rejects the event."""
    encoder = RecordEncoder("token")
    encoder.template = None
    try:
        return bytes(encoder.encode_event(EventArguments(distinct_id, name, properties), now=NOW, new_id=lambda: MADE))
    except MixpanelException:
        return None


def new_template() -> EventTemplate:
    template = RecordEncoder("token").template
    assert template is not None
    return template


def encode_fast(
    distinct_id: Any, name: Any, properties: dict[str, Any] | None, template: EventTemplate | None = None
) -> bytes | None:
    template = template or new_template()
    return template.encode(distinct_id, name, properties, time_fragment(STAMP) + MADE.encode())


def encode_twice(distinct_id: Any, name: Any, properties: dict[str, Any] | None) -> Any:
    """Return the record of a template, or None. The second record is made from cached fragments."""
    template = new_template()
    first, second = (encode_fast(distinct_id, name, properties, template) for _ in ("first", "second"))
    assert first == second
    return first


@given(distinct_id=IDS, name=NAMES, properties=st.dictionaries(KEYS, VALUES, max_size=6))
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
def test_template_agrees_with_general_encoder(distinct_id: Any, name: Any, properties: dict[str, Any]) -> None:
    message = encode_twice(distinct_id, name, properties)
    # The callers check the size.
    if message is not None and len(message) < MAX_RECORD_BYTES:
        assert message == encode_generally(distinct_id, name, properties)


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!r}")
def test_encoders_agree_on_unusual_values(value: Any) -> None:
    for properties in ({"odd": value}, {"odd": value, "none": None}, {"odd": [value], "list": [1], "none": None}):
        message = encode_twice("u", "e", properties)
        # The callers check the size.
        if message is not None and len(message) < MAX_RECORD_BYTES:
            assert message == encode_generally("u", "e", properties)


@pytest.mark.parametrize("properties", [None, {}])
def test_event_without_properties_is_encoded_fast(properties: dict[str, Any] | None) -> None:
    message = encode_twice("u", "e", properties)
    assert message == encode_generally("u", "e", properties)
    assert encode_twice("null", "e", properties) is None
    assert encode_twice("u", "", properties) is None


def test_fragment_caches_are_bounded() -> None:
    encoder = new_template()
    for number in range(10_000):
        properties = {f"property {number}": 1}
        data = encode_fast(f"user {number}", f"event {number}", properties, encoder)
        assert data is not None
        assert data == encode_generally(f"user {number}", f"event {number}", properties)
    for text in ("x" * 255, "\0" * 200):
        data = encode_fast(text, text, {"a": 1}, encoder)
        assert data is not None
        assert data == encode_generally(text, text, {"a": 1})
    assert encode_fast("x" * 100_000, "e", {"a": 1}, encoder) is None
    assert encode_fast("u", "x" * 100_000, {"a": 1}, encoder) is None
    caches = (encoder._fragments.names, encoder._fragments.distinct_ids)
    assert len(pickle.dumps([{**cache} for cache in caches])) < 1_000_000
    assert max(len(fragment) for cache in caches for fragment in cache.values()) <= 512


@pytest.mark.parametrize("count", [245, 246, 248, 249, 254, 255])
def test_template_leaves_events_with_more_properties_to_the_general_encoder(count: int) -> None:
    """Three ids may come to the properties, so that the template supports three less."""
    properties = {f"p{number}": number for number in range(count)}
    record = encode_twice("u", "e", properties)
    assert record == (encode_generally("u", "e", properties) if count <= 245 else None)
    assert (encode_generally("u", "e", properties) is None) == (count > 248)


def test_template_accepts_usual_values() -> None:
    for value in ("text", 7, 1.5, True, ["a", "b"], [1, 2], [1.5], {"a": 1}, {"a": 1.5}, None):
        message = encode_twice("user-1", "Signed up", {"value": value})
        assert message == encode_generally("user-1", "Signed up", {"value": value})
        assert message is not None


def test_record_takes_only_its_own_size_in_memory() -> None:
    data = encode_fast("u", "e", {"a": 1})
    assert data is not None
    assert data.__sizeof__() <= len(data) + 33
    assert data.endswith(b"}}")


IDS_OF_CALLS = [("203.0.113.7", None, "d"), ("203.0.113.7", "u", None), (None, "u", "d"), ("0", "u", "d")]


def outcome(arguments: EventArguments, *, has_template: bool, **options: Any) -> bytes | str:
    """Return the record of an event, or the text of the error."""
    encoder = RecordEncoder("token", **options)
    encoder.template = encoder.template if has_template else None
    try:
        return bytes(encoder.encode_event(arguments, now=NOW, new_id=lambda: MADE))
    except (MixpanelException, DroppedByHook) as error:
        return str(error)


@pytest.mark.parametrize("ids", IDS_OF_CALLS)
@pytest.mark.parametrize("properties", [None, {"a": 1}, {"ip": "203.0.113.8"}, {f"p{n}": n for n in range(246)}])
def test_ids_are_encoded_as_by_the_general_encoder(ids: Any, properties: dict[str, Any] | None) -> None:
    ip, user_id, device_id = ids
    arguments = EventArguments(None, "e", properties, None, user_id, device_id, ip)
    options = {"super_properties": {"app": "shop"}}
    assert outcome(arguments, has_template=True, **options) == outcome(arguments, has_template=False, **options)


@pytest.mark.parametrize("key", ["b", Text("b"), 7, "\ud800"])
def test_keys_that_a_hook_adds_are_checked_as_by_the_general_encoder(key: Any) -> None:
    def hook(message: dict[str, Any]) -> dict[str, Any]:
        message["properties"][key] = [1]
        return message

    arguments = EventArguments("u", "e", {"a": 1})
    fast, general = (outcome(arguments, has_template=kind, before_send=hook) for kind in (True, False))
    assert fast == general
