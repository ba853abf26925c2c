"""The buffer as every thread may use it: locked, with its overflow policy, and with its losses made known."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final, TypeVar

from .._encoding.fast_event import apart
from .._model.config import Overflow
from .._model.credentials import Secret
from .._model.errors import ClientClosedError, QueueFullError
from .._model.outcomes import Outcome, Outdated
from .._model.records import DropReason, Kind, Loss
from .._model.stats import Stats
from .buffer import Buffer, Idle, Offer, WaitUntil
from .callbacks import Hooks
from .lanes import Barrier, Batch, Lane
from .log import Logbook
from .staging import LEAST_RECORD_BYTES, Stage

if TYPE_CHECKING:
    from .._spool.messages import Group
    from .spooling import Durable
T = TypeVar("T")
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
        hooks: Hooks,
        monotonic: Callable[[], float],
        durable: Durable | None = None,
    ) -> None:
        self._buffer = buffer
        self._overflow = overflow
        self._monotonic = monotonic
        self._lock = threading.RLock()
        self._is_inside = False
        self._late: deque[tuple[Lane, bytes, DropReason | None]] = deque()
        self.stage = Stage()
        self._stage_lane: Lane | None = None
        self._requests = self._retries = 0
        self.last_error: str | None = None
        self._logbook = Logbook(monotonic)
        self.hooks = hooks
        self.closed = False
        self.on_work: Callable[[], None] = _nothing
        """Called when the sender has something new to consider. From any thread, without the lock."""
        self.on_loss: Callable[[], None] = _nothing
        """Called when the user's callbacks have something to be told. From any thread, without the lock."""
        self.on_room: Callable[[], None] = _nothing
        """Called when the spool's thread has made room. From that thread, without the lock."""
        self.durable = durable
        if durable is not None:
            durable.belong_to(self)
        self.on_fork: Callable[[], None] = _nothing
        """Called in a forked child, before anything else happens in it."""

    @property
    def pending(self) -> int:
        return self._buffer.pending + len(self._late) + len(self.stage)

    def set_stage(self, lane: Lane) -> None:
        """Let `stage` be used for this lane."""
        if self.durable is None:
            self._stage_lane = lane

    def open_stage(self, until_yield: int) -> None:
        """Enter what lies on the stage, and let as many bytes be laid down there until others are let run."""
        self.locked(partial(setattr, self.stage, "until_yield", until_yield))

    def _clear_stage(self, losses: list[Loss]) -> bool:
        """Enter in the buffer what lies on the stage. True if the sender has something new to consider."""
        lane, stage, buffer = self._stage_lane, self.stage, self._buffer
        is_news = False
        while lane is not None and stage.shares:
            records, count = stage.take(buffer.vacancies(lane))
            stage.until_yield -= len(records)
            verdict = buffer.extend(lane, records, count, self._monotonic())
            if verdict is Offer.FULL:
                rest, _ = stage.take(len(stage))
                self._late.extendleft((lane, item, None) for item in reversed(apart(records + rest)))
                self._take_late(losses)
            is_news = is_news or verdict is not Offer.TAKEN
        return is_news

    def _measure_stage(self) -> None:
        lane, buffer = self._stage_lane, self._buffer
        batch = None if lane is None or self.closed or buffer.crowded else lane.open
        # Nobody would come for what joins a batch that waits for company.
        room = vacancies = 0
        if batch is not None and batch.opened != inf:
            room, vacancies = buffer.spare_bytes(batch, LEAST_RECORD_BYTES), buffer.vacancies(batch.lane)
        self.stage.measured(room, vacancies, is_busy=buffer.is_busy)

    def lane(self, kind: Kind, secret: Secret | None = None) -> Lane:
        return self.locked(lambda: self._buffer.lane(kind, secret))

    def offer(self, lane: Lane, item: bytes, tickets: list[Group] | None = None) -> bool:
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
        self.note_fork()
        losses: list[Loss] = []
        verdict = None
        with self._lock:
            is_closed = self.closed
            if not is_closed and not self._is_inside:
                self._is_inside = True
                try:
                    verdict = self._taken(lane, item, losses, tickets)
                finally:
                    self._is_inside = False
        if verdict is None:
            self._put_aside(lane, item, DropReason.CLOSED if is_closed else None)
        elif self._late:
            self.locked(_nothing)
        if losses:
            self.report(losses)
        if verdict in {Offer.NOTIFY, Offer.FULL}:
            self.on_work()
            if verdict is Offer.FULL and self._overflow in {Overflow.WAIT, Overflow.RAISE}:
                if self._overflow is Overflow.RAISE or not self._buffer.could_fit(len(item)):
                    raise self.full()
                return False
        return True

    def _taken(self, lane: Lane, item: bytes, losses: list[Loss], tickets: list[Group] | None) -> Offer:
        """Enter a record in the buffer, after what came before it."""
        stage = self.stage
        stage.shut()
        had_staged = bool(stage.shares)
        is_news = had_staged and self._clear_stage(losses)
        verdict = self._put(lane, item, tickets)
        if verdict is Offer.FULL:
            verdict = self._overflowed(lane, item, losses, tickets)
        if self._late:
            self._take_late(losses)
            is_news = True
        if is_news and verdict is Offer.TAKEN:
            verdict = Offer.NOTIFY
        # What was measured holds for so many bytes, whichever way they come, and for records that are no smaller.
        stage.entered(max(len(item), LEAST_RECORD_BYTES))
        if had_staged or (lane is self._stage_lane and (stage.room <= 0 or lane.open is None)):
            self._measure_stage()
        return verdict

    def _put_aside(self, lane: Lane, item: bytes, reason: DropReason | None = None) -> None:
        """Leave a record, to be dropped if there is a reason, to whoever is inside; without anybody it is taken in."""
        if not IN_REQUEST.get():
            # To raise would break off the request that a hook of the HTTP client tells of.
            self._refuse_if_closed()
        with self._lock:
            self._late.append((lane, item, reason))
            is_left = self._is_inside
        if not is_left:
            self.locked(_nothing)

    def _put(self, lane: Lane, item: bytes, tickets: list[Group] | None) -> Offer:
        # What tells of a request of ours waits for company: a request of its own would be told of again, without end.
        now = inf if IN_REQUEST.get() else self._monotonic()
        if self.durable is None:
            return self._buffer.offer(lane, item, now)
        verdict, group = self.durable.offer(lane, item, now, is_awaited=tickets is not None)
        if tickets is not None and verdict is not Offer.FULL:
            tickets.append(group)
        return verdict

    def _overflowed(self, lane: Lane, item: bytes, losses: list[Loss], tickets: list[Group] | None = None) -> Offer:
        """What becomes of a record for which there was no room."""
        if self._overflow in {Overflow.WAIT, Overflow.RAISE}:
            return Offer.FULL
        verdict = Offer.FULL
        if self._overflow is Overflow.DROP_OLDEST:
            losses.extend(self._buffer.evict(len(item)))
            if self.durable is not None:
                self.durable.make_room(len(item))
                if self._buffer.ended:
                    self.durable.note()
            verdict = self._put(lane, item, tickets)
        if verdict is Offer.FULL:
            reason = DropReason.SPOOL_FULL if self._buffer.is_disk_full else DropReason.QUEUE_FULL
            losses.append(self._buffer.discard(lane, [item], reason))
        return verdict

    def _take_late(self, losses: list[Loss]) -> None:
        while self._late:
            lane, item, reason = self._late.popleft()
            if reason is None and self._put(lane, item, None) is Offer.FULL:
                verdict = self._overflowed(lane, item, losses)
                if verdict is Offer.FULL and self._overflow in {Overflow.WAIT, Overflow.RAISE}:
                    # Nobody is left to be told: the call that brought it has returned.
                    reason = DropReason.QUEUE_FULL
            if reason is not None:
                losses.append(self._buffer.discard(lane, [item], reason))

    def locked(self, work: Callable[[], T]) -> T:
        """Do something to the buffer that no re-entry may see half done."""
        self.note_fork()
        losses: list[Loss] = []
        is_news = False
        with self._lock:
            was_inside, self._is_inside = self._is_inside, True
            self.stage.shut()
            try:
                if self.stage.shares and not was_inside:
                    is_news = self._clear_stage(losses)
                result = work()
                if self.durable is not None and self._buffer.ended:
                    self.durable.note()
                if self._late and not was_inside:
                    is_news = True
                    self._take_late(losses)
                self._measure_stage()
            finally:
                self._is_inside = was_inside
        if self._late and not was_inside:
            self.locked(_nothing)
        if losses:
            self.report(losses)
        if is_news:
            self.on_work()
        return result

    def close(self) -> None:
        """Take no more records."""

        def work() -> None:
            self.closed = True

        self.locked(work)

    def note_fork(self) -> None:
        """Begin anew in a forked child: what waits, its lock and its tasks are the parent's."""
        if self.stage.mark[0]:
            return
        self._lock = threading.RLock()
        self._is_inside = False
        self._late.clear()
        self.stage.forget()
        self._buffer.reset()
        if self.durable is not None:
            self.durable.journal.forget()
        self._requests = self._retries = 0
        self.hooks.forget()
        self.on_fork()

    def full(self) -> QueueFullError:
        return QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def is_full(self, size: int) -> bool:
        return self.locked(lambda: self._buffer.is_full(size))

    def discard(self, lane: Lane, item: bytes, reason: DropReason) -> None:
        """Count a record as accepted and dropped at once.

        Raises:
            ClientClosedError: if the client is closed.
        """
        self._put_aside(lane, item, reason)

    def lease_alone(self, lane: Lane, item: bytes) -> Batch:
        """Charge a record that is sent on its own.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room for it.
        """
        self._refuse_if_closed()
        batch = self.locked(lambda: self._buffer.lease_alone(lane, item, self._monotonic()))
        if batch is None:
            raise self.full()
        return batch

    def conclude(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End what `lease_alone` began."""
        self.report(self.locked(lambda: self._buffer.conclude(batch, reason, message=message)))

    def poll(self) -> Batch | WaitUntil | Idle:
        def work() -> Batch | WaitUntil | Idle:
            if self.durable is not None:
                self.durable.refill()
            return self._buffer.poll(self._monotonic())

        return self.locked(work)

    def moved(self) -> None:
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
            if self.durable is not None:
                self.durable.settled(batch)
            return self._buffer.delivered - before, losses

        delivered, losses = self.locked(work)
        self.report(losses)
        return delivered

    def outdate(self, batch: Batch, outcome: Outdated) -> None:
        """End a lease for which no request was made."""
        self.report(self.locked(lambda: self._buffer.outdate(batch, outcome)))

    def reclaim(self) -> None:
        """Take back every lease of an event loop that is gone."""
        self.report(self.locked(self._buffer.reclaim))

    def barrier(self) -> Barrier:
        return self.locked(self._buffer.barrier)

    def forget(self, barrier: Barrier) -> None:
        self.locked(lambda: self._buffer.forget(barrier))

    def next_try(self, hurry: float | None) -> float:
        """When a waiting batch may be sent, after pauses of our own were cut to `hurry` seconds, if that is given."""

        def work() -> float:
            if hurry is not None:
                self._buffer.hurry(hurry)
            return self._buffer.next_try()

        return self.locked(work)

    def abandon(self) -> int:
        """Give up everything that waits, as the client is closed.

        Returns:
            How many records that were.
        """
        losses = self.locked(lambda: self._buffer.abandon(DropReason.CLOSED))
        self.report(losses)
        return sum(len(loss.items) for loss in losses)

    def count_request(self, *, again: bool) -> None:
        with self._lock:
            self._requests += 1
            self._retries += again

    def stats(self) -> Stats:
        def work() -> Stats:
            late = [item for _, item, _ in [*self._late]]
            return self._buffer.stats(late, self._requests, self._retries, self.last_error)

        return self.locked(work)

    def _refuse_if_closed(self) -> None:
        if self.closed:
            raise ClientClosedError("the client is closed; the record was not accepted")

    def report(self, losses: list[Loss]) -> None:
        """Make losses known. Without the lock."""
        for loss in losses:
            self._logbook.dropped(loss.reason, self._buffer.losses.get(loss.reason, 0))
        if self.hooks.lost(losses):
            self.on_loss()


def _nothing() -> None:
    return None
