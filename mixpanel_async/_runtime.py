"""Time, chance and fresh ids, gathered in one object that a test can replace. Nothing else reads a clock."""

from __future__ import annotations

import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

_IDS_A_REFILL: Final = 512
_ID_BYTES: Final = 16
# linux/mman.h; Python has no name for it.
_MADV_WIPEONFORK: Final = 18
_NO_ADVICE: Final = -1


class Birthmark(Protocol):
    """Tells this process from every child that is forked from it: true at 0 here, and false there."""

    def __getitem__(self, at: int, /) -> object: ...


class _Asked:
    """Asks the system each time."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, at: int, /) -> bool:
        return self._pid == os.getpid()


def birthmark() -> Birthmark:
    """A new one, of the process that calls.

    On Linux a page of memory that the kernel wipes in a child, whoever forks it (madvise(2), `MADV_WIPEONFORK`, since
    4.14): it is looked at for each event, and to ask for the number of the process would be a call of the system.
    """
    if not sys.platform.startswith("linux"):
        # The number may mean anything there.
        return _Asked()
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError):
        return _Asked()
    try:
        page.madvise(_NO_ADVICE)
    except OSError:
        page[0] = 1
        return page
    # Whoever takes any advice may not follow it, as some emulators of Linux do.
    return _Asked()


class IdSource:
    """Random ids of 32 hexadecimal digits, the form the official SDK gives to `$insert_id`.

    They are drawn from the system in bulk, as one `uuid4()` an event would cost as much as encoding it. Safe from any
    thread (`list.pop` is atomic); a forked child throws the parent's stock away.
    """

    __slots__ = ("_mark", "_stock")

    def __init__(self) -> None:
        self._stock: list[str] = []
        self._mark = birthmark()

    def __call__(self) -> str:
        if not self._mark[0]:
            self._stock.clear()
            self._mark = birthmark()
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
