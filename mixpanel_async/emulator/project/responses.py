"""Responses that Mixpanel documents, byte for byte where the documents show the body.

Source: Mixpanel's OpenAPI description of the ingestion API (https://docs.mixpanel.com/reference/overview, read
2026-08-21).

Decisions where Mixpanel's documents are silent
    - `/track`, `/engage` and `/groups` answer `1` if at least one record is valid, as the ingestion page says (the
      identity page requires all). A silently ignored record counts as valid.
    - `strict=1` on `/engage` and `/groups` adds `failed_records` and `num_good_events` to the verbose response.
    - `/import` answers a form in the format of `/track`, as the official Python SDK requires, unless a strict check
      fails.
    - An unreadable request gets 400 or 413 on every endpoint.
    - Failed records contain `$insert_id`, as in the text of the documents. The OpenAPI description calls it
      `insert_id`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"

_PIXEL: Final = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")
_CALLBACK: Final = re.compile(r"[A-Za-z_$][A-Za-z0-9_$.]{0,127}")

_PHRASES: Final[Mapping[int, str]] = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Request Entity Too Large",
    429: "Too Many Requests",
    501: "Not Implemented",
    503: "Service Unavailable",
}
_ERRORS: Final[Mapping[int, str]] = {
    400: "some data points in the request failed validation",
    401: "Invalid credentials",
    403: "Forbidden",
    413: "request exceeds max limit of 10485760 bytes",
    429: "Project exceeded rate limits. Please retry the request with exponential backoff.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatorResponse:
    """HTTP response of the emulator.

    Args:
        status: HTTP status.
        body: body of the response.
        media_type: value of `Content-Type`.
        headers: other headers.
        records: number of records in the request, for the request log.
        reason: why the request failed, for the request log; empty if it did not.
    """

    status: int
    body: bytes
    media_type: str = JSON
    headers: Mapping[str, str] = field(default_factory=dict)
    records: int = 0
    reason: str = ""


def json_response(status: int, content: object, *, records: int = 0, reason: str = "") -> EmulatorResponse:
    """Return a response with a JSON body."""
    return EmulatorResponse(status=status, body=orjson.dumps(content), records=records, reason=reason)


def import_response(number: int, *, records: int) -> EmulatorResponse:
    """Return the response of `/import` to accepted records."""
    return json_response(200, {"code": 200, "num_records_imported": number, "status": "OK"}, records=records)


def import_failure_response(failed: list[dict[str, Any] | str], number: int, *, records: int) -> EmulatorResponse:
    """Return the response of `/import?strict=1` to a batch with refused records."""
    content = {
        "code": 400,
        "error": _ERRORS[400],
        "failed_records": failed,
        "num_records_imported": number,
        "status": _PHRASES[400],
    }
    return json_response(400, content, records=records)


def error_response(path: str, status: int, error: str | None = None, *, reason: str = "") -> EmulatorResponse:
    """Return the response to a request refused as a whole, in the format of its endpoint.

    Args:
        path: path of the endpoint.
        status: HTTP status, 400 or above.
        error: error text; by default the text of Mixpanel's example. Mixpanel documents no body for 5xx, so the body
            is empty.
        reason: reason for the request log; by default the error text.
    """
    text = error or _ERRORS.get(status)
    if text is None:
        return EmulatorResponse(status=status, body=b"", media_type=TEXT)
    if path != "/import":
        return json_response(status, {"error": text, "status": "error"}, reason=reason or text)
    content: dict[str, Any] = {"code": status, "error": text, "status": _PHRASES[status]}
    if status == 400:
        content |= {"failed_records": [], "num_records_imported": 0}
    return json_response(status, content, reason=reason or text)


def ingestion_response(
    fields: Mapping[str, str],
    *,
    valid: int,
    records: int,
    error: str | None,
    failed: list[dict[str, Any]] | None = None,
) -> EmulatorResponse:
    """Return the response of `/track`, `/engage` and `/groups`, and of `/import` to a form.

    Args:
        fields: query parameters and form fields: `verbose`, `img`, `callback`.
        valid: number of records accepted or silently ignored.
        records: number of records in the request.
        error: problem of the first invalid record, or None.
        failed: problems of all invalid records, with `strict=1`.
    """
    status = 1 if valid else 0
    content: dict[str, Any] = {"error": None if status else error or "no valid records", "status": status}
    if failed is not None:
        content |= {"error": error, "failed_records": failed, "num_good_events": valid}
    verbose = failed is not None or is_enabled(fields.get("verbose"))
    body = orjson.dumps(content) if verbose else str(status).encode()
    callback = fields.get("callback", "")
    if _CALLBACK.fullmatch(callback):
        return EmulatorResponse(
            status=200, body=b"%b(%b);" % (callback.encode(), body), media_type="text/javascript", records=records
        )
    if is_enabled(fields.get("img")):
        return EmulatorResponse(status=200, body=_PIXEL, media_type="image/gif", records=records)
    return EmulatorResponse(status=200, body=body, media_type=JSON if verbose else TEXT, records=records)


def is_enabled(flag: str | None) -> bool:
    """Return whether a parameter such as `verbose` is set to a number other than 0."""
    return flag is not None and flag.isdecimal() and flag.strip("0") != ""
