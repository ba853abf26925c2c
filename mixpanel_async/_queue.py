"""The buffer as every thread may use it: locked, with its overflow policy, and with its losses made known."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from ._buffer import Buffer, Idle, Offer, WaitUntil
from ._config import Overflow
from ._credentials import Secret
from ._errors import ClientClosedError, QueueFullError
from ._hooks import Hooks
from ._lanes import Barrier, Batch, Lane, Loss
from ._records import DropReason, Kind, Outcome, Stats

_log = logging.getLogger("mixpanel_async")
# Seconds between two lines in the log about the same kind of loss.
_LOG_EVERY: Final = 20.0


class Queue:
    """Owns the buffer, its lock and the counters.

    Args:
        buffer: what is waiting.
        overflow: what to do without room.
        hooks: the user's callbacks.
        monotonic: seconds from an arbitrary start.
    """

    def __init__(self, buffer: Buffer, overflow: Overflow, hooks: Hooks, monotonic: Callable[[], float]) -> None:
        self._buffer = buffer
        self._overflow = overflow
        self._monotonic = monotonic
        # Re-entrant: a finalizer or a signal handler may track while this very thread holds it.
        self._lock = threading.RLock()
        self._requests = self._retries = 0
        self._last_error: str | None = None
        self._complained: dict[DropReason, float] = {}
        self.hooks = hooks
        self.closed = False
        self.on_work: Callable[[], None] = _nothing
        """Called when the sender has something new to consider. From any thread."""
        self.on_loss: Callable[[], None] = _nothing
        """Called when the user's callbacks have something to be told. From any thread."""

    @property
    def pending(self) -> int:
        return self._buffer.pending

    @property
    def last_error(self) -> str | None:
        return self._last_error

    def lane(self, kind: Kind, secret: Secret | None = None) -> Lane:
        with self._lock:
            return self._buffer.lane(kind, secret)

    def offer(self, lane: Lane, item: bytes) -> bool:
        """Take a record.

        Returns:
            False if there is no room and the policy is to wait for it; the record is then not accepted.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room and the policy is to raise.
        """
        losses: list[Loss] = []
        with self._lock:
            self._refuse_if_closed()
            now = self._monotonic()
            verdict = self._buffer.offer(lane, item, now)
            if verdict is Offer.FULL:
                self.on_work()
                if self._overflow is Overflow.WAIT:
                    return False
                if self._overflow is Overflow.RAISE:
                    raise self.full()
                if self._overflow is Overflow.DROP_OLDEST:
                    losses = self._buffer.evict(len(item))
                    verdict = self._buffer.offer(lane, item, now)
                if verdict is Offer.FULL:
                    losses.append(self._buffer.discard(lane, [item], DropReason.QUEUE_FULL))
        if losses:
            self._report(losses)
        if verdict is not Offer.TAKEN:
            self.on_work()
        return True

    def full(self) -> QueueFullError:
        return QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def is_full(self, size: int) -> bool:
        with self._lock:
            return self._buffer.is_full(size)

    def discard(self, lane: Lane, item: bytes, reason: DropReason) -> None:
        """Count a record as accepted and dropped at once.

        Raises:
            ClientClosedError: if the client is closed.
        """
        with self._lock:
            self._refuse_if_closed()
            loss = self._buffer.discard(lane, [item], reason)
        self._report([loss])

    def lease_alone(self, lane: Lane, item: bytes) -> Batch:
        """Charge a record that is sent on its own.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room for it.
        """
        with self._lock:
            self._refuse_if_closed()
            batch = self._buffer.lease_alone(lane, item, self._monotonic())
            if batch is None:
                raise self.full()
            return batch

    def conclude(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End what `lease_alone` began."""
        with self._lock:
            losses = self._buffer.conclude(batch, reason, message=message)
        self._report(losses)

    def poll(self) -> Batch | WaitUntil | Idle:
        with self._lock:
            return self._buffer.poll(self._monotonic())

    def settle(self, batch: Batch, outcome: Outcome, delay: float) -> int:
        """End a lease.

        Returns:
            How many records were delivered.
        """
        with self._lock:
            before = self._buffer.delivered
            losses = self._buffer.settle(batch, outcome, self._monotonic(), delay)
            delivered = self._buffer.delivered - before
        self._report(losses)
        return delivered

    def barrier(self) -> Barrier:
        with self._lock:
            return self._buffer.barrier()

    def next_try(self, hurry: float) -> float:
        """When a waiting batch may be sent, after pauses of our own were cut to `hurry` seconds."""
        with self._lock:
            self._buffer.hurry(hurry)
            return self._buffer.next_try()

    def abandon(self) -> int:
        """Give up everything that waits, as the client is closed.

        Returns:
            How many records that were.
        """
        with self._lock:
            losses = self._buffer.abandon(DropReason.CLOSED)
        self._report(losses)
        return sum(len(loss.items) for loss in losses)

    def count_request(self, *, again: bool) -> None:
        with self._lock:
            self._requests += 1
            self._retries += again

    def count_error(self, words: str) -> None:
        self._last_error = words

    def stats(self) -> Stats:
        with self._lock:
            buffer = self._buffer
            return Stats(
                accepted=buffer.accepted,
                delivered=buffer.delivered,
                failed=buffer.failed,
                dropped=buffer.dropped,
                uncertain=buffer.uncertain,
                pending=buffer.pending,
                pending_bytes=buffer.pending_bytes,
                in_flight=buffer.in_flight,
                requests=self._requests,
                retries=self._retries,
                losses={reason.value: count for reason, count in buffer.losses.items()},
                last_error=self._last_error,
            )

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed; the record was not accepted")

    def _report(self, losses: list[Loss]) -> None:
        for loss in losses:
            self._complain(loss.reason)
        if self.hooks.lost(losses):
            self.on_loss()

    def _complain(self, reason: DropReason) -> None:
        """Tell the log of records that were never sent, once in a while; their owner meant `before_send` to drop."""
        if reason not in {DropReason.QUEUE_FULL, DropReason.BEFORE_SEND_FAILED}:
            return
        now = self._monotonic()
        if now - self._complained.get(reason, -_LOG_EVERY) >= _LOG_EVERY:
            # Noted first: a log handler that tracks comes back here.
            self._complained[reason] = now
            _log.warning("records are being dropped (%s): %d so far", reason.value, self._buffer.losses.get(reason, 0))


def _nothing() -> None:
    return None
