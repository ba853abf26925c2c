"""Check of values before orjson sees them.

orjson reserves eight bytes for each character of a text, and ends the process if it cannot get them.
"""

from __future__ import annotations

from typing import Any, Final

MAX_RECORD_BYTES: Final = 1_000_000
"""Size of one message as JSON in bytes, exclusive."""


def exceeds(value: Any, limit: int) -> bool:
    """Return whether a value of built-in types takes more than `limit` bytes as JSON, without encoding it.

    The result is a lower bound. Containers that contain one another end the check as soon as it is exceeded.
    """
    left = limit
    waiting: list[Any] = [(value,)]
    while waiting:
        parts = waiting.pop()
        for part in parts:
            kind = type(part)
            if kind is str:
                left -= len(part)
            elif kind is int or kind is float or kind is bool or part is None:
                continue
            elif kind is dict:
                left -= 2 * len(part)
                waiting += (part, part.values())
            elif kind is list or kind is tuple:
                left -= 2 * len(part)
                waiting.append(part)
            elif issubclass(kind, str):
                # `kind`, and the methods of `str` itself: a subclass may override its own.
                left -= str.__len__(part)
            if left < 0:
                return True
    return False
