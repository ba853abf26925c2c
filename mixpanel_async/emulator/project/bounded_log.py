"""Log that keeps its latest entries and counts all of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedLog(Generic[T]):
    """Latest entries of a log, numbered from 1. Appending costs the same whatever the size of the log.

    Args:
        limit: number of entries kept; None keeps every entry until `pop_oldest` removes it.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._entries: deque[T] = deque(maxlen=limit)
        self.total = 0
        """Number of entries ever appended, which is the number of the latest entry."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def append(self, entry: T) -> None:
        self._entries.append(entry)
        self.total += 1

    def pop_oldest(self) -> T:
        """Remove and return the oldest entry."""
        return self._entries.popleft()

    def between(self, after: int, up_to: int, max_entries: int) -> list[tuple[int, T]]:
        """Return the newest entries numbered above `after` and up to `up_to`, with their numbers, oldest first.

        Entries no longer kept are left out. The cost is proportional to the number of entries after `after`.
        """
        newest = min(up_to, self.total)
        oldest = max(after, newest - max_entries, self.total - len(self._entries))
        entries = islice(reversed(self._entries), self.total - newest, max(self.total - oldest, self.total - newest))
        return list(zip(range(newest, oldest, -1), entries, strict=False))[::-1]
