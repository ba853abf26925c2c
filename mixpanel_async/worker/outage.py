"""Log lines and delays while the outbox is not available."""

from __future__ import annotations

import logging
from typing import Final

from .._http.retry import backoff
from .._model.config import RetryPolicy
from .._model.errors import OutboxError
from .._runtime.environment import Environment
from .._runtime.log_events import log_event
from .._runtime.timers import sleep

# The outbox is close: a long delay would only make a worker lose its leases.
_RETRY: Final = RetryPolicy(initial=0.25, maximum=2.0)
_MIN_PAUSE: Final = 0.05
_PAUSE_WHEN_REFUSED: Final = 5.0


class Outage:
    """Commands of one outbox that fail. Each episode, from the first one to the end of the last one, has two log lines.

    Args:
        environment: randomness.
    """

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._failures: dict[str, int] = {}
        self.last_error: str | None = None
        """Message of the last failure of this episode; None if no command fails."""

    def ended(self, command: str) -> None:
        """Note that the outbox has carried out a command."""
        if self._failures.pop(command, 0) and not self._failures:
            self.last_error = None
            log_event(logging.INFO, "outbox_available", "the outbox is available again")

    async def wait(self, command: str, error: OutboxError) -> None:
        """Note that a command has failed, and wait before the next attempt."""
        if not self._failures:
            level = logging.ERROR if error.refused else logging.WARNING
            text = "the outbox is not available (%s); it is tried again"
            log_event(level, "outbox_unavailable", text, error, error=str(error))
        self.last_error = str(error)
        failures = self._failures[command] = self._failures.get(command, 0) + 1
        delay = backoff(_RETRY, failures, None, self._environment.random())
        await sleep(_PAUSE_WHEN_REFUSED if error.refused else max(delay, _MIN_PAUSE))
