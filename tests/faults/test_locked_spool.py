"""The end of a client while another process holds the lock of the spool: only committed records wait in it."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import orjson
import pytest
from forked_python import popen
from locked_spool_program import COMMITTED, ENDINGS, UNWRITTEN

from mixpanel_async import SqliteSpool
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=3)

PROGRAM = Path(__file__).with_name("locked_spool_program.py")
LIMIT = 25.0


def run(ending: str, path: Path, timeout: float) -> tuple[str, str]:
    """Run a program and hold the lock while it ends. Return its output and its error output."""
    process = popen(
        [sys.executable, PROGRAM, ending, orjson.dumps({"path": str(path), "timeout": timeout}).decode()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        modules=(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with closing(sqlite3.connect(path, isolation_level=None, timeout=10.0)) as other:
            other.execute("BEGIN IMMEDIATE")
            output, errors = process.communicate("go\n", timeout=LIMIT)
            other.execute("ROLLBACK")
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    return output, errors


@pytest.mark.parametrize("timeout", [0.1, 60.0], ids=["the write fails", "the writer is stuck"])
@pytest.mark.parametrize("ending", list(ENDINGS))
def test_g8_only_committed_records_are_said_to_wait_in_a_locked_spool(
    tmp_path: Path, ending: str, timeout: float
) -> None:
    path = tmp_path / "spool.db"
    output, errors = run(ending, path, timeout)
    # Reported once: in the log, and to `on_drop`.
    dropped = [int(count) for count in re.findall(r"on_drop (\d+) spool_failed", output)]
    assert sum(dropped) == UNWRITTEN, output
    logged = [int(count) for count in re.findall(r"(\d+) records? dropped \(spool_failed", errors)]
    assert sum(logged) == UNWRITTEN, errors
    assert not re.search(rf"\b{COMMITTED + UNWRITTEN} records wait in the spool\b(?!, except)", errors)
    if ending == "close":
        assert f"stats {COMMITTED} {{'spool_failed': {UNWRITTEN}}}" in output
        assert f"result {COMMITTED} {{'spool_failed': {UNWRITTEN}}}" in output
        assert f"{UNWRITTEN} lost, {COMMITTED} left in the spool" in errors
    emulator = Emulator()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM records").fetchone() == (COMMITTED,)
    with emulator.client(spool=SqliteSpool(path)).in_thread() as blocking:
        blocking.start()
        blocking.flush()
        assert blocking.stats().recovered == COMMITTED
    assert len(emulator.events("Committed")) == len(emulator.events()) == COMMITTED
