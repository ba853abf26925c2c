"""Accepted records survive the death, the forks and the exit of a process."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest
from process_helpers import SPOOL_PROCESS, Totals, audit, client_process, dead_letters, drain, rows

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, SqliteSpool
from mixpanel_async.emulator import Emulator

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def wait_for(receipts: Path, more: int) -> None:
    """Wait until `more` further receipts have been written."""

    def lines() -> int:
        return receipts.read_bytes().count(b"\n")

    target = lines() + more
    while lines() < target:
        time.sleep(0.002)


def kill_clients(folder: Path, *, rounds: int, processes: int, seed: int, max_receipts: int, tasks: int = 64) -> Totals:
    """Kill client processes at random moments. Deliver the remaining records at the end of each round."""
    chance = random.Random(seed)
    path = folder / "spool.db"
    total = Totals()
    emulator = Emulator()
    with emulator.serve() as server:
        for number in range(rounds):
            receipts = folder / f"receipts-{number}"
            for index in range(processes):
                emulator.latency = chance.choice([0.0, 0.0, 0.01, 0.05])
                name = f"{number}-{index}"
                given = {"url": server.url, "path": path, "receipts": receipts, "process_name": name, "tasks": tasks}
                with client_process("track_numbers", numbers=1_000_000, **given) as one:
                    one.read_json()
                    wait_for(receipts, chance.randint(0, max_receipts))
                    # Kill also between two receipts.
                    time.sleep(chance.uniform(0.0, 0.02))
                    assert one.is_alive
            emulator.latency = 0.0
            drain(server.url, path)
            total += audit(receipts, emulator, path, f"{number}-")
            assert rows(path) == 0
            emulator.reset()
            receipts.unlink()
    return total


def test_a1_sigkill_loses_no_acknowledged_event(tmp_path: Path) -> None:
    totals = kill_clients(tmp_path, rounds=1, processes=4, seed=1, max_receipts=2_000)
    assert totals.receipts > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a1_five_hundred_sigkills_lose_none_of_a_million_events(tmp_path: Path) -> None:
    totals = kill_clients(tmp_path, rounds=25, processes=20, seed=500, max_receipts=5_000)
    print(f"\n500 SIGKILLs: {totals}")
    assert totals.receipts >= 1_000_000
    # Kills that come three times before the first requests have ended look like records that crash the process.
    assert totals.crashed <= 10


def kill_the_server(folder: Path, *, events: int, kills: int, seed: int) -> int:
    """Track while the server is killed repeatedly, also between storing a request and answering it.

    Returns:
        Number of events that were sent more than once.
    """
    chance = random.Random(seed)
    emulator = Emulator()
    first = emulator.serve()
    first.start()
    port = int(first.url.rpartition(":")[2])
    servers = [first]

    def kill_at(requests: int) -> None:
        while len(emulator.requests()) < requests:
            time.sleep(0.001)
        servers[-1].close()
        if chance.random() < 0.5:
            emulator.drop_connections(apply=chance.random() < 0.5)
        servers.append(emulator.serve(port=port))
        servers[-1].start()

    def kill() -> None:
        for _ in range(kills):
            kill_at(len(emulator.requests()) + chance.randint(1, 5))

    async def main() -> None:
        mp = AsyncMixpanel(
            "token",
            api_host=first.url,
            spool=SqliteSpool(folder / "spool.db", timeout=20.0),
            batching=BatchPolicy(linger=0.0, max_events=50),
            retry=RetryPolicy(initial=0.01, maximum=0.05),
        )
        killer = threading.Thread(target=kill)
        killer.start()
        for start in range(0, events, 500):
            await asyncio.gather(
                *(mp.track("user", "E", insert_id=f"event-{number}") for number in range(start, start + 500))
            )
        while killer.is_alive() or mp.stats().pending:
            await mp.track("user", "Last")
            await mp.flush(5.0)
        await mp.aclose()

    asyncio.run(main())
    servers[-1].close()
    stored = [event["properties"]["$insert_id"] for event in emulator.events("E")]
    assert sorted(stored) == sorted(f"event-{number}" for number in range(events))
    assert rows(folder / "spool.db") == 0
    return len(emulator.raw_events("E")) - events


def test_a2_repeatedly_killed_server_has_every_event_once(tmp_path: Path) -> None:
    kill_the_server(tmp_path, events=10_000, kills=5, seed=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a2_server_killed_two_hundred_times_has_every_event_once(tmp_path: Path) -> None:
    duplicates = 0
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        duplicates += kill_the_server(folder, events=10_000, kills=5, seed=seed)
    print(f"\n400,000 events, server killed 200 times: {duplicates} raw duplicates")


def test_a5_next_start_delivers_records_left_by_asyncio_run(tmp_path: Path) -> None:
    emulator = Emulator()
    path = tmp_path / "spool.db"
    with emulator.serve() as server:
        given = json.dumps({"url": server.url, "path": str(path), "numbers": 500})
        done = subprocess.run(
            [sys.executable, SPOOL_PROCESS, "exit_without_close", given], capture_output=True, text=True, check=True
        )
        assert "an AsyncMixpanel was dropped without aclose(); 500 records wait in the spool\n" in done.stderr
        assert emulator.events() == []
        stats = drain(server.url, path)
    assert (stats["recovered"], stats["delivered"]) == (500, 500)
    assert {event["properties"]["n"] for event in emulator.events("E")} == {*range(500)}


def fork_storm(folder: Path, *, forks: int, children: int, numbers: int, timeout: float) -> None:
    emulator = Emulator()
    path = folder / "spool.db"
    script = Path(__file__).with_name("fork_program.py")
    with emulator.serve() as server:
        given = {"url": server.url, "path": str(path), "forks": forks, "children": children, "numbers": numbers}
        done = subprocess.run(
            [sys.executable, script, json.dumps(given)], capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        # Some children did not close their client.
        drain(server.url, path)
    stats = json.loads(done.stdout)["stats"]
    assert stats["accepted"] == stats["delivered"] == forks * 600 + stats["recovered"]
    stored = [event["properties"]["$insert_id"] for event in emulator.events("E")]
    expected: set[str] = set()
    for turn in range(forks):
        names = {f"before-{turn}": 100, f"busy-{turn}": 200, f"inside-{turn}": 300}
        for one in range(children):
            names |= {f"child-{turn}-{one}": numbers, f"grandchild-{turn}-{one}": numbers}
        expected |= {f"{name}-{number}" for name, count in names.items() for number in range(count)}
    assert len(stored) == len(expected)
    assert {*stored} == expected


@needs_fork
def test_a7_a8_forked_children_send_only_their_own_events(tmp_path: Path) -> None:
    fork_storm(tmp_path, forks=1, children=4, numbers=500, timeout=25.0)


@needs_fork
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a8_two_hundred_forks_with_an_open_spool_damage_nothing(tmp_path: Path) -> None:
    for turn in range(25):
        folder = tmp_path / str(turn)
        folder.mkdir()
        fork_storm(folder, forks=4, children=4, numbers=500, timeout=300.0)


@pytest.mark.parametrize("applies", [True, False])
def test_d2_update_in_flight_when_the_client_is_killed_is_uncertain_and_not_repeated(
    tmp_path: Path, applies: bool
) -> None:
    emulator = Emulator()
    path = tmp_path / "spool.db"
    emulator.break_next("hang", path="/engage", apply=applies)
    with emulator.serve() as server:
        with client_process("send_update", url=server.url, path=path) as one:
            assert one.read_json() == {"accepted": True}
            while not emulator.requests():
                time.sleep(0.001)
        stats = drain(server.url, path)
    assert stats["losses"] == {"uncertain": 1}
    assert (stats["accepted"], stats["uncertain"], stats["recovered"]) == (1, 1, 1)
    assert len(emulator.requests()) == 1
    assert (emulator.profile("user") or {}).get("visits", 0) == int(applies)
    ((reason, letter),) = dead_letters(path)
    assert (reason, letter["$add"]) == ("uncertain", {"visits": 1})


@pytest.mark.anyio
async def test_starting_a_started_client_returns_at_once(tmp_path: Path) -> None:
    mp = Emulator().client(spool=SqliteSpool(tmp_path / "spool.db"))
    with anyio.fail_after(8):
        async with mp:
            for _ in range(3):
                await mp.start()
