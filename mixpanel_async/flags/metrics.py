"""Counters of feature flags, and their log: one line per episode of failures."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from .._encoding.clock import Moment
from .._model.outcomes import Outcome, Request, Response, TransportFailure
from .._model.stats import FlagStats
from .._runtime.log_events import log_event

# Minimum seconds between two log lines about the same subject.
_REPEAT_AFTER: Final = 20.0


class RequestCount:
    """Number of requests to one endpoint. Observes the attempts of an `Api`."""

    def __init__(self) -> None:
        self.value = 0

    def request_started(self, *, again: bool, now: Moment) -> None:  # noqa: ARG002
        """Count a request, also if it is a retry."""
        self.value += 1

    def request_ended(
        self,
        request: Request,
        reply: Response | TransportFailure,
        outcome: Outcome,
        *,
        sent: Moment,
        received: Moment,
    ) -> None:
        """Ignore the reply. The providers count their failures."""


class FlagMetrics:
    """Counters and failure episodes of one client.

    There is no lock, as evaluations must work in a signal handler and after a fork. CPython does not switch threads
    within `count += 1` on an attribute; other interpreters may lose a count.

    Args:
        monotonic: returns seconds from an arbitrary start.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._logged_at: dict[str, float] = {}
        self._failing: set[str] = set()
        self.polls, self.remote_requests = RequestCount(), RequestCount()
        self._updates = self._poll_failures = self._refused = self._remote_failures = self._evaluation_failures = 0
        self._exposures = self._repeated_exposures = self._lost_exposures = 0
        self._last_error: str | None = None

    def count_update(self) -> None:
        """Count definitions that differ from those before."""
        self._updates += 1

    def count_poll_failure(self) -> None:
        """Count a poll without usable definitions."""
        self._poll_failures += 1

    def count_remote_failure(self) -> None:
        """Count a remote evaluation without a usable response."""
        self._remote_failures += 1

    def count_evaluation_failure(self) -> None:
        """Count a flag that could not be evaluated in this process."""
        self._evaluation_failures += 1

    def count_exposure(self) -> None:
        """Count an exposure event."""
        self._exposures += 1

    def count_repeated_exposure(self) -> None:
        """Count an exposure that was not tracked again within the window."""
        self._repeated_exposures += 1

    def count_lost_exposure(self) -> None:
        """Count an exposure that could not be tracked."""
        self._lost_exposures += 1

    def set_refused(self, count: int) -> None:
        """Set the number of malformed definitions in the last response."""
        self._refused = count

    def record_failure(
        self, subject: str, error: str, text: str, *values: object, level: int = logging.WARNING
    ) -> bool:
        """Record a failure, and log it if it begins an episode.

        Args:
            subject: an episode lasts until `record_recovery` is called for the same subject.
            error: becomes `FlagStats.last_error`.
            text: log line, with a placeholder for each of `values`.
            values: arguments of the log line.
            level: level of the log line.

        Returns:
            True if an episode begins.
        """
        self._last_error = error
        if subject in self._failing:
            return False
        self._failing.add(subject)
        now = self._monotonic()
        if now - self._logged_at.get(subject, -_REPEAT_AFTER) >= _REPEAT_AFTER:
            # Recorded before the call: a log handler that evaluates a flag can call this method again.
            self._logged_at[subject] = now
            log_event(level, "flags_failed", text, *values, subject=subject)
        return True

    def record_recovery(self, subject: str) -> bool:
        """Record a success. Return True if it ends an episode."""
        if subject not in self._failing:
            return False
        self._failing.discard(subject)
        return True

    def stats(self, *, ready: bool, definitions: int, age: float | None) -> FlagStats:
        """Return a snapshot. See `FlagStats` for the arguments."""
        return FlagStats(
            ready=ready,
            definitions=definitions,
            age=age,
            polls=self.polls.value,
            updates=self._updates,
            failures=self._poll_failures,
            refused=self._refused,
            remote_requests=self.remote_requests.value,
            remote_failures=self._remote_failures,
            undecidable=self._evaluation_failures,
            exposures=self._exposures,
            exposures_repeated=self._repeated_exposures,
            exposures_lost=self._lost_exposures,
            last_error=self._last_error,
        )
