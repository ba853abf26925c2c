"""Timers that also work while a test has stopped the clock of the event loop.

freezegun replaces `time.monotonic` unless it is used with `real_asyncio=True`. The timers of an event loop then never
fire, and those set at that time do not fire later either. A record would wait forever for its batch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from .environment import is_monotonic_replaced
from .event_loop import current_loop, yield_to_loop
from .threads import start_daemon_thread


@contextmanager
def move_on_after(seconds: float | None) -> Iterator[None]:
    """Cancel the block after this number of seconds; with None never."""
    loop = current_loop() if seconds is not None and is_monotonic_replaced() else None
    if loop is None or seconds is None:
        with anyio.move_on_after(seconds):
            yield
        return
    ended = threading.Event()

    def wait() -> None:
        if not ended.wait(seconds):
            loop.call_soon(scope.cancel)

    with anyio.CancelScope() as scope:
        start_daemon_thread(wait, "mixpanel timer")
        try:
            yield
        finally:
            ended.set()


async def sleep(seconds: float) -> None:
    """Wait for this number of seconds."""
    if seconds <= 0:
        await yield_to_loop()
    elif is_monotonic_replaced():
        with move_on_after(seconds):
            await anyio.sleep_forever()
    else:
        await anyio.sleep(seconds)
