"""A process with a client exits, with the same status as without one, however its event loop ends."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fork_server import ForkServer, fork_server

from mixpanel_async.emulator import Emulator

PROGRAM = """
import asyncio, os, signal, sys, threading, time
from mixpanel_async import AsyncMixpanel, SqliteSpool

url, runner, end, state, folder = sys.argv[1:]
mp = None

def make_client():
    options = {"loop_end_timeout": 0.5, "shutdown_timeout": 0.5}
    if state == "spool":
        from pathlib import Path
        options["spool"] = SqliteSpool(Path(folder) / "spool.db")
    if state == "flags":
        from mixpanel_async.flags import LocalFlags
        options["local_flags"] = LocalFlags(poll_interval=0.05)
    if state == "callback":
        options["on_delivered"] = lambda _: time.sleep(60)
    if state == "waiting callback":
        async def wait(_):
            await sleep(60)
        options["on_delivered"] = wait
    return AsyncMixpanel("token", api_host=url, **options)

async def sleep(seconds):
    import anyio
    await anyio.sleep(seconds)

async def use_client():
    global mp
    if state == "no client":
        return
    mp = make_client()
    if state == "in_thread":
        blocking = mp.start_in_thread()
        blocking.track("user", "Event", {"a": 1})
        return
    await mp.start()
    await mp.track("user", "Event", {"a": 1})
    await mp.people_set("user", {"a": 1})
    if state in ("in flight", "server hangs"):
        while not mp.stats().in_flight:
            await sleep(0.01)
    elif state != "waiting":
        await mp.flush(0.5)

async def main():
    await use_client()
    if end == "error":
        raise ValueError
    elif end == "exit in task":
        sys.exit(3)
    elif end == "exit in other task":
        async def leave(): sys.exit(3)
        task = asyncio.create_task(leave())
        await sleep(5)
    elif end == "exit in callback":
        asyncio.get_running_loop().call_soon(sys.exit, 3)
        await sleep(5)
    elif end == "interrupt":
        signal.raise_signal(signal.SIGINT)
        await sleep(5)
    elif end == "stop":
        loop = asyncio.get_running_loop()
        loop.call_soon(loop.stop)
        await sleep(5)
    elif end == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
        await sleep(5)

def run_loop(loop, close):
    try:
        if "forever" in runner:
            task = loop.create_task(main())
            task.add_done_callback(lambda _: loop.stop())
            loop.run_forever()
        else:
            loop.run_until_complete(main())
    finally:
        if close:
            loop.close()

if runner == "asyncio.run":
    asyncio.run(main())
elif runner == "uvloop":
    import uvloop
    uvloop.run(main())
elif runner in ("anyio", "trio"):
    import anyio
    anyio.run(main, backend="asyncio" if runner == "anyio" else "trio")
elif runner == "thread":
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    asyncio.run_coroutine_threadsafe(main(), loop).result()
else:
    run_loop(asyncio.new_event_loop(), close="closed" in runner)
"""
STATES = (
    "idle",
    "waiting",
    "in flight",
    "server hangs",
    "spool",
    "flags",
    "callback",
    "waiting callback",
    "in_thread",
)
ENDS = ("return", "error", "exit in task", "interrupt", "terminate")
ASYNCIO_ENDS = (*ENDS, "exit in other task", "exit in callback")
ENDS_OF_RUNNERS = {
    "asyncio.run": ASYNCIO_ENDS,
    "uvloop": ASYNCIO_ENDS,
    "anyio": ASYNCIO_ENDS,
    "trio": ENDS,
    "until complete": (*ASYNCIO_ENDS, "stop"),
    "until complete, closed": (*ASYNCIO_ENDS, "stop"),
    "forever": (*ASYNCIO_ENDS, "stop"),
    "forever, closed": (*ASYNCIO_ENDS, "stop"),
    # An exit in the thread of an event loop ends the thread, and its caller waits forever, also without a client.
    "thread": ("return", "error", "terminate"),
}
# Seconds: start of Python on a busy machine, and the timeouts of the client.
BOUND = 20.0


@pytest.fixture(scope="module")
def forks() -> Iterator[ForkServer]:
    has_uvloop = importlib.util.find_spec("uvloop") is not None
    modules = ("trio", "anyio._backends._trio", "mixpanel_async.flags", *(("uvloop",) if has_uvloop else ()))
    with fork_server("-W", "ignore", modules=modules) as server:
        yield server


def end_all(forks: ForkServer, runner: str, ends: Sequence[str], state: str, folder: Path) -> None:
    """Run a program for each end with and without a client at once, and compare how they exit."""
    if runner == "uvloop" and importlib.util.find_spec("uvloop") is None:
        pytest.skip("needs uvloop")
    emulator = Emulator()
    emulator.latency = {"in flight": 0.3, "server hangs": 60.0}.get(state, 0.0)
    with emulator.serve() as server:
        programs = {}
        for end in ends:
            for one in (state, "no client"):
                directory = folder / end
                directory.mkdir(exist_ok=True)
                programs[end, one] = forks.start(PROGRAM, server.url, runner, end, one, directory)
        deadline = time.monotonic() + BOUND
        try:
            codes = {key: process.wait(max(0.01, deadline - time.monotonic())) for key, process in programs.items()}
        finally:
            for process in programs.values():
                process.kill()
    for end in ends:
        assert codes[end, state] == codes[end, "no client"], end


# Each runner, end and state at least once, and each end of a loop that is stopped by hand.
PAIRS = (
    ("asyncio.run", "exit in other task", "server hangs"),
    ("asyncio.run", "terminate", "spool"),
    ("uvloop", "interrupt", "in flight"),
    ("anyio", "exit in callback", "flags"),
    ("trio", "exit in task", "waiting callback"),
    ("trio", "interrupt", "server hangs"),
    ("until complete", "interrupt", "spool"),
    ("until complete", "stop", "callback"),
    ("until complete, closed", "exit in callback", "in flight"),
    ("forever", "interrupt", "idle"),
    ("forever", "exit in callback", "flags"),
    ("forever, closed", "stop", "waiting"),
    ("thread", "return", "in_thread"),
    ("thread", "error", "callback"),
)


@pytest.mark.parametrize(("runner", "end", "state"), PAIRS)
def test_process_exits_as_without_a_client(
    runner: str, end: str, state: str, tmp_path: Path, forks: ForkServer
) -> None:
    end_all(forks, runner, [end], state, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("runner", ENDS_OF_RUNNERS)
def test_process_exits_as_without_a_client_for_all_ways(
    runner: str, state: str, tmp_path: Path, forks: ForkServer
) -> None:
    end_all(forks, runner, ENDS_OF_RUNNERS[runner], state, tmp_path)
