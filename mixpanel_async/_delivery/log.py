"""What operators read: one line an episode, in words of our own, since a server's could repeat a payload.

Each record carries the same as data, for handlers that write JSON: its attribute `mixpanel` is a dict with `event`
(`refused`, `retried`, `not_whole` or `dropped`) and, as far as they apply, `kind`, `status`, `records` and `reason`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from .._model.outcomes import ConfigurationRefused, Delivered, Outcome, Retry
from .._model.records import DropReason, RecordKind

_log = logging.getLogger("mixpanel_async")
# Seconds after which trouble that lasts, or comes again, may be told again.
_REPEAT_AFTER: Final = 20.0


class EpisodeLog:
    """Remembers what has been said.

    Args:
        monotonic: seconds from an arbitrary start.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._requests: dict[tuple[RecordKind, int | None], float] = {}
        self._drops: dict[DropReason, float] = {}

    def request(self, kind: RecordKind, outcome: Outcome, records: int) -> None:
        """A request ended. Trouble of one kind is told once, and again only after a success and a while."""
        now = self._monotonic()
        if isinstance(outcome, Delivered):
            for key in [key for key, at in self._requests.items() if key[0] is kind and now - at >= _REPEAT_AFTER]:
                del self._requests[key]
            return
        if (kind, outcome.status) in self._requests:
            return
        self._requests[kind, outcome.status] = now
        what = f"HTTP {outcome.status}" if outcome.status is not None else outcome.message
        data = {"kind": kind.value, "status": outcome.status, "records": records}
        if isinstance(outcome, ConfigurationRefused):
            text = "%s: a request of %d was refused (%s) and is kept; check credentials, region and api_host"
            _log.error(text, kind.value, records, what, extra=_as_data("refused", data))
        elif isinstance(outcome, Retry):
            text = "%s: a request of %d failed (%s); what of it may be sent again will be"
            _log.warning(text, kind.value, records, what, extra=_as_data("retried", data))
        else:
            text = "%s: a request of %d was not taken whole (%s)"
            _log.warning(text, kind.value, records, what, extra=_as_data("not_whole", data))

    def dropped(self, reason: DropReason, so_far: int) -> None:
        """Records were dropped before they were sent. Not for those that `before_send` was meant to drop."""
        if reason not in {DropReason.QUEUE_FULL, DropReason.BEFORE_SEND_FAILED}:
            return
        now = self._monotonic()
        if now - self._drops.get(reason, -_REPEAT_AFTER) >= _REPEAT_AFTER:
            # Noted first: a log handler that tracks comes back here.
            self._drops[reason] = now
            data = _as_data("dropped", {"reason": reason.value, "records": so_far})
            _log.warning("records are being dropped (%s): %d so far", reason.value, so_far, extra=data)


def _as_data(event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    return {"mixpanel": {"event": event, **data}}
