"""Event loop of a client, asyncio or trio. No other module distinguishes the two.

Requests run in background tasks outside the cancel scopes of callers: cancelling a caller must not interrupt a request,
which in httpx 0.28 can make a connection pool unusable. A task group must be left by the task that entered it, but
`start()` and `aclose()` may be called by different tasks. Each task is therefore independent, referenced by its event
loop object, and represented by a `BackgroundTask` that can be awaited.
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
    """Import the modules that anyio would import at its first call, where that blocks the event loop for 30 ms."""
    with contextlib.suppress(ImportError):
        import_module("anyio._backends._asyncio")
    import_module("anyio.to_thread")


async def yield_to_loop() -> None:
    """Let other tasks run."""
    # Equivalent to `anyio.lowlevel.checkpoint()`, without its import.
    await anyio.sleep(0)  # noqa: ASYNC115


class BackgroundTask(Generic[T]):
    """Background task and its result.

    Args:
        if_unstarted: called if the task is cancelled before its first step, when none of its code can run.
        on_end: called when the task has ended, with or without a result.
    """

    def __init__(self, if_unstarted: Callable[[], None], on_end: Callable[[BackgroundTask[Any]], None]) -> None:
        self.done = anyio.Event()
        self._if_unstarted = if_unstarted
        self._on_end = on_end
        # Created by the task itself, because a task may be spawned from a callback of the loop.
        self._scope: anyio.CancelScope | None = None
        self._is_cancelled = self._is_started = self._is_ended = False
        self._value: T
        self._error: Exception | None = None
        self._has_value = False

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Run the work and keep its result or error. Only a cancellation by the event loop is raised."""
        self._is_started = True
        try:
            with anyio.CancelScope() as self._scope:
                if self._is_cancelled:
                    self._scope.cancel()
                self._value = await work()
                self._has_value = True
        except Exception as error:  # noqa: BLE001  raised again by `result`
            self._error = error
        finally:
            self.end()

    def end(self) -> None:
        """Mark the task as ended."""
        if self._is_ended:
            return
        self._is_ended = True
        if not self._is_started:
            self._if_unstarted()
        self._on_end(self)
        self.done.set()

    @property
    def is_done(self) -> bool:
        """Whether the task has ended, with or without a result."""
        return self._is_ended

    def cancel(self) -> None:
        """Cancel the task. Call it only in the thread of the event loop."""
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    async def result(self) -> T:
        """Wait for the result. Cancelling the waiter does not cancel the task.

        Raises:
            ClientClosedError: if the task was cancelled before it had a result.
            Exception: the error of the work.
        """
        await self.done.wait()
        if self._error is not None:
            raise self._error
        if not self._has_value:
            raise ClientClosedError("the client was closed during the call; it is unknown whether the call was applied")
        return self._value


class EventLoop(Protocol):
    """Event loop of one client."""

    current: Callable[[], object]
    """Return the object that identifies the running loop; raise RuntimeError outside of one."""

    def spawn(self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str) -> None:
        """Start a task with an empty context. Call it only in the thread of the event loop."""

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call it in the event loop, from any thread; does nothing if the loop has ended."""

    def is_current(self) -> bool:
        """Return whether the caller runs in this event loop."""

    def is_over(self) -> bool:
        """Return whether the event loop has ended or is stopped."""


class _AsyncioLoop:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio  # noqa: PLC0415  every program that runs this loop has imported it

        self._loop = loop
        self.current: Callable[[], object] = asyncio.get_running_loop
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str) -> None:
        native = contextvars.Context().run(self._create, task.run(work), name)
        self._tasks.add(native)

        def on_done(native: asyncio.Task[None]) -> None:
            self._tasks.discard(native)
            task.end()

        native.add_done_callback(on_done)

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
        # A stopped loop may run again later, but not while another one runs in its thread.
        return self._loop.is_closed() or not self._loop.is_running()


class _TrioLoop:
    def __init__(self) -> None:
        import trio  # noqa: PLC0415  an optional library, already in use here

        self._trio = trio
        self.current: Callable[[], object] = trio.lowlevel.current_trio_token
        self._token = trio.lowlevel.current_trio_token()

    def spawn(self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str) -> None:
        self._trio.lowlevel.spawn_system_task(task.run, work, name=name, context=contextvars.Context())

    def call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(callback)

    def is_current(self) -> bool:
        # In guest mode, the token is visible outside of tasks too, where trio cannot be used.
        return _in_trio() and self.current() is self._token

    def is_over(self) -> bool:
        try:
            self._token.run_sync_soon(_do_nothing)
        except self._trio.RunFinishedError:
            return True
        return False


def _do_nothing() -> None:
    return None


def _in_trio() -> bool:
    # Another thread may be importing trio at this moment: httpcore imports it when the pool is created.
    in_trio_task = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
    return in_trio_task is not None and bool(in_trio_task())


def current_loop() -> EventLoop | None:
    """Return the event loop of the caller, or None outside of one."""
    if _in_trio():
        return _TrioLoop()
    # A program that runs asyncio has imported it; importing this package alone must not.
    import asyncio  # noqa: PLC0415

    try:
        return _AsyncioLoop(asyncio.get_running_loop())
    except RuntimeError:
        return None
