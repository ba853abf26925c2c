"""The short way makes of an event what the long way makes of it, or nothing."""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from datetime import date, datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import MixpanelException
from mixpanel_async._encoding.fast_event import (
    MAX_RECORD_BYTES,
    FastEventEncoder,
    encode_properties,
    insert_id_fragment,
    join_records,
    split_records,
    time_fragment,
)
from mixpanel_async._encoding.records import RecordEncoder

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


def long_way(distinct_id: Any, name: Any, properties: dict[str, Any]) -> Any:
    try:
        data = RecordEncoder("token").event(distinct_id, name, properties, None, now=NOW, new_id=lambda: MADE)
    except MixpanelException:
        return None
    return orjson.loads(memoryview(data))


def short_way(distinct_id: Any, name: Any, properties: dict[str, Any]) -> Any:
    """For the first time, and again by what was kept of it."""
    usual = FastEventEncoder("token")
    first, second = (
        usual.encode(distinct_id, name, properties, time_fragment(STAMP), insert_id_fragment(MADE))
        for _ in ("first", "second")
    )
    assert first == second
    if first is None:
        return None
    rest = encode_properties(properties)
    assert rest is not None
    shares = [
        usual.name_fragments[name],
        usual.distinct_id_fragments[distinct_id],
        time_fragment(STAMP),
        insert_id_fragment(MADE),
        rest,
    ]
    assert len(first) <= usual.fixed_bytes + len(rest)
    assert split_records(join_records(shares * 3)) == [first] * 3
    return orjson.loads(first)


@given(distinct_id=IDS, name=NAMES, properties=st.dictionaries(KEYS, VALUES, max_size=6))
@settings(max_examples=600, deadline=None, derandomize=True, database=None)
def test_the_short_way_agrees_with_the_long_one(distinct_id: Any, name: Any, properties: dict[str, Any]) -> None:
    short = short_way(distinct_id, name, properties)
    if short is not None:
        assert short == long_way(distinct_id, name, properties)


@pytest.mark.parametrize("value", ODD, ids=lambda value: f"{type(value).__name__}-{str(value)[:12]!r}")
def test_it_agrees_on_every_odd_value(value: Any) -> None:
    for properties in ({"odd": value}, {"odd": value, "none": None}, {"odd": [value], "list": [1], "none": None}):
        short = short_way("u", "e", properties)
        if short is not None:
            assert short == long_way("u", "e", properties)


def test_what_is_kept_is_bounded() -> None:
    usual = FastEventEncoder("token")
    for number in range(10_000):
        properties = {f"property {number}": 1}
        data = usual.encode(
            f"user {number}", f"event {number}", properties, time_fragment(STAMP), insert_id_fragment(MADE)
        )
        assert data is not None
        assert orjson.loads(data) == long_way(f"user {number}", f"event {number}", properties)
    for text in ("x" * 100_000, "\0" * 200):
        assert usual.encode(text, "e", {"a": 1}, time_fragment(STAMP), insert_id_fragment(MADE)) is None
        assert usual.encode("u", text, {"a": 1}, time_fragment(STAMP), insert_id_fragment(MADE)) is None
    assert len(pickle.dumps(({**usual.name_fragments}, {**usual.distinct_id_fragments}))) < 1_000_000
    assert usual.fixed_bytes < 1_000


@pytest.mark.parametrize("count", [247, 248, 249, 254, 255])
def test_it_keeps_to_the_number_of_properties(count: int) -> None:
    properties = {f"p{number}": number for number in range(count)}
    assert (short_way("u", "e", properties) is None) == (long_way("u", "e", properties) is None)


def test_it_takes_what_is_usual() -> None:
    for value in ("text", 7, 1.5, True, ["a", "b"], [1, 2], [1.5], {"a": 1}, {"a": 1.5}, None):
        assert short_way("user-1", "Signed up", {"value": value}) == long_way("user-1", "Signed up", {"value": value})
        assert short_way("user-1", "Signed up", {"value": value}) is not None


def test_what_it_keeps_weighs_what_it_holds() -> None:
    data = FastEventEncoder("token").encode("u", "e", {"a": 1}, time_fragment(STAMP), insert_id_fragment(MADE))
    assert data is not None
    assert data.__sizeof__() <= len(data) + 33
    assert data.endswith(b"}}")
