"""Log of requests for people who watch the emulator: the command's terminal and the live page.

An entry has no query, headers, body or credentials. The log is cheap enough to be always on: readers ask for the
entries after the last one that they know, so that nothing is formatted or sent while a request is handled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from ..page.files import page_names
from ..project.bounded_log import BoundedLog
from ..project.project import Project
from .asgi_response import REASON, Receive, Scope, Send
from .guard import CONTROL_PREFIX, ASGIApp

ENTRY_LIMIT: Final = 1_000
RATE_SECONDS: Final = 60

_MAX_METHOD: Final = 20
_MAX_PATH: Final = 200
_MAX_REASON: Final = 300
_LOGGED: Final = "mixpanel_async.logged"
_OWN_PATHS: Final = frozenset({"/", "/favicon.ico", *(f"/{name}" for name in page_names())})


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEntry:
    """Request in the log, without its content.

    Args:
        number: number of the request since the start or the last reset, from 1.
        received_at: time of the response in seconds since the epoch, by the emulator's clock.
        method: HTTP method, at most 20 characters; empty if the request could not be read.
        path: path of the URL, or empty, at most 200 characters. It is untrusted text if the status is 404.
        status: HTTP status of the response, or None if the connection was closed or held without a response.
        records: number of records.
        rejected: number of records that were not stored, silently dropped ones included; 1 for a refused request.
        reason: first reason why a record was not stored, ids were not joined or the request failed; empty if none.
        fault: kind of the planned fault, or empty.
        body_bytes: size of the body in bytes as received.
    """

    number: int
    received_at: float
    method: str
    path: str
    status: int | None
    records: int = 0
    rejected: int = 0
    reason: str = ""
    fault: str = ""
    body_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestDigest:
    """Requests since the start or the last reset, or across resets.

    Args:
        requests: number of requests.
        records: number of records in them.
        rejected: number of records that were not stored.
        entries: the latest requests, in order.
    """

    requests: int
    records: int
    rejected: int
    entries: tuple[RequestEntry, ...]


class Outcome(NamedTuple):
    """What one request changed in the project: events stored, records rejected, and the first reason."""

    stored: int = 0
    rejected: int = 0
    reason: str = ""


class Mark(NamedTuple):
    """Sizes of the logs of a project before a request."""

    stored: int
    rejected: int
    identity: int
    unjoined: int


def mark_of(project: Project) -> Mark:
    """Return the sizes of the logs of a project."""
    counts = project.outcome_counts
    return Mark(
        project.event_rows.total,
        project.rejections.total,
        project.identity_rows.total,
        counts["failed"] + counts["ignored"],
    )


def outcome_since(before: Mark, project: Project) -> Outcome:
    """Return what has changed since `mark_of`."""
    after = mark_of(project)
    rejected = after.rejected - before.rejected
    reason = ""
    if rejected:
        # The first of more rejections than are kept is gone.
        first = project.rejections.between(before.rejected, before.rejected + 1, 1)
        reason = (first[0][1] if first else next(iter(project.rejections))).message
    elif after.unjoined > before.unjoined:
        rows = project.identity_rows.between(before.identity, after.identity, after.identity - before.identity)
        name, _, result = next(row for _, row in rows if row[2].outcome in {"failed", "ignored"})
        reason = f"{name} joined no ids: {result.failure_code or result.description}"
    return Outcome(after.stored - before.stored, rejected, reason[:_MAX_REASON])


class _Totals(NamedTuple):
    """Numbers of requests, of records in them, and of records that were not stored."""

    requests: int = 0
    records: int = 0
    rejected: int = 0

    def plus(self, requests: int, records: int, rejected: int) -> _Totals:
        return _Totals(self.requests + requests, self.records + records, self.rejected + rejected)


class RequestLog:
    """Latest requests, their totals, and the number of events in each of the last 60 seconds. Not thread-safe.

    Args:
        monotonic: monotonic clock in seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        # Entries from before a reset are kept for readers that must not miss any.
        self._entries: BoundedLog[RequestEntry] = BoundedLog(ENTRY_LIMIT)
        self._totals = self._totals_at_reset = _Totals()
        # Pairs of a second and the number of events in it, only of seconds with events.
        self._rates: deque[tuple[int, int]] = deque(maxlen=RATE_SECONDS)

    @property
    def total(self) -> int:
        """Number of requests since the last reset."""
        return self._totals.requests - self._totals_at_reset.requests

    def reset(self) -> None:
        """Restart the numbers and totals, and forget the rates."""
        self._totals_at_reset = self._totals
        self._rates.clear()

    def append(
        self,
        *,
        at: float,
        method: str,
        path: str,
        status: int | None,
        records: int = 0,
        outcome: Outcome = Outcome(),  # noqa: B008  immutable
        fault: str = "",
        body_bytes: int = 0,
    ) -> None:
        """Add a request. The arguments are those of `RequestEntry`, and `outcome` of `outcome_since`."""
        rejected = outcome.rejected
        reason = outcome.reason or ("" if fault or status is None else _failure_reason(status))
        self._entries.append(
            RequestEntry(
                number=self.total + 1,
                received_at=at,
                method=method[:_MAX_METHOD],
                path=path[:_MAX_PATH],
                status=status,
                records=records,
                rejected=rejected,
                reason=reason,
                fault=fault,
                body_bytes=body_bytes,
            )
        )
        self._totals = self._totals.plus(1, records, rejected)
        if outcome.stored:
            self._count_events(outcome.stored)

    def _count_events(self, number: int) -> None:
        second = int(self._monotonic())
        if self._rates and self._rates[-1][0] == second:
            number += self._rates.pop()[1]
        self._rates.append((second, number))

    def rates(self) -> list[tuple[int, int]]:
        """Return pairs of an age in whole seconds, below 60, and the number of events stored then, the oldest first."""
        now = int(self._monotonic())
        return [(now - second, number) for second, number in self._rates if now - second < RATE_SECONDS]

    def between(self, after: int, up_to: int, max_entries: int) -> list[tuple[int, RequestEntry]]:
        """Return the latest entries with a number above `after` and up to `up_to`, in order."""
        start = self._totals_at_reset.requests
        return [
            (number - start, entry)
            for number, entry in self._entries.between(start + after, start + up_to, max_entries)
        ]

    def digest(self, after: int, limit: int, *, across_resets: bool = False) -> RequestDigest:
        """Return the totals, and at most `limit` of the latest entries with a number above `after`.

        All entries count as new if `after` is above the number of requests, because a reset restarts the numbers.

        Args:
            after: number of a request.
            limit: maximum number of entries.
            across_resets: whether `after` and the totals count all requests, and not those since the last reset.
        """
        start = _Totals() if across_resets else self._totals_at_reset
        total = self._totals.requests - start.requests
        known = start.requests + (after if after <= total else 0)
        return RequestDigest(
            requests=total,
            records=self._totals.records - start.records,
            rejected=self._totals.rejected - start.rejected,
            entries=tuple(entry for _, entry in self._entries.between(known, self._totals.requests, limit)),
        )


