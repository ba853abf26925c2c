"""Random server faults: kills, cut connections, delays and wrong responses, planned from a seed by the emulator."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import pytest

from mixpanel_async import AsyncMixpanel, BatchPolicy, DropReason, LostRecord, RetryPolicy, SqliteSpool, Stats
from mixpanel_async.emulator import TRANSIENT, Emulator, FaultKind, Server

# `_inject_faults` sends error statuses. The emulator's plan would also send 429 and 503 for applied requests, although
# both mean that a request was not applied.
KINDS: Final[list[FaultKind]] = [*(kind for kind in TRANSIENT if kind != "status"), "hang", "type"]
STATUSES: Final = (408, 429, 500, 502, 503, 504)
EVENTS = 60
UPDATES = 25


def _check_conservation(stats: Stats) -> None:
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending


async def _inject_faults(emulator: Emulator, server: Server, chance: random.Random, finished: asyncio.Event) -> None:
    """Cut connections, and kill and restart the server on the same port, until `finished` is set."""
    port = int(server.url.rpartition(":")[2])
    while not finished.is_set():
        await asyncio.sleep(chance.uniform(0.02, 0.1))
        status = chance.choice(STATUSES)
        apply = status not in {429, 503} and chance.random() < 0.5
        emulator.fail_next(status, times=chance.randint(1, 3), retry_after=chance.choice([None, 0]), apply=apply)
        if chance.random() < 0.7:
            server.cut_connections()
            continue
        await anyio.to_thread.run_sync(server.close)
        await asyncio.sleep(chance.uniform(0.0, 0.03))
        server = emulator.serve(port=port)
        await anyio.to_thread.run_sync(server.start)
    await anyio.to_thread.run_sync(server.close)


async def _check_delivery(seed: int, spool: SqliteSpool | None) -> None:
    emulator = Emulator()
    chance = random.Random(seed)
    server = emulator.serve()
    server.start()
    emulator.random_faults(seed, rate=chance.choice([0.1, 0.3, 0.6]), kinds=KINDS, seconds=0.02)
    uncertain: set[int] = set()

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        assert reason is DropReason.UNCERTAIN
        uncertain.update((record.payload or {}).get("$append", {}).get("seen", -1) for record in records)

    mp = AsyncMixpanel(
        "token",
        on_drop=on_drop,
        api_host=server.url,
        spool=spool,
        batching=BatchPolicy(max_events=chance.choice([1, 5, 20]), linger=0.0),
        retry=RetryPolicy(initial=0.002, maximum=0.01),
        timeout=0.25,
        shutdown_timeout=60,
    )
    await mp.start()
    finished = asyncio.Event()
    injector = asyncio.ensure_future(_inject_faults(emulator, server, chance, finished))
    with anyio.fail_after(120):
        for number in range(EVENTS):
            await mp.track("user", "Event", {"number": number})
            if number < UPDATES:
                await mp.people_increment("user", {"visits": 1})
                await mp.people_append("user", {"seen": number})
            if number % 5 == 0:
                await asyncio.sleep(chance.uniform(0.0, 0.02))
            _check_conservation(mp.stats())
        await mp.flush()
        await mp.aclose()
    finished.set()
    await injector
    stats = mp.stats()
    _check_conservation(stats)
    assert (stats.pending, stats.dropped, stats.failed) == (0, 0, 0)
    assert stats.delivered + stats.uncertain == stats.accepted == EVENTS + 2 * UPDATES
    # Events arrive exactly once. Updates arrive at most once, and confirmed ones always.
    assert sorted(event["properties"]["number"] for event in emulator.events()) == list(range(EVENTS))
    profile = emulator.profile("user") or {}
    visits, seen = profile.get("visits", 0), profile.get("seen", [])
    assert len(seen) == len(set(seen))
    assert stats.delivered - EVENTS <= visits + len(seen)
    assert max(visits, len(seen)) <= UPDATES
    # A timed-out request may still take effect, after later ones. Its updates are reported as uncertain.
    certain = [number for number in seen if number not in uncertain]
    assert certain == sorted(certain)


def _run(seed: int, with_spool: bool, tmp_path: Path) -> None:
    asyncio.run(_check_delivery(seed, SqliteSpool(tmp_path / "spool") if with_spool else None))


@pytest.mark.timeout(150)
@pytest.mark.parametrize("with_spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("seed", range(5))
def test_accepted_records_arrive_once_despite_random_faults(seed: int, with_spool: bool, tmp_path: Path) -> None:
    _run(seed, with_spool, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(150)
@pytest.mark.parametrize("with_spool", [False, True], ids=["memory", "spool"])
@pytest.mark.parametrize("seed", range(200))
def test_accepted_records_arrive_once_for_200_seeds(seed: int, with_spool: bool, tmp_path: Path) -> None:
    _run(seed, with_spool, tmp_path)
