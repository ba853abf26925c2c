"""Column options of `mixpanel-async import`: mapping, constants, types, operations and times."""

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_command import NOW, event, read_rejects, run, sent_properties, write

from mixpanel_async import IdMerge, ValidationError
from mixpanel_async.cli.importing.column_mapping import ColumnMapping
from mixpanel_async.cli.importing.option_values import ImportKind
from mixpanel_async.cli.importing.time_parsing import TimeParser, parse_zone
from mixpanel_async.emulator import Emulator

UTC = timezone.utc
VIENNA = "Europe/Vienna"


@pytest.fixture(scope="module")
def emulator() -> Any:
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


def properties(emulator: Emulator) -> list[dict[str, Any]]:
    """Return the properties of all events, without those that the client adds."""
    return [sent_properties(one) for one in emulator.raw_events()]


def test_columns_are_mapped_set_dropped_and_typed(tmp_path: Path, emulator: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        "user,when,key,Plan Type,size,paid,since,tags,zip,internal\n"
        f'17,{NOW},k-1,pro,1.50,yes,2024-05-01 12:00,"[1,2]",00123,x\n'
    )
    options = (
        "--map distinct_id=user --map time=when --map insert_id=key --map plan --map paying=paid --set event=2024 "
        "--set source=backfill --set batch=7 --drop internal --type size=number --type paid=boolean --type since=time "
        f"--type tags=json --timezone {VIENNA}"
    ).split()
    options[options.index("plan")] = "plan=Plan Type"
    result = run(path, *options, host=emulator.url)
    assert (result.status, result.output) == (0, "1 event imported, 0 rejected\n"), result
    assert emulator.raw_events()[0]["event"] == "2024"
    assert properties(emulator) == [
        {
            "distinct_id": "17",
            "time": NOW * 1000,
            "$insert_id": "k-1",
            "plan": "pro",
            "size": 1.5,
            "paying": True,
            "since": "2024-05-01T10:00:00",
            "tags": [1, 2],
            "zip": "00123",
            "source": "backfill",
            "batch": 7,
        }
    ]


def test_nested_columns_and_one_column_for_two_properties(tmp_path: Path, emulator: Any) -> None:
    record = {
        "type": "Sold",
        "who": {"mail": "a@b.c", "n": 3},
        "timestamp": "2024-05-01T12:00:00.5+02:00",
        "$insert_id": "i",
    }
    path = write(tmp_path / "a.ndjson", [record])
    options = [
        "--map",
        "event=type",
        "--map",
        "distinct_id=who.mail",
        "--map",
        "$email=who.mail",
        "--map",
        "time=timestamp",
    ]
    assert run(path, *options, host=emulator.url).status == 0
    assert properties(emulator) == [
        {
            "distinct_id": "a@b.c",
            "$email": "a@b.c",
            "who": {"mail": "a@b.c", "n": 3},
            "time": 1714557600500,
            "$insert_id": "i",
        }
    ]


@pytest.mark.parametrize("is_dry_run", [False, True])
def test_unmatched_event_mapping_of_a_stream_is_reported(is_dry_run: bool, tmp_path: Path, emulator: Any) -> None:
    record = {"type": "Sold", "user": {"id": "u"}, "ts": NOW}
    # A record without the column is reported too. A record with the field's own name needs no column.
    path = write(tmp_path / "a.ndjson", [record, {**record, "uid": "u"}, {**record, "uid": "u", "event": "Own"}])
    mappings = ("event=name", "distinct_id=uid", "time=ts", "plan=Plan", "size=user.size")
    options = [word for mapping in mappings for word in ("--map", mapping)]
    rejects = tmp_path / "a.rejects"
    # The columns of other files are known before anything is sent.
    with path.open("rb") as file:
        stream = f"/proc/self/fd/{file.fileno()}"
        mode = ["--dry-run"] if is_dry_run else []
        result = run(stream, *options, "--rejects", rejects, *mode, host=emulator.url)
    assert result.status == 3
    assert [(one["line"], one["field"], one["message"]) for one in read_rejects(rejects)] == [
        (1, "event", "is missing: this record has no column for --map event=name"),
        (2, "event", "is missing: this record has no column for --map event=name"),
    ]
    assert result.output.splitlines()[0].startswith("1 event")
    lines = [line for line in result.output.splitlines() if line.startswith("--map")]
    assert lines == [
        "--map event=name: no record has this column",
        "--map plan=Plan: no record has this column",
        "--map size=user.size: no record has this column",
    ]


