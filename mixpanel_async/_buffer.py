"""What is waiting, what may be sent now, and what became of it: a state machine that is told the time.

Records gather in the open batch of their lane. A batch that is full, old enough or wanted by a flush is *leased* to a
request; it stays charged until the request's outcome *settles* it. Cancellation, a crash of the sender and a retry are
therefore one path, and at every moment accepted == delivered + failed + dropped + uncertain + pending.

The buffer takes no lock and reads no clock: its owner does both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ._config import BatchPolicy, RetryPolicy
from ._credentials import Secret
from ._errors import FailedRecord
from ._lanes import Barrier, Batch, Lane, Loss
from ._records import (
    DROPPED,
    Delivered,
    DropReason,
    Kind,
    Misconfigured,
    OnceOnly,
    Outcome,
    Pruned,
    Retry,
    Split,
)

_MOST_LANES: Final = 50
# Seconds for which a lane remembers that a server, or a proxy before it, found a body too large.
_UNLEARN_AFTER: Final = 3600.0
# Seconds after which refused credentials are tried once more if somebody waits.
_SECOND_LOOK: Final = 2.0


class Offer(Enum):
    """What became of an offered record, and whether the sender must be told."""

    TAKEN = "taken"
    NOTIFY = "notify"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing can be sent before this moment of the monotonic clock."""

    at: float


class Idle:
    """Nothing can be sent until a record comes or a request ends."""


IDLE: Final = Idle()


