"""Files and options that must not crash the importer, exhaust the machine, or change other files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest
from import_command import NOW, event, feed, read_rejects, run, write

from mixpanel_async.cli.importing.format_detection import detect_format
from mixpanel_async.cli.importing.option_values import Format
from mixpanel_async.cli.importing.spread import MAX_ELEMENTS, Spreader, SpreadFault, SpreadRecord
from mixpanel_async.emulator import Emulator

ARRIVAL = "$mp_api_timestamp_ms"
HUGE = "1" + "0" * 400

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def emulator() -> Any:
    emulator = Emulator()
    with emulator.serve() as server:
        emulator.url = server.url  # type: ignore[attr-defined]
        yield emulator


@pytest.fixture(autouse=True)
def reset_emulator(emulator: Any) -> None:
    emulator.reset()


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
@pytest.mark.parametrize("link", ["", "symlink", "hardlink"])
def test_rejects_never_replace_the_input_file(link: str, mode: list[str], tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(1), b"{bad"])
    before, rejects = path.read_bytes(), tmp_path / ("b" if link else "a.ndjson")
    if link == "symlink":
        rejects.symlink_to(path)
    elif link:
        rejects.hardlink_to(path)
    result = run(path, "--rejects", rejects, *mode, host=emulator.url)
    assert (result.status, path.read_bytes(), emulator.raw_events()) == (2, before, [])
    assert f"{rejects} is the input file; choose another file with --rejects" in result.errors


@pytest.mark.parametrize("content", [b"my notes\n", b'{"file": 1}\n', b"[]", b"\0"])
def test_rejects_never_replace_a_file_with_other_content(content: bytes, tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(1), b"{bad"])
    notes = tmp_path / "notes.txt"
    notes.write_bytes(content)
    result = run(path, "--rejects", notes, host=emulator.url)
    assert (result.status, notes.read_bytes(), emulator.raw_events()) == (2, content, [])
    assert "has other content than rejected records; choose another file with --rejects" in result.errors


@pytest.mark.parametrize("left", [b"", b'{"fi', b'{"file":"/a","li'])
def test_rejects_of_an_interrupted_import_are_continued(left: bytes, tmp_path: Path, emulator: Any) -> None:
    path = write(tmp_path / "a.ndjson", [event(1), b"{bad"])
    rejects = tmp_path / "all.rejects"
    rejects.touch(0o600)
    rejects.write_bytes(left)
    assert run(path, "--rejects", rejects, host=emulator.url).status == 3
    assert [one["record"] for one in read_rejects(rejects)] == ["{bad"]


@pytest.mark.parametrize("options", [[], ["--project-timezone", "Asia/Tokyo"], ["--time-format", "milliseconds"]])
@pytest.mark.parametrize(("time", "arrival"), [(HUGE, "1"), (f"-{HUGE}", "1"), ("1704448800", HUGE), (HUGE, HUGE)])
def test_integer_that_does_not_fit_into_a_float(
    time: str, arrival: str, options: list[str], tmp_path: Path, emulator: Any
) -> None:
    path = tmp_path / "a.json"
    hostile = f'{{"event":"e","distinct_id":"u","time":{time},"{ARRIVAL}":{arrival}}}'
    path.write_text(f'[{hostile},{{"event":"e","distinct_id":"u","time":1704448800}}]')
    result = run(path, *options, "--insert-ids", "line", host=emulator.url)
    # As milliseconds, both are in 1970, which is out of range too.
    valid = 0 if "--time-format" in options else 1 if time.endswith(HUGE) else 2
    assert (result.status, len(emulator.raw_events())) == (0 if valid == 2 else 3, valid), result


@pytest.mark.parametrize("before", [b"", b'[{"event":"e"}', b'[{"event":"e"},'])
def test_white_space_without_end_is_damage(before: bytes, tmp_path: Path, emulator: Any) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(gzip.compress(before + b" " * 20_000_000, 1))
    result = run(path, host=emulator.url)
    assert result.status == (1 if before else 2), result
    assert "more than 8388608 characters of white space between two records" in result.output + result.errors


@pytest.mark.timeout(5)
@pytest.mark.parametrize("filler", [b"\n", b" \n", b"\r\n", b"{\n", b" ", b"[\n"])
def test_format_of_a_file_with_many_blank_lines_is_found_quickly(filler: bytes) -> None:
    blank = (filler * 65_536)[:65_536]
    assert detect_format(b"event,time\n" + blank, "a.txt") is Format.CSV


def test_carriage_return_alone_is_explained(tmp_path: Path, emulator: Any) -> None:
    lines = ["event,distinct_id,time", f"e,u,{NOW}", f"e,v,{NOW}"]
    old_mac, mixed = tmp_path / "mac.csv", tmp_path / "mixed.csv"
    old_mac.write_bytes("\r".join(lines).encode())
    mixed.write_bytes("\r\n".join([*lines, "\r".join(lines[1:]), f"e,w,{NOW}"]).encode())
    explained = "a carriage return outside of quotes ends no line; if lines end with one, convert them to \\n"
    whole = run(old_mac, host=emulator.url)
    assert (whole.status, explained in whole.errors) == (2, True), whole
    assert run(mixed, host=emulator.url).status == 3
    assert [(one["line"], one["message"]) for one in read_rejects(mixed)] == [(4, f"is not valid CSV: {explained}")]
    assert len(emulator.raw_events()) == 3


def test_faults_of_list_elements_are_limited() -> None:
    spreader = Spreader(["items"])
    found = [*spreader.records({"items": [1] * (MAX_ELEMENTS + 5), "note": "x"})]
    assert [type(one) for one in found] == [SpreadFault] * (MAX_ELEMENTS + 1)
    last = found[-1]
    assert isinstance(last, SpreadFault)
    assert last.problem == f"has more than {MAX_ELEMENTS:,} nested records; split it"
    assert last.original() == {"items": [1] * 5, "note": "x"}


@pytest.mark.timeout(5)
def test_text_of_a_list_is_decoded_once_for_all_its_rejects() -> None:
    elements = [{"number": number, "filler": "x" * 200} for number in range(MAX_ELEMENTS)]
    row = {"id": 1, "items": orjson.dumps(elements).decode()}
    found = [*Spreader(["items"]).records(row)]
    assert all(isinstance(one, SpreadRecord) for one in found)
    originals = [one.original() for one in found if isinstance(one, SpreadRecord)]
    assert originals == [{"id": 1, "items": [element]} for element in elements]


def test_each_stream_is_checked(tmp_path: Path, emulator: Any) -> None:
    ours, june, tokyo = tmp_path / "ours", tmp_path / "june", tmp_path / "tokyo"
    feed(ours, orjson.dumps(event(1)) + b"\n")
    feed(june, b"type,name,user_id,anonymous_id,timestamp,properties,context\ntrack,A,u,a,2024-01-05 10:00:00,{},{}\n")
    feed(tokyo, orjson.dumps(event(2, **{"time": NOW + 32_400, ARRIVAL: NOW * 1000 + 900})) + b"\n")
    result = run(ours, june, tokyo, "--state-dir", tmp_path, host=emulator.url)
    assert (result.status, len(emulator.raw_events())) == (1, 1)
    assert f"{june}: looks like an export of June; check what becomes of it: mixpanel-async import {june}" in (
        result.output
    )
    assert f"{tokyo}: numeric times differ" in result.output


@pytest.mark.parametrize("mode", [[], ["--dry-run"]])
def test_options_that_match_no_column_of_a_stream_are_named(mode: list[str], tmp_path: Path, emulator: Any) -> None:
    stream = tmp_path / "stream"
    rows = [f"e,u{number},{NOW},{{}},1" for number in range(300)]
    feed(stream, "\n".join(["event,distinct_id,time,data,n", *rows, ""]).encode())
    good = ("--drop", "n", "--type", "n=number", "--spread", "data")
    wrong = ("--drop", "N", "--type", "m=number", "--spread", "date", "--map", "plan=Plan")
    result = run(stream, *good, *wrong, "--state-dir", tmp_path, *mode, host=emulator.url)
    assert result.status == 0
    named = [line for line in result.output.splitlines() if line.startswith("--")]
    problem = "no record has this column"
    assert sorted(named) == sorted(
        f"{name}: {problem}" for name in ("--map plan=Plan", "--spread date", "--drop N", "--type m=number")
    )


def test_rejected_record_is_not_converted_from_project_time_again(tmp_path: Path, emulator: Any) -> None:
    records = [event(number, **{"$insert_id": f"i{number}", "time": NOW + 32_400}) for number in range(30)]
    path = write(tmp_path / "a.ndjson", records)
    zone = ("--project-timezone", "Asia/Tokyo")
    emulator.break_next("partial", times=2)
    assert run(path, *zone, host=emulator.url).status == 3
    refused = [one["record"] for one in read_rejects(path)]
    assert refused
    # An event that was not converted before still is.
    more = event(99, **{"$insert_id": "more", "time": NOW + 32_400})
    again = write(tmp_path / "again.ndjson", [*refused, more])
    assert run(again, *zone, host=emulator.url).status == 0
    assert [one["properties"]["time"] for one in emulator.raw_events()] == [NOW * 1000] * 31


def test_sample_of_a_dry_run_has_deep_values_as_they_are_sent(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(1, deep={"a": {"b": {"c": {"d": 1}}}})])
    for nesting, sent in [("text", {"a": {"b": {"c": '{"d":1}'}}}), ("keep", {"a": {"b": {"c": {"d": 1}}}})]:
        result = run(path, "--dry-run", "--json", "--nesting", nesting)
        assert orjson.loads(result.output)["sample"]["properties"]["deep"] == sent