class RequestWatch:
    """ASGI middleware that logs requests which no ingestion or flag endpoint has logged, such as unknown paths.

    Requests for the live page, `/_emulator/` and successful preflight requests of allowed origins are not logged.

    Args:
        app: the application.
        log: called with method, path and status of each request, and the reason why it failed.
    """

    def __init__(self, app: ASGIApp, log: Callable[[str, str, int, str], None]) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "/")
        if scope["type"] != "http" or path in _OWN_PATHS or f"{path}/".startswith(f"{CONTROL_PREFIX}/"):
            await self._app(scope, receive, send)
            return

        async def send_and_log(message: Any) -> None:
            if message["type"] == "http.response.start" and _LOGGED not in scope:
                status, reason = message["status"], scope.get(REASON, "")
                if scope["method"] != "OPTIONS" or status >= HTTPStatus.BAD_REQUEST or reason:
                    self._log(scope["method"], path, status, reason)
            await send(message)

        await self._app(scope, receive, send_and_log)


def set_logged(scope: Scope) -> None:
    """Mark a request as logged by its endpoint, so that `RequestWatch` does not log it again."""
    scope[_LOGGED] = True


def _failure_reason(status: int) -> str:
    """Return words for the status of a request without a reason; empty for a success."""
    if status < HTTPStatus.BAD_REQUEST:
        return ""
    return HTTPStatus(status).phrase.lower()
