"""Calls from event loops and threads other than the client's own."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
from forked_python import popen
from forked_python import run as run_forked

from mixpanel_async import AsyncMixpanel, BatchPolicy, IdMerge, Overflow, RetryPolicy, SqliteSpool
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=3)

LINGERING = BatchPolicy(linger=3600.0)
BACKENDS = ["asyncio", "trio"]
ANON_ID = "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"

Call = Callable[[AsyncMixpanel], Awaitable[Any]]

CALLS: dict[str, Call] = {
    "track": lambda mp: mp.track("user", "Event", {"a": 1}),
    "track without properties": lambda mp: mp.track("user", "Event"),
    "people_increment": lambda mp: mp.people_increment("user", {"n": 1}),
    "group_set": lambda mp: mp.group_set("company", "acme", {"n": 1}),
    "track_immediate": lambda mp: mp.track_immediate("user", "Event"),
    "alias": lambda mp: mp.alias("new", "user"),
    "identify": lambda mp: mp.identify("user", ANON_ID),
    "merge": lambda mp: mp.merge(None, "user", "other"),
    "start": lambda mp: mp.start(),
    "flush": lambda mp: mp.flush(),
    "aclose": lambda mp: mp.aclose(),
}


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Make warnings about unclosed sockets fail the test that left them."""
    yield
    gc.collect()


@contextmanager
def emulated(**options: Any) -> Iterator[tuple[Emulator, AsyncMixpanel]]:
    """Return an emulator on a socket and a client of it, and check conservation at the end."""
    emulator = Emulator(IdMerge.ORIGINAL)
    with emulator.serve() as server:
        mp = AsyncMixpanel("token", api_host=server.url, id_merge=IdMerge.ORIGINAL, **options)
        yield emulator, mp
    stats = mp.stats()
    assert stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending


@contextmanager
def running(mp: AsyncMixpanel, backend: str) -> Iterator[None]:
    """Start the client in an event loop of another thread, which runs until the end of the block."""
    with anyio.from_thread.start_blocking_portal(backend) as portal:
        portal.call(mp.start)
        yield


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("other", BACKENDS)
def test_call_from_another_running_loop(method: str, backend: str, other: str) -> None:
    with emulated(batching=LINGERING) as (emulator, mp), running(mp, backend):
        anyio.run(mp.track, "user", "Before", {"a": 1}, backend=other)
        anyio.run(CALLS[method], mp, backend=other)
        anyio.run(mp.aclose, backend=other)
        stats = mp.stats()
        assert stats.delivered == stats.accepted
        assert len(emulator.events("Before")) == 1
        if method.startswith("track"):
            assert len(emulator.events("Event")) == 1


