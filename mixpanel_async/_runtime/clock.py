"""Time, chance and fresh ids, gathered in one object that a test can replace. Nothing else reads a clock."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from .ids import IdSource


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Environment:
    """What the core takes as arguments.

    Args:
        wall: seconds since 1970; stamps what is sent.
        monotonic: seconds from an arbitrary start; measures intervals.
        chance: an even draw from 0 to 1, for jitter.
        new_id: a fresh `$insert_id`.
    """

    wall_time: Callable[[], float]
    monotonic: Callable[[], float]
    random: Callable[[], float]
    new_id: Callable[[], str]


def real_environment() -> Environment:
    """The clocks of this machine, and randomness of its own for each client."""
    return Environment(
        wall_time=time.time,
        monotonic=time.monotonic,
        random=random.Random().random,  # noqa: S311  jitter is no secret
        new_id=IdSource(),
    )
