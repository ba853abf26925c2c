"""Exports of other tools: `mixpanel-async import --preset`, proposals, and options that match no column."""

from __future__ import annotations

import csv
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from import_command import NOW, event, read_checkpoint, run, sent_properties, write

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

MOMENT = datetime.fromtimestamp(NOW, timezone.utc)
ISO = MOMENT.strftime("%Y-%m-%dT%H:%M:%S.000Z")
# As warehouses print it: UTC without saying so.
NAIVE = MOMENT.strftime("%Y-%m-%d %H:%M:%S")


@pytest.fixture(scope="module")
def emulator() -> Iterator[Any]:
    emulator = Emulator(IdMerge.SIMPLIFIED)
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


def stored(emulator: Any) -> list[dict[str, Any]]:
    """Return the name and the properties of all events, without those that the client adds."""
    return [{"event": one["event"], **sent_properties(one)} for one in emulator.raw_events()]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*dict.fromkeys(name for row in rows for name in row)])
        writer.writeheader()
        writer.writerows(
            {
                name: orjson.dumps(cell).decode() if isinstance(cell, (dict, list)) else cell
                for name, cell in row.items()
            }
            for row in rows
        )
    return path


@dataclass(frozen=True)
class Export:
    """Export of a tool: its records, and the events that the preset makes of them."""

    preset: str
    source: str
    records: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    is_csv: bool = False

    def write(self, directory: Path) -> Path:
        if self.is_csv:
            return write_csv(directory / "export.csv", self.records)
        return write(directory / "export.ndjson", self.records)


def ids(user: str | None, device: str | None) -> dict[str, Any]:
    """Return the ids of an event in a Simplified project."""
    found = {"distinct_id": user or f"$device:{device}"}
    found.update({"$user_id": user} if user else {})
    found.update({"$device_id": device} if device else {})
    return found