@pytest.mark.parametrize("method", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_call_while_the_loop_of_the_client_is_blocked(method: str, backend: str) -> None:
    """The situation of a synchronous test client inside an asynchronous test."""
    with emulated(batching=LINGERING) as (emulator, mp):

        async def main() -> None:
            await mp.track("user", "Before", {"a": 1})
            await mp.flush()
            thread = threading.Thread(target=anyio.run, args=(CALLS[method], mp), kwargs={"backend": backend})
            thread.start()
            thread.join()
            await mp.aclose()

        asyncio.run(main())
        assert mp.stats().delivered == mp.stats().accepted
        assert len(emulator.events("Before")) == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("method", [name for name in CALLS if name not in {"start", "flush", "aclose"}])
def test_loop_delivers_before_it_ends(method: str, backend: str) -> None:
    with emulated(batching=LINGERING) as (_, mp):
        for _ in range(3):
            anyio.run(CALLS[method], mp, backend=backend)
            assert mp.stats().pending == 0
        assert mp.stats().delivered == mp.stats().accepted
        if method == "people_increment":
            assert mp.stats().requests == 3
        anyio.run(mp.aclose, backend=backend)


def test_task_that_is_cancelled_at_the_end_of_the_loop_may_track() -> None:
    with emulated(batching=LINGERING) as (emulator, mp):

        async def worker() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await mp.track("user", "Stopped")

        async def stream() -> Any:
            try:
                yield 1
            finally:
                await mp.track("user", "Stream closed")

        async def main() -> None:
            task = asyncio.create_task(worker())
            chunks = stream()
            await anext(chunks)
            await asyncio.sleep(0)
            main.keep = (task, chunks)  # type: ignore[attr-defined]

        asyncio.run(main())
        assert mp.stats().pending == 0
        assert {event["event"] for event in emulator.events()} == {"Stopped", "Stream closed"}
        asyncio.run(mp.aclose())


def test_records_that_a_loop_could_not_deliver_wait_for_the_next(caplog: pytest.LogCaptureFixture) -> None:
    retry = RetryPolicy(initial=0.01, maximum=0.01)
    with emulated(batching=LINGERING, retry=retry, loop_end_timeout=0.2) as (emulator, mp):
        emulator.fail_next(503, times=1_000_000)
        asyncio.run(CALLS["track"](mp))  # type: ignore[arg-type]
        assert mp.stats().pending == 1
        assert "before 1 record was delivered; it waits for the next event loop" in caplog.text
        emulator.stop_faults()
        asyncio.run(mp.aclose())
        assert len(emulator.events("Event")) == 1


def test_event_tracked_after_all_tasks_were_cancelled_is_sent_without_another_call() -> None:
    with emulated(batching=BatchPolicy(linger=0.01)) as (emulator, mp):

        async def main() -> None:
            await mp.start()
            for task in asyncio.all_tasks():
                if task is not asyncio.current_task():
                    task.cancel()
            await mp.track("user", "Event", {"a": 1})
            with anyio.fail_after(5):
                while not emulator.events("Event"):
                    await anyio.lowlevel.checkpoint()
            await mp.aclose()

        asyncio.run(main())


@pytest.mark.parametrize("backend", BACKENDS)
def test_awaited_call_survives_the_end_of_the_loop_that_runs_it(backend: str) -> None:
    with emulated() as (emulator, mp):
        emulator.latency = 0.3
        begun, may_end = threading.Event(), threading.Event()

        async def owner() -> None:
            await mp.start()
            begun.set()
            await anyio.to_thread.run_sync(may_end.wait)

        async def caller() -> None:
            await mp.alias("new", "user")
            await mp.aclose()

        async def end_soon() -> None:
            while mp.stats().requests == 0:
                await anyio.lowlevel.checkpoint()
            may_end.set()

        async def main() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(caller)
                tasks.start_soon(end_soon)

        thread = threading.Thread(target=anyio.run, args=(owner,), kwargs={"backend": backend})
        thread.start()
        begun.wait()
        anyio.run(main)
        thread.join()
        assert emulator.cluster("new") == {"new", "user"}


def test_four_threads_with_a_loop_per_call_lose_nothing() -> None:
    calls = 60
    with emulated(batching=BatchPolicy(linger=0.01)) as (emulator, mp):

        async def handle(number: int) -> None:
            await mp.track("user", "Event", {"number": number})
            await mp.people_increment("user", {"n": 1})

        def work(thread: int) -> None:
            for number in range(calls):
                asyncio.run(handle(thread * calls + number))

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(mp.aclose())
        stats = mp.stats()
        assert sorted(event["properties"]["number"] for event in emulator.events("Event")) == list(range(4 * calls))
        assert (stats.pending, stats.dropped, stats.failed) == (0, 0, 0)
        applied = (emulator.profile("user") or {})["n"]
        # A request that an ending event loop cuts may have been applied.
        assert 4 * calls - stats.uncertain <= applied <= 4 * calls


@pytest.mark.parametrize("other", BACKENDS)
def test_caller_in_another_loop_waits_for_room(other: str) -> None:
    policy = BatchPolicy(max_pending_events=5, max_events=5, linger=0.01)
    with emulated(batching=policy, overflow=Overflow.WAIT) as (emulator, mp), running(mp, "asyncio"):

        async def burst() -> None:
            for number in range(50):
                await mp.track("user", "Event", {"number": number})

        anyio.run(burst, backend=other)
        anyio.run(mp.aclose, backend=other)
        assert len(emulator.events("Event")) == 50


@pytest.mark.parametrize("other", BACKENDS)
def test_spool_commits_records_of_two_loops(other: str, tmp_path: Path) -> None:
    with (
        emulated(batching=LINGERING, spool=SqliteSpool(tmp_path / "spool.db")) as (emulator, mp),
        running(mp, "asyncio"),
    ):

        async def burst() -> None:
            async with anyio.create_task_group() as tasks:
                for number in range(50):
                    tasks.start_soon(mp.track, "user", "Event", {"number": number})

        threads = [threading.Thread(target=anyio.run, args=(burst,), kwargs={"backend": name}) for name in BACKENDS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        anyio.run(mp.aclose, backend=other)
        assert len(emulator.events("Event")) == 100


def test_cancelled_flush_from_another_loop_ends_at_once() -> None:
    with emulated(batching=LINGERING) as (emulator, mp), running(mp, "asyncio"):
        emulator.latency = 5.0

        async def main() -> None:
            await mp.track("user", "Event")
            began = time.monotonic()
            with anyio.move_on_after(0.1):
                await mp.flush()
            assert time.monotonic() - began < 3.0
            emulator.latency = 0.0

        anyio.run(main)
        anyio.run(mp.aclose)


def test_warning_if_no_loop_runs_the_client(caplog: pytest.LogCaptureFixture) -> None:
    with emulated() as (emulator, mp):
        mp.track_nowait("user", "Event")
        mp.track_nowait("user", "Event")
        deadline = time.monotonic() + 10.0
        while "no event loop runs the client" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        lines = [line for line in caplog.messages if "no event loop" in line]
        assert len(lines) == 1
        assert lines[0].startswith("2 records are waiting")
        asyncio.run(mp.aclose())
        assert len(emulator.events("Event")) == 2


def test_no_warning_if_a_loop_takes_over(caplog: pytest.LogCaptureFixture) -> None:
    with emulated() as (_, mp), caplog.at_level(logging.WARNING):
        mp.track_nowait("user", "Event")
        asyncio.run(mp.aclose())
        assert not caplog.messages


# Ends of a process. Each program prints nothing, exits, and has delivered its 20 events.
ENDINGS = {
    "no loop at all": "for n in range(20): mp.track_nowait('u', 'E', {'n': n})",
    "asyncio.run per call": "for n in range(20): asyncio.run(track(n))",
    "stopped loop": """
        loop = asyncio.new_event_loop()
        for n in range(20): loop.run_until_complete(track(n))
        """,
    "closed loop": """
        loop = asyncio.new_event_loop()
        for n in range(20): loop.run_until_complete(track(n))
        loop.close()
        """,
    "exception in run_until_complete": """
        loop = asyncio.new_event_loop()
        for n in range(20): loop.run_until_complete(track(n))
        async def fail(): raise SystemExit(0)
        loop.run_until_complete(fail())
        """,
    "interrupted run_forever": """
        loop = asyncio.new_event_loop()
        for n in range(20): loop.run_until_complete(track(n))
        loop.call_later(0.01, signal.raise_signal, signal.SIGINT)
        try: loop.run_forever()
        except KeyboardInterrupt: pass
        """,
    "exit in a callback": """
        loop = asyncio.new_event_loop()
        for n in range(20): loop.run_until_complete(track(n))
        loop.call_later(0.01, sys.exit)
        loop.run_forever()
        """,
    "loop in a daemon thread": """
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        for n in range(20): asyncio.run_coroutine_threadsafe(track(n), loop).result()
        """,
    "client that was dropped": """
        for n in range(20): mp.track_nowait('u', 'E', {'n': n})
        del mp
        """,
    "interrupted trio": """
        import trio
        async def main():
            for n in range(20): await track(n)
            signal.raise_signal(signal.SIGINT)
            await trio.sleep(10)
        try: trio.run(main)
        except KeyboardInterrupt: pass
        """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_process_ends_and_has_delivered(ending: str) -> None:
    program = """
        import asyncio, signal, sys, threading
        from mixpanel_async import AsyncMixpanel, BatchPolicy
        mp = AsyncMixpanel("token", api_host=sys.argv[1], batching=BatchPolicy(linger=3600.0))
        async def track(n):
            await mp.start()
            await mp.track("u", "E", {"n": n})
    """
    emulator = Emulator()
    code = textwrap.dedent(program) + textwrap.dedent(ENDINGS[ending])
    with emulator.serve() as server:
        done = run_forked(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, timeout=20, modules=()
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert sorted(event["properties"]["n"] for event in emulator.events("E")) == list(range(20))


def test_exit_tries_again_what_the_last_loop_could_not_deliver() -> None:
    code = """
        import asyncio, sys
        from mixpanel_async import AsyncMixpanel
        mp = AsyncMixpanel("token", api_host=sys.argv[1], loop_end_timeout=0.3)
        asyncio.run(mp.track("u", "E"))
        print("ended", flush=True)
        sys.stdin.readline()
    """
    emulator = Emulator()
    emulator.fail_next(503, times=1_000_000)
    with emulator.serve() as server:
        process = popen(
            [sys.executable, "-c", textwrap.dedent(code), server.url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, modules=(),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        emulator.stop_faults()
        _, errors = process.communicate("\n", timeout=20)
    assert process.returncode == 0
    assert "before 1 record" in errors
    assert len(emulator.events("E")) == 1


def test_user_http_client_in_two_loops_in_turn() -> None:
    emulator = Emulator()

    async def main() -> None:
        await mp.track("user", "Event")
        await mp.flush()

    mp = emulator.client(http_client=httpx.AsyncClient(transport=httpx.ASGITransport(app=emulator.app)))
    asyncio.run(main())
    asyncio.run(main())
    asyncio.run(mp.aclose())
    assert len(emulator.events("Event")) == 2
