"""Blocking functions in threads, where they do not block an event loop."""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import anyio

from .event_loop import current_loop

T = TypeVar("T")


async def run_in_worker(work: Callable[[], T], name: str, limiter: anyio.CapacityLimiter) -> T:
    """Run a function in a daemon thread, and wait for it. If the process can start no thread now, run it here.

    Worker threads of anyio are not daemon threads: if an event loop ends without its clean-up, they keep the process
    alive forever.

    Args:
        work: the function, which ends soon. It goes on if the waiter is cancelled.
        name: name of the thread.
        limiter: bounds the number of these threads.

    Raises:
        BaseException: the error of the function.
    """
    async with limiter:
        try:
            future = start_daemon_thread(work, name)
        except RuntimeError:
            # To block the event loop for a moment is better than not to send or close anything.
            return work()
        return await wait_for(future)


def start_daemon_thread(work: Callable[[], T], name: str) -> Future[T]:
    """Start a function in a daemon thread. The function may block forever.

    The end of an event loop and the exit of the interpreter wait for worker threads, but not for a daemon thread.

    Raises:
        RuntimeError: if the process can start no thread now.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001  raised again by `wait_for`
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def start_thread_from_finalizer(work: Callable[[], object]) -> None:
    """Start a function in a daemon thread. Safe while the garbage collector interrupts any other code.

    `threading.Thread.start` takes a lock that the interrupted code may hold.

    Raises:
        RuntimeError: if the process can start no thread now.
    """
    _thread.start_new_thread(work, ())


async def wait_for(future: Future[T]) -> T:
    """Wait for a function started by `start_daemon_thread`. Cancelling the waiter does not stop the function.

    Raises:
        BaseException: the error of the function.
    """
    loop = current_loop()
    assert loop is not None
    event = anyio.Event()
    future.add_done_callback(lambda _: loop.call_soon(event.set))
    await event.wait()
    return future.result()
