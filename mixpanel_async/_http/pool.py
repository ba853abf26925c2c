"""Bounded pool that lends items to one borrower each, in the order of the requests. Knows no sockets and no clocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class _Waiter(Generic[T]):
    """Place of a borrower in the queue. When `ready` is set, it holds an item or the permission to create one."""

    def __init__(self) -> None:
        self.ready = anyio.Event()
        self.item: T | None = None

    def wake(self, item: T | None) -> None:
        self.item = item
        self.ready.set()


class Pool(Generic[T]):
    """Pool of items that serve one borrower at a time. The item used last is lent first.

    Args:
        make: creates an item.
        max_size: maximum number of items at once.
        idle_timeout: seconds that an item may stay idle.
        clock: returns the time in seconds.
    """

    def __init__(
        self, make: Callable[[], T], *, max_size: int, idle_timeout: float, clock: Callable[[], float]
    ) -> None:
        self._make = make
        self._idle_timeout = idle_timeout
        self._clock = clock
        self._slots_left = max_size
        self._in_use: set[T] = set()
        # Idle items, each with the time at which it became idle. The most recently used item is last.
        self._idle: deque[tuple[T, float]] = deque()
        self._queue: deque[_Waiter[T]] = deque()
        self.is_closed = False

    def add(self, item: T) -> None:
        """Add an item that was created elsewhere."""
        self._slots_left -= 1
        self._idle.append((item, self._clock()))

    def try_acquire(self) -> T | None:
        """Return an idle or a new item; None if all are in use or the pool is closed.

        Raises:
            Exception: the error of `make`.
        """
        if self._idle:
            item, _ = self._idle.pop()
            self._in_use.add(item)
            return item
        if not self._slots_left or self.is_closed:
            return None
        self._slots_left -= 1
        return self._create()

    async def acquire(self) -> T | None:
        """Wait for an item behind all earlier waiters; None if the pool is closed. Safe to cancel at any time.

        Raises:
            Exception: the error of `make`.
        """
        if self.is_closed:
            return None
        waiter: _Waiter[T] = _Waiter()
        self._queue.append(waiter)
        try:
            await waiter.ready.wait()
        except BaseException:
            if not waiter.ready.is_set():
                self._queue.remove(waiter)
            elif not self.is_closed:
                # Cancelled after it was served: the next waiter gets the item.
                self._pass_on(waiter.item)
            raise
        if waiter.item is not None or self.is_closed:
            return waiter.item
        return self._create()

    def release(self, item: T) -> list[T]:
        """Take back an item that can be lent again.

        Returns:
            Items that no longer belong to the pool, because they were idle for too long, to be closed by the caller.
        """
        if item not in self._in_use:
            return [item]
        self._pass_on(item)
        expired = []
        while self._idle and self._idle[0][1] + self._idle_timeout < self._idle[-1][1]:
            expired.append(self._idle.popleft()[0])
        self._slots_left += len(expired)
        return expired

    def discard(self, item: T) -> None:
        """Remove an item in use that must not be used again; another can be created instead."""
        if item in self._in_use:
            self._in_use.remove(item)
            self._pass_on(None)

    def close(self) -> list[T]:
        """Stop lending and wake all waiters.

        Returns:
            All items, including those in use.
        """
        self.is_closed = True
        items = [*(item for item, _ in self._idle), *self._in_use]
        self._idle.clear()
        self._in_use.clear()
        while self._queue:
            self._queue.popleft().wake(None)
        return items

    def _create(self) -> T:
        try:
            item = self._make()
        except BaseException:
            self._pass_on(None)
            raise
        self._in_use.add(item)
        return item

    def _pass_on(self, item: T | None) -> None:
        """Give the item, or the permission to create one, to the first waiter; without a waiter, keep it."""
        if self._queue:
            self._queue.popleft().wake(item)
        elif item is None:
            self._slots_left += 1
        else:
            self._in_use.remove(item)
            self._idle.append((item, self._clock()))
