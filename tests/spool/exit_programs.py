"""Programs that exit while something blocks: `python exit_programs.py PROGRAM JSON`."""

from __future__ import annotations

import json
import socket
import sqlite3
import sys
import threading
import time
from typing import Any

import anyio

from mixpanel_async import AsyncMixpanel, BatchPolicy, LostRecord, SqliteSpool

ONE_HOUR = 3600.0
UNUSED_PORT = "http://127.0.0.1:9"
NO_LINGER_TIMEOUT = BatchPolicy(linger=ONE_HOUR)


def spool_of(given: dict[str, Any], **more: Any) -> SqliteSpool | None:
    return SqliteSpool(given["path"], **more) if given.get("path") else None


async def drop_client_without_close(given: dict[str, Any]) -> None:
    mp = AsyncMixpanel("token", api_host=UNUSED_PORT, batching=NO_LINGER_TIMEOUT, spool=spool_of(given))
    for _ in range(500):
        await mp.track("user", "Event")


async def block_in_callback(given: dict[str, Any]) -> None:
    """Exit while a plain callback never returns."""

    reported = threading.Event()

    def on_drop(records: list[LostRecord], reason: object) -> None:
        print("dropped", len(records), flush=True)
        reported.set()
        time.sleep(ONE_HOUR)

    options: dict[str, Any] = {"on_drop": on_drop, "spool": spool_of(given), "shutdown_timeout": 0.1}
    mp = AsyncMixpanel("token", api_host=UNUSED_PORT, before_send=lambda message: None, **options)
    await mp.start()
    await mp.track("user", "Event")
    if given["closes"]:
        await mp.aclose()
    else:
        while not reported.is_set():  # noqa: ASYNC110  a thread sets the event
            await anyio.sleep(0.001)


async def block_in_resolver(given: dict[str, Any]) -> None:
    """Exit while a name server never answers."""
    asked = threading.Event()

    def hang(*args: object, **options: object) -> Any:
        asked.set()
        time.sleep(ONE_HOUR)

    socket.getaddrinfo = hang
    mp = AsyncMixpanel("token", spool=spool_of(given), shutdown_timeout=0.5, batching=BatchPolicy(linger=0.0))
    await mp.track("user", "Event")
    while not asked.is_set():  # noqa: ASYNC110  as above
        await anyio.sleep(0.001)
    if given["closes"]:
        result = await mp.aclose()
        print(result.failed, result.pending, flush=True)


async def block_on_locked_database(given: dict[str, Any]) -> None:
    """Exit while another process locks the database and a server never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mp = AsyncMixpanel(
            "token",
            api_host=f"http://127.0.0.1:{silent.getsockname()[1]}",
            spool=spool_of(given, timeout=600.0),
            shutdown_timeout=0.1,
            timeout=600.0,
            batching=BatchPolicy(linger=0.0),
        )
        await mp.track("user", "Event")
        await mp.people_increment("user", {"visits": 1})
        other = sqlite3.connect(given["path"], isolation_level=None, timeout=60.0)
        other.execute("BEGIN IMMEDIATE")
        mp.track_nowait("user", "Event")
        if given["closes"]:
            await mp.aclose()
            print("closed", flush=True)


PROGRAMS = {
    program.__name__: program
    for program in (drop_client_without_close, block_in_callback, block_in_resolver, block_on_locked_database)
}

if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    anyio.run(PROGRAMS[sys.argv[1]], given, backend=given.get("backend", "asyncio"))
