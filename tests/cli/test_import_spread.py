"""Nested columns: `mixpanel-async import --spread`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from import_command import NOW, read_checkpoint, read_rejects, run, sent_properties, write

from mixpanel_async import IdMerge
from mixpanel_async.cli.importing.spread import MAX_ELEMENTS, Spreader, SpreadFault, SpreadRecord
from mixpanel_async.emulator import Emulator

COLUMNS: dict[str, Any] = {"event": "Sold", "distinct_id": "u1", "time": NOW, "$insert_id": "i1"}
NESTED = {"plan": "pro", "size": {"width": 3}, "tags": ["a", "b"]}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Any]:
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


def stored(emulator: Any) -> list[dict[str, Any]]:
    """Return the name and the properties of all events, without those that the client adds."""
    return [{"event": one["event"], **sent_properties(one)} for one in emulator.raw_events()]


def words(text: str) -> list[str]:
    return text.split()


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
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


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist([*rows]), path)
    return path


def write_array(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_bytes(orjson.dumps([*rows], option=orjson.OPT_INDENT_2))
    return path


WRITERS = [
    pytest.param(write_csv, id="csv"),
    pytest.param(write, id="ndjson"),
    pytest.param(write_array, id="array"),
    pytest.param(write_parquet, id="parquet"),
]


@pytest.mark.parametrize("write_file", WRITERS)
@pytest.mark.parametrize("is_text", [False, True])
def test_object_or_json_text_is_spread_into_properties(
    write_file: Any, is_text: bool, tmp_path: Path, emulator: Any
) -> None:
    value = orjson.dumps(NESTED).decode() if is_text else NESTED
    path = write_file(tmp_path / "a.data", [{**COLUMNS, "properties": value}, {**COLUMNS, "properties": None}])
    result = run(path, "--spread", "properties", host=emulator.url)
    assert (result.status, result.output) == (0, "2 events imported, 0 rejected\n"), result
    fields = {**COLUMNS, "time": NOW * 1000}
    assert stored(emulator) == [{**fields, **NESTED}, fields]


@pytest.mark.parametrize("write_file", WRITERS)
def test_list_elements_become_events_with_the_columns_around_them(
    write_file: Any, tmp_path: Path, emulator: Any
) -> None:
    batch = {
        "user": "u1",
        "ms": 5,
        "events": [
            {"kind": "custom", "data": {"name": "A", "ms": NOW * 1000, "id": "1"}},
            {"kind": "screen", "data": {"name": "B", "ms": NOW * 1000 + 1, "id": "2"}},
        ],
    }
    path = write_file(tmp_path / "a.data", [batch])
    options = words("--spread events.data --map event=name --map distinct_id=user --map time=ms --map insert_id=id")
    assert run(path, *options, "--dry-run").output == "2 events valid, 0 rejected\n"
    result = run(path, *options, host=emulator.url)
    assert (result.status, result.output) == (0, "2 events imported, 0 rejected\n"), result
    # The time of the event wins over that of the batch.
    assert stored(emulator) == [
        {"event": "A", "distinct_id": "u1", "time": NOW * 1000, "$insert_id": "1", "kind": "custom"},
        {"event": "B", "distinct_id": "u1", "time": NOW * 1000 + 1, "$insert_id": "2", "kind": "screen"},
    ]
    assert read_checkpoint(path)["counts"]["read"] == 2


def test_names_that_collide_are_kept_apart(tmp_path: Path, emulator: Any) -> None:
    inner = {"name": "Red shoes", "plan": "free", "user": "u1", "kind": "shoe", "time": 1}
    record = {"name": "Viewed", "user": "u1", "ts": NOW, "id": "i", "plan": "pro", "kind": "track", "properties": inner}
    path = write(tmp_path / "a.ndjson", [record])
    options = words("--spread properties --map event=name --map distinct_id=user --map time=ts --map insert_id=id")
    assert run(path, *options, "--drop", "kind", host=emulator.url).status == 0
    assert stored(emulator) == [
        {
            # `--map` and `--drop` refer to the record's own columns, which frees their names.
            "event": "Viewed",
            "name": "Red shoes",
            "distinct_id": "u1",
            "user": "u1",
            "kind": "shoe",
            # The record's own value keeps the name.
            "plan": "pro",
            "properties.plan": "free",
            "time": NOW * 1000,
            "properties.time": 1,
            "$insert_id": "i",
        }
    ]


def test_options_apply_to_spread_names(tmp_path: Path, emulator: Any) -> None:
    inner = {"who": "u1", "when": "2026-05-01 12:00", "price": "1.5", "secret": "x", "$insert_id": "i"}
    path = write_csv(tmp_path / "a.csv", [{"event": "Sold", "extra": inner}])
    options = "--spread extra --map distinct_id=who --map time=when --type price=number --drop secret --timezone UTC"
    assert run(path, *options.split(), host=emulator.url).status == 0
    (event,) = stored(emulator)
    assert (event["distinct_id"], event["price"], "secret" in event) == ("u1", 1.5, False)


@pytest.mark.parametrize(
    ("value", "field", "problem"),
    [
        ("{not json", "properties", "is not valid JSON; correct it, or leave out --spread to keep the text"),
        ("5", "properties", "cannot be spread: it must be an object or a list, not int"),
        (True, "properties", "cannot be spread: it must be an object or a list, not bool"),
        ("[1]", "properties[0]", "cannot be spread: it must be an object or a list, not int"),
        ([None], "properties[0]", "is not an object"),
        ([[{}]], "properties[0]", "is not an object"),
    ],
)
def test_value_that_cannot_be_spread_is_a_fault_of_its_record(
    value: object, field: str, problem: str, tmp_path: Path, emulator: Any
) -> None:
    bad = {**COLUMNS, "properties": value}
    path = write(tmp_path / "a.ndjson", [bad, {**COLUMNS, "properties": {"n": 1}}])
    result = run(path, "--spread", "properties", host=emulator.url)
    assert (result.status, result.output.splitlines()[0]) == (3, "1 event imported, 1 rejected")
    (entry,) = read_rejects(path)
    assert (entry["line"], entry["field"], entry["message"], entry["reason"]) == (1, field, problem, "invalid")
    if not isinstance(value, str) or value != "[1]":
        assert entry["record"] == bad


@pytest.mark.parametrize("empty", [None, "", " ", "null", "{}"])
def test_empty_values_are_no_fault(empty: object, tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [{**COLUMNS, "properties": empty}, {**COLUMNS, "properties": {"n": 1}}])
    assert run(path, "--spread", "properties", host=emulator.url).status == 0
    assert ["properties" in one for one in stored(emulator)] == [False, False]


def test_rejected_element_can_be_imported_again_with_the_same_options(tmp_path: Path, emulator: Any) -> None:
    good, bad = {"data": {"event": "A"}, "time": NOW}, {"data": {"event": "B"}, "time": "soon"}
    path = write(tmp_path / "a.ndjson", [{"distinct_id": "u", "events": [good, bad, good | {"n": 2}], "$insert_id": 1}])
    assert run(path, "--spread", "events.data", host=emulator.url).status == 3
    assert len(emulator.raw_events()) == 2
    (entry,) = read_rejects(path)
    assert entry["record"] == {"distinct_id": "u", "events": [bad], "$insert_id": 1}
    entry["record"]["events"][0]["time"] = NOW
    again = write(tmp_path / "again.ndjson", [entry["record"]])
    assert run(again, "--spread", "events.data", host=emulator.url).status == 0
    assert [one["event"] for one in emulator.raw_events()] == ["A", "A", "B"]


def test_equal_elements_count_once_or_each_by_option(tmp_path: Path, emulator: Any) -> None:
    element = {"event": "A", "time": NOW}
    path = write(tmp_path / "a.ndjson", [{"distinct_id": "u", "events": [element, element]}])
    for option, count in (("content", 1), ("line", 2)):
        emulator.reset()
        assert run(path, "--spread", "events", "--insert-ids", option, "--restart", host=emulator.url).status == 0
        assert len(emulator.events()) == count


def test_profile_columns_are_spread(tmp_path: Path, emulator: Any) -> None:
    path = write_csv(tmp_path / "p.csv", [{"distinct_id": "u", "plan": "pro", "traits": {"city": "Graz", "plan": "x"}}])
    result = run(path, "--kind", "people", "--spread", "traits", host=emulator.url)
    assert result.status == 0, result
    assert emulator.profile("u") == {"plan": "pro", "city": "Graz", "traits.plan": "x"}


def test_column_among_the_properties_of_a_raw_export_is_spread(tmp_path: Path, emulator: Any) -> None:
    base = {"distinct_id": "u", "time": NOW, "plan": "pro"}
    record = {"event": "A", "properties": {**base, "info": '{"n":1,"plan":"x"}', "items": [{"sku": 1}, {"time": "x"}]}}
    path = write(tmp_path / "a.ndjson", [record])
    assert run(path, "--spread", "info", "--spread", "items", host=emulator.url).status == 3
    (entry,) = read_rejects(path)
    assert entry["record"]["properties"]["items"] == [{"time": "x"}]
    (event,) = stored(emulator)
    assert (event["n"], event["plan"], event["info.plan"], event["sku"]) == (1, "pro", "x", 1)


def test_number_of_elements_is_bounded() -> None:
    row = {"events": [{"n": number} for number in range(MAX_ELEMENTS + 5)]}
    *records, fault = Spreader(["events"]).records(row)
    assert len(records) == MAX_ELEMENTS
    assert isinstance(fault, SpreadFault)
    assert fault.problem == "has more than 10,000 nested records; split it"
    assert [one["n"] for one in fault.original()["events"]] == [*range(MAX_ELEMENTS, MAX_ELEMENTS + 5)]


def test_changed_option_does_not_fit_the_checkpoint(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [{**COLUMNS, "properties": {"a": 1}}])
    assert run(path, host=emulator.url).status == 0
    assert "spread" not in read_checkpoint(path)["options"]
    result = run(path, "--spread", "properties", host=emulator.url)
    assert (result.status, "with different options: --spread" in result.errors) == (2, True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda nested: st.lists(nested, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), nested, max_size=3),
    max_leaves=12,
)


@given(
    row=st.dictionaries(st.sampled_from(["a", "b", "a.b"]), json_values, max_size=3),
    paths=st.lists(st.sampled_from(["a", "a.b", "b", "b.a", "a.b.c"]), max_size=2),
)
def test_no_value_breaks_spreading_and_elements_stay_apart(row: dict[str, Any], paths: list[str]) -> None:
    before = orjson.dumps(row)
    for record in Spreader(paths).records(row):
        assert isinstance(record, (SpreadRecord, SpreadFault))
        # A record that is isolated and spread again is the same.
        if isinstance(record, SpreadRecord) and len(paths) == 1:
            (again,) = Spreader(paths).records(record.original())
            assert isinstance(again, SpreadRecord)
            assert (again.own, again.inner) == (record.own, record.inner)
    assert orjson.dumps(row) == before
