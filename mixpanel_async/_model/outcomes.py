"""HTTP requests and responses, and the outcome of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .errors import FailedRecord
from .records import DropReason


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Request:
    """One request, ready to send. `repr` does not show headers, query and body, which hold secrets.

    Not a tuple, because error reporters show the items of tuples.

    Args:
        path: path of the endpoint, with a query if that holds no secret.
        headers: values by name.
        body: bytes to send; empty for a GET.
        method: such as `POST` or `GET`.
        origin: scheme and host; empty for the origin of the client.
        query: query string without the question mark, for values that must not be logged, such as ids of people.
        secrets: values to mask in messages, should the server repeat them.
        max_response_bytes: size of the largest response that is accepted; None for the transport's default.
    """

    path: str
    headers: Mapping[str, str]
    body: bytes
    method: str = "POST"
    origin: str = ""
    query: str = ""
    secrets: tuple[str, ...] = ()
    max_response_bytes: int | None = None

    def __repr__(self) -> str:
        return f"<{self.method} {self.path}>"

    @property
    def endpoint(self) -> str:
        """Path without its query."""
        return self.path.partition("?")[0]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Response:
    """Response of the server with any status. The body is complete and within its limit.

    Not a tuple, because error reporters show the items of tuples, and the body may repeat a secret.

    Args:
        status: HTTP status.
        body: bytes, decompressed.
        retry_after: the `Retry-After` header.
        date: the `Date` header, unless another header shows that the response comes from a cache.
        etag: the `ETag` header.
    """

    status: int
    body: bytes
    retry_after: str | None = None
    date: str | None = None
    etag: str | None = None

    def __repr__(self) -> str:
        return f"<response {self.status}, {len(self.body)} bytes>"


class TransportFailure(NamedTuple):
    """There is no complete response.

    Args:
        sent: whether a byte of the request may have been sent.
        message: reason, without secrets.
        stale: whether a connection kept from an earlier request had been closed by the server.
    """

    sent: bool
    message: str
    stale: bool = False


class Delivered:
    """Every record of the request was accepted."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delivered)

    def __hash__(self) -> int:
        return hash(Delivered)

    def __repr__(self) -> str:
        return "Delivered()"


class PartialFailure(NamedTuple):
    """The named records were refused and all others accepted."""

    failed: tuple[FailedRecord, ...]
    status: int
    message: str


class SplitBatch(NamedTuple):
    """The whole request was refused; smaller requests can find the record that caused it."""

    reason: DropReason
    status: int
    message: str


class Retry(NamedTuple):
    """The same request may succeed later.

    Args:
        message: reason of the failure.
        applied: whether the request may have been applied.
        status: status of the response, if there was one.
        retry_after: seconds to wait, if Mixpanel sent `Retry-After`.
        immediately: whether to retry without delay, because only the connection failed.
        delivered: positions of records that were delivered nevertheless.
    """

    message: str
    applied: bool
    status: int | None = None
    retry_after: float | None = None
    immediately: bool = False
    delivered: frozenset[int] = frozenset()


class Refused(NamedTuple):
    """The request was refused, and would be again."""

    status: int
    message: str


class ConfigurationRefused(NamedTuple):
    """Credentials, host or path are wrong: no record can be delivered until the configuration is corrected.

    Args:
        message: reason.
        status: status of the response; None if an outbox refused.
    """

    # Other field order than in `Refused`, so that tuples of the two types are never equal.
    message: str
    status: int | None


class Expired(NamedTuple):
    """No request was made, because these records are too old for their endpoint.

    Args:
        positions: positions of the records in the batch.
        by_import: whether they can be sent to `/import` instead.
    """

    positions: frozenset[int]
    by_import: bool


Outcome = Delivered | PartialFailure | SplitBatch | Retry | Refused | ConfigurationRefused
