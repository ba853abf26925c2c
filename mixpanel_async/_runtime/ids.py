"""Random ids: `$insert_id` values and UUIDs."""

from __future__ import annotations

import os
from typing import Final

from .fork import fork_marker

_IDS_PER_REFILL: Final = 512

_ID_BYTES: Final = 16


class IdSource:
    """Random ids of 32 hexadecimal digits, the form the official SDK gives to `$insert_id`.

    They are drawn from the system in bulk, as one `uuid4()` an event would cost as much as encoding it. Safe from any
    thread (`list.pop` is atomic); a forked child throws the parent's stock away.
    """

    __slots__ = ("_mark", "_stock")

    def __init__(self) -> None:
        self._stock: list[str] = []
        self._mark = fork_marker()

    def __call__(self) -> str:
        if not self._mark[0]:
            self._stock.clear()
            self._mark = fork_marker()
        try:
            return self._stock.pop()
        except IndexError:
            digits = os.urandom(_ID_BYTES * _IDS_PER_REFILL).hex()
            width = 2 * _ID_BYTES
            fresh = [digits[at : at + width] for at in range(0, len(digits), width)]
            one = fresh.pop()
            self._stock += fresh
            return one


def uuid4_text(digits: str) -> str:
    """Random hexadecimal digits, 32 of them, as the text of a UUID of version 4."""
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
