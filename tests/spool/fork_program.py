"""Program that forks a process with an open spool: `python fork_program.py JSON`."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from contextlib import closing
from typing import Any

from spool_process import client, flush_until_empty, print_json, stats_to_json

from mixpanel_async import AsyncMixpanel, BatchPolicy


async def track(mp: AsyncMixpanel, who: str, numbers: int) -> None:
    await asyncio.gather(*(mp.track(who, "E", {"n": n}, insert_id=f"{who}-{n}") for n in range(numbers)))


async def in_child(mp: AsyncMixpanel, who: str, numbers: int, *, closes: bool) -> None:
    assert mp.stats().accepted == 0
    await track(mp, who, numbers)
    if closes:
        await mp.aclose()
        assert mp.stats().delivered == mp.stats().accepted >= numbers


def fork(mp: AsyncMixpanel, who: str, numbers: int, *, closes: bool, exits_normally: bool) -> int:
    """Fork a child that tracks, optionally closes its client, and exits normally or with `os._exit`."""
    child = os.fork()
    if child:
        return child
    try:
        asyncio.run(in_child(mp, who, numbers, closes=closes))
    except BaseException as error:  # noqa: BLE001  the child must not continue the parent's program
        os.write(2, f"{who}: {error!r}\n".encode())
        os._exit(1)
    if exits_normally:
        sys.exit(0)
    os._exit(0)


def reap(children: list[int]) -> None:
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status


def check_integrity(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def fork_between_loops(mp: AsyncMixpanel, given: dict[str, Any]) -> None:
    """Fork between two event loops, like a server that loads the application before it forks."""
    # A child cannot complete an import started in a thread of its parent.
    asyncio.run(mp.start())
    for turn in range(given["forks"]):
        asyncio.run(track(mp, f"before-{turn}", 100))
        # The fork often happens during a commit.
        for number in range(200):
            mp.track_nowait(f"busy-{turn}", "E", {"n": number}, insert_id=f"busy-{turn}-{number}")
        children = [
            fork(mp, f"child-{turn}-{one}", given["numbers"], closes=bool(one % 2), exits_normally=one % 4 < 2)
            for one in range(given["children"])
        ]
        reap(children)
        check_integrity(given["path"])


async def fork_within_loop(mp: AsyncMixpanel, given: dict[str, Any]) -> None:
    """Fork while the event loop is running and calls are in progress."""
    for turn in range(given["forks"]):
        busy = asyncio.ensure_future(track(mp, f"inside-{turn}", 300))
        await asyncio.sleep(0)
        children = [
            fork(mp, f"grandchild-{turn}-{one}", given["numbers"], closes=bool(one % 2), exits_normally=False)
            for one in range(given["children"])
        ]
        await busy
        await asyncio.to_thread(reap, children)
        check_integrity(given["path"])


async def close(mp: AsyncMixpanel) -> None:
    await flush_until_empty(mp)
    await mp.aclose()


def main(given: dict[str, Any]) -> None:
    mp = client(given, batching=BatchPolicy(linger=0.01))
    fork_between_loops(mp, given)
    asyncio.run(fork_within_loop(mp, given))
    asyncio.run(close(mp))
    print_json(stats=stats_to_json(mp.stats()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
