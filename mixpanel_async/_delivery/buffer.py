"""Buffer of accepted records: a pure state machine. Callers pass the current time.

Records gather in the open batch of their lane. A batch that is full, old enough or wanted by a flush is *leased* to a
request. It stays charged until the outcome of the request *settles* it. Cancellation, a crash of the sender and a retry
therefore take the same path, and accepted == delivered + failed + dropped + uncertain + pending at every moment.

The buffer takes no lock and reads no clock: its owner does both.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from .._encoding.batch_body import Compressor
from .._model.config import BatchPolicy, RetryPolicy
from .._model.credentials import Secret
from .._model.errors import FailedRecord
from .._model.outcomes import ConfigurationRefused, Delivered, Expired, Outcome, PartialFailure, Retry, SplitBatch
from .._model.records import DROPPED, DropReason, IdentityRecord, Loss, NonIdempotentRecord, RecordKind
from .._model.stats import Stats
from .accounting import Accounting
from .batch import Batch, FlushBarrier
from .lanes import IDLE, Idle, Lane, LaneTable, WaitUntil
from .offers import OfferResult

if TYPE_CHECKING:
    from .._http.metrics import RequestMetrics
    from .._spool.messages import PendingWrite
    from .disk_backlog import DiskBacklog, SpoolLimits

_ANY_SECRET: Final = Secret("")
# Seconds for which a lane remembers that a server, or a proxy before it, found a body too large.
_SIZE_LIMIT_TTL: Final = 3600.0
# The smallest body size that a lane learns from a 413: one huge record must not lead to requests of single records.
_MIN_SIZE_LIMIT: Final = 65_536
# Seconds after which refused credentials are tried a second time while a flush waits.
_SECOND_TRY_AFTER: Final = 2.0


class Buffer:
    """Lanes of batches, bounded in records and in bytes, in flight included.

    Args:
        policy: bounds, batch size and linger time.
        retry: limits of retries.
        spool: bounds on disk; None without a spool.
        new_compressor: creates the gzip stream for events, which are compressed as they come; None disables this.
        mixes_identity: identity records share requests with events.

    Attributes:
        accounting: counters and bounds in memory.
        disk: accounting of the spool; None without one.
        lanes: every lane, by kind and secret.
        active: lanes that hold records in memory, in the order of their turns.
        under_pressure: a record did not fit, so open batches do not linger.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        retry: RetryPolicy,
        spool: SpoolLimits | None = None,
        new_compressor: Callable[[], Compressor] | None = None,
        *,
        mixes_identity: bool = False,
    ) -> None:
        self._policy = policy
        self._retry = retry
        self.accounting = Accounting(policy)
        self.disk: DiskBacklog | None = None
        if spool is not None:
            from .disk_backlog import DiskBacklog  # noqa: PLC0415  only imported with a spool

            self.disk = DiskBacklog(policy, spool, self.accounting)
        self.lanes = LaneTable(policy, new_compressor, mixes_identity=mixes_identity)
        self.active: dict[Lane, None] = {}
        self.under_pressure = False

    def reset(self) -> None:
        """Forget every record and count: after a fork they belong to the parent."""
        self.active.clear()
        self.lanes.reset()
        self.accounting.reset()
        if self.disk is not None:
            self.disk.reset()
        self.under_pressure = False

    def lane(self, kind: RecordKind, secret: Secret | None = None) -> Lane:
        """Return the lane for this kind and authentication. Create it at its first use."""
        # A spool stores no secret: its records are signed with the last one that was given.
        key = secret if self.disk is None or secret is None else _ANY_SECRET
        return self.lanes.find(kind, key, secret, self.active)

    @property
    def in_flight(self) -> int:
        """Number of leased batches."""
        return sum(len(lane.leased) + len(lane.single_requests) for lane in self.active)

    @property
    def is_busy(self) -> bool:
        """Whether requests are in flight or about to begin."""
        return any(lane.ready or lane.leased or lane.single_requests for lane in self.active)

    @property
    def is_disk_full(self) -> bool:
        """Whether the spool has no room left."""
        return self.disk is not None and self.disk.is_disk_full

    def is_full(self, size: int) -> bool:
        """Return whether a record of this size does not fit."""
        return self.accounting.is_full(size) if self.disk is None else self.disk.is_full(size)

    def end_linger(self) -> None:
        """Let open batches be sent, as a caller waits for room."""
        self.under_pressure = True

    def could_fit(self, size: int) -> bool:
        """Return whether a record of this size fits in an empty queue."""
        return self.accounting.could_fit(size) and (self.disk is None or self.disk.could_fit(size))

    def records_left(self, lane: Lane) -> int:
        """Return how many records the open batch of this lane takes until it is full."""
        return self._policy.max_events - (0 if lane.open is None else len(lane.open.items))

    def fitting_sizes(self, lane: Lane, sizes: array[int]) -> array[int]:
        """Close the open batch if a record of the first size does not fit. Return the sizes that fit together."""
        fitting = min(lane.make_room(sizes), self.records_left(lane))
        return sizes if fitting >= len(sizes) else sizes[:fitting]

    def load_in_flight(self) -> tuple[int, int]:
        """Return the number and the bytes of the records in flight."""
        batches = [batch for lane in self.active for batch in (*lane.leased, *lane.single_requests)]
        return sum(len(batch.items) for batch in batches), sum(batch.payload for batch in batches)

    def stats(self, waiting: Sequence[bytes], requests: RequestMetrics) -> Stats:
        """Return a snapshot; see `Accounting.stats`."""
        on_disk = 0 if self.disk is None else self.disk.records
        return self.accounting.stats(waiting, requests, on_disk=on_disk, in_flight=self.in_flight)

    def offer(self, lane: Lane, item: bytes, now: float) -> OfferResult:
        """Accept a record; with a spool, `disk.rows(lane).last_row` is then its row.

        Args:
            lane: destination.
            item: encoded record.
            now: monotonic seconds; infinite for a record that starts no linger time and is sent with the next record.

        Returns:
            `ACCEPTED`; `WAKE_SENDER` if the sender has to look at the buffer; `FULL` if the record was not accepted.
        """
        size = len(item)
        policy, accounting, disk = self._policy, self.accounting, self.disk
        if not (accounting if disk is None else disk).accept_if_room(1, size):
            self.under_pressure = True
            return OfferResult.FULL
        if disk is not None and disk.begin_write(lane, size):
            return OfferResult.ACCEPTED
        if type(item) is IdentityRecord:
            row = None if disk is None else disk.rows(lane).last_row
            self.lanes.append_identity(lane, item, now, row, self.active)
            self.active[lane] = None
            return OfferResult.WAKE_SENDER
        batch = lane.open
        if batch is not None and batch.size + size + 1 > lane.max_bytes:
            lane.close_open()
            batch = None
        if batch is None:
            is_first = True
            batch = self.lanes.new_batch(lane, [item], now)
            lane.open_batch(batch)
            self.active[lane] = None
        else:
            is_first = now < batch.opened
            batch.append(item, now)
        if disk is not None:
            batch.ids.append(disk.rows(lane).last_row)
        elif accounting.pending >= policy.max_pending_events:
            self.under_pressure = True
        if len(batch.items) >= policy.max_events:
            lane.close_open()
        elif not is_first and not self.under_pressure:
            return OfferResult.ACCEPTED
        return OfferResult.WAKE_SENDER

    def extend(self, lane: Lane, items: Sequence[bytes], sizes: array[int], size: int, now: float) -> OfferResult:
        """Accept records of these sizes and this sum, at most as many as `fitting_sizes` has just returned.

        Returns:
            The result of `offer` for all of them together.
        """
        if not self.accounting.accept_if_room(len(items), size):
            return OfferResult.FULL
        batch = lane.open or self.lanes.new_batch(lane, [], now)
        is_first = batch is not lane.open or now < batch.opened
        if batch is not lane.open:
            lane.open_batch(batch)
        self.active[lane] = None
        batch.extend(items, sizes, size, now)
        if len(batch.items) >= self._policy.max_events:
            lane.close_open()
            return OfferResult.WAKE_SENDER
        return OfferResult.WAKE_SENDER if is_first else OfferResult.ACCEPTED

    def discard(self, lane: Lane, items: list[bytes], reason: DropReason) -> Loss:
        """Count records as accepted and lost at once."""
        return self.accounting.discard(lane, items, reason)

    def evict(self, room: int) -> list[Loss]:
        """Drop the records that have waited longest until one of `room` bytes fits. Records in flight stay.

        Returns:
            The dropped records; none if dropping all of them would not make enough room.
        """
        losses: list[Loss] = []
        records, size = self.load_in_flight()
        fits = records < self._policy.max_pending_events and size + room <= self._policy.max_pending_bytes
        if not (fits if self.disk is None else self.disk.can_make_room(room, records, size)):
            return losses
        while self.is_full(room):
            heads = [lane.ready[0] if lane.ready else lane.open for lane in self.active]
            waiting = [batch for batch in heads if batch is not None]
            if not waiting:
                break
            oldest = min(waiting, key=lambda batch: batch.opened)
            first = oldest.pop_first()
            losses.extend(self._lose(first, DropReason.QUEUE_FULL))
            if not oldest.items:
                oldest.lane.replace(oldest, oldest)
        self.under_pressure = self.under_pressure or bool(losses)
        return losses

    def lease_single(self, lane: Lane, item: bytes, now: float) -> Batch | None:
        """Charge and lease one record that is sent alone. Return None if it does not fit."""
        if self.is_full(len(item)):
            return None
        self.accounting.accept(1, len(item))
        batch = Batch(lane, [item], now)
        lane.single_requests[batch] = None
        self.active[lane] = None
        return batch

    def settle_single(self, batch: Batch, reason: DropReason | None, *, message: str = "") -> list[Loss]:
        """End a lease made by `lease_single`: delivered, or lost if there is a reason.

        Nothing happens if the lease has ended before.
        """
        if batch not in batch.lane.single_requests:
            return []
        batch.lane.single_requests.pop(batch, None)
        if reason is None:
            batch.lane.recover()
            self._deliver(batch)
            return []
        return self._lose(batch, reason, message=message)

    def requeue_single(self, batch: Batch) -> None:
        """End a lease made by `lease_single` without an outcome. Nothing happens if the lease has ended before."""
        if batch in batch.lane.single_requests:
            del batch.lane.single_requests[batch]
            batch.lane.ready.appendleft(batch.subset(range(len(batch.items))))

    def poll(self, now: float) -> Batch | WaitUntil | Idle:
        """Return a batch, leased to the caller, or how long to wait for one."""
        wake: float | None = None
        for lane in [*self.active] if self.disk is None else self.disk.lanes_to_poll(self.active, now):
            batch_or_time = self._poll_lane(lane, now)
            if isinstance(batch_or_time, Batch):
                # The lane goes to the end of the order, so that a busy one cannot starve the others.
                del self.active[lane]
                self.active[lane] = None
                return batch_or_time
            if batch_or_time is not None:
                wake = batch_or_time if wake is None else min(wake, batch_or_time)
            elif not any(lane.batches()):
                del self.active[lane]
        return IDLE if wake is None else WaitUntil(wake)

    def _poll_lane(self, lane: Lane, now: float) -> Batch | float | None:
        if len(lane.leased) >= (1 if lane.failures else lane.limit) or self._is_kind_busy(lane.kind):
            return None
        first = lane.head
        if first is None or first.must_wait():
            return None
        due = lane.due(self._policy.linger)
        if due > now and not self.under_pressure and not first.is_due:
            return max(due, lane.paused_until)
        if lane.paused_until > now:
            return lane.paused_until
        if not lane.ready:
            lane.close_open()
        if self.disk is not None and not self.disk.may_be_sent(lane):
            return None
        return lane.lease(now)

    def _is_kind_busy(self, kind: RecordKind) -> bool:
        """Return whether all requests for imports are in use, which the lanes of all project secrets share."""
        leased = (len(lane.leased) for lane in self.active if lane.kind is kind)
        return kind is RecordKind.IMPORTS and sum(leased) >= self._policy.max_in_flight

    def reclaim(self) -> list[Loss]:
        """Release every lease: the event loop of the lease holders has ended.

        Returns:
            Records that may have been applied and must not be sent twice.
        """
        losses: list[Loss] = []
        for lane in self.active:
            for batch in reversed([*lane.leased, *lane.single_requests]):
                lane.leased.pop(batch, None)
                lane.single_requests.pop(batch, None)
                # A new batch, so that a late settlement by the old lease holder has no effect.
                again = batch.subset(range(len(batch.items)))
                if batch.is_request_begun:
                    again = self._drop_non_idempotent(again, "the event loop ended during a request", losses)
                if again.items:
                    lane.ready.appendleft(again)
        return losses

    def expire(self, batch: Batch, outcome: Expired) -> list[Loss]:
        """End a lease for which no request was made, because some records are too old for the endpoint."""
        if batch not in batch.lane.leased:
            return []
        del batch.lane.leased[batch]
        old, rest = batch.partition(outcome.positions)
        if rest.items:
            batch.lane.ready.appendleft(rest)
        if not outcome.by_import:
            return self._lose(old, DropReason.TOO_OLD)
        lane = self.lane(RecordKind.IMPORTS)
        old.move_to(lane)
        self.active[lane] = None
        return []

    def settle(self, batch: Batch, outcome: Outcome, now: float, delay: float = 0.0) -> list[Loss]:
        """End a lease. Nothing happens if it has ended before.

        Args:
            batch: leased batch.
            outcome: outcome of its request.
            now: monotonic seconds.
            delay: seconds to pause the lane, if the outcome asks for another attempt.

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
            lane.fail(batch.failure_epoch, now, delay)
            # The first refusal may be a temporary error of a proxy. Later ones last until the configuration changes,
            # so flushes do not retry them.
            lane.hold_until(now + (delay if lane.failures > 1 else min(delay, _SECOND_TRY_AFTER)))
            lane.ready.appendleft(batch)
            return []
        lane.recover()
        if now - lane.size_limit_seen_at >= _SIZE_LIMIT_TTL:
            lane.restore_max_bytes(self._policy.max_bytes)
        if isinstance(outcome, Delivered):
            self._deliver(batch)
            return []
        if isinstance(outcome, PartialFailure):
            rejected, others = batch.partition({record.index for record in outcome.failed})
            self._deliver(others)
            return self._lose(rejected, DropReason.REJECTED, details=outcome.failed, message=outcome.message)
        if isinstance(outcome, SplitBatch) and len(batch.items) > 1:
            return self._split_batch(batch, outcome, now)
        reason = outcome.reason if isinstance(outcome, SplitBatch) else DropReason.REJECTED
        return self._lose(batch, reason, message=outcome.message)

    def _retry_batch(self, batch: Batch, outcome: Retry, now: float, delay: float) -> list[Loss]:
        lane, retry = batch.lane, self._retry
        lane.fail(batch.failure_epoch, now, delay)
        if outcome.retry_after is not None:
            lane.hold_until(now + delay)
        losses: list[Loss] = []
        if outcome.delivered:
            delivered, batch = batch.partition(outcome.delivered)
            self._deliver(delivered)
        if outcome.applied:
            batch = self._drop_non_idempotent(batch, outcome.message, losses)
        if not batch.items:
            return losses
        out_of_attempts = retry.attempts is not None and batch.attempts >= retry.attempts
        began = now if batch.first_try is None else batch.first_try
        out_of_time = retry.total_timeout is not None and lane.paused_until > began + retry.total_timeout
        if out_of_attempts or out_of_time:
            losses.extend(self._lose(batch, DropReason.EXHAUSTED, message=outcome.message))
        else:
            lane.ready.appendleft(batch)
        return losses

    def _drop_non_idempotent(self, batch: Batch, message: str, losses: list[Loss]) -> Batch:
        """Return the records that may be sent again after they may have been applied. Append the others to `losses`."""
        once = {at for at, item in enumerate(batch.items) if isinstance(item, NonIdempotentRecord)}
        if not once or self._policy.at_least_once:
            return batch
        uncertain, rest = batch.partition(once)
        losses.extend(self._lose(uncertain, DropReason.UNCERTAIN, message=message))
        return rest

    def _split_batch(self, batch: Batch, outcome: SplitBatch, now: float) -> list[Loss]:
        losses: list[Loss] = []
        if outcome.reason is DropReason.TOO_LARGE:
            limit = max(min(self._policy.max_bytes, _MIN_SIZE_LIMIT), batch.size // 2 + 1)
            batch.lane.reduce_max_bytes(limit, now)
        elif outcome.status != 200:
            # Mixpanel does not say whether the valid rows of a rejected profile batch were applied, except with
            # status 200, where 0 means that none was.
            batch = self._drop_non_idempotent(batch, outcome.message, losses)
        # The response asked for a split, so the request does not count as a failed attempt.
        batch.refund_attempt()
        middle = (len(batch.items) + 1) // 2
        for half in reversed(batch.partition(range(middle))):
            if half.items:
                batch.lane.ready.appendleft(half)
        return losses

    def _deliver(self, batch: Batch) -> None:
        self.under_pressure = False
        self.accounting.deliver(batch)
        if batch.ids and self.disk is not None:
            self.disk.mark_settled(batch)

    def _lose(
        self, batch: Batch, reason: DropReason, *, details: Sequence[FailedRecord] = (), message: str = ""
    ) -> list[Loss]:
        self.under_pressure = False
        losses: list[Loss] = []
        if batch.is_unanswered and reason is not DropReason.UNCERTAIN:
            batch = self._drop_non_idempotent(batch, "the outbox did not answer, and may have them", losses)
        for part, named in batch.split_by_kind(details) if batch.items else ():
            loss = self.accounting.record_loss(part, reason, details=named, message=message)
            if part.ids and self.disk is not None:
                self.disk.mark_settled(part, None if reason in DROPPED else loss)
            losses.append(loss)
        return losses

    def abandon(self, reason: DropReason) -> list[Loss]:
        """Give up every waiting batch. Batches in flight stay with their lease holder, spooled records on disk."""
        losses = []
        for lane in self.active:
            lane.close_open()
            for batch in [batch for batch in lane.ready if not batch.ids]:
                lane.ready.remove(batch)
                losses.extend(self._lose(batch, reason))
        return losses

    def barrier(self) -> FlushBarrier:
        """Make everything accepted so far due now, and return a barrier that counts it."""
        barrier = FlushBarrier()
        for lane in self.active:
            for batch in lane.batches():
                batch.add_barrier(barrier)
        if self.disk is not None:
            self.disk.add_barrier(barrier)
        return barrier

    def forget(self, barrier: FlushBarrier) -> None:
        """Stop counting for this barrier: its flush has ended."""
        for lane in self.active:
            for batch in lane.batches():
                batch.remove_barrier(barrier)
        if self.disk is not None:
            self.disk.remove_barrier(barrier)

    def shorten_backoff(self, interval: float) -> None:
        """Reduce the pauses of all lanes to `interval` seconds after their last failure, as a flush waits."""
        for lane in self.active:
            lane.shorten_backoff(interval)

    def next_try(self) -> float:
        """Return the earliest moment at which a waiting batch may be sent; minus infinity if one is in flight."""
        heads = [lane.head for lane in self.active]
        times = [head.lane.paused_until for head in heads if head is not None and not head.must_wait()]
        if self.in_flight or not times or (self.disk is not None and self.disk.unwritten):
            return float("-inf")
        return min(times)

    def rows_loaded(
        self, lane: Lane, rows: Sequence[tuple[int, bytes]], now: float, suspects: Mapping[int, int]
    ) -> list[Loss]:
        """Put records that were read from disk into memory; see `DiskBacklog.rows_loaded`."""
        assert self.disk is not None
        losses = self.disk.rows_loaded(lane, rows, now, suspects)
        if lane.ready:
            self.active[lane] = None
        return losses

    def undo_writes(self, entries: Sequence[PendingWrite], reason: DropReason | None) -> list[Loss]:
        """Remove records that could not be written; see `DiskBacklog.undo_writes`."""
        assert self.disk is not None
        if entries:
            self.under_pressure = False
        return self.disk.undo_writes(entries, reason)
