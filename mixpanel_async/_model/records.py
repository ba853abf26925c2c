"""What all layers say to one another: kinds of record, outcomes of a request, and what the user is told.

A record in the queue is its encoded bytes and nothing more, so that a hundred thousand of them cost what they weigh.
`OnceOnly` marks the few that must not be sent twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

from .errors import FailedRecord


class RecordKind(Enum):
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


class NonIdempotentRecord(Record):
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


# What follows passes between the parts of the client alone. It is no dataclass, of each of which the import would have
# to compile six methods. What may hold a secret is no tuple either: error reporters look into those.


class Loss:
    """Records of one kind that ended without delivery, for one reason.

    Args:
        kind: where they were to go.
        reason: why they did not.
        items: their bytes.
        details: what Mixpanel said of each, if it named them.
        message: what it said of the request.
        bare: further records, of which only the number was kept.
    """

    __slots__ = ("count_only", "details", "items", "kind", "message", "reason")

    def __init__(
        self,
        *,
        kind: RecordKind,
        reason: DropReason,
        items: Sequence[bytes],
        details: Sequence[FailedRecord] = (),
        message: str = "",
        count_only: int = 0,
    ) -> None:
        self.kind = kind
        self.reason = reason
        self.items = items
        self.details = details
        self.message = message
        self.count_only = count_only

    def merge(self, other: Loss) -> None:
        """Add the records of a similar loss to this one, which must be a copy."""
        assert isinstance(self.items, list)
        self.items.extend(other.items)
        self.count_only += other.count_only

    def copy(self) -> Loss:
        """The same, with a list of items of its own."""
        return Loss(
            kind=self.kind,
            reason=self.reason,
            items=list(self.items),
            details=self.details,
            message=self.message,
            count_only=self.count_only,
        )

    def messages(self) -> list[str]:
        """What was said of each record."""
        named = len(self.details) == len(self.items)
        return [detail.message for detail in self.details] if named else [self.message] * len(self.items)
