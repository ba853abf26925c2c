"""A process that can start no thread, for example because its container has reached its limit of processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=2)

PROGRAM = Path(__file__).with_name("no_threads_program.py")


def run(emulator: Emulator, mode: str, folder: object) -> tuple[str, set[int]]:
    """Run the program. Return its output and the numbers of the events that arrived."""
    with emulator.serve() as server:
        command = [sys.executable, str(PROGRAM), server.url, mode, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, {event["properties"]["n"] for event in emulator.events("Event")}


def report_of(emulator: Emulator, mode: str, folder: Path) -> tuple[dict[str, Any], set[int]]:
    output, received = run(emulator, mode, folder)
    return json.loads(output), received


@pytest.mark.parametrize("mode", ["new", "used spool"])
def test_client_delivers_and_closes_without_new_threads(mode: str, tmp_path: Path) -> None:
    report, received = report_of(Emulator(), mode, tmp_path)
    assert report["errors"] == {}
    assert report["stats"]["pending"] == 0
    assert received == ({0, 1, 2, 3} if "spool" in mode else {0, 1, 2})


def test_callbacks_are_called_once_there_is_a_thread(tmp_path: Path) -> None:
    report, received = report_of(Emulator(), "new recovers", tmp_path)
    assert (report["errors"], received) == ({}, {0, 1, 2, 9})
    assert (report["dropped"], sum(report["delivered"])) == (["queue_full"], 4)


def test_spool_writes_accepted_records_once_there_is_a_thread(tmp_path: Path) -> None:
    report, received = report_of(Emulator(), "new spool recovers", tmp_path)
    # The records may still be written, and were.
    assert report["errors"] == {f"track {number}": "SpoolError" for number in range(4)}
    assert (report["stats"]["delivered"], received) == (5, {0, 1, 2, 3, 9})


def test_spool_that_never_got_a_thread_keeps_no_refused_record(tmp_path: Path) -> None:
    report, received = report_of(Emulator(), "new spool", tmp_path)
    assert report["errors"] == {f"track {number}": "SpoolError" for number in range(4)}
    assert (report["stats"]["accepted"], report["stats"]["pending"], received) == (0, 0, set())


@pytest.mark.parametrize("end", ["kept", "collected"])
def test_process_without_threads_delivers_at_exit(end: str, tmp_path: Path) -> None:
    assert run(Emulator(), end, tmp_path)[1] == {0, 1}
