"""Which copies of an event count, what is kept of them, and how much."""

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


def test_the_latest_of_equal_copies_counts_and_raw_keeps_all(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1", [row(copy=1), row(copy=0, **{"$insert_id": "two"})])
    mixpanel.post("/import?strict=1", [row(copy=2)])
    assert [event["properties"]["copy"] for event in mixpanel.emulator.events()] == [2, 0]
    assert [event["properties"]["copy"] for event in mixpanel.emulator.raw_events()] == [1, 0, 2]


@pytest.mark.parametrize(
    "other",
    [{**row(), "event": "Other"}, row(time=NOW - 1), row(distinct_id="else"), row(**{"$insert_id": "two"})],
    ids=["event", "time", "distinct_id", "insert_id"],
)
def test_all_four_parts_of_the_key_must_be_equal(mixpanel: Wire, other: dict[str, Any]) -> None:
    mixpanel.post("/import?strict=1", [row(), other])
    assert len(mixpanel.emulator.events()) == 2


def test_seconds_and_milliseconds_are_the_same_time(mixpanel: Wire) -> None:
    mixpanel.post("/import?strict=1", [row(), row(time=NOW * 1000), row(time=float(NOW))])
    assert len(mixpanel.emulator.events()) == 1


def test_events_without_an_insert_id_of_the_client_never_deduplicate(mixpanel: Wire) -> None:
    mixpanel.track("u", time=NOW)
    mixpanel.track("u", time=NOW)
    assert len(mixpanel.emulator.events()) == 2


def test_the_id_as_sent_is_in_the_key_and_not_the_resolved_one(mixpanel: Wire) -> None:
    anon = "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001"
    mixpanel.post("/import?strict=1", [row(), row(distinct_id=anon)])
    mixpanel.identify("user", anon)
    events = mixpanel.emulator.events("Imported")
    assert [event["properties"]["distinct_id"] for event in events] == ["user", "user"]
    assert [event["properties"]["$distinct_id_before_identity"] for event in events] == ["user", anon]


def test_simplified_takes_the_derived_id_into_the_key_when_none_was_sent() -> None:
    mixpanel = Wire(Emulator())
    users = [row(distinct_id="", **{"$user_id": user}) for user in ("u1", "u1", "u2")]
    mixpanel.post("/import?strict=1", users)
    assert mixpanel.counted("Imported") == ["u1", "u2"]


def test_events_by_name_and_what_they_carry(mixpanel: Wire) -> None:
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


def test_the_oldest_events_are_forgotten_beyond_a_number() -> None:
    mixpanel = Wire(Emulator(max_events=2))
    for number in range(4):
        mixpanel.track(f"u{number}")
    assert mixpanel.counted() == ["u2", "u3"]


def test_the_oldest_events_are_forgotten_beyond_a_size() -> None:
    mixpanel = Wire(Emulator(max_bytes=5_000))
    for number in range(20):
        mixpanel.track(f"u{number}", text=["x" * 250] * 4)
    kept = mixpanel.counted()
    assert 2 <= len(kept) <= 5
    assert kept[-1] == "u19"


def test_an_event_takes_little_more_memory_than_it_weighs(mixpanel: Wire) -> None:
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


def test_the_log_of_identities_has_the_properties_as_sent(mixpanel: Wire) -> None:
    mixpanel.identify("u", "no-uuid")
    assert mixpanel.emulator.identity_log() == [
        {
            "event": "$identify",
            "properties": {"token": TOKEN, "$identified_id": "u", "$anon_id": "no-uuid"}
            | {"time": mixpanel.emulator.events()[0]["properties"]["time"]},
            "outcome": "failed",
            "$failure_reason": "errAnonDistinctIdNonGUIDForm",
            "$failure_description": "$anon_id is not in UUID v4 form",
        }
    ]


def test_an_identify_counts_for_the_user_without_a_distinct_id(mixpanel: Wire) -> None:
    mixpanel.identify("u", "0b1fba6c-16d3-4e3f-9a4e-2f0c1b7d0001")
    assert mixpanel.counted("$identify") == ["u"]


def test_reset_forgets_everything(mixpanel: Wire) -> None:
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
