"""Public values returned by the methods of `QueueAdmin` (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_FULL_PART: Final = 0.9
_EVICTING: Final = "volatile-"


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCount:
    """Number and size of some records of a queue.

    Args:
        records: number of records.
        bytes: size of their bodies as they are stored: those of waiting records are compressed.
        oldest: seconds since 1970, when the oldest waiting record was accepted or put back, or when the oldest dead
            letter died; None without records.
        entries: number of entries of waiting records; 0 for dead letters.
        held: number of these entries that workers have read.
    """

    records: int = 0
    bytes: int = 0
    oldest: float | None = None
    entries: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueWorker:
    """Worker that serves a queue.

    Args:
        name: its name, and a random part that is new at each start.
        kinds: kinds of records that it serves; empty for all.
        alive_for: seconds until it counts as dead unless it gives a sign of life; 0 if it is dead.
        held: number of entries that it has read and that have not ended.
        lanes: ordered lanes that only it serves now.
    """

    name: str
    kinds: tuple[str, ...]
    alive_for: float
    held: int
    lanes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueServer:
    """Server that holds a queue, as far as it tells its settings to this user; None where it does not.

    Args:
        name: `redis` or `valkey`.
        version: its version.
        role: `master`, or `slave` for a replica.
        replicas: number of connected replicas.
        append_only: whether changes are written to the append-only file.
        append_fsync: how often that is written to disk: `always`, `everysec` or `no`.
        append_status: `ok`, or `err` if the last write of that file failed.
        policy: the `maxmemory-policy`.
        memory: bytes in use.
        max_memory: limit of these; 0 without a limit.
        default_user_may_write: whether the user `default` has the rights to write the queue, also if it is off. Redis 7
            reads its append-only file with the rights of this user.
    """

    name: str
    version: str
    role: str | None = None
    replicas: int | None = None
    append_only: bool | None = None
    append_fsync: str | None = None
    append_status: str | None = None
    policy: str | None = None
    memory: int | None = None
    max_memory: int | None = None
    default_user_may_write: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """Contents of a queue at one moment.

    Args:
        name: name of the queue.
        format: version of its keys.
        partitions: number of lanes for profile updates, and of lanes for group updates.
        records: number of waiting records.
        bytes: size of their packed bodies, which `RedisOutbox.max_bytes` limits.
        oldest: seconds since 1970, when the oldest of them was accepted; None if none waits.
        waiting: waiting records by lane; only lanes that have some.
        dead: dead letters by reason, as far as `RedisOutbox.keep_dead` keeps them.
        counters: records since the queue was created: `in`, handed over by producers; `retried`, put back from dead
            letters; `out`, delivered; `dead`, `uncertain`, `purged`, and `lost` when a part of the queue was removed.
            `in + retried == out + dead + uncertain + purged + lost + records`.
        workers: workers, also those that have died and hold entries.
        pauses: seconds for which all workers pause requests to an endpoint, because Mixpanel asked one of them to.
        erased: number of erased persons whose older records are dropped.
        newer_lanes: lanes whose first entry a newer version of this package wrote.
        server: the server.
    """

    name: str
    format: int
    partitions: int
    records: int
    bytes: int
    oldest: float | None
    waiting: Mapping[str, QueueCount]
    dead: Mapping[str, QueueCount]
    counters: Mapping[str, int]
    workers: tuple[QueueWorker, ...]
    pauses: Mapping[str, float]
    erased: int
    newer_lanes: tuple[str, ...]
    server: QueueServer

    @property
    def advice(self) -> tuple[str, ...]:
        """Advice in sentences; empty without any."""
        return (*self._queue_advice(), *_server_advice(self.server))

    def _queue_advice(self) -> list[str]:
        found = []
        alive = [one for one in self.workers if one.alive_for > 0]
        if self.records and not alive:
            found.append("No worker is alive: start mixpanel-async worker.")
        for endpoint, seconds in sorted(self.pauses.items()):
            found.append(
                f"At Mixpanel's limit: it asked to pause requests to {endpoint}, for {seconds:.0f} s more. Further"
                " workers do not help; ask Mixpanel for a higher limit, or send less."
            )
        if self.newer_lanes:
            found.append(
                f"A newer version of mixpanel-async wrote to {', '.join(self.newer_lanes)}: update the workers, and"
                " always do so before the producers."
            )
        if self.counters.get("lost", 0):
            found.append(f"{self.counters['lost']} records were lost: a part of the queue was removed from Redis.")
        return found


def _server_advice(server: QueueServer) -> list[str]:
    found = []
    if (0,) < _version_of(server.version) < (6, 2):
        found.append(f"Redis {server.version} is too old: use Redis 6.2 or later, or Valkey 7.2 or later.")
    if server.role == "slave":
        found.append("This server is a replica: use the address of the primary.")
    return [*found, *_persistence_advice(server), *_memory_advice(server)]


def _persistence_advice(server: QueueServer) -> list[str]:
    found = []
    if server.append_only is False:
        found.append(
            "Redis writes no append-only file, and loses what it has confirmed if it is killed: set appendonly yes."
        )
    elif server.append_fsync == "no":
        found.append("appendfsync is no: a power failure may cost much; set it to everysec.")
    if server.append_only is not False and server.default_user_may_write is False:
        found.append(
            "The user default may not write the queue, and Redis 7 reads its append-only file with the rights of this"
            " user: the queue is empty after a restart. Run ACL SETUSER default ~* &* +@all, and keep it in the file of"
            " users; the user may stay off."
        )
    if server.append_status not in (None, "ok"):
        found.append("Redis could not write its append-only file: check its disk.")
    return found


def _memory_advice(server: QueueServer) -> list[str]:
    found = []
    if server.policy is None:
        found.append("Redis does not tell its maxmemory-policy: make sure that it is noeviction.")
    elif server.policy.startswith(_EVICTING):
        found.append(
            f"The maxmemory-policy {server.policy} may remove what Redis knows about repeated batches: set noeviction."
        )
    elif server.policy != "noeviction":
        found.append(f"The maxmemory-policy {server.policy} may remove waiting records: set it to noeviction.")
    if server.max_memory == 0:
        found.append("Redis has no maxmemory: set it above twice the max_bytes of the queue, and below its RAM.")
    elif server.max_memory and (server.memory or 0) > _FULL_PART * server.max_memory:
        found.append("The memory of Redis is nearly full: add workers or memory.")
    return found


def _version_of(text: str) -> tuple[int, ...]:
    """Return a version that can be compared. Unknown parts count as 0, so that an unknown version is (0,)."""
    return tuple(int(one) if one.isdigit() else 0 for one in text.split("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedRecord:
    """One record of a queue.

    Args:
        id: of a dead letter, its number. Of a waiting record, its lane, the id of its entry, and its position there.
        state: `waiting`; `sending` if it must not be sent twice and its request has started; `dead`.
        kind: `events`, `imports`, `people`, `groups` or `identity`.
        payload: message without the project token; None if it is unreadable.
        is_once_only: whether it must not be sent twice (such as `$add` and `$append`).
        reason: value of the `DropReason` of a dead letter; otherwise empty.
        message: error message of a dead letter, from Mixpanel or the worker; otherwise empty.
        died: when a dead letter died, seconds since 1970; otherwise None.
    """

    id: str
    state: str
    kind: str
    payload: Mapping[str, Any] | None
    is_once_only: bool = False
    reason: str = ""
    message: str = ""
    died: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePurged:
    """Number of records deleted by a purge.

    Args:
        waiting: deleted records that were waiting. None if a person was erased: workers drop these records when they
            come to them, and count them as `purged`.
        dead: deleted dead letters.
    """

    waiting: int | None = 0
    dead: int = 0
