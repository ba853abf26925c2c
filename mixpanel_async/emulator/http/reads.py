"""Expensive reads: one at a time, in a thread, so that other requests are answered meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

_MAX_EXPORTS: Final = 16

T = TypeVar("T")


class Reads:
    """Expensive reads of one event loop.

    Requests that ask the same while they wait for their turn share one result. It is computed after the last of them
    has arrived, so each sees everything that was stored before.

    Attributes:
        exports: exports in progress at once; others wait.
    """

    def __init__(self) -> None:
        self.exports = anyio.Semaphore(_MAX_EXPORTS)
        self._turn = anyio.Lock()
        self._waiting: dict[Hashable, list[Any]] = {}

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function in a thread.

        Args:
            function: returns the result.
        """
        async with self._turn:
            return await anyio.to_thread.run_sync(function)

    async def run_shared(self, key: Hashable, function: Callable[[], T]) -> T:
        """Run a function in a thread, once for all requests that wait for it.

        Args:
            key: identifies the function and its arguments.
            function: returns the result.
        """
        results: list[T] = self._waiting.setdefault(key, [])
        try:
            async with self._turn:
                if not results:
                    # A later request must see what is stored from now on.
                    self._forget(key, results)
                    results.append(await anyio.to_thread.run_sync(function))
                return results[0]
        finally:
            self._forget(key, results)

    def _forget(self, key: Hashable, results: list[Any]) -> None:
        if self._waiting.get(key) is results:
            del self._waiting[key]


_READS: Final[anyio.lowlevel.RunVar[Reads]] = anyio.lowlevel.RunVar("mixpanel_async_emulator_reads")


def reads() -> Reads:
    """Return the expensive reads of the running event loop."""
    found = _READS.get(None)
    if found is None:
        found = Reads()
        _READS.set(found)
    return found
