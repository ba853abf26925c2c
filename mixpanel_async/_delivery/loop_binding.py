"""Event loop of a client, its background tasks, and the signals that wake them."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from .._runtime.event_loop import BackgroundTask, EventLoop
from .._runtime.timers import move_on_after

if TYPE_CHECKING:
    from .callbacks import Callbacks
    from .destination import Connections

T = TypeVar("T")
# One of this many signals to a sender that is awake wakes it nevertheless.
_PASS_EVERY: Final = 16


def _nothing(_: object = None) -> None:
    return None


class LoopBinding:
    """Event loop of a client, its background tasks, and the signals that wake them.

    It is the `QueueListener` and the `DeliveryListener` of the client, whose signals may come from any thread and any
    event loop.

    Args:
        callbacks: the user's callbacks.
        connections: connections for batches and awaited calls.

    Attributes:
        loop: the bound event loop; None while the client runs in no event loop.
        lock: held while the client is bound to an event loop.
        is_ending: the event loop ends; no task may be started in it.
        requests: tasks that send a request.
        progress: set, and replaced, whenever waiting tasks have to check their condition.
    """

    def __init__(self, callbacks: Callbacks, connections: Connections) -> None:
        self._callbacks = callbacks
        self._connections = connections
        self.loop: EventLoop | None = None
        self.lock = threading.RLock()
        self.is_ending = False
        self.requests: set[BackgroundTask[Any]] = set()
        self.progress: anyio.Event | None = None
        self._callbacks_task: BackgroundTask[None] | None = None
        self._parent_resources: object = None
        self._is_awake = False
        self._signals = 0
        self._wakeup: anyio.Event | None = None
        self._on_use: Callable[[], None] = _nothing
        self._is_used = False

    def subscribe(self, on_use: Callable[[], None]) -> None:
        """Call a function when a process first uses the client, from any thread; a forked child is another process."""
        self._on_use = on_use

    def _use(self) -> None:
        if not self._is_used:
            self._is_used = True
            self._on_use()

    def bind(self, loop: EventLoop) -> None:
        """Bind to the running event loop."""
        self._use()
        if self.loop is not None and self._wakeup is not None and self.progress is not None:
            # In the earlier event loop, the main task ends, and calls that wait for room go on to wait in this one.
            self.loop.call_soon(self._wakeup.set)
            self.loop.call_soon(self.progress.set)
        self.loop = loop
        self.progress = anyio.Event()
        self._wakeup = anyio.Event()
        self._callbacks_task = None
        self.is_ending = False
        self.requests = set()

    def abandon(self) -> None:
        """Leave the event loop, which has ended or does not respond, with its tasks and sockets."""
        assert self.loop is not None
        close = self._connections.detach_pool()
        task: BackgroundTask[None] = BackgroundTask(_nothing, _nothing)
        # The event loop may continue, or end in its next turn.
        self.loop.on_end(close)
        self.loop.call_soon(partial(self.loop.spawn, task, close, "mixpanel close", Context()))

    def begin_end(self) -> set[BackgroundTask[Any]]:
        """Note that the event loop is about to end, so that no further task is started in it.

        Returns:
            Requests that may still run.
        """
        self.is_ending = True
        return self.requests

    def release(self) -> None:
        """Unbind: the event loop is about to end, or has lost the main task of the client."""
        self.loop = None
        self._is_awake = False

    def spawn(
        self,
        work: Callable[[], Awaitable[T]],
        name: str,
        *,
        if_unstarted: Callable[[], None] = _nothing,
        on_end: Callable[[BackgroundTask[Any]], None] = _nothing,
        context: Context | None = None,
    ) -> BackgroundTask[T]:
        """Run a coroutine function in a background task, by default with an empty context.

        The task ends without having started if another event loop takes over at this moment.
        """
        loop = self.loop
        task: BackgroundTask[T] = BackgroundTask(if_unstarted, on_end)
        if loop is not None and loop.is_current():
            loop.spawn(task, work, name, Context() if context is None else context)
        else:
            task.end()
        return task

    def spawn_request(
        self,
        work: Callable[[], Awaitable[T]],
        name: str,
        if_unstarted: Callable[[], None],
        *,
        context: Context | None = None,
        on_end: Callable[[BackgroundTask[Any]], None] = _nothing,
    ) -> BackgroundTask[T]:
        """Run a coroutine function that sends a request. `aclose()` waits for it."""
        requests = self.requests

        def ended(task: BackgroundTask[Any]) -> None:
            requests.discard(task)
            on_end(task)

        task = self.spawn(work, name, if_unstarted=if_unstarted, on_end=ended, context=context)
        if not task.is_done:
            requests.add(task)
        return task

    # Signals to the sender

    def on_work(self) -> None:
        """Wake the sender. Callable from any thread."""
        self._signals += 1
        # A signal handler that raises may have cut off the call that was scheduled, so some signals pass anyway.
        if not self._is_awake or self._signals % _PASS_EVERY == 0:
            self._is_awake = True
            try:
                self._use()
                if self.loop is not None:
                    self.loop.call_soon(self.wake)
            except BaseException:
                # Raised by a signal handler. The sender may sleep, and later signals must wake it.
                self._is_awake = False
                raise

    def wake(self) -> None:
        """Wake the sender at once. Call it only in the event loop."""
        if self._wakeup is not None:
            self._wakeup.set()

    def reset_wakeup(self) -> None:
        """Make later signals wake the next `wait_for_work`. Call this before looking at the queue."""
        self._wakeup = anyio.Event()
        self._is_awake = False

    async def wait_for_work(self, timeout: float | None) -> None:
        """Wait for a signal, for at most this number of seconds."""
        assert self._wakeup is not None
        with move_on_after(timeout):
            await self._wakeup.wait()

    # Signals to waiting tasks

    def on_room(self) -> None:
        """Let all waiting tasks check their condition again. Callable from any thread."""
        if self.loop is not None:
            self.loop.call_soon(self.on_settled)

    def on_settled(self) -> None:
        """Let all waiting tasks check their condition again, as a batch was settled or the client closes."""
        try:
            if self.loop is not None and not self.loop.is_current():
                # A request of an earlier event loop, from which this one has taken over.
                self.on_room()
                return
            # Not through the loop: a busy producer can delay its next turn for a long time. The sender is woken first,
            # so that the next batch leaves before the waiting tasks continue.
            self.wake()
            if self.progress is not None:
                self.progress.set()
            self.progress = anyio.Event()
        except BaseException:
            # Raised by a signal handler.
            self.on_room()
            raise

    # Callbacks

    def on_losses(self) -> None:
        """Schedule the user's callbacks. Callable from any thread."""
        if self.loop is not None:
            self.loop.call_soon(self.on_delivery)

    def on_delivery(self) -> None:
        """Run the user's callbacks, unless they are running."""
        if self.loop is not None and not self.loop.is_current():
            self.on_losses()
        elif (
            not self.is_ending
            and self.loop is not None
            and (self._callbacks_task is None or self._callbacks_task.is_done)
        ):
            self._callbacks_task = self.spawn(self._callbacks.run, "mixpanel callbacks")

    @property
    def _is_in_callbacks(self) -> bool:
        return self._callbacks_task is not None and not self._callbacks_task.is_done

    async def callbacks_done(self) -> None:
        """Run the user's callbacks until nothing is left to report."""
        while not self.is_ending and (
            not self._callbacks.idle or not (self._callbacks_task is None or self._callbacks_task.is_done)
        ):
            self.on_delivery()
            if self._callbacks_task is not None:
                await self._callbacks_task.done.wait()

    def cancel_callbacks(self) -> None:
        """Cancel the task that runs the user's callbacks."""
        if self._callbacks_task is not None:
            self._callbacks_task.cancel()

    # Fork

    def on_fork(self) -> None:
        """Detach from the event loop and the sockets of the parent.

        They are kept alive: a task or a connection closes itself when it is collected, which reaches the parent because
        both processes share one selector.
        """
        self._parent_resources = (self.loop, self._callbacks_task, self.requests, self._connections.detach_pool())
        self.loop = self._callbacks_task = None
        self.lock = threading.RLock()
        self.requests = set()
        self._is_awake = self._is_used = False
