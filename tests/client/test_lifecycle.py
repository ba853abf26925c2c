"""Lifecycle of a client: creation, start, event loops, cancellation, close and garbage collection."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import pickle
import subprocess
import sys
import threading
import warnings
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from mixpanel_async import AsyncMixpanel, BatchPolicy, ClientClosedError, RetryPolicy
from mixpanel_async.emulator import Emulator

MADE_AT_IMPORT_TIME = Emulator()
CLIENT_MADE_AT_IMPORT_TIME = MADE_AT_IMPORT_TIME.client()
LINGERING = BatchPolicy(linger=3600.0)


@pytest.mark.anyio
async def test_client_created_at_import_time_starts_at_the_first_call() -> None:
    emulator = Emulator()
    mp = emulator.client()
    await mp.track("user", "Lazy")
    await mp.aclose()
    assert len(emulator.events("Lazy")) == 1


def test_module_level_client_works_in_the_loop_of_a_test() -> None:
    async def main() -> None:
        await CLIENT_MADE_AT_IMPORT_TIME.track("user", "Event")
        assert (await CLIENT_MADE_AT_IMPORT_TIME.flush()).delivered == 1

    asyncio.run(main())
    assert len(MADE_AT_IMPORT_TIME.events("Event")) == 1


@pytest.mark.anyio
async def test_client_can_be_started_and_closed_in_different_tasks() -> None:
    emulator = Emulator()
    mp = emulator.client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mp.start)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mp.track, "user", "Event")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mp.aclose)
    assert len(emulator.events("Event")) == 1


@pytest.mark.anyio
async def test_second_start_has_no_effect() -> None:
    mp = Emulator().client()
    await mp.start()
    await mp.start()
    async with mp:
        await mp.track("user", "Event")
    assert mp.stats().delivered == 1


@pytest.mark.anyio
async def test_records_tracked_without_a_loop_are_delivered_later() -> None:
    emulator = Emulator()
    mp = emulator.client()
    thread = threading.Thread(target=mp.track_nowait, args=("user", "Early"))
    thread.start()
    await anyio.to_thread.run_sync(thread.join)
    assert mp.stats().pending == 1
    await mp.aclose()
    assert len(emulator.events("Early")) == 1


def test_second_asyncio_run_delivers_records_of_the_first() -> None:
    emulator = Emulator()
    mp = emulator.client(batching=LINGERING, loop_end_timeout=0.1)

    async def first() -> None:
        await mp.track("user", "First")

    async def second() -> None:
        await mp.track("user", "Second")
        await mp.alias("new", "old")
        await mp.aclose()

    emulator.fail_next(503, times=1_000_000)
    asyncio.run(first())
    assert mp.stats().pending == 1
    emulator.stop_faults()
    asyncio.run(second())
    assert {event["event"] for event in emulator.events()} == {"First", "Second", "$create_alias"}


def test_client_moves_from_asyncio_to_trio() -> None:
    emulator = Emulator()
    mp = emulator.client(batching=LINGERING)
    asyncio.run(_track(mp, "First"))
    trio.run(_track, mp, "Second")
    trio.run(_track, mp, "Third")
    asyncio.run(_close(mp))
    assert mp.stats().delivered == 3
    assert len(emulator.events()) == 3


async def _track(mp: AsyncMixpanel, name: str) -> None:
    await mp.track("user", name)


async def _close(mp: AsyncMixpanel) -> None:
    await mp.aclose()


@pytest.mark.anyio
async def test_repeated_and_concurrent_close_returns_the_same_result() -> None:
    emulator = Emulator()
    mp = emulator.client()
    await mp.track("user", "Event")
    results: list[Any] = []

    async def close() -> None:
        results.append(await mp.aclose())

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(close)
    results.append(await mp.aclose())
    assert {result.delivered for result in results} == {1}
    assert len(emulator.raw_events()) == 1


@pytest.mark.anyio
async def test_cancelled_block_still_delivers() -> None:
    emulator = Emulator()
    with anyio.CancelScope() as scope:
        async with emulator.client(batching=LINGERING) as mp:
            await mp.track("user", "Event")
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert mp.stats().delivered == 1
    assert len(emulator.events("Event")) == 1


@pytest.mark.anyio
async def test_block_that_raises_still_delivers() -> None:
    emulator = Emulator()

    async def handler() -> None:
        async with emulator.client() as mp:
            await mp.track("user", "Event")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await handler()
    assert len(emulator.events("Event")) == 1


@pytest.mark.anyio
async def test_close_ends_at_its_deadline_without_a_response() -> None:
    emulator = Emulator()
    emulator.latency = 3600.0
    mp = emulator.client(shutdown_timeout=0.1, timeout=3600.0)
    await mp.track("user", "Event")
    await mp.people_increment("user", {"visits": 1})
    with anyio.fail_after(10):
        result = await mp.aclose()
    assert (result.delivered, result.failed, result.pending) == (0, 2, 0)
    assert mp.stats().losses == {"closed": 1, "uncertain": 1}


@pytest.mark.anyio
async def test_flush_cancelled_at_any_step_loses_nothing() -> None:
    emulator = Emulator()
    sent = 0
    async with emulator.client(batching=LINGERING) as mp:
        for steps in range(60):
            await mp.track("user", "Event", {"number": steps})
            sent += 1
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mp.flush)
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        await mp.flush()
        assert mp.stats().delivered == sent
    assert {event["properties"]["number"] for event in emulator.events("Event")} == set(range(60))
    assert len(emulator.raw_events("Event")) == 60


@pytest.mark.anyio
async def test_cancelled_close_can_be_called_again() -> None:
    emulator = Emulator()
    mp = emulator.client(batching=LINGERING)
    await mp.track("user", "Event")
    with anyio.CancelScope() as scope:
        scope.cancel()
        with contextlib.suppress(ClientClosedError):
            await mp.aclose()
    assert (await mp.aclose()).delivered == 1
    assert len(emulator.events("Event")) == 1


def test_native_cancellation_of_track_at_any_step_loses_nothing() -> None:
    """Every record that `stats()` counts as accepted arrives, even if `track` is cancelled."""
    emulator = Emulator()

    async def work(mp: AsyncMixpanel) -> None:
        for _ in range(200):
            await mp.track("user", "Event")

    async def main() -> None:
        async with emulator.client() as mp:
            for steps in range(12):
                task = asyncio.ensure_future(work(mp))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        stats = mp.stats()
        assert stats.accepted == stats.delivered == len(emulator.events("Event"))

    asyncio.run(main())


def test_loop_that_ends_without_close_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()

    async def main() -> None:
        mp = emulator.client(batching=LINGERING, loop_end_timeout=0.1)
        for _ in range(500):
            await mp.track("user", "Event")

    emulator.fail_next(503, times=1_000_000)
    with caplog.at_level(logging.WARNING), pytest.warns(ResourceWarning, match="500 records"):
        asyncio.run(main())
    assert "before 500 records were delivered" in caplog.text


@pytest.mark.anyio
async def test_dropped_client_delivers_and_leaves_no_task() -> None:
    emulator = Emulator()
    clients = [emulator.client(batching=LINGERING)]
    await clients[0].track("user", "Event")
    with pytest.warns(ResourceWarning, match="1 record was"):
        clients.clear()
    with anyio.fail_after(5):
        while [task for task in anyio.get_running_tasks() if "mixpanel" in (task.name or "")]:
            await anyio.lowlevel.checkpoint()
    assert len(emulator.events("Event")) == 1


@pytest.mark.anyio
async def test_dropped_client_without_pending_records_is_silent() -> None:
    clients = [Emulator().client()]
    await clients[0].track("user", "Event")
    assert (await clients[0].flush()).pending == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clients.clear()
        gc.collect()
    assert not [warning for warning in caught if "aclose" in str(warning.message)]


def test_client_cannot_be_pickled_and_its_repr_has_no_secret() -> None:
    mp = AsyncMixpanel("canary-token")
    assert "canary" not in repr(mp)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(mp, protocol)
    with pytest.raises(TypeError, match="cannot be pickled"):
        copy.deepcopy(mp)


def test_two_clients_are_independent() -> None:
    one, two = Emulator(), Emulator()

    async def main() -> None:
        async with one.client() as first, two.client() as second:
            await first.track("user", "Event")
            await first.flush()
            assert second.stats().accepted == 0

    asyncio.run(main())
    assert (len(one.events()), len(two.events())) == (1, 0)


def test_outage_is_logged_once_per_episode(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=20)

    async def main() -> None:
        async with emulator.client(retry=RetryPolicy(initial=0.0, maximum=0.0)) as mp:
            await mp.track("canary-user", "canary-event", {"canary": "canary"})
            await mp.flush()

    with caplog.at_level(logging.DEBUG, logger="mixpanel_async"):
        asyncio.run(main())
    ours = [record for record in caplog.records if record.name.startswith("mixpanel_async")]
    assert [record.levelname for record in ours if record.levelno > logging.DEBUG] == ["WARNING"]
    assert not [record for record in ours if "canary" in record.getMessage()]


def test_interpreter_exit_reports_undelivered_records() -> None:
    code = (
        "import asyncio\n"
        "from mixpanel_async.emulator import Emulator\n"
        "from mixpanel_async import BatchPolicy\n"
        "emulator = Emulator()\n"
        "emulator.fail_next(503, times=1_000_000)\n"
        "mp = emulator.client(batching=BatchPolicy(linger=3600.0), loop_end_timeout=0.2)\n"
        "async def main():\n"
        "    for _ in range(500):\n"
        "        await mp.track('user', 'Event')\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].startswith("closed: 0 delivered, 500 lost")
    assert "Traceback" not in done.stderr
