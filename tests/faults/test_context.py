"""The context of a caller, such as its request or database session, is not kept by the client."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar, copy_context
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest

from mixpanel_async import AsyncMixpanel, BatchPolicy, BlockingMixpanel, IdMerge, SqliteSpool
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import LocalFlags

pytestmark = pytest.mark.sample(every=3)

REQUEST: ContextVar[Any] = ContextVar("request", default=None)
ANON_ID = "2fd5dc29-4ab3-4eae-8ec4-b2a9d7f4e0a1"


# Seconds for one request.
TIMEOUT = 0.5


class Request:
    """Object of a caller."""


Call = Callable[[AsyncMixpanel], Awaitable[object]]


async def track_nowait(mp: AsyncMixpanel) -> None:
    mp.track_nowait("user", "Event")


CALLS: dict[str, Call] = {
    "start": lambda mp: mp.start(),
    "track": lambda mp: mp.track("user", "Event", {"a": 1}),
    "track_nowait": track_nowait,
    "track_immediate": lambda mp: mp.track_immediate("user", "Event"),
    "import_data": lambda mp: mp.import_data(None, "user", "Event", 1_700_000_000),
    "people_set": lambda mp: mp.people_set("user", {"a": 1}),
    "group_set": lambda mp: mp.group_set("company", "acme", {"a": 1}),
    "alias": lambda mp: mp.alias("new", "user"),
    "merge": lambda mp: mp.merge(None, "user", "other"),
    "identify": lambda mp: mp.identify("user", ANON_ID),
    "flush": lambda mp: mp.flush(),
}


@pytest.fixture(params=["memory", "spool", "flags"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Return a function that makes further options for one client."""
    numbers = count()
    timeouts = {"timeout": TIMEOUT}
    made: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": lambda: timeouts,
        "spool": lambda: {**timeouts, "spool": SqliteSpool(tmp_path / f"spool{next(numbers)}.db", timeout=0.2)},
        "flags": lambda: {**timeouts, "local_flags": LocalFlags(poll_interval=5.0)},
    }
    return made[request.param]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    emulator = Emulator(IdMerge.ORIGINAL)
    yield emulator
    gc.collect()


async def first_call(mp: AsyncMixpanel, call: Call) -> weakref.ref[Request]:
    """Make a call with a request in the context of a task of its own, and return a reference to the request."""
    request = Request()
    REQUEST.set(request)
    await call(mp)
    return weakref.ref(request)


async def is_kept(reference: weakref.ref[Request]) -> bool:
    """Return whether an object is still there after the longest timeout.

    asyncio keeps a cancelled timer, with the context in which it was set, until it is due.
    """
    with anyio.move_on_after(4 * TIMEOUT):
        while reference() is not None:
            gc.collect()
            await anyio.sleep(0.01)
    return reference() is not None


@pytest.mark.parametrize("callbacks", [False, True], ids=["no callbacks", "callbacks"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_first_call_keeps_no_context(
    backend: str, callbacks: bool, emulator: Emulator, options: Callable[[], dict[str, Any]]
) -> None:
    seen = []
    on_delivered = (lambda _: seen.append(REQUEST.get())) if callbacks else None
    kept = []

    async def check(url: str, name: str) -> None:
        policy = BatchPolicy(linger=0.01)
        mp = AsyncMixpanel(
            "token", api_host=url, id_merge=IdMerge.ORIGINAL, batching=policy, on_delivered=on_delivered, **options()
        )
        references: list[weakref.ref[Request]] = []

        async def caller() -> None:
            references.append(await first_call(mp, CALLS[name]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
        await mp.track("user", "Later")
        await mp.flush()
        if await is_kept(references[0]):
            kept.append(name)
        await mp.aclose()

    async def main(url: str) -> None:
        async with anyio.create_task_group() as tasks:
            for name in CALLS:
                tasks.start_soon(check, url, name)

    with emulator.serve() as server:
        anyio.run(main, server.url, backend=backend)
    assert kept == []
    assert set(seen) <= {None}
    assert bool(seen) is callbacks


@pytest.mark.parametrize("host", ["asyncio", "trio"])
def test_first_call_from_another_loop_keeps_no_context(
    host: str, emulator: Emulator, options: Callable[[], dict[str, Any]]
) -> None:
    made = []
    with emulator.serve() as server, anyio.from_thread.start_blocking_portal(host) as portal:
        for name, call in CALLS.items():
            mp = AsyncMixpanel("token", api_host=server.url, id_merge=IdMerge.ORIGINAL, **options())
            portal.call(mp.start)
            made.append((name, mp, asyncio.run(first_call(mp, call))))
            portal.call(mp.flush)
        # All of them wait for their timers at once.
        kept = [name for name, _, reference in made if portal.call(is_kept, reference)]
        for _, mp, _ in made:
            portal.call(mp.aclose)
    assert kept == []


def test_first_call_of_a_blocking_client_keeps_no_context(
    emulator: Emulator, options: Callable[[], dict[str, Any]]
) -> None:
    made = []

    def first(blocking: BlockingMixpanel, call: Call) -> weakref.ref[Request]:
        request = Request()
        REQUEST.set(request)
        blocking.run(call, blocking.client)
        return weakref.ref(request)

    with emulator.serve() as server, ExitStack() as stack:
        for name, call in CALLS.items():
            mp = AsyncMixpanel("token", api_host=server.url, id_merge=IdMerge.ORIGINAL, **options())
            blocking = stack.enter_context(mp.in_thread())
            made.append((name, blocking, copy_context().run(first, blocking, call)))
            blocking.track("user", "Later")
            blocking.flush()
        # All of them wait for their timers at once.
        kept = [name for name, blocking, reference in made if blocking.run(is_kept, reference)]
    assert kept == []


@pytest.mark.parametrize("coroutine", [False, True])
def test_callbacks_run_in_an_empty_context(coroutine: bool, emulator: Emulator) -> None:
    seen = []

    def plain(_: object) -> None:
        seen.append(REQUEST.get())

    async def waiting(_: object) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(REQUEST.get())

    async def main(url: str) -> None:
        async with AsyncMixpanel("token", api_host=url, on_delivered=waiting if coroutine else plain) as mp:
            REQUEST.set(Request())
            await mp.track("user", "Event")
            await mp.flush()
            await mp.track_immediate("user", "Event")

    with emulator.serve() as server:
        asyncio.run(main(server.url))
    assert seen
    assert set(seen) == {None}
