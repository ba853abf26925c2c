"""Clients that share one spool file: of several processes, of one process and of several projects."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from process_helpers import ClientProcess, audit, client_process, dead_letters, drain, rows
from simulated import emulator_client_in

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, SqliteSpool
from mixpanel_async._runtime.environment import real_environment
from mixpanel_async.emulator import Emulator


def shared(folder: Path, *, processes: int, numbers: int, kills: int, seed: int, max_wait: float) -> None:
    """Run processes that share a spool. Kill some of them and replace each by another."""
    chance = random.Random(seed)
    emulator = Emulator()
    path, receipts = folder / "spool.db", folder / "receipts"
    numbering = iter(range(1_000_000))
    killed: set[str] = set()
    with emulator.serve() as server:

        def begin() -> tuple[str, ClientProcess]:
            name = f"0-{next(numbering)}"
            given: dict[str, Any] = {"url": server.url, "path": path, "receipts": receipts, "process_name": name}
            return name, ClientProcess("track_numbers", tasks=20, numbers=numbers, drains=True, **given)

        running = [begin() for _ in range(processes)]
        try:
            for _ in range(kills):
                time.sleep(chance.uniform(0.0, max_wait))
                at = chance.randrange(processes)
                name, victim = running[at]
                if victim.is_alive:
                    killed.add(name)
                victim.kill()
                running[at] = begin()
            for _, one in running:
                one.wait(300.0)
        finally:
            for _, one in running:
                one.kill()
        drain(server.url, path)
        audit(receipts, emulator, path, "0-")
    assert rows(path) == 0
    # Only records in flight when their process was killed may have arrived twice.
    copies = Counter(event["properties"]["$insert_id"] for event in emulator.raw_events("E"))
    twice = {identity.rsplit("-", 2)[0] for identity, count in copies.items() if count > 1}
    assert twice <= killed


def test_e6_killed_processes_with_a_shared_spool_lose_and_repeat_nothing(tmp_path: Path) -> None:
    shared(tmp_path, processes=3, numbers=60, kills=2, seed=6, max_wait=0.6)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_e6_four_processes_and_fifty_kills_lose_none_of_a_hundred_thousand_events(tmp_path: Path) -> None:
    shared(tmp_path, processes=4, numbers=1_250, kills=50, seed=66, max_wait=1.0)


def stopped_between_writes(pid: int, path: Path) -> None:
    """Stop a process outside of a transaction: stopped within one, it would block the writes of all others."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        with closing(sqlite3.connect(path, timeout=0.0, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.01)
            else:
                db.execute("ROLLBACK")
                return


def test_e6_stopped_process_keeps_its_rows_and_continues(tmp_path: Path) -> None:
    # The other process sends to a second server, because requests in flight of the stopped one still arrive.
    emulator, of_others = Emulator(), Emulator()
    path, receipts = tmp_path / "spool.db", tmp_path / "receipts"
    with emulator.serve() as server, of_others.serve() as server_of_others:
        emulator.fail_next(503, times=1_000_000)
        given = {
            "url": server.url,
            "path": path,
            "receipts": receipts,
            "process_name": "0-0",
            "tasks": 5,
            "numbers": 50,
        }
        with client_process("track_numbers", is_child=True, waits=True, **given) as one:
            one.read_json()
            assert one.read_json()["stats"]["accepted"] == 250
            stopped_between_writes(one.process.pid, path)
            assert drain(server_of_others.url, path)["accepted"] == 0
            assert rows(path) == 250
            assert of_others.requests() == []
            emulator.stop_faults()
            os.kill(one.process.pid, signal.SIGCONT)
            while rows(path):
                time.sleep(0.01)
        audit(receipts, emulator, path, "0-")
        assert len(emulator.raw_events()) == len(emulator.events()) == 225


def test_e6_running_client_takes_over_records_of_a_killed_one(tmp_path: Path) -> None:
    """Use a clock that runs sixty times as fast instead of waiting for ten seconds."""
    emulator = Emulator()
    path = tmp_path / "spool.db"
    runtime = real_environment()
    fast = replace(runtime, monotonic=lambda: 60.0 * runtime.monotonic())

    async def main(url: str) -> None:
        async with emulator_client_in(fast, emulator, "token", spool=SqliteSpool(path)) as mp:
            emulator.latency = 3600.0
            with client_process("send_update", url=url, path=path) as one:
                assert one.read_json() == {"accepted": True}
                while not emulator.requests():  # noqa: ASYNC110  a thread changes the condition
                    await asyncio.sleep(0.001)
            emulator.latency = 0.0
            while not mp.stats().recovered:
                await mp.track("user", "Tick")
                await asyncio.sleep(0.01)
            assert mp.stats().losses == {"uncertain": 1}
            await mp.flush()

    with emulator.serve() as server:
        asyncio.run(main(server.url))
    assert [reason for reason, _ in dead_letters(path)] == ["uncertain"]


@pytest.mark.anyio
async def test_e6_two_clients_of_one_process_share_a_file_and_send_their_own_records(tmp_path: Path) -> None:
    emulator = Emulator()
    path = tmp_path / "spool.db"
    options: dict[str, Any] = {"batching": BatchPolicy(linger=3600.0), "spool": SqliteSpool(path)}
    async with emulator.client(**options) as one, emulator.client(**options) as two:
        for number in range(100):
            await one.track("one", "E", {"n": number})
            await two.track("two", "E", {"n": number})
        await one.flush()
        assert (one.stats().delivered, two.stats().pending) == (100, 100)
        assert {event["properties"]["distinct_id"] for event in emulator.events()} == {"one"}
    assert two.stats().delivered == 100
    assert len(emulator.raw_events()) == 200
    assert rows(path) == 0
    assert os.listdir(tmp_path) == ["spool.db"]


def test_e7_rows_of_another_project_are_kept_and_logged_and_not_sent_by_other_processes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine, theirs = Emulator(token="mine"), Emulator(token="theirs")
    spool = SqliteSpool(tmp_path / "spool.db")

    async def leave() -> None:
        retry = RetryPolicy(initial=60.0)
        theirs.fail_next(503, times=1_000_000)
        mp: AsyncMixpanel = theirs.client(spool=spool, retry=retry, shutdown_timeout=0.0)
        for number in range(50):
            await mp.track("user", "E", {"n": number})
        await mp.aclose()

    async def use(emulator: Emulator) -> int:
        async with emulator.client(spool=spool) as mp:
            await mp.track("user", "Mine")
        return mp.stats().recovered

    asyncio.run(leave())
    with caplog.at_level(logging.WARNING):
        assert asyncio.run(use(mine)) == 0
    assert "other projects (clients: 1)" in caplog.text
    assert [event["event"] for event in mine.raw_events()] == ["Mine"]
    assert mine.rejected() == []
    assert rows(tmp_path / "spool.db") == 50
    theirs.stop_faults()
    assert asyncio.run(use(theirs)) == 50
    assert len(theirs.events("E")) == 50
