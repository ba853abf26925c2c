"""Public values returned by the methods of `SqliteSpool`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolCount:
    """Number and size of some records of a spool.

    Args:
        records: number of records.
        bytes: size of their bodies.
        oldest: seconds since 1970. For waiting records, when the oldest was accepted or put back, derived from its own
            time and not before its client started; None if both are unknown. For dead letters, when the oldest died.
    """

    records: int = 0
    bytes: int = 0
    oldest: float | None = None

    def __add__(self, other: SpoolCount) -> SpoolCount:
        known = [one for one in (self.oldest, other.oldest) if one is not None]
        return SpoolCount(
            records=self.records + other.records,
            bytes=self.bytes + other.bytes,
            oldest=min(known, default=None),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """Contents of a spool at one moment.

    Args:
        waiting: records to be sent, by kind: `events`, `imports`, `people`, `groups`.
        held: the part of `waiting` that belongs to live clients, by kind. The other records were left by clients that
            have ended, or were put back; the next client of their project sends them.
        sending: records of `waiting` that must not be sent twice and whose request has started. If their client has
            ended, they become dead letters with the reason `uncertain`.
        dead: dead letters by reason.
        is_in_use: whether a live client uses the file.
        projects: number of projects with records in the file.
        file_bytes: size of the file.
        used_bytes: bytes in use, including the log; limited by `SqliteSpool.max_bytes`.
        log_bytes: size of SQLite's write-ahead log.
        schema: version of the tables.
        integrity: `ok`, `not checked`, or the errors found by SQLite's check.
        set_aside: names of damaged files in the same directory. They still contain the records that could not be
            recovered.
    """

    waiting: Mapping[str, SpoolCount]
    held: Mapping[str, SpoolCount]
    sending: int
    dead: Mapping[str, SpoolCount]
    is_in_use: bool
    projects: int
    file_bytes: int
    used_bytes: int
    log_bytes: int
    schema: int
    integrity: str
    set_aside: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledRecord:
    """One record of a spool.

    Args:
        id: number of the record; dead letters and waiting records are numbered separately.
        state: `waiting`; `sending` if it must not be sent twice and its request has started; `dead`.
        kind: `events`, `imports`, `people` or `groups`.
        payload: message without the project token, as passed to `on_drop`; None if it is unreadable.
        is_once_only: whether it must not be sent twice (such as `$add` and `$append`).
        reason: value of the `DropReason` of a dead letter; otherwise empty.
        message: error message of a dead letter, from Mixpanel or the client; otherwise empty.
        died: when a dead letter died, seconds since 1970; otherwise None.
    """

    id: int
    state: str
    kind: str
    payload: Mapping[str, Any] | None
    is_once_only: bool = False
    reason: str = ""
    message: str = ""
    died: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Purged:
    """Number of records deleted by a purge.

    Args:
        waiting: deleted records that were waiting to be sent.
        dead: deleted dead letters.
    """

    waiting: int = 0
    dead: int = 0
