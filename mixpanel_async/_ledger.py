"""The counts: how much is held, whether there is room, and in which one place each record ended."""

from __future__ import annotations

from collections.abc import Sequence

from ._config import BatchPolicy
from ._errors import FailedRecord
from ._lanes import Batch, Lane, Loss
from ._records import DROPPED, DropReason


class Ledger:
    """accepted == delivered + failed + dropped + uncertain + pending, at every moment.

    Args:
        policy: the bounds.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self.losses: dict[DropReason, int] = {}
        self.forget_all()

    def forget_all(self) -> None:
        self.accepted = self.delivered = self.failed = self.dropped = self.uncertain = 0
        self.pending = self.pending_bytes = 0
        # There was no room: what is open leaves without lingering.
        self.crowded = False
        self.losses.clear()

    def take(self, size: int) -> None:
        """Charge a record."""
        self.accepted += 1
        self.pending += 1
        self.pending_bytes += size

    def is_full(self, size: int) -> bool:
        """Whether a record of this size has no room."""
        policy = self._policy
        return self.pending >= policy.max_pending_events or self.pending_bytes + size > policy.max_pending_bytes

    def could_fit(self, size: int) -> bool:
        """Whether a record of this size would have room in an empty queue."""
        return size <= self._policy.max_pending_bytes

    def discard(self, lane: Lane, items: list[bytes], reason: DropReason) -> Loss:
        """Count records as accepted and lost at once: they never had a place in the queue."""
        self.accepted += len(items)
        self.dropped += len(items)
        self.losses[reason] = self.losses.get(reason, 0) + len(items)
        return Loss(kind=lane.kind, reason=reason, items=items)

    def deliver(self, batch: Batch) -> None:
        """Count a batch as taken by Mixpanel."""
        self._discharge(batch)
        self.delivered += len(batch.items)
        for barrier, covered in batch.marks:
            barrier.pending -= covered
            barrier.delivered += covered

    def lose(
        self, batch: Batch, reason: DropReason, *, details: Sequence[FailedRecord] = (), message: str = ""
    ) -> Loss:
        """Count a batch as ended without delivery, in the place that its reason names."""
        count = len(batch.items)
        self._discharge(batch)
        if reason in DROPPED:
            self.dropped += count
        elif reason is DropReason.UNCERTAIN:
            self.uncertain += count
        else:
            self.failed += count
        self.losses[reason] = self.losses.get(reason, 0) + count
        for barrier, covered in batch.marks:
            barrier.pending -= covered
            barrier.losses[reason.value] = barrier.losses.get(reason.value, 0) + covered
        return Loss(kind=batch.lane.kind, reason=reason, items=batch.items, details=details, message=message)

    def _discharge(self, batch: Batch) -> None:
        self.crowded = False
        self.pending -= len(batch.items)
        self.pending_bytes -= batch.payload
