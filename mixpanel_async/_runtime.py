"""Time, chance and fresh ids, gathered in one object that a test can replace. Nothing else reads a clock."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_IDS_A_REFILL: Final = 512
_ID_BYTES: Final = 16


class IdSource:
    """Random ids of 32 hexadecimal digits, the form the official SDK gives to `$insert_id`.

    They are drawn from the system in bulk, as one `uuid4()` an event would cost as much as encoding it. Safe from any
    thread (`list.pop` is atomic); a forked child throws the parent's stock away.
    """

    __slots__ = ("_pid", "_stock")

    def __init__(self) -> None:
        self._stock: list[str] = []
        self._pid = os.getpid()

    def __call__(self) -> str:
        if self._pid != os.getpid():
            self._stock.clear()
            self._pid = os.getpid()
        try:
            return self._stock.pop()
        except IndexError:
            digits = os.urandom(_ID_BYTES * _IDS_A_REFILL).hex()
            width = 2 * _ID_BYTES
            fresh = [digits[at : at + width] for at in range(0, len(digits), width)]
            one = fresh.pop()
            self._stock += fresh
            return one


def uuid4_text(digits: str) -> str:
    """Random hexadecimal digits, 32 of them, as the text of a UUID of version 4."""
    variant = "89ab"[int(digits[16], 16) % 4]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Runtime:
    """What the core takes as arguments.

    Args:
        wall: seconds since 1970; stamps what is sent.
        monotonic: seconds from an arbitrary start; measures intervals.
        chance: an even draw from 0 to 1, for jitter.
        new_id: a fresh `$insert_id`.
    """

    wall: Callable[[], float]
    monotonic: Callable[[], float]
    chance: Callable[[], float]
    new_id: Callable[[], str]


def real_runtime() -> Runtime:
    """The clocks of this machine, and randomness of its own for each client."""
    return Runtime(
        wall=time.time,
        monotonic=time.monotonic,
        chance=random.Random().random,  # noqa: S311  jitter is no secret
        new_id=IdSource(),
    )
