"""Fork safety of the spool: the writer thread keeps its database closed while the process forks.

SQLite stores the locks of its connections in process memory. A child forked with an open database would inherit this
memory and treat its parent's locks as its own.
https://www.sqlite.org/howtocorrupt.html section 2.6, read 2026-11-22.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

from .._model.errors import SpoolError

# Maximum seconds a fork waits for a running transaction.
_FORK_WAIT_SECONDS: Final = 2.0


class ForkGuard:
    """Pauses one thread while its process forks.

    Args:
        in_child: called in a forked child.
        wake: wakes the thread, so that it calls `pause_while_forking`.
    """

    def __init__(self, in_child: Callable[[], None], wake: Callable[[], None]) -> None:
        self._in_child = weakref.WeakMethod(in_child)
        self._wake = wake
        self._is_registered = self._is_unsafe = False
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._forks = 0
        self._is_paused = False
        self.must_pause = self._is_unsafe
        """Whether the thread must call `pause_while_forking` before it uses the database."""

    def watch(self, thread: threading.Thread) -> None:
        """Pause this thread in every later fork."""
        self._thread = thread
        if not self._is_registered and hasattr(os, "register_at_fork"):
            # Fork hooks cannot be unregistered, so they hold only weak references.
            hooks = weakref.WeakMethod(self._before), weakref.WeakMethod(self._after)
            child = self._in_child
            os.register_at_fork(
                before=lambda: _call(hooks[0]),
                after_in_parent=lambda: _call(hooks[1]),
                after_in_child=lambda: _call(child),
            )
            # If a signal handler raises before this, they are registered a second time, which has no effect.
            self._is_registered = True

    def _before(self) -> None:
        thread = self._thread
        with self._changed:
            self._forks += 1
            self.must_pause = True
            if thread is None or thread is threading.current_thread():
                return
            self._wake()
            self._changed.wait_for(lambda: self._is_paused or self._thread is not thread, _FORK_WAIT_SECONDS)

    def _after(self) -> None:
        with self._changed:
            self._forks -= 1
            self.must_pause = self._is_unsafe or self._forks > 0
            self._changed.notify_all()

    def pause_while_forking(self, close: Callable[[], None]) -> None:
        """Close the database and wait until no fork is running. Call it in the watched thread.

        Raises:
            SpoolError: in a child that was forked while the database was open.
        """
        if self._is_unsafe:
            raise SpoolError(
                "this process was forked during a spool write and cannot use the spool; start the client after the fork"
            )
        if not self._forks:
            return
        close()
        with self._changed:
            self._is_paused = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._forks)
            self._is_paused = False

    def thread_ended(self) -> None:
        """Note that the thread has closed the database and ends."""
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    def reset_in_child(self) -> None:
        """Reset the state in a forked child, which has no such thread."""
        thread = self._thread
        self._is_unsafe = self._is_unsafe or (thread is not None and not self._is_paused)
        self._reset()


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()
