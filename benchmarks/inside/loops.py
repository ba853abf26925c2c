"""Event loops with a blocking monitor, and a clock for the time spent waiting for a CPU."""

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
    """Selector that records the longest time between two polls of the event loop.

    It records wall time, which includes other load on the machine, and CPU time of the loop's thread, which does not.
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
        """Reset the maxima and start measuring now."""
        self.cpu = self.wall = 0.0
        self._since = time.thread_time(), time.perf_counter()

    def held(self) -> tuple[float, float]:
        """Return the longest block since `begin` in seconds of CPU and wall time, including the current one."""
        self._note()
        return self.cpu, self.wall


def run(work: Coroutine[Any, Any, T], *, loop: str = "asyncio", watch: Watch | None = None) -> T:
    """Run a coroutine in a new event loop and return its result.

    Args:
        work: the coroutine.
        loop: `asyncio` or `uvloop`.
        watch: selector for an asyncio loop.
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
    """Pin this process to one core, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def seconds_waiting_for_cpu() -> float:
    """Return the time this thread was ready but waited for a CPU; 0 if the system does not report it."""
    statistics = Path("/proc/thread-self/schedstat")
    return int(statistics.read_text().split()[1]) / 1e9 if statistics.exists() else 0.0
