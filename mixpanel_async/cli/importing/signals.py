"""Signals that ask an import to stop, counted."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any, Final

_ASKING: Final = ("SIGINT", "SIGTERM", "SIGHUP")


class Signals:
    """Counts the signals that come while its block is entered; after it they do what they did before."""

    def __init__(self) -> None:
        self.count = 0
        self.number: int | None = None
        """The first that came."""
        self._before: dict[int, Any] = {}

    def _came(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1
        self.number = self.number or number

    def __enter__(self) -> Signals:  # noqa: PYI034  `Self` would need another dependency before Python 3.11
        for name in _ASKING:
            number = getattr(signal, name, None)
            # `nohup` has a program ignore SIGHUP, and a shell has one in the background ignore SIGINT.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._came)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def status(self) -> int | None:
        """The exit status of a program that a signal ended."""
        return None if self.number is None else 128 + self.number
