"""Forked child processes and the client of their parent."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from forked_python import run as run_forked

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
)
from mixpanel_async.emulator import Emulator

LINGERING = BatchPolicy(linger=3600.0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_child_does_not_send_records_of_its_parent() -> None:
    emulator = Emulator()

    async def main(mp: AsyncMixpanel, name: str) -> None:
        await mp.track("user", name)
        await mp.aclose()

    with emulator.serve() as server:
        mp = AsyncMixpanel("token", api_host=server.url, batching=LINGERING)

        async def begin() -> None:
            await mp.people_increment("user", {"visits": 1})

        asyncio.run(begin())
        child = os.fork()
        if not child:
            status = 1
            try:
                asyncio.run(main(mp, "Child"))
                status = 0 if mp.stats().delivered == mp.stats().accepted == 1 else 2
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        asyncio.run(main(mp, "Parent"))
    assert os.waitstatus_to_exitcode(status) == 0
    assert (emulator.profile("user") or {})["visits"] == 1
    assert {event["event"] for event in emulator.events()} == {"Child", "Parent"}


WORKERS = """
import asyncio, logging, multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from mixpanel_async import AsyncMixpanel, BatchPolicy

logging.basicConfig(format="%(message)s")
kind, method, url, timeout = sys.argv[1:]
client = AsyncMixpanel("token", api_host=url, batching=BatchPolicy(linger=3600.0), loop_end_timeout=float(timeout))
blocking = client.in_thread()


def work(number):
    if kind == "plain":
        client.track_nowait("user", "Event", {"number": number})
    elif kind == "asyncio":
        asyncio.run(client.track("user", "Event", {"number": number}))
    else:
        blocking.track("user", "Event", {"number": number})
        if kind == "thread":
            blocking.start()


if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    if method == "fork":
        work(0)
    with context.Pool(2) as pool:
        pool.map(work, range(1, 4), chunksize=1)
        pool.close()
        pool.join()
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(work, 4).result()
    process = context.Process(target=work, args=(5,))
    process.start()
    process.join()
"""


def run_workers(folder: Path, kind: str, method: str, url: str, loop_end_timeout: float) -> str:
    program = folder / "workers.py"
    program.write_text(WORKERS)
    command = [sys.executable, str(program), kind, method, url, str(loop_end_timeout)]
    done = run_forked(command, capture_output=True, text=True, timeout=29, check=True, modules=())
    return str(done.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
@pytest.mark.parametrize(
    ("kind", "method"),
    [("plain", "fork"), ("asyncio", "fork"), ("blocking", "fork"), ("thread", "fork"), ("blocking", "forkserver")],
)
def test_worker_process_delivers_when_it_ends(kind: str, method: str, tmp_path: Path) -> None:
    emulator = Emulator()
    with emulator.serve() as server:
        log = run_workers(tmp_path, kind, method, server.url, 10.0)
    numbers = sorted(event["properties"]["number"] for event in emulator.events())
    assert numbers == [*range(0 if method == "fork" else 1, 6)], log


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork here")
@pytest.mark.parametrize("kind", ["plain", "thread"])
def test_worker_process_says_how_many_records_it_could_not_deliver(kind: str, tmp_path: Path) -> None:
    log = run_workers(tmp_path, kind, "fork", "http://127.0.0.1:9", 0.5)
    lines = [line for line in log.splitlines() if "ended before" in line]
    # Two workers of the first pool share its tasks, if each of them got one.
    assert sum(int(line.partition("before ")[2].split()[0]) for line in lines if "worker process" in line) == 5, log
