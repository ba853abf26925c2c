"""Input files of `mixpanel-async import`: formats, compression, invalid lines and damaged files."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from import_command import MAIN, NOW, event, finish, read_checkpoint, read_rejects, run, start, write

from mixpanel_async.cli.importing.inputs import find_inputs
from mixpanel_async.cli.importing.option_values import Format
from mixpanel_async.cli.importing.record_source import MAX_RECORD_BYTES, Position, UnreadableRow
from mixpanel_async.cli.importing.source_factory import ReadOptions, open_source
from mixpanel_async.emulator import Emulator

try:
    from compression import zstd  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from backports import zstd

# Child processes start slowly on a busy machine.
pytestmark = pytest.mark.timeout(90)


def ndjson(records: list[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(record) + b"\r\n" for record in records)


def pretty(records: list[dict[str, Any]]) -> bytes:
    return orjson.dumps(records, option=orjson.OPT_INDENT_2)


def flatten(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"event": one["event"], **one["properties"]} for one in records]


def csv(records: list[dict[str, Any]]) -> bytes:
    rows = [
        ",".join(flatten(records)[0]),
        *(",".join(f'"{cell}"' for cell in row.values()) for row in flatten(records)),
    ]
    return "\n".join(rows).encode()


FILES: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.ndjson": ndjson,
    "a.jsonl": lambda records: b"\xef\xbb\xbf" + ndjson(records),
    "a.json": pretty,
    "lines.json": ndjson,
    "compact.json": orjson.dumps,
    "concatenated.json": lambda records: b"\n".join(orjson.dumps(one, option=orjson.OPT_INDENT_2) for one in records),
    "without-a-name": ndjson,
    "a.csv": csv,
    "bom.csv": lambda records: b"\xef\xbb\xbf" + csv(records),
    "a.tsv": lambda records: csv(records).replace(b",", b"\t"),
    "a.ndjson.gz": lambda records: gzip.compress(ndjson(records)),
    "members.ndjson.gz": lambda records: gzip.compress(ndjson(records[:2])) + gzip.compress(ndjson(records[2:])),
    "a.csv.gz": lambda records: gzip.compress(csv(records)),
    "a.json.zst": lambda records: zstd.compress(pretty(records)),
    "misnamed.ndjson": lambda records: zstd.compress(ndjson(records)),
}


@pytest.fixture(scope="module")
def emulator() -> Any:
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


def sent_properties(emulator: Emulator) -> list[dict[str, Any]]:
    """Return the properties of all events by time, without those that the client adds."""
    added = {"token", "mp_lib", "$lib_version", "$import", "$insert_id", "$user_id"}
    events = sorted(emulator.raw_events(), key=lambda one: one["properties"]["time"])
    return [
        {key: value for key, value in one["properties"].items() if key not in added and not key.startswith("$mp_")}
        for one in events
    ]


@pytest.mark.parametrize("name", FILES)
def test_each_format_and_compression_is_imported(name: str, tmp_path: Path, emulator: Any) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name]([event(number, size="XL") for number in range(5)]))
    result = run(path, host=emulator.url)
    assert (result.status, result.output) == (0, "5 events imported, 0 rejected\n"), result
    assert [(one["distinct_id"], one["time"], one["size"]) for one in sent_properties(emulator)] == [
        (f"u{number}", (NOW + number) * 1000, "XL") for number in range(5)
    ]


def test_complete_file_is_imported_again_only_with_restart(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(number) for number in range(5)])
    assert run(path, host=emulator.url).status == 0
    again = run(path, host=emulator.url)
    assert (again.status, again.output) == (0, "5 events imported, 0 rejected (5 imported before)\n")
    assert "is already imported; use --restart to import it again" in again.errors
    assert len(emulator.raw_events()) == 5
    # Equal content has equal insert ids.
    assert run(path, "--restart", host=emulator.url).status == 0
    assert (len(emulator.raw_events()), len(emulator.events())) == (10, 5)


def test_rerun_reports_earlier_rejects_again(tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(0), b"{", event(1)])
    assert run(path, host=emulator.url).status == 3
    again = run(path, host=emulator.url)
    assert again.status == 3
    assert again.output == (
        f"2 events imported, 1 rejected (2 imported and 1 rejected before)\nrejected records: {path}.import-rejects\n"
    )
    assert f"{path} is already imported except 1 record; use --restart to import it again" in again.errors
    # A second file without rejects does not change the exit status.
    both = run(path, write(tmp_path / "b.ndjson", [event(2)]), host=emulator.url)
    assert (both.status, both.output.splitlines()[0]) == (
        3,
        "3 events imported, 1 rejected (2 imported and 1 rejected before)",
    )


def test_parquet_types_are_converted(tmp_path: Path, emulator: Any) -> None:
    moment = datetime.fromtimestamp(NOW, timezone.utc)
    table = pa.table(
        {
            "event": ["Sold"] * 5_000,
            "distinct_id": pa.array(range(1, 5_001), pa.int64()),
            "time": pa.array([moment] * 5_000, pa.timestamp("ns", "UTC")),
            "amount": [1.5, None] * 2_500,
            "number": range(5_000),
            "tags": [["a", "b"]] * 5_000,
        }
    )
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=1_700)
    result = run(path, host=emulator.url)
    assert (result.status, result.output) == (0, "5,000 events imported, 0 rejected\n"), result
    events = sorted(sent_properties(emulator), key=lambda one: int(one["distinct_id"]))
    assert events[0] == {"distinct_id": "1", "time": NOW * 1000, "amount": 1.5, "number": 0, "tags": ["a", "b"]}
    assert "amount" not in events[1]
    with path.open("rb") as file:
        process = start("-", host=emulator.url, stdin=file)
        refused = finish(process)
    # A redirected file is seekable, but its name is unknown, and pyarrow opens files by name.
    assert refused.status == 1
    assert "save it to a file first" in refused.output


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_standard_input_is_imported(pack: Callable[[bytes], bytes], emulator: Any, tmp_path: Path) -> None:
    data = pack(ndjson([event(number) for number in range(5)]) + b"{\n")
    process = start("-", "--state-dir", tmp_path, host=emulator.url, stdin=subprocess.PIPE)
    process.stdin.buffer.write(data)
    result = finish(process)
    # An invalid line costs only that line, as in a named file.
    assert (result.status, result.output.splitlines()[0]) == (3, "5 events imported, 1 rejected"), result
    assert "100%" not in result.errors
    assert "5 imported, 1 rejected" in result.errors


def test_patterns_find_each_file_once_and_skip_files_of_earlier_imports(tmp_path: Path, emulator: Any) -> None:
    for name in ("b.ndjson", "a.ndjson", "c.ndjson"):
        write(tmp_path / name, [event(ord(name[0]) + number, file=name) for number in range(3)])
    write(tmp_path / "c.ndjson", [event(0, file="c"), b"{"])
    result = run(tmp_path / "*.ndjson", tmp_path / "a.ndjson", host=emulator.url)
    assert (result.status, result.output.splitlines()[0]) == (3, "7 events imported, 1 rejected"), result
    assert read_rejects(tmp_path / "c.ndjson")[0]["line"] == 2
    again = run(tmp_path / "*", host=emulator.url)
    assert again.status == 3
    assert again.errors.count("it was written by an earlier import") == 4
    assert len(emulator.raw_events()) == 7
    write(tmp_path / "d.ndjson", [event(9)])
    more = run(*tmp_path.iterdir(), host=emulator.url)
    assert more.output.startswith("8 events imported, 1 rejected (7 imported and 1 rejected before)")
    assert len(emulator.raw_events()) == 8


INVALID_LINES: list[tuple[bytes, str]] = [
    (b"{", "is not valid JSON"),
    (b'{"event": NaN}', "is not valid JSON"),
    (b'{"event": "\xff"}', "is not valid JSON"),
    (b"[1]", "is not a JSON object"),
    (b'"text"', "is not a JSON object"),
    (b"\x00", "is not valid JSON"),
    (b'{"properties": {"distinct_id": "u", "time": 1700000000}}', "event: must be a string"),
    (b'{"event": "e", "properties": {"distinct_id": "u"}}', "time: is missing"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": null}}', "time: is missing"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": "soon"}}', "time: is not a valid ISO 8601 time"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": "2024-05-01 12:00"}}', "time: has no time zone"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": true}}', "time: must be a time, not bool"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": 17e20}}', "must be in seconds or milliseconds"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": 12}}', "before 1971"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": 9999999999}}', "in the future"),
    (b'{"event": "e", "properties": {"time": 1700000000}}', "distinct_id: must be a string"),
    (b'{"event": "e", "properties": {"distinct_id": 1.5, "time": 1700000000}}', "distinct_id"),
    (b'{"event": "e", "properties": {"distinct_id": "null", "time": 1700000000}}', "placeholder"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": 1700000000, "$insert_id": "a b"}}', "insert_id"),
    (b'{"event": "e", "properties": {"distinct_id": "u", "time": 1700000000, "$insert_id": [1]}}', "insert_id"),
    (b'{"event": "e", "properties": [1]}', "time: is missing"),
    (b'{"event": "e", "properties": null, "time": 1700000000, "distinct_id": {}}', "distinct_id"),
    (b'{"event": "e", "x": "' + b"y" * (MAX_RECORD_BYTES + 10) + b'"}', "is longer than"),
    (
        b'{"event": "e", "properties": {"distinct_id": "u", "time": 1700000000, "x": "' + b"y" * 1_000_000 + b'"}}',
        "Mixpanel accepts less than 1000000",
    ),
]


@pytest.mark.parametrize("is_dry_run", [True, False])
def test_invalid_line_is_rejected_with_its_problem_and_other_lines_are_imported(
    is_dry_run: bool, tmp_path: Path, emulator: Any
) -> None:
    lines: list[object] = []
    for line, _ in INVALID_LINES:
        lines += [event(len(lines), file="f"), line, b"", b"   \r"]
    path = write(tmp_path / "invalid.ndjson", lines)
    written = tmp_path / "all.rejects"
    result = run(path, "--rejects", written, *(["--dry-run"] if is_dry_run else []), host=emulator.url)
    verb = "valid" if is_dry_run else "imported"
    assert (result.status, result.output.splitlines()[0]) == (
        3,
        f"{len(INVALID_LINES)} events {verb}, {len(INVALID_LINES)} rejected",
    )
    for number, (entry, (line, problem)) in enumerate(zip(read_rejects(written), INVALID_LINES, strict=True)):
        message = f"{entry['field']}: {entry['message']}" if entry["field"] else entry["message"]
        assert problem in message, (line[:80], message)
        assert (entry["file"], entry["line"]) == (str(path), number * 4 + 2)
        assert entry["reason"] == ("unreadable" if "is not valid" in problem or "longer" in problem else "invalid")
    assert len(emulator.raw_events()) == (0 if is_dry_run else len(INVALID_LINES))
    assert not path.with_name("invalid.ndjson.import-rejects").exists()
    assert path.with_name("invalid.ndjson.import-state").exists() != is_dry_run


def test_dry_run_lists_the_first_invalid_lines_and_counts_the_others(tmp_path: Path) -> None:
    nameless = {"properties": {"distinct_id": "u", "time": NOW}}
    good = write(tmp_path / "a.ndjson", [event(0)])
    path = write(tmp_path / "b.ndjson", [event(0), b"[1]", nameless, b"[2]"])
    first = [
        f"{path}:2: is not a JSON object",
        f"{path}:3: event: must be a string, not NoneType",
        f"{path}:4: is not a JSON object",
    ]
    assert run(good, path, "--dry-run").output.splitlines() == ["2 events valid, 3 rejected", *first]
    write(path, [event(0), b"[1]", nameless, b"[2]", b"[3]", b"[4]", b"[5]", nameless, b"[6]"])
    result = run(good, path, "--dry-run")
    assert result.status == 3
    assert result.output.splitlines() == [
        "2 events valid, 8 rejected",
        *first,
        f"{path}:5: is not a JSON object",
        f"{path}:6: is not a JSON object",
        "and 3 more:",
        "         2  is not a JSON object",
        "         1  event: must be a string, not NoneType",
    ]


def test_numeric_ids_become_text_and_export_only_properties_are_removed(tmp_path: Path, emulator: Any) -> None:
    added = {"$import": True, "$mp_api_endpoint": "x", "mp_processing_time_ms": 1, "token": "another-project"}
    records = [
        event(0, **added, distinct_id=17, **{"$insert_id": 5, "$user_id": 17, "$device_id": 3}),
        {"event": "e", "properties": {"$device_id": "d", "time": NOW + 1}, "extra": {"a": 1}},
        {"event": "e", "properties": {"$user_id": "u", "time": (NOW + 2) * 1000, "mp_lib": "web"}},
        {"event": "e", "distinct_id": "", "time": NOW + 3, "insert_id": "mine", "plan": "pro"},
    ]
    assert run(write(tmp_path / "a.ndjson", records), host=emulator.url).status == 0
    first, second, third, fourth = (
        one["properties"] for one in sorted(emulator.raw_events(), key=lambda one: one["properties"]["time"])
    )
    assert (first["$insert_id"], first["$user_id"], first["$device_id"]) == ("5", "17", "3")
    assert "another-project" not in str(emulator.raw_events())
    assert not {"$mp_api_endpoint", "mp_processing_time_ms"} & first.keys()
    assert (second["$device_id"], second["extra"]) == ("d", {"a": 1})
    assert (third["$user_id"], third["mp_lib"]) == ("u", "web")
    assert (fourth["distinct_id"], fourth["$insert_id"], fourth["plan"]) == ("", "mine", "pro")


# Name, content, number of good records (None: many), and words of the error.
DAMAGED = [
    ("cut.ndjson.gz", gzip.compress(ndjson([event(n) for n in range(9_000)]))[:-20_000], None, "end-of-stream"),
    ("crc.ndjson.gz", gzip.compress(ndjson([event(0), event(1)]))[:-8] + b"\0" * 8, 2, "CRC"),
    ("tail.ndjson.gz", gzip.compress(ndjson([event(0), event(1)])) + b"junk", 2, "gzipped"),
    ("cut.ndjson.zst", zstd.compress(ndjson([event(n) for n in range(2)]))[:-3], None, "end-of-stream"),
    ("open.json", b'[{"event":"e","distinct_id":"u","time":1700000000},', 1, "not closed"),
    ("open2.json", b'[{"event":"e","distinct_id":"u","time":1700000000}', 1, "not closed"),
    ("comma.json", b'[{"event":"e","distinct_id":"u","time":1700000000} {}]', 1, "comma"),
    ("after.json", b'[{"event":"e","distinct_id":"u","time":1700000000}] x', 1, "after the end of the array"),
    ("bad.json", b'[{"event":"e","distinct_id":"u","time":1700000000}, {"a" 1}]', 1, "not valid JSON"),
    ("cut.json", b'{"event":"e","distinct_id":"u",\n"time":1700000000} {"event":', 1, "not valid JSON"),
    ("quote.csv", b'event,distinct_id,time\ne,u,1700000000\ne,"u,1700000000\ne,u,1', 1, "quote is not closed"),
    ("empty.csv", b"", 0, "no header"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "good", "problem"), DAMAGED, ids=[name for name, *_ in DAMAGED])
def test_damaged_file_is_imported_up_to_the_damage(
    name: str, data: bytes, good: int | None, problem: str, tmp_path: Path, emulator: Any
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    fine = write(tmp_path / "fine.ndjson", [event(0, fine=True)])
    result = run(path, fine, host=emulator.url)
    if result.status == 2:
        # The damage was found before anything was sent.
        assert good == 0 or name == "cut.ndjson.zst"
        assert problem in result.errors, result
        return
    assert result.status == 1
    assert problem in result.output, result
    events = sent_properties(emulator)
    assert sum("fine" in one for one in events) == 1
    if good is None:
        assert len(events) > 100
    else:
        assert len(events) == good + 1
    assert read_checkpoint(fine)["complete"]
    assert not read_checkpoint(path)["complete"]
    again = run(path, fine, host=emulator.url)
    assert (again.status, len(emulator.raw_events())) == (1, len(events))


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("a.ndjson", "{}".encode("utf-16"), "UTF-16"),
        ("a.csv", b"event,time,event\n", "'event' occurs twice"),
        ("a.csv", b"event;time\n", "--delimiter"),
        ("a.parquet", b"PAR1nothingPAR1", "cannot be read as Parquet"),
        ("a.txt", b"event\n", "use --format csv"),
        ("a.ndjson.gz", b"\x1f\x8bnothing", "cannot read"),
    ],
)
def test_unreadable_file_is_refused_before_anything_is_sent(
    name: str, data: bytes, problem: str, tmp_path: Path, emulator: Any
) -> None:
    (tmp_path / name).write_bytes(data)
    fine = write(tmp_path / "0.ndjson", [event(0)])
    result = run(fine, tmp_path / name, host=emulator.url)
    assert (result.status, result.output) == (2, "")
    assert problem in result.errors
    assert emulator.requests() == []


@pytest.mark.parametrize("name", ["missing.ndjson", "nothing-*.ndjson", "."])
def test_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    result = run(tmp_path / name, host="http://127.0.0.1:1")
    assert (result.status, result.output, result.errors.count("\n")) == (2, "", 1)


def test_csv_rows_with_empty_quoted_missing_and_extra_cells(tmp_path: Path, emulator: Any) -> None:
    rows = [
        "event,distinct_id,time,,note,size",
        f'e,u,{NOW},index,"two\nlines, ""quoted""",',
        f"e,u,{NOW + 1},index,short",
        f"e,u,{NOW + 2},index,a,b,c",
        f'e,u,{NOW + 3},index,"a"b,c',
        "",
        f"e,u,{NOW + 4},index,\xe9,1",
    ]
    path = tmp_path / "a.csv"
    path.write_bytes("\r\n".join(rows).encode("latin-1"))
    result = run(path, host=emulator.url)
    assert (result.status, result.output.splitlines()[0]) == (3, "1 event imported, 4 rejected"), result
    assert [(entry["line"], entry["message"][:30]) for entry in read_rejects(path)] == [
        (4, "has 5 cells, but the header ha"),
        (5, "has 7 cells, but the header ha"),
        (6, "is not valid CSV: ',' expected"),
        (8, "is not valid in the file's enc"),
    ]
    assert sent_properties(emulator)[0]["note"] == 'two\nlines, "quoted"'
    assert "size" not in sent_properties(emulator)[0]
    assert run(path, "--restart", "--encoding", "latin-1", host=emulator.url).status == 3
    assert sent_properties(emulator)[-1]["note"] == "é"


