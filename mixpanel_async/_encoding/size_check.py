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
        if (type(value) is dict or type(value) is list) and len(value) <= _MAX_ITEMS:
            return _room_after(value, _MAX_PLAIN_BYTES, _MAX_LEVELS - 1) >= 0
        return _room_after((value,), _MAX_PLAIN_BYTES, 0) >= 0
    except TypeError:
        # A key is not a string.
        return False


def _room_after(container: Any, room: int, levels: int) -> int:
    """Return how many of these bytes are left after the values of a container. Negative if it is not plain."""
    items = container
    if type(container) is dict:
        # TypeError if a key is not a string. orjson refuses keys of subclasses.
        room -= len("".join(container))
        items = container.values()
    for item in items:
        kind = type(item)
        if kind is str:
            room -= len(item)
        elif kind is int or kind is bool or item is None or (kind is float and item - item == 0.0):
            continue
        elif levels and (kind is dict or kind is list) and len(item) <= _MAX_ITEMS:
            room = _room_after(item, room - 2 * len(item), levels - 1)
            if room < 0:
                return room
        else:
            return -1
    return room
