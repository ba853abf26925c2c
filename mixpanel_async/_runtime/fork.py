"""Fork detection, and the end of worker processes.

Reactions to a fork are in `_delivery/intake.py` (`check_fork`) and in `_spool/fork_guard.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Final
from weakref import WeakSet

_HAS_FORK_HOOKS: Final = hasattr(os, "register_at_fork")


class ForkMarker:
    """Marker of the process that created it.

    A child that is forked through Python (`os.fork`, `multiprocessing`, `PyOS_AfterFork_Child`) sees `is_current` as
    False. Code in C that forks without Python's hooks is not supported: only the check of the process id in
    `Queue.check_fork` notices such a child.
    """

    __slots__ = ("__weakref__", "is_current")

    def __init__(self) -> None:
        self.is_current = True
        """False in a forked child. An attribute, because it is read for each event."""
        if _HAS_FORK_HOOKS:
            _live_markers().add(self)

    def expire(self) -> None:
        """Note that this process is a forked child."""
        self.is_current = False


@cache
def _live_markers() -> WeakSet[ForkMarker]:
    """Register the fork hook of this process, at the first call, and return the markers that it expires."""
    markers: WeakSet[ForkMarker] = WeakSet()

    def expire_all() -> None:
        for marker in list(markers):
            marker.expire()

    os.register_at_fork(after_in_child=expire_all)
    return markers


def at_worker_end(work: Callable[[], None]) -> None:
    """Call a function when this process ends, if it is a worker process of `multiprocessing`.

    Such a process, if it was forked, runs no function of `atexit`.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize  # noqa: PLC0415  only in these processes

        Finalize(None, work, exitpriority=0)
