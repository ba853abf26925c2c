"""Spool rows of one lane: which are written, and which are only on disk."""

from __future__ import annotations

from dataclasses import replace

from .._model.records import DropReason
from .._spool.messages import SEQUENCE_BITS, Eviction
from .batch import Barriers, FlushBarrier


class LaneRows:
    """Spool rows of one lane.

    Attributes:
        last_row: newest row number of this client: the lane's code, then a sequence number.
        written_to: newest row that has been committed.
        records: number of records that are only on disk; they come after all records in memory.
        size: estimated bytes of the records that are only on disk.
        first_row: first row of these records that this client wrote, or 0.
        unwritten: number of these records that are not committed yet. They are the newest ones.
        unwritten_from: first row that was counted in `unwritten` since `unwritten` was last 0.
        is_loading: the writer thread is reading rows for this lane.
        pending_eviction: rows dropped while they were being read, to be discarded when they arrive.
        barriers: flushes that wait for the first records on disk.
    """

    __slots__ = (
        "_code",
        "_trials",
        "barriers",
        "first_row",
        "is_loading",
        "last_row",
        "newest_on_disk",
        "pending_eviction",
        "records",
        "size",
        "unwritten",
        "unwritten_from",
        "written_to",
    )

    def __init__(self, code: int) -> None:
        self._code = code
        self.last_row = self.written_to = code << SEQUENCE_BITS
        self.records = self.size = self.first_row = 0
        self.unwritten = self.unwritten_from = self.newest_on_disk = 0
        self.is_loading = False
        self.pending_eviction: Eviction | None = None
        self.barriers: Barriers = []
        # Batches of inherited rows whose first request is still to be noted on disk.
        self._trials = 0

    def begin_row(self) -> None:
        """Allocate the next row number."""
        self.last_row += 1

    def is_written(self, row: int) -> bool:
        """Return whether a row is committed. The rows of other clients always are."""
        return not self.written_to < row < (self._code + 1) << SEQUENCE_BITS

    def mark_written(self, row: int) -> None:
        """Note that the rows up to this one are committed."""
        self.written_to = row
        if self.unwritten and row >= self.unwritten_from:
            self.unwritten -= 1

    def keep_on_disk(self) -> None:
        """Keep the newest row on disk only."""
        if not self.first_row:
            self.first_row = self.last_row
        if not self.unwritten:
            self.unwritten_from = self.last_row
        self.unwritten += 1
        self.newest_on_disk = self.last_row

    def snapshot(self) -> tuple[int, ...]:
        """Return the values that `add` and `keep_on_disk` change."""
        return self.records, self.size, self.first_row, self.unwritten, self.unwritten_from, self.newest_on_disk

    def restore(self, values: tuple[int, ...]) -> None:
        """Undo `add` and `keep_on_disk`."""
        self.records, self.size, self.first_row, self.unwritten, self.unwritten_from, self.newest_on_disk = values

    def cancel_unwritten(self, count: int) -> None:
        """Forget rows that were to be kept on disk only and could not be written."""
        self.unwritten -= count

    def add(self, records: int, size: int) -> int:
        """Change the number and the size of the records that are only on disk.

        Returns:
            The error of the size estimate, which is known once no record is left; otherwise 0.
        """
        self.records += records
        self.size += size
        if self.records:
            return 0
        error, self.size, self.first_row = self.size, 0, 0
        return error

    def share(self, records: int) -> int:
        """Return the estimated size of this number of records."""
        return self.size * records // self.records if self.records else 0

    def set_loading(self, *, is_loading: bool) -> None:
        """Note that the writer thread was asked to read rows, or that they have arrived."""
        self.is_loading = is_loading

    def defer_eviction(self, eviction: Eviction) -> None:
        """Evict rows once the current reading has ended."""
        if self.pending_eviction is None:
            self.pending_eviction = eviction
        else:
            self.pending_eviction.merge(eviction)

    def reduce_eviction(self, count: int, size: int) -> None:
        """Remove rows that have arrived from the pending eviction."""
        if eviction := self.pending_eviction:
            self.pending_eviction = replace(eviction, count=eviction.count - count, size=eviction.size - size)

    def take_eviction(self) -> Eviction | None:
        """Return the pending eviction and clear it."""
        eviction, self.pending_eviction = self.pending_eviction, None
        return eviction

    def restart_in_new_file(self) -> None:
        """Note that only unwritten rows are left, as the spool has a new file."""
        if self.unwritten:
            # They come after everything that is in memory.
            self.first_row = max(self.unwritten_from, self.written_to + 1)

    def add_barrier(self, barrier: FlushBarrier) -> None:
        """Have a barrier wait for all records on disk."""
        self.barriers.append((barrier, self.records))
        barrier.expect(self.records)

    def remove_barrier(self, barrier: FlushBarrier) -> None:
        """Stop counting for a barrier."""
        self.barriers = [entry for entry in self.barriers if entry[0] is not barrier]

    def extend_barriers(self, records: int) -> None:
        """Count older records that another client left: every barrier waits for them as well."""
        for barrier, _ in self.barriers:
            barrier.expect(records)
        self.barriers = [(barrier, covered + records) for barrier, covered in self.barriers]

    def expect_trials(self, batches: int) -> None:
        """Put the next inherited batches on trial: those that the ended process was sending are among them."""
        self._trials = batches

    def is_next_on_trial(self, row: int) -> bool:
        """Return whether a batch that begins with this row is on trial. Count it."""
        if not self._trials or row < (self._code + 1) << SEQUENCE_BITS:
            return False
        self._trials -= 1
        return True

    def take_barriers(self, records: int) -> Barriers:
        """Return the barriers of the oldest records, which leave the disk."""
        taken = [(barrier, min(covered, records)) for barrier, covered in self.barriers]
        self.barriers = [(barrier, covered - records) for barrier, covered in self.barriers if covered > records]
        return taken

    def retract_newest(self, reason: DropReason | None) -> None:
        """Settle the barriers of the newest records, which have just been removed: lost, or never accepted."""
        for at, (barrier, covered) in enumerate(self.barriers):
            # A barrier that is older than these records does not wait for them.
            if part := max(0, covered - self.records):
                if reason is None:
                    barrier.expect(-part)
                else:
                    barrier.settle(part, reason)
                self.barriers[at] = barrier, covered - part
