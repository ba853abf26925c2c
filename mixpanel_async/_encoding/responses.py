"""A reply to an outcome: the only file that knows what Mixpanel's answers mean.

A status alone is not believed: a 200 with `0` in it is no success, nor is the page of a captive portal.

| status                            | outcome                                                                  |
| --------------------------------- | ------------------------------------------------------------------------ |
| 200 with a documented success     | delivered                                                                |
| 200 with any other body           | try again, it may have been applied                                      |
| 200 with `0` or `"status": 0`     | refused as a whole: halve the batch to find the record                   |
| 400, 422 that names records       | those failed, the others are in                                          |
| 400, 422 that names none          | halve the batch to find the record                                       |
| 401 402 403 404 405 407, any 3xx  | credentials, host or path are wrong: keep the records and probe slowly   |
| 408, 5xx but 501 503 505          | try again, it may have been applied                                      |
| 429, 503                          | try again, it was not applied                                            |
| 413                               | halve the batch                                                          |
| 1xx, 201 to 299                   | try again, it may have been applied                                      |
| 501, 505, any other               | refused for good                                                         |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any, Final, Protocol

import orjson

from .._model.errors import FailedRecord
from .._model.outcomes import (
    ConfigurationRefused,
    Delivered,
    Outcome,
    PartialFailure,
    Refused,
    Request,
    Response,
    Retry,
    SplitBatch,
    TransportFailure,
)
from .._model.records import DropReason

MAX_RETRY_AFTER: Final = 300.0
_MAX_SHOWN: Final = 200
_MAX_API_MESSAGE: Final = 500
# A URL, or a path with a query. Not compiled here: few processes need it.
_URL: Final = r"""[^\s"'<>]*(?:://|\?[^\s"'<>]*=)[^\s"'<>]*"""
# A header has whole seconds, and an answer may be slow. More than a day is no skew but a test, or a broken server.
_MIN_SKEW: Final = 30.0
_MAX_SKEW: Final = 86_400.0
_MISCONFIGURED: Final = frozenset({401, 402, 403, 404, 405, 407})
_NEVER: Final = frozenset({501, 505})
_NOT_APPLIED: Final = frozenset({429, 503})


class ReadReply(Protocol):
    """Function that turns the reply to a request into an outcome."""

    def __call__(
        self, reply: Response | TransportFailure, /, *, now: float, secrets: Sequence[str] = ()
    ) -> Outcome: ...


def read_response(
    reply: Response | TransportFailure, count: int = 1, *, now: float, secrets: Sequence[str] = ()
) -> Outcome:
    """Return the outcome of a request to `/track`, `/import`, `/engage` or `/groups`.

    Args:
        reply: the response, or the reason why there is none.
        count: number of records in the request.
        now: wall clock in seconds, for a `Retry-After` with a date.
        secrets: values to mask, should the server repeat them.
    """
    if isinstance(reply, TransportFailure):
        return _read_failure(reply)
    status = reply.status
    body = _json(reply.body)
    secrets = _longest_first(secrets)
    said = _message_of(body, secrets)
    if status == 200:
        return _success(body, count, said, secrets)
    if status in {400, 422}:
        return _invalid(body, count, status, said, secrets)
    return _read_status(reply, said, now)


def read_api_response(
    reply: Response | TransportFailure,
    *,
    now: float,
    secrets: Sequence[str] = (),
    accepted: Collection[int] = frozenset({200}),
) -> Outcome:
    """Return the outcome of a request to any other endpoint, where the status alone decides.

    Args:
        reply: the response, or the reason why there is none.
        now: wall clock in seconds, for a `Retry-After` with a date.
        secrets: values to mask, should the server repeat them. URLs are masked as well: a query may name a person.
        accepted: statuses of success.
    """
    if isinstance(reply, TransportFailure):
        return _read_failure(reply)
    if reply.status in accepted:
        return Delivered()
    text = reply.body.decode("utf-8", "replace").strip()
    for secret in _longest_first(secrets):
        text = text.replace(secret, "***")
    return _read_status(reply, _one_line(re.sub(_URL, "***", text), _MAX_API_MESSAGE), now)


def _read_failure(failure: TransportFailure) -> Outcome:
    return Retry(message=failure.message, applied=failure.sent, immediately=failure.stale)


def _longest_first(secrets: Sequence[str]) -> Sequence[str]:
    # A secret may be part of another.
    return sorted(secrets, key=len, reverse=True)


def _read_status(reply: Response, said: str, now: float) -> Outcome:
    """Return the outcome of a failed request from its status alone. `said` is the server's message, or empty."""
    status = reply.status
    if status in _MISCONFIGURED or 300 <= status < 400:
        return ConfigurationRefused(
            status=status, message=said or _DEFAULT_WORDS.get(status, "the request was not accepted")
        )
    if status == 413:
        return SplitBatch(reason=DropReason.TOO_LARGE, status=status, message=said or "the request is too large")
    if status in {408, 429} or (status >= 500 and status not in _NEVER):
        return Retry(
            message=said or _DEFAULT_WORDS.get(status, "Mixpanel is in trouble"),
            applied=status not in _NOT_APPLIED,
            status=status,
            retry_after=parse_retry_after(reply.retry_after, now=now),
        )
    if 100 <= status < 300:
        return Retry(message="the answer is not one that Mixpanel gives", applied=True, status=status)
    return Refused(status=status, message=said or "the request was refused")


