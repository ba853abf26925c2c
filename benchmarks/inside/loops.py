"""Event loops that are watched, and the clock that other processes on the machine cannot disturb."""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class Watch(selectors.DefaultSelector):
    """A selector that notes for how long the loop at most did not come back to it.

    Both in wall time, which holds whatever else the machine did, and in CPU time of the loop's own thread, which does
    not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._since: tuple[float, float] | None = None
        self.cpu = 0.0
        self.wall = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._note()
        ready = super().select(timeout)
        self._since = time.thread_time(), time.perf_counter()
        return ready

    def _note(self) -> None:
        if self._since is not None:
            self.cpu = max(self.cpu, time.thread_time() - self._since[0])
            self.wall = max(self.wall, time.perf_counter() - self._since[1])

    def begin(self) -> None:
        """Forget what was, and begin to measure at this very moment."""
        self.cpu = self.wall = 0.0
        self._since = time.thread_time(), time.perf_counter()

    def held(self) -> tuple[float, float]:
        """The longest hold since `begin`, in seconds of CPU and of wall time; that which is not over included."""
        self._note()
        return self.cpu, self.wall


def run(work: Coroutine[Any, Any, T], *, loop: str = "asyncio", watch: Watch | None = None) -> T:
    """Run a coroutine to its end in a new loop.

    Args:
        work: what to run.
        loop: `asyncio` or `uvloop`.
        watch: the selector of an asyncio loop.
    """
    made: asyncio.AbstractEventLoop
    if loop == "uvloop":
        import uvloop

        made = uvloop.new_event_loop()
    else:
        made = asyncio.SelectorEventLoop(watch)
    try:
        return made.run_until_complete(work)
    finally:
        made.run_until_complete(made.shutdown_asyncgens())
        made.run_until_complete(made.shutdown_default_executor())
        made.close()


def pin_to_one_core() -> None:
    """Let this process run on one core only, where the system can say so."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds_in_line() -> float:
    """For how long this thread has been ready to run while others had the cores; 0 where the system does not tell."""
    statistics = Path("/proc/thread-self/schedstat")
    return int(statistics.read_text().split()[1]) / 1e9 if statistics.exists() else 0.0
