"""What operators read: one line an episode, in words of our own, since a server's could repeat a payload."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ._records import Delivered, DropReason, Kind, Misconfigured, Outcome, Retry

_log = logging.getLogger("mixpanel_async")
# Seconds after which trouble that lasts, or comes again, may be told again.
_EVERY: Final = 20.0


class Logbook:
    """Remembers what has been said.

    Args:
        monotonic: seconds from an arbitrary start.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._requests: dict[tuple[Kind, int | None], float] = {}
        self._drops: dict[DropReason, float] = {}

    def request(self, kind: Kind, outcome: Outcome, records: int) -> None:
        """A request ended. Trouble of one kind is told once, and again only after a success and a while."""
        now = self._monotonic()
        if isinstance(outcome, Delivered):
            for key in [key for key, at in self._requests.items() if key[0] is kind and now - at >= _EVERY]:
                del self._requests[key]
            return
        if (kind, outcome.status) in self._requests:
            return
        self._requests[kind, outcome.status] = now
        what = f"HTTP {outcome.status}" if outcome.status is not None else outcome.message
        if isinstance(outcome, Misconfigured):
            text = "%s: refused (%s); check credentials, region and api_host; %d in this request are kept"
            _log.error(text, kind.value, what, records)
        elif isinstance(outcome, Retry):
            _log.warning("%s: no success (%s); %d in this request are tried again", kind.value, what, records)
        else:
            _log.warning("%s: a request of %d was not taken whole (%s)", kind.value, records, what)

    def dropped(self, reason: DropReason, so_far: int) -> None:
        """Records were dropped before they were sent. Not for those that `before_send` was meant to drop."""
        if reason not in {DropReason.QUEUE_FULL, DropReason.BEFORE_SEND_FAILED}:
            return
        now = self._monotonic()
        if now - self._drops.get(reason, -_EVERY) >= _EVERY:
            # Noted first: a log handler that tracks comes back here.
            self._drops[reason] = now
            _log.warning("records are being dropped (%s): %d so far", reason.value, so_far)
