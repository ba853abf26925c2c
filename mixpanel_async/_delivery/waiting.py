"""Waits of tracking calls: for room in the queue, for a commit to the spool, and for the confirmation of an outbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from .._model.errors import ClientClosedError, OutboxError
from .._model.records import DROPPED, DropReason
from .._runtime.event_loop import EventLoop, LoopSignal
from .._runtime.timers import move_on_after

if TYPE_CHECKING:
    from .batch import Confirmation
    from .loop_binding import LoopBinding
    from .queue import Queue

# Seconds after which a waiting call checks its condition without a signal.
_CHECK_EVERY: Final = 1.0


async def wait_for_room(
    queue: Queue, binding: LoopBinding, monotonic: Callable[[], float], size: int, deadline: float
) -> bool:
    """Wait until a record of this size may fit, or another event loop takes over. Return False after the deadline."""
    loop = binding.loop
    while True:
        # In this order: an event of another event loop is found together with that loop.
        progress = binding.progress
        if queue.closed or binding.loop is not loop or not queue.is_full(size):
            return True
        left = deadline - monotonic()
        if left <= 0 or progress is None:
            return False
        with move_on_after(left):
            await progress.wait()


@dataclass(slots=True)
class SharedWaiter:
    """Callers of one event loop that wait for the same commit or confirmation. One of them watches the clock.

    Args:
        loop: event loop of the callers.
        deadline: time of anyio's clock at which they give up.
        signal: wakes them.
        is_watched: one of them watches the clock. A timeout, or a look at the clock, for each would cost too much.
    """

    loop: EventLoop
    deadline: float
    signal: LoopSignal
    is_watched: bool = False

    async def watch(self) -> bool:
        """Wait for the next change, and watch the clock. Return False after the deadline."""
        left = self.deadline - anyio.current_time()
        if left <= 0:
            return False
        self.is_watched = True
        try:
            # A signal handler that raises may have cut off `notify`.
            with anyio.move_on_after(min(_CHECK_EVERY, left)):
                await self.signal.wait()
        finally:
            # After a timeout or a cancellation, another caller has to watch.
            self.is_watched = False
            self.signal.notify()
        return True

    def wake_soon(self) -> None:
        """Let every caller check its condition. From any thread."""
        self.loop.call_soon(self.signal.notify)


async def wait_confirmed(confirmation: Confirmation, loop: EventLoop, timeout: float) -> None:
    """Wait until the outbox has the records that a confirmation counts.

    Args:
        confirmation: counts the records.
        loop: event loop of the caller.
        timeout: seconds that the first of its callers waits.

    Raises:
        OutboxError: if it does not have them in time, or they were lost.
        ClientClosedError: if the client was closed before.
    """
    while confirmation.pending:
        waiter: SharedWaiter | None = confirmation.waiter
        if waiter is None or not waiter.loop.is_same(loop):
            waiter = SharedWaiter(loop, anyio.current_time() + timeout, loop.new_signal())
            # In this order: if a signal handler raises between the two, every other caller is still woken.
            confirmation.when_settled(waiter.wake_soon)
            confirmation.set_waiter(waiter)
        if waiter.is_watched:
            await waiter.signal.wait()
        elif not await waiter.watch():
            raise OutboxError("the outbox has not taken the record in time; it is still queued", uncertain=True)
    # A record that the overflow policy drops is counted and reported, as in a client without an outbox.
    lost = {DropReason(reason) for reason in confirmation.losses}
    if DropReason.CLOSED in lost:
        raise ClientClosedError("the client was closed before the outbox had taken the record")
    if failed := lost - DROPPED:
        reasons = ", ".join(sorted(reason.value for reason in failed))
        uncertain = DropReason.UNCERTAIN in lost or confirmation.delivered > 0
        raise OutboxError(f"the record was not handed over ({reasons})", uncertain=uncertain)
