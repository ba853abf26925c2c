"""Types exchanged between the queue and the thread that writes the spool.

The queue appends `PendingWrite` entries to a `CommitGroup` and other changes to `PendingWork`. The thread commits them
and reports to a `WriterListener`. This module does not import sqlite3, so that clients without a spool do not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from .._model.errors import MixpanelException
from .._model.records import DropReason, Loss, RecordKind

# States of a row: repeatable; must not be sent twice; must not be sent twice and its request has started.
REPEATABLE: Final = 0
ONCE: Final = 1
SENDING: Final = 2

# A row id holds owner, lane and sequence; the sequence takes the low bits.
SEQUENCE_BITS: Final = 36

LANE_CODES: Final = {
    (RecordKind.EVENTS, False): 0,
    (RecordKind.IMPORTS, False): 1,
    (RecordKind.PEOPLE, False): 2,
    (RecordKind.GROUPS, False): 3,
    (RecordKind.IMPORTS, True): 4,
    (RecordKind.IDENTITY, False): 5,
}
"""Number of a lane in the file, by record kind and whether a project secret signs its requests."""

# Maximum records of one load. An eviction on disk skips as many, because a load may be reading them.
LOAD_RECORDS: Final = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """Settings of the writer thread, from `SqliteSpool` and the client."""

    path: Path
    max_bytes: int
    keep_dead: int
    timeout: float
    fsync: bool
    erase: bool
    token: str = field(repr=False)
    at_least_once: bool


class RowInMemory(NamedTuple):
    """Row on disk whose record is also in memory.

    `is_sending` is true while a request with the record is in flight and the record must not be sent twice.
    """

    number: int
    item: bytes
    is_sending: bool


class PendingWrite(NamedTuple):
    """Record to be written. `lane` is opaque to the spool: the buffer that made the entry reads it back."""

    lane: Any
    row: int
    item: bytes
    is_awaited: bool


class EndedRows(NamedTuple):
    """Records of an ended client that became dead letters when they were taken over."""

    lane: int
    reason: DropReason
    message: str
    items: list[bytes]


class SettledRows(NamedTuple):
    """Rows to delete because their records are settled. With a `loss`, they become dead letters."""

    ids: list[int]
    size: int
    loss: Loss | None = None


@dataclass(slots=True, eq=False, repr=False)
class Eviction:
    """Request to drop the oldest records that a lane has only on disk, because the spool is full.

    Args:
        lane: lane code.
        first_own_row: first row of this client that is only on disk.
        count: records to drop.
        size: estimated size of these records in bytes.
    """

    lane: int
    first_own_row: int
    count: int
    size: int

    def merge(self, later: Eviction) -> None:
        """Add the eviction that follows this one."""
        self.first_own_row = self.first_own_row or later.first_own_row
        self.count += later.count
        self.size += later.size

    def cancel(self) -> None:
        """Drop nothing."""
        self.count = self.first_own_row = 0


class CommitGroup:
    """Records that share one commit. Callers wait for the group, not for single records."""

    __slots__ = ("_when_done", "entries", "error", "is_done", "marks_written", "size", "waiter")

    def __init__(self) -> None:
        self.entries: list[PendingWrite] = []
        self.size = 0
        self.is_done = False
        self.marks_written = False
        """Whether the state marks requested with this group are on disk."""
        self.waiter: Any = None
        """Set by the waiting side; opaque to the spool."""
        self.error: MixpanelException | None = None
        self._when_done: list[Callable[[], None]] = []

    def add(self, entry: PendingWrite) -> None:
        """Append a record."""
        self.entries.append(entry)
        self.size += len(entry.item)

    def ends_with(self, entry: PendingWrite) -> bool:
        """Return whether this is the last record."""
        return bool(self.entries) and self.entries[-1] is entry

    def put_back(self, entries: Sequence[PendingWrite]) -> None:
        """Insert records of a failed commit in front."""
        self.entries[:0] = entries
        self.size += sum(len(entry.item) for entry in entries)

    def take_entries(self) -> list[PendingWrite]:
        """Remove and return the records, whose fate is decided. Hold the lock of the queue."""
        taken = [*self.entries]
        # In place: the writer thread may be about to write this list.
        self.entries.clear()
        return taken

    def set_waiter(self, waiter: Any) -> None:
        """Set the object on which callers wait for this group."""
        self.waiter = waiter

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` in the writer thread once the group is on disk or has failed."""
        self._when_done.append(callback)
        if self.is_done:
            callback()

    def finish(self, error: MixpanelException | None = None, *, marks_written: bool = True) -> None:
        """Set the result and run the callbacks. Nothing happens if there is a result."""
        if self.is_done:
            return
        self.error = error
        self.marks_written = marks_written
        self.is_done = True
        for callback in self._when_done:
            callback()


