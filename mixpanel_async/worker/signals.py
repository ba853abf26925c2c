"""Signals between the tasks of a worker, which all run in one event loop."""

from __future__ import annotations

import anyio

from .._runtime.timers import move_on_after


class Signals:
    """Lets the tasks of a worker wait for a change. It is the `QueueListener` and the `DeliveryListener` of its queue.

    A task reads `changed`, looks at the state, and waits for a change of it. A change in between is not missed.
    """

    def __init__(self) -> None:
        self._changed: anyio.Event | None = None
        self._reports: anyio.Event | None = None

    def bind_loop(self) -> None:
        """Serve the running event loop. The events of an earlier one cannot be used in it."""
        is_pending = self._reports is not None and self._reports.is_set()
        self._changed = self._reports = None
        if is_pending:
            self.on_losses()

    @property
    def changed(self) -> anyio.Event:
        """Event that the next change sets."""
        if self._changed is None:
            self._changed = anyio.Event()
        return self._changed

    def notify(self) -> None:
        """Let every waiting task look at the state again."""
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set()

    async def reports(self) -> None:
        """Wait until the user's callbacks have something to report."""
        if self._reports is None:
            self._reports = anyio.Event()
        await self._reports.wait()
        self._reports = None

    def on_work(self) -> None:
        """See `QueueListener`."""
        self.notify()

    def on_room(self) -> None:
        """See `QueueListener`."""
        self.notify()

    def on_settled(self) -> None:
        """See `DeliveryListener`."""
        self.notify()

    def on_losses(self) -> None:
        """See `QueueListener`."""
        if self._reports is None:
            self._reports = anyio.Event()
        self._reports.set()

    def on_delivery(self) -> None:
        """See `DeliveryListener`."""
        self.on_losses()

    def on_fork(self) -> None:
        """See `QueueListener`. The tasks belong to the parent."""
        self._changed = self._reports = None


async def wait_for(event: anyio.Event, timeout: float | None) -> None:
    """Wait for an event, for at most this number of seconds."""
    with move_on_after(timeout):
        await event.wait()
