"""The event loop that a client lives in: the one place that knows asyncio from trio.

Requests run in tasks that the package owns, outside the cancel scopes of its callers: a caller that is cancelled must
not take a request down half-way, which in httpx 0.28 can leave the connection pool unusable. A task group would have to
be left by the task that entered it, while `start()` and `aclose()` may come from different ones; so each task stands
alone, is held by its host, and ends in a `Job` that can be awaited.
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
from collections.abc import Awaitable, Callable, Coroutine
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import anyio

from .._model.errors import ClientClosedError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")


def preload_backend() -> None:
    """Load what anyio would load at its first call, inside the event loop, which that would hold for some 30 ms."""
    with contextlib.suppress(ImportError):
        import_module("anyio._backends._asyncio")
    import_module("anyio.to_thread")


async def yield_to_loop() -> None:
    """Take a turn of the event loop."""
    # What `anyio.lowlevel.checkpoint()` does, of which nobody must wait for the import.
    await anyio.sleep(0)  # noqa: ASYNC115


class BackgroundTask(Generic[T]):
    """A task of the package's own, and how it ended.

    Args:
        if_unstarted: called if the task is cancelled before its first step, when none of its own code can run.
        on_end: called once it has ended, however.
    """

    def __init__(self, if_unstarted: Callable[[], None], on_end: Callable[[BackgroundTask[Any]], None]) -> None:
        self.done = anyio.Event()
        self._if_unstarted = if_unstarted
        self._on_end = on_end
        # Made by the task itself: a job may be spawned from a plain callback of the loop.
        self._scope: anyio.CancelScope | None = None
        self._is_cancelled = self._is_started = self._is_ended = False
        self._value: T
        self._error: Exception | None = None
        self._has_value = False

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Body of the task. Only cancellation by the event loop itself escapes."""
        self._is_started = True
        try:
            with anyio.CancelScope() as self._scope:
                if self._is_cancelled:
                    self._scope.cancel()
                self._value = await work()
                self._has_value = True
        except Exception as error:  # noqa: BLE001  kept for whoever waits
            self._error = error
        finally:
            self.end()

    def end(self) -> None:
        """Note that the task is over."""
        if self._is_ended:
            return
        self._is_ended = True
        if not self._is_started:
            self._if_unstarted()
        self._on_end(self)
        self.done.set()

    @property
    def is_done(self) -> bool:
        """Whether it has ended, in any way."""
        return self._is_ended

    def cancel(self) -> None:
        """Ask it to stop. From the loop's own thread only."""
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def result(self) -> T:
        """Wait for its end. A waiter that is cancelled leaves it running.

        Raises:
            ClientClosedError: if it was cancelled before it had a result.
        """
        await self.done.wait()
        if self._error is not None:
            raise self._error
        if not self._has_value:
            raise ClientClosedError(
                "the client was closed while the call was under way; it is unknown whether it was applied"
            )
        return self._value


class EventLoop(Protocol):
    """An event loop."""

    current: Callable[[], object]
    """Return the object that identifies the running loop; raise RuntimeError outside of one."""

    def spawn(self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str) -> None:
        """Run it in a task of its own, with an empty context. From the loop's own thread only."""

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run it in the loop. From any thread; nothing happens if the loop has ended."""

    def is_current(self) -> bool:
        """Whether the caller runs inside this loop."""

    def is_over(self) -> bool:
        """Whether the loop does not run, and so nothing in it."""


class _Asyncio:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio  # noqa: PLC0415  loaded already by every program that runs this loop

        self._loop = loop
        self.current: Callable[[], object] = asyncio.get_running_loop
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, job: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str) -> None:
        task = contextvars.Context().run(self._create, job.run(work), name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            job.end()

        task.add_done_callback(ended)

    def _create(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(work, name=name)

    def call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def is_current(self) -> bool:
        try:
            return self.current() is self._loop
        except RuntimeError:
            return False

    def is_over(self) -> bool:
        # One that was stopped may be run again, but not while another runs in its place.
        return self._loop.is_closed() or not self._loop.is_running()


class _Trio:
    def __init__(self) -> None:
        import trio  # noqa: PLC0415  an optional library, in use already when this runs

        self._trio = trio
        self.current: Callable[[], object] = trio.lowlevel.current_trio_token
        self._token = trio.lowlevel.current_trio_token()

    def spawn(self, job: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str) -> None:
        self._trio.lowlevel.spawn_system_task(job.run, work, name=name, context=contextvars.Context())

    def call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(callback)

    def is_current(self) -> bool:
        # In guest mode, the token is visible outside of tasks too, where trio cannot be used.
        return _in_trio() and self.current() is self._token

    def is_over(self) -> bool:
        try:
            self._token.run_sync_soon(_nothing)
        except self._trio.RunFinishedError:
            return True
        return False


def _nothing() -> None:
    return None


def _in_trio() -> bool:
    # Another thread may be in the middle of importing it: httpcore brings trio when the pool is made.
    in_trio_task = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
    return in_trio_task is not None and bool(in_trio_task())


def current_loop() -> EventLoop | None:
    """The loop that the caller runs in, if it runs in one."""
    if _in_trio():
        return _Trio()
    # A program that runs asyncio has imported it; importing this package alone must not.
    import asyncio  # noqa: PLC0415

    try:
        return _Asyncio(asyncio.get_running_loop())
    except RuntimeError:
        return None
