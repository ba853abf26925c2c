"""What is said of a spool to whoever looks after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolCount:
    """Some of what a spool holds.

    Args:
        records: how many.
        bytes: size of their bodies.
        oldest: seconds since 1970. Of what waits: when the oldest of it was accepted or put back, by its own time
            and not before its client began; None if neither is known. Of dead letters: when the first of them died.
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
    """What a spool holds, at one moment.

    Args:
        waiting: what is to be sent, by kind: `events`, `imports`, `people`, `groups`.
        held: the part of `waiting` that belongs to clients that live, by kind. The rest is left by dead ones, or was
            put back, and goes to the next client of its project.
        sending: records of `waiting` that must not be sent twice and whose request has begun. If their client is dead
            they become dead letters with the reason `uncertain`.
        dead: dead letters by reason.
        is_in_use: whether a live client uses it.
        projects: how many projects it holds records of.
        file_bytes: size of the file.
        used_bytes: what is in use of the file, what is still in its log included; `SqliteSpool.max_bytes` bounds it.
        log_bytes: size of SQLite's log beside it.
        schema: version of its tables.
        integrity: `ok`, `not checked`, or what SQLite's check found.
        set_aside: names of damaged spools that lie beside it, set aside. What could not be saved of them is still in
            there.
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
        id: its number; dead letters are numbered apart from what waits.
        state: `waiting`; `sending` if it must not be sent twice and its request has begun; `dead`.
        kind: `events`, `imports`, `people` or `groups`.
        payload: the message without the project's token, as `on_drop` has it; None if it cannot be read.
        is_once_only: whether it must not be sent twice (`$add`, `$append` and the like).
        reason: of a dead letter, the value of its `DropReason`; otherwise empty.
        message: of a dead letter, Mixpanel's words or what went wrong.
        died: of a dead letter, seconds since 1970.
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
    """How many records a purge deleted.

    Args:
        waiting: that were to be sent.
        dead: dead letters.
    """

    waiting: int = 0
    dead: int = 0
