"""Event for threads that a signal handler cannot leave locked."""

from __future__ import annotations

import threading

from .._model.interruption import raise_interruption


class ThreadEvent:
    """Event like `threading.Event`, for one or more waiting threads.

    `threading.Event.set` holds a lock while it runs Python code. If a signal handler raises there, the lock stays held,
    and each later call of `set` or `wait` blocks forever. Here an interrupted `set` has its effect or none.
    """

    __slots__ = ("_is_set", "_wakeup")

    def __init__(self) -> None:
        self._is_set = False
        # Held unless a waiting thread has to wake up. Releasing it twice raises RuntimeError.
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    def is_set(self) -> bool:
        """Return whether the event is set."""
        return self._is_set

    def set(self) -> None:
        """Set the event, and wake the waiting threads."""
        # No call between these two, so that no signal handler can run between them.
        self._is_set = True
        try:
            self._wakeup.release()
        except RuntimeError as error:
            # It was released before.
            raise_interruption(error)

    def clear(self) -> None:
        """Clear the event. Only the thread that waits for it may do this."""
        self._is_set = False
        self._wakeup.acquire(blocking=False)

    def wait(self, timeout: float) -> bool:
        """Wait until the event is set, and return whether it is.

        Args:
            timeout: seconds to wait at most.
        """
        if not self._is_set and self._wakeup.acquire(timeout=timeout):
            # Another thread may wait, too.
            try:
                self._wakeup.release()
            except RuntimeError as error:
                raise_interruption(error)
        return self._is_set