_DEFAULT_WORDS: Final = {
    401: "the credentials were refused",
    403: "the credentials were refused",
    404: "there is no such endpoint; check region and api_host",
    429: "the project is over its rate limit",
}


class RequestMetrics:
    """Counters of a client's requests, and facts from their replies. Observes the attempts of an `Api`.

    Args:
        on_clock_offset: called with the new offset in seconds when `clock_offset` changes.
    """

    def __init__(self, on_clock_offset: Callable[[float], None]) -> None:
        self.requests = self.retries = 0
        self.last_error: str | None = None
        """Description of the last failure."""
        self._on_clock_offset = on_clock_offset
        self._clock_offset = 0.0

    def request_started(self, *, again: bool) -> None:
        """Count a request. `again` is True for a retry."""
        self.requests += 1
        self.retries += again

    def request_ended(
        self, request: Request, reply: Response | TransportFailure, outcome: Outcome, *, now: float
    ) -> None:
        """Record the reply to a request.

        Args:
            request: the request.
            reply: the response, or the reason why there is none.
            outcome: meaning of the reply.
            now: wall clock in seconds.
        """
        if isinstance(reply, Response):
            ahead = clock_offset(reply.date, now=now)
            if ahead != self._clock_offset:
                self._clock_offset = ahead
                self._on_clock_offset(ahead)
        if not isinstance(outcome, Delivered):
            status = "" if outcome.status is None else f"HTTP {outcome.status}: "
            self.record_error(f"{request.endpoint}: {status}{outcome.message}")

    def record_error(self, text: str) -> None:
        """Set the last error."""
        self.last_error = text

    def reset(self) -> None:
        """Set the counters to 0."""
        self.requests = self.retries = 0


def clock_offset(date: str | None, *, now: float) -> float:
    """How far this machine's clock is ahead of the server's; 0 if it is not, or by no more than is worth a word.

    Args:
        date: the `Date` header of an answer.
        now: wall clock in seconds when it came.
    """
    if date is None or len(date) > 100:
        return 0.0
    try:
        ahead = now - parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return ahead if _MIN_SKEW < ahead < _MAX_SKEW else 0.0


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait, from either form of the header.

    Args:
        value: the header's value.
        now: wall clock in seconds.

    Returns:
        0 to 300, or None if the header is absent or makes no sense.
    """
    if value is None or len(value) > 100 or not value.isascii():
        return None
    text = value.strip()
    try:
        seconds = float(text) if text[:1].isdigit() and "_" not in text else None
    except ValueError:
        seconds = None
    if seconds is None:
        try:
            moment = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        try:
            seconds = (moment - datetime.fromtimestamp(now, timezone.utc)).total_seconds()
        except OverflowError:
            return None
    if not isfinite(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _json(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        return None


def _message_of(body: Any, secrets: Sequence[str]) -> str:
    """Mixpanel's own words, fit to print in one line."""
    error = body.get("error") if isinstance(body, dict) else None
    return _printable(error, secrets)


def _printable(text: Any, secrets: Sequence[str]) -> str:
    """Words of the server's, masked before they are cut: half a secret is too much. Empty if they are no text."""
    if not isinstance(text, str):
        return ""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _one_line(text, _MAX_SHOWN)


def _one_line(text: str, length: int) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:length])


def _is_one(value: Any) -> bool:
    return value == 1 and not isinstance(value, bool)


def _is_zero(value: Any) -> bool:
    return value == 0 and not isinstance(value, bool)


def _success(body: Any, count: int, said: str, secrets: Sequence[str]) -> Outcome:
    if isinstance(body, dict):
        if body.get("failed_records"):
            return _invalid(body, count, 200, said, secrets)
        status = body.get("status")
        if _is_one(status) or (status == "OK" and body.get("code", 200) == 200):
            return Delivered()
        if _is_zero(status):
            return SplitBatch(reason=DropReason.REJECTED, status=200, message=said or "Mixpanel took no record of it")
    elif _is_one(body):
        return Delivered()
    elif _is_zero(body):
        return SplitBatch(reason=DropReason.REJECTED, status=200, message="Mixpanel took no record of it")
    return Retry(message="the answer is not one that Mixpanel gives", applied=True, status=200)


def _invalid(body: Any, count: int, status: int, said: str, secrets: Sequence[str]) -> Outcome:
    message = said or "Mixpanel refused the request"
    listed = body.get("failed_records") if isinstance(body, dict) else None
    failed: dict[int, FailedRecord] = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict):
            index = entry.get("index")
            if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count:
                failed.setdefault(index, _failed(index, entry, secrets))
        elif isinstance(entry, str):
            # Observed of Simplified projects: words without an index.
            message = _printable(entry, secrets)
    if failed:
        return PartialFailure(failed=tuple(failed[index] for index in sorted(failed)), status=status, message=message)
    return SplitBatch(reason=DropReason.REJECTED, status=status, message=message)


def _failed(index: int, entry: dict[str, Any], secrets: Sequence[str]) -> FailedRecord:
    return FailedRecord(
        index=index,
        field=_printable(entry.get("field"), secrets),
        message=_printable(entry.get("message"), secrets),
        insert_id=_printable(entry.get("$insert_id", entry.get("insert_id")), secrets) or None,
    )
