"""`Checker` gives the same results as the client, and sends nothing."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from mixpanel_async import Checker, ValidationError
from mixpanel_async.emulator import Emulator

NOW = time.time()
ODD: list[dict[str, Any]] = [
    {"distinct_id": "null"},
    {"distinct_id": None},
    {"distinct_id": 7},
    {"event_name": ""},
    {"event_name": "x" * 256},
    {"properties": {"a": float("nan")}},
    {"properties": {"a": [0] * 255}},
    {"properties": {"a": object()}},
    {"properties": {str(n): n for n in range(255)}},
    {"time": 12},
    {"time": NOW + 7200},
    {"insert_id": "a b"},
    {"user_id": "$device:x"},
    {"ip": "nowhere"},
    {"meta": {"event": "x"}},
]
OWN = {"time", "distinct_id", "$insert_id", "token", "mp_lib", "$user_id", "$device_id", "ip"}
VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=9) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def arguments(odd: dict[str, Any]) -> dict[str, Any]:
    return {"distinct_id": "u", "event_name": "e", "time": NOW - 10 * 86_400, "insert_id": "i", **odd}


def problem(call: Any, **given: Any) -> tuple[str, str] | None:
    try:
        call(**given)
    except ValidationError as error:
        return error.path, error.problem
    return None


async def queued(given: dict[str, Any]) -> tuple[tuple[str, str] | None, int]:
    """Track an event with a client. Return its error, if any, and the pending bytes."""
    async with Emulator().client("token", events_endpoint="import") as mp:
        return problem(mp.track_nowait, **given), mp.stats().pending_bytes


@pytest.mark.parametrize("odd", [{}, *ODD], ids=range(len(ODD) + 1))
def test_checker_rejects_events_with_the_messages_of_the_client(odd: dict[str, Any]) -> None:
    found = problem(Checker("token").event, **arguments(odd))
    assert (found is None) == (not odd)
    assert found == anyio.run(queued, arguments(odd))[0]


@pytest.mark.parametrize("properties", [{"time": NOW}, {"$insert_id": "a"}, {"time": 12}, {"$insert_id": "a b"}])
@pytest.mark.parametrize("odd", [{"time": 12}, {"insert_id": "a b"}, {}])
def test_properties_override_arguments(properties: dict[str, Any], odd: dict[str, Any]) -> None:
    given = arguments({**odd, "properties": properties})
    assert problem(Checker("token").event, **given) == anyio.run(queued, given)[0]


def test_checker_limits_the_age_of_events_only_with_recent() -> None:
    assert problem(Checker().event, **arguments({})) is None
    assert problem(Checker(recent=True).event, **arguments({})) is not None
    assert Checker(recent=True).event("u", "e").repeatable


@settings(max_examples=60, deadline=None)
@drawn(st.dictionaries(st.text(min_size=1, max_size=5) | st.sampled_from(sorted(OWN)), VALUES, max_size=5))
def test_checker_reports_the_size_of_the_sent_record(properties: dict[str, Any]) -> None:
    given = arguments({"properties": properties})
    refused, size = anyio.run(queued, given)
    assert problem(Checker("token").event, **given) == refused
    if refused is None:
        assert Checker("token").event(**given).body_bytes == size


@pytest.mark.parametrize(
    ("update", "repeatable"),
    [
        ({"$distinct_id": "u", "$set": {"a": 1}}, True),
        ({"$distinct_id": "u", "$unset": ["a"], "$ignore_time": True}, True),
        ({"$group_key": "k", "$group_id": "g", "$union": {"a": [1]}}, True),
        ({"$distinct_id": "u", "$add": {"a": 1}}, False),
        ({"$distinct_id": "u", "$set": {"a": 1}, "$append": {"b": 1}}, False),
        ({"$distinct_id": "u", "$novelty": 1}, False),
    ],
)
def test_checker_reports_whether_an_update_is_repeatable(update: dict[str, Any], repeatable: bool) -> None:
    assert Checker().update(update).repeatable is repeatable


@pytest.mark.parametrize("update", [{}, {"$distinct_id": "u"}, {"$distinct_id": "u", "$add": {"a": "b"}}, {"$set": {}}])
def test_checker_rejects_invalid_updates(update: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Checker().update(update)


def test_checker_rejects_arguments_that_raise_when_read() -> None:
    class Angry(dict[str, Any]):
        def items(self) -> Any:
            raise RuntimeError("do not look")

    with pytest.raises(ValidationError):
        Checker().event("u", "e", Angry(a=1))
    with pytest.raises(ValidationError):
        Checker().update(Angry(a=1))
