"""Control of the number of requests in flight."""

from __future__ import annotations

from typing import Final

_INITIAL_LIMIT: Final = 4


class ConcurrencyController:
    """Limit of requests in flight: plus one per round without retries, halved after a retry.

    A request that needed more than one attempt indicates a rate limit or an outage. All requests that were retried for
    one cause return together, so they halve the limit once.

    Args:
        maximum: maximum number of requests in flight; at least 1.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._limit = float(min(_INITIAL_LIMIT, maximum))
        self._was_retried = False

    @property
    def limit(self) -> int:
        """Current maximum number of requests in flight."""
        return int(self._limit)

    def on_delivered(self, attempts: int) -> None:
        """Adjust the limit after an accepted request.

        Args:
            attempts: number of attempts that the request needed.
        """
        if attempts == 1:
            self._was_retried = False
            self._limit = min(float(self._maximum), self._limit + 1 / self._limit)
        elif not self._was_retried:
            self._was_retried = True
            self._limit = max(1.0, self._limit / 2)
