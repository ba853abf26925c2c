"""Warning about a client that has accepted records and that no event loop runs."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from .._model.errors import count_of
from .._runtime.log_events import log_event
from .._runtime.threads import start_thread_from_finalizer

if TYPE_CHECKING:
    from .loop_binding import LoopBinding
    from .queue import Queue

# Seconds without an event loop after which waiting records are reported.
_WARN_AFTER: Final = 3.0


class Watchdog:
    """Warns once if records wait and no event loop runs the client.

    Args:
        queue: waiting records.
        binding: event loop of the client.
        delay: seconds until the check.
    """

    def __init__(self, queue: Queue, binding: LoopBinding, delay: float = _WARN_AFTER) -> None:
        self._queue = queue
        self._binding = binding
        self._delay = delay
        self._has_begun = False

    def begin(self) -> None:
        """Check after some seconds, in a daemon thread. Later calls have no effect."""
        if self._has_begun:
            return
        self._has_begun = True
        # Without a thread, only the warning is missing.
        with suppress(RuntimeError):
            start_thread_from_finalizer(self._check)

    def _check(self) -> None:
        threading.Event().wait(self._delay)
        loop = self._binding.loop
        if self._queue.closed or not self._queue.pending or (loop is not None and loop.is_running()):
            return
        text = (
            "%s waiting and no event loop runs the client: in a web app use an integration or "
            "`async with client` in its lifespan, because a server may end without what Python does at exit; in a "
            "program without an event loop call start_in_thread() or use `with client.in_thread()`"
        )
        records = self._queue.pending
        log_event(logging.WARNING, "not_started", text, count_of(records, "record is", "records are"), records=records)
