"""Way of records into the buffer, from any thread: lock, staged and deferred records, overflow policy."""

from __future__ import annotations

import inspect
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, TypeVar

from .._encoding.batch_body import sizes_of
from .._http.metrics import RequestMetrics
from .._model.config import Overflow
from .._model.credentials import Secret
from .._model.errors import ClientClosedError, QueueFullError
from .._model.records import DropReason, Loss, RecordKind
from .listeners import QueueListener, SpoolListener
from .log import LossLog, SignInLog, log_clock
from .offers import OfferResult
from .repair import Repairer
from .staging import IN_CALLBACK, IN_REQUEST, MIN_RECORD_BYTES, Stage, StagingBuffer

if TYPE_CHECKING:
    from .._spool.messages import CommitGroup
    from .batch import Confirmation
    from .buffer import Buffer
    from .callbacks import Callbacks
    from .lanes import Lane
    from .spool_bridge import SpoolBridge

    _Deferred = deque[tuple[Lane, bytes, DropReason | None]]
    Commit = CommitGroup | Confirmation

T = TypeVar("T")


class Intake:
    """Owns the buffer and its lock, and accepts records. `Queue` adds what happens to them then.

    A signal handler, a finalizer or a log handler may track an event while the same thread holds the lock. Such records
    are deferred and enqueued before the lock is released.

    Args:
        buffer: waiting records.
        overflow: policy for records that do not fit.
        callbacks: the user's callbacks.
        monotonic: monotonic clock in seconds.
        listener: receives the signals of the queue.
        make_spool: connects the buffer to a spool, which reports to its argument; None without a spool.
        confirm_timeout: seconds that a call waits until an outbox has its record; None not to wait. Not with a spool.

    Attributes:
        staging: records from the client's own event loop that have not entered the buffer yet.
        requests: counts the requests of the client.
        closed: the client is closed and rejects records.
        has_commits: calls wait until their record is on disk, or in an outbox.
    """

    def __init__(
        self,
        buffer: Buffer,
        overflow: Overflow,
        callbacks: Callbacks,
        monotonic: Callable[[], float],
        listener: QueueListener,
        make_spool: Callable[[SpoolListener], SpoolBridge] | None = None,
        *,
        confirm_timeout: float | None = None,
    ) -> None:
        self._buffer = buffer
        self._overflow = overflow
        self._monotonic = monotonic
        self._listener = listener
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._is_lock_held = False
        self._repairer = Repairer(buffer, self._repair_spool)
        # Only an eviction takes accepted records away while another record enters.
        self._cut_off_as = DropReason.QUEUE_FULL if overflow is Overflow.DROP_OLDEST else DropReason.UNCERTAIN
        self._deferred: _Deferred = deque()
        self.staging = StagingBuffer(listener.on_work)
        self._stages: dict[Lane, Stage] = {}
        self.requests = RequestMetrics(self.staging.clock, log_clock)
        self._losses = LossLog(monotonic)
        self._sign_in_log = SignInLog(monotonic)
        self.callbacks = callbacks
        self.closed = False
        self._is_abandoned = False
        self.spool = None if make_spool is None else make_spool(self)
        self.has_commits = make_spool is not None or confirm_timeout is not None
        self.confirm_timeout = confirm_timeout or 0.0

    def _repair_spool(self) -> None:
        if self.spool is not None:
            self.spool.repair()

    @property
    def pending(self) -> int:
        """Number of accepted records that have not been settled."""
        return self._buffer.accounting.pending + len(self._deferred) + len(self.staging)

    # Staging

    def stage(self, lane: Lane) -> Stage:
        """Return the stage of this lane. If calls wait for their records, nothing is staged."""
        if self.has_commits:
            return Stage()
        if lane not in self._stages:
            self._stages[lane] = self.staging.new_stage()
        return self._stages[lane]

    def reopen_staging(self, until_yield: int) -> None:
        """Enqueue the staged events, and let this number of bytes be staged until other tasks run."""
        self.run_locked(partial(self.staging.set_yield_budget, until_yield))

    def _drain_staging(self, losses: list[Loss]) -> bool:
        """Enqueue the staged records. Return whether the sender has to look at the queue."""
        staging, buffer = self.staging, self._buffer
        wake_sender = False
        for lane, stage in self._stages.items():
            records = stage.records
            while records:
                sizes = buffer.fitting_sizes(lane, sizes_of(records))
                count, size = len(sizes), sum(sizes)
                try:
                    result = buffer.extend(lane, records[:count], sizes, size, self._monotonic())
                    if result is not OfferResult.FULL:
                        del records[:count]
                except BaseException:
                    if self._repairer.repair(self._cut_off_as) > 0:
                        del records[:count]
                    raise
                if result is OfferResult.FULL:
                    count = len(records)
                    waiting: _Deferred = deque([(lane, item, None) for item in records[:count]])
                    # No call between these two, so that no signal handler can run between them.
                    self._deferred = waiting + self._deferred
                    del records[:count]
                    self._enqueue_deferred(losses)
                staging.charge_drained(size)
                self._repairer.begin()
                wake_sender = wake_sender or result is not OfferResult.ACCEPTED
        return wake_sender

    def _update_staging_limits(self) -> None:
        buffer = self._buffer
        for lane, stage in self._stages.items():
            # A batch without a linger time is sent with the next record.
            opens_batch = lane.open is None or lane.open.opened == inf
            stage.update(buffer.records_left(lane), opens_batch=opens_batch)
        is_open = self._stages and not self.closed and not buffer.under_pressure
        bytes_left = buffer.accounting.spare_bytes(MIN_RECORD_BYTES) if is_open else 0
        if self.has_commits and not self.closed:
            # No record fits. The staging buffer encodes each one, faster than any other code, and returns it.
            bytes_left = 1
        self.staging.update_limits(bytes_left, is_busy=buffer.is_busy)

    # Records in

    def lane(self, kind: RecordKind, secret: Secret | None = None) -> Lane:
        """Return the lane for this kind and authentication."""
        return self.run_locked(lambda: self._buffer.lane(kind, secret))

    def offer(self, lane: Lane, item: bytes, commits: list[Commit] | None = None, *, must_fit: bool = False) -> bool:
        """Accept a record.

        Args:
            lane: destination.
            item: encoded record.
            commits: receives what the caller waits for, with a spool or a confirming outbox; None if it does not wait.
            must_fit: raise where the policy would drop this record.

        Returns:
            False if there is no room and the policy is to wait for it; the record is then not accepted.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room and the policy is to raise, or the record can never fit.
        """
        self.check_fork()
        try:
            return self._offer(lane, item, commits, must_fit=must_fit)
        except QueueFullError:
            raise
        except BaseException:
            # A signal handler may have raised after the record was accepted.
            self.notify_progress()
            raise

    def _offer(self, lane: Lane, item: bytes, commits: list[Commit] | None, *, must_fit: bool) -> bool:
        losses: list[Loss] = []
        result = None
        with self._lock:
            is_closed = self.closed
            if not is_closed and not self._is_lock_held:
                self._is_lock_held = True
                try:
                    self._repairer.begin()
                    result = self._enqueue(lane, item, losses, commits, must_fit=must_fit)
                except BaseException:
                    self._repairer.losses.extend(losses)
                    self._repairer.repair(self._cut_off_as)
                    raise
                finally:
                    self._is_lock_held = False
        if result is None:
            self._defer(lane, item, DropReason.CLOSED if is_closed else None)
        elif self._deferred:
            self.run_locked(_nothing)
        if losses:
            self.report_losses(losses)
        if result is OfferResult.WAKE_SENDER or result is OfferResult.FULL:
            self._listener.on_work()
            if result is OfferResult.FULL and (must_fit or self._overflow in {Overflow.WAIT, Overflow.RAISE}):
                if self._overflow is not Overflow.WAIT or not self._buffer.could_fit(len(item)):
                    raise self.full()
                return False
        return True

    def _enqueue(
        self, lane: Lane, item: bytes, losses: list[Loss], commits: list[Commit] | None, *, must_fit: bool
    ) -> OfferResult:
        """Enter a record in the buffer, after the staged events."""
        staging = self.staging
        staging.close_from_other_thread()
        had_staged = len(staging) > 0 if self._stages else False
        wake_sender = had_staged and self._drain_staging(losses)
        result = self._offer_to_buffer(lane, item, commits)
        if result is OfferResult.FULL:
            result = self._apply_overflow_policy(lane, item, losses, commits, must_fit=must_fit)
        if self._deferred:
            self._enqueue_deferred(losses)
            wake_sender = True
        if wake_sender and result is OfferResult.ACCEPTED:
            result = OfferResult.WAKE_SENDER
        if not self._stages:
            return result
        # The limits of the staging buffer count every record, and assume that none is smaller than this.
        staging.charge(max(len(item), MIN_RECORD_BYTES))
        stage = self._stages.get(lane)
        if stage is not None:
            stage.charge()
            if had_staged or staging.bytes_until_yield <= 0 or lane.open is None:
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

    def _offer_to_buffer(self, lane: Lane, item: bytes, commits: list[Commit] | None) -> OfferResult:
        # An event about our own request must not cause a request, which would cause the next event.
        now = inf if IN_REQUEST.get() else self._monotonic()
        if IN_CALLBACK.get():
            self.callbacks.note_tracked()
        if self.spool is None:
            result = self._buffer.offer(lane, item, now)
            if commits is not None and result is not OfferResult.FULL:
                confirmation = lane.newest.confirm()
                self._repairer.watch(confirmation)
                commits.append(confirmation)
            return result
        result, group = self.spool.offer(lane, item, now, is_awaited=commits is not None)
        if commits is not None and result is not OfferResult.FULL:
            commits.append(group)
        return result

    def _apply_overflow_policy(
        self,
        lane: Lane,
        item: bytes,
        losses: list[Loss],
        commits: list[Commit] | None = None,
        *,
        must_fit: bool = False,
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
        if result is OfferResult.FULL and not must_fit:
            reason = DropReason.SPOOL_FULL if self._buffer.is_disk_full else DropReason.QUEUE_FULL
            losses.append(self._buffer.discard(lane, [item], reason))
        return result

    def _enqueue_deferred(self, losses: list[Loss]) -> None:
        while self._deferred:
            try:
                self._enqueue_first(losses)
                del self._deferred[0]
            except BaseException:
                if self._repairer.repair(self._cut_off_as) > 0:
                    del self._deferred[0]
                raise
            self._repairer.begin()

    def _enqueue_first(self, losses: list[Loss]) -> None:
        """Enqueue the first deferred record."""
        lane, item, reason = self._deferred[0]
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

    @staticmethod
    def is_interrupted() -> bool:
        """Return whether the caller is a signal handler or finalizer that has interrupted code with the lock."""
        # The frames tell it for certain. A counter could be left wrong by a handler that raises.
        frame = inspect.currentframe()
        frame = None if frame is None else frame.f_back
        while frame is not None and frame.f_globals is not globals():
            frame = frame.f_back
        return frame is not None

    def run_locked(self, work: Callable[[], T]) -> T:
        """Change the buffer while the lock is held, after the staged events were enqueued."""
        self.check_fork()
        try:
            return self._run_locked(work)
        except BaseException:
            # A signal handler may have raised after records were enqueued or settled.
            self.notify_progress()
            raise

    def _run_locked(self, work: Callable[[], T]) -> T:
        losses: list[Loss] = []
        wake_sender = False
        with self._lock:
            was_held, self._is_lock_held = self._is_lock_held, True
            try:
                self.staging.close_from_other_thread()
                if not was_held:
                    self._repairer.begin()
                    losses += self._repairer.take_losses()
                if len(self.staging) and not was_held:
                    wake_sender = self._drain_staging(losses)
                result = work()
                if self.spool is not None:
                    self.spool.delete_settled()
                if self._deferred and not was_held:
                    wake_sender = True
                    self._enqueue_deferred(losses)
                self._update_staging_limits()
            except BaseException:
                if not was_held:
                    self._repairer.losses.extend(losses)
                    self._repairer.repair(DropReason.UNCERTAIN)
                raise
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
        self._repairer.reset()
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
        """Return whether a record of this size does not fit, so that its caller waits for the others to be sent."""

        def work() -> bool:
            is_full = self._buffer.is_full(size)
            if is_full:
                self._buffer.end_linger()
                if self.spool is not None:
                    self.spool.note_full()
            return is_full

        is_full = self.run_locked(work)
        if is_full:
            self._listener.on_work()
        return is_full

    # Reports

    def record_error(self, message: str) -> None:
        """Set the last error of the statistics."""
        self.requests.record_error(message)

    def notify_progress(self) -> None:
        """Signal that records may be sent or that there is room, after a change by the spool or an error."""
        self._listener.on_work()
        self._listener.on_room()

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed; the record was not accepted")

    def report_losses(self, losses: list[Loss]) -> None:
        """Log losses and pass them to the user's callback. The lock must not be held."""
        if not losses:
            return
        self._losses.lost(losses)
        if self.callbacks.enqueue_losses(losses):
            self._listener.on_losses()


def _nothing() -> None:
    return None
