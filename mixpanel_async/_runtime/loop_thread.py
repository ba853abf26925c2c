"""Event loop in a background thread, for programs without one."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future, wait
from typing import Final, TypeVar, cast

import anyio
from anyio.from_thread import BlockingPortal

from .._model.errors import MixpanelException
from .fork import ForkMarker
from .threads import start_daemon_thread

T = TypeVar("T")
# Seconds for the event loop to end. It needs them if an asynchronous generator or a task does not end.
_END_TIMEOUT: Final = 5.0


class InterruptedCallError(MixpanelException):
    """The caller is a signal handler or a finalizer that has interrupted another call of its thread."""


class LoopThread:
    """Daemon thread with an asyncio event loop. It starts at the first call, also in a forked child.

    Args:
        name: name of the thread.
        is_interrupted: returns whether the caller has interrupted code with a lock that the event loop needs.
    """

    def __init__(self, name: str, is_interrupted: Callable[[], bool]) -> None:
        self._name = name
        self._is_interrupted = is_interrupted
        self._reset()

    def _reset(self) -> None:
        self._fork_marker = ForkMarker()
        # A signal handler may use the client too.
        self._lock = threading.RLock()
        self._portal: BlockingPortal | None = None
        self._thread_id = 0
        self._ended: Future[None] | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        self._open()

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await a coroutine function in the thread, and return its result. An interrupt cancels it.

        Raises:
            InterruptedCallError: if the caller is a signal handler that has interrupted another call of its thread.
            MixpanelException: if the caller runs in the event loop of the thread, if the thread cannot be started, or
                if the event loop ended during the call.
            BaseException: the error of the function.
        """
        # An exit or an interrupt that is raised in a task ends the event loop, so it is passed on as a value.
        exits: list[BaseException] = []

        async def work() -> T | None:
            try:
                return await function()
            except (KeyboardInterrupt, SystemExit) as error:
                exits.append(error)
                return None

        if self._is_interrupted():
            raise InterruptedCallError(
                "a signal handler or finalizer has interrupted a call of the same client, and cannot wait for it; "
                "call this outside of the handler, or leave the delivery to the exit of the program"
            )
        future = self._begin(work)
        try:
            result = future.result()
        except CancelledError:
            raise MixpanelException(
                "the event loop of the client ended during the call; it is unknown whether the call was applied"
            ) from None
        except BaseException:
            future.cancel()
            raise
        if exits:
            raise exits[0]
        return cast("T", result)

    def _begin(self, function: Callable[[], Awaitable[T]]) -> Future[T]:
        portal = self._open()
        if threading.get_ident() == self._thread_id:
            raise MixpanelException(
                "a blocking method was called in the event loop of its client; await the method of the AsyncMixpanel"
            )
        try:
            return portal.start_task_soon(function)
        except RuntimeError:
            # A function that ran in the event loop has stopped it, or has cancelled all its tasks.
            return self._open(instead_of=portal).start_task_soon(function)

    def close(self) -> None:
        """End the event loop and the thread. The next call of `run` starts them again."""
        if not self._fork_marker.is_current:
            self._reset()
        with self._lock:
            portal, self._portal = self._portal, None
            ended = self._ended
        if portal is not None and ended is not None:
            portal.start_task_soon(portal.stop, True)  # noqa: FBT003  cancels what is left
            if threading.get_ident() != self._thread_id:
                wait([ended], _END_TIMEOUT)

    def stop_soon(self) -> None:
        """End the event loop and the thread without waiting for them. For finalizers, which must not block."""
        if not threading.main_thread().is_alive():
            # The interpreter exits. The client delivers what waits in this event loop.
            return
        portal, self._portal = self._portal, None
        if portal is not None and self._fork_marker.is_current and self._ended is not None and not self._ended.done():
            portal.start_task_soon(portal.stop, True)  # noqa: FBT003

    def _open(self, *, instead_of: BlockingPortal | None = None) -> BlockingPortal:
        """Return the portal of the thread, and start the thread if there is none, or only this portal, which ended."""
        if not self._fork_marker.is_current:
            # The thread belongs to the parent process.
            self._reset()
        with self._lock:
            if self._portal is None or self._portal is instead_of:
                try:
                    self._portal = self._start_thread()
                except Exception as error:
                    text = f"the event loop of the client cannot be started: {type(error).__name__}: {error}"
                    raise MixpanelException(text) from error
            return self._portal

    def _start_thread(self) -> BlockingPortal:
        ready: Future[BlockingPortal] = Future()

        async def main() -> None:
            self._thread_id = threading.get_ident()
            async with BlockingPortal() as portal:
                ready.set_result(portal)
                await portal.sleep_until_stopped()

        def check_start(ended: Future[None]) -> None:
            if not ready.done():
                ready.set_exception(ended.exception())

        self._ended = start_daemon_thread(lambda: anyio.run(main), self._name)
        # Without a free file descriptor, there is no event loop.
        self._ended.add_done_callback(check_start)
        return ready.result()
