"""Event loop in a background thread, for programs without one."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, wait
from typing import Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from .._model.errors import MixpanelException
from .fork import ForkMarker
from .threads import start_daemon_thread

T = TypeVar("T")
# Seconds for the event loop to end. It needs them if an asynchronous generator or a task does not end.
_END_TIMEOUT: Final = 5.0


class LoopThread:
    """Daemon thread with an asyncio event loop. It starts at the first call, also in a forked child.

    Args:
        name: name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._reset()

    def _reset(self) -> None:
        self._fork_marker = ForkMarker()
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._thread_id = 0
        self._ended: Future[None] | None = None

    def start(self) -> None:
        """Start the thread, unless it runs."""
        self._open()

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await a coroutine function in the thread, and return its result. An interrupt cancels it.

        Raises:
            MixpanelException: if the caller runs in the event loop of the thread.
            Exception: the error of the function.
        """
        portal = self._open()
        if threading.get_ident() == self._thread_id:
            raise MixpanelException(
                "a blocking method was called in the event loop of its client; await the method of the AsyncMixpanel"
            )
        future = portal.start_task_soon(function)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

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

    def _open(self) -> BlockingPortal:
        if not self._fork_marker.is_current:
            # The thread belongs to the parent process.
            self._reset()
        with self._lock:
            if self._portal is None:
                ready: Future[BlockingPortal] = Future()

                async def main() -> None:
                    self._thread_id = threading.get_ident()
                    async with BlockingPortal() as portal:
                        ready.set_result(portal)
                        await portal.sleep_until_stopped()

                self._ended = start_daemon_thread(lambda: anyio.run(main), self._name)
                self._portal = ready.result()
            return self._portal
