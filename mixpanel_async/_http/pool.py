"""A bounded pool: what is idle is lent, the one used last first; what is missing is made; what is left over is let go.

It knows neither sockets nor clocks. Nothing in it waits but a borrower whom nothing is left for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class _Turn(Generic[T]):
    """A borrower's place in the queue. It comes with a thing, or with leave to make one."""

    def __init__(self) -> None:
        self.come = anyio.Event()
        self.lent: T | None = None


class Pool(Generic[T]):
    """Lends things that serve one borrower at a time, to those who asked first.

    Args:
        make: makes one.
        most: how many there may be at once.
        keep: seconds that one may lie idle.
        clock: seconds.
    """

    def __init__(self, make: Callable[[], T], *, most: int, keep: float, clock: Callable[[], float]) -> None:
        self._make = make
        self._keep = keep
        self._clock = clock
        self._unmade = most
        self._lent: set[T] = set()
        # The one used last comes last, each with the time since when it is idle.
        self._idle: deque[tuple[T, float]] = deque()
        self._queue: deque[_Turn[T]] = deque()
        self.is_closed = False

    def add(self, thing: T) -> None:
        """Take in one that was made elsewhere."""
        self._unmade -= 1
        self._idle.append((thing, self._clock()))

    def borrow(self) -> T | None:
        """One that is idle, or a new one; None if all are lent or the pool is closed.

        Raises:
            Exception: what `make` raised.
        """
        if self._idle:
            thing, _ = self._idle.pop()
            self._lent.add(thing)
            return thing
        if not self._unmade or self.is_closed:
            return None
        self._unmade -= 1
        return self._made()

    async def next_free(self) -> T | None:
        """Wait for one, after all who wait already; None if the pool is closed. It may be cancelled at any time.

        Raises:
            Exception: what `make` raised.
        """
        if self.is_closed:
            return None
        turn: _Turn[T] = _Turn()
        self._queue.append(turn)
        try:
            await turn.come.wait()
        except BaseException:
            if not turn.come.is_set():
                self._queue.remove(turn)
            elif not self.is_closed:
                # It came too late for this borrower.
                self._pass_on(turn.lent)
            raise
        if turn.lent is not None or self.is_closed:
            return turn.lent
        return self._made()

    def give_back(self, thing: T) -> list[T]:
        """Take back one that may be lent again.

        Returns:
            What has been idle for too long and is the pool's no more.
        """
        if thing not in self._lent:
            return [thing]
        self._pass_on(thing)
        left_over = []
        while self._idle and self._idle[0][1] + self._keep < self._idle[-1][1]:
            left_over.append(self._idle.popleft()[0])
        self._unmade += len(left_over)
        return left_over

    def discard(self, thing: T) -> None:
        """Forget one that is lent and must not be used again; there is room for another."""
        if thing in self._lent:
            self._lent.remove(thing)
            self._pass_on(None)

    def close(self) -> list[T]:
        """Lend nothing more, and send away all who wait.

        Returns:
            All there is, also what is lent.
        """
        self.is_closed = True
        everything = [*(thing for thing, _ in self._idle), *self._lent]
        self._idle.clear()
        self._lent.clear()
        while self._queue:
            self._queue.popleft().come.set()
        return everything

    def _made(self) -> T:
        try:
            thing = self._make()
        except BaseException:
            self._pass_on(None)
            raise
        self._lent.add(thing)
        return thing

    def _pass_on(self, thing: T | None) -> None:
        """To the next in the queue; without one, a thing is idle, and leave to make one stays unused."""
        if self._queue:
            turn = self._queue.popleft()
            turn.lent = thing
            turn.come.set()
        elif thing is None:
            self._unmade += 1
        else:
            self._lent.remove(thing)
            self._idle.append((thing, self._clock()))
