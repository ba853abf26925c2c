"""How much is under way at once, and how fast it goes."""

from __future__ import annotations

from collections import deque
from typing import Final

_FIRST: Final = 4
_WINDOW: Final = 10.0


class ConcurrencyController:
    """The number of requests that may be under way: one more for each round without trouble, half after trouble.

    Trouble is a request that Mixpanel took at a second try or later: it answered 429 before, or not at all. All those
    that failed together come back together and count as one.

    Args:
        most: requests at once; at least 1.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = float(min(_FIRST, most))
        self._is_troubled = False

    @property
    def requests(self) -> int:
        return int(self._size)

    def delivered(self, attempts: int) -> None:
        """Learn from a request that Mixpanel took."""
        if attempts == 1:
            self._is_troubled = False
            self._size = min(float(self._most), self._size + 1 / self._size)
        elif not self._is_troubled:
            self._is_troubled = True
            self._size = max(1.0, self._size / 2)


class Meter:
    """Rate and time left, from counts and moments that it is told.

    Args:
        now: monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._start = now
        self._first_share: float | None = None
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])

    def rate(self, now: float, count: int) -> float:
        """Records a second over the last ten seconds."""
        self._marks.append((now, count))
        while now - self._marks[0][0] > _WINDOW and len(self._marks) > 2:
            self._marks.popleft()
        then, before = self._marks[0]
        return (count - before) / (now - then) if now > then else 0.0

    def mean(self, now: float, count: int) -> float:
        """Records a second since the beginning."""
        return count / (now - self._start) if now > self._start else 0.0

    def left(self, now: float, share: float) -> float | None:
        """Seconds until the end, as far as one can tell.

        Args:
            now: monotonic seconds.
            share: what is done, from 0 to 1; what was done at the first call was done before.
        """
        if self._first_share is None and share:
            self._first_share = share if now - self._start < 1.0 else 0.0
        done = share - (self._first_share or 0.0)
        if done <= 0 or now <= self._start:
            return None
        return (now - self._start) * (1 - share) / done
