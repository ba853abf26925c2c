"""The benchmarks run, and every subject in them delivers what it was given. Nothing is said about speed."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(120)

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of one run, and what it printed."""
    command = [sys.executable, "-m", "benchmarks", *arguments, "--rounds", "1", "--output", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text("utf-8"))["rows"]
    return rows, result.stdout


def test_every_subject_delivers_every_event(tmp_path: Path) -> None:
    events, nowhere = 120, tmp_path / "none"
    pythons = ("--python", sys.executable, "--python", str(nowhere))
    rows, printed = run(tmp_path, "burst", "--events", str(events), *pythons)
    delivered = {row["name"]: row["delivered"] for row in rows if "delivered" in row}
    assert set(delivered.values()) == {events}
    assert {"floor (orjson, gzip, socket)", "mixpanel-async", "mixpanel BufferedConsumer"} <= delivered.keys()
    assert any(name.startswith("mixpanel-async on CPython ") for name in delivered)
    assert f" {events} of {events} in " in printed
    (missing,) = (row for row in rows if row["name"] == f"mixpanel-async with {nowhere}")
    assert missing["measured"] == "cannot be imported there"

    image = ET.fromstring((tmp_path / "chart.svg").read_text("utf-8"))
    bars = [rectangle for rectangle in image.iter() if rectangle.tag.endswith("rect")]
    # CPU and memory; memory is only shown for the interpreter that all subjects share.
    assert len(bars) == len(delivered) + sum(row["section"] == "memory" and "peak_mb" in row for row in rows)


@pytest.mark.parametrize(
    ("section", "rows"),
    [("paced", 2), ("growth", 4), ("identity", 3), ("backfill", 2), ("first-use", 4), ("spool", 2), ("start", 2)],
)
def test_each_section_measures_what_it_names(section: str, rows: int, tmp_path: Path) -> None:
    made, printed = run(tmp_path, section, "--events", "10")
    assert len(made) == rows
    assert all(row["measured"] and row["wanted"] and row["met"] is not None for row in made)
    # The exit status says so, too: what was sent arrived.
    assert all(row.get("complete", True) for row in made)
    assert all(row["measured"] in printed for row in made)


def test_the_emulator_is_measured_by_its_own_process(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, "emulator", "--events", "2000")
    assert [row["name"] for row in rows] == ["/track?verbose=1", "/import?strict=1"]
    assert all(row["events_per_cpu_second"] > 0 for row in rows)


def test_a_section_that_there_is_not_is_refused() -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks", "sprint"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "there is no section sprint" in result.stderr
