"""What flags count, and what they tell an operator: one line an episode of trouble."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from .._model.stats import FlagStats

_log = logging.getLogger("mixpanel_async")
# Seconds after which trouble that comes again is told again.
_EVERY: Final = 20.0


class FlagMetrics:
    """Counters and episodes of one client.

    There is no lock, as evaluations must work in a signal handler and after a fork. CPython does not change threads
    within `count += 1` on an attribute; elsewhere a count may be a little low.

    Args:
        monotonic: seconds from an arbitrary start.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._told: dict[str, float] = {}
        self._open: set[str] = set()
        self.polls = self.updates = self.failures = self.refused = 0
        self.remote_requests = self.remote_failures = self.undecidable = 0
        self.exposures = self.exposures_repeated = self.exposures_lost = 0
        self.last_error: str | None = None

    def record_failure(
        self, subject: str, words: str, text: str, *values: object, level: int = logging.WARNING
    ) -> bool:
        """Note that something went wrong, and log it if that begins an episode.

        Args:
            subject: what it is about; an episode lasts until `over` is called for it.
            words: for `last_error`.
            text: for the log, with `%s` for each of `values`.
            values: put in there.
            level: of the line.

        Returns:
            Whether an episode begins.
        """
        self.last_error = words
        if subject in self._open:
            return False
        self._open.add(subject)
        now = self._monotonic()
        if now - self._told.get(subject, -_EVERY) >= _EVERY:
            # Noted first: a log handler that evaluates a flag comes back here.
            self._told[subject] = now
            _log.log(level, text, *values)
        return True

    def record_recovery(self, subject: str) -> bool:
        """Note that it went well. Returns whether that ends an episode."""
        if subject not in self._open:
            return False
        self._open.discard(subject)
        return True

    def stats(self, *, ready: bool, definitions: int, age: float | None) -> FlagStats:
        return FlagStats(
            ready=ready,
            definitions=definitions,
            age=age,
            polls=self.polls,
            updates=self.updates,
            failures=self.failures,
            refused=self.refused,
            remote_requests=self.remote_requests,
            remote_failures=self.remote_failures,
            undecidable=self.undecidable,
            exposures=self.exposures,
            exposures_repeated=self.exposures_repeated,
            exposures_lost=self.exposures_lost,
            last_error=self.last_error,
        )
