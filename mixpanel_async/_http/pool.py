"""A bounded pool: what is idle is lent, the one used last first; what is missing is made; what is left over is let go.

It knows neither sockets nor clocks. Nothing in it waits but a borrower whom nothing is left for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class _Waiter(Generic[T]):
    """A borrower's place in the queue. It comes with a thing, or with leave to make one."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.item: T | None = None


class Pool(Generic[T]):
    """Lends things that serve one borrower at a time, to those who asked first.

    Args:
        make: makes one.
        most: how many there may be at once.
        keep: seconds that one may lie idle.
        clock: seconds.
    """

    def __init__(
        self, make: Callable[[], T], *, max_size: int, idle_timeout: float, clock: Callable[[], float]
    ) -> None:
        self._make = make
        self._idle_timeout = idle_timeout
        self._clock = clock
        self._slots_left = max_size
        self._in_use: set[T] = set()
        # The one used last comes last, each with the time since when it is idle.
        self._idle: deque[tuple[T, float]] = deque()
        self._queue: deque[_Waiter[T]] = deque()
        self.is_closed = False

    def add(self, thing: T) -> None:
        """Take in one that was made elsewhere."""
        self._slots_left -= 1
        self._idle.append((thing, self._clock()))

    def try_acquire(self) -> T | None:
        """One that is idle, or a new one; None if all are lent or the pool is closed.

        Raises:
            Exception: what `make` raised.
        """
        if self._idle:
            thing, _ = self._idle.pop()
            self._in_use.add(thing)
            return thing
        if not self._slots_left or self.is_closed:
            return None
        self._slots_left -= 1
        return self._made()

    async def acquire(self) -> T | None:
        """Wait for one, after all who wait already; None if the pool is closed. It may be cancelled at any time.

        Raises:
            Exception: what `make` raised.
        """
        if self.is_closed:
            return None
        turn: _Waiter[T] = _Waiter()
        self._queue.append(turn)
        try:
            await turn.ready.wait()
        except BaseException:
            if not turn.ready.is_set():
                self._queue.remove(turn)
            elif not self.is_closed:
                # It came too late for this borrower.
                self._pass_on(turn.item)
            raise
        if turn.item is not None or self.is_closed:
            return turn.item
        return self._made()

    def release(self, thing: T) -> list[T]:
        """Take back one that may be lent again.

        Returns:
            What has been idle for too long and is the pool's no more.
        """
        if thing not in self._in_use:
            return [thing]
        self._pass_on(thing)
        left_over = []
        while self._idle and self._idle[0][1] + self._idle_timeout < self._idle[-1][1]:
            left_over.append(self._idle.popleft()[0])
        self._slots_left += len(left_over)
        return left_over

    def discard(self, thing: T) -> None:
        """Forget one that is lent and must not be used again; there is room for another."""
        if thing in self._in_use:
            self._in_use.remove(thing)
            self._pass_on(None)

    def close(self) -> list[T]:
        """Lend nothing more, and send away all who wait.

        Returns:
            All there is, also what is lent.
        """
        self.is_closed = True
        everything = [*(thing for thing, _ in self._idle), *self._in_use]
        self._idle.clear()
        self._in_use.clear()
        while self._queue:
            self._queue.popleft().ready.set()
        return everything

    def _made(self) -> T:
        try:
            thing = self._make()
        except BaseException:
            self._pass_on(None)
            raise
        self._in_use.add(thing)
        return thing

    def _pass_on(self, thing: T | None) -> None:
        """To the next in the queue; without one, a thing is idle, and leave to make one stays unused."""
        if self._queue:
            turn = self._queue.popleft()
            turn.item = thing
            turn.ready.set()
        elif thing is None:
            self._slots_left += 1
        else:
            self._in_use.remove(thing)
            self._idle.append((thing, self._clock()))
