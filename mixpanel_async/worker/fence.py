"""Fence of a worker: it begins no request unless the outbox has lately confirmed that the worker is alive."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from ..outbox.protocol import FENCE_SECONDS


class Fence:
    """Closes some time after the last heartbeat. A process that was stopped finds it closed.

    Args:
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._renewed_at = -inf

    @property
    def is_open(self) -> bool:
        """Whether requests may begin."""
        return self._monotonic() - self._renewed_at < FENCE_SECONDS

    def renew(self, began_at: float) -> None:
        """Note a heartbeat that was confirmed and had begun at this time."""
        self._renewed_at = max(self._renewed_at, began_at)

    def close(self) -> None:
        """Let no request begin: the worker has given up its entries."""
        self._renewed_at = -inf
