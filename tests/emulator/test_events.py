"""Tests of deduplication, stored event properties, and the limits on stored events."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest
from emulator_wire import TOKEN, Wire, imported

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

NOW = int(time.time()) - 60


@pytest.fixture
def mixpanel() -> Wire:
    return Wire(Emulator(IdMerge.ORIGINAL))


def row(**properties: Any) -> dict[str, Any]:
    return imported(**{"time": NOW, "$insert_id": "one", **properties})


def test_latest_duplicate_counts_and_raw_events_keep_all(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1", [row(copy=1), row(copy=0, **{"$insert_id": "two"})])
    mixpanel.post("/import?strict=1", [row(copy=2)])
    assert [event["properties"]["copy"] for event in mixpanel.emulator.events()] == [2, 0]
    assert [event["properties"]["copy"] for event in mixpanel.emulator.raw_events()] == [1, 0, 2]


@pytest.mark.parametrize(
    "other",
    [{**row(), "event": "Other"}, row(time=NOW - 1), row(distinct_id="else"), row(**{"$insert_id": "two"})],
    ids=["event", "time", "distinct_id", "insert_id"],
)
def test_duplicates_must_match_in_all_four_key_parts(mixpanel: Wire, other: dict[str, Any]) -> None:
    mixpanel.post("/import?strict=1", [row(), other])
    assert len(mixpanel.emulator.events()) == 2


def test_duplicate_key_treats_seconds_and_milliseconds_alike(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1", [row(), row(time=NOW * 1000), row(time=float(NOW))])
    assert len(mixpanel.emulator.events()) == 1


def test_events_without_insert_id_are_not_deduplicated(mixpanel: Wire) -> None:
    mixpanel.track("u", time=NOW)
    mixpanel.track("u", time=NOW)
    assert len(mixpanel.emulator.events()) == 2


def test_duplicate_key_uses_id_as_sent(mixpanel: Wire) -> None:
    anon = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
    mixpanel.post("/import?strict=1", [row(), row(distinct_id=anon)])
    mixpanel.identify("user", anon)
    events = mixpanel.emulator.events("Imported")
    assert [event["properties"]["distinct_id"] for event in events] == ["user", "user"]
    assert [event["properties"]["$distinct_id_before_identity"] for event in events] == ["user", anon]


def test_duplicate_key_uses_derived_id_in_simplified() -> None:
    mixpanel = Wire(Emulator())
    users = [row(distinct_id="", **{"$user_id": user}) for user in ("u1", "u1", "u2")]
    mixpanel.post("/import?strict=1", users)
    assert mixpanel.counted("Imported") == ["u1", "u2"]


def test_events_are_filtered_by_name_and_keep_properties(mixpanel: Wire) -> None:
    mixpanel.track("u", "A", n=1)
    mixpanel.track("u", "B", inside={"deep": [1, None, True]})
    (event,) = mixpanel.emulator.events("B")
    properties = event["properties"]
    assert event["event"] == "B"
    assert properties["inside"] == {"deep": [1, None, True]}
    assert properties["token"] == TOKEN
    assert properties["time"] == pytest.approx(time.time(), abs=60)
    assert [event["event"] for event in mixpanel.emulator.events()] == ["A", "B"]
    assert mixpanel.emulator.events("C") == mixpanel.emulator.raw_events("C") == []


def test_oldest_events_are_removed_beyond_max_events() -> None:
    mixpanel = Wire(Emulator(max_events=2))
    for number in range(4):
        mixpanel.track(f"u{number}")
    assert mixpanel.counted() == ["u2", "u3"]


def test_oldest_events_are_removed_beyond_max_bytes() -> None:
    mixpanel = Wire(Emulator(max_bytes=5_000))
    for number in range(20):
        mixpanel.track(f"u{number}", text=["x" * 250] * 4)
    kept = mixpanel.counted()
    assert 2 <= len(kept) <= 5
    assert kept[-1] == "u19"


def test_event_uses_little_more_memory_than_its_json(mixpanel: Wire) -> None:
    batch = [row(**{"$insert_id": f"row-{number}"}) for number in range(2_000)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        mixpanel.post("/import?strict=1", batch)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(mixpanel.emulator.raw_events()) == 2_000
    assert after - before < 2_000 * 600


def test_identity_log_keeps_properties_as_sent(mixpanel: Wire) -> None:
    mixpanel.identify("u", "no-uuid")
    assert mixpanel.emulator.identity_log() == [
        {
            "event": "$identify",
            "properties": {"token": TOKEN, "$identified_id": "u", "$anon_id": "no-uuid"}
            | {"time": mixpanel.emulator.events()[0]["properties"]["time"]},
            "outcome": "failed",
            "$failure_reason": "errAnonDistinctIdNonGUIDForm",
            "$failure_description": "the anonymous id is not five groups of hexadecimal digits joined by dashes",
        }
    ]


def test_identify_without_distinct_id_counts_for_user(mixpanel: Wire) -> None:
    mixpanel.identify("u", "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001")
    assert mixpanel.counted("$identify") == ["u"]


def test_reset_deletes_everything(mixpanel: Wire) -> None:
    mixpanel.track("u")
    mixpanel.alias("u", "x")
    mixpanel.engage("u", set={"a": 1})
    mixpanel.groups("k", "g", set={"a": 1})
    mixpanel.emulator.fail_next()
    mixpanel.emulator.reset()
    emulator = mixpanel.emulator
    assert not any([emulator.requests(), emulator.events(), emulator.clusters(), emulator.identity_log()])
    assert emulator.profiles() == {}
    assert emulator.group("k", "g") is None
    assert emulator.cluster("u") == {"u"}
    mixpanel.track("u")
    assert len(emulator.events()) == 1
