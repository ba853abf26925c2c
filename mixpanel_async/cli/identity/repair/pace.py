"""Rate limit of calls. Pure: the caller passes the time and waits."""

from __future__ import annotations


class Pace:
    """Even spacing of calls.

    Args:
        rate: maximum number of calls per second, more than 0.
    """

    def __init__(self, rate: float) -> None:
        self._interval = 1.0 / rate
        self._next = 0.0

    def reserve(self, now: float) -> float:
        """Reserve the next moment for a call, and return the seconds until then.

        Args:
            now: monotonic seconds.
        """
        moment = max(now, self._next)
        self._next = moment + self._interval
        return moment - now


class FailureBound:
    """Share of failed calls above which sending stops.

    Args:
        share: maximum share, from 0 to 1.
        judged_from: number of calls from which on the share is judged, so that the first failure alone does not stop.
    """

    def __init__(self, share: float, judged_from: int = 20) -> None:
        self._share = share
        self._judged_from = judged_from
        self.calls = 0
        self.failures = 0

    def add(self, *, failed: bool) -> None:
        """Count a call."""
        self.calls += 1
        self.failures += failed

    @property
    def is_exceeded(self) -> bool:
        return self.calls >= self._judged_from and self.failures > self._share * self.calls
