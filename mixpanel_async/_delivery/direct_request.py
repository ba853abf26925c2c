"""Calls whose answer the caller acts on: sent at once, tried a few times, and either true or an exception.

The only file that knows tenacity.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from .._encoding.batch_body import BatchBody
from .._encoding.requests import RequestEncoder
from .._http.retry import backoff
from .._model.config import RetryPolicy
from .._model.credentials import Secret
from .._model.errors import (
    ApiError,
    AuthenticationError,
    MixpanelException,
    PayloadTooLargeError,
    RateLimitError,
    TransportError,
)
from .._model.outcomes import Delivered, Outcome, PartialFailure, Request, Retry
from .._model.records import DropReason, RecordKind
from .._runtime.clock import Environment

_log = logging.getLogger("mixpanel_async")


class SendRequest(Protocol):
    """What sends: one counted request in the shared pool."""

    def __call__(self, request: Request, count: int, *, again: bool, timeout: float | None) -> Awaitable[Outcome]: ...


class DirectSender:
    """Sends single messages and waits for the answer.

    Args:
        attempt: sends one request.
        encoder: makes requests.
        policy: attempts, backoff and total deadline.
        runtime: clocks and chance.
    """

    def __init__(
        self, send_request: SendRequest, encoder: RequestEncoder, policy: RetryPolicy, runtime: Environment
    ) -> None:
        self._send_request = send_request
        self._encoder = encoder
        self._policy = policy
        self._runtime = runtime

    async def send(
        self, kind: RecordKind, item: bytes, secret: Secret | None, is_cancelled: Callable[[], bool]
    ) -> None:
        """Send one message until it is taken, refused or out of tries.

        Args:
            kind: where it goes.
            item: its encoded bytes.
            secret: a project secret to sign it with.
            given_up: whether the caller waits no longer, which ends the tries but not the one under way.

        Raises:
            ApiError: Mixpanel answered and did not take it.
            TransportError: no answer could be had.
        """
        request = self._encoder.request(kind, BatchBody([item]), secret=secret)
        clock = self._runtime.monotonic
        total = self._policy.total_timeout
        deadline = None if total is None else clock() + total
        attempts = 0
        uncertain = False
        last: Outcome | None = None

        async def once() -> Outcome:
            nonlocal attempts, uncertain, last
            if last is not None and is_cancelled():
                return last
            attempts += 1
            left = None if deadline is None else max(0.001, deadline - clock())
            outcome = await self._send_request(request, 1, again=attempts > 1, timeout=left)
            if isinstance(outcome, Retry):
                uncertain = uncertain or outcome.applied
            last = outcome
            return outcome

        def wait(state: RetryCallState) -> float:
            outcome = _outcome(state)
            if isinstance(outcome, Retry) and outcome.immediately and state.attempt_number == 1:
                return 0.0
            asked = outcome.retry_after if isinstance(outcome, Retry) else None
            return backoff(self._policy, state.attempt_number, asked, self._runtime.random())

        def stop(state: RetryCallState) -> bool:
            most = self._policy.attempts
            if is_cancelled() or (most is not None and state.attempt_number >= most):
                return True
            return deadline is not None and clock() + state.upcoming_sleep >= deadline

        outcome = await _retry(await once(), once, wait, stop)
        if is_cancelled() and not isinstance(outcome, Delivered):
            _log.warning("a call to %s was cancelled; whether it was applied is unknown", request.endpoint)
        if not isinstance(outcome, Delivered):
            raise error_of(outcome, request.endpoint, attempts, uncertain=uncertain)


async def _retry(
    first: Outcome,
    once: Callable[[], Awaitable[Outcome]],
    wait: Callable[[RetryCallState], float],
    stop: Callable[[RetryCallState], bool],
) -> Outcome:
    """What comes of further tries, if the first one asks for them.

    Their machinery costs as much as half a request: it is set up for them only, and told of the first one as if that
    had been its own.
    """
    if not _is_retry(first):
        return first
    made = [first]

    async def again() -> Outcome:
        return made.pop() if made else await once()

    outcome: Outcome = await AsyncRetrying(
        sleep=anyio.sleep,
        retry=retry_if_result(_is_retry),
        wait=wait,
        stop=stop,
        retry_error_callback=_outcome,
    )(again)
    return outcome


def _is_retry(outcome: Outcome) -> bool:
    return isinstance(outcome, Retry)


def _outcome(state: RetryCallState) -> Outcome:
    assert state.outcome is not None
    result: Outcome = state.outcome.result()
    return result


def error_of(outcome: Outcome, endpoint: str, attempts: int, *, uncertain: bool) -> MixpanelException:
    """The exception for an outcome that is no success."""
    assert not isinstance(outcome, Delivered)
    if isinstance(outcome, Retry) and outcome.status is None:
        return TransportError(outcome.message, endpoint=endpoint, attempts=attempts, uncertain=uncertain)
    status = outcome.status or 0
    kinds: dict[int, type[ApiError]] = {
        401: AuthenticationError,
        402: AuthenticationError,
        403: AuthenticationError,
        407: AuthenticationError,
        413: PayloadTooLargeError,
        429: RateLimitError,
    }
    failed = outcome.failed if isinstance(outcome, PartialFailure) else ()
    return kinds.get(status, ApiError)(
        failed[0].message if failed and failed[0].message else outcome.message,
        endpoint=endpoint,
        attempts=attempts,
        status=status,
        failed_records=failed,
        retry_after=outcome.retry_after if isinstance(outcome, Retry) else None,
    )


def drop_reason_of(error: BaseException) -> DropReason:
    """Where a record is counted whose awaited call ended in this error."""
    if isinstance(error, AuthenticationError):
        return DropReason.UNAUTHORIZED
    if isinstance(error, PayloadTooLargeError):
        return DropReason.TOO_LARGE
    if isinstance(error, (TransportError, RateLimitError)) or (isinstance(error, ApiError) and error.status >= 500):
        return DropReason.EXHAUSTED
    return DropReason.REJECTED if isinstance(error, ApiError) else DropReason.CLOSED
