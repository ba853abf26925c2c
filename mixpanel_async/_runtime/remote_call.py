"""Background tasks that are started in another event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import anyio

from .event_loop import BackgroundTask, EventLoop

T = TypeVar("T")

# Seconds between two checks whether the other event loop has ended, which no signal reports.
_CHECK_EVERY: Final = 0.25


class RemoteCall(Generic[T]):
    """Background task in another event loop, awaited in this one.

    Args:
        target: the other event loop.
        here: event loop of the caller.
        start: starts the task. It is called in the other event loop, with a function to call when the task has ended.

    Attributes:
        task: the started task, or None.
    """

    def __init__(
        self,
        target: EventLoop,
        here: EventLoop,
        start: Callable[[Callable[[BackgroundTask[Any]], None]], BackgroundTask[T]],
    ) -> None:
        self._target = target
        self._here = here
        self._start = start
        self._lock = threading.Lock()
        self._is_withdrawn = False
        self._changed = anyio.Event()
        self.task: BackgroundTask[T] | None = None

    async def begin(self, timeout: float) -> bool:
        """Start the task.

        Args:
            timeout: seconds that the other event loop has to start it.

        Returns:
            False if it did not. It will not start the task later.
        """
        self._target.call_soon(self._begin)
        try:
            with anyio.move_on_after(timeout):
                await self._changed.wait()
        finally:
            with self._lock:
                self._is_withdrawn = True
        return self.task is not None

    def _begin(self) -> None:
        with self._lock:
            if not self._is_withdrawn:
                self.task = self._start(self._ended)
        self._here.call_soon(self._signal)

    def _ended(self, _: BackgroundTask[Any]) -> None:
        self._here.call_soon(self._signal)

    def _signal(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def wait(self) -> None:
        """Wait until the task, or its event loop, has ended."""
        while True:
            # Read before the condition: the signal may come at any moment.
            changed = self._changed
            if self.task is None or self.task.is_done or self._target.is_over():
                return
            with anyio.move_on_after(_CHECK_EVERY):
                await changed.wait()

    def cancel(self) -> None:
        """Cancel the task, if it was started."""
        if self.task is not None:
            self._target.call_soon(self.task.cancel)
