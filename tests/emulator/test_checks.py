"""Tests of event validation on `/import?strict=1` and `/track`."""

from __future__ import annotations

from typing import Any

import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

NOW = 1_800_000_000.0
DAY = 86_400
EARLIER = int(NOW) - 60


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL, now=lambda: NOW))


def row(**properties: Any) -> dict[str, Any]:
    return imported(**{"time": EARLIER, **properties})


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 1


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (7, ""),
        ({"properties": row()["properties"]}, "event"),
        ({**row(), "event": " "}, "event"),
        ({**row(), "event": 3}, "event"),
        ({"event": "e"}, "properties"),
        ({"event": "e", "properties": []}, "properties"),
        (row(time=None), "properties.time"),
        (row(time=True), "properties.time"),
        (row(time="1700000000"), "properties.time"),
        (row(time=365 * DAY - 1), "properties.time"),
        (row(time=-1), "properties.time"),
        (row(time=int(NOW) + 3601), "properties.time"),
        (row(time=(int(NOW) + 3601) * 1000), "properties.time"),
        (row(distinct_id=None), "properties.distinct_id"),
        (row(distinct_id=False), "properties.distinct_id"),
        (row(distinct_id=0), "properties.distinct_id"),
        (row(distinct_id="Undefined"), "properties.distinct_id"),
        (row(distinct_id="00000000-0000-0000-0000-000000000000"), "properties.distinct_id"),
        (row(**{"$insert_id": None}), "properties.$insert_id"),
        (row(**{"$insert_id": 7}), "properties.$insert_id"),
        (row(**{"$insert_id": ""}), "properties.$insert_id"),
        (row(**{"$insert_id": "a_b"}), "properties.$insert_id"),
        (row(**{"$insert_id": "a\n"}), "properties.$insert_id"),
        (row(**{"$insert_id": "é"}), "properties.$insert_id"),
        (row(**{"$insert_id": "a" * 37}), "properties.$insert_id"),
        (row(**{"$insert_id": "NULL"}), "properties.$insert_id"),
        (row(**{f"p{number}": 1 for number in range(252)}), "properties"),
        (row(many={f"k{number}": 1 for number in range(255)}), "properties.many"),
        (row(many=[1] * 255), "properties.many"),
        (row(deep=nested(4)), "properties.deep.a.a.a"),
        (row(deep=[[[[]]]]), "properties.deep.0.0.0"),
        (row(deep=nested(300)), "properties.deep.a.a.a"),
        (row(big="x" * 100, **{f"p{number}": ["y" * 255] * 60 for number in range(70)}), ""),
        ({"event": "$identify", "properties": {"$anon_id": "a"}}, "properties.$identified_id"),
        ({"event": "$identify", "properties": {"$identified_id": "a", "$anon_id": []}}, "properties.$anon_id"),
        ({"event": "$create_alias", "properties": {"distinct_id": "a"}}, "properties.alias"),
        ({"event": "$merge", "properties": {"$distinct_ids": ["a"]}}, "properties.$distinct_ids"),
        ({"event": "$merge", "properties": {"$distinct_ids": ["a", ""]}}, "properties.$distinct_ids"),
        ({"event": "$merge", "properties": {"$distinct_ids": ["a", "b"], "time": "x"}}, "properties.time"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_strict_import_refuses_invalid_record(mixpanel: Wire, record: Any, field: str) -> None:
    response = mixpanel.post("/import?strict=1", [record, row()])
    assert response.status_code == 400
    (failed,) = response.json()["failed_records"]
    assert (failed["index"], failed["field"]) == (0, field)
    assert failed["message"]
    assert response.json()["num_records_imported"] == 1
    assert len(mixpanel.emulator.events()) == 1


@pytest.mark.parametrize(
    "record",
    [
        row(distinct_id=""),
        row(distinct_id=17),
        row(time=365 * DAY),
        row(time=NOW - 0.5),
        row(time=int(NOW * 1000)),
        row(**{"$insert_id": "a" * 36}),
        row(**{f"p{number}": 1 for number in range(251)}),
        row(many=[1] * 254, deep=nested(3)),
        {**row(), "beside": 1},
        {"event": "$merge", "properties": {"$distinct_ids": ["a", 7]}},
        {"event": "$identify", "properties": {"$identified_id": "a", "$anon_id": "b"}},
        {"event": "$create_alias", "properties": {"distinct_id": "a", "alias": "b"}},
    ],
    ids=lambda value: str(value)[:60],
)
def test_strict_import_accepts_valid_record(mixpanel: Wire, record: dict[str, Any]) -> None:
    assert mixpanel.post("/import?strict=1", [record]).json()["num_records_imported"] == 1
    assert len(mixpanel.emulator.events()) == 1


def test_simplified_accepts_other_id_without_distinct_id() -> None:
    mixpanel = Wire(Emulator(now=lambda: NOW))
    assert mixpanel.post("/import?strict=1", [row(distinct_id=None, **{"$user_id": "u"})]).status_code == 200
    assert mixpanel.post("/import?strict=1", [row(distinct_id=None)]).status_code == 400
    refused = mixpanel.post("/import?strict=1", [row(**{"$device_id": "null"})])
    assert refused.json()["failed_records"][0]["field"] == "properties.$device_id"


@pytest.mark.parametrize(("sent", "stored"), [(NOW + 3600, NOW), ((NOW + 1) * 1000, NOW * 1000), (NOW, NOW)])
@pytest.mark.parametrize("path", ["/import?strict=1", "/track"])
def test_import_replaces_near_future_time_by_now(mixpanel: Wire, path: str, sent: float, stored: float) -> None:
    assert mixpanel.post(path, [row(time=sent, token=TOKEN)]).status_code == 200
    assert mixpanel.emulator.raw_events()[0]["properties"]["time"] == stored


def test_track_replaces_future_and_missing_time_by_now(mixpanel: Wire) -> None:
    mixpanel.track("u", time=NOW + 30 * DAY)
    mixpanel.track("u")
    assert [event["properties"]["time"] for event in mixpanel.emulator.events()] == [NOW, NOW]


@pytest.mark.parametrize(
    "properties",
    [
        {"time": NOW - 5 * DAY - 1},
        {"token": None},
        {"token": ""},
        {"token": "another"},
        {"$ignore": True},
        {"$ignore": "bot"},
    ],
)
def test_track_silently_ignores_event(properties: dict[str, Any]) -> None:
    mixpanel = Wire(Emulator(token=TOKEN, now=lambda: NOW))
    assert mixpanel.post("/track", [{"event": "e", "properties": {"token": TOKEN} | properties}]).text == "1"
    assert mixpanel.emulator.events() == []


@pytest.mark.parametrize("properties", [{"time": NOW - 5 * DAY}, {"$ignore": ""}, {"$ignore": False}])
def test_track_accepts_event(properties: dict[str, Any]) -> None:
    mixpanel = Wire(Emulator(token=TOKEN, now=lambda: NOW))
    assert mixpanel.post("/track", [{"event": "e", "properties": {"token": TOKEN} | properties}]).text == "1"
    assert len(mixpanel.emulator.events()) == 1


@pytest.mark.parametrize("record", [{"event": ""}, {"event": "e", "properties": {"time": "x"}}, 3, None, ["e"]])
def test_track_counts_event_as_invalid(mixpanel: Wire, record: Any) -> None:
    assert mixpanel.post("/track", [record]).text == "0"


def test_track_hashes_ip_into_missing_distinct_id_on_request(mixpanel: Wire) -> None:
    event = {"event": "Viewed", "properties": {"token": TOKEN}}
    mixpanel.post("/track?ip=1", [event])
    mixpanel.post("/track?ip=1", [event])
    mixpanel.post("/track?ip=0", [event])
    hashed, again, none = mixpanel.counted()
    assert hashed == again != none == ""


def test_long_event_name_is_truncated(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1", [row(**{"k" * 300: 1})])
    assert mixpanel.emulator.raw_events()[0]["properties"]["k" * 255] == 1


def test_import_drops_events_with_ignore_property(mixpanel: Wire) -> None:
    assert mixpanel.post("/import?strict=1", [row(**{"$ignore": "bot"}), row()]).status_code == 200
    assert len(mixpanel.emulator.events()) == 1


@pytest.mark.parametrize("properties", [{}, {"token": None}, {"token": ""}])
def test_track_ignores_events_without_token_even_if_any_is_accepted(mixpanel: Wire, properties: dict[str, Any]) -> None:
    assert mixpanel.post("/track", [{"event": "e", "properties": properties}]).text == "1"
    assert mixpanel.emulator.events() == []


@pytest.mark.parametrize("name", ["$identify", "$create_alias", "$merge"])
def test_track_counts_identity_calls_without_ids_as_invalid(mixpanel: Wire, name: str) -> None:
    assert mixpanel.post("/track", [{"event": name, "properties": {"token": TOKEN}}]).text == "0"
    assert mixpanel.emulator.identity_log() == mixpanel.emulator.events() == []


def test_long_text_is_truncated_except_ids(mixpanel: Wire) -> None:
    long = "é" * 300
    sent = row(text=long, inside={long: [long, 1]}, **{long: 1, "distinct_id": long})
    mixpanel.post("/import?strict=1", [{**sent, "event": long}])
    (event,) = mixpanel.emulator.raw_events()
    cut = long[:255]
    assert event["event"] == cut
    properties = event["properties"]
    assert (properties["text"], properties["inside"], properties[cut]) == (cut, {cut: [cut, 1]}, 1)
    assert properties["distinct_id"] == long
