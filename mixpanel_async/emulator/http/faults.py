"""Failures on demand: which of the next requests go wrong, and how.

Pure: the application asks for each request whether it is to fail, and `delivery` carries that out.

    status      an HTTP status with the documented body, or with `body`; optionally with `Retry-After`
    drop        the connection is closed without an answer
    hang        no answer comes, and the connection stays open until the client leaves
    half        the head of the answer and half of its body, then the connection is closed
    slow        the true answer after `seconds`; with `before` the request takes effect only after them
    drip        the true answer, its body at `rate` bytes per second
    partial     the records at `indexes` are refused, in the form of the endpoint; the others are taken
    html        a sign-in page with status 200, as a captive portal or a proxy gives it
    type        the true answer under the wrong content type
    zero        status 200 and the body `0`: taken to be malformed
    empty       status 200 and no body
    truncated   status 200 and the first half of a JSON body, complete as far as HTTP can tell
    redirect    status 307 to `location`

`slow`, `drip`, `partial` and `type` give the true answer, so the request always takes effect. With the others it does
not, unless `apply` is set: then the records are stored and the answer is lost.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final, Literal, get_args

from ..flags.flags import FLAG_PATHS
from ..project.ingestion import ENDPOINTS
from ..project.responses import JSON, TEXT, EmulatorResponse, error_response, import_response, ingestion_response

FaultKind = Literal[
    "status", "drop", "hang", "half", "slow", "drip", "partial",
    "html", "type", "zero", "empty", "truncated", "redirect",
]  # fmt: skip

KINDS: Final[tuple[FaultKind, ...]] = get_args(FaultKind)
TRANSIENT: Final[tuple[FaultKind, ...]] = ("status", "drop", "half", "slow", "drip", "html", "empty", "truncated")
"""Kinds after which a later try succeeds: a client that repeats what was not confirmed loses nothing to them."""

FAULT_PATHS: Final = (*ENDPOINTS, *FLAG_PATHS)
"""Endpoints where requests can be made to fail."""

_KINDS_WITH_TRUE_RESPONSE: Final = frozenset({"slow", "drip", "partial", "type"})
_TRANSIENT_STATUSES: Final = (429, 500, 502, 503, 504)
_SIGN_IN_PAGE: Final = b"<!DOCTYPE html>\n<title>Sign in</title>\n<p>Please sign in to use this network.</p>\n"
_CHUNKS_PER_SECOND: Final = 50


class ConnectionDroppedError(Exception):
    """Raised out of the application in place of an answer, when a connection is broken or to be broken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedResponse:
    """How an answer reaches its client.

    Args:
        answer: what to send, or None to close the connection without an answer.
        hang: if there is no answer, whether to wait until the client has left.
        seconds: to wait before the first byte.
        rate: bytes of the body per second; None sends it at once.
        cut: whether to close the connection half-way through the body.
    """

    response: EmulatorResponse | None
    hang: bool = False
    seconds: float = 0.0
    rate: float | None = None
    cut: bool = False

    def chunks(self) -> list[tuple[float, bytes]]:
        """The body in pieces, at least one, each with the seconds to wait before it."""
        body = b"" if self.response is None else self.response.body
        if self.cut:
            body = body[: len(body) // 2]
        if self.rate is None or not body:
            return [(0.0, body)]
        size = max(1, int(self.rate / _CHUNKS_PER_SECOND))
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        return [(len(piece) / self.rate, piece) for piece in pieces]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure, for some number of requests.

    Args:
        kind: what goes wrong.
        path: the endpoint that it is for, or None for any.
        apply: whether the request takes effect; those kinds that give the true answer always do.
        status: of `status`: 200 to 599.
        retry_after: value of that header, or None.
        body: of `status`: the body as it is to be sent, or None for the one that Mixpanel documents.
        seconds: of `slow`.
        before: of `slow`: whether to wait before the request takes effect, and not after.
        rate: of `drip`: bytes per second.
        indexes: of `partial`: which records are refused, counted from 0.
        location: of `redirect`: where to.

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
            raise ValueError(f"kind must be one of {', '.join(KINDS)}")
        if self.path is not None and self.path not in FAULT_PATHS:
            raise ValueError(f"path must be one of {', '.join(FAULT_PATHS)}")
        if not 200 <= self.status <= 599 or self.status in {204, 205, 304}:
            raise ValueError("status must be between 200 and 599, and one whose answer has a body")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise ValueError("seconds must be a number, 0 or more")
        if not (math.isfinite(self.rate) and self.rate > 0):
            raise ValueError("rate must be a number of bytes per second, above 0")
        for name, text in (("location", self.location), ("retry_after", self.retry_after or "")):
            if not text.isprintable() or text != text.strip():
                raise ValueError(f"{name} must be printable text without blanks at its ends")

    @property
    def takes_effect(self) -> bool:
        """Whether the records of the request are stored."""
        return self.apply or self.kind in _KINDS_WITH_TRUE_RESPONSE

    @property
    def seconds_before_effect(self) -> float:
        """Seconds to wait before the request takes effect."""
        return self.seconds if self.kind == "slow" and self.before else 0.0

    @property
    def refused_indexes(self) -> frozenset[int]:
        """Indexes of the records to be refused."""
        return self.indexes if self.kind == "partial" else frozenset()

    def plan(self, path: str, response: EmulatorResponse | None) -> PlannedResponse:
        """What the client gets.

        Args:
            path: of the endpoint.
            true: the answer to the request, if it took effect; else None.
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
    """What an endpoint says in its wordiest form when all is well."""
    if path == "/import":
        return import_response(records, records=records)
    return ingestion_response({"verbose": "1"}, valid=1, records=records, error=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomFaults:
    """Which request to an endpoint meets which fault, as a function of a seed.

    The n-th request to an endpoint meets the same fault for the same arguments, whatever happens at the others and
    however the requests interleave.

    Args:
        seed: any number or text.
        rate: share of requests that meet a fault, 0 to 1.
        kinds: what may go wrong, at least one kind.
        paths: endpoints where it may.
        seconds: how long a `slow` or a `drip` lasts at most, above 0.

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
            raise ValueError("rate must be between 0 and 1")
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be some of {', '.join(KINDS)}")
        if not set(self.paths) <= set(FAULT_PATHS):
            raise ValueError(f"paths must be among {', '.join(FAULT_PATHS)}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0.001):
            raise ValueError("seconds must be a number of at least 0.001")

    def fault(self, path: str, number: int) -> Fault | None:
        """What the request of this number, counted from 0, to this endpoint meets."""
        chance = Random(f"{self.seed}|{path}|{number}")  # noqa: S311  to be repeatable is the point
        if path not in self.paths or chance.random() >= self.rate:
            return None

        # `random()` alone keeps its values from one version of Python to the next.
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
            # An answer of a hundred bytes then takes no longer than that.
            rate=100 / (self.seconds * (1 - chance.random())),
            indexes=frozenset(below(50) for _ in range(1 + below(5))),
        )


@dataclass(slots=True)
class FaultPlan:
    """The failures still to come: those asked for one by one, in order, and beside them the random ones."""

    _planned: list[tuple[Fault, int]] = field(default_factory=list)
    _random: RandomFaults | None = None
    _request_counts: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Fault, times: int) -> None:
        """Plan a failure.

        Raises:
            ValueError: if it is for less than one request.
        """
        if times < 1:
            raise ValueError("a fault must be for at least one request")
        self._planned.append((fault, times))

    def set_random(self, faults: RandomFaults) -> None:
        """Have requests fail at random from now on, in place of an earlier such plan; counting begins anew."""
        self._random = faults
        self._request_counts.clear()

    def take(self, path: str) -> Fault | None:
        """The failure that the next request to this endpoint meets, if any; one that was asked for goes first."""
        number = self._request_counts[path]
        self._request_counts[path] += 1
        for index, (fault, times) in enumerate(self._planned):
            if fault.path in {None, path}:
                if times > 1:
                    self._planned[index] = (fault, times - 1)
                else:
                    del self._planned[index]
                return fault
        return None if self._random is None else self._random.fault(path, number)

    def clear(self) -> None:
        """Let everything succeed again."""
        self._planned.clear()
        self._random = None


def retry_after_text(value: float | str | None) -> str | None:
    """A `Retry-After` header: seconds, or text as it is.

    Raises:
        ValueError: if the seconds are negative or not finite, or the text has control characters.
    """
    if isinstance(value, str) and not value.isprintable():
        raise ValueError("retry_after must be printable text")
    if value is None or isinstance(value, str):
        return value
    if not math.isfinite(value) or value < 0:
        raise ValueError("retry_after must be a number of seconds, or text")
    return f"{value:g}"
