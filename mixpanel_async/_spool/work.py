"""What passes between the queue and the thread that writes the spool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from .._backlog import Entry
from .._errors import MixpanelException
from .._ledger import Ended

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
    token: str
    at_least_once: bool


class Group:
    """Records that share a commit.

    Args:
        number: greater than that of any group before it.
    """

    __slots__ = ("_when_done", "entries", "error", "is_done", "is_late", "number", "waiters")

    def __init__(self, number: int) -> None:
        self.number = number
        self.entries: list[Entry] = []
        self.is_done = self.is_late = False
        self.waiters: Any = None
        """For whoever waits: an event of their event loop."""
        self.error: MixpanelException | None = None
        self._when_done: list[Callable[[], None]] = []

    def when_done(self, callback: Callable[[], None]) -> None:
        """Have something called, in the journal's thread, once the group is on disk or has failed."""
        self._when_done.append(callback)
        if self.is_done:
            callback()

    def finish(self, error: MixpanelException | None = None) -> None:
        self.error = error
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
    evictions: list[tuple[int, int, int, int]] = field(default_factory=list)
    """Lane, first own row on disk alone, how many, estimated size."""

    @property
    def is_empty(self) -> bool:
        return not (self.group.entries or self.ended or self.marks or self.loads or self.evictions)


class Reports(Protocol):
    """Who is told, in the journal's thread."""

    def written(self, entries: Sequence[Entry], group: int, used_bytes: int, freed: int) -> None:
        """A group and all that was asked with it is on disk."""

    def not_written(self, entries: Sequence[Entry], *, full: bool) -> list[Entry]:
        """A group is not on disk. Returns what is to be tried again."""

    def loaded(self, lane: int, rows: list[tuple[int, bytes]], committed: int) -> None:
        """Rows were read, or none were there when this group was the last one on disk."""

    def refusal(self, error: MixpanelException, *, full: bool) -> MixpanelException | None:
        """What those who wait for a group that was not written are told."""

    def evicted(self, lane: int, items: list[bytes]) -> None:
        """Rows were dropped for want of room."""

    def adopted(self, lanes: dict[int, tuple[int, int]], unsure: dict[int, list[bytes]]) -> None:
        """Records and bytes that others left, by lane; and what of theirs may have been applied already."""

    def held(self) -> list[tuple[int, bytes]]:
        """The rows that are in memory."""

    def reopened(self) -> None:
        """The file is another one: what was in the old one alone is gone, or comes back as left by others."""


class Writer(Protocol):
    """The journal, as the queue sees it."""

    mutex: threading.Lock

    @property
    def group(self) -> Group: ...

    def ring(self) -> None: ...

    def ask(self, change: Callable[[Work], None]) -> Group: ...

    def begin(self) -> Group: ...

    def close(self, timeout: float) -> bool: ...

    def forget(self) -> None: ...
