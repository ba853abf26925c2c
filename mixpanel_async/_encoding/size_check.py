"""Check of values before orjson sees them.

orjson reserves eight bytes for each character of a text, and ends the process if it cannot get them.
"""

from __future__ import annotations

from typing import Any


def exceeds(value: Any, limit: int) -> bool:
    """Return whether a value of built-in types takes more than `limit` bytes as JSON, without encoding it.

    The result is a lower bound. Containers that contain one another end the check as soon as it is exceeded.
    """
    left = limit
    waiting: list[Any] = [value]
    while waiting:
        value = waiting.pop()
        kind = type(value)
        if kind is str:
            left -= len(value)
        elif kind is list or kind is tuple:
            left -= 2 * len(value)
            if left >= 0:
                waiting.extend(value)
        elif kind is dict:
            left -= 2 * len(value)
            if left >= 0:
                waiting.extend(value)
                waiting.extend(value.values())
        elif issubclass(kind, str):
            # `kind`, and the methods of `str` itself: a subclass may override its own.
            left -= str.__len__(value)
        if left < 0:
            return True
    return False
