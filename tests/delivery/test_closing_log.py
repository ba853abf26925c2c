"""A client that closes says how many records wait, why, how long that may take, and how many were lost."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, SqliteSpool
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio

LATER = BatchPolicy(linger=3600.0)
# Nothing listens there.
OFFLINE = "http://127.0.0.1:1"


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, Any]]]:
    """Return level and data of the lines about the end of the client."""
    found = [(record.levelname, getattr(record, "mixpanel", {})) for record in caplog.records]
    return [(level, data) for level, data in found if data.get("event") in {"closing", "closed"}]


async def test_close_that_delivers_is_logged_at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mixpanel_async")
    async with Emulator().client(batching=LATER) as mp:
        for _ in range(3):
            await mp.track("user", "Event")
    assert lines(caplog) == [
        ("INFO", {"event": "closing", "records": 3, "seconds": 10.0}),
        ("INFO", {"event": "closed", "delivered": 3, "lost": 0, "pending": 0, "error": None}),
    ]


async def test_close_with_nothing_to_deliver_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mixpanel_async")
    async with Emulator().client() as mp:
        await mp.track("user", "Event")
        await mp.flush()
    assert lines(caplog) == []


async def test_close_while_offline_says_why_and_for_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mixpanel_async")
    retry = RetryPolicy(initial=0.05)
    mp = AsyncMixpanel("token", api_host=OFFLINE, batching=LATER, shutdown_timeout=1.5, retry=retry)
    for _ in range(3):
        await mp.track("user", "Event")
    result = await mp.aclose()
    (began, start), (warned, reason), (ended, end) = lines(caplog)
    assert (began, start) == ("INFO", {"event": "closing", "records": 3, "seconds": 1.5})
    assert (warned, reason["records"]) == ("WARNING", 3)
    assert 0 < reason["seconds"] <= 1.5
    assert "no connection" in reason["error"]
    assert (ended, end["lost"], end["pending"], end["delivered"]) == ("WARNING", 3, 0, 0)
    assert end["error"] == reason["error"]
    assert (result.failed, result.losses) == (3, {"closed": 3})


async def test_close_with_a_spool_says_how_many_records_stay_in_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = Emulator()
    emulator.fail_next(status=503, times=1000)
    async with emulator.client(spool=SqliteSpool(tmp_path / "spool.db"), shutdown_timeout=0.05) as mp:
        await mp.track("user", "Event")
    ((level, end),) = lines(caplog)
    assert (end["event"], level, end["lost"], end["pending"]) == ("closed", "WARNING", 0, 1)
    assert "HTTP 503" in end["error"]
    assert "1 left in the spool" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals here")
def test_ctrl_c_while_offline_says_how_long_closing_takes() -> None:
    code = f"""
import asyncio
from mixpanel_async import AsyncMixpanel, RetryPolicy

async def main():
    retry = RetryPolicy(initial=0.2)
    async with AsyncMixpanel("token", api_host="{OFFLINE}", shutdown_timeout=2.0, retry=retry) as mp:
        for _ in range(3):
            await mp.track("user", "Event")
        print("ready", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        text = ""
        while "closing" not in text:
            text = process.stderr.readline()
            assert text, "the process ended"
        # It is still closing.
        assert process.poll() is None
        left = re.search(r"closing: 3 records still wait, for up to ([\d.]+) s; last error: ", text)
        assert left is not None
        assert 0.5 <= float(left[1]) <= 1.0
        assert " s; last error: /track: no connection" in text
        rest = process.stderr.read()
    assert "closed: 0 delivered, 3 lost; last error: " in rest
    assert "KeyboardInterrupt" in rest


@pytest.mark.parametrize("is_last", [False, True])
async def test_flush_that_leaves_records_returns_the_last_error(is_last: bool, tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.fail_next(status=503, times=1000)
    spool = SqliteSpool(tmp_path / "spool.db")
    mp = emulator.client(batching=LATER, shutdown_timeout=0.05, spool=spool, retry=RetryPolicy(initial=0.0))
    await mp.track("user", "Event")
    result = await (mp.aclose() if is_last else mp.flush(timeout=0.05))
    assert result.pending == 1
    assert "HTTP 503" in (result.last_error or "")
    await mp.aclose()


async def test_close_that_drops_records_returns_the_last_error() -> None:
    emulator = Emulator()
    emulator.fail_next(status=503, times=1000)
    mp = emulator.client(batching=LATER, shutdown_timeout=0.05, retry=RetryPolicy(initial=0.0))
    await mp.track("user", "Event")
    result = await mp.aclose()
    assert result.losses == {"closed": 1}
    assert "HTTP 503" in (result.last_error or "")


async def test_flush_that_leaves_nothing_returns_no_error() -> None:
    emulator = Emulator()
    async with emulator.client(retry=RetryPolicy(initial=0.0)) as mp:
        emulator.fail_next(status=503, times=1)
        await mp.track("user", "Event")
        result = await mp.flush()
    assert (result.delivered, result.pending, result.last_error) == (1, 0, None)
    assert mp.stats().last_error is not None
