"""The benchmarks run, and every subject delivers its events. Speed is not checked."""

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
    """Run the benchmarks and return the rows of the results file and the printed output."""
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
    # Memory is shown only for the interpreter shared by all subjects.
    assert len(bars) == len(delivered) + sum(row["section"] == "memory" and "peak_mb" in row for row in rows)


@pytest.mark.parametrize(
    ("section", "rows"),
    [
        ("identity", 3),
        ("spool", 2),
        *(
            pytest.param(*one, marks=pytest.mark.long)
            for one in (
                ("paced", 2),
                ("growth", 4),
                ("backfill", 2),
                ("first-use", 4),
                ("start", 2),
                ("shapes", 38),
                ("outbox", 4),
                ("outbox", 4),
            )
        ),
    ],
)
def test_each_section_produces_its_rows(section: str, rows: int, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    made, printed = run(folder, section, "--events", "10")
    assert [file.name for file in folder.iterdir()] == ["results.json"]
    assert len(made) == rows
    assert all(row["measured"] and row["wanted"] and row["met"] is not None for row in made)
    # Status 0 also means that all events arrived.
    assert all(row.get("complete", True) for row in made)
    assert all(row["measured"] in printed for row in made)


def test_emulator_section_measures_the_server_process(tmp_path: Path) -> None:
    rows, _ = run(tmp_path, "emulator", "--events", "2000")
    assert [row["name"] for row in rows] == ["/track?verbose=1", "/import?strict=1"]
    assert all(row["events_per_cpu_second"] > 0 for row in rows)


def test_unknown_section_is_rejected() -> None:
    result = subprocess.run([sys.executable, "-m", "benchmarks", "sprint"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "unknown section: sprint" in result.stderr


def test_flags_benchmark_compares_with_the_official_sdk() -> None:
    command = [sys.executable, "-m", "benchmarks.flags", "--rounds", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" us") >= 14


@pytest.mark.parametrize(
    "framework", ["aiohttp", *(pytest.param(name, marks=pytest.mark.long) for name in ("django", "fastapi"))]
)
def test_apps_benchmark_measures_with_and_without_tracking(framework: str, tmp_path: Path) -> None:
    options = ("--framework", framework, "--turns", "1", "--connections", "4", "--output", str(tmp_path))
    command = [sys.executable, "-m", "benchmarks.apps", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    # 200 measured requests, 20 warm-up requests on each of four connections, and one that checks the start of the app.
    assert "300 of 300 events delivered" in result.stdout
    rows = json.loads((tmp_path / "results.json").read_text("utf-8"))["rows"]
    names = ("without tracking", "with tracking", "Mixpanel refuses connections", "Mixpanel never answers")
    assert [row["name"].partition(", ")[2] for row in rows] == [*names]
    assert all(name in result.stdout for name in names)


def test_importer_benchmark_runs() -> None:
    command = [sys.executable, "-m", "benchmarks.importer", "--events", "500", "--rounds", "1", "--gigabytes", "0.01"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("events per second of CPU on one core") == 2
    assert "50,000 events imported, 0 rejected; peak memory" in result.stdout


def test_faults_benchmark_covers_every_library() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--only", "portal", "counter", "killed"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()[2:]]
    ours = [row for row in rows if row[1] == "mixpanel-async"]
    assert len(ours) == 3
    assert [row[2:5] for row in ours] == [["0 of 500", "0", "0"], ["0 of 20", "0", "0"], ["0 of 500", "0", "0"]]
    assert len(rows) == 8
