"""Thread-safe queue: the buffer with its lock, its overflow policy and its reports of losses."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, TypeVar

from .._encoding.batch_body import split_records
from .._http.metrics import RequestMetrics
from .._model.config import Overflow
from .._model.credentials import Secret
from .._model.errors import ClientClosedError, QueueFullError
from .._model.outcomes import Expired, Outcome
from .._model.records import DropReason, Loss, RecordKind
from .._model.stats import Stats
from .batch import Batch, FlushBarrier
from .callbacks import Callbacks
from .lanes import Idle, Lane, OfferResult, WaitUntil
from .listeners import QueueListener, SpoolListener
from .log import LossLog, SignInLog, log_clock
from .staging import IN_REQUEST, MIN_RECORD_BYTES, StagingBuffer

if TYPE_CHECKING:
    from .._spool.messages import CommitGroup
    from .buffer import Buffer
    from .spool_bridge import SpoolBridge
T = TypeVar("T")


class Queue:
    """Owns the buffer, its lock and the counters.

    A signal handler, a finalizer or a log handler may track an event while the same thread holds the lock. Such records
    are deferred and enqueued before the lock is released.

    Args:
        buffer: waiting records.
        overflow: policy for records that do not fit.
        callbacks: the user's callbacks.
        monotonic: monotonic clock in seconds.
        listener: receives the signals of the queue.
        make_spool: connects the buffer to a spool, which reports to its argument; None without a spool.

    Attributes:
        staging: events tracked from the client's own event loop that have not entered the buffer yet.
        requests: counts the requests of the client.
        closed: the client is closed and rejects records.
    """

    def __init__(
        self,
        buffer: Buffer,
        overflow: Overflow,
        callbacks: Callbacks,
        monotonic: Callable[[], float],
        listener: QueueListener,
        make_spool: Callable[[SpoolListener], SpoolBridge] | None = None,
    ) -> None:
        self._buffer = buffer
        self._overflow = overflow
        self._monotonic = monotonic
        self._listener = listener
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_lock_held = False
        self._deferred: deque[tuple[Lane, bytes, DropReason | None]] = deque()
        self.staging = StagingBuffer(listener.on_work)
        self._staging_lane: Lane | None = None
        self.requests = RequestMetrics(self.staging.clock, log_clock)
        self._losses = LossLog(monotonic)
        self._sign_in_log = SignInLog(monotonic)
        self.callbacks = callbacks
        self.closed = False
        self._is_abandoned = False
        self.spool = None if make_spool is None else make_spool(self)

    @property
    def pending(self) -> int:
        """Number of accepted records that have not been settled."""
        return self._buffer.accounting.pending + len(self._deferred) + len(self.staging)

    # Staging

    def enable_staging(self, lane: Lane) -> None:
        """Let events of this lane be staged, unless there is a spool."""
        if self.spool is None:
            self._staging_lane = lane

    def reopen_staging(self, until_yield: int) -> None:
        """Enqueue the staged events, and let this number of bytes be staged until other tasks run."""
        self.run_locked(partial(self.staging.set_yield_budget, until_yield))

    def _drain_staging(self, losses: list[Loss]) -> bool:
        """Enqueue the staged events. Return whether the sender has to look at the queue."""
        lane, staging, buffer = self._staging_lane, self.staging, self._buffer
        wake_sender = False
        while lane is not None and staging.records:
            records, count = staging.drain(buffer.records_left(lane))
            result = buffer.extend(lane, records, count, self._monotonic())
            if result is OfferResult.FULL:
                rest, _ = staging.drain(len(staging))
                self._deferred.extendleft((lane, item, None) for item in reversed(split_records(records + rest)))
                self._enqueue_deferred(losses)
            wake_sender = wake_sender or result is not OfferResult.ACCEPTED
        return wake_sender

    def _update_staging_limits(self) -> None:
        lane, buffer = self._staging_lane, self._buffer
        bytes_left = records_left = 0
        opens_batch = lane is not None and lane.open is None
        # A batch without a linger time is sent with the next record only, so nothing may be staged for it.
        may_linger = lane is not None and (lane.open is None or lane.open.opened != inf)
        if lane is not None and may_linger and not self.closed and not buffer.under_pressure:
            bytes_left, records_left = buffer.spare_bytes(lane, MIN_RECORD_BYTES), buffer.records_left(lane)
        self.staging.update_limits(bytes_left, records_left, opens_batch=opens_batch, is_busy=buffer.is_busy)

    # Records in

    def lane(self, kind: RecordKind, secret: Secret | None = None) -> Lane:
        """Return the lane for this kind and authentication."""
        return self.run_locked(lambda: self._buffer.lane(kind, secret))

    def offer(self, lane: Lane, item: bytes, commits: list[CommitGroup] | None = None) -> bool:
        """Accept a record.

        Args:
            lane: destination.
            item: encoded record.
            commits: with a spool, receives the commit that the caller waits for; None if the caller does not wait.

        Returns:
            False if there is no room and the policy is to wait for it; the record is then not accepted.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room and the policy is to raise, or the record can never fit.
        """
        self.check_fork()
        losses: list[Loss] = []
        result = None
        with self._lock:
            is_closed = self.closed
            if not is_closed and not self._is_lock_held:
                self._is_lock_held = True
                try:
                    result = self._enqueue(lane, item, losses, commits)
                finally:
                    self._is_lock_held = False
        if result is None:
            self._defer(lane, item, DropReason.CLOSED if is_closed else None)
        elif self._deferred:
            self.run_locked(_nothing)
        if losses:
            self.report_losses(losses)
        if result in {OfferResult.WAKE_SENDER, OfferResult.FULL}:
            self._listener.on_work()
            if result is OfferResult.FULL and self._overflow in {Overflow.WAIT, Overflow.RAISE}:
                if self._overflow is Overflow.RAISE or not self._buffer.could_fit(len(item)):
                    raise self.full()
                return False
        return True

    def _enqueue(self, lane: Lane, item: bytes, losses: list[Loss], commits: list[CommitGroup] | None) -> OfferResult:
        """Enter a record in the buffer, after the staged events."""
        staging = self.staging
        staging.close_from_other_thread()
        had_staged = bool(staging.records)
        wake_sender = had_staged and self._drain_staging(losses)
        result = self._offer_to_buffer(lane, item, commits)
        if result is OfferResult.FULL:
            result = self._apply_overflow_policy(lane, item, losses, commits)
        if self._deferred:
            self._enqueue_deferred(losses)
            wake_sender = True
        if wake_sender and result is OfferResult.ACCEPTED:
            result = OfferResult.WAKE_SENDER
        # The limits of the staging buffer count every record, and assume that none is smaller than this.
        staging.charge(max(len(item), MIN_RECORD_BYTES))
        if had_staged or (lane is self._staging_lane and (staging.bytes_until_yield <= 0 or lane.open is None)):
            self._update_staging_limits()
        return result

    def _defer(self, lane: Lane, item: bytes, reason: DropReason | None = None) -> None:
        """Defer a record to the lock holder, or enqueue it if the lock is free. Drop it if there is a reason."""
        if not IN_REQUEST.get():
            # Inside a request, raising would break a hook of the HTTP client, and with it the request.
            self._refuse_if_closed()
        with self._lock:
            self._deferred.append((lane, item, reason))
            is_held = self._is_lock_held
        if not is_held:
            self.run_locked(_nothing)

    def _offer_to_buffer(self, lane: Lane, item: bytes, commits: list[CommitGroup] | None) -> OfferResult:
        # An event about our own request must not cause a request, which would cause the next event.
        now = inf if IN_REQUEST.get() else self._monotonic()
        if self.spool is None:
            return self._buffer.offer(lane, item, now)
        result, group = self.spool.offer(lane, item, now, is_awaited=commits is not None)
        if commits is not None and result is not OfferResult.FULL:
            commits.append(group)
        return result

    def _apply_overflow_policy(
        self, lane: Lane, item: bytes, losses: list[Loss], commits: list[CommitGroup] | None = None
    ) -> OfferResult:
        """Apply the overflow policy to a record that does not fit."""
        if self._overflow in {Overflow.WAIT, Overflow.RAISE}:
            return OfferResult.FULL
        result = OfferResult.FULL
        if self._overflow is Overflow.DROP_OLDEST:
            losses.extend(self._buffer.evict(len(item)))
            if self.spool is not None:
                self.spool.make_room(len(item))
                self.spool.delete_settled()
            result = self._offer_to_buffer(lane, item, commits)
        if result is OfferResult.FULL:
            reason = DropReason.SPOOL_FULL if self._buffer.is_disk_full else DropReason.QUEUE_FULL
            losses.append(self._buffer.discard(lane, [item], reason))
        return result

    def _enqueue_deferred(self, losses: list[Loss]) -> None:
        while self._deferred:
            lane, item, reason = self._deferred.popleft()
            if reason is None and self._offer_to_buffer(lane, item, None) is OfferResult.FULL:
                result = self._apply_overflow_policy(lane, item, losses)
                if result is OfferResult.FULL and self._overflow in {Overflow.WAIT, Overflow.RAISE}:
                    # The caller has returned, so it can neither wait nor get an exception.
                    reason = DropReason.QUEUE_FULL
            if reason is not None:
                losses.append(self._buffer.discard(lane, [item], reason))

    def discard(self, lane: Lane, item: bytes, reason: DropReason) -> None:
        """Count a record as accepted and dropped at once.

        Raises:
            ClientClosedError: if the client is closed.
        """
        self._defer(lane, item, reason)

    # Lock

    def run_locked(self, work: Callable[[], T]) -> T:
        """Change the buffer while the lock is held, after the staged events were enqueued."""
        self.check_fork()
        losses: list[Loss] = []
        wake_sender = False
        with self._lock:
            was_held, self._is_lock_held = self._is_lock_held, True
            self.staging.close_from_other_thread()
            try:
                if self.staging.records and not was_held:
                    wake_sender = self._drain_staging(losses)
                result = work()
                if self.spool is not None:
                    self.spool.delete_settled()
                if self._deferred and not was_held:
                    wake_sender = True
                    self._enqueue_deferred(losses)
                self._update_staging_limits()
            finally:
                self._is_lock_held = was_held
        if self._deferred and not was_held:
            self.run_locked(_nothing)
        if losses:
            self.report_losses(losses)
        if wake_sender:
            self._listener.on_work()
        return result

    def close(self) -> None:
        """Reject records from now on."""

        def work() -> None:
            self.closed = True

        self.run_locked(work)

    def check_fork(self) -> None:
        """Reset the queue in a forked child: records, lock and tasks belong to the parent."""
        if self._pid == os.getpid() and self.staging.fork_marker.is_current:
            return
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_lock_held = False
        self._deferred.clear()
        self.staging.reset_after_fork()
        self._buffer.reset()
        if self.spool is not None:
            self.spool.writer.reset_after_fork()
        self.requests.reset()
        self._losses = LossLog(self._monotonic)
        self.callbacks.reset_after_fork()
        self._listener.on_fork()

    def full(self) -> QueueFullError:
        """Return the error for a record that does not fit."""
        path = "" if self.spool is None or not self.spool.has_no_room else self.spool.path
        return QueueFullError(self._buffer.accounting.pending, self._buffer.accounting.pending_bytes, path)

    @property
    def waits(self) -> bool:
        """Whether a caller waits for room, instead of dropping a record or raising."""
        return self._overflow is Overflow.WAIT

    def is_full(self, size: int) -> bool:
        """Return whether a record of this size does not fit."""

        def work() -> bool:
            is_full = self._buffer.is_full(size)
            if is_full and self.spool is not None:
                self.spool.note_full()
            return is_full

        return self.run_locked(work)

    # Requests

    def lease_single(self, lane: Lane, item: bytes) -> Batch:
        """Charge and lease a record that is sent alone.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if it does not fit.
        """
        self._refuse_if_closed()
        batch = self.run_locked(lambda: self._buffer.lease_single(lane, item, self._monotonic()))
        if batch is None:
            raise self.full()
        return batch

    def settle_single(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End a lease made by `lease_single`: delivered, or lost if there is a reason."""
        self.report_losses(self.run_locked(lambda: self._buffer.settle_single(batch, reason, message=message)))

    def requeue_single(self, batch: Batch) -> None:
        """End a lease made by `lease_single` without an outcome: its record joins those that wait."""

        def work() -> list[Loss]:
            self._buffer.requeue_single(batch)
            return self._abandoned()

        self.report_losses(self.run_locked(work))

    def poll(self) -> Batch | WaitUntil | Idle:
        """Return a batch, leased to the caller, or how long to wait for one."""

        def work() -> Batch | WaitUntil | Idle:
            if self.spool is not None:
                self.spool.refill()
            return self._buffer.poll(self._monotonic())

        return self.run_locked(work)

    def settle(self, batch: Batch, outcome: Outcome, delay: float) -> int:
        """End a lease; see `Buffer.settle`.

        Returns:
            How many records were delivered.
        """
        accounting = self._buffer.accounting

        def work() -> tuple[int, list[Loss]]:
            before = accounting.delivered
            losses = self._buffer.settle(batch, outcome, self._monotonic(), delay)
            if self.spool is not None:
                self.spool.end_request(batch)
            return accounting.delivered - before, losses + self._abandoned()

        delivered, losses = self.run_locked(work)
        self.report_losses(losses)
        self._losses.log_due()
        return delivered

    def expire(self, batch: Batch, outcome: Expired) -> None:
        """End a lease for which no request was made."""
        self.report_losses(self.run_locked(lambda: self._buffer.expire(batch, outcome) + self._abandoned()))

    def _abandoned(self) -> list[Loss]:
        """Drop records of a request that outlived the client: they have no place to wait."""
        return self._buffer.abandon(DropReason.CLOSED) if self._is_abandoned else []

    def reclaim(self) -> None:
        """Release the leases held by an event loop that has ended."""
        self.report_losses(self.run_locked(self._buffer.reclaim))

    def abandon(self) -> int:
        """Give up every waiting record, as the client is closed.

        Returns:
            The number of these records.
        """

        def work() -> list[Loss]:
            self._is_abandoned = True
            return self._buffer.abandon(DropReason.CLOSED)

        losses = self.run_locked(work)
        self.report_losses(losses)
        self.log_last_losses()
        return sum(len(loss.items) for loss in losses)

    def end(self, timeout: float) -> None:
        """Give up every waiting record and close the spool, as the client was dropped and its event loop ends.

        Args:
            timeout: seconds to wait for the disk.
        """
        self.abandon()
        if self.spool is not None:
            self.spool.close(timeout)
            self.log_last_losses()

    def count_identity(self, counter: str) -> None:
        """Add one to this field of `IdentityStats`."""
        self.run_locked(partial(self._buffer.accounting.count_identity, counter))

    def sign_in_failed(self, error: Exception, is_final: bool) -> None:  # noqa: FBT001  a callback
        """Log an error that `sign_in` did not raise; see `SignInLog.failed`."""
        self._sign_in_log.failed(error, is_final=is_final)

    def record_error(self, message: str) -> None:
        """Set the last error of the statistics."""
        self.requests.record_error(message)

    # Flushes

    def barrier(self) -> FlushBarrier:
        """Make everything accepted so far due now, and return a barrier that counts it."""
        return self.run_locked(self._buffer.barrier)

    def forget(self, barrier: FlushBarrier) -> None:
        """Stop counting for this barrier."""
        self.run_locked(lambda: self._buffer.forget(barrier))

    def next_try(self, shorten_backoff: float | None) -> float:
        """Return when a waiting batch may be sent, after backoffs were shortened to this number of seconds."""

        def work() -> float:
            if shorten_backoff is not None:
                self._buffer.shorten_backoff(shorten_backoff)
            return self._buffer.next_try()

        return self.run_locked(work)

    # Reports

    def notify_progress(self) -> None:
        """Signal that records may be sent, or that there is room, after a change by the spool."""
        self._listener.on_work()
        self._listener.on_room()

    def stats(self) -> Stats:
        """Return a snapshot of all counters."""

        def work() -> Stats:
            deferred = [item for _, item, _ in [*self._deferred]]
            spool, stats = self.spool, self._buffer.stats(deferred, self.requests)
            opened = min((batch.opened for lane in self._buffer.active for batch in lane.batches()), default=inf)
            return replace(
                stats,
                # Infinite for events that were tracked inside requests, and without records.
                oldest_age=0.0 if opened == inf else max(0.0, self._monotonic() - opened),
                spool_bytes=0 if spool is None else spool.used_bytes,
                dead_letters=0 if spool is None else spool.dead_letters,
            )

        return self.run_locked(work)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed; the record was not accepted")

    def log_last_losses(self) -> None:
        """Log the losses that no line has counted yet, as the client closes."""
        self._losses.log_due(is_last=True)

    def report_losses(self, losses: list[Loss]) -> None:
        """Log losses and pass them to the user's callback. The lock must not be held."""
        if not losses:
            return
        self._losses.lost(losses)
        if self.callbacks.enqueue_losses(losses):
            self._listener.on_losses()


def _nothing() -> None:
    return None
