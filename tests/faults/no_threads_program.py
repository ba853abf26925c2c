"""Client in a process that can start no thread: `python no_threads_program.py URL MODE FOLDER`.

Prints the errors of the calls, the statistics and the reports of the callbacks as JSON.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    Delivery,
    DropReason,
    LostRecord,
    Overflow,
    RetryPolicy,
    SqliteSpool,
)

_STACK = 1 << 30
KEPT: list[Run] = []


def limit() -> None:
    """Leave less address space than a thread needs for its stack."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    threading.stack_size(_STACK)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _STACK // 2, resource.RLIM_INFINITY))


def unlimit() -> None:
    threading.stack_size(0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class Run:
    """Makes calls and notes their errors."""

    def __init__(self, url: str, mode: str, folder: str) -> None:
        self.errors: dict[str, str] = {}
        self.dropped: list[str] = []
        self.delivered: list[int] = []
        self.mode = mode
        spool = SqliteSpool(Path(folder, "spool"), timeout=1.0) if "spool" in mode else None
        self.mp = AsyncMixpanel(
            "token",
            api_host=url,
            spool=spool,
            on_drop=self.on_drop,
            on_delivered=self.on_delivered,
            batching=BatchPolicy(linger=3600.0, max_pending_events=3 if spool is None else 100),
            overflow=Overflow.DROP_NEWEST,
            retry=RetryPolicy(initial=0.01, maximum=0.01),
            # Callbacks wait for a thread as long as this.
            shutdown_timeout=1.0,
        )

    def on_drop(self, records: list[LostRecord], reason: DropReason) -> None:
        self.dropped += [reason.value] * len(records)

    def on_delivered(self, delivery: Delivery) -> None:
        self.delivered.append(delivery.records)

    async def call(self, name: str, call: Callable[[], Awaitable[Any]]) -> None:
        try:
            await call()
        except Exception as error:  # noqa: BLE001  printed
            self.errors[name] = type(error).__name__

    async def main(self) -> None:
        if "used" in self.mode:
            await self.call("start", self.mp.start)
        limit()
        try:
            for number in range(4):
                await self.call(f"track {number}", partial(self.mp.track, "user", "Event", {"n": number}))
            await self.call("flush", lambda: self.mp.flush(0.5))
            if "recovers" in self.mode:
                unlimit()
                await self.call("track 9", lambda: self.mp.track("user", "Event", {"n": 9}))
                await self.call("flush", lambda: self.mp.flush(5.0))
            await self.call("aclose", self.mp.aclose)
        finally:
            unlimit()
        result = {"errors": self.errors, "dropped": self.dropped, "delivered": self.delivered}
        print(json.dumps(result | {"stats": asdict(self.mp.stats())}))


def at_exit(url: str, *, is_collected: bool) -> None:
    """Leave the delivery to the end of the client or of the interpreter."""
    run: Run | None = Run(url, "", "")
    assert run is not None
    limit()
    run.mp.track_nowait("user", "Event", {"n": 0})
    run.mp.track_nowait("user", "Event", {"n": 1})
    if not is_collected:
        KEPT.append(run)
    run = None
    gc.collect()


if __name__ == "__main__":
    if sys.argv[2] in {"kept", "collected"}:
        at_exit(sys.argv[1], is_collected=sys.argv[2] == "collected")
    else:
        asyncio.run(Run(*sys.argv[1:]).main())
