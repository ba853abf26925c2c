"""Log lines for operators, at most one for each episode of failures.

The text is our own, because a server's message could repeat a payload. Each record has the same facts as data, for
handlers that write JSON. Its attribute `mixpanel` is a dict with `event` (`configuration_refused`, `retry_scheduled`,
`records_rejected` or `records_dropped`) and, if they apply, `kind`, `status`, `records` and `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from .._model.outcomes import ConfigurationRefused, Delivered, Outcome, Retry
from .._model.records import DropReason, RecordKind

_log = logging.getLogger("mixpanel_async")
# Seconds after which a failure that lasts, or occurs again, may be logged again.
_REPEAT_AFTER: Final = 20.0


class EpisodeLog:
    """Logs the first failure of each kind, and the next one only after a success and some time.

    Args:
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self.failures: dict[tuple[RecordKind, int | None], float] = {}
        """Failures that were logged and have not ended, with the time of the log line."""
        self._drops: dict[DropReason, float] = {}

    def request_succeeded(self, kind: RecordKind) -> None:
        """End the episodes of this kind that are old enough."""
        now = self._monotonic()
        for key in [key for key, at in self.failures.items() if key[0] is kind and now - at >= _REPEAT_AFTER]:
            del self.failures[key]

    def request_failed(self, kind: RecordKind, outcome: Outcome, records: int) -> None:
        """Log a failed request, unless the same failure was logged in this episode."""
        assert not isinstance(outcome, Delivered)
        if (kind, outcome.status) in self.failures:
            return
        self.failures[kind, outcome.status] = self._monotonic()
        cause = f"HTTP {outcome.status}" if outcome.status is not None else outcome.message
        data = {"kind": kind.value, "status": outcome.status, "records": records}
        if isinstance(outcome, ConfigurationRefused):
            text = "%s: batch of %d records refused (%s) and kept; check credentials, region and api_host"
            _log.error(text, kind.value, records, cause, extra=_as_data("configuration_refused", data))
        elif isinstance(outcome, Retry):
            text = "%s: batch of %d records failed (%s); retryable records will be resent"
            _log.warning(text, kind.value, records, cause, extra=_as_data("retry_scheduled", data))
        else:
            text = "%s: records of a batch of %d were rejected (%s)"
            _log.warning(text, kind.value, records, cause, extra=_as_data("records_rejected", data))

    def dropped(self, reason: DropReason, total: int) -> None:
        """Log that records were dropped before they were sent, except those that `before_send` dropped on purpose."""
        if reason not in {DropReason.QUEUE_FULL, DropReason.BEFORE_SEND_FAILED}:
            return
        now = self._monotonic()
        if now - self._drops.get(reason, -_REPEAT_AFTER) >= _REPEAT_AFTER:
            # Set before logging: a log handler that tracks an event may call this method again.
            self._drops[reason] = now
            data = _as_data("records_dropped", {"reason": reason.value, "records": total})
            _log.warning("records are being dropped (%s): %d so far", reason.value, total, extra=data)


def _as_data(event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"mixpanel": {"event": event, **data}}
