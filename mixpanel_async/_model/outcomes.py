"""HTTP request and response values, and the outcomes that responses are turned into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .errors import FailedRecord
from .records import DropReason


class Request(NamedTuple):
    """One request, ready to send. `repr` shows neither headers nor query nor body, as these hold secrets.

    Args:
        path: of the endpoint, with a query if nothing in that is secret.
        headers: by name.
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


class Response(NamedTuple):
    """Response of the server, whatever its status. The body is complete and within its limit.

    Args:
        status: HTTP status.
        body: bytes, decompressed.
        retry_after: the `Retry-After` header.
        date: the `Date` header.
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
    """Nothing usable came back.

    Args:
        sent: whether a byte of the request may have left.
        message: why, in words.
        stale: a connection that had served before was gone when it was used again.
    """

    sent: bool
    message: str
    stale: bool = False


class Delivered:
    """Every record of the request was taken."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Delivered)

    def __hash__(self) -> int:
        return hash(Delivered)

    def __repr__(self) -> str:
        return "Delivered()"


class PartialFailure(NamedTuple):
    """The named records were refused and all others taken."""

    failed: tuple[FailedRecord, ...]
    status: int
    message: str


class SplitBatch(NamedTuple):
    """The request was refused as a whole, and a smaller one may tell which record is to blame."""

    reason: DropReason
    status: int
    message: str


class Retry(NamedTuple):
    """The same request may succeed later.

    Args:
        message: why it did not succeed now.
        applied: it may have taken effect already.
        status: of the answer, if there was one.
        retry_after: seconds that Mixpanel asked to wait.
        at_once: nothing but the connection was at fault.
    """

    message: str
    applied: bool
    status: int | None = None
    retry_after: float | None = None
    immediately: bool = False


class Refused(NamedTuple):
    """The request was refused for good."""

    status: int
    message: str


class ConfigurationRefused(NamedTuple):
    """Credentials, host or path are wrong: no record is to blame, and none can be delivered until that is mended."""

    # Not in the order of `Refused`, so that the two are never equal.
    message: str
    status: int


class Expired(NamedTuple):
    """No request was made: these records have become too old for where they were to go.

    Args:
        positions: where they are in the batch.
        by_import: they may go to `/import` instead.
    """

    positions: frozenset[int]
    by_import: bool


Outcome = Delivered | PartialFailure | SplitBatch | Retry | Refused | ConfigurationRefused
