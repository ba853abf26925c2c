"""Signals between the parts of delivery. Each part gets its listener in the constructor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from .._model.records import Loss

T = TypeVar("T")


class QueueListener(Protocol):
    """Signals of the queue. All but `on_fork` come from any thread, without the lock."""

    def on_work(self) -> None:
        """The sender has to look at the queue."""

    def on_losses(self) -> None:
        """The user's callbacks have losses to report."""

    def on_room(self) -> None:
        """The spool has made room for more records."""

    def on_fork(self) -> None:
        """This is a forked child, and the queue has just been reset."""


class DeliveryListener(Protocol):
    """Signals of the batch sender. All come in the event loop."""

    def on_settled(self) -> None:
        """A batch was settled."""

    def on_delivery(self) -> None:
        """The user's callbacks have a delivery to report."""


class SpoolListener(Protocol):
    """Part of the queue that the bridge needs in the writer thread."""

    def run_locked(self, work: Callable[[], T]) -> T:
        """Change the buffer while the lock is held."""

    def report_losses(self, losses: list[Loss]) -> None:
        """Make losses known. The lock must not be held."""

    def notify_progress(self) -> None:
        """Signal that records may be sent, or that there is room."""

    def record_error(self, message: str) -> None:
        """Remember why a commit failed."""