@dataclass(slots=True)
class PendingWork:
    """Changes requested for one commit."""

    group: CommitGroup
    settled: list[SettledRows] = field(default_factory=list)
    marks: list[tuple[Sequence[int], int]] = field(default_factory=list)
    """Rows and their new state."""
    trials: list[tuple[Sequence[int], float | None]] = field(default_factory=list)
    """Rows whose first request begins, at a time in monotonic seconds, or has ended (None)."""
    loads: list[tuple[int, int]] = field(default_factory=list)
    """Lane code and the first row of this client that is only on disk."""
    evictions: list[Eviction] = field(default_factory=list)

    def evict(self, eviction: Eviction) -> None:
        """Add an eviction, merged with an earlier one of the same lane and row."""
        for earlier in self.evictions:
            if (earlier.lane, earlier.first_own_row) == (eviction.lane, eviction.first_own_row):
                earlier.merge(eviction)
                return
        self.evictions.append(eviction)

    def take_settled(self, settled: list[SettledRows]) -> None:
        """Move all settled rows from a list into this work."""
        # No call between these two, so that no signal handler can run between them.
        self.settled += settled
        del settled[:]

    def put_back(self, failed: PendingWork, entries: Sequence[PendingWrite]) -> None:
        """Insert failed work in front, with the records in `entries` in place of the records of its group."""
        self.group.put_back(entries)
        self.settled[:0] = failed.settled
        self.marks[:0] = failed.marks
        self.trials[:0] = failed.trials
        self.loads[:0] = failed.loads
        later, self.evictions = self.evictions, failed.evictions
        for eviction in later:
            self.evict(eviction)

    def split_off_deletions(self) -> PendingWork:
        """Move deletions and marks into new work without records and loads."""
        work = PendingWork(CommitGroup(), self.settled, self.marks, [], [], self.evictions)
        self.settled, self.marks, self.evictions = [], [], []
        return work

    @property
    def has_only_records(self) -> bool:
        """Whether nothing but records is to be written."""
        return not (self.settled or self.marks or self.trials or self.loads or self.evictions)

    @property
    def is_empty(self) -> bool:
        return not self.group.entries and self.has_only_records


class WriterListener(Protocol):
    """Receiver of the writer's reports. All methods are called in the writer thread."""

    def on_written(self, group: CommitGroup | None, used_bytes: int, freed: int, dead_letters: int | None) -> None:
        """Note that a group and all changes requested with it are on disk. Take its records.

        Args:
            group: the group; None if only the size is reported.
            used_bytes: bytes of the file that are in use now.
            freed: bytes of settled and evicted rows that were removed.
            dead_letters: number of dead letters in the file; None if it was not counted.
        """

    def on_write_failed(self, group: CommitGroup, *, full: bool) -> list[PendingWrite]:
        """Note that a group was not written. Take its records and return those to retry."""

    def on_discarded(self, groups: Sequence[CommitGroup]) -> None:
        """Note that the spool was closed. Take the records of these groups, which will never be written."""

    def on_loaded(self, lane: int, rows: list[tuple[int, bytes]], unreadable: int, suspects: Mapping[int, int]) -> None:
        """Take the rows of a lane loaded from disk, up to a limit.

        Args:
            lane: lane code.
            rows: the readable rows.
            unreadable: number of damaged rows.
            suspects: level of suspicion of those rows that may have ended a process; see `_spool/trials.py`.
        """

    def on_error(self, message: str) -> None:
        """Note that the spool could not be used."""

    def on_attempt_allowed(self) -> None:
        """Note that some time has passed since the disk was full, so the next record may try whether it has room."""

    def error_for_callers(self, error: MixpanelException, *, full: bool, has_records: bool) -> MixpanelException | None:
        """Return the error to raise in callers that wait for a group that was not written; None to raise nothing."""

    def on_evicted(self, lane: int, items: list[bytes]) -> None:
        """Note that records were dropped because the spool is full."""

    def on_taken_over(self, lanes: dict[int, tuple[int, int]], ended: Sequence[EndedRows]) -> None:
        """Take over records of ended clients.

        Args:
            lanes: number of records and bytes by lane code.
            ended: records that are not sent again.
        """

    def rows_in_memory(self) -> tuple[list[RowInMemory], set[int]]:
        """Return the rows that are on disk and in memory, and the rows that are settled but not deleted yet."""

    def on_reopened(self) -> None:
        """Note that the file was replaced. Rows only on disk are gone, or return as taken over."""


class WriterProtocol(Protocol):
    """Writer thread as seen by the queue. `SpoolWriter` documents the methods."""

    group_lock: AbstractContextManager[bool]

    @property
    def group(self) -> CommitGroup: ...

    def wake(self, group: CommitGroup | None = None) -> None: ...

    def measure(self) -> None: ...

    def submit(self, change: Callable[[PendingWork], None]) -> CommitGroup: ...

    def start(self) -> CommitGroup: ...

    def rows_to_delete(self) -> set[int]: ...

    def pending(self) -> tuple[list[PendingWrite], set[int]]: ...

    def discard_reads(self) -> list[Eviction]: ...

    def close(self, timeout: float) -> bool: ...

    def give_up(self) -> None: ...

    def reset_after_fork(self) -> None: ...
