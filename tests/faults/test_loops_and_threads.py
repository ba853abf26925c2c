"""Part B of the fault catalogue: cancellation, event loops, threads, callbacks. Test names start with the row id."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

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
    SqliteSpool,
    TransportError,
)
from mixpanel_async.emulator import Emulator

NO_BACKOFF = RetryPolicy(initial=0.0, maximum=0.0)
NO_LINGER_TIMEOUT = BatchPolicy(linger=3600.0)


def test_b1_flush_cancelled_at_any_of_200_steps_propagates_and_loses_nothing() -> None:
    emulator = Emulator()
    emulator.random_faults(1, rate=0.3, kinds=["drop", "status"])
    emulator.latency = 0.003

    async def main() -> None:
        cancelled = 0
        async with emulator.client(batching=NO_LINGER_TIMEOUT, retry=NO_BACKOFF) as mp:
            for steps in range(200):
                await mp.track("user", "Event", {"number": steps})
                task = asyncio.ensure_future(mp.flush())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                cancelled += task.cancelled()
            assert (await mp.flush()).pending == 0
        assert cancelled > 100
        assert mp.stats().delivered == 200

    asyncio.run(main())
    assert sorted(event["properties"]["number"] for event in emulator.events()) == list(range(200))


async def _cancel_at_random(calls: int) -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    chance = random.Random(2)
    async with emulator.serve() as server, AsyncMixpanel("token", api_host=server.url) as mp:
        for number in range(calls):
            if number % 20 == 0:
                # Some cancellations then hit a connection that is being opened.
                server.cut_connections()
            async with anyio.create_task_group() as tasks:
                # In Original ID Merge, a person has at most 500 ids.
                tasks.start_soon(mp.alias, f"alias-{number}", f"person-{number % 10}")
                for _ in range(chance.randrange(31)):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        with anyio.fail_after(5):
            await mp.alias("last", "person-0")
    assert "last" in emulator.cluster("person-0")


@pytest.mark.anyio
async def test_b2_randomly_cancelled_callers_leave_the_pool_usable() -> None:
    await _cancel_at_random(100)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.anyio
async def test_b2_1_000_randomly_cancelled_callers_leave_the_pool_usable() -> None:
    await _cancel_at_random(1_000)


@pytest.mark.anyio
async def test_b2_exhausted_pool_recovers() -> None:
    emulator = Emulator(IdMerge.ORIGINAL)
    once = RetryPolicy(attempts=1)
    failures = 0
    async with (
        emulator.serve() as server,
        AsyncMixpanel("token", api_host=server.url, timeout=0.4, identity_retry=once) as mp,
    ):
        emulator.break_next("hang", times=1_000)

        async def call(number: int) -> None:
            nonlocal failures
            with pytest.raises(TransportError):
                await mp.alias(f"alias-{number}", "person")
            failures += 1

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(call, number)
        emulator.stop_faults()
        await mp.alias("last", "person")
    assert failures == 60
    assert emulator.cluster("last") == {"last", "person"}


async def _from_threads(threads: int, calls: int) -> list[float]:
    """Track from threads while the event loop is blocked. Return the seconds that each call durations."""
    emulator = Emulator()
    durations: list[float] = []

    def work(thread: int) -> None:
        own = []
        for number in range(calls):
            began = time.perf_counter()
            mp.track_nowait("user", "Event", {"at": f"{thread}/{number}"})
            own.append(time.perf_counter() - began)
        durations.extend(own)

    async with emulator.client() as mp:
        workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
        for worker in workers:
            worker.start()
        # The loop continues only after the threads end, so none of them may wait for it.
        for worker in workers:
            worker.join()
        result = await mp.flush()
        assert result.pending == 0
    assert mp.stats().delivered == threads * calls
    assert len({event["properties"]["at"] for event in emulator.events()}) == threads * calls
    return durations


@pytest.mark.anyio
async def test_b5_tracking_threads_do_not_wait_for_a_blocked_loop() -> None:
    await _from_threads(16, 250)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.anyio
async def test_b5_160_000_calls_of_16_threads_during_a_blocked_loop() -> None:
    durations = sorted(await _from_threads(16, 10_000))
    p50, p99 = (durations[at] * 1e6 for at in (80_000, 158_400))
    sys.stdout.write(f"\ntrack_nowait beside 15 other threads: p50 {p50:.0f} us, p99 {p99:.0f} us\n")


class TracksWhenCollected:
    """Object whose finalizer tracks. A reference cycle leaves it to the garbage collector."""

    def __init__(self, mp: AsyncMixpanel) -> None:
        self.mp = mp
        self.cycle = self

    def __del__(self) -> None:
        self.mp.track_nowait("finalizer", "Collected")


@pytest.mark.parametrize("with_spool", [False, True])
def test_b5_caller_that_waits_for_room_continues_after_another_loop_took_over(with_spool: bool, tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=100_000)
    batching = BatchPolicy(max_events=1, max_pending_events=1, linger=0.0)
    spool = SqliteSpool(tmp_path / "spool.db", max_records=1) if with_spool else None
    mp = emulator.client(spool=spool, overflow=Overflow.WAIT, batching=batching, retry=NO_BACKOFF)

    async def take_over(has_moved: threading.Event, may_end: threading.Event) -> None:
        await mp.flush(timeout=0.1)
        has_moved.set()
        # A caller in this event loop waits, too.
        waiting = asyncio.create_task(mp.track("user", "Event", {"number": 2}))
        await asyncio.sleep(0.1)
        emulator.stop_faults()
        await waiting
        await asyncio.to_thread(may_end.wait)

    async def main() -> None:
        has_moved, may_end = threading.Event(), threading.Event()
        await mp.track("user", "Event", {"number": 0})
        waiting = asyncio.create_task(mp.track("user", "Event", {"number": 1}))
        await asyncio.sleep(0.1)
        other = threading.Thread(target=lambda: asyncio.run(take_over(has_moved, may_end)))
        other.start()
        # Blocks this event loop, so that the other one takes over.
        has_moved.wait()
        try:
            await asyncio.wait_for(waiting, 10.0)
        finally:
            may_end.set()
            await asyncio.to_thread(other.join)
        assert (await mp.aclose()).pending == 0

    asyncio.run(main())
    assert sorted(event["properties"]["number"] for event in emulator.raw_events()) == [0, 1, 2]


@pytest.mark.anyio
async def test_b6_tracking_finalizer_corrupts_nothing() -> None:
    emulator = Emulator()
    thresholds = gc.get_threshold()
    # The client stays alive while the last finalizers run.
    mp = emulator.client()
    gc.set_threshold(7)
    try:
        for number in range(2_000):
            TracksWhenCollected(mp)
            await mp.track("user", "Event", {"number": number})
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
    await mp.aclose()
    stats = mp.stats()
    assert stats.delivered == stats.accepted == 4_000
    assert len(emulator.events("Collected")) == 2_000


@pytest.mark.anyio
async def test_b6_drops_are_logged_once_in_20_seconds(caplog: pytest.LogCaptureFixture) -> None:
    mp = Emulator().client(batching=BatchPolicy(max_pending_events=1, linger=3600.0))
    for _ in range(5_000):
        mp.track_nowait("user", "Event")
    warnings = [
        record for record in caplog.records if record.name == "mixpanel_async" and record.levelno >= logging.WARNING
    ]
    assert len(warnings) == 1
    await mp.aclose()
    assert "4999 so far" in caplog.records[-1].getMessage()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
async def test_b7_callback_that_raises_1_000_times_stops_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    calls = 0

    def plain(records: list[LostRecord], reason: DropReason) -> None:
        nonlocal calls
        calls += len(records)
        raise RuntimeError("canary")

    async def coroutine(records: list[LostRecord], reason: DropReason) -> None:
        plain(records, reason)

    def answer(request: httpx.Request) -> httpx.Response:
        good = b'"good"' in request.content
        return httpx.Response(200, json={"status": 1}) if good else httpx.Response(406, json={"error": "no"})

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    options: dict[str, Any] = {"on_drop": plain if kind == "plain" else coroutine, "http_client": http_client}
    async with Emulator().client(batching=BatchPolicy(max_events=1), **options) as mp:
        for _ in range(1_000):
            await mp.track("user", "bad")
        await mp.flush()
        await mp.track("user", "good")
        assert (await mp.flush()).delivered == 1
    assert calls == 1_000
    assert len([record for record in caplog.records if "on_drop raised" in record.getMessage()]) == 1
    assert "canary" not in caplog.text


def test_b7_every_loss_is_reported_although_event_loops_end_while_callbacks_run() -> None:
    reported: list[LostRecord] = []
    batching = BatchPolicy(max_pending_events=1, linger=3600.0)
    mp = Emulator().client(batching=batching, on_drop=lambda records, _: reported.extend(records), loop_end_timeout=0.0)

    async def lose_one(steps: int) -> None:
        await mp.track("user", "Event")
        await mp.track("user", "Event")
        for _ in range(steps):
            await asyncio.sleep(0)

    for steps in range(30):
        asyncio.run(lose_one(steps % 10))
    asyncio.run(mp.aclose())
    assert len(reported) == mp.stats().dropped >= 30


@pytest.mark.anyio
async def test_b7_blocking_callback_delays_neither_the_loop_nor_delivery() -> None:
    emulator = Emulator()
    emulator.fail_next(400, body=b'{"error":"no"}')
    entered, release = threading.Event(), threading.Event()

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        entered.set()
        release.wait(20)

    mp = emulator.client(on_drop=on_drop, batching=BatchPolicy(linger=0.0))
    try:
        await mp.track("user", "Bad")
        await anyio.to_thread.run_sync(entered.wait)
        for _ in range(10):
            await mp.track_immediate("user", "Good")
            await mp.track("user", "Good")
        with anyio.fail_after(10):
            while mp.stats().delivered < 20:
                await anyio.lowlevel.checkpoint()
        assert not release.is_set()
    finally:
        release.set()
    await mp.aclose()
    assert len(emulator.events("Good")) == 20


@pytest.mark.anyio
@pytest.mark.parametrize("with_spool", [False, True], ids=["memory", "spool"])
async def test_b9_event_about_each_request_causes_no_request_loop(with_spool: bool, tmp_path: Path) -> None:
    emulator = Emulator()
    requests = 0

    async def note(request: httpx.Request) -> None:
        nonlocal requests
        requests += 1
        mp.track_nowait("http", "Request", {"path": request.url.path})
        await mp.track("http", "Request", {"path": request.url.path})

    inner = httpx.ASGITransport(app=emulator.app)
    http_client = httpx.AsyncClient(transport=inner, event_hooks={"request": [note]})
    spool = SqliteSpool(tmp_path / "spool") if with_spool else None
    mp = emulator.client(http_client=http_client, spool=spool, batching=BatchPolicy(linger=0.0))
    await mp.track("user", "First")
    while not emulator.events("First"):
        await anyio.lowlevel.checkpoint()
    # The events about requests cause no request.
    await anyio.sleep(0.1)
    assert requests == 1
    assert mp.stats().pending == 2
    await mp.track("user", "Second")
    while not emulator.events("Second"):
        await anyio.lowlevel.checkpoint()
    # They were sent together with the next event.
    assert requests <= 3
    assert len(emulator.events("Request")) in {2, 4}
    assert (await mp.aclose()).failed == 0
    await http_client.aclose()
    stats = mp.stats()
    assert stats.accepted == 2 + 2 * requests
    # The events about the last request are tracked after the close has started.
    assert stats.losses in ({"closed": 2}, {})


PROGRAM = """
    import asyncio
    from mixpanel_async import AsyncMixpanel, BatchPolicy

    async def main(origin):
        async with AsyncMixpanel("token", api_host=origin, batching=BatchPolicy(max_events=50)) as mp:
            await mp.alias("new", "user")
            for number in range(500):
                await mp.track("user", "Event", {"number": number})
            await mp.people_increment("user", {"visits": 1})
            await asyncio.gather(*(mp.track("user", "Together") for _ in range(100)))
            assert (await mp.flush()).pending == 0
            await mp.track("user", "Last")
        stats = mp.stats()
        assert stats.delivered == stats.accepted == 602, stats
