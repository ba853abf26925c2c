"""How long to wait before another try."""

from __future__ import annotations

from typing import Final

from .._model.config import RetryPolicy

_MAX_DOUBLINGS: Final = 60
# Spread added to a wait that Mixpanel asked for, so that a fleet told "60" does not come back as one.
_RETRY_AFTER_JITTER: Final = 0.25
# Tries that may follow upon failures at once, and the share of them in all requests after that.
_INITIAL_BUDGET: Final = 10.0
_BUDGET_PER_SUCCESS: Final = 0.1
PROBE_AFTER: Final = 60.0
"""Ceiling in seconds between probes while Mixpanel refuses the credentials or the path."""


def backoff(policy: RetryPolicy, failures: int, retry_after: float | None, random: float) -> float:
    """Seconds until the next try, with full jitter.

    Args:
        policy: gives the ceiling.
        failures: tries that failed in a row, at least 1.
        retry_after: what Mixpanel asked for, which is never undercut.
        draw: an even draw from 0 to 1.
    """
    ceiling = min(policy.maximum, policy.initial * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    own = ceiling * random
    if retry_after is None:
        return own
    return max(own, retry_after) + random * max(_RETRY_AFTER_JITTER * retry_after, min(ceiling, 1.0))


class RetryBudget:
    """How many tries may follow upon failures, so that an outage does not meet a storm.

    It begins with a small stock. A try that follows upon a failure takes one, a request that succeeds gives back a
    tenth, or the whole one if it was such a try. Without stock the next try comes at the policy's slowest pace.

    Args:
        policy: gives that pace.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._left = _INITIAL_BUDGET

    @property
    def is_spent(self) -> bool:
        return self._left < 1.0

    def spend(self, delay: float, random: float) -> float:
        """Take one for the next try.

        Args:
            delay: seconds that it would wait.
            draw: an even draw from 0 to 1.

        Returns:
            Seconds that it waits.
        """
        if self.is_spent:
            return max(delay, self._policy.maximum * (1.0 + random) / 2.0)
        self._left -= 1.0
        return delay

    def succeeded(self, *, again: bool) -> None:
        """A request was answered with success; `again` says that it followed upon a failure."""
        self._left = min(_INITIAL_BUDGET, self._left + (1.0 if again else _BUDGET_PER_SUCCESS))
