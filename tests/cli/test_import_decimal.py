"""Numbers in text with a decimal comma: `mixpanel-async import --decimal`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from import_command import NOW, run
from test_import_dry_run import as_json, dry_run

from mixpanel_async.cli.importing.number_format import NumberFormat, fitting_marks

TYPED = ("--delimiter", ";", "--type", "n=number")


def table(folder: Path, *cells: str) -> Path:
    path = folder / "a.csv"
    rows = [f"A;u;{NOW};{cell}" for cell in cells]
    path.write_text("\n".join(["event;distinct_id;time;n", *rows, ""]))
    return path


@pytest.mark.parametrize(
    ("text", "default", "comma", "point"),
    [
        ("1.743,80", None, 1743.8, None),
        ("1,743.80", None, None, 1743.8),
        ("1,50", None, 1.5, None),
        ("1.50", 1.5, None, 1.5),
        ("1.743", 1.743, 1743, 1.743),
        ("1,743", None, 1.743, 1743),
        ("-1.234.567", None, -1234567, None),
        ("+1.234.567,5e2", None, 123456750.0, None),
        ("0.123", 0.123, None, 0.123),
        ("0,5", None, 0.5, None),
        (",5", None, 0.5, None),
        (" 17 ", 17, 17, 17),
        ("1234.567,8", None, None, None),
        ("12.34,5", None, None, None),
        ("1..000", None, None, None),
        ("1,2,3", None, None, None),
        ("1 743,80", None, None, None),
        ("1.743,", None, None, None),
        ("", None, None, None),
        ("\u0661,\u0662", None, None, None),
    ],
)
def test_number_is_read_in_each_format(text: str, default: Any, comma: Any, point: Any) -> None:
    found = [NumberFormat(mark).parse(text) for mark in (None, ",", ".")]
    assert found == [default, comma, point]
    assert [type(one) for one in found] == [type(default), type(comma), type(point)]
    expected = [mark for mark, value in ((".", point), (",", comma)) if value is not None]
    assert fitting_marks(text) == expected


def test_error_names_the_option_and_the_option_reads_the_numbers(tmp_path: Path) -> None:
    path = table(tmp_path, "1.743,80", "1,50", "1.743", "x", "1,743.80")
    refused = dry_run(path, *TYPED)
    assert "2 x n: is not a number; name its decimal mark with --decimal , (first in" in refused.output
    assert "1 x n: is not a number; name its decimal mark with --decimal . (first in" in refused.output
    assert "1 x n: is not a number (first in" in refused.output
    accepted = as_json(path, *TYPED, "--decimal", ",")
    assert (accepted["valid"], accepted["rejected"]) == (3, 2)
    assert "decimal mark of numbers: ," in accepted["mapping"]
    assert accepted["sample"]["properties"]["n"] == 1743.8


@pytest.mark.parametrize(
    ("cells", "option"),
    [
        (["1.743,80", "3"], "--type n=number --decimal ,"),
        (["1,743.80", "3"], "--type n=number --decimal ."),
        (["1,743"], "--type n=number --decimal . or --decimal ,"),
        (["1,50", "1.50"], None),
        (["1,50", "x"], None),
        (["1,2,3"], None),
        (["00123"], None),
        (["3", "4"], "--type n=number"),
    ],
)
def test_dry_run_proposes_the_mark(cells: list[str], option: str | None, tmp_path: Path) -> None:
    columns = as_json(table(tmp_path, *cells), "--delimiter", ";")["columns"]
    assert [one["option"] for one in columns if one["name"] == "n"] == [option]


def test_dry_run_says_that_points_may_separate_thousands(tmp_path: Path) -> None:
    note = "read with decimals; if the point separates thousands: --decimal ,"
    path = table(tmp_path, "1.743", "", "12.000")
    assert note in dry_run(path, *TYPED).output
    assert note in dry_run(path, "--delimiter", ";").output
    assert note not in dry_run(path, *TYPED, "--decimal", ",").output
    assert note not in dry_run(table(tmp_path, "1.743", "0.5"), *TYPED).output


def test_inferred_numbers_have_the_mark(tmp_path: Path) -> None:
    for cell, expected in (
        ("1.743,80", 1743.8),
        ("007", "007"),
        ("+49", "+49"),
        ("true", True),
        ("1.5", "1.5"),
        ("0", 0),
    ):
        found = as_json(table(tmp_path, cell), "--delimiter", ";", "--infer-types", "--decimal", ",")
        assert found["sample"]["properties"]["n"] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((*TYPED, "--decimal", ";"), "--decimal must be one of . and , (a point or a comma), not ';'"),
        (("--delimiter", ";", "--decimal", ","), "--decimal needs --type COLUMN=number or --infer-types"),
    ],
)
def test_useless_option_is_refused(options: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run(table(tmp_path, "1"), *options, "--dry-run")
    assert (result.status, message in result.errors) == (2, True), result


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("31.04.2026", ["--time-format", "%d.%m.%Y"], "names a day that does not exist"),
        ("2026-04-31", [], "names a day that does not exist"),
        ("2026-02-29 10:00", [], "names a day that does not exist"),
        ("31.13.2026", ["--time-format", "%d.%m.%Y"], "does not match --time-format '%d.%m.%Y'"),
        ("2026-13-01", [], "is not a valid ISO 8601 time"),
    ],
)
def test_day_that_does_not_exist_is_named(text: str, options: list[str], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"event,distinct_id,time\nA,u,{text}\nA,u,{text}\n")
    assert f"2 x time: {problem}" in dry_run(path, *options, "--timezone", "UTC").output


@pytest.mark.parametrize(
    ("text", "sent"),
    [("2026-03-29 02:30", "2026-03-29T01:30:00+00:00"), ("2026-10-25 02:30", "2026-10-25T00:30:00+00:00")],
)
def test_local_times_around_a_change_of_clocks(text: str, sent: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"event,distinct_id,time\nA,u,{text}\n")
    assert as_json(path, "--timezone", "Europe/Vienna")["sample"]["properties"]["time"] == sent
