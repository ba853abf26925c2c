"""Plain functions in threads, so that they hold up no event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio

from .event_loop import current_loop

T = TypeVar("T")


async def run_in_worker(work: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
    """Run a function that comes to its end in a worker thread of the event loop.

    Raises:
        BaseException: what the function raised.
    """
    # `prepare` has loaded it, so that who only imports this need not.
    from anyio import to_thread  # noqa: PLC0415

    return await to_thread.run_sync(work, limiter=limiter)


def start_daemon_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Start a function that may block for ever, in a thread of its own.

    The workers of an event loop are waited for when it ends and when the interpreter exits; such a thread is not.
    """
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


async def wait_for(future: Future[T]) -> T:
    """Wait for the end of what `begin` started. A waiter that is cancelled leaves it running.

    Raises:
        BaseException: what the function raised.
    """
    host = current_loop()
    assert host is not None
    event = anyio.Event()
    future.add_done_callback(lambda _: host.call_soon(event.set))
    await event.wait()
    return future.result()
