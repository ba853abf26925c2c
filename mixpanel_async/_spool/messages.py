"""What passes between the queue and the thread that writes the spool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from .._model.errors import MixpanelException
from .._model.records import Kind, Loss

# States of a row: it may be sent twice, only once, or only once and its request has begun.
REPEATABLE: Final = 0
ONCE: Final = 1
SENDING: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the thread needs to know of `SqliteSpool` and the client."""

    path: Path
    max_bytes: int
    keep_dead: int
    wait: float
    fsync: bool
    erase: bool
    token: str = field(repr=False)
    at_least_once: bool


class Held(NamedTuple):
    """A row whose record is in memory, and whether a request with it is under way that must not be made twice."""

    number: int
    item: bytes
    is_sending: bool


class Group:
    """Records that share a commit."""

    __slots__ = ("_when_done", "entries", "error", "is_done", "is_noted", "size", "watch")

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.size = 0
        self.is_done = False
        self.is_noted = True
        """Whether the marks that were asked for with it are on disk, too."""
        self.watch: Any = None
        """For whoever waits."""
        self.error: MixpanelException | None = None
        self._when_done: list[Callable[[], None]] = []

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have something called, in the journal's thread, once the group is on disk or has failed."""
        self._when_done.append(callback)
        if self.is_done:
            callback()

    def finish(self, error: MixpanelException | None = None, *, is_noted: bool = True) -> None:
        self.error = error
        self.is_noted = is_noted
        self.is_done = True
        for callback in self._when_done:
            callback()


@dataclass(slots=True)
class Work:
    """What has been asked for since the thread last looked."""

    group: Group
    ended: list[Ended] = field(default_factory=list)
    marks: list[tuple[Sequence[int], int]] = field(default_factory=list)
    loads: list[tuple[int, int]] = field(default_factory=list)
    """Lane and first own row on disk alone."""
    evictions: list[Eviction] = field(default_factory=list)

    def evict(self, eviction: Eviction) -> None:
        for earlier in self.evictions:
            if (earlier.lane, earlier.own) == (eviction.lane, eviction.own):
                earlier.absorb(eviction)
                return
        self.evictions.append(eviction)

    @property
    def is_empty(self) -> bool:
        return not (self.group.entries or self.ended or self.marks or self.loads or self.evictions)


class Reports(Protocol):
    """Who is told, in the journal's thread."""

    def written(self, entries: Sequence[Entry], used_bytes: int, freed: int) -> None:
        """A group and all that was asked with it is on disk."""

    def not_written(self, entries: Sequence[Entry], *, full: bool) -> list[Entry]:
        """A group is not on disk. Returns what is to be tried again."""

    def given_up(self, entries: Sequence[Entry]) -> None:
        """These were never written, and will not be."""

    def loaded(self, lane: int, rows: list[tuple[int, bytes]], spoiled: int) -> None:
        """All that was there has been read, up to a limit; so many of it were no records."""

    def failed(self, words: str) -> None:
        """The spool could not be used, for the reason that these words tell."""

    def refusal(self, error: MixpanelException, *, full: bool) -> MixpanelException | None:
        """What those who wait for a group that was not written are told."""

    def evicted(self, lane: int, items: list[bytes]) -> None:
        """Rows were dropped for want of room."""

    def adopted(self, lanes: dict[int, tuple[int, int]], unsure: dict[int, list[bytes]]) -> None:
        """Records and bytes that others left, by lane; and what of theirs may have been applied already."""

    def held(self) -> tuple[list[Held], set[int]]:
        """The rows that are on disk and in memory; and those of records that have ended and wait to be taken out."""

    def reopened(self) -> None:
        """The file is another one: what was in the old one alone is gone, or comes back as left by others."""


class Writer(Protocol):
    """The journal, as the queue sees it."""

    mutex: AbstractContextManager[bool]

    @property
    def group(self) -> Group: ...

    def ring(self) -> None: ...

    def ask(self, change: Callable[[Work], None]) -> Group: ...

    def begin(self) -> Group: ...

    def ended_rows(self) -> set[int]: ...

    def drop_readings(self) -> list[Eviction]: ...

    def close(self, timeout: float) -> bool: ...

    def forget(self) -> None: ...


SEQUENCE_BITS: Final = 36

LANE_CODES: Final = {
    (Kind.EVENTS, False): 0,
    (Kind.IMPORTS, False): 1,
    (Kind.PEOPLE, False): 2,
    (Kind.GROUPS, False): 3,
    (Kind.IMPORTS, True): 4,
    (Kind.IDENTITY, False): 5,
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
    own: int
    count: int
    size: int

    def absorb(self, later: Eviction) -> None:
        """Make one of two that follow each other."""
        self.own = self.own or later.own
        self.count += later.count
        self.size += later.size


class Ended(NamedTuple):
    """Rows of the spool whose records have ended: taken out, and kept as dead letters if there is a loss to tell."""

    ids: list[int]
    size: int
    loss: Loss | None = None


class Entry(NamedTuple):
    """A record on its way to disk. `lane` is opaque to the spool: the buffer that made the entry reads it back."""

    lane: Any
    row: int
    item: bytes
    is_awaited: bool


# Records of one reading; an eviction on disk leaves as many alone, as they may be on their way into memory.
LOAD_RECORDS: Final = 2_000