"""
RUNTIMES = {
    "debug": "asyncio.run(main(origin), debug=True)",
    "uvloop": "import uvloop; uvloop.run(main(origin))",
    "gevent": "asyncio.run(main(origin))",
    "eager": (
        "loop = asyncio.new_event_loop(); loop.set_task_factory(getattr(asyncio, 'eager_task_factory', None)); "
        "loop.run_until_complete(main(origin)); loop.close()"
    ),
}


@pytest.mark.parametrize(
    "runtime",
    [
        pytest.param("debug", id="b10_debug"),
        pytest.param("uvloop", id="b10_uvloop"),
        pytest.param("eager", id="b10_eager"),
        pytest.param("gevent", id="b12_gevent"),
    ],
)
def test_b10_b12_client_works_in_other_runtimes(runtime: str) -> None:
    head = "from gevent import monkey; monkey.patch_all()\n" if runtime == "gevent" else ""
    code = head + textwrap.dedent(PROGRAM) + f"import sys; origin = sys.argv[1]; {RUNTIMES[runtime]}"
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as server:
        done = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=25, check=False
        )
    assert done.returncode == 0, done.stderr
    # In debug mode, asyncio logs slow steps, which happen on a busy machine.
    assert [line for line in done.stderr.splitlines() if not line.startswith("Executing <")] == []
    assert len(emulator.events("Event")) == 500
    assert (emulator.profile("user") or {})["visits"] == 1


def test_b10_unknown_event_loop_raises_and_loses_nothing() -> None:
    emulator = Emulator()
    mp = emulator.client()
    # Drive the coroutine by hand, like an unknown event loop.
    flushing = mp.flush()
    with pytest.raises(ClientClosedError, match="asyncio or trio"):
        flushing.send(None)
    starting = mp.start()
    with pytest.raises(ClientClosedError, match="asyncio or trio"):
        starting.send(None)
    mp.track_nowait("user", "Event")
    asyncio.run(_close(mp))
    assert len(emulator.events()) == 1


async def _close(mp: AsyncMixpanel) -> None:
    await mp.aclose()


@pytest.mark.anyio
async def test_b13_event_tracked_during_a_flush_is_sent_after_its_linger() -> None:
    emulator = Emulator()
    emulator.latency = 0.05
    async with emulator.client(batching=BatchPolicy(linger=0.02)) as mp:
        await mp.track("user", "First")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(mp.flush)
            while not mp.stats().in_flight:
                await anyio.lowlevel.checkpoint()
            await mp.track("user", "Last")
        with anyio.fail_after(10):
            while not emulator.events("Last"):
                await anyio.lowlevel.checkpoint()
