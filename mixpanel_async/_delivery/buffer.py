"""What is waiting, what may be sent now, and what became of it: a state machine that is told the time.

Records gather in the open batch of their lane. A batch that is full, old enough or wanted by a flush is *leased* to a
request; it stays charged until the request's outcome *settles* it. Cancellation, a crash of the sender and a retry are
therefore one path, and at every moment accepted == delivered + failed + dropped + uncertain + pending.

The buffer takes no lock and reads no clock: its owner does both.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from .._encoding.batch_body import Compressor
from .._model.config import BatchPolicy, RetryPolicy
from .._model.outcomes import ConfigurationRefused, Delivered, Expired, Outcome, PartialFailure, Retry, SplitBatch
from .._model.records import DropReason, Loss, NonIdempotentRecord, RecordKind
from .disk_backlog import DiskBacklog, SpoolLimits
from .lanes import Batch, Lane

_PACKED: Final = frozenset({RecordKind.EVENTS, RecordKind.IMPORTS})
# Seconds for which a lane remembers that a server, or a proxy before it, found a body too large.
_UNLEARN_AFTER: Final = 3600.0
# No 413 teaches a lane less than this: one giant must not leave requests of a single record behind it.
_LEAST_LEARNED: Final = 65_536
# Seconds after which refused credentials are tried once more if somebody waits.
_SECOND_LOOK: Final = 2.0


class OfferResult(Enum):
    """What became of an offered record, and whether the sender must be told."""

    ACCEPTED = "taken"
    WAKE_SENDER = "notify"
    FULL = "full"


class WaitUntil(NamedTuple):
    """Nothing can be sent before this moment of the monotonic clock."""

    at: float


class Idle:
    """Nothing can be sent until a record comes or a request ends."""


IDLE: Final = Idle()


class Buffer(DiskBacklog):
    """Bounded in records and in bytes, in flight included.

    Args:
        policy: bounds and triggers.
        retry: when a batch gives up.
        spool: bounds on disk; None without a spool.
        new_packer: makes what compresses events as they come; None if that is not wanted.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        retry: RetryPolicy,
        spool: SpoolLimits | None = None,
        new_compressor: Callable[[], Compressor] | None = None,
    ) -> None:
        super().__init__(policy, spool)
        self._new_compressor = new_compressor
        self._retry = retry

    def offer(self, lane: Lane, item: bytes, now: float) -> OfferResult:
        """Take a record into its lane; with a spool, `lane.last_id` is then its row.

        Args:
            lane: where it goes.
            item: its bytes.
            now: monotonic seconds; infinite for a record that is to wait for company.

        Returns:
            `TAKEN`; `NOTIFY` if the sender has something new to consider; `FULL` if there is no room, in which case
            the record is not accepted.
        """
        size = len(item)
        policy = self._policy
        if self.is_full(size):
            self.under_pressure = True
            return OfferResult.FULL
        self.accepted += 1
        self.pending += 1
        self.pending_bytes += size
        if self.spool is not None:
            lane.last_id += 1
            self.charge_write(size)
            if lane.on_disk or lane.is_loading or self.is_memory_full(size):
                self.keep_on_disk(lane, size)
                return OfferResult.ACCEPTED
        batch = lane.open
        if batch is not None and batch.size + size + 1 > lane.max_bytes:
            lane.close_open()
            batch = None
        is_first = batch is None or now < batch.opened
        if batch is None:
            batch = lane.open = self._new_batch(lane, [item], now)
            self.active[lane] = None
        else:
            batch.items.append(item)
            batch.size += size + 1
            batch.opened = min(batch.opened, now)
        if self.spool is not None:
            batch.ids.append(lane.last_id)
        elif self.pending >= policy.max_pending_events:
            self.under_pressure = True
        if len(batch.items) >= policy.max_events:
            lane.close_open()
        elif not is_first and not self.under_pressure:
            return OfferResult.ACCEPTED
        return OfferResult.WAKE_SENDER

    def _new_batch(self, lane: Lane, items: list[bytes], now: float) -> Batch:
        # The other kinds' endpoints take no gzip, and the types of their records must not be forgotten.
        return Batch(lane, items, now, new_compressor=self._new_compressor if lane.kind in _PACKED else None)

    def records_left(self, lane: Lane) -> int:
        """How many records more the open batch of this lane takes before it is full."""
        return self._policy.max_events - (0 if lane.open is None else len(lane.open.items))

    def extend(self, lane: Lane, records: bytes, count: int, now: float) -> OfferResult:
        """Take usual events that are `together`, `count` of them and no more than there are vacancies.

        Returns:
            As `offer` does, for all of them together; `FULL` also if their bytes are too many for one batch.
        """
        batch = lane.open or self._new_batch(lane, [], now)
        size = len(records) - count
        if not self.has_room(batch, count, size):
            return OfferResult.FULL
        self.accepted += count
        self.pending += count
        self.pending_bytes += size
        is_news = batch is not lane.open or now < batch.opened
        lane.open, self.active[lane] = batch, None
        batch.opened = min(batch.opened, now)
        batch.extend(records, count)
        if len(batch.items) >= self._policy.max_events:
            lane.close_open()
            is_news = True
        return OfferResult.WAKE_SENDER if is_news else OfferResult.ACCEPTED

    def evict(self, room: int) -> list[Loss]:
        """Drop the records that have waited longest until one of `room` bytes fits; those in flight stay.

        Returns:
            What was dropped; nothing if that could not make enough room.
        """
        losses: list[Loss] = []
        flying = [batch for lane in self.active for batch in (*lane.leased, *lane.single_requests)]
        held, held_bytes = sum(len(batch.items) for batch in flying), sum(batch.payload for batch in flying)
        if not self.can_make_room(room, held, held_bytes):
            return losses
        while self.is_full(room):
            heads = [lane.ready[0] if lane.ready else lane.open for lane in self.active]
            waiting = [batch for batch in heads if batch is not None]
            if not waiting:
                break
            oldest = min(waiting, key=lambda batch: batch.opened)
            first = oldest.pop_first()
            losses.append(self.record_loss(first, DropReason.QUEUE_FULL))
            if not oldest.items:
                oldest.lane.replace(oldest, oldest)
        self.under_pressure = self.under_pressure or bool(losses)
        return losses

    def lease_single(self, lane: Lane, item: bytes, now: float) -> Batch | None:
        """Charge and lease one record that does not wait for company; None if there is no room for it."""
        if self.is_full(len(item)):
            return None
        self.charge(len(item))
        batch = Batch(lane, [item], now)
        lane.single_requests[batch] = None
        self.active[lane] = None
        return batch

    def settle_single(self, batch: Batch, reason: DropReason | None, *, message: str = "") -> list[Loss]:
        """End a lease made by `lease_alone`: delivered if there is no reason, else lost for it.

        Nothing happens if the lease has ended otherwise.
        """
        if batch not in batch.lane.single_requests:
            return []
        batch.lane.single_requests.pop(batch, None)
        if reason is None:
            batch.lane.recover()
            self.deliver(batch)
            return []
        return [self.record_loss(batch, reason, message=message)]

    def reclaim(self) -> list[Loss]:
        """Take every lease back: the event loop of those who held them is gone.

        Returns:
            The records that must not be sent again and may have been applied.
        """
        losses: list[Loss] = []
        for lane in self.active:
            for batch in reversed([*lane.leased, *lane.single_requests]):
                lane.leased.pop(batch, None)
                lane.single_requests.pop(batch, None)
                # A batch of its own, so that a late word from the old holder means nothing.
                again = batch.subset(range(len(batch.items)))
                if batch.is_request_begun:
                    again = self._drop_non_idempotent(again, "the event loop ended during a request", losses)
                if again.items:
                    lane.ready.appendleft(again)
        return losses

    def poll(self, now: float) -> Batch | WaitUntil | Idle:
        """What to do now: a batch, leased to the caller, or how long to wait."""
        wake: float | None = None
        for lane in [*self.active]:
            batch_or_time = self._poll_lane(lane, now)
            if isinstance(batch_or_time, Batch):
                # The lane goes to the end of the line, so that a busy one cannot starve the others.
                del self.active[lane]
                self.active[lane] = None
                return batch_or_time
            if batch_or_time is not None:
                wake = batch_or_time if wake is None else min(wake, batch_or_time)
            elif not any(lane.batches()):
                del self.active[lane]
        return IDLE if wake is None else WaitUntil(wake)

    def _poll_lane(self, lane: Lane, now: float) -> Batch | float | None:
        if len(lane.leased) >= (1 if lane.failures else lane.limit) or self._is_busy(lane.kind):
            return None
        if not lane.ready:
            if lane.open is None:
                return None
            due = lane.open.opened + self._policy.linger
            if due > now and not self.under_pressure and not lane.open.is_due:
                return max(due, lane.paused_until)
        if lane.paused_until > now:
            return lane.paused_until
        if not lane.ready:
            lane.close_open()
        if not self.may_be_sent(lane):
            return None
        batch = lane.ready.popleft()
        if batch.first_try is None:
            batch.first_try = now
        batch.attempts += 1
        batch.is_request_begun = False
        batch.failure_epoch = lane.failures
        lane.leased[batch] = None
        return batch

    def _is_busy(self, kind: RecordKind) -> bool:
        """Whether the slots of imports are taken, which the lanes of all project secrets share."""
        if kind is not RecordKind.IMPORTS:
            return False
        return sum(len(lane.leased) for lane in self.active if lane.kind is kind) >= self._policy.max_in_flight

    def expire(self, batch: Batch, outcome: Expired) -> list[Loss]:
        """End a lease for which no request was made, as some of its records are too old to be taken."""
        if batch not in batch.lane.leased:
            return []
        del batch.lane.leased[batch]
        old, rest = batch.partition(outcome.positions)
        if rest.items:
            batch.lane.ready.appendleft(rest)
        if not outcome.by_import:
            return [self.record_loss(old, DropReason.TOO_OLD)]
        old.lane = self.lane(RecordKind.IMPORTS)
        old.lane.ready.append(old)
        self.active[old.lane] = None
        return []

    def settle(self, batch: Batch, outcome: Outcome, now: float, delay: float = 0.0) -> list[Loss]:
        """End a lease. Nothing happens if it has ended otherwise.

        Args:
            batch: the leased batch.
            outcome: what became of its request.
            now: monotonic seconds.
            delay: seconds that the lane pauses, if the outcome asks for another try.

        Returns:
            The records that ended without delivery.
        """
        lane = batch.lane
        if batch not in lane.leased:
            return []
        lane.leased.pop(batch, None)
        if isinstance(outcome, Retry):
            return self._retry_batch(batch, outcome, now, delay)
        if isinstance(outcome, ConfigurationRefused):
            batch.lane.fail(batch.failure_epoch, now, delay)
            # What is wrong once may have been a slip of a proxy; what is wrong twice will not pass while one waits.
            patience = delay if lane.failures > 1 else min(delay, _SECOND_LOOK)
            lane.retry_after_until = max(lane.retry_after_until, now + patience)
            lane.ready.appendleft(batch)
            return []
        lane.recover()
        if now - lane.size_limit_seen_at >= _UNLEARN_AFTER:
            lane.max_bytes = self._policy.max_bytes
        if isinstance(outcome, Delivered):
            self.deliver(batch)
            return []
        if isinstance(outcome, PartialFailure):
            named, others = batch.partition({record.index for record in outcome.failed})
            self.deliver(others)
            return [self.record_loss(named, DropReason.REJECTED, details=outcome.failed, message=outcome.message)]
        if isinstance(outcome, SplitBatch) and len(batch.items) > 1:
            return self._split_batch(batch, outcome, now)
        reason = outcome.reason if isinstance(outcome, SplitBatch) else DropReason.REJECTED
        return [self.record_loss(batch, reason, message=outcome.message)]

    def _retry_batch(self, batch: Batch, outcome: Retry, now: float, delay: float) -> list[Loss]:
        batch.lane.fail(batch.failure_epoch, now, delay)
        if outcome.retry_after is not None:
            batch.lane.retry_after_until = max(batch.lane.retry_after_until, now + delay)
        losses: list[Loss] = []
        if outcome.applied:
            batch = self._drop_non_idempotent(batch, outcome.message, losses)
        if not batch.items:
            return losses
        retry = self._retry
        out_of_tries = retry.attempts is not None and batch.attempts >= retry.attempts
        began = now if batch.first_try is None else batch.first_try
        out_of_time = retry.total_timeout is not None and batch.lane.paused_until > began + retry.total_timeout
        if out_of_tries or out_of_time:
            losses.append(self.record_loss(batch, DropReason.EXHAUSTED, message=outcome.message))
        else:
            batch.lane.ready.appendleft(batch)
        return losses

    def _drop_non_idempotent(self, batch: Batch, message: str, losses: list[Loss]) -> Batch:
        """What is left of a batch that may have been applied: what may be sent again. The rest is added to `losses`."""
        once = {at for at, item in enumerate(batch.items) if isinstance(item, NonIdempotentRecord)}
        if not once or self._policy.at_least_once:
            return batch
        unsure, rest = batch.partition(once)
        losses.append(self.record_loss(unsure, DropReason.UNCERTAIN, message=message))
        return rest

    def _split_batch(self, batch: Batch, outcome: SplitBatch, now: float) -> list[Loss]:
        losses: list[Loss] = []
        if outcome.reason is DropReason.TOO_LARGE:
            batch.lane.max_bytes = max(
                min(self._policy.max_bytes, _LEAST_LEARNED), min(batch.lane.max_bytes, batch.size // 2 + 1)
            )
            batch.lane.size_limit_seen_at = now
        elif outcome.status != 200:
            # Mixpanel does not say whether the valid rows of a profile batch that it refused were applied. With a
            # 200 it does: 0 means that it took none.
            batch = self._drop_non_idempotent(batch, outcome.message, losses)
        # Asked for by the answer, and not a try that failed.
        batch.attempts -= 1
        middle = (len(batch.items) + 1) // 2
        for half in reversed(batch.partition(range(middle))):
            if half.items:
                batch.lane.ready.appendleft(half)
        return losses

    def shorten_backoff(self, spacing: float) -> None:
        """Cut pauses of our own short for somebody who waits: to `spacing` seconds after the last failure."""
        for lane in self.active:
            lane.shorten_backoff(spacing)

    def next_try(self) -> float:
        """The earliest moment at which a waiting batch may be sent; minus infinity if one is in flight."""
        times = [lane.paused_until for lane in self.active if lane.ready or lane.open]
        if self.in_flight or not times or self.unwritten:
            return float("-inf")
        return min(times)

    def abandon(self, reason: DropReason) -> list[Loss]:
        """Give up everything that waits. Batches in flight stay with whoever holds their lease.

        What is on disk is left there.
        """
        losses = []
        for lane in self.active:
            lane.close_open()
            for batch in [batch for batch in lane.ready if not batch.ids]:
                lane.ready.remove(batch)
                losses.append(self.record_loss(batch, reason))
        return losses
