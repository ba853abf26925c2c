"""Repair of the buffer after an operation that an error cut off, such as one that a signal handler raised.

The records in the lanes are the truth. The counters, flush barriers and turns are computed from them again. A record
that was accepted before the operation and is in no lane any more is counted as lost, and never just forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from .._model.records import DropReason, Loss, RecordKind

if TYPE_CHECKING:
    from .batch import Batch, FlushBarrier, IdentityTurn
    from .buffer import Buffer
    from .lane_rows import LaneRows

_MESSAGE: Final = "an error raised by a signal handler, or a lack of memory, interrupted the client"


class Repairer:
    """Makes a buffer consistent after an operation that an error cut off. The lock of the buffer is always held.

    Args:
        buffer: the buffer.
        repair_disk: makes the accounting of the spool consistent.

    Attributes:
        barriers: flushes that wait.
        losses: losses of operations that were cut off, which have not been reported.
    """

    def __init__(self, buffer: Buffer, repair_disk: Callable[[], None]) -> None:
        self._buffer = buffer
        self._repair_disk = repair_disk
        self._accepted_before = 0
        self._is_needed = False
        self.barriers: list[FlushBarrier] = []
        self.losses: list[Loss] = []

    def reset(self) -> None:
        """Forget everything: after a fork it belongs to the parent."""
        self._is_needed = False
        self.barriers.clear()
        self.losses.clear()

    def begin(self) -> None:
        """Note that an operation, or a part of one, begins with a consistent buffer."""
        if self._is_needed:
            # A second error has cut off the repair.
            self.repair(DropReason.UNCERTAIN)
        self._accepted_before = self._buffer.accounting.accepted

    def watch(self, barrier: FlushBarrier) -> None:
        """Keep the count of this barrier right from now on. Forget the barriers that are complete."""
        if barrier not in self.barriers:
            self.barriers = [*(one for one in self.barriers if one.pending), barrier]

    def take_losses(self) -> list[Loss]:
        """Return the losses that have not been reported."""
        losses, self.losses = self.losses, []
        return losses

    def repair(self, reason: DropReason) -> int:
        """Make the buffer consistent.

        Args:
            reason: reason for accepted records that are in no lane any more.

        Returns:
            How many records the operation accepted.
        """
        self._is_needed = True
        buffer, before = self._buffer, self._accepted_before
        batches: list[Batch] = []
        for lane in buffer.lanes.values():
            lane.salvage(has_rows=buffer.disk is not None)
            batches += lane.batches()
            if any(lane.batches()):
                buffer.active.setdefault(lane)
        self._repair_disk()
        rows = [] if buffer.disk is None else [buffer.disk.rows(lane) for lane in buffer.lanes.values()]
        self._count_waiting([*batches, *rows])
        _count_turns(batches)
        records = sum(len(batch.items) for batch in batches) + sum(one.records for one in rows)
        size = sum(batch.payload for batch in batches) + sum(one.size for one in rows)
        if lost := buffer.accounting.correct(records, size, before, reason):
            self.losses.append(Loss(kind=RecordKind.EVENTS, reason=reason, items=[], count_only=lost, message=_MESSAGE))
        self._accepted_before = buffer.accounting.accepted
        self._is_needed = False
        return self._accepted_before - before

    def _count_waiting(self, holders: Iterable[Batch | LaneRows]) -> None:
        """Count for each flush the records that it waits for."""
        covered: Counter[FlushBarrier] = Counter()
        for holder in holders:
            for barrier, count in holder.barriers:
                covered[barrier] += count
        for barrier in self.barriers:
            barrier.correct(covered[barrier])

    def leases(self) -> set[Batch]:
        """Return every lease."""
        return {batch for lane in self._buffer.active for batch in (*lane.leased, *lane.single_requests)}

    def end_leases_except(self, known: set[Batch]) -> None:
        """End the leases that an operation made before it was cut off, so that no caller knows about them.

        Args:
            known: leases from before the operation.
        """
        for lane in self._buffer.active:
            for batch in [batch for batch in lane.leased if batch not in known]:
                lane.return_lease(batch)
            for batch in [batch for batch in lane.single_requests if batch not in known]:
                # Its caller gets the error, so the record was not accepted.
                self._buffer.accounting.retract(len(batch.items), batch.payload)
                del lane.single_requests[batch]


def _count_turns(batches: Iterable[Batch]) -> None:
    """Count for each turn the identity records that other records wait for."""
    waiting: Counter[IdentityTurn] = Counter()
    for batch in batches:
        if batch.turn is not None:
            waiting[batch.turn] += len(batch.identities)
    for turn in {batch.after for batch in batches if batch.after is not None}.union(waiting):
        turn.correct(waiting[turn])
