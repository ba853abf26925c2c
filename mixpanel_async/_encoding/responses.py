"""HTTP response to outcome. This is the only file that interprets Mixpanel's responses.

The status alone does not decide: neither a 200 with the body `0` nor the page of a captive portal is a success.

| status                            | outcome                                                                  |
| --------------------------------- | ------------------------------------------------------------------------ |
| 200 with a documented success     | delivered                                                                |
| 200 with any other body           | retry; the request may have been applied                                 |
| 200 with `0` or `"status": 0`     | rejected as a whole: split the batch to find the invalid record          |
| 400, 422 with failed records      | the listed records failed, the others were accepted                      |
| 400, 422 without failed records   | split the batch to find the invalid record                               |
| 401 402 403 404 405 407, any 3xx  | wrong credentials, host or path: keep the records and probe slowly       |
| 408, 5xx except 501 503 505       | retry; the request may have been applied                                 |
| 429, 503                          | retry; the request was not applied                                       |
| 413                               | split the batch                                                          |
| 1xx, 201 to 299                   | retry; the request may have been applied                                 |
| 501, 505, any other               | failed; no retry                                                         |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
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
    Response,
    Retry,
    SplitBatch,
    TransportFailure,
)
from .._model.records import DropReason
from .clock import parse_date
from .masking import mask_urls, one_line

MAX_RETRY_AFTER: Final = 300.0
_MAX_SHOWN: Final = 200
_MAX_API_MESSAGE: Final = 500
_MISCONFIGURED: Final = frozenset({401, 402, 403, 404, 405, 407})
_NOT_RETRYABLE: Final = frozenset({501, 505})
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
        reply: the response, or the reason why no response arrived.
        count: number of records in the request.
        now: wall clock in seconds, for a `Retry-After` with a date in a response without `Date`.
        secrets: values to mask, in case the server repeats them.
    """
    if isinstance(reply, TransportFailure):
        return _read_failure(reply)
    status = reply.status
    body = _json(reply.body)
    secrets = _longest_first(secrets)
    server_message = _message_of(body, secrets)
    if status == 200:
        return _success(body, count, server_message, secrets)
    if status in {400, 422}:
        return _invalid(body, count, status, server_message, secrets)
    return _read_status(reply, server_message, now)


def read_api_response(
    reply: Response | TransportFailure,
    *,
    now: float,
    secrets: Sequence[str] = (),
    accepted: Collection[int] = frozenset({200}),
) -> Outcome:
    """Return the outcome of a request to any other endpoint, where the status alone decides.

    Args:
        reply: the response, or the reason why no response arrived.
        now: wall clock in seconds, for a `Retry-After` with a date in a response without `Date`.
        secrets: values to mask, in case the server repeats them. URLs are masked as well: a query may name a person.
        accepted: statuses of success.
    """
    if isinstance(reply, TransportFailure):
        return _read_failure(reply)
    if reply.status in accepted:
        return Delivered()
    body = _json(reply.body)
    error = body.get("error") if isinstance(body, dict) else None
    text = error if isinstance(error, str) else reply.body.decode("utf-8", "replace").strip()
    for secret in _longest_first(secrets):
        text = text.replace(secret, "***")
    return _read_status(reply, one_line(mask_urls(text), _MAX_API_MESSAGE), now)


def _read_failure(failure: TransportFailure) -> Outcome:
    return Retry(message=failure.message, applied=failure.sent, immediately=failure.stale)


def _longest_first(secrets: Sequence[str]) -> Sequence[str]:
    # A secret may be part of another.
    return sorted(secrets, key=len, reverse=True)


def _read_status(reply: Response, server_message: str, now: float) -> Outcome:
    """Return the outcome of a failed request from its status alone.

    `server_message` is empty if the server sent no message.
    """
    status = reply.status
    if status in _MISCONFIGURED or 300 <= status < 400:
        return ConfigurationRefused(
            status=status, message=server_message or _DEFAULT_MESSAGES.get(status, "the request was not accepted")
        )
    if status == 413:
        return SplitBatch(
            reason=DropReason.TOO_LARGE,
            status=status,
            message=server_message or "the request is too large for Mixpanel",
        )
    if status in {408, 429} or (status >= 500 and status not in _NOT_RETRYABLE):
        return Retry(
            message=server_message or _DEFAULT_MESSAGES.get(status, "Mixpanel could not serve the request"),
            applied=status not in _NOT_APPLIED,
            status=status,
            retry_after=retry_after_of(reply, now=now),
        )
    if 100 <= status < 300:
        return Retry(
            message="the response is not one that Mixpanel documents; check api_host and proxies",
            applied=True,
            status=status,
        )
    return Refused(status=status, message=server_message or "the request was rejected")


_DEFAULT_MESSAGES: Final = {
    401: "the credentials were refused",
    403: "the credentials were refused",
    404: "no such endpoint; check region and api_host",
    429: "the project is over its rate limit",
}


def retry_after_of(reply: Response, *, now: float) -> float | None:
    """Return the seconds to wait according to the `Retry-After` of a response.

    A date is compared with the `Date` of the same response, because the local clock may be wrong.

    Args:
        reply: the response.
        now: wall clock in seconds, for a date in a response without `Date`.

    Returns:
        0 to 300, or None if the header is absent or invalid.
    """
    if reply.retry_after is None:
        return None
    server = parse_date(reply.date)
    return parse_retry_after(reply.retry_after, now=now if server is None else server)


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Return the seconds to wait according to a `Retry-After` header, which has a number or a date.

    Args:
        value: value of the header, or None.
        now: wall clock in seconds.

    Returns:
        0 to 300, or None if the header is absent or invalid.
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
    """Return Mixpanel's error message as one printable line."""
    error = body.get("error") if isinstance(body, dict) else None
    return _printable(error, secrets)


def _printable(text: Any, secrets: Sequence[str]) -> str:
    """Return text of the server as one short printable line; empty if it is not a string."""
    # Mask before shortening: the shortened text could contain part of a secret.
    if not isinstance(text, str):
        return ""
    for secret in secrets:
        text = text.replace(secret, "***")
    return one_line(text, _MAX_SHOWN)


def _is_one(value: Any) -> bool:
    return value == 1 and not isinstance(value, bool)


def _is_zero(value: Any) -> bool:
    return value == 0 and not isinstance(value, bool)


def _success(body: Any, count: int, server_message: str, secrets: Sequence[str]) -> Outcome:
    if isinstance(body, dict):
        if body.get("failed_records"):
            return _invalid(body, count, 200, server_message, secrets)
        status = body.get("status")
        if _is_one(status) or (status == "OK" and body.get("code", 200) == 200):
            return Delivered()
        if _is_zero(status):
            return SplitBatch(
                reason=DropReason.REJECTED,
                status=200,
                message=server_message or "Mixpanel accepted no record of the request",
            )
    elif _is_one(body):
        return Delivered()
    elif _is_zero(body):
        return SplitBatch(reason=DropReason.REJECTED, status=200, message="Mixpanel accepted no record of the request")
    return Retry(
        message="the response is not one that Mixpanel documents; check api_host and proxies", applied=True, status=200
    )


def _invalid(body: Any, count: int, status: int, server_message: str, secrets: Sequence[str]) -> Outcome:
    message = server_message or "Mixpanel rejected the request"
    listed = body.get("failed_records") if isinstance(body, dict) else None
    failed: dict[int, FailedRecord] = {}
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict):
            index = entry.get("index")
            if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count:
                failed.setdefault(index, _failed(index, entry, secrets))
        elif isinstance(entry, str):
            # Observed in Simplified projects: a message without an index.
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