def test_unreadable_csv_rows_are_kept_verbatim_and_can_be_corrected(tmp_path: Path, emulator: Any) -> None:
    header, good = "event;distinct_id;time;note", f'e;u;{NOW};"a; ""b"""'
    bad = [
        f"e;u;{NOW + 1}",
        f'e;u;{NOW + 2};"one; two\r\nthree";four',
        f'e;u;{NOW + 3};"a"b',
        f"e;u;{NOW + 4};{'x' * 9_000};",
    ]
    path = tmp_path / "a.csv"
    path.write_bytes("\r\n".join([header, bad[0], good, *bad[1:], ""]).encode())
    options = ["--delimiter", ";"]
    assert run(path, *options, host=emulator.url).status == 3
    found = read_rejects(path)
    assert [(one["line"], one["reason"], one["record"]) for one in found] == [
        (2, "unreadable", bad[0]),
        (4, "unreadable", bad[1]),
        (6, "unreadable", bad[2]),
        (7, "unreadable", bad[3]),
    ]
    # As docs/guides/importing.md says: below the header the rows are CSV again. They are rejected until corrected.
    texts = [one["record"] for one in found]
    again = tmp_path / "again.csv"
    again.write_text("\n".join([header, *texts, ""]), newline="")
    assert run(again, *options, host=emulator.url).output.startswith("0 events imported, 4 rejected")
    corrected = [texts[0] + ";note", texts[1].replace(";four", ""), texts[2].replace('"', ""), texts[3][:-1]]
    again.write_text("\n".join([header, *corrected, ""]), newline="")
    assert run(again, *options, "--restart", host=emulator.url).status == 0
    assert [one["note"] for one in sent_properties(emulator)] == [
        'a; "b"',
        "note",
        "one; two\r\nthree",
        "ab",
        "x" * 255,
    ]


