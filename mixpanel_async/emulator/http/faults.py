"""Planned faults: which of the next requests fail, and how.

Pure: the application asks for the fault of each request, and `asgi_response` carries it out.

    status      an HTTP status with the documented body, or with `body`; optionally with `Retry-After`
    drop        the connection is closed without a response
    hang        no response is sent, and the connection stays open until the client disconnects
    half        the response head and half of the body are sent, then the connection is closed
    slow        the true response after `seconds`; with `before`, the request takes effect after the delay
    drip        the true response, with the body at `rate` bytes per second
    partial     the records at `indexes` are refused, in the format of the endpoint; the others are accepted
    html        a sign-in page with status 200, as from a captive portal or a proxy
    type        the true response with a wrong content type
    zero        status 200 and the body `0`, which means that the data is malformed
    empty       status 200 and no body
    truncated   status 200 and the first half of a JSON body, with a matching content length
    redirect    status 307 to `location`

`slow`, `drip`, `partial` and `type` send the true response, so the request always takes effect. With the other kinds it
takes no effect, unless `apply` is set. In that case, the records are stored and only the response is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final, Literal, get_args

from ..flags.flags import FLAG_METHODS
from ..project.browser import BROWSER_METHODS
from ..project.ingestion import ENDPOINTS
from ..project.responses import JSON, TEXT, EmulatorResponse, error_response, import_response, ingestion_response

FaultKind = Literal[
    "status", "drop", "hang", "half", "slow", "drip", "partial",
    "html", "type", "zero", "empty", "truncated", "redirect",
]  # fmt: skip
"""Kind of a planned fault."""

KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)
"""All kinds of planned faults."""
TRANSIENT: Final[tuple[FaultKind, ...]] = ("status", "drop", "half", "slow", "drip", "html", "empty", "truncated")
"""Kinds from which a client recovers by repeating unconfirmed requests, without loss."""

FAULT_PATHS: Final = (*ENDPOINTS, *FLAG_METHODS, *BROWSER_METHODS)
"""Endpoints that support planned faults."""

_KINDS_WITH_TRUE_RESPONSE: Final = frozenset({"slow", "drip", "partial", "type"})
_TRANSIENT_STATUSES: Final = (429, 500, 502, 503, 504)
_SIGN_IN_PAGE: Final = b"<!DOCTYPE html>\n<title>Sign in</title>\n<p>Please sign in to use this network.</p>\n"
_CHUNKS_PER_SECOND: Final = 50
_MAX_CHUNK: Final = 64 * 1024


class ConnectionDroppedError(Exception):
    """The connection is broken, or must be broken. The application raises this instead of sending a response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedResponse:
    """Response and its delivery.

    Args:
        response: the response, or None to close the connection without one.
        hang: without a response, whether to wait until the client has disconnected.
        seconds: delay in seconds before the first byte.
        rate: bytes of the body per second; None sends the body at once.
        cut: whether to close the connection in the middle of the body.
    """

    response: EmulatorResponse | None
    hang: bool = False
    seconds: float = 0.0
    rate: float | None = None
    cut: bool = False

    def chunks(self) -> Iterator[tuple[float, bytes, bool]]:
        """Return the body in chunks, at least one: the delay in seconds before it, its bytes, and whether more follow.

        Chunks are copied one by one. Requests that wait for clients which do not read share the body.
        """
        body = b"" if self.response is None else self.response.body
        end = len(body) // 2 if self.cut else len(body)
        size = _MAX_CHUNK if self.rate is None else max(1, int(self.rate / _CHUNKS_PER_SECOND))
        for start in range(0, max(end, 1), size):
            piece = body[start : min(start + size, end)]
            yield 0.0 if self.rate is None else len(piece) / self.rate, piece, start + size < end or self.cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Fault of one request.

    Args:
        kind: kind of fault.
        path: endpoint of the fault, or None for any.
        apply: whether the request takes effect; always true for kinds that send the true response.
        status: for `status`: HTTP status, 200 to 599, except 204, 205 and 304.
        retry_after: for `status`: value of the header `Retry-After`, or None.
        body: for `status`: body of the response, or None for the one that Mixpanel documents.
        seconds: for `slow`: delay in seconds, at least 0.
        before: for `slow`: whether the delay comes before the request takes effect.
        rate: for `drip`: bytes per second, above 0.
        indexes: for `partial`: indexes of the refused records, from 0.
        location: for `redirect`: target URL.

    Raises:
        ValueError: if a value is out of bounds.
    """

    kind: FaultKind = "status"
    path: str | None = None
    apply: bool = False
    status: int = 503
    retry_after: str | None = None
    body: bytes | None = None
    seconds: float = 1.0
    before: bool = False
    rate: float = 100.0
    indexes: frozenset[int] = frozenset({0})
    location: str = "http://127.0.0.1:9/"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.path is not None and self.path not in FAULT_PATHS:
            raise ValueError(f"path must be one of {', '.join(FAULT_PATHS)}, not {self.path!r}")
        if not 200 <= self.status <= 599 or self.status in {204, 205, 304}:
            raise ValueError(f"status must be between 200 and 599, except 204, 205 and 304, not {self.status}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError(f"seconds must be a number of at least 0, not {self.seconds}")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate must be a number of bytes per second above 0, not {self.rate}")
        for name, text in (("location", self.location), ("retry_after", self.retry_after or "")):
            if not text.isprintable() or text != text.strip():
                raise ValueError(f"{name} must be printable text without surrounding whitespace, not {text!r}")

    @property
    def takes_effect(self) -> bool:
        """Whether the request takes effect, for example stores its records."""
        return self.apply or self.kind in _KINDS_WITH_TRUE_RESPONSE

    @property
    def seconds_before_effect(self) -> float:
        """Delay in seconds before the request takes effect."""
        return self.seconds if self.kind == "slow" and self.before else 0.0

    @property
    def refused_indexes(self) -> frozenset[int]:
        """Indexes of the records to refuse."""
        return self.indexes if self.kind == "partial" else frozenset()

    def plan(self, path: str, response: EmulatorResponse | None) -> PlannedResponse:
        """Return the response with this fault applied.

        Args:
            path: path of the endpoint.
            response: true response to the request, or None if it took no effect.
        """
        records = 0 if response is None else response.records
        if self.kind in {"drop", "hang"}:
            return PlannedResponse(response=None, hang=self.kind == "hang")
        answer = self._response(path, response or _success_response(path, records))
        return PlannedResponse(
            response=replace(answer, records=records),
            seconds=self.seconds if self.kind == "slow" and not self.before else 0.0,
            rate=self.rate if self.kind == "drip" else None,
            cut=self.kind == "half",
        )

    def _response(self, path: str, response: EmulatorResponse) -> EmulatorResponse:
        if self.kind == "status":
            return self._status_response(path, response.records)
        if self.kind == "html":
            return EmulatorResponse(status=200, body=_SIGN_IN_PAGE, media_type="text/html; charset=utf-8")
        if self.kind == "type":
            return replace(response, media_type="application/octet-stream")
        if self.kind == "zero":
            return EmulatorResponse(status=200, body=b"0", media_type=TEXT)
        if self.kind == "empty":
            return EmulatorResponse(status=200, body=b"", media_type=TEXT)
        if self.kind == "truncated":
            whole = response if response.body[:1] == b"{" else _success_response(path, response.records)
            return replace(whole, status=200, body=whole.body[: len(whole.body) // 2])
        if self.kind == "redirect":
            return EmulatorResponse(status=307, body=b"", media_type=TEXT, headers={"Location": self.location})
        return response

    def _status_response(self, path: str, records: int) -> EmulatorResponse:
        headers = {} if self.retry_after is None else {"Retry-After": self.retry_after}
        if self.body is not None:
            media_type = JSON if self.body[:1] in {b"{", b"["} else TEXT
            return EmulatorResponse(status=self.status, body=self.body, media_type=media_type, headers=headers)
        answer = _success_response(path, records) if self.status < 400 else error_response(path, self.status)
        return replace(answer, status=self.status, headers=headers)


def _success_response(path: str, records: int) -> EmulatorResponse:
    """Return the most verbose success response of an endpoint."""
    if path == "/import":
        return import_response(records, records=records)
    return ingestion_response({"verbose": "1"}, valid=1, records=records, error=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomFaults:
    """Random faults, reproducible by their seed.

    The fault of the n-th request to an endpoint depends only on the arguments, not on requests to other endpoints or on
    their order.

    Args:
        seed: any integer or string.
        rate: share of requests with a fault, 0 to 1.
        kinds: possible kinds of fault, at least one.
        paths: endpoints with faults.
        seconds: maximum duration of `slow` and `drip` in seconds, at least 0.001.

    Raises:
        ValueError: if a value is out of bounds.
    """

    seed: int | str
    rate: float = 0.2
    kinds: tuple[FaultKind, ...] = TRANSIENT
    paths: tuple[str, ...] = ENDPOINTS
    seconds: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be between 0 and 1, not {self.rate}")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be one or more of {', '.join(KINDS)}, not {self.kinds}")
        if not set(self.paths) <= set(FAULT_PATHS):
            raise ValueError(f"paths must be among {', '.join(FAULT_PATHS)}, not {self.paths}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0.001):
            raise ValueError(f"seconds must be a number of at least 0.001, not {self.seconds}")

    def fault(self, path: str, number: int) -> Fault | None:
        """Return the fault of the request with this number, from 0, to this endpoint; None without a fault."""
        chance = Random(f"{self.seed}|{path}|{number}")  # noqa: S311  must be reproducible
        if path not in self.paths or chance.random() >= self.rate:
            return None

        # Only `random()` returns the same values in every version of Python.
        def below(limit: int) -> int:
            return int(chance.random() * limit)

        kind = self.kinds[below(len(self.kinds))]
        return Fault(
            kind=kind,
            apply=below(2) == 1,
            status=_TRANSIENT_STATUSES[below(len(_TRANSIENT_STATUSES))],
            retry_after="0" if below(4) == 0 else None,
            seconds=chance.random() * self.seconds,
            before=below(2) == 1,
            # A response of 100 bytes then takes at most `seconds`.
            rate=100 / (self.seconds * (1 - chance.random())),
            indexes=frozenset(below(50) for _ in range(1 + below(5))),
        )


@dataclass(slots=True)
class FaultPlan:
    """Faults of the next requests: an ordered list of explicit faults, and random faults."""

    _planned: list[tuple[Fault, int]] = field(default_factory=list)
    _random: RandomFaults | None = None
    _request_counts: Counter[str] = field(default_factory=Counter)
    version: int = 0
    """Number of changes, used-up faults included."""

    def add(self, fault: Fault, times: int) -> None:
        """Plan a fault for a number of requests.

        Raises:
            ValueError: if the number is less than 1.
        """
        if times < 1:
            raise ValueError(f"a fault must apply to at least 1 request, not {times}")
        self._planned.append((fault, times))
        self.version += 1

    def set_random(self, faults: RandomFaults) -> None:
        """Replace the random faults, and restart the count of requests."""
        self._random = faults
        self._request_counts.clear()
        self.version += 1

    def take(self, path: str) -> Fault | None:
        """Return the fault of the next request to this endpoint, or None. Explicit faults come before random ones."""
        number = self._request_counts[path]
        self._request_counts[path] += 1
        for index, (fault, times) in enumerate(self._planned):
            if fault.path in {None, path}:
                if times > 1:
                    self._planned[index] = (fault, times - 1)
                else:
                    del self._planned[index]
                self.version += 1
                return fault
        return None if self._random is None else self._random.fault(path, number)

    def clear(self) -> None:
        """Remove all faults."""
        self._planned.clear()
        self._random = None
        self.version += 1

    def summary(self, limit: int) -> dict[str, Any]:
        """Return the planned faults for display: the first of them, their number, and the rate of random faults."""
        planned = [
            {
                "kind": fault.kind,
                "path": fault.path,
                "status": fault.status if fault.kind == "status" else None,
                "retry_after": fault.retry_after,
                "seconds": fault.seconds if fault.kind == "slow" else None,
                "times": times,
            }
            for fault, times in self._planned[:limit]
        ]
        return {
            "planned": planned,
            "number": len(self._planned),
            "random": None if self._random is None else self._random.rate,
        }


def retry_after_text(value: float | str | None) -> str | None:
    """Return the value of a `Retry-After` header. Text is returned unchanged.

    Raises:
        ValueError: if the seconds are negative or not finite, or the text has control characters.
    """
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"retry_after must be printable text, not {value!r}")
    if value is None or isinstance(value, str):
        return value
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"retry_after must be a non-negative number of seconds or text, not {value}")
    return f"{value:g}"
