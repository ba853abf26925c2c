"""The buffer as every thread may use it: locked, with its overflow policy, and with its losses made known."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, TypeVar

from .._encoding.fast_event import split_records
from .._encoding.responses import RequestMetrics
from .._model.config import Overflow
from .._model.credentials import Secret
from .._model.errors import ClientClosedError, QueueFullError
from .._model.outcomes import Expired, Outcome
from .._model.records import DropReason, Loss, RecordKind
from .._model.stats import Stats
from .buffer import Buffer, Idle, OfferResult, WaitUntil
from .callbacks import Callbacks
from .lanes import Batch, FlushBarrier, Lane
from .log import EpisodeLog
from .staging import MIN_RECORD_BYTES, StagingBuffer

if TYPE_CHECKING:
    from .._spool.messages import CommitGroup
    from .spooling import SpoolBridge
T = TypeVar("T")
_log = logging.getLogger("mixpanel_async")
IN_REQUEST: Final = ContextVar("mixpanel_async_in_request", default=False)
"""Whether what runs now is part of a request of this package's own."""


class Queue:
    """Owns the buffer, its lock and the counters.

    A signal handler, a finalizer or a log handler may track while this very thread is inside. What it brings is put
    aside (`_late`) and taken in before the lock is given up.

    Args:
        buffer: what is waiting.
        overflow: what to do without room.
        hooks: the user's callbacks.
        monotonic: seconds from an arbitrary start.
        durable: joins the buffer to a spool; None without one.
    """

    def __init__(
        self,
        buffer: Buffer,
        overflow: Overflow,
        callbacks: Callbacks,
        monotonic: Callable[[], float],
        spool: SpoolBridge | None = None,
    ) -> None:
        self._buffer = buffer
        self._overflow = overflow
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._is_lock_held = False
        self._deferred: deque[tuple[Lane, bytes, DropReason | None]] = deque()
        self.staging = StagingBuffer()
        self._staging_lane: Lane | None = None
        self.requests = RequestMetrics(self._clock_offset_changed)
        """Counts the requests of the client."""
        self._log = EpisodeLog(monotonic)
        self.callbacks = callbacks
        self.closed = False
        self.on_work: Callable[[], None] = _nothing
        """Called when the sender has something new to consider. From any thread, without the lock."""
        self.on_loss: Callable[[], None] = _nothing
        """Called when the user's callbacks have something to be told. From any thread, without the lock."""
        self.on_room: Callable[[], None] = _nothing
        """Called when the spool's thread has made room. From that thread, without the lock."""
        self.spool = spool
        if spool is not None:
            spool.attach(self)
        self.on_fork: Callable[[], None] = _nothing
        """Called in a forked child, before anything else happens in it."""

    @property
    def pending(self) -> int:
        return self._buffer.pending + len(self._deferred) + len(self.staging)

    def enable_staging(self, lane: Lane) -> None:
        """Let `stage` be used for this lane."""
        if self.spool is None:
            self._staging_lane = lane

    def reopen_staging(self, until_yield: int) -> None:
        """Enter what lies on the stage, and let as many bytes be laid down there until others are let run."""
        self.run_locked(partial(setattr, self.staging, "yield_budget", until_yield))

    def _drain_staging(self, losses: list[Loss]) -> bool:
        """Enter in the buffer what lies on the stage. True if the sender has something new to consider."""
        lane, stage, buffer = self._staging_lane, self.staging, self._buffer
        is_news = False
        while lane is not None and stage.records:
            records, count = stage.drain(buffer.records_left(lane))
            stage.yield_budget -= len(records)
            verdict = buffer.extend(lane, records, count, self._monotonic())
            if verdict is OfferResult.FULL:
                rest, _ = stage.drain(len(stage))
                self._deferred.extendleft((lane, item, None) for item in reversed(split_records(records + rest)))
                self._enqueue_deferred(losses)
            is_news = is_news or verdict is not OfferResult.ACCEPTED
        return is_news

    def _update_staging_limits(self) -> None:
        lane, buffer = self._staging_lane, self._buffer
        batch = None if lane is None or self.closed or buffer.under_pressure else lane.open
        # Nobody would come for what joins a batch that waits for company.
        room = vacancies = 0
        if batch is not None and batch.opened != inf:
            room, vacancies = buffer.spare_bytes(batch, MIN_RECORD_BYTES), buffer.records_left(batch.lane)
        self.staging.update_limits(room, vacancies, is_busy=buffer.is_busy)

    def lane(self, kind: RecordKind, secret: Secret | None = None) -> Lane:
        return self.run_locked(lambda: self._buffer.lane(kind, secret))

    def offer(self, lane: Lane, item: bytes, commits: list[CommitGroup] | None = None) -> bool:
        """Take a record.

        Args:
            lane: where it goes.
            item: its bytes.
            tickets: with a spool, is given the commit that the caller will wait for; None if it will not.

        Returns:
            False if there is no room and the policy is to wait for it; the record is then not accepted.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room and the policy is to raise, or the record can never have any.
        """
        self.check_fork()
        losses: list[Loss] = []
        verdict = None
        with self._lock:
            is_closed = self.closed
            if not is_closed and not self._is_lock_held:
                self._is_lock_held = True
                try:
                    verdict = self._enqueue(lane, item, losses, commits)
                finally:
                    self._is_lock_held = False
        if verdict is None:
            self._defer(lane, item, DropReason.CLOSED if is_closed else None)
        elif self._deferred:
            self.run_locked(_nothing)
        if losses:
            self.report_losses(losses)
        if verdict in {OfferResult.WAKE_SENDER, OfferResult.FULL}:
            self.on_work()
            if verdict is OfferResult.FULL and self._overflow in {Overflow.WAIT, Overflow.RAISE}:
                if self._overflow is Overflow.RAISE or not self._buffer.could_fit(len(item)):
                    raise self.full()
                return False
        return True

    def _enqueue(self, lane: Lane, item: bytes, losses: list[Loss], tickets: list[CommitGroup] | None) -> OfferResult:
        """Enter a record in the buffer, after what came before it."""
        stage = self.staging
        stage.close_from_other_thread()
        had_staged = bool(stage.records)
        is_news = had_staged and self._drain_staging(losses)
        verdict = self._offer_to_buffer(lane, item, tickets)
        if verdict is OfferResult.FULL:
            verdict = self._apply_overflow_policy(lane, item, losses, tickets)
        if self._deferred:
            self._enqueue_deferred(losses)
            is_news = True
        if is_news and verdict is OfferResult.ACCEPTED:
            verdict = OfferResult.WAKE_SENDER
        # What was measured holds for so many bytes, whichever way they come, and for records that are no smaller.
        stage.charge(max(len(item), MIN_RECORD_BYTES))
        if had_staged or (lane is self._staging_lane and (stage.bytes_until_yield <= 0 or lane.open is None)):
            self._update_staging_limits()
        return verdict

    def _defer(self, lane: Lane, item: bytes, reason: DropReason | None = None) -> None:
        """Leave a record, to be dropped if there is a reason, to whoever is inside; without anybody it is taken in."""
        if not IN_REQUEST.get():
            # To raise would break off the request that a hook of the HTTP client tells of.
            self._refuse_if_closed()
        with self._lock:
            self._deferred.append((lane, item, reason))
            is_left = self._is_lock_held
        if not is_left:
            self.run_locked(_nothing)

    def _offer_to_buffer(self, lane: Lane, item: bytes, tickets: list[CommitGroup] | None) -> OfferResult:
        # What tells of a request of ours waits for company: a request of its own would be told of again, without end.
        now = inf if IN_REQUEST.get() else self._monotonic()
        if self.spool is None:
            return self._buffer.offer(lane, item, now)
        verdict, group = self.spool.offer(lane, item, now, is_awaited=tickets is not None)
        if tickets is not None and verdict is not OfferResult.FULL:
            tickets.append(group)
        return verdict

    def _apply_overflow_policy(
        self, lane: Lane, item: bytes, losses: list[Loss], tickets: list[CommitGroup] | None = None
    ) -> OfferResult:
        """What becomes of a record for which there was no room."""
        if self._overflow in {Overflow.WAIT, Overflow.RAISE}:
            return OfferResult.FULL
        verdict = OfferResult.FULL
        if self._overflow is Overflow.DROP_OLDEST:
            losses.extend(self._buffer.evict(len(item)))
            if self.spool is not None:
                self.spool.make_room(len(item))
                if self._buffer.settled_rows:
                    self.spool.delete_settled()
            verdict = self._offer_to_buffer(lane, item, tickets)
        if verdict is OfferResult.FULL:
            reason = DropReason.SPOOL_FULL if self._buffer.is_disk_full else DropReason.QUEUE_FULL
            losses.append(self._buffer.discard(lane, [item], reason))
        return verdict

    def _enqueue_deferred(self, losses: list[Loss]) -> None:
        while self._deferred:
            lane, item, reason = self._deferred.popleft()
            if reason is None and self._offer_to_buffer(lane, item, None) is OfferResult.FULL:
                verdict = self._apply_overflow_policy(lane, item, losses)
                if verdict is OfferResult.FULL and self._overflow in {Overflow.WAIT, Overflow.RAISE}:
                    # Nobody is left to be told: the call that brought it has returned.
                    reason = DropReason.QUEUE_FULL
            if reason is not None:
                losses.append(self._buffer.discard(lane, [item], reason))

    def run_locked(self, work: Callable[[], T]) -> T:
        """Do something to the buffer that no re-entry may see half done."""
        self.check_fork()
        losses: list[Loss] = []
        is_news = False
        with self._lock:
            was_inside, self._is_lock_held = self._is_lock_held, True
            self.staging.close_from_other_thread()
            try:
                if self.staging.records and not was_inside:
                    is_news = self._drain_staging(losses)
                result = work()
                if self.spool is not None and self._buffer.settled_rows:
                    self.spool.delete_settled()
                if self._deferred and not was_inside:
                    is_news = True
                    self._enqueue_deferred(losses)
                self._update_staging_limits()
            finally:
                self._is_lock_held = was_inside
        if self._deferred and not was_inside:
            self.run_locked(_nothing)
        if losses:
            self.report_losses(losses)
        if is_news:
            self.on_work()
        return result

    def close(self) -> None:
        """Take no more records."""

        def work() -> None:
            self.closed = True

        self.run_locked(work)

    def check_fork(self) -> None:
        """Begin anew in a forked child: what waits, its lock and its tasks are the parent's."""
        if self.staging.fork_marker.is_own_process():
            return
        self._lock = threading.RLock()
        self._is_lock_held = False
        self._deferred.clear()
        self.staging.reset_after_fork()
        self._buffer.reset()
        if self.spool is not None:
            self.spool.writer.reset_after_fork()
        self.requests.reset()
        self.callbacks.reset_after_fork()
        self.on_fork()

    def full(self) -> QueueFullError:
        return QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def is_full(self, size: int) -> bool:
        return self.run_locked(lambda: self._buffer.is_full(size))

    def discard(self, lane: Lane, item: bytes, reason: DropReason) -> None:
        """Count a record as accepted and dropped at once.

        Raises:
            ClientClosedError: if the client is closed.
        """
        self._defer(lane, item, reason)

    def lease_single(self, lane: Lane, item: bytes) -> Batch:
        """Charge a record that is sent on its own.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room for it.
        """
        self._refuse_if_closed()
        batch = self.run_locked(lambda: self._buffer.lease_single(lane, item, self._monotonic()))
        if batch is None:
            raise self.full()
        return batch

    def settle_single(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End what `lease_alone` began."""
        self.report_losses(self.run_locked(lambda: self._buffer.settle_single(batch, reason, message=message)))

    def poll(self) -> Batch | WaitUntil | Idle:
        def work() -> Batch | WaitUntil | Idle:
            if self.spool is not None:
                self.spool.refill()
            return self._buffer.poll(self._monotonic())

        return self.run_locked(work)

    def notify_progress(self) -> None:
        """Records may be sent, or there is room, that was not before."""
        self.on_work()
        self.on_room()

    def settle(self, batch: Batch, outcome: Outcome, delay: float) -> int:
        """End a lease.

        Returns:
            How many records were delivered.
        """

        def work() -> tuple[int, list[Loss]]:
            before = self._buffer.delivered
            losses = self._buffer.settle(batch, outcome, self._monotonic(), delay)
            if self.spool is not None:
                self.spool.settled(batch)
            return self._buffer.delivered - before, losses

        delivered, losses = self.run_locked(work)
        self.report_losses(losses)
        return delivered

    def expire(self, batch: Batch, outcome: Expired) -> None:
        """End a lease for which no request was made."""
        self.report_losses(self.run_locked(lambda: self._buffer.expire(batch, outcome)))

    def reclaim(self) -> None:
        """Take back every lease of an event loop that is gone."""
        self.report_losses(self.run_locked(self._buffer.reclaim))

    def barrier(self) -> FlushBarrier:
        return self.run_locked(self._buffer.barrier)

    def forget(self, barrier: FlushBarrier) -> None:
        self.run_locked(lambda: self._buffer.forget(barrier))

    def next_try(self, shorten_backoff: float | None) -> float:
        """When a waiting batch may be sent, after pauses of our own were cut to `hurry` seconds, if that is given."""

        def work() -> float:
            if shorten_backoff is not None:
                self._buffer.shorten_backoff(shorten_backoff)
            return self._buffer.next_try()

        return self.run_locked(work)

    def abandon(self) -> int:
        """Give up everything that waits, as the client is closed.

        Returns:
            How many records that were.
        """
        losses = self.run_locked(lambda: self._buffer.abandon(DropReason.CLOSED))
        self.report_losses(losses)
        return sum(len(loss.items) for loss in losses)

    def record_error(self, text: str) -> None:
        """Set the last error of the statistics."""
        self.requests.record_error(text)

    def _clock_offset_changed(self, ahead: float) -> None:
        if not self.staging.clock_offset:
            _log.warning("this machine's clock is %d s ahead of Mixpanel's; events are stamped with Mixpanel's", ahead)
        self.staging.set_clock_offset(ahead)

    def stats(self) -> Stats:
        def work() -> Stats:
            late = [item for _, item, _ in [*self._deferred]]
            return self._buffer.stats(late, self.requests.requests, self.requests.retries, self.requests.last_error)

        return self.run_locked(work)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed; the record was not accepted")

    def report_losses(self, losses: list[Loss]) -> None:
        """Make losses known. Without the lock."""
        for loss in losses:
            self._log.dropped(loss.reason, self._buffer.losses.get(loss.reason, 0))
        if self.callbacks.enqueue_losses(losses):
            self.on_loss()


def _nothing() -> None:
    return None
