"""The pool alone: who is lent what, who waits, and what becomes of a turn that its borrower does not wait for."""

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


def pool_of(most: int, make: Callable[[], int] | None = None, clock: Clock | None = None) -> Pool[int]:
    return Pool(make or itertools.count().__next__, max_size=most, idle_timeout=5.0, clock=clock or Clock())


async def settle() -> None:
    for _ in range(10):
        await anyio.lowlevel.checkpoint()


async def test_the_one_used_last_is_lent_first_and_no_more_than_allowed_are_made() -> None:
    pool = pool_of(3)
    assert [pool.try_acquire() for _ in range(4)] == [0, 1, 2, None]
    assert [pool.release(thing) for thing in (1, 0, 2)] == [[], [], []]
    assert [pool.try_acquire() for _ in range(4)] == [2, 0, 1, None]


async def test_one_that_was_made_elsewhere_counts() -> None:
    pool = pool_of(2)
    pool.add(100)
    assert [pool.try_acquire() for _ in range(3)] == [100, 0, None]


async def test_who_asked_first_is_served_first_and_nobody_overtakes() -> None:
    pool = pool_of(1)
    thing = pool.try_acquire()
    assert thing == 0
    served = []

    async def wait(number: int) -> None:
        served.append((number, await pool.acquire()))

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(wait, number)
            await settle()
        for number in range(3):
            pool.release(thing)
            # It belongs to the one who waits, also before that one runs.
            assert pool.try_acquire() is None
            await settle()
            assert served == [(one, 0) for one in range(number + 1)]
    pool.release(thing)
    assert pool.try_acquire() == 0


async def test_one_that_is_discarded_leaves_room_for_who_waits() -> None:
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


@pytest.mark.parametrize("comes", ["a thing", "leave to make one", "nothing"])
async def test_a_borrower_who_is_cancelled_takes_nothing_along(comes: str) -> None:
    pool = pool_of(1)
    thing = pool.try_acquire()
    assert thing == 0
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
        # In one turn, so that it is cancelled with its thing in hand, or is not and must be served.
        if comes == "a thing":
            pool.release(thing)
        elif comes == "leave to make one":
            pool.discard(thing)
        first.cancel()
        await settle()
        if comes == "nothing":
            assert ended == []
            pool.release(thing)
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
async def test_whoever_is_cancelled_whenever_all_things_come_back(seed: int) -> None:
    chance = random.Random(seed)
    pool = pool_of(3)
    most = under_way = 0

    async def use(scope: anyio.CancelScope) -> None:
        nonlocal most, under_way
        with scope:
            thing = pool.try_acquire()
            if thing is None:
                thing = await pool.acquire()
            assert thing is not None
            under_way += 1
            most = max(most, under_way)
            try:
                for _ in range(chance.randrange(4)):
                    await anyio.lowlevel.checkpoint()
            except BaseException:
                pool.discard(thing)
                raise
            else:
                pool.release(thing)
            finally:
                under_way -= 1

    async with anyio.create_task_group() as tasks:
        scopes = []
        for _ in range(100):
            scopes.append(anyio.CancelScope())
            tasks.start_soon(use, scopes[-1])
            if chance.random() < 0.5:
                chance.choice(scopes).cancel()
            if chance.random() < 0.3:
                await anyio.lowlevel.checkpoint()
    assert most == 3
    assert [pool.try_acquire() is None for _ in range(4)] == [False, False, False, True]


async def test_what_was_idle_for_too_long_is_let_go_when_another_comes_back() -> None:
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


async def test_one_that_could_not_be_made_leaves_its_room_to_the_next() -> None:
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


async def test_a_closed_pool_gives_up_everything_and_lends_nothing() -> None:
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
