"""What the death of a process, its forks and its exits do to what it had accepted: nothing."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from spool_processes import Account, audited, child, drain, rows

from mixpanel_async.emulator import Emulator


def storm(folder: Path, *, rounds: int, lives: int, seed: int, longest: float, tasks: int = 64) -> Account:
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
                    time.sleep(chance.uniform(0.0, longest))
                    assert one.lives
            emulator.latency = 0.0
            drain(server.url, path)
            total += audited(receipts, emulator, path, f"{number}-")
            assert rows(path) == 0
            emulator.reset()
            receipts.unlink()
    return total


def test_a1_kill_minus_9_loses_no_acknowledged_event(tmp_path: Path) -> None:
    account = storm(tmp_path, rounds=1, lives=4, seed=1, longest=0.4)
    assert account.receipts > 100


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a1_five_hundred_kills_lose_none_of_a_million_acknowledged_events(tmp_path: Path) -> None:
    account = storm(tmp_path, rounds=25, lives=20, seed=500, longest=0.8)
    print(f"\n500 SIGKILLs: {account}")
    assert account.receipts >= 1_000_000
