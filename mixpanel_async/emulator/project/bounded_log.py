"""Logs that remember their last entries and how many there have ever been.

Pure. What the live page and the tests look at afterwards is noted here as it happens, at a cost that does not depend
on the size of what is noted, so that nobody pays for a page that nobody watches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

REJECTIONS_LIMIT: Final = 1_000

_MAX_ITEMS: Final = 20
_MAX_DEPTH: Final = 3
_MAX_TEXT: Final = 120
_MAX_PARTS: Final = 200


class BoundedLog(Generic[T]):
    """The last entries of a log. Each has a number, counted from 1.

    Args:
        limit: entries kept; None keeps what is not taken out with `forget_oldest`.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._entries: deque[T] = deque(maxlen=limit)
        self.total = 0
        """How many there have ever been; the number of the latest."""

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return iter(self._entries)

    def append(self, entry: T) -> None:
        self._entries.append(entry)
        self.total += 1

    def forget_oldest(self) -> T:
        """Take out the oldest entry that is kept."""
        return self._entries.popleft()

    def between(self, after: int, upto: int, at_most: int) -> list[tuple[int, T]]:
        """The newest entries of those numbered above `after` and up to `upto`, oldest first, as far as they are kept.

        Takes time in proportion to the number of entries later than `after`, however many are kept.
        """
        newest = min(upto, self.total)
        oldest = max(after, newest - at_most, self.total - len(self._entries))
        entries = islice(reversed(self._entries), self.total - newest, max(self.total - oldest, self.total - newest))
        return list(zip(range(newest, oldest, -1), entries, strict=False))[::-1]


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record, or a request as a whole, that was not stored.

    Args:
        endpoint: path, such as `/import`.
        field: path of the offending property; empty if it is none in particular.
        message: what is wrong, as far as Mixpanel says so in its own words.
        record: the record, shortened; None if the request was refused as a whole.
        silent: whether the sender was told that all is well.
    """

    endpoint: str
    field: str
    message: str
    record: Any
    silent: bool


def shortened(value: Any) -> Any:
    """A copy of JSON data that is small however large and deep the original, and readable in any character set."""
    return _shortened(value, 0, iter(range(_MAX_PARTS)))


def _shortened(value: Any, depth: int, parts: Iterator[int]) -> Any:
    if next(parts, None) is None:
        return "…"
    if isinstance(value, str):
        text = value if len(value) <= _MAX_TEXT else value[:_MAX_TEXT] + "…"
        return text.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        if depth == _MAX_DEPTH:
            return "{…}" if value else {}
        first = islice(value.items(), _MAX_ITEMS)
        copy = {_shortened(key, 0, parts): _shortened(item, depth + 1, parts) for key, item in first}
        return copy | ({"…": f"{len(value) - _MAX_ITEMS} more"} if len(value) > _MAX_ITEMS else {})
    if isinstance(value, list):
        if depth == _MAX_DEPTH:
            return "[…]" if value else []
        items = [_shortened(item, depth + 1, parts) for item in value[:_MAX_ITEMS]]
        return items + ([f"… {len(value) - _MAX_ITEMS} more"] if len(value) > _MAX_ITEMS else [])
    # Numbers of more than 64 bits come out of damaged text only, and no reader takes them.
    return str(value)[:_MAX_TEXT] if isinstance(value, int) and abs(value) >> 63 else value
