"""Outbox section: what a queue in Redis costs producers, workers and Redis, and whether a fleet delivers everything."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .bench import Bench
from .event import TOKEN
from .redis_server import find_server, redis_server
from .report import Row

_BATCH: Final = 500
_MAX_TIMES_DIRECT: Final = 1.15
_MAX_BYTES: Final = 60.0
_MAX_WORKER_US: Final = 10.0
_PRODUCERS: Final = 10
_WORKERS: Final = 2
_RATE: Final = 500
# Seconds of waiting records that a fleet may have: linger of producers and workers, and one request.
_MAX_LAG: Final = 3.0
_FLEET_SECONDS: Final = 15
_FLEET_DEADLINE: Final = 120.0


@dataclass
class Look:
    """State of a queue at one moment."""

    waiting: int = 0
    oldest_age: float = 0.0


def outbox(bench: Bench) -> Iterator[Row]:
    """Measure producers, memory, a worker and a fleet with a real server."""
    if find_server() is None:
        yield Row(section="outbox", name="all", measured="there is no redis-server")
        return
    with redis_server() as url:
        # First, while the server has no free memory to reuse.
        yield _waiting(bench, url)
        yield from _costs(bench, url)
        yield _fleet(bench, url)


def _waiting(bench: Bench, url: str) -> Row:
    """Measure the memory of waiting events."""
    before = asyncio.run(_memory(url))
    handed = bench.child("outbox", part="spread", url=url, name="waiting", events=bench.events)["delivered"]
    size = (asyncio.run(_memory(url)) - before) / bench.events
    return Row(
        section="outbox",
        name="memory of Redis",
        measured=f"{size:.0f} bytes per waiting event",
        wanted=f"<= {_MAX_BYTES:.0f}",
        met=size <= _MAX_BYTES,
        figures={"bytes": size, "complete": handed == bench.events},
    )


def _costs(bench: Bench, url: str) -> Iterator[Row]:
    events = bench.events
    runs: dict[str, list[float]] = {}
    workers: list[float] = []
    is_complete = True
    for turn in bench.few_rounds:
        name = f"costs-{turn}"
        for subject, batch in (("harness", _BATCH), ("direct", _BATCH), ("direct", 2_000), ("outbox", _BATCH)):
            figures = bench.child(
                "outbox", part="burst", subject=subject, origin=bench.origin, url=url, name=name, events=events,
                batch=batch,
            )  # fmt: skip
            runs.setdefault(f"{subject} {batch}", []).append(figures["cpu"])
            if subject == "direct":
                is_complete = is_complete and bench.take()["distinct"] == events
        worker = bench.child("outbox", part="worker", origin=bench.origin, url=url, name=name)
        workers.append(worker["cpu"])
        is_complete = is_complete and bench.take()["distinct"] == worker["delivered"] == events
    harness = min(runs[f"harness {_BATCH}"])
    cost = {key: (min(cpu) - harness) / events * 1e6 for key, cpu in runs.items()}
    ours, direct, usual = cost[f"outbox {_BATCH}"], cost[f"direct {_BATCH}"], cost["direct 2000"]
    yield Row(
        section="outbox",
        name=f"producer, entries of {_BATCH}",
        measured=f"{ours:.2f} us of CPU per event; sent to Mixpanel {direct:.2f}, in batches of 2,000 {usual:.2f}",
        ratio=f"{ours / direct:.2f} x direct",
        wanted=f"<= {_MAX_TIMES_DIRECT}",
        met=ours / direct <= _MAX_TIMES_DIRECT,
        figures={"cpu_us": ours, "direct_us": direct, "direct_2000_us": usual, "complete": is_complete},
    )
    cpu = min(workers) / events * 1e6
    yield Row(
        section="outbox",
        name="worker",
        measured=f"{cpu:.2f} us of CPU per event",
        wanted=f"<= {_MAX_WORKER_US:.0f} us",
        met=cpu <= _MAX_WORKER_US,
        figures={"cpu_us": cpu, "complete": is_complete},
    )


def _fleet(bench: Bench, url: str) -> Row:
    """Run producers at a fixed rate, and workers, until everything is delivered."""
    name = "fleet"
    events = max(1, bench.events * _FLEET_SECONDS * _RATE // 40_000)
    workers = [_start(bench, "serve", origin=bench.origin, url=url, name=name) for _ in range(_WORKERS)]
    producers = [_start(bench, "paced", url=url, name=name, events=events, rate=_RATE) for _ in range(_PRODUCERS)]
    looks = asyncio.run(_watch(url, name, producers))
    handed = sum(_figures(process)["delivered"] for process in producers)
    served = [_figures(process) for process in workers]
    counts, total = bench.take(), events * _PRODUCERS
    most, oldest = max(look.waiting for look in looks), max(look.oldest_age for look in looks)
    is_complete = handed == total == counts["distinct"]
    twice = counts["events"] - counts["distinct"]
    return Row(
        section="outbox",
        name=f"{_PRODUCERS} producers x {_RATE}/s, {_WORKERS} workers",
        measured=f"{counts['distinct']:,} of {total:,} delivered, {twice:,} twice; at most {most:,} waiting, "
        f"the oldest for {oldest:.1f} s",
        wanted=f"all, oldest <= {_MAX_LAG:.0f} s",
        met=is_complete and oldest <= _MAX_LAG,
        figures={
            "delivered": counts["distinct"], "duplicates": twice, "most_waiting": most, "oldest_s": oldest,
            "by_worker": [one["delivered"] for one in served], "complete": is_complete,
        },
    )  # fmt: skip


async def _watch(url: str, name: str, producers: Sequence[subprocess.Popen[str]]) -> list[Look]:
    """Look at the queue until the producers have ended and it is empty."""
    from mixpanel_async.outbox import RedisOutbox

    # A worker that serves no lane of the benchmark: its heartbeats show the number of waiting records.
    inbox = RedisOutbox(url, name=name).inbox(TOKEN, "watch", kinds=["groups"])
    await inbox.open()
    looks: list[Look] = []
    deadline = time.monotonic() + _FLEET_DEADLINE
    while time.monotonic() < deadline:
        have_ended = all(process.poll() is not None for process in producers)
        held = await inbox.heartbeat()
        age = 0.0 if held.oldest_at is None else max(0.0, time.time() - held.oldest_at)
        looks.append(Look(held.waiting, age))
        if have_ended and not held.waiting:
            break
        await asyncio.sleep(0.1)
    await inbox.release()
    await inbox.aclose()
    return looks


async def _memory(url: str) -> int:
    """Return the bytes that the server uses for data."""
    from redis.asyncio import Redis

    async with Redis.from_url(url) as redis:
        return int((await redis.info("memory"))["used_memory"])


def _start(bench: Bench, part: str, **arguments: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.child", "outbox", json.dumps({"part": part, **arguments})]
    return subprocess.Popen(command, env=bench.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _figures(process: subprocess.Popen[str]) -> dict[str, float]:
    """End the process, and return its figures."""
    printed, _ = process.communicate()
    figures: dict[str, float] = json.loads(printed)
    return figures
