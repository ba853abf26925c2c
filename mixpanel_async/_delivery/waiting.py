"""Waits of tracking calls, in the event loop of the client: for room in the queue, and for a confirmation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from .._model.errors import ClientClosedError, OutboxError
from .._model.records import DROPPED, DropReason
from .._runtime.timers import move_on_after

if TYPE_CHECKING:
    from .batch import FlushBarrier
    from .loop_binding import LoopBinding
    from .queue import Queue

# Seconds after which a waiting call checks its condition without a signal.
_CHECK_EVERY: Final = 1.0


async def wait_for_room(
    queue: Queue, binding: LoopBinding, monotonic: Callable[[], float], size: int, deadline: float
) -> bool:
    """Wait until a record of this size may fit. Return False after the deadline."""
    while True:
        progress = binding.progress
        if queue.closed or not queue.is_full(size):
            return True
        left = deadline - monotonic()
        if left <= 0 or progress is None:
            return False
        with move_on_after(left):
            await progress.wait()


async def wait_confirmed(
    confirmation: FlushBarrier, binding: LoopBinding, monotonic: Callable[[], float], deadline: float
) -> None:
    """Wait until the outbox has the records that a confirmation counts.

    Raises:
        OutboxError: if it does not have them at the deadline, or they were lost.
        ClientClosedError: if the client was closed before.
    """
    while confirmation.pending:
        progress = binding.progress
        left = deadline - monotonic()
        if left <= 0 or progress is None:
            raise OutboxError("the outbox has not taken the record in time; it is still queued", uncertain=True)
        with move_on_after(min(_CHECK_EVERY, left)):
            await progress.wait()
    # A record that the overflow policy drops is counted and reported, as in a client without an outbox.
    lost = {DropReason(reason) for reason in confirmation.losses}
    if DropReason.CLOSED in lost:
        raise ClientClosedError("the client was closed before the outbox had taken the record")
    if failed := lost - DROPPED:
        reasons = ", ".join(sorted(reason.value for reason in failed))
        uncertain = DropReason.UNCERTAIN in lost or confirmation.delivered > 0
        raise OutboxError(f"the record was not handed over ({reasons})", uncertain=uncertain)