class Buffer:
    """Bounded in records and in bytes, in flight included.

    Args:
        policy: bounds and triggers.
        retry: when a batch gives up.
    """

    def __init__(self, policy: BatchPolicy, retry: RetryPolicy) -> None:
        self._policy = policy
        self._retry = retry
        self._lanes: dict[tuple[Kind, Secret | None], Lane] = {}
        # Those that hold records, in the order in which they take their turn.
        self._active: dict[Lane, None] = {}
        self.accepted = self.delivered = self.failed = self.dropped = self.uncertain = 0
        self.pending = self.pending_bytes = 0
        # There was no room: what is open leaves without lingering.
        self._crowded = False
        self.losses: dict[DropReason, int] = {}

    def lane(self, kind: Kind, secret: Secret | None = None) -> Lane:
        """The lane for this kind and authentication, made at its first use."""
        key = (kind, secret)
        lane = self._lanes.get(key)
        if lane is None:
            limit = self._policy.max_in_flight if kind in {Kind.EVENTS, Kind.IMPORTS} else 1
            if len(self._lanes) > _MOST_LANES:
                # Secrets that are no longer in use would add up in a process that serves many projects.
                idle = [
                    k for k, v in self._lanes.items() if k[1] is not None and not v.failures and v not in self._active
                ]
                for old in idle:
                    del self._lanes[old]
            lane = self._lanes[key] = Lane(kind, secret, limit, self._policy.max_bytes)
        return lane

    @property
    def in_flight(self) -> int:
        return sum(len(lane.leased) + len(lane.alone) for lane in self._active)

    def is_full(self, size: int) -> bool:
        """Whether a record of this size has no room."""
        policy = self._policy
        return self.pending >= policy.max_pending_events or self.pending_bytes + size > policy.max_pending_bytes

    def offer(self, lane: Lane, item: bytes, now: float) -> Offer:
        """Take a record into its lane.

        Returns:
            `TAKEN`; `NOTIFY` if the sender has something new to consider; `FULL` if there is no room, in which case
            the record is not accepted.
        """
        size = len(item)
        policy = self._policy
        if self.is_full(size):
            self._crowded = True
            return Offer.FULL
        self.accepted += 1
        self.pending += 1
        self.pending_bytes += size
        batch = lane.open
        if batch is not None and batch.size + size + 1 > lane.max_bytes:
            lane.close_open()
            batch = None
        is_first = batch is None
        if batch is None:
            batch = lane.open = Batch(lane, [item], now)
            self._active[lane] = None
        else:
            batch.items.append(item)
            batch.size += size + 1
        if self.pending >= policy.max_pending_events:
            self._crowded = True
        if len(batch.items) >= policy.max_events:
            lane.close_open()
        elif not is_first and not self._crowded:
            return Offer.TAKEN
        return Offer.NOTIFY

    def discard(self, lane: Lane, items: list[bytes], reason: DropReason) -> Loss:
        """Count records as accepted and lost at once: they never had a place in the queue."""
        self.accepted += len(items)
        self.dropped += len(items)
        self.losses[reason] = self.losses.get(reason, 0) + len(items)
        return Loss(kind=lane.kind, reason=reason, items=items)

    def evict(self, room: int) -> list[Loss]:
        """Drop the records that have waited longest until one of `room` bytes fits; those in flight stay.

        Returns:
            What was dropped; nothing if that could not make enough room.
        """
        losses: list[Loss] = []
        flying = [batch for lane in self._active for batch in (*lane.leased, *lane.alone)]
        held, held_bytes = sum(len(batch.items) for batch in flying), sum(batch.payload for batch in flying)
        if held >= self._policy.max_pending_events or held_bytes + room > self._policy.max_pending_bytes:
            return losses
        while self.is_full(room):
            heads = [lane.ready[0] if lane.ready else lane.open for lane in self._active]
            oldest = min((batch for batch in heads if batch is not None), key=lambda batch: batch.opened)
            item = oldest.items.pop(0)
            oldest.size -= len(item) + 1
            losses.append(self._lose(oldest, [item], DropReason.QUEUE_FULL))
            if not oldest.items:
                lane = oldest.lane
                if lane.ready and lane.ready[0] is oldest:
                    lane.ready.popleft()
                else:
                    lane.open = None
        self._crowded = self._crowded or bool(losses)
        return losses

    def lease_alone(self, lane: Lane, item: bytes, now: float) -> Batch | None:
        """Charge and lease one record that does not wait for company; None if there is no room for it."""
        if self.is_full(len(item)):
            return None
        self.accepted += 1
        self.pending += 1
        self.pending_bytes += len(item)
        batch = Batch(lane, [item], now)
        batch.first_try = now
        lane.alone.add(batch)
        self._active[lane] = None
        return batch

    def conclude(self, batch: Batch, reason: DropReason | None, *, message: str = "") -> list[Loss]:
        """End a lease made by `lease_alone`: delivered if there is no reason, else lost for it."""
        batch.lane.alone.discard(batch)
        if reason is None:
            self._recovered(batch.lane)
            self._deliver(batch, batch.items)
            return []
        return [self._lose(batch, batch.items, reason, message=message)]

    def poll(self, now: float) -> Batch | WaitUntil | Idle:
        """What to do now: a batch, leased to the caller, or how long to wait."""
        wake: float | None = None
        for lane in [*self._active]:
            batch_or_time = self._poll_lane(lane, now)
            if isinstance(batch_or_time, Batch):
                # The lane goes to the end of the line, so that a busy one cannot starve the others.
                del self._active[lane]
                self._active[lane] = None
                return batch_or_time
            if batch_or_time is not None:
                wake = batch_or_time if wake is None else min(wake, batch_or_time)
            elif not any(lane.batches()):
                del self._active[lane]
        return IDLE if wake is None else WaitUntil(wake)

    def _poll_lane(self, lane: Lane, now: float) -> Batch | float | None:
        if len(lane.leased) >= (1 if lane.failures else lane.limit):
            return None
        if not lane.ready:
            if lane.open is None:
                return None
            due = lane.open.opened + self._policy.linger
            if due > now and not self._crowded:
                return max(due, lane.paused_until)
        if lane.paused_until > now:
            return lane.paused_until
        if not lane.ready:
            lane.close_open()
        batch = lane.ready.popleft()
        if batch.attempts == 0:
            batch.first_try = now
        batch.attempts += 1
        batch.episode = lane.failures
        lane.leased.add(batch)
        return batch

    def settle(self, batch: Batch, outcome: Outcome, now: float, delay: float = 0.0) -> list[Loss]:
        """End a lease.

        Args:
            batch: the leased batch.
            outcome: what became of its request.
            now: monotonic seconds.
            delay: seconds that the lane pauses, if the outcome asks for another try.

        Returns:
            The records that ended without delivery.
        """
        lane = batch.lane
        lane.leased.discard(batch)
        if isinstance(outcome, Retry):
            return self._retried(batch, outcome, now, delay)
        if isinstance(outcome, Misconfigured):
            self._trouble(batch, now, delay)
            # What is wrong once may have been a slip of a proxy; what is wrong twice will not pass while one waits.
            lane.held_until = now + (delay if lane.failures > 1 else min(delay, _SECOND_LOOK))
            lane.ready.appendleft(batch)
            return []
        self._recovered(lane)
        if now - lane.learned >= _UNLEARN_AFTER:
            lane.max_bytes = self._policy.max_bytes
        if isinstance(outcome, Delivered):
            self._deliver(batch, batch.items)
            return []
        if isinstance(outcome, Pruned):
            return self._pruned(batch, outcome)
        if isinstance(outcome, Split) and len(batch.items) > 1:
            return self._halved(batch, outcome, now)
        reason = outcome.reason if isinstance(outcome, Split) else DropReason.REJECTED
        return [self._lose(batch, batch.items, reason, message=outcome.message)]

    def _retried(self, batch: Batch, outcome: Retry, now: float, delay: float) -> list[Loss]:
        self._trouble(batch, now, delay)
        if outcome.retry_after is not None:
            batch.lane.held_until = max(batch.lane.held_until, now + delay)
        losses = []
        if outcome.applied and not self._policy.at_least_once:
            once = [item for item in batch.items if isinstance(item, OnceOnly)]
            if once:
                losses.append(self._lose(batch, once, DropReason.UNCERTAIN, message=outcome.message))
                batch = batch.part([item for item in batch.items if not isinstance(item, OnceOnly)])
        if not batch.items:
            return losses
        retry = self._retry
        out_of_tries = retry.attempts is not None and batch.attempts >= retry.attempts
        out_of_time = (
            retry.total_timeout is not None and batch.lane.paused_until > batch.first_try + retry.total_timeout
        )
        if out_of_tries or out_of_time:
            losses.append(self._lose(batch, batch.items, DropReason.EXHAUSTED, message=outcome.message))
        else:
            batch.lane.ready.appendleft(batch)
        return losses

    @staticmethod
    def _trouble(batch: Batch, now: float, delay: float) -> None:
        # Requests that were in flight together fail together: they are one failure of the lane, not several.
        lane = batch.lane
        lane.failures = max(lane.failures, batch.episode + 1)
        lane.failed_at = now
        lane.paused_until = max(lane.paused_until, now + delay)

    @staticmethod
    def _recovered(lane: Lane) -> None:
        lane.failures = 0
        lane.paused_until = lane.held_until

    def _pruned(self, batch: Batch, outcome: Pruned) -> list[Loss]:
        named = {record.index for record in outcome.failed}
        lost = [batch.items[record.index] for record in outcome.failed]
        self._deliver(batch, [item for at, item in enumerate(batch.items) if at not in named])
        return [self._lose(batch, lost, DropReason.REJECTED, details=outcome.failed, message=outcome.message)]

    def _halved(self, batch: Batch, outcome: Split, now: float) -> list[Loss]:
        losses = []
        items = batch.items
        if outcome.reason is DropReason.TOO_LARGE:
            batch.lane.max_bytes = max(1, min(batch.lane.max_bytes, batch.size // 2 + 1))
            batch.lane.learned = now
        elif not self._policy.at_least_once and any(isinstance(item, OnceOnly) for item in items):
            # Mixpanel's documents disagree on whether the valid rows of a refused profile batch were applied.
            once = [item for item in items if isinstance(item, OnceOnly)]
            losses.append(self._lose(batch, once, DropReason.UNCERTAIN, message=outcome.message))
            items = [item for item in items if not isinstance(item, OnceOnly)]
        middle = (len(items) + 1) // 2
        for half in (items[middle:], items[:middle]):
            if half:
                batch.lane.ready.appendleft(batch.part(half))
        return losses

    def _deliver(self, batch: Batch, items: Sequence[bytes]) -> None:
        count = len(items)
        self._discharge(items)
        self.delivered += count
        for barrier in batch.barriers:
            barrier.pending -= count
            barrier.delivered += count

    def _lose(
        self,
        batch: Batch,
        items: Sequence[bytes],
        reason: DropReason,
        *,
        details: Sequence[FailedRecord] = (),
        message: str = "",
    ) -> Loss:
        count = len(items)
        place = "dropped" if reason in DROPPED else "uncertain" if reason is DropReason.UNCERTAIN else "failed"
        self._discharge(items)
        setattr(self, place, getattr(self, place) + count)
        self.losses[reason] = self.losses.get(reason, 0) + count
        for barrier in batch.barriers:
            barrier.pending -= count
            barrier.losses[reason.value] = barrier.losses.get(reason.value, 0) + count
        return Loss(kind=batch.lane.kind, reason=reason, items=items, details=details, message=message)

    def _discharge(self, items: Sequence[bytes]) -> None:
        self._crowded = False
        self.pending -= len(items)
        self.pending_bytes -= sum(map(len, items))

    def barrier(self) -> Barrier:
        """Make everything accepted so far due at once, and a count of what becomes of it."""
        barrier = Barrier()
        for lane in self._active:
            lane.close_open()
            for batch in lane.batches():
                # Halves share their parent's list, so the list is replaced and never changed.
                batch.barriers = [*batch.barriers, barrier]
                barrier.pending += len(batch.items)
        return barrier

    def hurry(self, spacing: float) -> None:
        """Cut pauses short for somebody who waits: to `spacing` seconds after the last failure, at the least.

        A pause that Mixpanel asked for with `Retry-After` stays.
        """
        for lane in self._active:
            if lane.failures:
                sooner = max(lane.held_until, lane.failed_at + spacing)
                lane.paused_until = min(lane.paused_until, sooner)

    def next_try(self) -> float:
        """The earliest moment at which a waiting batch may be sent; minus infinity if one is in flight."""
        times = [lane.paused_until for lane in self._active if lane.ready or lane.open]
        if self.in_flight or not times:
            return float("-inf")
        return min(times)

    def abandon(self, reason: DropReason) -> list[Loss]:
        """Give up everything that waits. Batches in flight stay with whoever holds their lease."""
        losses = []
        for lane in self._active:
            lane.close_open()
            while lane.ready:
                batch = lane.ready.popleft()
                losses.append(self._lose(batch, batch.items, reason))
        return losses
