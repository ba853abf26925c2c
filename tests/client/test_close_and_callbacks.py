"""Close, flush, callbacks and cancellation under load and during outages."""

from __future__ import annotations

import asyncio
import threading
import tracemalloc

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    DropReason,
    IdMerge,
    LostRecord,
    Overflow,
    RetryPolicy,
)
from mixpanel_async.emulator import Emulator

LINGERING = BatchPolicy(linger=3600.0)


@pytest.mark.anyio
async def test_close_wakes_flushes_and_callers_that_wait_for_room() -> None:
    emulator = Emulator()
    emulator.fail_next(503, retry_after=300)
    policy = BatchPolicy(max_pending_events=1, linger=0.0, wait_timeout=3600.0)
    mp = emulator.client(batching=policy, overflow=Overflow.WAIT, shutdown_timeout=0.05)
    refused: list[type[Exception]] = []

    async def wait_for_room() -> None:
        try:
            await mp.track("user", "Second")
        except ClientClosedError as error:
            refused.append(type(error))

    await mp.track("user", "First")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.flush, 3600.0)
            tasks.start_soon(wait_for_room)
            while not mp.stats().retries and not emulator.requests():
                await anyio.lowlevel.checkpoint()
            await mp.aclose()
    assert refused == [ClientClosedError]


@pytest.mark.anyio
async def test_repeated_flush_in_an_outage_creates_no_batches() -> None:
    emulator = Emulator()
    emulator.fail_next(503, retry_after=300)
    async with emulator.client(shutdown_timeout=0.05) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        for _ in range(2_000):
            await mp.track("user", "Event")
            await mp.flush(timeout=0)
        batches = [batch for lane in mp._queue._buffer.active for batch in lane.batches()]
        assert len(batches) <= 3
        assert not [batch for batch in batches if batch.barriers]


@pytest.mark.anyio
@pytest.mark.parametrize("is_closed", [False, True], ids=["open", "closed"])
async def test_repeated_flush_yields_to_other_tasks_and_keeps_no_memory(is_closed: bool) -> None:
    emulator = Emulator()
    emulator.fail_next(503, retry_after=300)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with emulator.client(shutdown_timeout=0.05) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        if is_closed:
            await mp.aclose()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            tracemalloc.start()
            try:
                for _ in range(500):
                    await mp.flush(timeout=5)
                held, _ = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            tasks.cancel_scope.cancel()
    assert turns >= 499
    assert held <= 128 * 1024


@pytest.mark.anyio
async def test_losses_for_a_slow_callback_are_bounded_and_all_reported() -> None:
    told = 0
    calls = 0
    release = threading.Event()

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        nonlocal told, calls
        release.wait(10)
        told += len(records)
        calls += 1

    mp = Emulator().client(batching=BatchPolicy(max_pending_events=1, linger=3600.0), on_drop=on_drop)
    await mp.track("user", "Kept")
    for _ in range(300):
        mp.track_nowait("user", "Lost", {"text": "x" * 200_000})
    kept = sum(len(item) for entry in mp._queue.callbacks._pending for item in getattr(entry, "items", ()))
    assert kept <= 16 * 1024 * 1024
    release.set()
    await mp.aclose()
    assert told == 300
    assert calls <= 5


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, StopIteration, asyncio.CancelledError])
@pytest.mark.anyio
async def test_callback_that_raises_does_not_stop_delivery(error: type[BaseException]) -> None:
    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        raise error

    emulator = Emulator()
    emulator.fail_next(400, body=b'{"error":"no"}')
    async with emulator.client(on_drop=on_drop) as mp:
        await mp.track("user", "Event")
        await mp.flush()
        await mp.track("user", "Event")
        assert (await mp.flush()).delivered == 1


def test_cancelled_close_causes_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    emulator = Emulator()
    emulator.latency = 3600.0

    async def main() -> None:
        mp = emulator.client(timeout=3600.0, shutdown_timeout=3600.0)
        await mp.track("user", "Event")
        with anyio.move_on_after(0.05):
            closing = asyncio.ensure_future(mp.aclose())
            await asyncio.shield(closing)
        closing.cancel()

    with pytest.warns(ResourceWarning, match="1 record was"):
        asyncio.run(main())


@pytest.mark.anyio
async def test_call_cancelled_during_backoff_sends_no_further_request() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.fail_next(503, times=5)
    slow = RetryPolicy(attempts=5, initial=0.2, maximum=0.2)
    async with emulator.client(identity_retry=slow) as mp, anyio.create_task_group() as tasks:
        tasks.start_soon(mp.alias, "new", "old")
        while not emulator.requests():
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
    assert len(emulator.requests()) == 1


@pytest.mark.anyio
async def test_delivery_continues_while_all_worker_threads_are_busy() -> None:
    emulator = Emulator()
    release = threading.Event()

    def hold() -> None:
        release.wait()

    anyio.to_thread.current_default_thread_limiter().total_tokens = 2
    with emulator.serve() as server:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(anyio.to_thread.run_sync, hold)
            async with AsyncMixpanel("token", api_host=server.url) as mp:
                await mp.alias("new", "old")
                for _ in range(100):
                    await mp.track("user", "Event", {"text": "x" * 20_000})
                assert (await mp.flush()).delivered == 100
            release.set()


@pytest.mark.anyio
async def test_one_rejected_update_loses_only_itself() -> None:
    emulator = Emulator()

    def answer(request: httpx.Request) -> httpx.Response:
        bad = b'"bad"' in request.content
        return httpx.Response(200, json={"status": 0, "error": "no"} if bad else {"status": 1, "error": None})

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    async with emulator.client(http_client=http_client, batching=LINGERING) as mp:
        for number in range(20):
            await mp.people_increment("user", {"bad" if number == 7 else "good": 1})
        result = await mp.flush()
    assert (result.delivered, result.losses) == (19, {"rejected": 1})


@pytest.mark.anyio
async def test_close_waits_for_a_call_in_flight() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    emulator.latency = 0.05
    mp = emulator.client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(mp.alias, "new", "old")
        while not emulator.requests():
            await anyio.lowlevel.checkpoint()
        await mp.aclose()
    assert emulator.cluster("new") == {"new", "old"}


@pytest.mark.anyio
async def test_closed_http_client_does_not_make_records_uncertain() -> None:
    http_client = httpx.AsyncClient()
    await http_client.aclose()
    mp = Emulator().client(http_client=http_client, shutdown_timeout=0.05)
    await mp.people_increment("user", {"visits": 1})
    await mp.aclose()
    assert mp.stats().losses == {"closed": 1}
