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
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from importlib import import_module
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import anyio

from .._model.errors import ClientClosedError

if TYPE_CHECKING:
    import asyncio

    import trio

T = TypeVar("T")

# Seconds after which an event loop that does not run is regarded as ended.
_STOPPED_AFTER: Final = 0.5


def preload_backend() -> None:
    """Import the modules that anyio would import at its first call, where that blocks the event loop for 30 ms."""
    with contextlib.suppress(ImportError):
        import_module("anyio._backends._asyncio")


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
        self._is_cancelled = self._is_started = self._is_ended = self._is_end_reported = False
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
            try:
                self.end()
            except Exception:  # noqa: BLE001  of a signal handler; it would end the whole event loop of trio
                self.end()

    def end(self) -> None:
        """Mark the task as ended. Again, if a signal handler has raised during the first call."""
        if self._is_end_reported:
            return
        self._is_ended = True
        if not self._is_started:
            self._if_unstarted()
        self._on_end(self)
        self.done.set()
        self._is_end_reported = True

    @property
    def is_done(self) -> bool:
        """Whether the task has ended, with or without a result."""
        return self._is_ended

    def cancel(self) -> None:
        """Cancel the task. Call it only in the thread of the event loop."""
        self._is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()

    @property
    def is_cut(self) -> bool:
        """Whether the task has no result: it was cancelled, or its event loop ended."""
        return self._error is None and not self._has_value

    def has_raised(self, kind: type[Exception]) -> bool:
        """Return whether the work raised an error of this class."""
        return isinstance(self._error, kind)

    def result(self) -> T:
        """Return the result of the ended task. Callable from any thread.

        Raises:
            ClientClosedError: if the task was cancelled before it had a result.
            Exception: the error of the work.
        """
        if self._error is not None:
            raise self._error
        if not self._has_value:
            raise ClientClosedError("the client was closed during the call", uncertain=True)
        return self._value


async def cancel_tasks(tasks: Iterable[BackgroundTask[Any]], timeout: float) -> None:
    """Cancel tasks of the running event loop, and wait up to this number of seconds for their end."""
    tasks = [*tasks]
    for task in tasks:
        task.cancel()
    with anyio.move_on_after(timeout):
        for task in tasks:
            await task.done.wait()


class LoopSignal(Protocol):
    """Wakes tasks of one event loop. Call its methods only there."""

    def notify(self) -> object:
        """Wake all tasks that wait now. Again, if a signal handler has raised during the first call."""

    def wait(self) -> Awaitable[object]:
        """Wait for the next call of `notify`. Await the result at once."""


