"""Clocks, randomness and ids in one object that a test can replace.

No other module of the client reads a system clock. Applications replace the clocks in their tests, with freezegun or
time-machine. Events then have the replaced time. Intervals, and the model of the machine's clock, use the real clocks.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import BuiltinImporter
from importlib.util import module_from_spec
from types import BuiltinFunctionType, SimpleNamespace
from typing import Any, Final, Protocol

from .ids import IdSource


class WallClock(Protocol):
    """Clock with the method `time`, such as the module `time`."""

    @property
    def time(self) -> Callable[[], float]:
        """Return the seconds since 1970."""


def _load_time_module() -> Any:
    """Return a second instance of the module `time`.

    freezegun replaces the functions of the module `time` and every reference to them in a module. It can be active when
    this module is imported.
    """
    spec = BuiltinImporter.find_spec("time")
    if spec is None or spec.loader is None:
        return time
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_REAL_TIME: Final = _load_time_module()


def _wall_time() -> float:
    return time.time()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Environment:
    """Sources of time and randomness.

    Args:
        wall_time: returns the seconds since 1970, for event times.
        monotonic: returns the seconds since an arbitrary start, for intervals.
        random: returns a uniform random number from 0 to 1, for jitter.
        new_id: returns a new `$insert_id`.
    """

    wall_time: Callable[[], float]
    monotonic: Callable[[], float]
    random: Callable[[], float]
    new_id: Callable[[], str]

    @property
    def wall_clock(self) -> WallClock:
        """Clock that returns `wall_time`, for the hot path: it saves a call in Python, 1 % of the cost of an event."""
        return time if self.wall_time is _wall_time else SimpleNamespace(time=self.wall_time)

    def machine_time(self) -> float:
        """Return the seconds since 1970 by the machine's clock, even if a test has replaced `time.time`."""
        if self.wall_time is not _wall_time:
            return self.wall_time()
        return float(_traveller().time.time() if _is_travelling() else _REAL_TIME.time())

    def is_wall_time_replaced(self) -> bool:
        """Return whether a test has replaced `time.time`."""
        return self.wall_time is _wall_time and (not isinstance(time.time, BuiltinFunctionType) or _is_travelling())


def is_memory_limited() -> bool:
    """Return whether the process has a limit for its address space, such as that of `ulimit -v`."""
    try:
        import resource  # noqa: PLC0415  not on Windows
    except ImportError:
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def real_environment() -> Environment:
    """Return the clocks of this machine and a separate random generator."""
    return Environment(
        wall_time=_wall_time,
        monotonic=_REAL_TIME.monotonic,
        random=random.Random().random,  # noqa: S311  jitter is no secret
        new_id=IdSource(),
    )


def is_monotonic_replaced() -> bool:
    """Return whether a test has replaced `time.monotonic`. Event loops then have no working timers."""
    return not isinstance(time.monotonic, BuiltinFunctionType)


def _traveller() -> Any:
    """Return the part of time-machine that gives access to the real clock; None if it is not in use.

    It patches the function behind `time.time`, so that every reference to it is affected.
    """
    return getattr(sys.modules.get("time_machine"), "escape_hatch", None)


def _is_travelling() -> bool:
    traveller = _traveller()
    return traveller is not None and bool(traveller.is_travelling())
