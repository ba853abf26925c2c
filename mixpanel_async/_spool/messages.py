"""What passes between the queue and the thread that writes the spool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from .._model.errors import MixpanelException
from .._model.records import Loss, RecordKind

# States of a row: it may be sent twice, only once, or only once and its request has begun.
REPEATABLE: Final = 0
ONCE: Final = 1
SENDING: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSettings:
    """What the thread needs to know of `SqliteSpool` and the client."""

    path: Path
    max_bytes: int
    keep_dead: int
    timeout: float
    fsync: bool
    erase: bool
    token: str = field(repr=False)
    at_least_once: bool


class RowInMemory(NamedTuple):
    """A row whose record is in memory, and whether a request with it is under way that must not be made twice."""

    number: int
    item: bytes
    is_sending: bool


class CommitGroup:
    """Records that share a commit."""

    __slots__ = ("_when_done", "entries", "error", "is_done", "marks_written", "size", "waiter")

    def __init__(self) -> None:
        self.entries: list[PendingWrite] = []
        self.size = 0
        self.is_done = False
        self.marks_written = True
        """Whether the marks that were asked for with it are on disk, too."""
        self.waiter: Any = None
        """For whoever waits."""
        self.error: MixpanelException | None = None
        self._when_done: list[Callable[[], None]] = []

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have something called, in the journal's thread, once the group is on disk or has failed."""
        self._when_done.append(callback)
        if self.is_done:
            callback()

    def finish(self, error: MixpanelException | None = None, *, marks_written: bool = True) -> None:
        self.error = error
        self.marks_written = marks_written
        self.is_done = True
        for callback in self._when_done:
            callback()


@dataclass(slots=True)
class PendingWork:
    """What has been asked for since the thread last looked."""

    group: CommitGroup
    settled: list[SettledRows] = field(default_factory=list)
    marks: list[tuple[Sequence[int], int]] = field(default_factory=list)
    loads: list[tuple[int, int]] = field(default_factory=list)
    """Lane and first own row on disk alone."""
    evictions: list[Eviction] = field(default_factory=list)

    def evict(self, eviction: Eviction) -> None:
        for earlier in self.evictions:
            if (earlier.lane, earlier.first_own_row) == (eviction.lane, eviction.first_own_row):
                earlier.merge(eviction)
                return
        self.evictions.append(eviction)

    @property
    def is_empty(self) -> bool:
        return not (self.group.entries or self.settled or self.marks or self.loads or self.evictions)


class WriterListener(Protocol):
    """Who is told, in the journal's thread."""

    def on_written(self, entries: Sequence[PendingWrite], used_bytes: int, freed: int) -> None:
        """A group and all that was asked with it is on disk."""

    def on_write_failed(self, entries: Sequence[PendingWrite], *, full: bool) -> list[PendingWrite]:
        """A group is not on disk. Returns what is to be tried again."""

    def on_discarded(self, entries: Sequence[PendingWrite]) -> None:
        """These were never written, and will not be."""

    def on_loaded(self, lane: int, rows: list[tuple[int, bytes]], unreadable: int) -> None:
        """All that was there has been read, up to a limit; so many of it were no records."""

    def on_error(self, message: str) -> None:
        """The spool could not be used, for the reason that these words tell."""

    def error_for_callers(self, error: MixpanelException, *, full: bool) -> MixpanelException | None:
        """What those who wait for a group that was not written are told."""

    def on_evicted(self, lane: int, items: list[bytes]) -> None:
        """Rows were dropped for want of room."""

    def on_taken_over(self, lanes: dict[int, tuple[int, int]], uncertain: dict[int, list[bytes]]) -> None:
        """Records and bytes that others left, by lane; and what of theirs may have been applied already."""

    def rows_in_memory(self) -> tuple[list[RowInMemory], set[int]]:
        """The rows that are on disk and in memory; and those of records that have ended and wait to be taken out."""

    def on_reopened(self) -> None:
        """The file is another one: what was in the old one alone is gone, or comes back as left by others."""


class WriterProtocol(Protocol):
    """The journal, as the queue sees it."""

    group_lock: AbstractContextManager[bool]

    @property
    def group(self) -> CommitGroup: ...

    def wake(self) -> None: ...

    def submit(self, change: Callable[[PendingWork], None]) -> CommitGroup: ...

    def start(self) -> CommitGroup: ...

    def rows_to_delete(self) -> set[int]: ...

    def discard_reads(self) -> list[Eviction]: ...

    def close(self, timeout: float) -> bool: ...

    def reset_after_fork(self) -> None: ...


SEQUENCE_BITS: Final = 36

LANE_CODES: Final = {
    (RecordKind.EVENTS, False): 0,
    (RecordKind.IMPORTS, False): 1,
    (RecordKind.PEOPLE, False): 2,
    (RecordKind.GROUPS, False): 3,
    (RecordKind.IMPORTS, True): 4,
    (RecordKind.IDENTITY, False): 5,
}
"""How a spool names a lane: its kind, and whether a project secret signs it."""


@dataclass(slots=True, eq=False, repr=False)
class Eviction:
    """The oldest records that a lane had on disk alone and that were dropped for want of room.

    Args:
        lane: its code.
        own: the first row on disk alone that was this client's own.
        count: how many.
        size: their estimated size.
    """

    lane: int
    first_own_row: int
    count: int
    size: int

    def merge(self, later: Eviction) -> None:
        """Make one of two that follow each other."""
        self.first_own_row = self.first_own_row or later.first_own_row
        self.count += later.count
        self.size += later.size


class SettledRows(NamedTuple):
    """Rows of the spool whose records have ended: taken out, and kept as dead letters if there is a loss to tell."""

    ids: list[int]
    size: int
    loss: Loss | None = None


class PendingWrite(NamedTuple):
    """A record on its way to disk. `lane` is opaque to the spool: the buffer that made the entry reads it back."""

    lane: Any
    row: int
    item: bytes
    is_awaited: bool


# Records of one reading; an eviction on disk leaves as many alone, as they may be on their way into memory.
LOAD_RECORDS: Final = 2_000
