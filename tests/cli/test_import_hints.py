"""Hints of `mixpanel-async import` about options and values: each names the real fault, and none is false."""

from __future__ import annotations

from pathlib import Path

import pytest
from import_command import NOW, Result, run, write
from test_import_dry_run import dry_run

SALES = "Kunde;Art;Zeit;Betrag\nu1;Kauf;2026-03-01 10:15;x\nu2;Kauf;2026-03-02 11:02;y\n"
COLUMNS = ["--delimiter", ";", "--timezone", "UTC", "--type", "Betrag=number"]
COLUMNS += ["--map", "distinct_id=Kunde", "--map", "event=Art", "--map", "time=Zeit"]


def faults(result: Result) -> list[str]:
    lines = result.output.splitlines()
    start = lines.index("faults of rejected records:")
    return [line.strip() for line in lines[start + 1 :] if line.startswith("  ")]


@pytest.mark.parametrize("more", [[], ["--spread", "Extra"], ["--preset", "june"]])
def test_columns_of_records_that_fail_a_type_are_found(more: list[str], tmp_path: Path) -> None:
    path = tmp_path / "sales.csv"
    path.write_text(SALES if not more else SALES.replace("Betrag\n", "Betrag;Extra\n").replace(";x", ";x;{}"))
    result = run(path, *COLUMNS, *more, "--dry-run")
    assert (result.status, "no record has this column" in result.output) == (3, False), result


def test_no_hint_maps_a_field_to_itself(tmp_path: Path) -> None:
    records = [
        {"event": "A", "properties": {"distinct_id": "u", "time": NOW}},
        {"event": "A", "properties": {"distinct_id": "u"}},
        {"properties": {"distinct_id": "u", "time": NOW}},
        {"event": "A", "properties": {"time": NOW}},
    ]
    result = dry_run(write(tmp_path / "export.ndjson", records))
    assert (len(faults(result)), "--map" in result.output) == (3, False), result
    others = write(tmp_path / "b.ndjson", [*records, {"event": "A", "user_id": "u", "time": NOW}])
    assert "use --map distinct_id=user_id" in dry_run(others).output


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"event": "A", "time": NaN}', "is not valid JSON: NaN is not JSON; write null"),
        ('{"event": "A", "time": [-Infinity, NaN]}', "is not valid JSON: -Infinity is not JSON; write null"),
        ('{"event": "NaN", "time": }', "is not valid JSON: unexpected character"),
    ],
)
def test_constants_that_are_not_json_are_named(line: str, problem: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.ndjson", [{"event": "A"}, line.encode(), ("[NaN," * 5_000).encode()])
    assert problem in dry_run(path).output
