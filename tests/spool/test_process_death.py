"""What the death of a process, its forks and its exits do to what it had accepted: nothing."""

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
from spool_processes import CHILD, Account, audited, child, dead, drain, rows

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, SqliteSpool
from mixpanel_async.emulator import Emulator

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def wait_for(receipts: Path, more: int) -> None:
    """Wait until so many more receipts have been put down."""

    def lines() -> int:
        return receipts.read_bytes().count(b"\n")

    most = lines() + more
    while lines() < most:
        time.sleep(0.002)


def storm(folder: Path, *, rounds: int, lives: int, seed: int, most: int, tasks: int = 64) -> Account:
    """Kill clients at random moments of their lives, and have the last of each round deliver what is left."""
    chance = random.Random(seed)
    path = folder / "spool.db"
    total = Account()
    emulator = Emulator()
    with emulator.serve() as server:
        for number in range(rounds):
            receipts = folder / f"receipts-{number}"
            for life in range(lives):
                emulator.latency = chance.choice([0.0, 0.0, 0.01, 0.05])
                name = f"{number}-{life}"
                given = {"url": server.url, "path": path, "receipts": receipts, "life": name, "tasks": tasks}
                with child("storm", numbers=1_000_000, **given) as one:
                    one.heard()
                    wait_for(receipts, chance.randint(0, most))
                    # Not only when a receipt was put down.
                    time.sleep(chance.uniform(0.0, 0.02))
                    assert one.lives
            emulator.latency = 0.0
            drain(server.url, path)
            total += audited(receipts, emulator, path, f"{number}-")
            assert rows(path) == 0
            emulator.reset()
            receipts.unlink()
    return total


def test_a1_kill_minus_9_loses_no_acknowledged_event(tmp_path: Path) -> None:
    account = storm(tmp_path, rounds=1, lives=4, seed=1, most=2_000)
    assert account.receipts > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a1_five_hundred_kills_lose_none_of_a_million_acknowledged_events(tmp_path: Path) -> None:
    account = storm(tmp_path, rounds=25, lives=20, seed=500, most=5_000)
    print(f"\n500 SIGKILLs: {account}")
    assert account.receipts >= 1_000_000


def kill_the_server(folder: Path, *, events: int, kills: int, seed: int) -> int:
    """Track while the server dies again and again, also between the storing of a request and its answer.

    Returns:
        How many events it was sent more than once.
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


def test_a2_a_server_that_is_killed_again_and_again_has_every_event_once(tmp_path: Path) -> None:
    kill_the_server(tmp_path, events=10_000, kills=5, seed=2)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a2_a_server_that_is_killed_two_hundred_times_has_every_event_once(tmp_path: Path) -> None:
    duplicates = 0
    for seed in range(40):
        folder = tmp_path / str(seed)
        folder.mkdir()
        duplicates += kill_the_server(folder, events=10_000, kills=5, seed=seed)
    print(f"\n400,000 events, server killed 200 times: {duplicates} raw duplicates")


def test_a5_what_asyncio_run_left_behind_is_there_at_the_next_start(tmp_path: Path) -> None:
    emulator = Emulator()
    path = tmp_path / "spool.db"
    with emulator.serve() as server:
        given = json.dumps({"url": server.url, "path": str(path), "numbers": 500})
        done = subprocess.run([sys.executable, CHILD, "forget", given], capture_output=True, text=True, check=True)
        assert done.stderr == "an AsyncMixpanel was dropped without aclose(); 500 records wait in the spool\n"
        assert emulator.events() == []
        stats = drain(server.url, path)
    assert (stats["recovered"], stats["delivered"]) == (500, 500)
    assert {event["properties"]["n"] for event in emulator.events("E")} == {*range(500)}


def fork_storm(folder: Path, *, forks: int, children: int, numbers: int, timeout: float) -> None:
    emulator = Emulator()
    path = folder / "spool.db"
    script = Path(__file__).with_name("forking.py")
    with emulator.serve() as server:
        given = {"url": server.url, "path": str(path), "forks": forks, "children": children, "numbers": numbers}
        done = subprocess.run(
            [sys.executable, script, json.dumps(given)], capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        # What a child left that did not close its client.
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
def test_a7_a8_children_forked_with_the_spool_open_have_their_own_events_and_no_others(tmp_path: Path) -> None:
    fork_storm(tmp_path, forks=1, children=4, numbers=500, timeout=25.0)


@needs_fork
@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a8_two_hundred_forks_with_the_spool_open_damage_nothing(tmp_path: Path) -> None:
    for turn in range(25):
        folder = tmp_path / str(turn)
        folder.mkdir()
        fork_storm(folder, forks=4, children=4, numbers=500, timeout=300.0)


@pytest.mark.parametrize("applies", [True, False])
def test_d2_an_update_in_flight_at_the_death_of_the_client_is_uncertain_and_not_sent_again(
    tmp_path: Path, applies: bool
) -> None:
    emulator = Emulator()
    path = tmp_path / "spool.db"
    emulator.break_next("hang", path="/engage", apply=applies)
    with emulator.serve() as server:
        with child("once_only", url=server.url, path=path) as one:
            assert one.heard() == {"accepted": True}
            while not emulator.requests():
                time.sleep(0.001)
        stats = drain(server.url, path)
    assert stats["losses"] == {"uncertain": 1}
    assert (stats["accepted"], stats["uncertain"], stats["recovered"]) == (1, 1, 1)
    assert len(emulator.requests()) == 1
    assert (emulator.profile("user") or {}).get("visits", 0) == int(applies)
    ((reason, letter),) = dead(path)
    assert (reason, letter["$add"]) == ("uncertain", {"visits": 1})


@pytest.mark.anyio
async def test_a_start_of_what_has_started_does_not_wait(tmp_path: Path) -> None:
    mp = Emulator().client(spool=SqliteSpool(tmp_path / "spool.db"))
    with anyio.fail_after(8):
        async with mp:
            for _ in range(3):
                await mp.start()
