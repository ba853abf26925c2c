"""Signals that ask an import to stop."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Final

_STOP_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class SignalCounter:
    """Context manager that counts stop signals. On exit it restores the previous handlers."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        """Number of the first signal received."""
        self._previous_handlers: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1
        self.first = self.first or number

    def __enter__(self) -> SignalCounter:  # noqa: PYI034  `Self` needs another dependency before Python 3.11
        for name in _STOP_SIGNALS:
            number = getattr(signal, name, None)
            # Ignored signals stay ignored: `nohup` ignores SIGHUP, and shells ignore SIGINT for background jobs.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @property
    def status(self) -> int | None:
        """Exit status of a process that was ended by the first signal; None without a signal."""
        return None if self.first is None else 128 + self.first
