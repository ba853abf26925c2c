"""Event loops that end, are dropped or lose their tasks while the client is in use."""

from __future__ import annotations

import asyncio
import sys
import types
import warnings

import pytest

from mixpanel_async import (
    BatchPolicy,
    RetryPolicy,
)
from mixpanel_async.emulator import Emulator

AT_ONCE = RetryPolicy(initial=0.0, maximum=0.0)


@pytest.mark.parametrize("ticks", range(8))
@pytest.mark.parametrize("kind", ["track", "people", "immediate"])
def test_loop_that_ends_at_any_step_leaves_no_lease(ticks: int, kind: str) -> None:
    emulator = Emulator()
    mp = emulator.client(retry=AT_ONCE, batching=BatchPolicy(linger=0.0))

    async def send(number: int) -> None:
        if kind == "track":
            await mp.track("user", "Event", {"number": number})
        elif kind == "people":
            await mp.people_set("user", {"number": number})
        else:
            await mp.track_immediate("user", "Event", {"number": number})

    async def first() -> None:
        task = asyncio.ensure_future(send(0))
        for _ in range(ticks):
            await asyncio.sleep(0)
        task.cancel()

    async def second() -> None:
        for number in range(1, 4):
            await send(number)
        await mp.aclose()

    asyncio.run(first())
    asyncio.run(second())
    stats = mp.stats()
    assert (stats.pending, stats.in_flight) == (0, 0)
    assert stats.delivered >= 3
    if kind == "people":
        assert (emulator.profile("user") or {})["number"] == 3


@pytest.mark.parametrize("ticks", range(6))
def test_loop_dropped_without_cancellation_leaves_no_lease(ticks: int) -> None:
    emulator = Emulator()
    mp = emulator.client(retry=AT_ONCE, batching=BatchPolicy(linger=0.0))

    async def first() -> None:
        await mp.people_set("user", {"number": 0})
        for _ in range(ticks):
            await asyncio.sleep(0)

    async def second() -> None:
        await mp.people_set("user", {"number": 1})
        await mp.aclose()

    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    loop.run_until_complete(first())
    tasks = asyncio.all_tasks(loop)
    asyncio.run(second())
    assert mp.stats().delivered == 2
    assert (emulator.profile("user") or {})["number"] == 1
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    assert mp.stats().delivered == 2


def test_client_closes_in_a_loop_after_all_tasks_were_cancelled() -> None:
    emulator = Emulator()

    async def main() -> None:
        mp = emulator.client(batching=BatchPolicy(linger=0.0), retry=AT_ONCE)
        await mp.people_set("user", {"a": 1})
        await asyncio.sleep(0)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()
        await mp.people_set("user", {"b": 1})
        assert (await mp.aclose()).pending == 0
        assert mp.stats().delivered == 2

    asyncio.run(main())
    assert emulator.profile("user") is not None


def test_partially_imported_trio_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = Emulator()
    half = types.ModuleType("trio")
    monkeypatch.setitem(sys.modules, "trio", half)
    monkeypatch.setitem(sys.modules, "trio.lowlevel", types.ModuleType("trio.lowlevel"))

    async def main() -> None:
        async with emulator.client() as mp:
            await mp.track("user", "Event")

    asyncio.run(main())
    assert len(emulator.events("Event")) == 1


def test_loop_that_has_closed_its_generators_goes_on_while_warnings_are_errors() -> None:
    emulator = Emulator()
    mp = emulator.client()

    async def main() -> None:
        for number in range(3):
            await mp.track("user", "Event", {"number": number})
            await asyncio.get_running_loop().shutdown_asyncgens()
        assert len(emulator.events("Event")) == 1

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    asyncio.run(mp.aclose())
    assert mp.stats().delivered == 3