EXPORTS = [
    Export(
        "fivetran",
        "Fivetran",
        [
            {
                "_fivetran_id": "f1",
                "event_id": 7,
                "name": "Played",
                "time": NAIVE,
                "distinct_id": "u1",
                "properties": {"title": "Song", "name": "inner", "user_id": "x"},
                "insert_id": "i1",
                "mp_processing_time_ms": 5,
                "_fivetran_synced": NAIVE,
                "city": "Graz",
                "device_id": None,
                "mp_lib": "web",
            }
        ],
        [
            {
                "event": "Played",
                "distinct_id": "u1",
                "$user_id": "u1",
                "time": NOW * 1000,
                "$insert_id": "i1",
                "$city": "Graz",
                "title": "Song",
                "name": "inner",
                "user_id": "x",
            }
        ],
        is_csv=True,
    ),
    Export(
        "june",
        "June",
        [
            {
                "anonymous_id": "a1",
                "context": {"locale": "de"},
                "name": "Opened",
                "properties": {"plan": "pro", "name": "inner"},
                "timestamp": ISO,
                "type": "track",
                "user_id": "",
            },
            {
                "name": "Opened",
                "properties": "",
                "timestamp": ISO,
                "type": "track",
                "user_id": "u1",
                "anonymous_id": "a1",
            },
        ],
        [
            {
                "event": "Opened",
                "time": NOW * 1000,
                **ids(None, "a1"),
                "context": {"locale": "de"},
                "plan": "pro",
                "name": "inner",
            },
            {"event": "Opened", "time": NOW * 1000, **ids("u1", "a1")},
        ],
        is_csv=True,
    ),
    Export(
        "amplitude",
        "Amplitude",
        [
            {
                "$insert_id": "i1",
                "amplitude_id": 99,
                "app": 1,
                "event_type": "Signed up",
                "event_time": NAIVE + ".123000",
                "event_properties": {"plan": "pro", "city": "inner"},
                "user_properties": {"age": 3},
                "user_id": "u1",
                "device_id": "d1",
                "ip_address": "203.0.113.9",
                "city": "Graz",
                "country": "Austria",
                "os_name": "ios",
                "uuid": "x",
                "server_upload_time": NAIVE,
            }
        ],
        [
            {
                "event": "Signed up",
                "time": NOW * 1000 + 123,
                **ids("u1", "d1"),
                "$insert_id": "i1",
                "$city": "Graz",
                "country": "Austria",
                "$os": "ios",
                "ip": "203.0.113.9",
                "plan": "pro",
                "city": "inner",
            }
        ],
    ),
    Export(
        "mparticle",
        "mParticle",
        [
            {
                "events": [
                    {
                        "data": {
                            "event_name": "Bought",
                            "event_id": "1234",
                            "timestamp_unixtime_ms": str(NOW * 1000),
                            "custom_attributes": {"sku": "s", "event_id": "inner"},
                        },
                        "event_type": "custom_event",
                    },
                    {"data": {"event_id": 5678, "timestamp_unixtime_ms": NOW * 1000}, "event_type": "session_start"},
                ],
                "mpid": "m1",
                "user_identities": [{"identity_type": "customer_id", "identity": "u1"}],
                "user_attributes": {"age": "3"},
                "timestamp_unixtime_ms": "1",
                "device_info": {"brand": "b"},
                "environment": "production",
            }
        ],
        [
            {
                "event": "Bought",
                "time": NOW * 1000,
                **ids("u1", "m1"),
                "$insert_id": "1234",
                "sku": "s",
                "event_id": "inner",
                "event_type": "custom_event",
                "device_info": {"brand": "b"},
                "environment": "production",
            },
            {
                "event": "session_start",
                "time": NOW * 1000,
                **ids("u1", "m1"),
                "$insert_id": "5678",
                "device_info": {"brand": "b"},
                "environment": "production",
            },
        ],
    ),
    Export(
        "segment",
        "Segment",
        [
            {
                "anonymousId": "a1",
                "userId": None,
                "event": "Viewed",
                "properties": {"name": "Shoe", "id": "inner"},
                "context": {"ip": "203.0.113.9", "page": {"url": "https://a.example/"}},
                "messageId": "m1",
                "originalTimestamp": ISO,
                "receivedAt": ISO,
                "sentAt": ISO,
                "timestamp": ISO,
                "type": "track",
                "projectId": "p",
                "version": 2,
            }
        ],
        [
            {
                "event": "Viewed",
                "time": NOW * 1000,
                **ids(None, "a1"),
                "$insert_id": "m1",
                "ip": "203.0.113.9",
                "$current_url": "https://a.example/",
                "context": {"ip": "203.0.113.9", "page": {"url": "https://a.example/"}},
                "name": "Shoe",
                "id": "inner",
            }
        ],
    ),
    Export(
        "segment",
        "Segment",
        [
            {
                "id": "m1",
                "anonymous_id": "a1",
                "user_id": "u1",
                "event": "order_done",
                "event_text": "Order Done",
                "name": "Shoe",
                "original_timestamp": NAIVE,
                "received_at": NAIVE,
                "sent_at": NAIVE,
                "timestamp": NAIVE,
                "uuid_ts": NAIVE,
                "context_ip": "203.0.113.9",
            }
        ],
        [
            {
                "event": "Order Done",
                "time": NOW * 1000,
                **ids("u1", "a1"),
                "$insert_id": "m1",
                "ip": "203.0.113.9",
                "name": "Shoe",
            }
        ],
        is_csv=True,
    ),
    Export(
        "segment",
        "Segment",
        [
            {
                "anonymousId": "a1",
                "userId": "u1",
                "channel": "client",
                "event": "Viewed",
                "integrations": {},
                "properties": {"n": 1},
                "messageId": "m1",
                "originalTimestamp": ISO,
                "projectId": "p",
                "type": "track",
            }
        ],
        [{"event": "Viewed", "time": NOW * 1000, **ids("u1", "a1"), "$insert_id": "m1", "n": 1}],
    ),
    Export(
        "rudderstack",
        "RudderStack",
        [
            {
                "anonymousId": "a1",
                "userId": "u1",
                "channel": "web",
                "event": "Viewed",
                "properties": {"n": 1},
                "messageId": "m1",
                "originalTimestamp": ISO,
                "rudderId": "r",
                "request_ip": "203.0.113.9",
                "type": "track",
            }
        ],
        [
            {
                "event": "Viewed",
                "time": NOW * 1000,
                **ids("u1", "a1"),
                "$insert_id": "m1",
                "ip": "203.0.113.9",
                "n": 1,
            }
        ],
    ),
    Export(
        "mixpanel",
        "Mixpanel",
        [
            {
                "event_name": "Viewed",
                "distinct_id": "u1",
                "user_id": "u1",
                "device_id": "d1",
                "insert_id": "i1",
                "time": NAIVE + " UTC",
                "properties": {"n": 1},
            }
        ],
        [{"event": "Viewed", "time": NOW * 1000, **ids("u1", "d1"), "$insert_id": "i1", "n": 1}],
        is_csv=True,
    ),
]


@pytest.mark.parametrize("export", EXPORTS, ids=lambda one: f"{one.preset}-{'csv' if one.is_csv else 'json'}")
def test_export_is_recognised_and_imported_with_the_proposed_command(
    export: Export, tmp_path: Path, emulator: Any
) -> None:
    path = export.write(tmp_path)
    for options in ([], ["--dry-run"]):
        refused = run(path, *options, host=emulator.url)
        assert refused.status == 2
        assert f"{path}: looks like an export of {export.source}" in refused.errors
        assert f"mixpanel-async import {path} --preset {export.preset} --dry-run\n" in refused.errors
    assert emulator.raw_events() == []
    command = shlex.split(refused.errors.rpartition("check what becomes of it: mixpanel-async import ")[2])
    dry = run(*command)
    assert (dry.status, dry.output.splitlines()[-1].split(" valid")[1]) == (0, ", 0 rejected"), dry
    result = run(*command[:-1], host=emulator.url)
    assert result.status == 0, result
    generated = [
        one if "$insert_id" in wanted else {k: v for k, v in one.items() if k != "$insert_id"}
        for one, wanted in zip(stored(emulator), export.events, strict=True)
    ]
    assert generated == [*export.events]


