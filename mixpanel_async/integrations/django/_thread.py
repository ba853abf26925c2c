"""Client that runs in a background thread, so that sync views, async views and commands share it."""

from __future__ import annotations

import atexit
import os
import threading
from asyncio import get_running_loop
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal
from asgiref.sync import async_to_sync

from mixpanel_async import AsyncMixpanel

T = TypeVar("T")

_NAME: Final = "mixpanel-django"
# Seconds for the thread to end. A hook of the app that blocks must not keep the process alive.
_CLOSE_TIMEOUT: Final = 20.0


class ClientThread:
    """Client in a daemon thread with an event loop. The end of the process delivers and closes it.

    A disabled client has no thread.

    Args:
        client: client that no event loop uses yet.

    Raises:
        MixpanelException: if the client cannot start.
    """

    def __init__(self, client: AsyncMixpanel) -> None:
        self.client = client
        self._pid = os.getpid()
        self._portal: BlockingPortal | None = None
        self._error: BaseException | None = None
        self._is_ready = threading.Event()
        # A daemon thread: other threads would be joined before the exit handler can close the client.
        self._thread = threading.Thread(target=anyio.run, args=(self._run,), name=_NAME, daemon=True)
        if client.enabled:
            self._thread.start()
            self._is_ready.wait()
            if self._error is not None:
                raise self._error
            atexit.register(self.close)

    @property
    def is_usable(self) -> bool:
        """Whether this process has the thread: a forked child has not."""
        return self._pid == os.getpid()

    async def _run(self) -> None:
        try:
            async with BlockingPortal() as portal, self.client:
                self._portal = portal
                self._is_ready.set()
                await portal.sleep_until_stopped()
        except BaseException as error:  # noqa: BLE001  the thread that waits raises it
            self._error = error
        finally:
            self._is_ready.set()

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine function in the thread and return its result."""
        if self._portal is None or not self._thread.is_alive():
            # A disabled client has no thread, and a closed client raises an error itself.
            return _run_here(function, arguments)
        result: T = self._portal.call(function, *arguments)
        return result

    def close(self) -> None:
        """Deliver, and end the thread. It may be called again."""
        atexit.unregister(self.close)
        if self.is_usable and self._thread.is_alive() and self._portal is not None:
            self._portal.start_task_soon(self._portal.stop)
            self._thread.join(_CLOSE_TIMEOUT)


def is_in_event_loop() -> bool:
    """Return whether the caller runs in an event loop, so that it must not block."""
    try:
        get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_here(function: Callable[..., Coroutine[Any, Any, T]], arguments: tuple[Any, ...]) -> T:
    """Call a coroutine function of a client that has no thread. It needs a loop."""
    if is_in_event_loop():
        return complete(function(*arguments))

    async def run() -> T:
        return await function(*arguments)

    result: T = async_to_sync(run)()
    return result


def complete(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that does not wait."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    coroutine.close()
    raise RuntimeError("the coroutine waits")
