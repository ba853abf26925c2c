"""Protocols of an engine that keeps batches for many hosts: `Outbox` opens an `EntryWriter` or an `Inbox`.

A producer packs the records of one lane into an `Entry` and puts it. A worker reads entries, sends their records to
Mixpanel, and settles them. An entry ends when its last record ends.

Lanes have names: `events`, `imports`, `identity`, `people:0` to `people:P-1` and `groups:0` to `groups:P-1`. Any worker
takes any entry of an unordered lane (`events`, `imports`). An ordered lane (all others) has one worker at a time, which
holds its lease and reads its entries in the order in which they were put.

A queue holds the records of one project. The methods of one connection may be called concurrently.

Every method that waits may raise `OutboxError`, and no other exception of a library.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Final, NamedTuple, Protocol

from .._model.records import DropReason

HEARTBEAT_SECONDS: Final = 5.0
"""Time between two heartbeats of a worker."""
FENCE_SECONDS: Final = 12.0
"""A worker starts no request once this time has passed since the start of its last successful heartbeat."""
LEASE_SECONDS: Final = 15.0
"""Time after a heartbeat at which a worker counts as dead, and others take its lanes and entries over."""
READ_BYTES: Final = 4 * 1024 * 1024
"""Bytes of packed bodies after which one read returns no further entry."""


class EntryId(NamedTuple):
    """Position of an entry.

    Args:
        lane: name of the lane.
        id: id that the engine gave the entry; unique in its lane. Its text does not sort in the order of the lane.
    """

    lane: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Records of one lane, handed over together.

    Args:
        lane: name of the lane.
        records: number of records; at least 1.
        body: the packed records; see `packing.py`.
        is_compressed: whether the body is compressed with gzip.
        non_idempotent: ascending positions of the records that must not be sent twice.
        accepted_at: when the oldest record was accepted, in seconds since 1970.
        sequence: number that the producer gives each entry of an ordered lane, ascending, and keeps when it puts the
            entry again; None in an unordered lane, where `$insert_id` makes a second copy harmless.
    """

    lane: str
    records: int
    body: bytes = field(repr=False)
    is_compressed: bool = False
    non_idempotent: tuple[int, ...] = ()
    accepted_at: float
    sequence: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEntry:
    """Entry that a worker has read.

    Args:
        id: position.
        entry: the entry.
        deliveries: 1, plus the number of workers that died while they had it. Workers that gave it back do not count.
        erased: positions of records about persons whose data was erased. They must not be sent; they end as a
            `DeadEntry` with the reason `PURGED`.
        since: when the entry was accepted or put, whichever was first, in seconds since 1970, for `Held.erased`.
    """

    id: EntryId
    entry: Entry
    deliveries: int
    erased: tuple[int, ...] = ()
    since: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadEntry:
    """Records of one entry that end as dead letters, for one reason.

    Args:
        id: entry of the records.
        reason: reason why they were not delivered. Records with `PURGED` are counted and not kept.
        records: the encoded records, with the token replaced as in `packing.py`.
        non_idempotent: ascending positions in `records` of those that must not be sent twice.
        unreadable: number of further records, of which no form is known: their body is spoiled. They are counted.
        message: Mixpanel's message about them, or the cause.
    """

    id: EntryId
    reason: DropReason
    records: Sequence[bytes] = field(default=(), repr=False)
    non_idempotent: tuple[int, ...] = ()
    unreadable: int = 0
    message: str = ""


class PutResult(Enum):
    """Answer of an engine to one entry."""

    TAKEN = "taken"
    """The engine has stored the entry."""
    KNOWN = "known"
    """The engine had stored this sequence number before, so the entry is not stored again."""
    FULL = "full"
    """The engine has no room; nothing was stored."""


class BeginResult(Enum):
    """Answer to a worker that is about to send records that must not be sent twice."""

    MINE = "mine"
    """The start is noted, and this worker may send the records."""
    GONE = "gone"
    """The worker does not have the entry any more, nor the others of an ordered lane that it has read: send nothing and
    settle nothing. `read` returns them again if it gets them back."""
    BEGUN = "begun"
    """A request with these records has begun before: they are uncertain, and only the other records may be sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Answer to a heartbeat: lanes and entries of the worker, and the state of the queue.

    Args:
        lanes: ordered lanes whose lease it holds.
        gone: entries that it had read and that belong to another worker now.
        pauses: seconds that remain of the shared pauses, by path of the endpoint.
        newer: number of entries that a newer version wrote. They wait for a worker that can read them.
        waiting: number of records in the queue that have not ended, of all workers and lanes.
        oldest_at: when the oldest record in the queue was accepted, in seconds since 1970; None without entries.
        dead: number of dead letters in the queue.
        waiting_bytes: size of the packed bodies of the waiting records.
        workers: number of workers that are alive, this one included.
        erased: returns whether an encoded record names a person who was erased at `since` or later; None if there is
            none. It is asked about records that were read before.
        losses: times, since the last answer, that this worker found the queue or a part of it removed.
        lost_records: records lost with these, as far as their number is known.
    """

    lanes: frozenset[str]
    gone: frozenset[EntryId]
    pauses: Mapping[str, float]
    newer: int = 0
    waiting: int = 0
    oldest_at: float | None = None
    dead: int = 0
    waiting_bytes: int = 0
    workers: int = 0
    erased: Callable[[bytes, float], bool] | None = None
    losses: int = 0
    lost_records: int = 0


