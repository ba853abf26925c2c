"""Accounting of the spool: which records are written, which are only on disk, and how much room is left there.

Every record of a client with a spool is written to it in a commit group that many callers share. It may be sent only
after that commit. A record also stays in memory while memory has room. Later records of the lane are only on disk until
the lane runs low and loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import ceil, isqrt
from typing import Final, NamedTuple

from .._encoding.identity_records import identity_kind
from .._model.config import BatchPolicy
from .._model.records import DropReason, Loss
from .._spool.messages import Eviction, PendingWrite, SettledRows
from .accounting import Accounting
from .batch import Batch, FlushBarrier
from .lane_rows import LaneRows
from .lanes import Lane

# Records of a backlog on disk that are held in memory: enough to keep every request busy while more are read.
WINDOW_RECORDS: Final = 20_000
WINDOW_BYTES: Final = 16 * 1024 * 1024
# Measured: a row and its share of half-empty pages take about this much more than the record itself.
_ROW_OVERHEAD: Final = 1.125
# A process that ends leaves about as many undelivered batches as it had requests; twice as many are put on trial.
_TRIALS_PER_REQUEST: Final = 2


class SpoolLimits(NamedTuple):
    """Bounds on disk; see `SqliteSpool`."""

    max_bytes: int
    max_records: int | None


class _RowsByLane(dict[Lane, LaneRows]):
    """Rows of each lane. A new lane has none."""

    def __missing__(self, lane: Lane) -> LaneRows:
        rows = self[lane] = LaneRows(lane.code)
        return rows


class DiskBacklog:
    """Counts the records that are in the spool, and those on their way there.

    Args:
        policy: bounds in memory.
        limits: bounds on disk.
        accounting: counters of the buffer.

    Attributes:
        records: number of records that are only on disk.
        unwritten: number of records on their way to the disk.
        settled: settled rows that the writer thread does not know yet.
        is_disk_full: the last commit failed because the disk had no room.
        is_refusing: as it has just failed so, no record is accepted until the next attempt is allowed.
    """

    def __init__(self, policy: BatchPolicy, limits: SpoolLimits, accounting: Accounting) -> None:
        self._policy = policy
        self._limits = limits
        self._accounting = accounting
        self._window = min(WINDOW_RECORDS, policy.max_pending_events), min(WINDOW_BYTES, policy.max_pending_bytes)
        self._rows = _RowsByLane()
        self.rows: Callable[[Lane], LaneRows] = self._rows.__getitem__
        """Returns the rows of a lane."""
        self.reset()

    def reset(self) -> None:
        """Forget every record."""
        self._rows.clear()
        self.records = self.unwritten = 0
        self._size = self.unwritten_bytes = 0
        self._used_bytes = self.bytes_being_freed = 0
        self.is_disk_full = self.is_refusing = self._is_disk_failing = False
        self._is_commit_awaited = False
        self.settled: list[SettledRows] = []
        self._has_suspects = False

    def lanes(self) -> list[Lane]:
        """Return the lanes with records that are only on disk."""
        return [lane for lane, rows in self._rows.items() if rows.records] if self.records else []

    def is_full(self, size: int) -> bool:
        """Return whether a record of this size does not fit."""
        limits, policy, coming = self._limits, self._policy, self.unwritten_bytes + size
        if self.is_refusing or self.unwritten >= policy.max_pending_events or coming > policy.max_pending_bytes:
            return True
        if limits.max_records is not None and self._accounting.pending >= limits.max_records:
            return True
        # As `_excess_bytes`, without a call: every record passes here.
        return self._used_bytes - self.bytes_being_freed + coming * _ROW_OVERHEAD > limits.max_bytes

    def has_no_room(self) -> bool:
        """Return whether the disk, or the file, had no room after the last commit."""
        return self.is_disk_full or self._excess_bytes(0) > 0

    def could_fit(self, size: int) -> bool:
        """Return whether a record of this size fits in an empty spool."""
        return size * _ROW_OVERHEAD <= self._limits.max_bytes

    def is_memory_full(self, size: int) -> bool:
        """Return whether a record of this size has no place in memory."""
        max_records, max_bytes = self._window
        in_memory = self._accounting.pending_bytes - self._size
        # A record larger than the window is kept if no other record is in memory.
        return self._accounting.pending - self.records >= max_records or (
            in_memory > 0 and in_memory + size > max_bytes
        )

    def can_make_room(self, size: int, in_flight: int, in_flight_bytes: int) -> bool:
        """Return whether a record of this size would fit if everything not in flight were dropped."""
        policy, limits = self._policy, self._limits
        coming = self.unwritten_bytes + size
        # Records on their way to the disk are not taken back: dropping them, or older ones, makes no room for this one.
        if self.is_disk_full or self.unwritten >= policy.max_pending_events or coming > policy.max_pending_bytes:
            return False
        if limits.max_records is not None and in_flight >= limits.max_records:
            return False
        return self._excess_bytes(size) <= self._accounting.pending_bytes - in_flight_bytes

    def _excess_bytes(self, size: int) -> int:
        """Return the bytes to drop before a record of this size fits on disk; negative if it fits."""
        coming = (self.unwritten_bytes + size) * _ROW_OVERHEAD
        return ceil(self._used_bytes - self.bytes_being_freed + coming - self._limits.max_bytes)

    def excess(self, lane: Lane, size: int) -> int:
        """Return how many records of a lane must be dropped from disk before a record of this size fits."""
        rows, max_records = self.rows(lane), self._limits.max_records
        held = rows.records - rows.unwritten
        if held <= 0:
            return 0
        too_large = self._excess_bytes(size)
        by_size = -(-too_large * rows.records // max(1, rows.size)) if too_large > 0 else 0
        too_many = 0 if max_records is None else self._accounting.pending + 1 - max_records
        return min(held, max(by_size, too_many, 0))

    def accept_if_room(self, count: int, size: int) -> bool:
        """Count records as accepted if they fit. Return whether they did."""
        if self.is_full(size):
            return False
        self._accounting.accept(count, size)
        return True

    def begin_write(self, lane: Lane, size: int) -> bool:
        """Count an accepted record that is on its way to the disk. Return whether it has no place in memory."""
        rows = self.rows(lane)
        rows.begin_row()
        self.unwritten += 1
        self.unwritten_bytes += size
        is_only_on_disk = bool(rows.records) or rows.is_loading or self.is_memory_full(size)
        if is_only_on_disk:
            before = self.records, self._size, rows.snapshot()
            try:
                self._add(rows, 1, size)
                rows.keep_on_disk()
            except BaseException:
                # Raised by a signal handler.
                self.records, self._size = before[:2]
                rows.restore(before[2])
                raise
        return is_only_on_disk

    def holds_newest(self, lane: Lane, row: int) -> bool:
        """Return whether the record of this row is completely accepted, if no later one was offered."""
        rows = self.rows(lane)
        if rows.last_row != row:
            return False
        return rows.newest_on_disk == row or any(
            batch.ids and batch.ids[-1] == row and len(batch.ids) == len(batch.items) for batch in lane.batches()
        )

    def correct(self, entries: Sequence[PendingWrite], loading: Collection[int]) -> None:
        """Correct the counters after an error has cut off a change.

        Args:
            entries: records on their way to the disk.
            loading: codes of the lanes whose records are being read.
        """
        self.unwritten, self.unwritten_bytes = len(entries), sum(len(entry.item) for entry in entries)
        for lane, rows in self._rows.items():
            if lane.code not in loading:
                rows.set_loading(is_loading=False)

    def written(self, entries: Sequence[PendingWrite], used_bytes: int, freed: int) -> bool:
        """Note that a group is committed: its records may be sent.

        Args:
            entries: records of the group.
            used_bytes: bytes of the file that are in use now.
            freed: bytes of settled and evicted rows that were removed with this commit.

        Returns:
            Whether the sender or a caller waits for a commit, so that it must be woken.
        """
        # A wake-up costs as much as the commit of one record.
        is_awaited = self._is_commit_awaited or freed > 0 or self.records > 0
        self._is_commit_awaited = False
        self._end_writes(entries)
        for entry in entries:
            self.rows(entry.lane).mark_written(entry.row)
        self._used_bytes, self.bytes_being_freed = used_bytes, self.bytes_being_freed - freed
        self.is_disk_full = self.is_refusing = self._is_disk_failing = False
        return is_awaited

    def await_commit(self) -> None:
        """Note that something can happen only after the next commit."""
        self._is_commit_awaited = True

    def not_written(self, *, full: bool) -> None:
        """Note that a commit failed, and whether the disk had no room."""
        self.is_disk_full = self.is_refusing = full
        self._is_disk_failing = True

    def allow_attempt(self) -> None:
        """Accept records again, so that the next commit tries whether the disk has room."""
        self.is_refusing = False

    def _end_writes(self, entries: Sequence[PendingWrite]) -> None:
        self.unwritten -= len(entries)
        self.unwritten_bytes -= sum([len(entry.item) for entry in entries])

    def undo_writes(self, entries: Sequence[PendingWrite], reason: DropReason | None) -> list[Loss]:
        """Remove records that could not be written: lost for this reason or, without one, never accepted."""
        self._end_writes(entries)
        losses: list[Loss] = []
        by_lane: dict[Lane, dict[int, bytes]] = {}
        for entry in entries:
            by_lane.setdefault(entry.lane, {})[entry.row] = entry.item
        for lane, items in by_lane.items():
            rows = self.rows(lane)
            for batch in [batch for batch in lane.batches() if batch.ids and not rows.is_written(batch.ids[-1])]:
                gone, rest = batch.partition({at for at, row in enumerate(batch.ids) if row in items})
                if not gone.items:
                    continue
                for row in gone.ids:
                    del items[row]
                lane.replace(batch, rest)
                if reason is None:
                    self._accounting.retract_batch(gone)
                else:
                    losses += [self._accounting.record_loss(part, reason) for part, _ in gone.split_by_kind()]
            # A record in neither place was evicted while it was being written.
            only_on_disk = [item for row, item in items.items() if rows.unwritten and row >= rows.unwritten_from]
            if only_on_disk:
                rows.cancel_unwritten(len(only_on_disk))
                losses.extend(self._retract(lane, only_on_disk, reason))
        return losses

    def _retract(self, lane: Lane, items: list[bytes], reason: DropReason | None) -> list[Loss]:
        rows = self.rows(lane)
        # Every record that stays keeps at least one byte of the estimate.
        size = min(sum(map(len, items)), rows.size - (rows.records - len(items)))
        if reason is None:
            self._accounting.retract(len(items), size)
        else:
            self._accounting.release(len(items), size)
            self._accounting.count_loss(reason, len(items))
        self._add(rows, -len(items), -size)
        rows.retract_newest(reason)
        return [] if reason is None else [Loss(kind=lane.kind, reason=reason, items=items)]

    def _add(self, rows: LaneRows, records: int, size: int) -> None:
        self.records += records
        error = rows.add(records, size)
        self._size += size - error
        if error:
            # The sizes of rows of other clients, and of rows that were dropped unread, are estimates.
            self._accounting.correct_bytes(-error)

    def take_over(self, lane: Lane, records: int, size: int) -> None:
        """Take over the records that another client left in the spool."""
        self._accounting.recover(records, size)
        rows = self.rows(lane)
        rows.expect_trials(_TRIALS_PER_REQUEST * lane.limit)
        self._add(rows, records, size)
        # They are older than the records that this client has only on disk.
        rows.extend_barriers(records)

    def take_over_lost(self, lane: Lane, items: list[bytes], reason: DropReason, message: str) -> Loss:
        """Count records that another client left in the middle of a request and that must not be sent again."""
        size = sum(map(len, items))
        self._accounting.recover(len(items), size)
        self._accounting.release(len(items), size)
        self._accounting.count_loss(reason, len(items))
        return Loss(kind=lane.kind, reason=reason, items=items, message=message)

    def should_load(self, lane: Lane) -> bool:
        """Return whether records of this lane should be read from disk now."""
        rows = self.rows(lane)
        if rows.records <= rows.unwritten or rows.is_loading or len(lane.ready) > 1:
            return False
        return not lane.ready or not self.is_memory_full(0)

    def rows_loaded(
        self, lane: Lane, loaded: Sequence[tuple[int, bytes]], now: float, suspects: Mapping[int, int]
    ) -> list[Loss]:
        """Put records that were read from disk into memory, except those evicted in the meantime.

        Args:
            lane: lane of the records.
            loaded: rows and records.
            now: monotonic seconds.
            suspects: level of suspicion of those rows that may have ended a process; see `_spool/trials.py`.

        Returns:
            The evicted records. They have been counted before.
        """
        rows = self.rows(lane)
        rows.set_loading(is_loading=False)
        eviction, losses = rows.pending_eviction, []
        if eviction is not None and not loaded:
            # Another process has removed the rows.
            self.bytes_being_freed -= eviction.size
            rows.reduce_eviction(eviction.count, eviction.size)
        elif eviction is not None:
            gone, loaded = loaded[: eviction.count], loaded[eviction.count :]
            size = eviction.size * len(gone) // eviction.count
            rows.reduce_eviction(len(gone), size)
            self.settled.append(SettledRows([row for row, _ in gone], size))
            losses.append(Loss(kind=lane.kind, reason=DropReason.QUEUE_FULL, items=[item for _, item in gone]))
        if loaded:
            self._load_batches(lane, loaded, now, suspects)
        return losses

    def _load_batches(
        self, lane: Lane, loaded: Sequence[tuple[int, bytes]], now: float, suspects: Mapping[int, int]
    ) -> None:
        rows = self.rows(lane)
        # The open batch is older than the records that were only on disk.
        lane.close_open()
        estimate = rows.share(len(loaded))
        self._accounting.correct_bytes(sum(len(item) for _, item in loaded) - estimate)
        self._add(rows, -len(loaded), -estimate)
        at = 0
        crowd = sum(1 for level in suspects.values() if level == 1)
        self._has_suspects = self._has_suspects or bool(suspects)
        while at < len(loaded):
            first = loaded[at][0]
            level = suspects.get(first, 0)
            largest = (self._policy.max_events, isqrt(max(0, crowd - 1)) + 1, 1)[min(level, 2)]
            batch = Batch(lane, [], now, is_from_disk=True, route=lane.route(identity_kind(loaded[at][1])))
            for row, item in loaded[at : at + min(largest, self._policy.max_events)]:
                is_full = batch.items and batch.size + len(item) + 1 > lane.max_bytes
                if is_full or suspects.get(row, 0) != level or lane.route(identity_kind(item)) is not batch.route:
                    break
                batch.append_row(row, item)
            at += len(batch.items)
            batch.barriers.extend(rows.take_barriers(len(batch.items)))
            if level or rows.is_next_on_trial(first):
                batch.begin_trial(level)
            lane.ready.append(batch)

    def lanes_to_poll(self, active: Collection[Lane], now: float) -> list[Lane]:
        """Return the active lanes that may send something now. A suspect is sent while nothing else is."""
        if not self._has_suspects:
            return [*active]
        suspects = [batch for lane in active for batch in lane.batches() if batch.suspicion]
        self._has_suspects = bool(suspects)
        if any(batch in batch.lane.leased for batch in suspects):
            return []
        heads = [batch for batch in suspects if batch is batch.lane.head and batch.lane.paused_until <= now]
        heads = [batch for batch in heads if not batch.must_wait()]
        if not heads:
            return [*active]
        first = max(heads, key=lambda batch: batch.suspicion)
        return [] if any(lane.leased for lane in active) else [first.lane]

    def rows_missing(self, lane: Lane, records: int, reason: DropReason) -> Loss:
        """Count the oldest records of a lane as lost: they are not on disk any more."""
        return self._forget(lane, records, self.rows(lane).share(records), reason)

    def evict(self, lane: Lane, records: int) -> Eviction:
        """Drop the oldest records that a lane has only on disk. The rows are still to be removed."""
        rows = self.rows(lane)
        eviction = Eviction(lane.code, rows.first_row, records, rows.share(records))
        self._forget(lane, records, eviction.size, DropReason.QUEUE_FULL)
        self.bytes_being_freed += eviction.size
        return eviction

    def _forget(self, lane: Lane, records: int, size: int, reason: DropReason) -> Loss:
        rows = self.rows(lane)
        self._accounting.release(records, size)
        self._accounting.count_loss(reason, records)
        self._add(rows, -records, -size)
        for barrier, covered in rows.take_barriers(records):
            barrier.settle(covered, reason)
        return Loss(kind=lane.kind, reason=reason, items=(), count_only=records)

    def reopened(self) -> tuple[list[Loss], list[Eviction]]:
        """Count the records of a spool file that was replaced.

        Returns:
            Records that were only in the old file, and evictions that need not be made. Both have been counted.
        """
        losses, evictions = [], []
        for lane, rows in self._rows.items():
            if eviction := rows.take_eviction():
                self.bytes_being_freed -= eviction.size
                evictions.append(eviction)
            rows.set_loading(is_loading=False)
            if gone := rows.records - rows.unwritten:
                losses.append(self.rows_missing(lane, gone, DropReason.SPOOL_FAILED))
            rows.restart_in_new_file()
        return losses, evictions

    def mark_settled(self, batch: Batch, loss: Loss | None = None) -> None:
        """Have the rows of a batch removed from the spool, or kept as dead letters if there is a loss to keep."""
        size = batch.payload if loss is None else 0
        self.bytes_being_freed += size
        self.settled.append(SettledRows(batch.ids, size, loss))

    def may_be_sent(self, lane: Lane) -> bool:
        """Return whether the first ready batch of a lane is committed, as it must be.

        While the disk fails, the committed part of a batch is sent without the rest.
        """
        rows, first = self.rows(lane), lane.ready[0]
        if not first.ids or rows.is_written(first.ids[-1]):
            return True
        if not self._is_disk_failing or not rows.is_written(first.ids[0]):
            self.await_commit()
            return False
        at = next(at for at, row in enumerate(first.ids) if not rows.is_written(row))
        lane.ready[0], rest = first.partition(range(at))
        lane.ready.insert(1, rest)
        return True

    def add_barrier(self, barrier: FlushBarrier) -> None:
        """Have a barrier wait for all records that are only on disk."""
        for lane in self.lanes():
            self.rows(lane).add_barrier(barrier)

    def remove_barrier(self, barrier: FlushBarrier) -> None:
        """Stop counting for a barrier."""
        for lane in self.lanes():
            self.rows(lane).remove_barrier(barrier)