def test_long_invalid_line_is_kept_verbatim(tmp_path: Path, emulator: Any) -> None:
    line = orjson.dumps(event(0, note="x" * 5_000))[:-1]
    path = write(tmp_path / "a.ndjson", [line])
    assert run(path, host=emulator.url).status == 3
    assert read_rejects(path)[0]["record"] == line.decode()
    write(path, [line + b"}"])
    assert run(path, "--restart", host=emulator.url).status == 0
    assert len(emulator.raw_events()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=12),
    st.sampled_from(["ndjson", "json", "pretty", "stream"]),
    st.sampled_from([bytes, gzip.compress, zstd.compress]),
    st.integers(1, 5),
)
def test_json_reading_can_resume_after_any_chunk(
    tmp_path_factory: pytest.TempPathFactory,
    records: list[dict[str, Any]],
    form: str,
    pack: Callable[[bytes], bytes],
    size: int,
) -> None:
    path = tmp_path_factory.mktemp("read") / "a"
    join = b"\n" if form in {"ndjson", "stream"} else b" ,\n"
    parts = [orjson.dumps(one, option=orjson.OPT_INDENT_2 if form != "ndjson" else None) for one in records]
    body = join.join(parts)
    path.write_bytes(pack(body if form in {"ndjson", "stream"} else b"[" + body + b"]"))
    ((input_file,), _) = find_inputs([str(path)])
    options = ReadOptions(format=Format.NDJSON if form == "ndjson" else Format.JSON)
    rows: list[object] = []
    position, is_exhausted = Position(), False
    while not is_exhausted:
        file = open_source(input_file, options, position)
        rows += [value for _, value in file.take(size)]
        position, is_exhausted = file.position, file.is_exhausted
        file.close()
    assert not any(isinstance(row, UnreadableRow) for row in rows)
    assert rows == records


