"""Every way of calling the encoder puts the same bytes on the wire: those of one dict, encoded by orjson.

The reference merges and converts the values slowly and plainly.
"""

from __future__ import annotations

import gzip
from collections import OrderedDict
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import ip_address
from typing import Any, Final
from uuid import UUID

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import AsyncMixpanel, MixpanelException, ServiceAccountCredentials, ValidationError
from mixpanel_async._encoding.arguments import EventArguments
from mixpanel_async._encoding.event_template import canonical_address
from mixpanel_async._encoding.hooks import DroppedByHook
from mixpanel_async._encoding.records import RecordEncoder
from mixpanel_async._model.records import NonIdempotentRecord
from mixpanel_async._model.version import VERSION

NOW: Final = 1_790_000_000.25
MADE: Final = "0123456789abcdef0123456789abcdef"
TOKEN: Final = "token"


class Plan(Enum):
    PRO = "pro"


ZONES: Any = st.sampled_from(
    [None, timezone.utc, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-9))]
)
CONVERTED = st.one_of(
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=ZONES),
    st.dates(),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**30), max_value=10**30),
    st.sampled_from([Plan.PRO, (1, "a"), Decimal("1e400"), Decimal("NaN")]),
)
SCALARS = st.one_of(st.text(max_size=6), st.integers(-(2**64), 2**65), st.floats(), st.booleans(), st.none())
VALUES = st.recursive(
    st.one_of(SCALARS, SCALARS, CONVERTED),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)
NAMES = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["a", "b", "ip", "time", "$insert_id", "mp_lib", "$user_id", "$device_id", "distinct_id"]),
)
PROPERTIES = st.dictionaries(NAMES, VALUES, max_size=5)
USER_IDS = st.sampled_from([None, "user-1", "É", "a" * 300, "null", "$device:x"])
DEVICE_IDS = st.sampled_from([None, "device-1", "$device:device-1", "$device:$device:x", "0"])


