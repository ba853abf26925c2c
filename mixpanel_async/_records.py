"""What all layers say to one another: kinds of record, outcomes of a request, and what the user is told.

A record in the queue is its encoded bytes and nothing more, so that a hundred thousand of them cost what they weigh.
`OnceOnly` marks the few that must not be sent twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NamedTuple

from ._errors import FailedRecord
from ._value import Value


class Kind(Enum):
    """Where a record goes, by the official SDK's names of the endpoints."""

    EVENTS = "events"
    IMPORTS = "imports"
    PEOPLE = "people"
    GROUPS = "groups"
    IDENTITY = "identity"
    """`$create_alias` and `$identify`: always `/track`, which asks nothing of them but a token."""


class Record(bytes):
    """The encoded bytes of a record. Error reporters show the locals of every frame; of this they show the size."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<record of {len(self)} bytes>"


class OnceOnly(Record):
    """A record that is not idempotent (`$add`, `$append`, `$remove`): two tries could apply it twice."""

    __slots__ = ()


class DropReason(str, Enum):
    """Why a record was not delivered, as `on_drop` and `Stats.losses` name it."""

    QUEUE_FULL = "queue_full"
    """No room in the queue (counted as dropped)."""
    SPOOL_FULL = "spool_full"
    """No room on the disk (dropped)."""
    SPOOL_FAILED = "spool_failed"
    """The spool could not be written, or lost what it had (dropped)."""
    PURGED = "purged"
    """Taken out of the spool by hand (dropped)."""
    BEFORE_SEND = "before_send"
    """The `before_send` hook returned None (dropped)."""
    BEFORE_SEND_FAILED = "before_send_failed"
    """The `before_send` hook raised, or returned what cannot be sent (dropped)."""
    CLOSED = "closed"
    """Still waiting when `aclose()` ran out of time (dropped)."""
    TOO_OLD = "too_old"
    """Older than the five days that `/track` takes when its turn came, and there are no credentials for `/import`
    (failed)."""
    REJECTED = "rejected"
    """Mixpanel refused this record (failed)."""
    TOO_LARGE = "too_large"
    """Mixpanel refused this record alone as too large (failed)."""
    EXHAUSTED = "exhausted"
    """The attempts or the total time of the `RetryPolicy` ran out (failed)."""
    UNAUTHORIZED = "unauthorized"
    """Mixpanel refused the credentials of an awaited call (failed)."""
    UNCERTAIN = "uncertain"
    """Sent once, no telling answer, and not safe to send again (uncertain)."""


DROPPED: Final = frozenset(
    {
        DropReason.QUEUE_FULL,
        DropReason.SPOOL_FULL,
        DropReason.SPOOL_FAILED,
        DropReason.PURGED,
        DropReason.BEFORE_SEND,
        DropReason.BEFORE_SEND_FAILED,
        DropReason.CLOSED,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class LostRecord(Value):
    """One record that was not delivered.

    Args:
        kind: `events`, `imports`, `people` or `groups`.
        payload: the message as it would have been sent, without the project token; None if so many records were lost
            faster than `on_drop` could take them that only their number was kept.
        field: path of the property that Mixpanel objected to, if it named one.
        message: Mixpanel's words, or an empty string.
    """

    kind: str
    payload: Mapping[str, Any] | None
    field: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Delivery(Value):
    """One request that Mixpanel took, as `on_delivered` is told of it.

    Args:
        kind: `events`, `imports`, `people` or `groups`.
        records: how many records it delivered.
        body_bytes: uncompressed size of its body.
        attempts: requests that these records took, this one included.
        duration: seconds from its start to the end of the answer.
    """

    kind: str
    records: int
    body_bytes: int
    attempts: int
    duration: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FlushResult(Value):
    """What became of the records that `flush()` or `aclose()` covered.

    Args:
        delivered: taken by Mixpanel.
        failed: ended without delivery, for whatever reason: what `Stats` counts as failed, dropped or uncertain.
        pending: still waiting when the time was up.
        losses: the `failed` ones by the value of their `DropReason`; not compared.
    """

    delivered: int
    failed: int
    pending: int
    losses: Mapping[str, int] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class FlagStats(Value):
    """What became of feature flags since the client was made.

    Args:
        ready: whether there are definitions to evaluate locally.
        definitions: flags among them.
        age: seconds since Mixpanel last said, in a usable answer, what they are; None if it never did.
        polls: times that definitions were asked for.
        updates: answers that changed them.
        failures: answers without usable definitions, or none at all; the last good ones stay.
        refused: definitions in the last usable answer that are malformed; earlier versions of these flags stay.
        remote_requests: requests for remote evaluation, second tries included.
        remote_failures: remote evaluations without a usable answer; the caller got its fallback.
        undecidable: local evaluations that failed; the caller got its fallback.
        exposures: exposure events handed to the queue.
        exposures_repeated: exposures left out because the same was reported within the window.
        exposures_lost: exposures that could not be tracked: without a `distinct_id` that is text or a whole number, no
            room, client closed.
        last_error: what went wrong last, in words; None if nothing has.
    """

    ready: bool = False
    definitions: int = 0
    age: float | None = None
    polls: int = 0
    updates: int = 0
    failures: int = 0
    refused: int = 0
    remote_requests: int = 0
    remote_failures: int = 0
    undecidable: int = 0
    exposures: int = 0
    exposures_repeated: int = 0
    exposures_lost: int = 0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Stats(Value):
    """A snapshot. At every moment `accepted == delivered + failed + dropped + uncertain + pending`.

    Args:
        accepted: records taken from the caller since the client was made, and those taken over from a spool.
        delivered: taken by Mixpanel.
        failed: refused by Mixpanel, or out of attempts.
        dropped: never sent: no room in the queue, refused by `before_send`, or left over at `aclose()`.
        uncertain: sent once with no telling answer, and not safe to send again.
        pending: waiting or in flight, in memory or on disk.
        pending_bytes: encoded size of the pending records.
        on_disk: the part of `pending` that waits on disk alone.
        recovered: the part of `accepted` that was taken over from a spool: left there by a process that ended, or put
            back by `mixpanel-async spool retry`.
        in_flight: requests under way.
        requests: requests begun, identity calls included.
        retries: the part of `requests` that repeated an earlier one.
        losses: number of records by the value of their `DropReason`.
        last_error: what went wrong last, in words; None if nothing has.
        flags: of feature flags; None without them. Their requests are counted there and not in `requests`.
    """

    accepted: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    uncertain: int = 0
    pending: int = 0
    pending_bytes: int = 0
    on_disk: int = 0
    recovered: int = 0
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    losses: Mapping[str, int] = field(default_factory=dict)
    last_error: str | None = None
    flags: FlagStats | None = None


# What follows passes between the parts of the client alone. It is no dataclass, of each of which the import would have
# to compile six methods. What may hold a secret is no tuple either: error reporters look into those.


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

    __slots__ = ("body", "headers", "max_reply_bytes", "method", "path", "query", "token")

    def __init__(
        self,
        *,
        path: str,
        token: str = "",
        headers: Mapping[str, str],
        body: bytes,
        method: str = "POST",
        query: str = "",
        max_reply_bytes: int | None = None,
    ) -> None:
        self.path = path
        self.token = token
        self.headers = headers
        self.body = body
        self.method = method
        self.query = query
        self.max_reply_bytes = max_reply_bytes

    def __repr__(self) -> str:
        return f"<{self.method} {self.path}>"

    @property
    def endpoint(self) -> str:
        return self.path.partition("?")[0]


class Reply:
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


class NoReply(NamedTuple):
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


class Pruned(NamedTuple):
    """The named records were refused and all others taken."""

    failed: tuple[FailedRecord, ...]
    status: int
    message: str


class Split(NamedTuple):
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
    at_once: bool = False


class Refused(NamedTuple):
    """The request was refused for good."""

    status: int
    message: str


class Misconfigured(NamedTuple):
    """Credentials, host or path are wrong: no record is to blame, and none can be delivered until that is mended."""

    # Not in the order of `Refused`, so that the two are never equal.
    message: str
    status: int


class Outdated(NamedTuple):
    """No request was made: these records have become too old for where they were to go.

    Args:
        positions: where they are in the batch.
        by_import: they may go to `/import` instead.
    """

    positions: frozenset[int]
    by_import: bool


Outcome = Delivered | Pruned | Split | Retry | Refused | Misconfigured
