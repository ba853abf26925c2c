"""Check of values before orjson sees them.

orjson reserves eight bytes for each character of a text, and ends the process if it cannot get them.
"""

from __future__ import annotations

from typing import Any, Final

MAX_RECORD_BYTES: Final = 1_000_000
"""Size of one message as JSON in bytes, exclusive."""

_MAX_PLAIN_BYTES: Final = 100_000
_MAX_ITEMS: Final = 254
# Nested containers. `/import` accepts no more.
_MAX_LEVELS: Final = 3
_SCALAR_TYPES: Final = frozenset({int, bool, type(None)})


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


def is_plain_json(value: object) -> bool:
    """Return whether this is a JSON scalar, or a small and flat container of them.

    No container has more than 254 items, none is nested more than three levels deep, and all texts and items together
    are small. A few lists that contain one another could expand to millions of values.
    """
    try:
        return _is_plain(value)
    except TypeError:
        # A key is not a string.
        return False


def _is_plain(value: object) -> bool:
    containers: list[Any] = [(value,)]
    left = _MAX_PLAIN_BYTES
    for _ in range(_MAX_LEVELS + 1):
        nested: list[Any] = []
        for container in containers:
            items = container
            if type(container) is dict:
                items = container.values()
                left -= sum(map(str.__len__, container))
            for item in items:
                kind = type(item)
                if kind is str:
                    left -= len(item)
                elif kind in _SCALAR_TYPES or (kind is float and item - item == 0.0):
                    continue
                elif (kind is dict or kind is list) and len(item) <= _MAX_ITEMS:
                    left -= 2 * len(item)
                    nested.append(item)
                else:
                    return False
        if left < 0 or not nested:
            return left >= 0
        containers = nested
    return False
