"""Retry delays: backoff with full jitter, and the retry budget of a client."""

from __future__ import annotations

from dataclasses import replace
from typing import Final, Protocol

from .._model.config import RetryPolicy
from .._model.outcomes import Retry

_MAX_DOUBLINGS: Final = 60
# Jitter added to a Retry-After, so that many clients that were given the same delay do not return at the same moment.
_RETRY_AFTER_JITTER: Final = 0.25
# Retries available at the start, and the fraction of one that each successful request adds.
_INITIAL_BUDGET: Final = 10.0
_BUDGET_PER_SUCCESS: Final = 0.1
PROBE_AFTER: Final = 60.0
"""Maximum seconds between probes while Mixpanel refuses the credentials or the path."""


def backoff(policy: RetryPolicy, failures: int, retry_after: float | None, random: float) -> float:
    """Return the seconds to wait before the next attempt, with full jitter.

    Args:
        policy: gives the first and the longest delay.
        failures: consecutive failures, at least 1.
        retry_after: seconds that Mixpanel asked to wait, or None. The result is never shorter.
        random: uniform random number from 0 to 1.
    """
    ceiling = min(policy.maximum, policy.initial * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
    own = ceiling * random
    if retry_after is None:
        return own
    return max(own, retry_after) + random * max(_RETRY_AFTER_JITTER * retry_after, min(ceiling, 1.0))


class RetryRule(Protocol):
    """Decides whether a request whose caller waits is sent again."""

    @property
    def total_timeout(self) -> float | None:
        """Seconds for all attempts together, or None for no limit."""

    def delay(self, failure: Retry, attempts: int, elapsed: float, random: float) -> float | None:
        """Return the seconds to wait before the next attempt, or None after the last one.

        Args:
            failure: outcome of the last attempt.
            attempts: attempts so far.
            elapsed: seconds since the first attempt began.
            random: uniform random number from 0 to 1.
        """


class PolicyRule:
    """Retry rule that follows a `RetryPolicy`."""

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self.total_timeout = policy.total_timeout

    def within(self, seconds: float) -> PolicyRule:
        """Return the same rule, with at most this time for all attempts together."""
        total = seconds if self.total_timeout is None else min(seconds, self.total_timeout)
        return PolicyRule(replace(self._policy, total_timeout=total))

    def delay(self, failure: Retry, attempts: int, elapsed: float, random: float) -> float | None:  # noqa: ARG002
        """Return the seconds to wait before the next attempt, or None after the last one."""
        if self._policy.attempts is not None and attempts >= self._policy.attempts:
            return None
        if failure.immediately and attempts == 1:
            return 0.0
        return backoff(self._policy, attempts, failure.retry_after, random)


class RetryBudget:
    """Retry budget of one client. It limits the extra load that retries cause during an outage.

    The budget starts at 10 retries. Each retry takes one. A successful first attempt adds a tenth, a successful retry
    adds one. While the budget is spent, the delay before a retry is the policy's longest.

    Args:
        policy: gives the longest delay.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._set(_INITIAL_BUDGET)

    def _set(self, retries: float) -> None:
        self._left = retries
        self.is_full = retries == _INITIAL_BUDGET
        """Whether `succeeded` has no effect."""
        self.is_spent = retries < 1.0
        """Whether less than one retry is left."""

    def spend(self, delay: float, random: float) -> float:
        """Take one retry from the budget.

        Args:
            delay: seconds that the retry would wait with a sufficient budget.
            random: uniform random number from 0 to 1.

        Returns:
            Seconds to wait.
        """
        if self.is_spent:
            return max(delay, self._policy.maximum * (1.0 + random) / 2.0)
        self._set(self._left - 1.0)
        return delay

    def succeeded(self, *, again: bool) -> None:
        """Record a successful request. `again` is True for a retry."""
        self._set(min(_INITIAL_BUDGET, self._left + (1.0 if again else _BUDGET_PER_SUCCESS)))
