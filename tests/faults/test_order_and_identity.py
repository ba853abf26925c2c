"""Part D of the fault catalogue: non-idempotent updates, order, identity. Test names start with the row id."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from forked_python import popen

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    IdMerge,
    LostRecord,
    MixpanelException,
    RetryPolicy,
    ServiceAccountCredentials,
    SqliteSpool,
    TransportError,
)
from mixpanel_async.emulator import Emulator

NO_BACKOFF = RetryPolicy(initial=0.0, maximum=0.0)
ACCOUNT = ServiceAccountCredentials("account", "secret", "12345")
ANON = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"


@pytest.mark.anyio
@pytest.mark.parametrize("apply", [True, False], ids=["applied", "not applied"])
async def test_d1_counter_never_exceeds_the_calls_and_missing_updates_are_uncertain(apply: bool) -> None:
    emulator = Emulator()
    chance = random.Random(1)
    lost: list[LostRecord] = []
    async with emulator.client(
        retry=NO_BACKOFF, batching=BatchPolicy(max_events=10), on_drop=lambda records, reason: lost.extend(records)
    ) as mp:
        for _ in range(100):
            for _ in range(10):
                await mp.people_increment("user", {"visits": 1})
            if chance.random() < 0.1:
                emulator.drop_connections(1, path="/engage", apply=apply)
            await mp.flush()
    stats = mp.stats()
    visits = (emulator.profile("user") or {})["visits"]
    assert 0 < stats.uncertain < 300
    assert stats.uncertain == len(lost) == stats.losses["uncertain"]
    assert stats.delivered + stats.uncertain == 1_000
    assert visits == (1_000 if apply else 1_000 - stats.uncertain)


CHILD = """
import asyncio, sys
from mixpanel_async import AsyncMixpanel, SqliteSpool

async def main():
    mp = AsyncMixpanel("token", api_host=sys.argv[1], spool=SqliteSpool(sys.argv[2]), timeout=60)
    for _ in range(5):
        await mp.people_increment("user", {"visits": 1})
    await mp.track("user", "Event")
    print("accepted", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.anyio
@pytest.mark.parametrize("apply", [True, False], ids=["applied", "not applied"])
async def test_d2_update_in_flight_when_the_process_is_killed_is_not_repeated(apply: bool, tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.break_next("hang", path="/engage", apply=apply)
    emulator.break_next("hang", path="/track", apply=True)
    path = tmp_path / "spool"
    async with emulator.serve() as server:
        child = popen(
            [sys.executable, "-c", CHILD, server.url, str(path)], stdout=subprocess.PIPE, text=True, modules=()
        )
        assert child.stdout is not None
        assert await anyio.to_thread.run_sync(child.stdout.readline) == "accepted\n"
        with anyio.fail_after(20):
            while {request.path for request in emulator.requests()} != {"/engage", "/track"}:
                await anyio.lowlevel.checkpoint()
        os.kill(child.pid, signal.SIGKILL)
        await anyio.to_thread.run_sync(child.wait)
        child.stdout.close()
        async with AsyncMixpanel("token", api_host=server.url, spool=SqliteSpool(path)) as mp:
            with anyio.fail_after(20):
                while mp.stats().recovered < 6 or mp.stats().pending:
                    await mp.flush(timeout=0.2)
        stats = mp.stats()
    assert (stats.uncertain, stats.delivered) == (5, 1)
    assert ((emulator.profile("user") or {}).get("visits", 0)) == (5 if apply else 0)
    assert len(emulator.events("Event")) == 1
    assert len(emulator.raw_events("Event")) == 2


async def _in_order(seed: int, updates: int) -> None:
    emulator = Emulator()
    emulator.random_faults(seed, rate=0.3, kinds=["status", "drop", "half", "empty"])
    async with emulator.client(retry=NO_BACKOFF, batching=BatchPolicy(max_events=7, max_in_flight=8, linger=0.0)) as mp:
        for number in range(1, updates + 1):
            await mp.people_set("user", {"v": number})
            await mp.group_set("company", "acme", {"v": number})
        assert (await mp.flush()).pending == 0
    assert (emulator.profile("user") or {})["v"] == updates
    assert (emulator.group("company", "acme") or {})["v"] == updates


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(2))
async def test_d3_last_of_500_updates_wins_despite_faults(seed: int) -> None:
    await _in_order(seed, 500)


@pytest.mark.long
@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(100))
async def test_d3_last_of_500_updates_wins_in_100_runs(seed: int) -> None:
    await _in_order(seed, 500)