def test_profile_without_a_mapped_column_is_reported(tmp_path: Path, emulator: Any) -> None:
    records = [{"id": "u", "plan": "pro"}, {"$distinct_id": "u", "plan": "pro"}, {"uid": "v", "plan": "free"}]
    path = write(tmp_path / "p.ndjson", records)
    result = run(path, "--kind", "people", "--map", "distinct_id=uid", host=emulator.url)
    assert result.status == 3
    assert [(one["line"], one["message"]) for one in read_rejects(path)] == [
        (1, "is missing: this record has no column for --map distinct_id=uid")
    ]
    assert emulator.profile("u") == {"plan": "pro"}
    # The rerun reads no record, so it checks no option.
    assert run(path, "--kind", "people", "--map", "distinct_id=uid", host=emulator.url).status == 3


def test_types_are_inferred_on_request_but_not_for_ids(tmp_path: Path, emulator: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        f"event,distinct_id,time,insert_id,a,b,c,d,e,f\n1,22,{NOW},333,44,-0.5,TRUE,007,99999999999999999999,1e400\n"
    )
    assert run(path, "--infer-types", "--type", "a=text", host=emulator.url).status == 3
    (entry,) = read_rejects(path)
    assert (entry["field"], entry["message"]) == ("properties.f", "must be a finite number")
    assert run(path, "--infer-types", "--drop", "f", "--restart", host=emulator.url).status == 0
    (found,) = properties(emulator)
    assert [found[name] for name in ("distinct_id", "$insert_id", *"abcde")] == [
        "22", "333", 44, -0.5, True, "007", "99999999999999999999",
    ]  # fmt: skip


def test_equal_events_count_once_by_content_or_each_by_line(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(1), event(1), event(1, other=True)])
    assert run(path, host=emulator.url).status == 0
    assert (len(emulator.raw_events()), len(emulator.events())) == (3, 2)
    emulator.reset()
    for _ in range(2):
        # The id depends on the content of the file and not on its name, so a copy has the same ids.
        assert run(path, "--insert-ids", "line", "--restart", host=emulator.url).status == 0
        path = path.rename(tmp_path / "b.ndjson")
    assert (len(emulator.raw_events()), len(emulator.events())) == (6, 3)


def test_insert_id_does_not_depend_on_key_order_or_form(tmp_path: Path, emulator: Any) -> None:
    one = {"event": "e", "properties": {"time": NOW, "distinct_id": "u", "b": 1, "a": {"y": 1, "x": 2}}}
    other = {"event": "e", "a": {"x": 2, "y": 1}, "b": 1, "distinct_id": "u", "time": NOW}
    assert run(write(tmp_path / "a.ndjson", [one, other]), host=emulator.url).status == 0
    assert (len(emulator.raw_events()), len(emulator.events())) == (2, 1)


