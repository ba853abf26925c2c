"""Counters of the queue, and its bounds in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .._model.config import BatchPolicy
from .._model.errors import FailedRecord
from .._model.records import DROPPED, DropReason, IdentityRecord, Loss, RecordKind
from .._model.stats import IdentityStats, Stats

if TYPE_CHECKING:
    from .._http.metrics import RequestMetrics
    from .batch import Batch
    from .lanes import Lane


class Accounting:
    """Counters and bounds: accepted == delivered + failed + dropped + uncertain + pending, at every moment.

    Args:
        policy: bounds in memory.
    """

    __slots__ = (
        "_max_bytes",
        "_max_records",
        "accepted",
        "delivered",
        "dropped",
        "failed",
        "identity",
        "losses",
        "pending",
        "pending_bytes",
        "recovered",
        "uncertain",
    )

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_records = policy.max_pending_events
        self._max_bytes = policy.max_pending_bytes
        self.reset()

    def reset(self) -> None:
        """Set every counter to zero."""
        self.accepted = self.delivered = self.failed = self.dropped = self.uncertain = self.recovered = 0
        self.pending = self.pending_bytes = 0
        self.losses: dict[DropReason, int] = {}
        self.identity = IdentityStats()

    def count_identity(self, counter: str, count: int = 1) -> None:
        """Add to this field of `IdentityStats`."""
        self.identity = replace(self.identity, **{counter: getattr(self.identity, counter) + count})

    def is_full(self, size: int) -> bool:
        """Return whether a record of this size does not fit in memory."""
        return self.pending >= self._max_records or self.pending_bytes + size > self._max_bytes

    def could_fit(self, size: int) -> bool:
        """Return whether a record of this size fits in an empty queue."""
        return size <= self._max_bytes

    def spare_bytes(self, min_record_bytes: int) -> int:
        """Return how many bytes of records fit, if none is smaller than `min_record_bytes`."""
        return min((self._max_records - self.pending) * min_record_bytes, self._max_bytes - self.pending_bytes)

    def accept_if_room(self, count: int, size: int) -> bool:
        """Count records as accepted if they fit in memory. Return whether they did."""
        if self.pending + count > self._max_records or self.pending_bytes + size > self._max_bytes:
            return False
        self.accept(count, size)
        return True

    def accept(self, count: int, size: int) -> None:
        """Count records as accepted and pending."""
        self.accepted += count
        self.pending += count
        self.pending_bytes += size

    def recover(self, count: int, size: int) -> None:
        """Count records of another client that were found in the spool."""
        self.recovered += count
        self.accept(count, size)

    def retract(self, count: int, size: int) -> None:
        """Undo `accept` for records that could not be written to the spool."""
        self.accepted -= count
        self.release(count, size)

    def retract_batch(self, batch: Batch) -> None:
        """Undo `accept` for the records of a batch."""
        batch.end_turn()
        self.retract(len(batch.items), batch.payload)
        for barrier, covered in batch.barriers:
            barrier.expect(-covered)

    def release(self, count: int, size: int) -> None:
        """Remove records from the pending ones."""
        self.pending -= count
        self.pending_bytes -= size

    def correct(self, pending: int, size: int, accepted_before: int, reason: DropReason) -> int:
        """Compute the counters from the pending records, after an error has cut off a change.

        Args:
            pending: number of records that wait or are in flight.
            size: their bytes.
            accepted_before: number of accepted records before the change.
            reason: reason for the records that are in no counter.

        Returns:
            The number of these records.
        """
        ended = sum(self.losses.values()) + self.delivered
        lost = max(0, accepted_before - ended - pending)
        if lost:
            self.count_loss(reason, lost)
        self.pending, self.pending_bytes = pending, size
        self.accepted = ended + lost + pending
        return lost

    def correct_bytes(self, difference: int) -> None:
        """Correct an estimated size of pending records."""
        self.pending_bytes += difference

    def discard(self, lane: Lane, items: list[bytes], reason: DropReason) -> Loss:
        """Count records as accepted and lost at once: they never entered the queue."""
        self.accepted += len(items)
        self.count_loss(reason, len(items))
        is_identity = type(items[0]) is IdentityRecord
        if is_identity:
            self.count_identity("lost")
        return Loss(kind=RecordKind.IDENTITY if is_identity else lane.kind, reason=reason, items=items)

    def deliver(self, batch: Batch) -> None:
        """Count a batch as delivered."""
        self.release(len(batch.items), batch.payload)
        self.delivered += len(batch.items)
        for barrier, covered in batch.barriers:
            barrier.settle(covered)
        if batch.identities:
            batch.end_turn()
            self.count_identity("delivered", len(batch.identities))

    def record_loss(
        self, batch: Batch, reason: DropReason, *, details: Sequence[FailedRecord] = (), message: str = ""
    ) -> Loss:
        """Count a batch that ended without delivery, of records that are reported with the same kind."""
        self.release(len(batch.items), batch.payload)
        self.count_loss(reason, len(batch.items))
        for barrier, covered in batch.barriers:
            barrier.settle(covered, reason)
        if batch.identities:
            batch.end_turn()
            self.count_identity("lost", len(batch.identities))
        return Loss(kind=batch.reported_kind, reason=reason, items=batch.items, details=details, message=message)

    def count_loss(self, reason: DropReason, count: int) -> None:
        """Count records as dropped, uncertain or failed, depending on the reason."""
        before = self.losses.get(reason, 0)
        # No call from here on, so that no signal handler can run between the counters.
        self.losses[reason] = before + count
        if reason in DROPPED:
            self.dropped += count
        elif reason is DropReason.UNCERTAIN:
            self.uncertain += count
        else:
            self.failed += count

    def stats(self, waiting: Sequence[bytes], requests: RequestMetrics, *, on_disk: int, in_flight: int) -> Stats:
        """Return a snapshot.

        Args:
            waiting: accepted records that have not entered the buffer yet.
            requests: counts of requests.
            on_disk: records that are only in the spool.
            in_flight: leased batches.
        """
        return Stats(
            accepted=self.accepted + len(waiting),
            delivered=self.delivered,
            failed=self.failed,
            dropped=self.dropped,
            uncertain=self.uncertain,
            pending=self.pending + len(waiting),
            pending_bytes=self.pending_bytes + sum(map(len, waiting)),
            on_disk=on_disk,
            recovered=self.recovered,
            in_flight=in_flight,
            requests=requests.requests,
            retries=requests.retries,
            losses={reason.value: count for reason, count in self.losses.items()},
            last_error=requests.last_error,
            identity=self.identity,
        )
