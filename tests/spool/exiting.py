"""Programs that end in the worst of circumstances: `python exiting.py PART JSON`."""

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

FOR_EVER = 3600.0
NOBODY = "http://127.0.0.1:9"
LINGERING = BatchPolicy(linger=FOR_EVER)


def spool_of(given: dict[str, Any], **more: Any) -> SqliteSpool | None:
    return SqliteSpool(given["path"], **more) if given.get("path") else None


async def forgets(given: dict[str, Any]) -> None:
    mp = AsyncMixpanel("token", api_host=NOBODY, batching=LINGERING, spool=spool_of(given))
    for _ in range(500):
        await mp.track("user", "Event")


async def drops(given: dict[str, Any]) -> None:
    """A plain callback that never returns."""

    told = threading.Event()

    def on_drop(records: list[LostRecord], reason: object) -> None:
        print("told", len(records), flush=True)
        told.set()
        time.sleep(FOR_EVER)

    options: dict[str, Any] = {"on_drop": on_drop, "spool": spool_of(given), "shutdown_timeout": 0.1}
    mp = AsyncMixpanel("token", api_host=NOBODY, before_send=lambda message: None, **options)
    await mp.start()
    await mp.track("user", "Event")
    if given["closes"]:
        await mp.aclose()
    else:
        while not told.is_set():  # noqa: ASYNC110  what happens there happens in a thread
            await anyio.sleep(0.001)


async def resolves(given: dict[str, Any]) -> None:
    """A name server that never answers."""
    asked = threading.Event()

    def hang(*args: object, **options: object) -> Any:
        asked.set()
        time.sleep(FOR_EVER)

    socket.getaddrinfo = hang
    mp = AsyncMixpanel("token", spool=spool_of(given), shutdown_timeout=0.5, batching=BatchPolicy(linger=0.0))
    await mp.track("user", "Event")
    while not asked.is_set():  # noqa: ASYNC110  as above
        await anyio.sleep(0.001)
    if given["closes"]:
        result = await mp.aclose()
        print(result.failed, result.pending, flush=True)


async def locked(given: dict[str, Any]) -> None:
    """A database that somebody else has locked, and a server that never answers."""
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


PARTS = {part.__name__: part for part in (forgets, drops, resolves, locked)}

if __name__ == "__main__":
    words = json.loads(sys.argv[2])
    anyio.run(PARTS[sys.argv[1]], words, backend=words.get("backend", "asyncio"))