class EntryWriter(Protocol):
    """Connection of a producer."""

    @property
    def partitions(self) -> int:
        """Number of lanes for profile updates, and of lanes for group updates; known after `open`."""
        ...

    async def open(self) -> None:
        """Connect and check the queue. May be called again, after an error or after `forget`.

        Raises:
            ConfigurationError: if the options do not fit the queue, the server or the event loop.
            OutboxError: if the engine cannot be reached or refuses.
        """
        ...

    async def put(self, entries: Sequence[Entry]) -> Sequence[PutResult]:
        """Store entries, each completely or not at all, and return the answer to each.

        Args:
            entries: the entries, in the order in which they are stored.

        Raises:
            OutboxError: if the engine refuses or does not answer; each entry may then be stored or not.
        """
        ...

    def forget(self) -> None:
        """Drop the connections without closing them: the event loop has ended, or the process was forked."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Inbox(Protocol):
    """Connection of a worker."""

    @property
    def partitions(self) -> int:
        """Number of lanes for profile updates, and of lanes for group updates; known after `open`."""
        ...

    async def open(self) -> None:
        """Connect, check the queue, and announce this worker. The errors are those of `EntryWriter.open`."""
        ...

    async def read(self, lanes: Collection[str], *, max_records: int, wait: float) -> Sequence[StoredEntry]:
        """Return entries of these lanes, those of dead workers first; an empty list if none came in time.

        Entries of an ordered lane are returned only while this worker holds its lease, in order.

        Args:
            lanes: names of lanes.
            max_records: number of records after which no further entry is read; nor is one after `READ_BYTES`.
            wait: seconds to wait for an entry.
        """
        ...

    async def begin(self, ids: Sequence[EntryId]) -> Sequence[BeginResult]:
        """Note that a request with the non-idempotent records of these entries begins, and return each answer.

        Called again for an entry that this inbox began, the answer is `MINE` again: the first one may have been lost.

        Args:
            ids: ids of entries that this inbox has read.
        """
        ...

    async def settle(self, ended: Sequence[EntryId], dead: Sequence[DeadEntry] = ()) -> int:
        """Remove the ended entries that this worker still owns, and store their dead letters, in one step.

        Args:
            ended: entries whose last record has ended.
            dead: dead letters of entries in `ended`. Those of entries that this worker does not own are not stored.

        Returns:
            Number of entries that were removed.

        Raises:
            ValueError: if a dead letter belongs to an entry that is not in `ended`.
        """
        ...

    async def pause(self, endpoint: str, seconds: float) -> None:
        """Let all workers pause requests to this endpoint, after a 429 or a `Retry-After`.

        Args:
            endpoint: path of the endpoint, such as `/track`.
            seconds: length of the pause, from now.
        """
        ...

    async def heartbeat(self) -> Held:
        """Renew the worker and its leases, and take over the lanes and entries of dead workers."""
        ...

    async def release(self, not_begun: Collection[EntryId] = ()) -> None:
        """Give up the leases and unsettled entries at once, so that other workers continue.

        Args:
            not_begun: entries whose mark of `begin` is removed, if this inbox owns them and set it: none of their
                requests was applied, so the next worker sends all of their records.
        """
        ...

    def forget(self) -> None:
        """Drop the connections without closing them: the event loop has ended, or the process was forked."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...


class Outbox(Protocol):
    """Engine: options of a queue outside of the process. It opens nothing itself."""

    @property
    def confirm(self) -> bool:
        """Whether tracking calls return only once the engine has stored their records."""
        ...

    @property
    def compress(self) -> bool:
        """Whether producers compress the bodies of entries."""
        ...

    def writer(self, token: str, producer: str | None = None) -> EntryWriter:
        """Return a connection for a producer of the project with this token; not opened yet.

        Args:
            token: token of the project.
            producer: identifies the numbers of entries in ordered lanes; unique among producers. Writers of one
                producer that follow each other may share it. None for a random one.
        """
        ...

    def inbox(self, token: str, worker: str, *, kinds: Collection[str] | None = None) -> Inbox:
        """Return a connection for a worker of the project with this token; not opened yet.

        Args:
            token: token of the project.
            worker: name of the worker, for people.
            kinds: kinds of records that the worker serves, by the values of `RecordKind`; None for all. Only these
                lanes are shared out to it.
        """
        ...
