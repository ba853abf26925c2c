"""Fork detection."""

from __future__ import annotations

import mmap
import os
import sys
from typing import Final, Protocol

# linux/mman.h; Python has no name for it.
_MADV_WIPEONFORK: Final = 18

_NO_ADVICE: Final = -1


class ForkMarker(Protocol):
    """Tells this process from every child that is forked from it: true at 0 here, and false there."""

    def __getitem__(self, at: int, /) -> object: ...


class _PidMarker:
    """Asks the system each time."""

    __slots__ = ("_pid",)

    def __init__(self) -> None:
        self._pid = os.getpid()

    def __getitem__(self, at: int, /) -> bool:
        return self._pid == os.getpid()


def fork_marker() -> ForkMarker:
    """A new one, of the process that calls.

    On Linux a page of memory that the kernel wipes in a child, whoever forks it (madvise(2), `MADV_WIPEONFORK`, since
    4.14): it is looked at for each event, and to ask for the number of the process would be a call of the system.
    """
    if not sys.platform.startswith("linux"):
        # The number may mean anything there.
        return _PidMarker()
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        page.madvise(_MADV_WIPEONFORK)
    except (AttributeError, OSError):
        return _PidMarker()
    try:
        page.madvise(_NO_ADVICE)
    except OSError:
        page[0] = 1
        return page
    # Whoever takes any advice may not follow it, as some emulators of Linux do.
    return _PidMarker()
