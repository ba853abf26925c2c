"""How a process ends with a client in it: by its deadline, in whatever is stuck, and without noise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixpanel_async.emulator import Emulator

EXITING = Path(__file__).with_name("exiting.py")
SERVED = Path(__file__).with_name("served.py")
# What is stuck is stuck for an hour: a process that waits for it does not end within this.
LIMIT = 25.0


def run(part: str, **given: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, EXITING, part, json.dumps(given, default=str)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("spooled", [True, False])
def test_an_interpreter_that_exits_with_pending_records_says_so_and_nothing_else(tmp_path: Path, spooled: bool) -> None:
    done = run("forgets", path=tmp_path / "spool.db" if spooled else None)
    fate = "wait in the spool" if spooled else "were not delivered"
    assert done.stderr == f"an AsyncMixpanel was dropped without aclose(); 500 records {fate}\n"


@pytest.mark.parametrize(("closes", "backend"), [(True, "asyncio"), (False, "trio")])
def test_b7_a_callback_that_never_returns_does_not_hold_the_exit(closes: bool, backend: str) -> None:
    done = run("drops", closes=closes, backend=backend)
    assert done.stdout == "told 1\n"


@pytest.mark.parametrize("closes", [True, False])
def test_c8_a_name_server_that_never_answers_holds_neither_close_nor_exit(tmp_path: Path, closes: bool) -> None:
    done = run("resolves", closes=closes, path=tmp_path / "spool.db")
    assert done.stdout == ("0 1\n" if closes else "")


@pytest.mark.parametrize("closes", [True, False])
def test_e3_a_locked_database_and_a_silent_server_hold_neither_close_nor_exit(tmp_path: Path, closes: bool) -> None:
    done = run("locked", closes=closes, path=tmp_path / "spool.db")
    assert done.stdout == ("closed\n" if closes else "")


@pytest.mark.parametrize(("server", "spooled"), [("uvicorn", False), ("gunicorn", True)])
def test_a4_sigterm_delivers_what_is_pending_and_leaves_the_handlers_alone(
    tmp_path: Path, server: str, spooled: bool
) -> None:
    emulator = Emulator()
    path = str(tmp_path / "spool.db") if spooled else None
    if server == "gunicorn":
        pytest.importorskip("gunicorn")
    with emulator.serve() as api:
        given = json.dumps({"url": api.url, "path": path})
        process = subprocess.Popen(
            [sys.executable, SERVED, server, given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "2000 pending, handlers as before\n"
            assert emulator.events() == []
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode in {0, -signal.SIGTERM}, errors
    assert "Traceback" not in errors
    assert len(emulator.events("E")) == len(emulator.raw_events("E")) == 1_000
    assert len(emulator.profiles()) == 1_000
