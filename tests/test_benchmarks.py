"""The benchmarks run, and every subject in them delivers what it was given. Nothing is said about speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_flags_are_evaluated_beside_the_official_sdk() -> None:
    command = [sys.executable, "-m", "benchmarks.flags", "--rounds", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count(" us") >= 14


@pytest.mark.parametrize("events", [1, 120])
def test_every_subject_delivers_every_event(events: int) -> None:
    command = [sys.executable, "-m", "benchmarks", "--events", str(events), "--rounds", "1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = {line[:30].strip(): line for line in result.stdout.splitlines()}
    for title in ("floor (orjson, gzip, socket)", "mixpanel-async", "mixpanel BufferedConsumer"):
        assert f" {events} of {events} in " in lines[title]
    posthog = lines["posthog AsyncPosthog"]
    assert f" {events} of {events} in " in posthog or posthog.endswith("not installed")


@pytest.mark.parametrize("framework", ["aiohttp", pytest.param("fastapi", marks=pytest.mark.long)])
def test_the_apps_are_measured_with_and_without_tracking(framework: str) -> None:
    command = [sys.executable, "-m", "benchmarks.apps", "--framework", framework, "--turns", "1", "--connections", "4"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stdout + result.stderr
    # 200 that count, and 20 before them on each of the four connections and the one that found the app up.
    assert "300 of 300 events delivered" in result.stdout
    for words in ("without tracking", "with tracking", "Mixpanel refuses connections", "Mixpanel never answers"):
        assert words in result.stdout


def test_the_import_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.importer", "--events", "500", "--rounds", "1", "--gigabytes", "0.01"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("events a second of CPU on one core") == 2
    assert "50,000 events imported, 0 rejected; peak memory" in result.stdout


@pytest.mark.timeout(60)
def test_faults_are_tried_on_every_library() -> None:
    command = [sys.executable, "-m", "benchmarks.faults", "--only", "portal", "counter", "killed"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=55)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in result.stdout.splitlines()[2:]]
    ours = [row for row in rows if row[1] == "mixpanel-async"]
    assert len(ours) == 3
    assert [row[2:5] for row in ours] == [["0 of 500", "0", "0"], ["0 of 20", "0", "0"], ["0 of 500", "0", "0"]]
    assert len(rows) == 8
