"""Records that a worker has claimed from an outbox: a buffer that reports their outcomes to a ledger, and its queue.

A claimed record has a number, its row. `Batch.ids` carries the rows through retries and splits, as it does for the rows
of a spool. The records stay in the outbox until the ledger ends their entry, so the bounds of the client do not apply:
the worker claims no further entry while it holds enough.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol

from .._encoding.batch_body import sizes_of
from .._model.config import BatchPolicy, Overflow, RetryPolicy
from .._model.errors import FailedRecord
from .._model.records import DropReason, Loss, RecordKind
from .batch import Batch
from .buffer import Buffer
from .callbacks import Callbacks
from .lanes import Lane
from .listeners import QueueListener
from .queue import Queue


class ClaimLedger(Protocol):
    """Receives the outcomes of claimed records. Its methods are called with the lock of the queue."""

    def delivered(self, rows: Sequence[int]) -> None:
        """Note that Mixpanel has accepted these records."""

    def lost(self, rows: Sequence[int], loss: Loss) -> None:
        """Note that these records ended without delivery. `loss.items` has them in the same order."""

    def withdrawn(self, rows: Sequence[int]) -> None:
        """Note that these records left the queue unsent, because their entry belongs to another worker."""


class ClaimedBuffer(Buffer):
    """Buffer of claimed records.

    Args:
        policy: size and linger time of batches, and requests in flight.
        retry: limits of retries.
        ledger: learns what becomes of the records.
    """

    def __init__(self, policy: BatchPolicy, retry: RetryPolicy, ledger: ClaimLedger) -> None:
        super().__init__(policy, retry)
        self._ledger = ledger
        self._repeated: dict[Lane, str] = {}

    def claim(
        self,
        lane: Lane,
        items: Sequence[bytes],
        rows: Sequence[int],
        now: float,
        *,
        is_old: bool,
        repeated: str | None = None,
    ) -> None:
        """Accept the records of an entry.

        Args:
            lane: endpoint of the records, which stay in order.
            items: encoded records.
            rows: row of each record.
            now: monotonic seconds.
            is_old: whether events may have become too old for `/track` since they were accepted.
            repeated: name of the ordered lane of the outbox, if a worker that died may have sent the records; else
                None. A batch begins with them and has as many as fit, as its request had. Otherwise the first of two
                requests would take a profile back to an older value.
        """
        if repeated is not None and self._repeated.get(lane) != repeated:
            lane.close_open()
            self._repeated[lane] = repeated
        sizes = sizes_of(items)
        self.accounting.accept(len(items), sum(sizes))
        self.active[lane] = None
        if lane.kind is RecordKind.IDENTITY:
            for row, item in zip(rows, items, strict=True):
                self.lanes.append_identity(lane, item, now, row, self.active)
            return
        at = 0
        while at < len(items):
            fitting = self.fitting_sizes(lane, sizes[at:])
            end = at + len(fitting)
            batch = lane.open
            if batch is None:
                batch = self.lanes.new_batch(lane, [], now)
                lane.open_batch(batch)
            batch.claim(items[at:end], fitting, rows[at:end], now, is_old=is_old)
            at = end
            if len(batch.items) >= self._policy.max_events:
                lane.close_open()

    def discard_claimed(self, lane: Lane, items: Sequence[bytes], rows: Sequence[int], now: float) -> list[Loss]:
        """Accept the records of an entry whose person was erased, and drop them."""
        batch = Batch(lane, items, now, [*rows])
        self.accounting.accept(len(items), batch.payload)
        return self._lose(batch, DropReason.PURGED)

    def count_dead(
        self, lane: Lane, items: Sequence[bytes], unreadable: int, reason: DropReason, message: str
    ) -> list[Loss]:
        """Count the records of an entry that cannot or must not be sent.

        Args:
            lane: endpoint of the records.
            items: the readable records.
            unreadable: number of the others.
            reason: reason why they are not sent.
            message: the cause.
        """
        count = len(items) + unreadable
        self.accounting.accept(count, 0)
        self.accounting.release(count, 0)
        self.accounting.count_loss(reason, count)
        return [Loss(kind=lane.kind, reason=reason, items=items, message=message, count_only=unreadable)]

    def waiting(self, kind: RecordKind) -> tuple[int, int]:
        """Return how many records of this kind wait for a request, and their bytes."""
        batches = [
            batch
            for lane in self.active
            if lane.kind is kind
            for batch in (*lane.ready, *([lane.open] if lane.open else []))
        ]
        return sum(len(batch.items) for batch in batches), sum(batch.size for batch in batches)

    def withdraw(self, is_gone: Callable[[int], bool]) -> None:
        """Remove the waiting records whose rows are gone. Records in flight stay until their request ends."""
        for lane in self.active:
            for batch in [*lane.ready, *([lane.open] if lane.open else [])]:
                positions = {at for at, row in enumerate(batch.ids) if is_gone(row)}
                if positions:
                    gone, rest = batch.partition(positions)
                    lane.replace(batch, rest)
                    self._withdraw(gone)

    def leave_out(self, batch: Batch, gone: Collection[int], uncertain: Collection[int], message: str) -> list[Loss]:
        """Take records out of a leased batch whose request has not been made.

        Args:
            batch: the batch.
            gone: positions of records that another worker sends.
            uncertain: positions of records that a worker may have sent before, and that must not be sent twice.
            message: why the outcome of these is unknown.
        """
        kinds = {at: at in uncertain for at in (*gone, *uncertain)}
        taken = batch.take_out(kinds)
        lost, withdrawn = taken.partition({new for new, at in enumerate(sorted(kinds)) if kinds[at]})
        self._withdraw(withdrawn)
        return self._lose(lost, DropReason.UNCERTAIN, message=message) if lost.items else []

    def drop_erased(self, batch: Batch, positions: Collection[int]) -> list[Loss]:
        """Take records of erased persons out of a leased batch whose request has not been made, and drop them."""
        return self._lose(batch.take_out(positions), DropReason.PURGED)

    def _withdraw(self, batch: Batch) -> None:
        self.accounting.retract_batch(batch)
        self._ledger.withdrawn(batch.ids)

    def hold(self, kinds: Collection[RecordKind], moment: float) -> None:
        """Send nothing of these kinds before this moment, because Mixpanel asked another worker to wait."""
        for kind in kinds:
            lane = self.lane(kind)
            lane.hold_until(moment)
            lane.pause_until(moment)

    def _deliver(self, batch: Batch) -> None:
        super()._deliver(batch)
        self._ledger.delivered(batch.ids)

    def _lose(
        self, batch: Batch, reason: DropReason, *, details: Sequence[FailedRecord] = (), message: str = ""
    ) -> list[Loss]:
        losses = super()._lose(batch, reason, details=details, message=message)
        for (part, _), loss in zip(batch.split_by_kind(details), losses, strict=True):
            self._ledger.lost(part.ids, loss)
        return losses


class ClaimedQueue(Queue):
    """Queue of a worker. Its methods are those of the buffer, with the lock.

    Args:
        buffer: claimed records.
        callbacks: the user's callbacks.
        monotonic: monotonic clock in seconds.
        listener: receives the signals of the queue.
    """

    def __init__(
        self, buffer: ClaimedBuffer, callbacks: Callbacks, monotonic: Callable[[], float], listener: QueueListener
    ) -> None:
        super().__init__(buffer, Overflow.DROP_NEWEST, callbacks, monotonic, listener)
        self._claimed = buffer

    def claim(
        self,
        kind: RecordKind,
        items: Sequence[bytes],
        rows: Sequence[int],
        *,
        is_old: bool,
        repeated: str | None = None,
    ) -> None:
        """Accept the records of an entry, and wake the sender; see `ClaimedBuffer.claim`."""
        buffer, now = self._claimed, self._monotonic()
        claim = partial(buffer.claim, buffer.lane(kind), items, rows, now, is_old=is_old, repeated=repeated)
        self.run_locked(claim)
        self._listener.on_work()

    def discard_claimed(self, kind: RecordKind, items: Sequence[bytes], rows: Sequence[int]) -> None:
        """Accept the records of an entry whose person was erased, and drop them."""
        buffer, now = self._claimed, self._monotonic()
        self.report_losses(self.run_locked(lambda: buffer.discard_claimed(buffer.lane(kind), items, rows, now)))

    def count_dead(
        self, kind: RecordKind, items: Sequence[bytes], unreadable: int, reason: DropReason, message: str
    ) -> None:
        """Count the records of an entry that cannot or must not be sent; see `ClaimedBuffer.count_dead`."""
        buffer = self._claimed
        count = partial(buffer.count_dead, buffer.lane(kind), items, unreadable, reason, message)
        self.report_losses(self.run_locked(count))

    def waiting(self, kind: RecordKind) -> tuple[int, int]:
        """Return how many records of this kind wait for a request, and their bytes."""
        return self.run_locked(lambda: self._claimed.waiting(kind))

    def withdraw(self, is_gone: Callable[[int], bool]) -> None:
        """Remove the waiting records whose rows are gone."""
        self.run_locked(lambda: self._claimed.withdraw(is_gone))

    def leave_out(self, batch: Batch, gone: Collection[int], uncertain: Collection[int], message: str) -> None:
        """Take records out of a leased batch; see `ClaimedBuffer.leave_out`."""
        self.report_losses(self.run_locked(lambda: self._claimed.leave_out(batch, gone, uncertain, message)))

    def drop_erased(self, batch: Batch, positions: Collection[int]) -> None:
        """Drop records of erased persons from a leased batch; see `ClaimedBuffer.drop_erased`."""
        self.report_losses(self.run_locked(lambda: self._claimed.drop_erased(batch, positions)))

    def hold(self, kinds: Collection[RecordKind], seconds: float) -> None:
        """Send nothing of these kinds for so many seconds."""
        moment = self._monotonic() + seconds
        self.run_locked(lambda: self._claimed.hold(kinds, moment))

    def end_linger(self) -> None:
        """Send the waiting records without their linger time."""
        self.forget(self.barrier())
        self._listener.on_work()
