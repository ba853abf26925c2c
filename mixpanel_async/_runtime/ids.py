"""Random ids: `$insert_id` values and UUIDs."""

from __future__ import annotations

import os
from typing import Final

from .fork import ForkMarker

_IDS_PER_REFILL: Final = 512

_ID_BYTES: Final = 16


class IdSource:
    """Random ids of 32 hexadecimal digits, the form the official SDK gives to `$insert_id`.

    Random bytes are read from the system for 512 ids at once, because one `uuid4()` per event would cost as much as
    encoding it. Safe in any thread, because `list.pop` is atomic. A forked child discards the unused ids of its parent.
    """

    __slots__ = ("_fork_marker", "_unused")

    def __init__(self) -> None:
        self._unused: list[str] = []
        self._fork_marker = ForkMarker()

    def __call__(self) -> str:
        if not self._fork_marker.is_current:
            self._unused.clear()
            self._fork_marker = ForkMarker()
        try:
            return self._unused.pop()
        except IndexError:
            digits = os.urandom(_ID_BYTES * _IDS_PER_REFILL).hex()
            width = 2 * _ID_BYTES
            ids = [digits[at : at + width] for at in range(0, len(digits), width)]
            last = ids.pop()
            self._unused += ids
            return last


def uuid4_text(digits: str) -> str:
    """Format 32 random hexadecimal digits as a version 4 UUID."""
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
