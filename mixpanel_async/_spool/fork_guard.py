"""What a fork of the process means for a thread that owns an open database: it rests with the database closed."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Final

from .._model.errors import SpoolError

# Seconds that a fork waits for a transaction under way.
_FORK_WAIT_SECONDS: Final = 2.0


class ForkGuard:
    """Keeps a thread and the forks of its process apart.

    Args:
        in_child: called in a forked child.
        wake: makes the thread look at the gate.
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

    def watch(self, thread: threading.Thread) -> None:
        """Keep forks and this thread apart from now on."""
        self._thread = thread
        if not self._is_registered and hasattr(os, "register_at_fork"):
            self._is_registered = True
            # They cannot be taken back, so they hold nothing.
            gate = weakref.WeakMethod(self._before), weakref.WeakMethod(self._after)
            child = self._in_child
            os.register_at_fork(
                before=lambda: _call(gate[0]),
                after_in_parent=lambda: _call(gate[1]),
                after_in_child=lambda: _call(child),
            )

    def _before(self) -> None:
        thread = self._thread
        with self._changed:
            self._forks += 1
            if thread is None or thread is threading.current_thread():
                return
            self._wake()
            self._changed.wait_for(lambda: self._is_paused or self._thread is not thread, _FORK_WAIT_SECONDS)

    def _after(self) -> None:
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def pause_while_forking(self, close: Callable[[], None]) -> None:
        """Rest while the process forks. In the thread, before it touches the database.

        Raises:
            SpoolError: in a child that was forked while the database was open.
        """
        if self._is_unsafe:
            raise SpoolError("this process was forked while the spool was busy, and cannot use it")
        if not self._forks:
            return
        close()
        with self._changed:
            self._is_paused = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._forks)
            self._is_paused = False

    def thread_ended(self) -> None:
        """Note that the thread has closed the database for good."""
        with self._changed:
            self._thread = None
            self._changed.notify_all()

    def reset_in_child(self) -> None:
        """Begin anew in a child."""
        thread = self._thread
        self._is_unsafe = self._is_unsafe or (thread is not None and not self._is_paused)
        self._reset()


def _call(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    bound = method()
    if bound is not None:
        bound()
