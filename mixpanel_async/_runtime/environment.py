"""Clocks, randomness and ids in one object that a test can replace.

No other module of the client reads a system clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from .ids import IdSource


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


def real_environment() -> Environment:
    """Return the clocks of this machine and a separate random generator."""
    return Environment(
        wall_time=time.time,
        monotonic=time.monotonic,
        random=random.Random().random,  # noqa: S311  jitter is no secret
        new_id=IdSource(),
    )
