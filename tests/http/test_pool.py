"""The pool alone: lending, waiting, cancellation and closing."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

from mixpanel_async._http.pool import Pool

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pool_of(size: int, make: Callable[[], int] | None = None, clock: Clock | None = None) -> Pool[int]:
    return Pool(make or itertools.count().__next__, max_size=size, idle_timeout=5.0, clock=clock or Clock())


async def settle() -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_item_used_last_is_lent_first_within_the_maximum_size() -> None:
    pool = pool_of(3)
    assert [pool.try_acquire() for _ in range(4)] == [0, 1, 2, None]
    assert [pool.release(item) for item in (1, 0, 2)] == [[], [], []]
    assert [pool.try_acquire() for _ in range(4)] == [2, 0, 1, None]


async def test_added_item_counts_towards_the_maximum_size() -> None:
    pool = pool_of(2)
    pool.add(100)
    assert [pool.try_acquire() for _ in range(3)] == [100, 0, None]


async def test_waiters_are_served_in_order() -> None:
    pool = pool_of(1)
    item = pool.try_acquire()
    assert item == 0
    served = []

    async def wait(number: int) -> None:
        served.append((number, await pool.acquire()))

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, number)
            await settle()
        for number in range(3):
            pool.release(item)
            # The item already belongs to the waiter, although that has not run yet.
            assert pool.try_acquire() is None
            await settle()
            assert served == [(one, 0) for one in range(number + 1)]
    pool.release(item)
    assert pool.try_acquire() == 0


async def test_discarded_item_makes_room_for_a_waiter() -> None:
    pool = pool_of(1)
    first = pool.try_acquire()
    assert first == 0
    found = []

    async def wait() -> None:
        found.append(await pool.acquire())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settle()
        pool.discard(first)
        assert pool.try_acquire() is None
    assert found == [1]
    pool.discard(1)
    assert [pool.try_acquire(), pool.try_acquire()] == [2, None]


@pytest.mark.parametrize("event", ["release", "discard", "none"])
async def test_cancelled_waiter_takes_no_item(event: str) -> None:
    pool = pool_of(1)
    item = pool.try_acquire()
    assert item == 0
    ended = []

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            ended.append((name, await pool.acquire()))

    first, second = anyio.CancelScope(), anyio.CancelScope()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "first", first)
        await settle()
        tasks.start_soon(wait, "second", second)
        await settle()
        # In the same turn: the waiter is either cancelled after it was served, or is served.
        if event == "release":
            pool.release(item)
        elif event == "discard":
            pool.discard(item)
        first.cancel()
        await settle()
        if event == "none":
            assert ended == []
            pool.release(item)
        else:
            for _, lent in ended:
                assert lent is not None
                pool.release(lent)
        await settle()
    assert ended[-1][0] == "second"
    lent = ended[-1][1]
    assert lent is not None
    pool.release(lent)
    assert [pool.try_acquire() is None, pool.try_acquire()] == [False, None]


@pytest.mark.parametrize("seed", range(20))
async def test_no_item_is_lost_by_random_cancellations(seed: int) -> None:
    generator = random.Random(seed)
    pool = pool_of(3)
    max_in_use = in_use = 0

    async def use(scope: anyio.CancelScope) -> None:
        nonlocal max_in_use, in_use
        with scope:
            item = pool.try_acquire()
            if item is None:
                item = await pool.acquire()
            assert item is not None
            in_use += 1
            max_in_use = max(max_in_use, in_use)
            try:
                for _ in range(generator.randrange(4)):
                    await anyio.lowlevel.checkpoint()
            except BaseException:
                pool.discard(item)
                raise
            else:
                pool.release(item)
            finally:
                in_use -= 1

    async with anyio.create_task_group() as tasks:
        scopes = []
        for _ in range(100):
            scopes.append(anyio.CancelScope())
            tasks.start_soon(use, scopes[-1])
            if generator.random() < 0.5:
                generator.choice(scopes).cancel()
            if generator.random() < 0.3:
                await anyio.lowlevel.checkpoint()
    assert max_in_use == 3
    assert [pool.try_acquire() is None for _ in range(4)] == [False, False, False, True]


async def test_item_idle_for_too_long_is_removed_at_the_next_release() -> None:
    clock = Clock()
    pool = pool_of(4, clock=clock)
    assert [pool.try_acquire() for _ in range(4)] == [0, 1, 2, 3]
    pool.release(0)
    clock.now = 3.0
    pool.release(1)
    clock.now = 5.0
    assert pool.release(2) == []
    clock.now = 8.5
    assert pool.release(3) == [0, 1]
    assert [pool.try_acquire() for _ in range(5)] == [3, 2, 4, 5, None]


async def test_failed_creation_makes_room_for_the_next_item() -> None:
    broken = True

    def make() -> int:
        if broken:
            raise ValueError("broken")
        return 7

    pool = pool_of(1, make)
    with pytest.raises(ValueError, match="broken"):
        pool.try_acquire()
    broken = False
    assert pool.try_acquire() == 7
    broken = True
    errors = []
    found = []

    async def wait() -> None:
        nonlocal broken
        try:
            found.append(await pool.acquire())
        except ValueError as error:
            errors.append(error)
            broken = False

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
        await settle()
        pool.discard(7)
    assert (len(errors), found) == (1, [7])


async def test_closed_pool_returns_all_items_and_lends_none() -> None:
    pool = pool_of(2)
    assert (pool.try_acquire(), pool.try_acquire()) == (0, 1)
    pool.release(0)
    assert pool.try_acquire() == 0
    found = []

    async def wait() -> None:
        found.append(await pool.acquire())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await settle()
        assert sorted(pool.close()) == [0, 1]
    assert found == [None]
    assert pool.release(0) == [0]
    pool.discard(1)
    assert (pool.try_acquire(), await pool.acquire()) == (None, None)
    assert pool.close() == []
