"""Exit of a process with a client: within the deadline, whatever blocks, and without extra output."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fork_server import ForkServer, fork_server

from mixpanel_async.emulator import Emulator

EXIT_PROGRAMS = Path(__file__).with_name("exit_programs.py")
WEB_APP_PROCESS = Path(__file__).with_name("web_app_process.py")
# The programs block for an hour: a process that waited for it would not exit within this limit.
LIMIT = 25.0


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    with fork_server(modules=("anyio._backends._trio",)) as server:
        yield server


def run(forks: ForkServer, program: str, **given: Any) -> tuple[str, str]:
    """Run a program. Return its standard output and standard error."""
    status, output, errors = forks.run(EXIT_PROGRAMS, program, json.dumps(given, default=str), timeout=LIMIT)
    assert status == 0, errors
    assert "Traceback" not in errors
    return output, errors


@pytest.mark.parametrize("spooled", [True, False])
def test_exit_reports_pending_records(tmp_path: Path, forks: ForkServer, spooled: bool) -> None:
    _, errors = run(forks, "drop_client_without_close", path=tmp_path / "spool.db" if spooled else None)
    fate = "wait in the spool" if spooled else "are lost, because the client was dropped without aclose()"
    assert f"the event loop ended before 500 records were delivered; they {fate}; last error: " in errors


@pytest.mark.parametrize(("closes", "backend"), [(True, "asyncio"), (False, "trio")])
def test_b7_blocked_callback_does_not_delay_exit(forks: ForkServer, closes: bool, backend: str) -> None:
    output, _ = run(forks, "block_in_callback", closes=closes, backend=backend)
    assert output == "dropped 1\n"


@pytest.mark.parametrize("closes", [True, False])
def test_c8_blocked_name_server_delays_neither_close_nor_exit(tmp_path: Path, forks: ForkServer, closes: bool) -> None:
    output, _ = run(forks, "block_in_resolver", closes=closes, path=tmp_path / "spool.db")
    assert output == ("0 1\n" if closes else "")


@pytest.mark.parametrize("closes", [True, False])
def test_e3_locked_database_and_silent_server_delay_neither_close_nor_exit(
    tmp_path: Path, forks: ForkServer, closes: bool
) -> None:
    output, _ = run(forks, "block_on_locked_database", closes=closes, path=tmp_path / "spool.db")
    assert output == ("closed\n" if closes else "")


@pytest.mark.parametrize(("server", "spooled"), [("uvicorn", False), ("gunicorn", True)])
def test_a4_sigterm_delivers_pending_records_and_keeps_signal_handlers(
    tmp_path: Path, server: str, spooled: bool
) -> None:
    emulator = Emulator()
    path = str(tmp_path / "spool.db") if spooled else None
    if server == "gunicorn":
        pytest.importorskip("gunicorn")
    with emulator.serve() as api:
        given = json.dumps({"url": api.url, "path": path})
        process = subprocess.Popen(
            [sys.executable, WEB_APP_PROCESS, server, given], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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
