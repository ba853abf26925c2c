"""Plain functions that may block for ever, in threads that hold up neither the event loop nor the process's end.

The worker threads of an event loop are waited for when it ends and when the interpreter exits; these are not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio

from ._host import current_host

T = TypeVar("T")


def begin(work: Callable[[], T], name: str) -> Future[T]:
    """Start a function in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  kept for whoever waits
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


async def ended(future: Future[T]) -> T:
    """Wait for the end of what `begin` started. A waiter that is cancelled leaves it running.

    Raises:
        BaseException: what the function raised.
    """
    host = current_host()
    assert host is not None
    event = anyio.Event()
    future.add_done_callback(lambda _: host.call_soon(event.set))
    await event.wait()
    return future.result()
