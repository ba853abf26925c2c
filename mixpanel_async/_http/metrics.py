"""Counters of requests, and facts from their responses."""

from __future__ import annotations

from collections.abc import Callable

from .._encoding.clock import ClockNotice, Moment, ServerClock
from .._model.outcomes import (
    Delivered,
    Outcome,
    PartialFailure,
    Request,
    Response,
    SplitBatch,
    TransportFailure,
)
from .._model.records import DropReason


class RequestMetrics:
    """Counts the requests of a client, and feeds its model of the clock.

    Args:
        clock: model of the local clock.
        on_clock: called with each notice of the model.

    Attributes:
        requests: number of requests.
        retries: number of requests that were retries.
        last_error: description of the last failure.
    """

    def __init__(self, clock: ServerClock, on_clock: Callable[[ClockNotice], None]) -> None:
        self.requests = self.retries = 0
        self.last_error: str | None = None
        self.clock = clock
        self._on_clock = on_clock

    def request_started(self, *, again: bool, now: Moment) -> None:
        """Count a request. `again` is True for a retry."""
        self.requests += 1
        self.retries += again
        self.clock.note(now)

    def request_ended(
        self,
        request: Request,
        reply: Response | TransportFailure,
        outcome: Outcome,
        *,
        sent: Moment,
        received: Moment,
    ) -> None:
        """Record the reply to a request.

        Args:
            request: the request.
            reply: the response, or the reason why no response arrived.
            outcome: meaning of the reply.
            sent: moment when the request started; `UNKNOWN` if the reply says nothing about the clock.
            received: moment when the reply was complete.
        """
        date = None
        # A cache may answer a GET.
        if isinstance(reply, Response) and request.method == "POST" and _is_of_mixpanel(outcome):
            date = reply.date
        notice = self.clock.observe(date, sent, received)
        if notice is not None:
            self._on_clock(notice)
        if not isinstance(outcome, Delivered):
            status = "" if outcome.status is None else f"HTTP {outcome.status}: "
            self.record_error(f"{request.endpoint}: {status}{outcome.message}")

    def record_error(self, text: str) -> None:
        """Set the last error."""
        self.last_error = text

    def reset(self) -> None:
        """Set the counters to 0."""
        self.requests = self.retries = 0


def _is_of_mixpanel(outcome: Outcome) -> bool:
    """Return whether a response comes from Mixpanel, and not from a gateway or a login page in front of it.

    A rejection does: a clock that is ahead makes `/import` reject every event.
    """
    return isinstance(outcome, (Delivered, PartialFailure)) or (
        isinstance(outcome, SplitBatch) and outcome.reason is DropReason.REJECTED
    )
