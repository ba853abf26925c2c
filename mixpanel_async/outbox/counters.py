"""Counters of a queue (pure). At every moment `in + retried == out + dead + uncertain + purged + lost + waiting`."""

from __future__ import annotations

from typing import Final

from .._model.records import DropReason

COUNTERS: Final = ("in", "retried", "out", "dead", "uncertain", "purged", "lost")
"""Names of the counters of records."""


def counter_of(reason: DropReason) -> str:
    """Return the counter of records that end for this reason."""
    if reason in (DropReason.UNCERTAIN, DropReason.PURGED):
        return str(reason.value)
    return "dead"
