"""The counts: how much is held, whether there is room, and in which one place each record ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .._model.config import BatchPolicy
from .._model.credentials import Secret
from .._model.errors import FailedRecord
from .._model.records import DROPPED, DropReason, Loss, RecordKind
from .._model.stats import Stats
from .._spool.messages import SettledRows
from .lanes import Batch, Lane

_MAX_LANES: Final = 50
_ANY_SECRET: Final = Secret("")


class Accounting:
    """accepted == delivered + failed + dropped + uncertain + pending, at every moment.

    Args:
        policy: the bounds.
        one_secret: records that different project secrets sign share a lane.
    """

    def __init__(self, policy: BatchPolicy, *, one_secret: bool = False) -> None:
        self._policy = policy
        self._one_secret = one_secret
        self.lanes: dict[tuple[RecordKind, Secret | None], Lane] = {}
        # Those that hold records in memory, in the order in which they take their turn.
        self.active: dict[Lane, None] = {}
        self.losses: dict[DropReason, int] = {}
        self.settled_rows: list[SettledRows] = []
        """Rows that ended since the owner of this ledger last looked."""
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        self.accepted = self.delivered = self.failed = self.dropped = self.uncertain = self.recovered = 0
        self.pending = self.pending_bytes = self.on_disk = 0
        # Bytes in the spool that are about to be given back.
        self.bytes_being_freed = 0
        # There was no room: what is open leaves without lingering.
        self.under_pressure = False
        self.losses.clear()
        self.settled_rows.clear()

    def lane(self, kind: RecordKind, secret: Secret | None = None) -> Lane:
        """The lane for this kind and authentication, made at its first use."""
        # A spool keeps no secret: what waits there is signed with the last one that was given.
        key = (kind, secret if not self._one_secret or secret is None else _ANY_SECRET)
        lane = self.lanes.get(key)
        if lane is None:
            if len(self.lanes) > _MAX_LANES:
                # Secrets that are no longer in use would add up in a process that serves many projects.
                self.lanes = {
                    key: lane
                    for key, lane in self.lanes.items()
                    if lane.secret is None or lane.failures or lane in self.active
                }
            limit = self._policy.max_in_flight if kind in {RecordKind.EVENTS, RecordKind.IMPORTS} else 1
            lane = self.lanes[key] = Lane(kind, secret, limit, self._policy.max_bytes)
        lane.secret = secret
        return lane

    @property
    def in_flight(self) -> int:
        return sum(len(lane.leased) + len(lane.single_requests) for lane in self.active)

    @property
    def is_busy(self) -> bool:
        """Whether requests are under way or about to begin."""
        return any(lane.ready or lane.leased or lane.single_requests for lane in self.active)

    def has_room(self, batch: Batch, count: int, size: int) -> bool:
        """Whether so many records of so many bytes in all may be held, and travel with a batch if it has no limit but
        that of bytes."""
        policy = self._policy
        return (
            self.pending + count <= policy.max_pending_events
            and self.pending_bytes + size <= policy.max_pending_bytes
            and batch.size + size + count <= batch.lane.max_bytes
        )

    def spare_bytes(self, batch: Batch, min_record_bytes: int) -> int:
        """How many bytes of records, none smaller than `least`, may be taken without a look at `has_room`."""
        policy = self._policy
        return min(
            (policy.max_pending_events - self.pending) * min_record_bytes,
            policy.max_pending_bytes - self.pending_bytes,
            (batch.lane.max_bytes - batch.size) // (min_record_bytes + 1) * min_record_bytes,
        )

    def stats(self, waiting: Sequence[bytes], requests: int, retries: int, last_error: str | None) -> Stats:
        """A snapshot.

        Args:
            waiting: records that have been accepted and are not entered here yet.
            requests: how many were made.
            retries: how many of them repeated an earlier one.
            last_error: what went wrong last.
        """
        return Stats(
            accepted=self.accepted + len(waiting),
            delivered=self.delivered,
            failed=self.failed,
            dropped=self.dropped,
            uncertain=self.uncertain,
            pending=self.pending + len(waiting),
            pending_bytes=self.pending_bytes + sum(map(len, waiting)),
            on_disk=self.on_disk,
            recovered=self.recovered,
            in_flight=self.in_flight,
            requests=requests,
            retries=retries,
            losses={reason.value: count for reason, count in self.losses.items()},
            last_error=last_error,
        )

    def charge(self, size: int) -> None:
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
        self.count_loss(reason, len(items))
        return Loss(kind=lane.kind, reason=reason, items=items)

    def deliver(self, batch: Batch) -> None:
        """Count a batch as taken by Mixpanel."""
        self.release(batch)
        if batch.ids:
            self.mark_rows_settled(batch)
        self.delivered += len(batch.items)
        for barrier, covered in batch.barriers:
            barrier.pending -= covered
            barrier.delivered += covered

    def record_loss(
        self, batch: Batch, reason: DropReason, *, details: Sequence[FailedRecord] = (), message: str = ""
    ) -> Loss:
        """Count a batch as ended without delivery, in the place that its reason names."""
        self.release(batch)
        self.count_loss(reason, len(batch.items))
        for barrier, covered in batch.barriers:
            barrier.pending -= covered
            barrier.losses[reason.value] = barrier.losses.get(reason.value, 0) + covered
        loss = Loss(kind=batch.lane.kind, reason=reason, items=batch.items, details=details, message=message)
        if batch.ids:
            self.mark_rows_settled(batch, None if reason in DROPPED else loss)
        return loss

    def mark_rows_settled(self, batch: Batch, loss: Loss | None = None) -> None:
        """Have the rows of a batch taken out of the spool."""
        # A dead letter stays on the disk.
        size = batch.payload if loss is None else 0
        self.bytes_being_freed += size
        self.settled_rows.append(SettledRows(batch.ids, size, loss))

    def count_loss(self, reason: DropReason, count: int) -> None:
        """Count records in the place that this reason names."""
        if reason in DROPPED:
            self.dropped += count
        elif reason is DropReason.UNCERTAIN:
            self.uncertain += count
        else:
            self.failed += count
        self.losses[reason] = self.losses.get(reason, 0) + count

    def release(self, batch: Batch) -> None:
        """Take the records of a batch out of what is held."""
        self.under_pressure = False
        self.pending -= len(batch.items)
        self.pending_bytes -= batch.payload