def test_other_options_win_over_the_preset(tmp_path: Path, emulator: Any) -> None:
    record = {
        "name": "A",
        "properties": "{}",
        "timestamp": NAIVE,
        "anonymous_id": "a",
        "user_id": "u",
        "type": "page",
        "kind": "B",
    }
    path = write_csv(tmp_path / "a.csv", [record])
    options = ["--preset", "june", "--map", "event=kind", "--map", "call=type", "--set", "x=1", "--timezone", "+02:00"]
    assert run(path, *options, host=emulator.url).status == 0
    (event,) = stored(emulator)
    assert (event["event"], event["call"], event["x"], event["time"]) == ("B", "page", 1, (NOW - 7200) * 1000)
    refused = run(path, "--preset", "segment", *options[2:], host=emulator.url)
    assert "with different options: --preset" in refused.errors
    assert "--preset applies to events only" in run(path, "--preset", "june", "--kind", "people", "--dry-run").errors
    assert "preset" in read_checkpoint(path)["options"]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("column", "value", "options"),
    [
        ("properties", '{"plan":"pro"}', []),
        ("event_properties", {"plan": "pro"}, []),
        ("properties", '{"plan":"pro"}', ["--map", "event=event"]),
    ],
)
def test_column_of_properties_is_not_imported_as_one_property(
    column: str, value: object, options: list[str], is_stream: bool, tmp_path: Path, emulator: Any
) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "A", "distinct_id": "u", "time": NOW, column: value}])
    with path.open("rb") as file:
        name = f"/proc/self/fd/{file.fileno()}" if is_stream else path
        refused = run(name, *options, host=emulator.url)
    assert refused.status == (1 if is_stream else 2)
    message = f"column '{column}' has several properties; use --spread {column}"
    assert message in (refused.output if is_stream else refused.errors)
    assert emulator.raw_events() == []
    assert run(path, *options, "--spread", column, host=emulator.url).status == 0
    assert stored(emulator)[0]["plan"] == "pro"
    assert run(path, *options, "--type", f"{column}=text", "--restart", host=emulator.url).status == 0
    assert column in stored(emulator)[1]


def test_profile_properties_are_not_imported_as_one_property(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "p.ndjson", [{"distinct_id": "u", "properties": {"plan": "pro"}}])
    refused = run(path, "--kind", "people", host=emulator.url)
    assert (refused.status, "--kind people --spread properties --dry-run" in refused.errors) == (2, True)
    assert run(path, "--kind", "people", "--spread", "properties", host=emulator.url).status == 0
    assert emulator.profile("u") == {"plan": "pro"}


def test_raw_export_needs_no_preset(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(1, plan="pro")])
    assert run(path, host=emulator.url).status == 0
    assert run(path, "--preset", "mixpanel", "--restart", host=emulator.url).status == 0
    first, second = stored(emulator)
    assert first == second


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--map event=Nmae", "--map event=Nmae: no record has a column 'Nmae'; similar: Name"),
        ("--map plan=info.plna", "--map plan=info.plna: no record has a column 'info.plna'; similar: "),
        ("--drop zzz", "--drop zzz: no record has a column 'zzz'; there are: Name, distinct_id, time, info"),
        ("--type sizes=number", "--type sizes=number: no record has a column 'sizes'; similar: size"),
        ("--spread inof", "--spread inof: no record has a column 'inof'; similar: info"),
        ("--spread info.more", "--spread info.more: no record has a column 'info.more'"),
    ],
)
@pytest.mark.parametrize("is_csv", [False, True])
def test_option_that_matches_no_column_is_an_error(
    options: str, message: str, is_csv: bool, tmp_path: Path, emulator: Any
) -> None:
    record = {"Name": "A", "distinct_id": "u", "time": NOW, "info": {"plan": "pro"}, "size": 1}
    path = write_csv(tmp_path / "a.csv", [record]) if is_csv else write(tmp_path / "a.ndjson", [record])
    for mode in ([], ["--dry-run"]):
        result = run(path, "--set", "event=E", *options.split(), *mode, host=emulator.url)
        assert result.status == 2
        assert message in result.errors
    assert emulator.raw_events() == []
    assert read_checkpoint(path)["position"]["line"] == 0


def test_column_that_only_a_late_record_or_an_empty_cell_has_is_no_error(tmp_path: Path, emulator: Any) -> None:
    records = [event(number) for number in range(700)]
    records[650]["properties"].update(rare=1, nested={"a": 1})
    path = write(tmp_path / "a.ndjson", records)
    assert run(path, "--drop", "rare", "--map", "b=nested.a", "--dry-run").status == 0
    table = tmp_path / "b.csv"
    table.write_text(f"event,distinct_id,time,empty,extra\nA,u,{NOW},,\n")
    options = ["--type", "empty=number", "--map", "x=empty", "--spread", "extra"]
    assert run(table, *options, "--dry-run").status == 0
    # Not every file needs to have the column.
    assert run(path, table, *options, "--dry-run").status == 0