def plain(value: Any) -> Any:
    """Convert a value as the documents say. The order of the rules matters as little as possible."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, datetime):
        utc = value if value.tzinfo is None else value.astimezone(timezone.utc)
        return utc.replace(tzinfo=None, microsecond=0).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        whole = value == value.to_integral_value() and -(2**63) <= value < 2**64
        return int(value) if whole else float(value)
    return value


def reference(arguments: EventArguments, super_properties: dict[str, Any]) -> bytes:
    """Return the record of a valid event, slowly."""
    distinct_id, name, properties, _, user_id, device_id, ip, time, insert_id = arguments
    bare = None if device_id is None else device_id.removeprefix("$device:")
    if distinct_id is None:
        distinct_id = user_id if user_id is not None else f"$device:{bare}"
    own = {"distinct_id": distinct_id, "time": int(NOW * 1000), "$insert_id": insert_id or MADE}
    merged: dict[str, Any] = {"token": TOKEN, **own, "mp_lib": "python-async", "$lib_version": VERSION}
    merged |= plain(super_properties)
    merged |= own
    address = ip if ip in (None, "0") else str(ip_address(ip))
    given = {"ip": address, "$user_id": user_id, "$device_id": bare, "time": time}
    merged |= {key: value for key, value in given.items() if value is not None}
    merged |= plain(properties or {})
    if isinstance(merged["time"], float):
        merged["time"] = round(merged["time"] * 1000)
    if "$device_id" in merged:
        merged["$device_id"] = merged["$device_id"].removeprefix("$device:")
    return orjson.dumps({"event": name, "properties": merged})


def encoded(arguments: EventArguments, shared: dict[str, Any], *, is_general: bool) -> bytes:
    """Return the record of an event, or the words of its error."""
    try:
        encoder = RecordEncoder(TOKEN, super_properties=shared)
        if is_general:
            encoder.template = None
        # A second time, from cached fragments.
        first, second = (encoder.encode_event(arguments, now=NOW, new_id=lambda: MADE) for _ in range(2))
    except MixpanelException as error:
        return str(error).encode()
    assert first == second
    return first


@given(
    distinct_id=st.sampled_from([None, "user-1", "É", "", "null"]),
    properties=st.none() | PROPERTIES,
    shared=st.just({}) | PROPERTIES,
    user_id=USER_IDS,
    device_id=DEVICE_IDS,
    ip=st.sampled_from([None, "203.0.113.7", "2001:DB8::0:1", "0"]),
    time=st.sampled_from([None, NOW - 3.5, datetime.fromtimestamp(NOW, timezone.utc)]),
    insert_id=st.sampled_from([None, "own-id"]),
)
# Eight seconds of CPU: more than the usual timeout on a loaded machine.
@pytest.mark.timeout(120)
@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
def test_event_has_the_bytes_of_one_dict(
    distinct_id: Any, properties: Any, shared: Any, user_id: Any, device_id: Any, ip: Any, time: Any, insert_id: Any
) -> None:
    arguments = EventArguments(distinct_id, "Event", properties, None, user_id, device_id, ip, time, insert_id)
    records = [encoded(arguments, shared, is_general=is_general) for is_general in (True, False)]
    assert records[0] == records[1]
    if records[0].startswith(b"{"):
        numeric = arguments._replace(time=time.timestamp() if isinstance(time, datetime) else time)
        assert records[0] == reference(numeric, shared)


KEYS: Final = {"a": 1, "at": datetime(2026, 1, 2, tzinfo=timezone.utc), "cart": [{"sku": "A"}], "ip": "203.0.113.9"}


@pytest.mark.loops_in_turn
@pytest.mark.parametrize("properties", [None, {}, {"a": 1}, KEYS, {"shared": 2}, {"$insert_id": "own", "b": 1}])
@pytest.mark.parametrize("shared", [{}, {"shared": 1, "app": "shop"}, {"mp_lib": "own"}])
@pytest.mark.parametrize("ids", [{}, {"user_id": "u"}, {"device_id": "$device:d", "ip": "203.0.113.7"}], ids=str)
@pytest.mark.parametrize("by_import", [False, True])
@pytest.mark.anyio
async def test_every_method_sends_the_bytes_of_the_general_encoder(
    properties: Any, shared: dict[str, Any], ids: dict[str, Any], by_import: bool
) -> None:
    """The staged records, the records of bound clients, and those from the general path differ only in their stamps."""
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        is_packed = request.headers.get("content-encoding") == "gzip"
        bodies.append(gzip.decompress(request.content) if is_packed else request.content)
        return httpx.Response(200, json={"error": None, "status": 1 if request.url.path == "/track" else "OK"})

    account = ServiceAccountCredentials("user", "secret", project_id="1") if by_import else None
    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http,
        AsyncMixpanel(TOKEN, super_properties=shared, credentials=account, http_client=http) as mp,
    ):
        person = "u" if ids else "person"
        await mp.track(person, "Event", properties, **ids)
        mp.track_nowait(person, "Event", properties, **ids)
        await mp.bind(distinct_id=person, **ids).track("Event", properties)
        mp.bind(distinct_id=person, **ids).track_nowait("Event", properties)
        shared_by_requests = mp.bind(properties=properties)
        for _ in range(2):
            await shared_by_requests.bind(distinct_id=person, **ids).track("Event")
        await mp.bind(**ids).bind(distinct_id=person).track("Event", properties, {"meta": 1})
    messages = [event for body in bodies for event in orjson.loads(body)]
    assert len(messages) == 7
    del messages[-1]["meta"]
    for message in messages:
        message["properties"] |= {"time": 0, "$insert_id": ""}
    assert len({orjson.dumps(message) for message in messages}) == 1


@given(
    ip=st.from_regex(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", fullmatch=True)
    | st.ip_addresses().map(str)
    | st.sampled_from(
        ["01.2.3.4", "1.2.3", "1.2.3.4\n", "1.2.3.4 ", "\u0661.2.3.4", "256.1.1.1", "1.2.3.04", "::FFFF:1.2.3.4"]
    )
)
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_address_has_the_form_of_the_standard_library(ip: str) -> None:
    try:
        expected = str(ip_address(ip))
    except ValueError:
        with pytest.raises(ValidationError, match="must be an IPv4 or IPv6 address"):
            canonical_address(ip)
    else:
        assert canonical_address(ip) == expected


class Moment(datetime):
    """Subclass of `datetime`, as in libraries for dates."""


TURKEY: Final = timezone(timedelta(hours=3))


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 2, 3, 4, 5, 999_999),
        datetime(2026, 1, 2, 3, 4, 5, 999_999, timezone.utc),
        datetime(2026, 1, 2, 1, tzinfo=TURKEY),
        datetime(1, 1, 1, tzinfo=TURKEY),
        datetime(1, 1, 1),
        datetime(999, 12, 31),
        Moment(2026, 1, 2, 1, tzinfo=TURKEY),
        date(1, 2, 3),
        UUID(int=3),
        *map(
            Decimal,
            ["1.0", "-0.0", "1E+5", "19.99", "0.1", "1e400", "NaN", "sNaN", "-Infinity", "18446744073709551615"],
        ),
        *map(Decimal, ["18446744073709551616", "9007199254740993", "1E-400", "123456789012345678901234567890.5"]),
        [{"a": [1, 2.5, None]}],
        [{1: "a"}],
        [[[[1]]]],
        [float("nan")],
        ["a" * 60_000, "b" * 60_000],
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize("serializer", [None, lambda value: f"<{type(value).__name__}>"], ids=["plain", "serializer"])
def test_value_has_the_bytes_of_the_general_encoder(value: Any, serializer: Any) -> None:
    records = []
    for properties in ({"a": value}, {"b": 1, "a": value, "c": [1, "x"], "d": UUID(int=1)}):
        for is_general in (True, False):
            encoder = RecordEncoder(TOKEN, serializer=serializer)
            if is_general:
                encoder.template = None
            arguments = EventArguments("u", "Event", properties)
            try:
                records.append(encoder.encode_event(arguments, now=NOW, new_id=lambda: MADE))
            except ValidationError as error:
                records.append(str(error).encode())
    assert records[0] == records[1]
    assert records[2] == records[3]


OPERATIONS: Final = st.sampled_from(["$set", "$set_once", "$union", "$append", "$remove", "$add", "$unset", "$new"])
TARGETS: Final = st.sampled_from(
    [
        {"$distinct_id": "user-1"},
        {"$distinct_id": "null"},
        {"$distinct_id": ""},
        {"$distinct_id": 7},
        {"$group_key": "company", "$group_id": "É"},
        {"$group_key": " ", "$group_id": "x"},
        {"$group_key": "company"},
        {"$group_key": "company", "$group_id": "x", "$distinct_id": "u"},
        {},
    ]
)


@given(
    target=TARGETS,
    operations=st.dictionaries(
        OPERATIONS,
        st.dictionaries(st.text(max_size=4), VALUES | st.integers(), max_size=4) | st.just(["name"]),
        max_size=2,
    ),
    meta=st.sampled_from(
        [
            None,
            {},
            {"$ip": "203.0.113.7"},
            {"$ignore_time": True},
            {"$ip": None},
            {"$time": 1},
            {"$token": "x"},
            {"$set": {"a": 1}},
        ]
    ),
    is_group=st.booleans(),
    is_first=st.booleans(),
)
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_profile_update_has_the_bytes_of_the_general_encoder(
    target: Any, operations: Any, meta: Any, is_group: bool, is_first: bool
) -> None:
    def encode(message: Any) -> tuple[bytes, bool]:
        try:
            record = RecordEncoder(TOKEN).encode_profile(message, meta, now=NOW, is_group=is_group)
        except MixpanelException as error:
            return str(error).encode(), False
        return record, isinstance(record, NonIdempotentRecord)

    message = {**target, **operations} if is_first else {**operations, **target}
    # The template takes no subclass of `dict`.
    assert encode(message) == encode(OrderedDict(message))


IDS: Final = {"$distinct_id": "user-1"}
PROFILES: Final = st.sampled_from(["$set", "$set_once", "$union", "$append", "$remove"])


@given(operation=PROFILES, values=st.dictionaries(st.text(max_size=4), VALUES, max_size=5), ip=st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_profile_update_has_the_bytes_of_one_dict(operation: str, values: dict[str, Any], ip: bool) -> None:
    meta = {"$ip": "203.0.113.7"} if ip else {}
    try:
        record = RecordEncoder(TOKEN).encode_profile({**IDS, operation: values}, meta, now=NOW)
    except MixpanelException:
        return
    assert record == orjson.dumps({"$token": TOKEN, "$time": NOW, **IDS, operation: plain(values), **meta})


@given(
    properties=PROPERTIES,
    changes=st.dictionaries(NAMES | st.just("token"), VALUES, max_size=2),
    removed=st.sampled_from(["a", "b", "time", "token"]),
    fields=st.sampled_from([{}, {}, {"event": "Other"}, {"event": ""}, {"meta": 1}]),
)
@settings(max_examples=500, deadline=None, derandomize=True, database=None)
def test_hooked_event_has_the_bytes_of_what_the_hook_returned(
    properties: Any, changes: Any, removed: str, fields: Any
) -> None:
    def encode(before_send: Any) -> bytes:
        encoder = RecordEncoder(TOKEN, before_send=before_send)
        try:
            return encoder.encode_event(EventArguments("u", "Event", properties), now=NOW, new_id=lambda: MADE)
        except (MixpanelException, DroppedByHook) as error:
            return type(error).__name__.encode()

    def change(message: dict[str, Any]) -> dict[str, Any]:
        message["properties"].pop(removed, None)
        message["properties"].update(changes)
        message.update(fields)
        return message

    def change_generally(message: dict[str, Any]) -> Any:
        # A subclass of `dict` is visited value by value.
        return OrderedDict(change(message))

    assert encode(change) == encode(change_generally)
