"""HTTP request and response values, and the outcomes that responses are turned into."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .errors import FailedRecord
from .records import DropReason


class Request:
    """One request, ready for the wire. `path` holds nothing secret; the rest is kept out of reprs.

    Args:
        path: of the endpoint, with a query if nothing in that is secret.
        token: the one in the body, so that it can be masked should the server repeat it.
        headers: by name.
        body: of a POST.
        method: `POST` or `GET`.
        query: of a GET, which may name a person; without the question mark.
        max_reply_bytes: size of the largest answer that is taken; None for that of an answer to a POST.
    """

    __slots__ = ("body", "headers", "max_response_bytes", "method", "path", "query", "token")

    def __init__(
        self,
        *,
        path: str,
        token: str = "",
        headers: Mapping[str, str],
        body: bytes,
        method: str = "POST",
        query: str = "",
        max_response_bytes: int | None = None,
    ) -> None:
        self.path = path
        self.token = token
        self.headers = headers
        self.body = body
        self.method = method
        self.query = query
        self.max_response_bytes = max_response_bytes

    def __repr__(self) -> str:
        return f"<{self.method} {self.path}>"

    @property
    def endpoint(self) -> str:
        return self.path.partition("?")[0]


class Response:
    """What came back: the body is complete and within its limit. With `etag` it can be asked whether it still holds."""

    __slots__ = ("body", "date", "etag", "retry_after", "status")

    def __init__(
        self,
        *,
        status: int,
        body: bytes,
        retry_after: str | None = None,
        date: str | None = None,
        etag: str | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.retry_after = retry_after
        self.date = date
        self.etag = etag

    def __repr__(self) -> str:
        return f"<answer {self.status} of {len(self.body)} bytes>"


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
