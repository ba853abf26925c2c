"""Batch sizes and run limits of an import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BATCH_RECORDS: Final = 2_000
BATCH_BYTES: Final = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportLimits:
    """Limits of one import run.

    Args:
        concurrency: maximum number of requests in flight.
        patience: seconds without any settled record after which the import gives up.
        grace: seconds that requests in flight get to settle after the first signal.
        at_least_once: resend updates that may already have been applied.
    """

    concurrency: int
    patience: float
    grace: float
    at_least_once: bool
