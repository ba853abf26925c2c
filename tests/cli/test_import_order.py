"""Warning of `mixpanel-async import` about identity events in files that are not in order of arrival."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from import_command import NOW, feed, run, write

from mixpanel_async import IdMerge
from mixpanel_async.cli.importing.arrival_order import ArrivalOrder
from mixpanel_async.emulator import Emulator

UTC = timezone.utc
ANON = "0b1fba6c-16d3-4e3f-9a4e-000000000001"
ARRIVAL = "$mp_api_timestamp_ms"


@pytest.fixture(scope="module")
def emulator() -> Iterator[Any]:
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


def sent(second: int, event: str = "Sold", /, *, arrival: int | None = None, **properties: Any) -> dict[str, Any]:
    stamps = {"time": NOW + second, "$insert_id": f"i{second}", "distinct_id": "u"}
    arrived = {} if arrival is None else {ARRIVAL: (NOW + arrival) * 1000}
    return {"event": event, "properties": {**stamps, **arrived, **properties}}


def identify(second: int, user: str = "u", /, *, arrival: int | None = None) -> dict[str, Any]:
    ids: Any = {"$identified_id": user, "$anon_id": ANON}
    return sent(second, "$identify", arrival=arrival, **ids)


def pair(second: int, user: str = "u", /) -> dict[str, Any]:
    ids: Any = {"$user_id": user, "$device_id": ANON}
    return sent(second, **ids)


SORTED = [sent(1), identify(2), pair(3), sent(4)]
LATE_IDENTIFY = [identify(9, "b"), identify(2, "a"), sent(3)]
# The times are in order, the arrivals are not: the phone of the first one was offline.
LATE_ARRIVAL = [identify(1, "b", arrival=100), identify(2, "a", arrival=3)]
# The times are not in order, the arrivals are.
LATE_TIME = [identify(50, "b", arrival=51), identify(2, "a", arrival=60)]
LATE_PAIR = [pair(9, "b"), pair(2, "a"), sent(3)]
PLAIN = [sent(9), sent(2), sent(5)]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (SORTED, None),
        (PLAIN, None),
        (LATE_TIME, None),
        (LATE_IDENTIFY, "2 of 3 events are not in order of arrival, and there are 2 identity events."),
        (LATE_ARRIVAL, "1 of 2 events are not in order of arrival, and there are 2 identity events."),
        (LATE_PAIR, "there are 2 events with $device_id and $user_id, which join the two in Simplified."),
    ],
)
def test_events_out_of_order_are_warned_about_once(
    records: list[dict[str, Any]], expected: str | None, tmp_path: Path, emulator: Any
) -> None:
    path = write(tmp_path / "export.ndjson", records)
    checked, done = run(path, "--dry-run"), run(path, host=emulator.url)
    for result in (checked, done):
        shown = result.output + result.errors
        assert result.status == 0, result
        assert shown.count("Warning: ") == (expected is not None), shown
        assert expected is None or (expected in shown and "Sort an export" in shown)
    # The import warns before it sends anything, the dry run with its result.
    assert ("Warning" in checked.output, "Warning" in done.errors) == (expected is not None, expected is not None)


def test_order_counts_over_all_files_and_for_mapped_columns(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.ndjson", [sent(5)]), write(tmp_path / "2.ndjson", [identify(1)])
    assert "1 of 2 events are not" in run(first, second, "--dry-run").output
    assert json.loads(run(second, first, "--dry-run", "--json").output)["warnings"] == []
    table = tmp_path / "a.csv"
    table.write_text(f"event,distinct_id,at,who,phone\nA,u,{NOW + 9},b,d\nA,u,{NOW},a,d\n")
    columns = ["--map", "time=at", "--map", "user_id=who", "--map", "device_id=phone"]
    assert "1 of 2 events are not in order" in run(table, *columns, "--dry-run").output


def test_stream_is_warned_about_while_it_is_sent(tmp_path: Path, emulator: Any) -> None:
    stream = tmp_path / "stream"
    feed(stream, b"\n".join(map(orjson.dumps, LATE_IDENTIFY)))
    result = run(stream, "--state-dir", tmp_path, host=emulator.url)
    assert (result.errors.count("Ctrl-C"), result.output.count("2 of 3 events are not in order")) == (1, 1), result


VALUES: list[Any] = [
    None,
    True,
    10**400,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "7",
    [],
    {},
    datetime.min.replace(tzinfo=UTC),
]


def test_any_values_can_be_compared() -> None:
    order = ArrivalOrder()
    for one, other in itertools.product(VALUES, repeat=2):
        order.add({"properties": {ARRIVAL: one}}, other, one, other, other)
        order.add(one, one, other, one, one)
    assert "events are not in order of arrival" in (order.warning() or "")
