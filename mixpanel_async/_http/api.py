"""Requests whose caller needs the response: identity calls, remote flags and any further endpoint.

This module alone sets the headers of such a request, retries it (it owns tenacity) and raises an exception on failure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from .._encoding.clock import UNKNOWN, Moment, read_moment
from .._encoding.requests import JSON_HEADERS
from .._encoding.responses import ReadReply, read_api_response, retry_after_of
from .._model.credentials import Auth
from .._model.errors import (
    ApiError,
    AuthenticationError,
    FailedRecord,
    MixpanelException,
    PayloadTooLargeError,
    RateLimitError,
    TransportError,
)
from .._model.outcomes import Delivered, Outcome, PartialFailure, Request, Response, Retry, TransportFailure
from .._runtime.environment import Environment
from .._runtime.log_events import is_logged, log_event
from .._runtime.timers import sleep
from .progress import Progress
from .retry import RetryRule
from .transport import Transport

_NO_HEADERS: Final[Mapping[str, str]] = {}
_ERRORS: Final[Mapping[int, type[ApiError]]] = {
    401: AuthenticationError,
    402: AuthenticationError,
    403: AuthenticationError,
    407: AuthenticationError,
    413: PayloadTooLargeError,
    429: RateLimitError,
}


def _never() -> bool:
    return False


class RequestObserver(Protocol):
    """Counts requests."""

    def request_started(self, *, again: bool, now: Moment) -> None:
        """Record that a request begins. `again` is True for a retry."""

    def request_ended(
        self,
        request: Request,
        reply: Response | TransportFailure,
        outcome: Outcome,
        *,
        sent: Moment,
        received: Moment,
    ) -> None:
        """Record how it ended. `sent` is the moment when it began."""


class CallProgress:
    """Whether a call may have been applied so far. Reading it is safe at any time, also after the call was cut."""

    def __init__(self) -> None:
        self._is_uncertain = False
        self._attempt: Progress | None = None

    @property
    def may_be_applied(self) -> bool:
        """Whether a request may have been applied although no response says so."""
        return self._is_uncertain or (self._attempt is not None and self._attempt.may_be_sent)

    def begin_attempt(self) -> Progress:
        """Note that an attempt begins, and return its progress."""
        # An attempt that was cut has not ended.
        self._is_uncertain = self.may_be_applied
        self._attempt = Progress()
        return self._attempt

    def end_attempt(self, outcome: Outcome) -> None:
        """Note the outcome of the attempt."""
        self._attempt = None
        self._is_uncertain = self._is_uncertain or (isinstance(outcome, Retry) and outcome.applied)


class Api:
    """Sends requests and returns their responses.

    Args:
        transport: the connections.
        environment: clocks and randomness.
        observer: is notified of each attempt.
    """

    def __init__(self, transport: Transport, environment: Environment, observer: RequestObserver) -> None:
        self._transport = transport
        self._environment = environment
        self._observer = observer

    async def request(
        self,
        method: str,
        path: str,
        *,
        auth: Auth,
        retry: RetryRule,
        origin: str = "",
        query: str = "",
        headers: Mapping[str, str] = _NO_HEADERS,
        body: bytes = b"",
        read: ReadReply = read_api_response,
        max_response_bytes: int | None = None,
        is_cancelled: Callable[[], bool] = _never,
        progress: CallProgress | None = None,
    ) -> Response:
        """Send a request until it succeeds, is refused, or the retry rule ends.

        Args:
            method: such as `GET`.
            path: of the endpoint, with a query if nothing in that is secret or personal.
            auth: authentication, and the values to mask in error messages.
            retry: attempts, delays and total time.
            origin: scheme and host, such as `https://mixpanel.com`; empty for the origin of the client.
            query: further query string, which appears in no message and no log.
            headers: in addition to `Authorization` and those of every request.
            body: bytes to send.
            read: turns the reply into an outcome; by default status 200 is success.
            max_response_bytes: size of the largest response that is accepted; None for the transport's default.
            is_cancelled: whether the caller has stopped waiting. It ends the attempts, but never the one under way.
            progress: notes what happens, for a caller that may be cancelled.

        Returns:
            The response of a successful request.

        Raises:
            ApiError: Mixpanel refused the request, or could not serve it. 401, 402, 403 and 407 raise
                `AuthenticationError`, 413 `PayloadTooLargeError`, 429 `RateLimitError`.
            TransportError: there was no response.
        """
        request = Request(
            path=path,
            headers={**JSON_HEADERS, **auth.headers, **headers},
            body=body,
            method=method,
            origin=origin,
            query=query,
            secrets=auth.secrets,
            max_response_bytes=max_response_bytes,
        )
        progress = progress or CallProgress()
        call = _Call(self._transport, self._environment, self._observer, request, retry, read, is_cancelled, progress)
        delay = await call.attempt()
        if delay is not None:
            # tenacity costs half as much as a request, so it is only set up for a retry.
            await sleep(delay)
            await AsyncRetrying(sleep=sleep, retry=retry_if_result(_is_delay), wait=_delay)(call.attempt)
        return call.result()


class _Call:
    """State of one call: its attempts and the outcome of the last one."""

    def __init__(
        self,
        transport: Transport,
        environment: Environment,
        observer: RequestObserver,
        request: Request,
        retry: RetryRule,
        read: ReadReply,
        is_cancelled: Callable[[], bool],
        progress: CallProgress,
    ) -> None:
        self._transport = transport
        self._environment = environment
        self._observer = observer
        self._request = request
        self._retry = retry
        self._read = read
        self._is_cancelled = is_cancelled
        self._started = environment.monotonic()
        self._attempts = 0
        self._progress = progress
        self._reply: Response | TransportFailure | None = None
        self._outcome: Outcome | None = None

    async def attempt(self) -> float | None:
        """Send the request once. Return the seconds until the next attempt, or None if this was the last one."""
        if self._outcome is not None and self._is_cancelled():
            return None
        self._attempts += 1
        sent = self._moment()
        self._observer.request_started(again=self._attempts > 1, now=sent)
        progress = self._progress.begin_attempt()
        self._reply = await self._transport.send(self._request, timeout=self._time_left(0.001), progress=progress)
        received = self._moment()
        self._outcome = self._read(self._reply, now=received.wall, secrets=self._request.secrets)
        self._progress.end_attempt(self._outcome)
        if is_logged(logging.DEBUG):
            self._log(self._reply, received.monotonic - sent.monotonic)
        if self._environment.is_wall_time_replaced():
            # The server's clock may be replaced as well.
            sent = UNKNOWN
        self._observer.request_ended(self._request, self._reply, self._outcome, sent=sent, received=received)
        return self._next_delay(self._outcome)

    def _moment(self) -> Moment:
        return read_moment(self._environment.machine_time, self._environment.monotonic)

    def _log(self, reply: Response | TransportFailure, seconds: float) -> None:
        request, attempt, milliseconds = self._request, self._attempts, round(seconds * 1000, 1)
        endpoint, size = request.endpoint, len(request.body)
        status = reply.status if isinstance(reply, Response) else None
        cause = f"HTTP {status}" if isinstance(reply, Response) else reply.message
        log_event(
            logging.DEBUG, "call_sent", "%s %s: %d bytes, attempt %d: %s after %.1f ms",
            request.method, endpoint, size, attempt, cause, milliseconds,
            endpoint=endpoint, bytes=size, status=status, milliseconds=milliseconds, attempt=attempt,
        )  # fmt: skip

    def _next_delay(self, outcome: Outcome) -> float | None:
        if not isinstance(outcome, Retry):
            return None
        if self._is_cancelled():
            return None
        elapsed = self._environment.monotonic() - self._started
        delay = self._retry.delay(outcome, self._attempts, elapsed, self._environment.random())
        left = self._time_left()
        return None if delay is None or (left is not None and delay >= left) else delay

    def _time_left(self, minimum: float = 0.0) -> float | None:
        total = self._retry.total_timeout
        return None if total is None else max(minimum, self._started + total - self._environment.monotonic())

    def result(self) -> Response:
        """Return the response of a call that succeeded; raise the error of one that did not."""
        if isinstance(self._outcome, Delivered) and isinstance(self._reply, Response):
            return self._reply
        raise self._error()

    def _error(self) -> MixpanelException:
        outcome, reply, endpoint = self._outcome, self._reply, self._request.endpoint
        assert outcome is not None
        assert not isinstance(outcome, Delivered)
        if not isinstance(reply, Response):
            return TransportError(
                outcome.message,
                endpoint=endpoint,
                attempts=self._attempts,
                uncertain=self._progress.may_be_applied,
            )
        failed: Sequence[FailedRecord] = outcome.failed if isinstance(outcome, PartialFailure) else ()
        return _ERRORS.get(reply.status, ApiError)(
            (failed[0].message if failed else "") or outcome.message,
            endpoint=endpoint,
            attempts=self._attempts,
            status=reply.status,
            failed_records=failed,
            retry_after=retry_after_of(reply, now=self._environment.wall_time()),
            uncertain=self._progress.may_be_applied,
        )


def _is_delay(delay: float | None) -> bool:
    return delay is not None


def _delay(state: RetryCallState) -> float:
    assert state.outcome is not None
    delay: float = state.outcome.result()
    return delay
