"""A client forked with its spool open, by a process of its own: `python forking.py JSON`."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from contextlib import closing
from typing import Any

from spool_child import as_words, client, say, until_empty

from mixpanel_async import AsyncMixpanel, BatchPolicy


async def track(mp: AsyncMixpanel, who: str, numbers: int) -> None:
    await asyncio.gather(*(mp.track(who, "E", {"n": n}, insert_id=f"{who}-{n}") for n in range(numbers)))


async def in_child(mp: AsyncMixpanel, who: str, numbers: int, *, closes: bool) -> None:
    assert mp.stats().accepted == 0
    await track(mp, who, numbers)
    if closes:
        await mp.aclose()
        assert mp.stats().delivered == mp.stats().accepted >= numbers


def fork(mp: AsyncMixpanel, who: str, numbers: int, *, closes: bool, leaves: bool) -> int:
    """A child that tracks, and then closes its client or does not, and ends as a program does or at once."""
    child = os.fork()
    if child:
        return child
    try:
        asyncio.run(in_child(mp, who, numbers, closes=closes))
    except BaseException as error:  # noqa: BLE001  it must not go on as its parent
        os.write(2, f"{who}: {error!r}\n".encode())
        os._exit(1)
    if leaves:
        sys.exit(0)
    os._exit(0)


def reap(children: list[int]) -> None:
    for child in children:
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, status


def check(path: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def outside(mp: AsyncMixpanel, given: dict[str, Any]) -> None:
    """Fork between two event loops, as a server that loads the application first."""
    # No child can finish what a thread of its parent is importing.
    asyncio.run(mp.start())
    for turn in range(given["forks"]):
        asyncio.run(track(mp, f"before-{turn}", 100))
        # The thread is in the middle of a commit as often as not.
        for number in range(200):
            mp.track_nowait(f"busy-{turn}", "E", {"n": number}, insert_id=f"busy-{turn}-{number}")
        children = [
            fork(mp, f"child-{turn}-{one}", given["numbers"], closes=bool(one % 2), leaves=one % 4 < 2)
            for one in range(given["children"])
        ]
        reap(children)
        check(given["path"])


async def inside(mp: AsyncMixpanel, given: dict[str, Any]) -> None:
    """Fork in the middle of everything."""
    for turn in range(given["forks"]):
        busy = asyncio.ensure_future(track(mp, f"inside-{turn}", 300))
        await asyncio.sleep(0)
        children = [
            fork(mp, f"grandchild-{turn}-{one}", given["numbers"], closes=bool(one % 2), leaves=False)
            for one in range(given["children"])
        ]
        await busy
        await asyncio.to_thread(reap, children)
        check(given["path"])


async def close(mp: AsyncMixpanel) -> None:
    await until_empty(mp)
    await mp.aclose()


def main(given: dict[str, Any]) -> None:
    mp = client(given, batching=BatchPolicy(linger=0.01))
    outside(mp, given)
    asyncio.run(inside(mp, given))
    asyncio.run(close(mp))
    say(stats=as_words(mp.stats()))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