def test_each_form_of_profile_is_imported(tmp_path: Path, emulator: Any) -> None:
    records = [
        {"$distinct_id": "a", "$set": {"n": 1}, "$token": "another"},
        {"$distinct_id": "a", "$add": {"n": 2}},
        {"$distinct_id": "b", "$set": {}, "$time": NOW},
        {"$distinct_id": 5, "$properties": {"$name": "Five", "plan": "pro"}},
        {"distinct_id": "c", "$name": "Cee", "$ip": "0", "since": "2024-01-01"},
        {"$distinct_id": "d", "$append": {"list": 1}},
        {"$distinct_id": "d", "$frobnicate": 1},
        {"$distinct_id": "", "$set": {}},
        {"name": "no id"},
    ]
    path = write(tmp_path / "people.ndjson", records)
    result = run(path, "--kind", "people", host=emulator.url)
    assert result.output.splitlines()[0] == "7 people imported, 2 rejected", result
    assert emulator.profile("a") == {"n": 3}
    assert "$last_seen" in (emulator.profile("b") or {})
    assert emulator.profile("5") == {"$name": "Five", "plan": "pro"}
    assert emulator.profile("c") == {"$name": "Cee", "since": "2024-01-01"}
    assert emulator.profile("d")["list"] == [1]
    assert [entry["line"] for entry in read_rejects(path)] == [8, 9]


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("set", {"n": 5, "old": 1}),
        ("set_once", {"n": 1, "old": 1}),
        ("add", {"n": 6, "old": 1}),
        ("unset", {"old": 1}),
        ("delete", None),
    ],
)
def test_operation_applies_to_flat_profiles(operation: str, expected: object, tmp_path: Path, emulator: Any) -> None:
    assert (
        run(
            write(tmp_path / "1.ndjson", [{"distinct_id": "u", "n": 1, "old": 1}]),
            "--kind",
            "people",
            host=emulator.url,
        ).status
        == 0
    )
    path = write(tmp_path / "2.ndjson", [{"id": "u", "n": 5}])
    options = ["--kind", "people", "--operation", operation, "--map", "distinct_id=id"]
    assert run(path, *options, host=emulator.url).status == 0
    assert emulator.profile("u") == expected


def test_groups_are_imported(tmp_path: Path, emulator: Any) -> None:
    path = tmp_path / "groups.csv"
    path.write_text("account,name,seats\nacme,Acme,12\n,No id,1\n")
    options = ["--kind", "groups", "--set", "group_key=company", "--map", "group_id=account", "--type", "seats=number"]
    result = run(path, *options, host=emulator.url)
    assert (result.status, result.output.splitlines()[0]) == (3, "1 group imported, 1 rejected"), result
    assert emulator.group("company", "acme") == {"name": "Acme", "seats": 12}
    assert read_rejects(path)[0]["field"] == "$group_id"


def test_records_rejected_by_mixpanel_are_kept_with_their_line_and_can_be_reimported(
    tmp_path: Path, emulator: Any
) -> None:
    path = write(tmp_path / "a.ndjson", [{"action": f"e{n}", "distinct_id": "u", "time": NOW} for n in range(4_000)])
    emulator.break_next("partial", times=3)
    result = run(path, "--map", "event=action", host=emulator.url)
    assert result.status == 3, result
    refused = read_rejects(path)
    assert result.output.splitlines()[0] == f"{4_000 - len(refused):,} events imported, {len(refused):,} rejected"
    assert len(refused) >= 1
    for entry in refused:
        assert entry["reason"] == "rejected"
        assert entry["record"]["event"] == f"e{entry['line'] - 1}"
        assert "token" not in entry["record"]["properties"]
        assert entry["message"]
    again = write(tmp_path / "again.ndjson", [entry["record"] for entry in refused])
    assert run(again, "--map", "event=action", host=emulator.url).status == 0
    assert len(emulator.raw_events()) == 4_000


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--map", "event"], "--map must have the form NAME=COLUMN"),
        (["--map", "a=b", "--map", "a=c"], "--map is given twice for a"),
        (["--type", "a=decimal"], "--type a must be one of text, number, boolean, time, json"),
        (["--time-format", "stardate"], "must be one of auto, iso, seconds"),
        (["--timezone", "Mars/Phobos"], "--timezone: unknown time zone 'Mars/Phobos'"),
        (["--delimiter", "::"], "--delimiter must be one character"),
        (["--encoding", "utf-16"], "--encoding must be one that extends ASCII"),
        (["--encoding", "klingon"], "--encoding must be one"),
        (["--api-host", "ftp://x"], "api_host must start with https://"),
        (["--service-account", "u"], "a service account needs"),
        (["--region", "moon"], "region must be one of"),
    ],
)
def test_invalid_options_are_reported_in_one_line(options: list[str], problem: str, tmp_path: Path) -> None:
    result = run(write(tmp_path / "a.ndjson", [event(1)]), "--token", "t", *options)
    assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1), result
    assert problem in result.errors


