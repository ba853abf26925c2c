"""Failures on demand: which of the next requests go wrong, and how.

Pure: the application asks for each request whether it is to fail, and carries that out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .answers import JSON, TEXT, Answer, imported, refused, tracked
from .ingest import ENDPOINTS


class ConnectionDroppedError(Exception):
    """Raised out of the application in place of an answer, when a connection is broken or to be broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure, for some number of requests.

    Args:
        status: HTTP status, or None for a connection that is closed without an answer.
        path: the endpoint that it is for, or None for any.
        retry_after: value of that header, or None.
        body: the body as it is to be sent, or None for the one that Mixpanel documents.
        apply: whether the request takes effect before it fails.
    """

    status: int | None
    path: str | None
    retry_after: str | None = None
    body: bytes | None = None
    apply: bool = False

    def answer(self, path: str, *, records: int) -> Answer | None:
        """What the client gets instead of the true answer; None if it gets nothing.

        Args:
            path: of the endpoint.
            records: how many records the request held.
        """
        if self.status is None:
            return None
        headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        if self.body is not None:
            media_type = JSON if self.body[:1] in {b"{", b"["} else TEXT
            return Answer(status=self.status, body=self.body, media_type=media_type, headers=headers, records=records)
        if self.status < 400:
            ok = imported(records, records=records) if path == "/import" else None
            answer = ok or tracked({"verbose": "1"}, valid=1, records=records, error=None)
        else:
            answer = refused(path, self.status)
        return replace(answer, status=self.status, headers=headers, records=records)


class FaultPlan:
    """The failures still to come. The first that fits a request is used up by it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Fault, int]] = []

    def add(self, fault: Fault, times: int) -> None:
        """Plan a failure.

        Raises:
            ValueError: if a value is out of bounds.
        """
        if times < 1:
            raise ValueError("a fault must be for at least one request")
        if fault.status is not None and not 200 <= fault.status <= 599:
            raise ValueError("status must be between 200 and 599")
        if fault.path is not None and fault.path not in ENDPOINTS:
            raise ValueError(f"path must be one of {', '.join(ENDPOINTS)}")
        self._waiting.append((fault, times))

    def take(self, path: str) -> Fault | None:
        """The failure that the next request to this endpoint meets, if any."""
        for index, (fault, times) in enumerate(self._waiting):
            if fault.path in {None, path}:
                if times > 1:
                    self._waiting[index] = (fault, times - 1)
                else:
                    del self._waiting[index]
                return fault
        return None

    def clear(self) -> None:
        self._waiting.clear()


def retry_after_text(value: float | str | None) -> str | None:
    """A `Retry-After` header: seconds, or text as it is.

    Raises:
        ValueError: if the seconds are negative or not finite.
    """
    if value is None or isinstance(value, str):
        return value
    if not math.isfinite(value) or value < 0:
        raise ValueError("retry_after must be a number of seconds, or text")
    return f"{value:g}"
