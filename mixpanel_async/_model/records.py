"""Records, their kinds, and the reasons why they are not delivered.

A record in the queue is only its encoded bytes, so that a large queue needs little more memory than its records.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from .errors import FailedRecord, ValidationError

_MAX_REFUSAL_TEXT: Final = 500


class RecordKind(Enum):
    """Destination of a record, by the official SDK's names of the endpoints."""

    EVENTS = "events"
    IMPORTS = "imports"
    PEOPLE = "people"
    GROUPS = "groups"
    IDENTITY = "identity"
    """`$create_alias` and `$identify`: always sent to `/track`, which requires only a token."""

    # That of `Enum` is a Python function, and every call looks up the lane of a kind.
    __hash__ = object.__hash__


class Record(bytes):
    """Encoded record. `repr` shows only its size, because error reporters show the local variables of every frame."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<record of {len(self)} bytes>"


class NonIdempotentRecord(Record):
    """Record that is not idempotent, such as an `$add`: two attempts could apply it twice."""

    __slots__ = ()


class RefusedRecord(Record):
    """Stand-in for a record that could not be encoded: the path and the problem of its `ValidationError`, as JSON."""

    __slots__ = ()

    @classmethod
    def of(cls, error: ValidationError) -> RefusedRecord:
        """Return the record for an error, which may come from a user's own type."""
        texts = [text[:_MAX_REFUSAL_TEXT] if type(text) is str else "" for text in (error.path, error.problem)]
        return cls(json.dumps(texts).encode())

    def read(self) -> tuple[str, str]:
        """Return path and problem."""
        path, problem = json.loads(self)
        return path, problem


class IdentityRecord(Record):
    """Encoded `$create_alias`, `$identify` or `$merge`. In the queue, it keeps its place among the person's records."""

    __slots__ = ()


class DropReason(str, Enum):
    """Reason why a record was not delivered, in `on_drop` and `Stats.losses`."""

    QUEUE_FULL = "queue_full"
    """The queue was full (counted as dropped)."""
    SPOOL_FULL = "spool_full"
    """The spool was full (dropped)."""
    SPOOL_FAILED = "spool_failed"
    """The spool could not be written, or lost its records (dropped)."""
    PURGED = "purged"
    """Removed from the spool by the user (dropped)."""
    BEFORE_SEND = "before_send"
    """The `before_send` hook returned None (dropped)."""
    BEFORE_SEND_FAILED = "before_send_failed"
    """The `before_send` hook raised an error, or returned an invalid record (dropped)."""
    INVALID = "invalid"
    """The arguments of the call cannot be sent, in a client with `invalid="drop"` (dropped)."""
    CLOSED = "closed"
    """Still waiting when the timeout of `aclose()` expired (dropped)."""
    TOO_OLD = "too_old"
    """Older than the five days that `/track` accepts, without credentials for `/import` (failed)."""
    REJECTED = "rejected"
    """Mixpanel refused this record (failed)."""
    TOO_LARGE = "too_large"
    """Mixpanel refused a request with only this record as too large (failed)."""
    EXHAUSTED = "exhausted"
    """The `RetryPolicy` allowed no further attempt (failed)."""
    CRASHED = "crashed"
    """Read from a spool or an outbox by several processes in turn that ended while they had it (failed)."""
    SPOILED = "spoiled"
    """Its entry in an outbox is damaged and cannot be read (failed)."""
    UNAUTHORIZED = "unauthorized"
    """Mixpanel refused the credentials of an awaited call (failed)."""
    UNCERTAIN = "uncertain"
    """Sent once without a conclusive response, and not safe to send again (uncertain)."""


DROPPED: Final = frozenset(
    {
        DropReason.QUEUE_FULL,
        DropReason.SPOOL_FULL,
        DropReason.SPOOL_FAILED,
        DropReason.PURGED,
        DropReason.BEFORE_SEND,
        DropReason.BEFORE_SEND_FAILED,
        DropReason.INVALID,
        DropReason.CLOSED,
    }
)


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class Loss:
    """Records of one kind that were not delivered, for one reason.

    Not a tuple, because error reporters show the items of tuples.

    Args:
        kind: destination of the records.
        reason: reason why they were not delivered.
        items: the encoded records.
        details: Mixpanel's messages about each record, if it named them.
        message: Mixpanel's message about the request.
        count_only: number of further records that were not kept.
    """

    kind: RecordKind
    reason: DropReason
    items: Sequence[bytes]
    details: Sequence[FailedRecord] = ()
    message: str = ""
    count_only: int = 0

    def merge(self, other: Loss) -> None:
        """Add the records of a similar loss to this one, which must be a copy."""
        assert isinstance(self.items, list)
        self.items.extend(other.items)
        self.count_only += other.count_only

    def copy(self) -> Loss:
        """Return a copy with a separate list of items."""
        return replace(self, items=list(self.items))

    def messages(self) -> list[str]:
        """Return the message about each record."""
        named = len(self.details) == len(self.items)
        return [detail.message for detail in self.details] if named else [self.message] * len(self.items)