def test_token_is_required_except_for_a_dry_run(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(1)])
    result = run(path)
    assert (result.status, result.errors) == (2, "mixpanel-async import: MIXPANEL_TOKEN is not set\n")
    assert run(path, "--dry-run").status == 0


# Time parsing.


@given(st.datetimes(datetime(1971, 1, 2), datetime(2026, 1, 1)), st.integers(-14 * 4, 14 * 4))
def test_each_time_format_gives_the_same_time(naive: datetime, quarters: int) -> None:
    naive = naive.replace(microsecond=naive.microsecond // 1000 * 1000)
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=15 * quarters)))
    milliseconds = round(moment.timestamp() * 1000)
    offset = moment.strftime("%z")
    forms: list[tuple[TimeParser, object]] = [
        (TimeParser(), moment.isoformat()),
        (TimeParser(), moment.strftime("%Y-%m-%d %H:%M:%S.%f") + offset),
        (TimeParser("iso"), moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")),
        (TimeParser(zone=parse_zone(f"{offset[:3]}:{offset[3:]}")), naive.isoformat()),
        (TimeParser(zone=moment.tzinfo), naive),
        (TimeParser("milliseconds"), milliseconds),
        (TimeParser("milliseconds"), str(milliseconds)),
        (TimeParser("seconds"), Decimal(milliseconds) / 1000),
        (TimeParser("microseconds"), milliseconds * 1000),
        (TimeParser("nanoseconds"), str(milliseconds * 1_000_000)),
        (TimeParser("%d.%m.%Y %H:%M:%S.%f %z"), moment.strftime("%d.%m.%Y %H:%M:%S.%f %z")),
    ]
    for parser, text in forms:
        parsed = parser.parse(text, "time")
        seconds = parsed.timestamp() if isinstance(parsed, datetime) else parsed
        assert round(seconds * 1000) == milliseconds, text


@pytest.mark.parametrize(
    ("format", "value", "problem"),
    [
        ("auto", "2024-05-01T12:00:00", "no time zone"),
        ("auto", date(2024, 5, 1), "no time zone"),
        ("auto", "yesterday", "ISO 8601"),
        ("auto", "2024-13-01T00:00:00Z", "ISO 8601"),
        ("auto", "nan", "out of range"),
        ("auto", "1e999999999", "out of range"),
        ("auto", [1], "must be a time, not list"),
        ("iso", 1_700_000_000, "--time-format iso expects text"),
        ("iso", "1700000000", "ISO 8601"),
        ("seconds", "2024-05-01", "is not a number of seconds"),
        ("%d.%m.%Y", "2024-05-01", "does not match --time-format '%d.%m.%Y'"),
        ("%d.%m.%Y", "01.05.2024", "no time zone"),
    ],
)
def test_invalid_time_is_rejected(format: str, value: object, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TimeParser(format).parse(value, "time")


def test_date_is_midnight_in_the_time_zone() -> None:
    assert TimeParser(zone=parse_zone(VIENNA)).parse("2024-05-01", "time") == datetime(2024, 4, 30, 22, tzinfo=UTC)


def test_mapping_does_not_modify_the_record() -> None:
    record = {"a": 1, "b": {"c": 2}}
    mapping = ColumnMapping(kind=ImportKind.EVENTS, columns={"x": "a"}, constants={"y": 1}, dropped=frozenset({"b"}))
    assert mapping.apply(record) == {"x": 1, "y": 1}
    assert record == {"a": 1, "b": {"c": 2}}