class EventLoop(Protocol):
    """Event loop of one client."""

    keeps_tasks: bool
    """Whether the tasks are cancelled only when the event loop ends. In asyncio, an app can cancel all tasks."""
    current: Callable[[], object]
    """Return the object that identifies the running loop; raise RuntimeError outside of one."""

    def spawn(
        self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str, context: contextvars.Context
    ) -> None:
        """Start a task in this context. Call it only in the thread of the event loop."""

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Call it in the event loop, from any thread; does nothing if the loop has ended."""

    def new_signal(self) -> LoopSignal:
        """Return a signal for many waiting tasks, for which an event of anyio, or of asyncio, costs more."""

    def is_current(self) -> bool:
        """Return whether the caller runs in this event loop."""

    def is_running(self) -> bool:
        """Return whether the event loop runs now."""

    def is_over(self) -> bool:
        """Return whether the event loop has ended, or has been stopped for some time."""

    def is_same(self, other: EventLoop) -> bool:
        """Return whether both represent the same event loop."""

    def on_end(self, work: Callable[[], Awaitable[None]]) -> None:
        """Await a function when the event loop ends, after its other tasks. It replaces an earlier one.

        The first call must be made in the event loop, later ones may come from any thread. `asyncio.run`, `anyio.run`,
        `trio.run` and most servers end their event loop in the way that is needed here.
        """

    def forget_end(self) -> None:
        """Do not await the function of `on_end`. Callable from any thread."""


class _AsyncioEnd:
    """Function that an asyncio event loop awaits when it ends.

    A cancelled task may end without having made its first step. But then the event loop closes the async generators
    that have begun, and lets them await: `loop.shutdown_asyncgens()`, which `asyncio.run` and most servers call.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work: Callable[[], Awaitable[None]] | None = work
        self._generator: AsyncGenerator[None, None] | None = self._generate()
        # Runs to the `yield` without waiting for anything, which makes the generator known to the event loop. If that
        # has closed its generators before, and warnings are errors, it raises, and the end will not be noticed.
        with contextlib.suppress(StopIteration, Warning):
            self._generator.__anext__().send(None)

    async def _generate(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            if self._work is not None:
                hooks = sys.get_asyncgen_hooks()
                # The event loop warns about generators that begin from now on, such as those of httpx.
                sys.set_asyncgen_hooks(firstiter=None)
                try:
                    await self._work()
                finally:
                    sys.set_asyncgen_hooks(*hooks)

    def replace(self, work: Callable[[], Awaitable[None]] | None) -> None:
        """Await this function instead, or none. Callable from any thread."""
        self._work = work

    def close(self) -> None:
        """End the generator. Call it in the event loop."""
        self._work = None
        generator, self._generator = self._generator, None
        if generator is not None:
            with contextlib.suppress(StopIteration):
                generator.aclose().send(None)


class _AsyncioSignal:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: list[asyncio.Future[None]] = []

    def wait(self) -> Awaitable[object]:
        future = self._loop.create_future()
        self._waiters.append(future)
        return future

    def notify(self) -> None:
        for future in self._waiters:
            # A cancelled task has cancelled its future.
            if not future.done():
                future.set_result(None)
        self._waiters.clear()


class _AsyncioLoop:
    keeps_tasks = False

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        import asyncio  # noqa: PLC0415  every program that runs this loop has imported it

        self._loop = loop
        self._context = contextvars.Context()
        self._thread_id = get_ident()
        self._stopped_since: float | None = None
        self._end: _AsyncioEnd | None = None
        self.current: Callable[[], object] = asyncio.get_running_loop
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(
        self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str, context: contextvars.Context
    ) -> None:
        native = context.run(self._create, task.run(work), name)
        self._tasks.add(native)

        def on_done(native: asyncio.Task[None]) -> None:
            self._tasks.discard(native)
            task.end()

        # Without a context, the one of the caller would be kept until the task ends.
        native.add_done_callback(on_done, context=self._context)

    def _create(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return self._loop.create_task(work, name=name)

    def call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            # The context of a caller in another event loop would make anyio mistake this one for that.
            self._loop.call_soon_threadsafe(callback, context=self._context)

    def new_signal(self) -> LoopSignal:
        return _AsyncioSignal(self._loop)

    def is_current(self) -> bool:
        try:
            return self.current() is self._loop
        except RuntimeError:
            return False

    def is_running(self) -> bool:
        return self._loop.is_running()

    def is_over(self) -> bool:
        if self._loop.is_running():
            self._stopped_since = None
            return False
        # While it ends, a loop stops and starts several times. A stopped loop may also run again later, but not while
        # another one runs in its thread.
        if self._stopped_since is None:
            self._stopped_since = self._loop.time()
        has_stopped = self._loop.time() - self._stopped_since >= _STOPPED_AFTER
        # At the exit of the interpreter, it does not run again.
        is_exit = not main_thread().is_alive()
        return self._loop.is_closed() or get_ident() == self._thread_id or has_stopped or is_exit

    def is_same(self, other: EventLoop) -> bool:
        return isinstance(other, _AsyncioLoop) and other._loop is self._loop

    def on_end(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._end is None:
            self._end = _AsyncioEnd(work)
        else:
            self._end.replace(work)

    def forget_end(self) -> None:
        if self._end is not None:
            self._end.replace(None)
            if self.is_current():
                self._end.close()


class _TrioSignal:
    def __init__(self, tasks: trio.lowlevel.ParkingLot) -> None:
        self.wait = tasks.park
        self.notify: Callable[[], object] = tasks.unpark_all


class _TrioLoop:
    keeps_tasks = True

    def __init__(self) -> None:
        import trio  # noqa: PLC0415  an optional library, already in use here

        self._trio = trio
        self.current: Callable[[], object] = trio.lowlevel.current_trio_token
        self._token = trio.lowlevel.current_trio_token()
        self._end_scope = trio.CancelScope()
        self._end_work: Callable[[], Awaitable[None]] | None = None

    def spawn(
        self, task: BackgroundTask[T], work: Callable[[], Awaitable[T]], name: str, context: contextvars.Context
    ) -> None:
        try:
            self._trio.lowlevel.spawn_system_task(task.run, work, name=name, context=context)
        except RuntimeError:
            # The event loop is about to end, and starts no tasks any more.
            task.end()

    def call_soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(callback)

    def new_signal(self) -> LoopSignal:
        return _TrioSignal(self._trio.lowlevel.ParkingLot())

    def is_current(self) -> bool:
        # In guest mode, the token is visible outside of tasks too, where trio cannot be used.
        return in_trio() and self.current() is self._token

    def is_running(self) -> bool:
        return not self.is_over()

    def is_over(self) -> bool:
        try:
            self._token.run_sync_soon(_do_nothing)
        except self._trio.RunFinishedError:
            return True
        return False

    def is_same(self, other: EventLoop) -> bool:
        return isinstance(other, _TrioLoop) and other._token is self._token

    def on_end(self, work: Callable[[], Awaitable[None]]) -> None:
        is_first, self._end_work = self._end_work is None, work
        if is_first:
            self._trio.lowlevel.spawn_system_task(
                self._wait_for_end, name="mixpanel end", context=contextvars.Context()
            )

    async def _wait_for_end(self) -> None:
        with self._end_scope:
            try:
                await self._trio.sleep_forever()
            except self._trio.Cancelled:
                # trio cancels its system tasks after all others have ended.
                if self._end_work is not None and not self._end_scope.cancel_called:
                    await self._end_work()
                raise

    def forget_end(self) -> None:
        self.call_soon(self._end_scope.cancel)


def _do_nothing() -> None:
    return None


def in_trio() -> bool:
    """Return whether the caller is a task of trio."""
    # Another thread may be importing trio at this moment: httpcore imports it when the pool is created.
    in_trio_task = getattr(sys.modules.get("trio.lowlevel"), "in_trio_task", None)
    return in_trio_task is not None and bool(in_trio_task())


def current_loop() -> EventLoop | None:
    """Return the event loop of the caller, or None outside of one."""
    if in_trio():
        return _TrioLoop()
    # A program that runs asyncio has imported it. An import would fail while the interpreter ends.
    get_running_loop = getattr(sys.modules.get("asyncio"), "get_running_loop", None)
    if get_running_loop is None:
        return None
    try:
        return _AsyncioLoop(get_running_loop())
    except RuntimeError:
        return None
