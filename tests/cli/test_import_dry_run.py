"""Report of `mixpanel-async import --dry-run`: formats, mapping, a sample, types and all faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from import_command import NOW, Result, event, write
from typer.testing import CliRunner

from mixpanel_async.cli.app import app

TABLE = """event,who,ts,price,paid,since,zip,info,mixed
Sold,u1,2026-05-01 12:00,1.5,true,2026-05-01 12:00,00123,"{""a"":1}",1
Sold,u2,2026-05-02 12:00,2,FALSE,2026-05-02,00124,,x
"""
MAPPED = ["--map", "distinct_id=who", "--map", "time=ts", "--timezone", "UTC"]


def dry_run(*arguments: object) -> Result:
    """Run the command without `--quiet`."""
    result = CliRunner().invoke(app, ["import", "--dry-run", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def as_json(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dry_run(*arguments, "--json", "--quiet").output)
    return found


def test_report_shows_format_mapping_sample_and_types(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TABLE)
    result = dry_run(path, *MAPPED, "--set", "source=shop", "--drop", "mixed")
    assert result.status == 0
    lines = result.output.splitlines()
    assert lines[:5] == [
        f"{path}: CSV",
        "  distinct_id: from who",
        "  time: from ts",
        "  source: the value of --set",
        "  left out: mixed",
    ]
    assert lines[5] == "first record, as it would be sent:"
    sample = orjson.loads(lines[6])
    assert sample["properties"].pop("$insert_id")
    assert sample == {
        "event": "Sold",
        "properties": {
            "time": "2026-05-01T12:00:00+00:00",
            "distinct_id": "u1",
            "price": "1.5",
            "paid": "true",
            "since": "2026-05-01 12:00",
            "zip": "00123",
            "info": '{"a":1}',
            "source": "shop",
        },
    }
    assert lines[7:12] == [
        "columns in the first 1,000 records of each file:",
        "  price: 2 text; looks like number: --type price=number",
        "  paid: 2 text; looks like boolean: --type paid=boolean",
        "  since: 2 text; looks like time: --type since=time",
        "  info: 1 text; looks like json: --spread info",
    ]
    assert lines[12:] == [
        *(f"  {name}: 2 text" for name in ("event", "who", "ts", "zip", "mixed")),
        "2 events valid, 0 rejected",
    ]


def test_converted_columns_need_no_advice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(TABLE)
    options = [*MAPPED, "--infer-types", "--type", "since=time", "--spread", "info"]
    report = as_json(path, *options)
    assert [one["name"] for one in report["columns"] if one["option"]] == []
    assert report["sample"]["properties"]["price"] == 1.5
    # The advice works.
    advised = [word for one in as_json(path, *MAPPED)["columns"] if one["option"] for word in one["option"].split()]
    assert " ".join(advised) == "--type price=number --type paid=boolean --type since=time --spread info"
    again = as_json(path, *MAPPED, *advised)
    assert (again["valid"], [one for one in again["columns"] if one["option"]]) == (2, [])


def test_all_faults_of_a_record_are_shown_with_the_options_that_fix_them(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"name": "A", "created_at": NOW, "user_id": "u", "size": "big", "deep": {"a": 1 << 70}},
        {"name": "A", "created_at": NOW, "user_id": "u", "size": 1},
    ]
    path = write(tmp_path / "a.ndjson", [records[1], orjson.dumps(records[0] | {"deep": 1}), records[1]])
    report = as_json(path, "--type", "size=number")
    assert (report["valid"], report["rejected"], report["status"]) == (0, 3, 3)
    found = {(one["field"], one["count"]): (one["first"], one["fix"]) for one in report["faults"]}
    assert found == {
        ("time", 3): (f"{path}:1", "--map time=created_at"),
        ("event", 3): (f"{path}:1", "--map event=name, or --set event=VALUE"),
        ("distinct_id", 3): (f"{path}:1", "--map distinct_id=user_id"),
        ("size", 1): (f"{path}:2", "--type size=text"),
    }
    fixes = "--map time=created_at --map event=name --map distinct_id=user_id --type size=text"
    assert as_json(path, *fixes.split())["valid"] == 3
    lines = dry_run(path, "--type", "size=number").output.splitlines()
    assert f"  3 x time: is missing (first in {path}:1); use --map time=created_at" in lines
    assert "0 events valid, 3 rejected" in lines


def test_faults_of_profiles_are_found_together(tmp_path: Path) -> None:
    path = write(tmp_path / "g.ndjson", [{"plan": "pro"}])
    assert {(one["field"], one["fix"]) for one in as_json(path, "--kind", "groups")["faults"]} == {
        ("$group_key", "--map group_key=COLUMN, or --set group_key=VALUE"),
        ("$group_id", "--map group_id=COLUMN"),
    }


def test_names_that_cannot_be_printed_do_not_hide_the_report(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"event,distinct_id,time,pre\xe7o,red\x1b[31m\nA,u,%d,1,2\n" % NOW)
    lines = dry_run(path).output.splitlines()
    assert "  pre?o: 1 text; looks like number: --type pre?o=number" in lines
    assert "  red?[31m: 1 text; looks like number: --type red?[31m=number" in lines
    # JSON has the name as it is.
    assert [one["name"] for one in as_json(path)["columns"]][3:] == ["pre\udce7o", "red\x1b[31m"]


def test_faults_are_grouped_and_the_list_is_bounded(tmp_path: Path) -> None:
    columns = {f"c{number}": "x" for number in range(40)}
    path = write(tmp_path / "a.ndjson", [{"event": "A", "distinct_id": "u", "time": NOW, **columns}] * 3)
    options = [word for name in columns for word in ("--type", f"{name}=number")]
    result = dry_run(path, *options)
    assert (result.status, result.output.count("3 x c")) == (3, 20)
    # Faults of 20 columns are found in a record.
    assert len(as_json(path, *options)["faults"]) == 20
    assert "  and 13 more" in dry_run(path).output


@pytest.mark.parametrize(("kind", "options"), [("raw", []), ("people", ["--kind", "people"])])
def test_forms_of_mixpanel_are_reported(kind: str, options: list[str], tmp_path: Path) -> None:
    record = event(1, plan="pro") if kind == "raw" else {"$distinct_id": "u", "$set": {"plan": "pro"}}
    path = write(tmp_path / "a.json", [record])
    report = as_json(path, *options)
    assert report["files"] == [
        {"name": str(path), "format": "ndjson", "looks_like": "Mixpanel, raw" if kind == "raw" else None}
    ]
    sample = report["sample"]
    assert (sample["properties"] if kind == "raw" else sample["$set"])["plan"] == "pro"


def test_preset_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('name,properties,timestamp,type,user_id,anonymous_id\nA,"{""n"":""1""}",2026-05-01,track,u,a\n')
    lines = dry_run(path, "--preset", "june").output.splitlines()
    assert lines[:8] == [
        f"{path}: CSV; looks like an export of June",
        "  event: from name",
        "  $user_id: from user_id",
        "  $device_id: from anonymous_id",
        "  time: from timestamp",
        "  properties: spread",
        "  left out: type",
        "first record, as it would be sent:",
    ]
    assert "  n: 1 text; looks like number: --type n=number" in lines


def test_quiet_run_prints_the_result_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(1), {"event": "A"}])
    assert dry_run(path, "--quiet").output == f"1 event valid, 1 rejected\n{path}:2: time: is missing\n"
    refused = CliRunner().invoke(app, ["import", str(path), "--json"])
    assert (refused.exit_code, "--json applies to --dry-run only" in refused.stderr) == (2, True)


def test_deep_value_and_json_text_have_advice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [event(1, deep={"a": {"b": {"c": {"d": 1}}}}), event(2, info="{broken")])
    report = as_json(path, "--nesting", "reject", "--spread", "info")
    assert {one["field"]: (one["problem"], one["fix"]) for one in report["faults"]} == {
        "properties.deep.a.b.c": (report["faults"][0]["problem"], "--nesting text"),
        "info": ("is not valid JSON; correct it, or leave out --spread to keep the text", ""),
    }