@pytest.mark.anyio
async def test_d6_every_method_uses_only_the_configured_host(monkeypatch: pytest.MonkeyPatch) -> None:
    us, eu = Emulator(IdMerge.ORIGINAL), Emulator(IdMerge.ORIGINAL)
    async with us.serve() as other, eu.serve() as server:
        from mixpanel_async._model import origin

        # A request to the other region would reach a second server, which must stay without requests.
        regions = {**origin.REGION_ORIGINS, "us": other.url}
        monkeypatch.setattr(origin, "REGION_ORIGINS", regions)
        async with AsyncMixpanel("token", api_host=server.url, credentials=ACCOUNT) as mp:
            bound = mp.bind(distinct_id="user")
            await mp.track("user", "Event")
            mp.track_nowait("user", "Event")
            await mp.track_immediate("user", "Event")
            await mp.import_data(None, "user", "Event", 1_700_000_000)
            await mp.people_set("user", {"a": 1})
            await mp.people_delete("gone")
            await mp.group_set("company", "acme", {"a": 1})
            await mp.alias("new", "user")
            await mp.identify("user", ANON)
            await mp.merge(distinct_id1="a", distinct_id2="b")
            await bound.track("Event")
            await bound.people_set({"b": 1})
            await bound.alias("newer")
    assert us.requests() == []
    assert {request.path for request in eu.requests()} == {"/track", "/import", "/engage", "/groups"}


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["alias", "merge", "identify", "track_immediate"])
async def test_d7_call_cancelled_at_any_step_leaves_the_client_usable(verb: str) -> None:
    emulator = Emulator(IdMerge.ORIGINAL, cluster_limit=1_000)

    async def call(mp: AsyncMixpanel, number: int) -> None:
        calls: dict[str, Any] = {
            "alias": lambda: mp.alias(f"alias-{number}", "person"),
            "merge": lambda: mp.merge(distinct_id1=f"other-{number}", distinct_id2="person"),
            "identify": lambda: mp.identify("person", ANON[:-3] + f"{number:03}"),
            "track_immediate": lambda: mp.track_immediate("person", "Event", {"number": number}),
        }
        await calls[verb]()

    async with emulator.client(credentials=ACCOUNT) as mp:
        for steps in range(40):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, mp, steps)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            await call(mp, 100)
    # Started requests were completed once; none was repeated.
    assert len(emulator.requests()) == mp.stats().requests <= 41
    assert mp.stats().retries == 0


@pytest.mark.anyio
async def test_d4_timed_out_call_uses_all_attempts_and_reports_them() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.break_next("hang", times=2)
    policy = RetryPolicy(attempts=3, initial=0.0, maximum=0.0)
    async with emulator.client(identity_retry=policy, timeout=0.1) as mp:
        await mp.alias("new", "old")
        assert len(emulator.requests()) == 3
        emulator.break_next("hang", times=3)
        with pytest.raises(TransportError) as caught:
            await mp.alias("newer", "old")
        assert (caught.value.attempts, caught.value.uncertain) == (3, True)
        assert (mp.stats().accepted, mp.stats().pending) == (0, 0)
    assert emulator.cluster("new") == {"new", "old"}


@pytest.mark.anyio
@pytest.mark.parametrize("status", [400, 401, 403])
async def test_d5_rejected_merge_is_sent_once(status: int) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(status, times=5)
    async with emulator.client(credentials=ACCOUNT) as mp:
        with pytest.raises(MixpanelException) as caught:
            await mp.merge(distinct_id1="a", distinct_id2="b")
    assert getattr(caught.value, "status", None) == status
    assert len(emulator.requests()) == 1