@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_characters="\x00", codec="utf-8"), max_size=6), min_size=2, max_size=2),
        max_size=8,
    ),
    st.integers(1, 4),
)
def test_csv_reading_can_resume_after_any_chunk(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]], size: int
) -> None:
    path = tmp_path_factory.mktemp("read") / "a.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [["a", "b"], *rows]]
    path.write_text("\n".join(quoted), encoding="utf-8", newline="")
    ((input_file,), _) = find_inputs([str(path)])
    read: list[object] = []
    position, is_exhausted = Position(), False
    while not is_exhausted:
        file = open_source(input_file, ReadOptions(), position)
        read += [value for _, value in file.take(size)]
        position, is_exhausted = file.position, file.is_exhausted
        file.close()
    assert read == [{name: cell for name, cell in zip("ab", row, strict=True) if cell} for row in rows]


@pytest.mark.parametrize(("module", "extra"), [("pyarrow", "cli,parquet"), ("backports.zstd", "cli")])
def test_missing_library_is_reported_with_its_extra(module: str, extra: str, tmp_path: Path) -> None:
    if module == "backports.zstd" and sys.version_info >= (3, 14):
        pytest.skip("it is part of Python")
    path = tmp_path / "a"
    path.write_bytes(zstd.compress(b"{}"))
    if module == "pyarrow":
        pyarrow.parquet.write_table(pa.table({"a": [1]}), path)
    hide = f"import sys; sys.modules[{module!r}] = None"
    command = [sys.executable, "-c", f"{hide}; {MAIN}", "import", str(path), "--dry-run"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert f'pip install ".[{extra}]"' in result.stderr
