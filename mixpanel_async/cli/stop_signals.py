"""Wait of a command that serves until Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
from queue import Empty, SimpleQueue
from typing import Final

# A signal that arrives between the last check of the interpreter and the wait does not end the wait, so that the wait
# has a timeout. On Windows, no signal ends it.
_SIGNAL_POLL_SECONDS: Final = 0.5


def capture_stop_signals() -> SimpleQueue[int]:
    """Return a queue that receives SIGINT and SIGTERM from now on.

    `SimpleQueue.put` is reentrant: a signal handler may call it while the same thread waits in `get`.
    """
    stop_signals: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stop_signals.put(number))
    return stop_signals


def wait_for_signal(stop_signals: SimpleQueue[int]) -> None:
    """Wait for the next signal.

    Args:
        stop_signals: queue of `capture_stop_signals`.
    """
    while True:
        try:
            stop_signals.get(timeout=_SIGNAL_POLL_SECONDS)
        except Empty:
            continue
        return
