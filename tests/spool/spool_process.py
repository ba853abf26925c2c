"""Client processes that the tests kill, stop or let run: `python spool_process.py PROGRAM JSON`."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import sys
from typing import Any

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, SqliteSpool, Stats

INCREMENT_EVERY = 10


def client(given: dict[str, Any], **more: Any) -> AsyncMixpanel:
    options: dict[str, Any] = {
        "api_host": given["url"],
        "batching": BatchPolicy(linger=0.01, max_events=given.get("max_events", 500)),
        "retry": RetryPolicy(initial=0.02, maximum=0.1),
        "spool": SqliteSpool(given["path"], keep_dead=1_000_000, fsync=given.get("fsync", True), timeout=20.0),
        **more,
    }
    return AsyncMixpanel(given.get("token", "token"), **options)


def print_json(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def stats_to_json(stats: Stats) -> dict[str, Any]:
    return dataclasses.asdict(stats)


async def track_numbers(given: dict[str, Any]) -> None:
    """Track consecutive numbers from many tasks. Write a receipt for each number once its call has returned."""
    receipts = os.open(given["receipts"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    mp = client(given)
    print_json(up=True)

    async def work(task: int) -> None:
        who = f"{given['process_name']}-{task}"
        for number in range(given["numbers"]):
            if number % INCREMENT_EVERY == INCREMENT_EVERY - 1:
                await mp.people_increment(who, {f"n{number}": 1})
            else:
                await mp.track(who, "E", {"n": number}, insert_id=f"{who}-{number}")
            os.write(receipts, b"%s %d\n" % (who.encode(), number))

    await asyncio.gather(*map(work, range(given["tasks"])))
    if given.get("drains"):
        await flush_until_empty(mp)
        await mp.aclose()
    print_json(stats=stats_to_json(mp.stats()))
    if given.get("waits"):
        await asyncio.to_thread(sys.stdin.readline)


async def flush_until_empty(mp: AsyncMixpanel) -> None:
    await mp.start()
    while mp.stats().pending:
        await mp.flush(5.0)


async def drain(given: dict[str, Any]) -> None:
    """Deliver the records that other processes left."""
    mp = client(given)
    await flush_until_empty(mp)
    await mp.aclose()
    print_json(stats=stats_to_json(mp.stats()))


async def exit_without_close(given: dict[str, Any]) -> None:
    """Track and return without closing the client, and without time to deliver."""
    mp = client(given, batching=BatchPolicy(linger=3600.0), loop_end_timeout=0.0)
    for number in range(given["numbers"]):
        await mp.track("user", "E", {"n": number}, insert_id=f"forgotten-{number}")


async def send_update(given: dict[str, Any]) -> None:
    """Send a non-idempotent update and wait to be killed."""
    mp = client(given, timeout=600.0)
    await mp.people_increment("user", {"visits": 1})
    print_json(accepted=True)
    await asyncio.sleep(600)


PROGRAMS = {program.__name__: program for program in (track_numbers, drain, exit_without_close, send_update)}

if __name__ == "__main__":
    asyncio.run(PROGRAMS[sys.argv[1]](json.loads(sys.argv[2])))
