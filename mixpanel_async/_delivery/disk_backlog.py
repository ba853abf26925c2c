"""The part of the buffer that knows a spool: which records are on disk yet, and which are there alone.

Every record of a client with a spool is written to it in a *group*, a commit that many callers share, and may be sent
only once its group is committed. While memory has room the record waits there as well; what comes when it has none, and
all that comes behind that in the same lane, waits on disk alone and is *restocked* when the lane runs low.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Final, NamedTuple

from .._model.config import BatchPolicy
from .._model.records import DropReason, Loss
from .._spool.messages import Eviction, PendingWrite, SettledRows
from .accounting import Accounting
from .lanes import Batch, FlushBarrier, Lane

# What is held in memory of a backlog that is safe on disk: enough to keep every request busy while more is read.
WINDOW_RECORDS: Final = 20_000
WINDOW_BYTES: Final = 16 * 1024 * 1024
# A row and its share of half-empty pages take about this much more than the record itself, as measured.
_ROW_OVERHEAD: Final = 1.125


class SpoolLimits(NamedTuple):
    """How much a client may leave on disk; see `SqliteSpool`."""

    max_bytes: int
    max_records: int | None


class DiskBacklog(Accounting):
    """Counts what is in memory, what is on disk, and what is on its way there.

    Args:
        policy: the bounds in memory.
        spool: the bounds on disk; None without a spool.
    """

    def __init__(self, policy: BatchPolicy, spool: SpoolLimits | None) -> None:
        self.spool = spool
        self._window = min(WINDOW_RECORDS, policy.max_pending_events), min(WINDOW_BYTES, policy.max_pending_bytes)
        super().__init__(policy, one_secret=spool is not None)

    def reset_after_fork(self) -> None:
        super().reset_after_fork()
        self.on_disk_bytes = 0
        self.unwritten = self.unwritten_bytes = 0
        # The bytes in use there.
        self.disk_used = 0
        # The last commit failed, for want of room or otherwise.
        self.is_disk_full = self.is_disk_failing = False

    def reset(self) -> None:
        """Forget every record and count: after a fork they are the parent's."""
        self.active.clear()
        for lane in self.lanes.values():
            lane.open = None
            lane.ready.clear()
            lane.leased.clear()
            lane.single_requests.clear()
            lane.forget_rows()
        self.reset_after_fork()

    def is_full(self, size: int) -> bool:
        """Whether a record of this size has no room."""
        if self.spool is None:
            return super().is_full(size)
        policy, spool = self._policy, self.spool
        if self.is_disk_full or self.unwritten >= policy.max_pending_events:
            return True
        if spool.max_records is not None and self.pending >= spool.max_records:
            return True
        return self.unwritten_bytes + size > policy.max_pending_bytes or self._excess_bytes(size) > 0

    def could_fit(self, size: int) -> bool:
        """Whether a record of this size would have room in an empty queue."""
        if self.spool is not None and size * _ROW_OVERHEAD > self.spool.max_bytes:
            return False
        return super().could_fit(size)

    def is_memory_full(self, size: int) -> bool:
        """Whether a record of this size, safe on disk, waits there alone."""
        records, most = self._window
        held_bytes = self.pending_bytes - self.on_disk_bytes
        # A giant passes an empty window.
        return self.pending - self.on_disk >= records or (held_bytes > 0 and held_bytes + size > most)

    def can_make_room(self, size: int, in_flight: int, in_flight_bytes: int) -> bool:
        """Whether a record of this size would have room if everything were dropped but what is in flight."""
        policy, spool = self._policy, self.spool
        if spool is None:
            return in_flight < policy.max_pending_events and in_flight_bytes + size <= policy.max_pending_bytes
        coming = self.unwritten_bytes + size
        # What is on its way to the disk is not taken back: to drop it, or what is older, would help nothing.
        if self.is_disk_full or self.unwritten >= policy.max_pending_events or coming > policy.max_pending_bytes:
            return False
        if spool.max_records is not None and in_flight >= spool.max_records:
            return False
        return self._excess_bytes(size) <= self.pending_bytes - in_flight_bytes

    def _excess_bytes(self, size: int) -> int:
        """What must be dropped before a record of this size has room on disk; negative if it has."""
        assert self.spool is not None
        coming = (self.unwritten_bytes + size) * _ROW_OVERHEAD
        return ceil(self.disk_used - self.bytes_being_freed + coming - self.spool.max_bytes)

    def excess(self, lane: Lane, size: int) -> int:
        """How many of the records that a lane has on disk alone must be dropped for a new one to have room."""
        assert self.spool is not None
        held = lane.on_disk - lane.unwritten
        if held <= 0:
            return 0
        too_large = self._excess_bytes(size)
        by_size = -(-too_large * lane.on_disk // max(1, lane.on_disk_bytes)) if too_large > 0 else 0
        too_many = 0 if self.spool.max_records is None else self.pending + 1 - self.spool.max_records
        return min(held, max(by_size, too_many, 0))

    def keep_on_disk(self, lane: Lane, size: int) -> None:
        """Charge a record of this client's that waits on disk alone."""
        if not lane.disk_from:
            lane.disk_from = lane.last_id
        if not lane.unwritten:
            lane.unwritten_from = lane.last_id
        lane.unwritten += 1
        self._add_on_disk(lane, 1, size)

    def take_over(self, lane: Lane, records: int, size: int) -> None:
        """Take over what another client left on disk."""
        self.accepted += records
        self.recovered += records
        self.pending += records
        self.pending_bytes += size
        self._add_on_disk(lane, records, size)
        # They come before what this client has on disk alone, so whoever waits for that waits for them, too.
        for barrier, _ in lane.disk_barriers:
            barrier.pending += records
        lane.disk_barriers = [(barrier, covered + records) for barrier, covered in lane.disk_barriers]

    def take_over_lost(self, lane: Lane, items: list[bytes]) -> Loss:
        """Count what another client left in the middle of a request, and what must not be sent again."""
        self.accepted += len(items)
        self.recovered += len(items)
        self.count_loss(DropReason.UNCERTAIN, len(items))
        return Loss(
            kind=lane.kind, reason=DropReason.UNCERTAIN, items=items, message="the process ended during a request"
        )

    def _add_on_disk(self, lane: Lane, records: int, size: int) -> None:
        lane.on_disk += records
        lane.on_disk_bytes += size
        self.on_disk += records
        self.on_disk_bytes += size
        if not lane.on_disk:
            lane.disk_from = 0
            # Sizes of what others left, and of what was dropped unread, are estimates.
            self.on_disk_bytes -= lane.on_disk_bytes
            self.pending_bytes -= lane.on_disk_bytes
            lane.on_disk_bytes = 0

    def lanes_on_disk(self) -> list[Lane]:
        """The lanes of which something waits on disk alone."""
        return [lane for lane in self.lanes.values() if lane.on_disk] if self.on_disk else []

    def should_load(self, lane: Lane) -> bool:
        """Whether records of this lane should be read from the disk now."""
        if lane.on_disk <= lane.unwritten or lane.is_loading or len(lane.ready) > 1:
            return False
        return not lane.ready or not self.is_memory_full(0)

    def load_batch(self, lane: Lane, rows: Sequence[tuple[int, bytes]], now: float) -> None:
        """Take into memory what was read from the disk, in the order of the rows."""
        # What is open is older than what was on disk alone.
        lane.close_open()
        estimate = _share(lane, len(rows))
        self.pending_bytes += sum(len(item) for _, item in rows) - estimate
        self._add_on_disk(lane, -len(rows), -estimate)
        self.active[lane] = None
        at = 0
        while at < len(rows):
            batch = Batch(lane, [], now)
            batch.is_from_disk = True
            for row, item in rows[at : at + self._policy.max_events]:
                if batch.items and batch.size + len(item) + 1 > lane.max_bytes:
                    break
                batch.items.append(item)
                batch.ids.append(row)
                batch.size += len(item) + 1
            at += len(batch.items)
            batch.barriers = [(barrier, min(covered, len(batch.items))) for barrier, covered in lane.disk_barriers]
            lane.disk_barriers = _without_first(lane.disk_barriers, len(batch.items))
            lane.ready.append(batch)

    def barrier(self) -> FlushBarrier:
        """Make everything accepted so far due at once, and a count of what becomes of it."""
        barrier = FlushBarrier()
        for lane in self.active:
            for batch in lane.batches():
                batch.is_due = True
                batch.barriers.append((barrier, len(batch.items)))
                barrier.pending += len(batch.items)
        for lane in self.lanes_on_disk():
            lane.disk_barriers.append((barrier, lane.on_disk))
            barrier.pending += lane.on_disk
        return barrier

    def forget(self, barrier: FlushBarrier) -> None:
        """Count for this barrier no longer: nobody waits for it."""
        for lane in self.active:
            for batch in lane.batches():
                batch.barriers = [mark for mark in batch.barriers if mark[0] is not barrier]
        for lane in self.lanes_on_disk():
            lane.disk_barriers = [mark for mark in lane.disk_barriers if mark[0] is not barrier]

    def rows_missing(self, lane: Lane, records: int, reason: DropReason) -> Loss:
        """Count as lost the oldest records that a lane should have on disk, which are not there."""
        return self._forget_on_disk(lane, records, _share(lane, records), reason)

    def evict_on_disk(self, lane: Lane, records: int) -> Eviction:
        """Count the oldest records that a lane has on disk alone as dropped for want of room."""
        eviction = Eviction(lane.code, lane.disk_from, records, _share(lane, records))
        self._forget_on_disk(lane, records, eviction.size, DropReason.QUEUE_FULL)
        self.bytes_being_freed += eviction.size
        return eviction

    def rows_loaded(self, lane: Lane, rows: Sequence[tuple[int, bytes]], now: float) -> list[Loss]:
        """Take in what was read from the disk, but for what was dropped since somebody asked for it.

        Returns:
            What was dropped; it has been counted.
        """
        lane.is_loading = False
        doomed, losses = lane.pending_eviction, []
        if doomed is not None and not rows:
            # Somebody else has taken them out.
            self.bytes_being_freed -= doomed.size
            doomed.count = doomed.size = 0
        elif doomed is not None:
            gone, rows = rows[: doomed.count], rows[doomed.count :]
            size = doomed.size * len(gone) // doomed.count
            doomed.count -= len(gone)
            doomed.size -= size
            self.settled_rows.append(SettledRows([row for row, _ in gone], size))
            losses.append(Loss(kind=lane.kind, reason=DropReason.QUEUE_FULL, items=[item for _, item in gone]))
        if rows:
            self.load_batch(lane, rows, now)
        return losses

    def _forget_on_disk(self, lane: Lane, records: int, size: int, reason: DropReason) -> Loss:
        self.pending -= records
        self.pending_bytes -= size
        self._add_on_disk(lane, -records, -size)
        self.count_loss(reason, records)
        for barrier, covered in lane.disk_barriers:
            part = min(covered, records)
            barrier.pending -= part
            barrier.losses[reason.value] = barrier.losses.get(reason.value, 0) + part
        lane.disk_barriers = _without_first(lane.disk_barriers, records)
        return Loss(kind=lane.kind, reason=reason, items=(), count_only=records)

    def charge_write(self, size: int) -> None:
        """Count a record that is on its way to the disk."""
        self.unwritten += 1
        self.unwritten_bytes += size

    def may_be_sent(self, lane: Lane) -> bool:
        """Whether the first batch of a lane is on disk, as it must be.

        While the disk fails, what is there of a batch goes without the rest.
        """
        first = lane.ready[0]
        if not first.ids or lane.is_written(first.ids[-1]):
            return True
        if not self.is_disk_failing or not lane.is_written(first.ids[0]):
            return False
        at = next(at for at, row in enumerate(first.ids) if not lane.is_written(row))
        lane.ready[0], rest = first.partition(range(at))
        lane.ready.insert(1, rest)
        return True

    def written(self, entries: Sequence[PendingWrite], used_bytes: int, freed: int) -> None:
        """A group is on disk: what it holds may be sent.

        Args:
            entries: what it holds.
            used_bytes: what is in use of the file now.
            freed: the part of `freeing` that has been given back.
        """
        self._discharge_write(entries)
        for entry in entries:
            lane = entry.lane
            lane.written_to = entry.row
            if lane.unwritten and entry.row >= lane.unwritten_from:
                lane.unwritten -= 1
        self.disk_used, self.bytes_being_freed = used_bytes, self.bytes_being_freed - freed
        self.is_disk_full = self.is_disk_failing = False

    def not_written(self, *, full: bool) -> None:
        """A group is not on disk."""
        self.is_disk_full, self.is_disk_failing = full, True

    def _discharge_write(self, entries: Sequence[PendingWrite]) -> None:
        self.unwritten -= len(entries)
        self.unwritten_bytes -= sum(len(entry.item) for entry in entries)

    def undo_writes(self, entries: Sequence[PendingWrite], reason: DropReason | None) -> list[Loss]:
        """Records that could not be written: lost for this reason or, without one, never accepted."""
        self._discharge_write(entries)
        losses: list[Loss] = []
        by_lane: dict[Lane, dict[int, bytes]] = {}
        for entry in entries:
            by_lane.setdefault(entry.lane, {})[entry.row] = entry.item
        for lane, rows in by_lane.items():
            for batch in [batch for batch in lane.batches() if batch.ids and not lane.is_written(batch.ids[-1])]:
                gone, rest = batch.partition({at for at, row in enumerate(batch.ids) if row in rows})
                if not gone.items:
                    continue
                for row in gone.ids:
                    del rows[row]
                # Nothing of it is on disk.
                gone.ids.clear()
                lane.replace(batch, rest)
                if reason is None:
                    self._unaccept(gone)
                else:
                    losses.append(self.record_loss(gone, reason))
            # What is in neither place was dropped while it was on its way.
            alone = [item for row, item in rows.items() if lane.unwritten and row >= lane.unwritten_from]
            if alone:
                lane.unwritten -= len(alone)
                losses.extend(self._retract_on_disk(lane, alone, reason))
        return losses

    def _unaccept(self, batch: Batch) -> None:
        self.release(batch)
        self.accepted -= len(batch.items)
        for barrier, covered in batch.barriers:
            barrier.pending -= covered

    def _retract_on_disk(self, lane: Lane, items: list[bytes], reason: DropReason | None) -> list[Loss]:
        # Something is left of the estimate for those that stay.
        size = min(sum(map(len, items)), lane.on_disk_bytes - (lane.on_disk - len(items)))
        self.pending -= len(items)
        self.pending_bytes -= size
        self._add_on_disk(lane, -len(items), -size)
        for at, (barrier, covered) in enumerate(lane.disk_barriers):
            # They are the newest: a barrier that began before they came does not wait for them.
            if part := max(0, covered - lane.on_disk):
                barrier.pending -= part
                if reason is not None:
                    barrier.losses[reason.value] = barrier.losses.get(reason.value, 0) + part
                lane.disk_barriers[at] = barrier, covered - part
        if reason is None:
            self.accepted -= len(items)
            return []
        self.count_loss(reason, len(items))
        return [Loss(kind=lane.kind, reason=reason, items=items)]


def _share(lane: Lane, records: int) -> int:
    """Estimated size of some of the records that a lane has on disk alone."""
    return lane.on_disk_bytes * records // lane.on_disk if lane.on_disk else 0


def _without_first(marks: list[tuple[FlushBarrier, int]], records: int) -> list[tuple[FlushBarrier, int]]:
    return [(barrier, covered - records) for barrier, covered in marks if covered > records]
