"""Queue of `MemoryOutbox`: its entries, leases and counters. The scripts in Redis make the same decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from .._model.records import DropReason
from .counters import counter_of
from .lanes import is_ordered, kind_of, lane_names, preferred_worker
from .protocol import LEASE_SECONDS, READ_BYTES, BeginResult, DeadEntry, Entry, EntryId, Held, PutResult, StoredEntry


@dataclass(slots=True)
class Kept:
    """Entry in the queue.

    Args:
        entry: the entry.
        put_at: when it was put, by the clock of the queue.
        owner: worker that has it; None before it is read.
        deliveries: as in `StoredEntry`.
        begun_by: worker that began a request with its non-idempotent records.
    """

    entry: Entry
    put_at: float
    owner: str | None = None
    deliveries: int = 0
    begun_by: str | None = None

    def give(self, worker: str) -> None:
        """Make a worker the owner: it reads the entry, or takes it over from a dead worker."""
        if self.owner != worker:
            self.owner, self.deliveries = worker, self.deliveries + 1

    def give_back(self) -> None:
        """Remove the owner, as if it had never had the entry."""
        self.owner, self.deliveries = None, self.deliveries - 1

    def begin(self, worker: str) -> BeginResult:
        """Note that a worker begins a request, and return whether it is the first worker."""
        self.begun_by = self.begun_by or worker
        return BeginResult.MINE if self.begun_by == worker else BeginResult.BEGUN

    def retract(self, worker: str) -> None:
        """Forget that a worker began a request, because none was applied."""
        if self.owner == self.begun_by == worker:
            self.begun_by = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """Dead letter: one record.

    Args:
        lane: name of its lane.
        reason: reason why it was not delivered.
        message: Mixpanel's message, or the cause.
        died: seconds since 1970.
        body: encoded record with the token replaced.
        is_once_only: whether it must not be sent twice.
    """

    lane: str
    reason: DropReason
    message: str
    died: float
    body: bytes = field(repr=False)
    is_once_only: bool


@dataclass(slots=True)
class WorkerState:
    """Worker of the queue: its kinds, and when it counts as dead."""

    kinds: Collection[str] | None
    alive_until: float


class MemoryState:
    """Data of one queue in memory. Its methods do not wait, and are called with the lock of the outbox.

    Args:
        partitions: number of lanes for profile updates, and of lanes for group updates.
        max_bytes: largest sum of the bodies of the waiting entries.
        max_records: largest number of waiting records; None for any number.
        keep_dead: number of newest dead letters to keep.
        clock: returns seconds since 1970.
    """

    def __init__(
        self,
        *,
        partitions: int,
        max_bytes: int,
        max_records: int | None,
        keep_dead: int,
        clock: Callable[[], float],
    ) -> None:
        self.clock = clock
        self.lanes: dict[str, dict[str, Kept]] = {name: {} for name in lane_names(partitions)}
        self.dead: dict[int, Letter] = {}
        self.counters: Counter[str] = Counter()
        self.workers: dict[str, WorkerState] = {}
        self.leases: dict[str, tuple[str, float]] = {}
        self.erased: dict[str, float] = {}
        self._partitions = partitions
        self._max_bytes = max_bytes
        self._max_records = max_records
        self._keep_dead = keep_dead
        self._pauses: dict[str, float] = {}
        self._sequences: dict[tuple[str, str], int] = {}
        self._numbers = count(1)
        self.bytes = self.records = 0

    def put(self, producer: str, entry: Entry) -> PutResult:
        """Store an entry, unless it is known or there is no room."""
        key = (producer, entry.lane)
        if entry.sequence is not None and entry.sequence <= self._sequences.get(key, -1):
            return PutResult.KNOWN
        if self.bytes + len(entry.body) > self._max_bytes:
            return PutResult.FULL
        if self._max_records is not None and self.records + entry.records > self._max_records:
            return PutResult.FULL
        if entry.sequence is not None:
            self._sequences[key] = entry.sequence
        self.append(entry)
        self.counters["in"] += entry.records
        return PutResult.TAKEN

    def append(self, entry: Entry) -> None:
        """Add an entry at the end of its lane."""
        self.lanes[entry.lane][f"{next(self._numbers)}-0"] = Kept(entry, self.clock())
        self.bytes += len(entry.body)
        self.records += entry.records

    def remove(self, lane: str, number: str) -> Kept:
        """Remove an entry."""
        kept = self.lanes[lane].pop(number)
        self.bytes -= len(kept.entry.body)
        self.records -= kept.entry.records
        return kept

    def announce(self, worker: str, kinds: Collection[str] | None) -> None:
        """Count a worker as alive."""
        self.workers[worker] = WorkerState(kinds, self.clock() + LEASE_SECONDS)

    def is_alive(self, worker: str) -> bool:
        """Return whether the last heartbeat of a worker is recent."""
        state = self.workers.get(worker)
        return state is not None and state.alive_until > self.clock()

    def take(
        self, worker: str, lanes: Collection[str], known: Collection[EntryId], max_records: int
    ) -> list[StoredEntry]:
        """Return entries of the lanes that the worker does not know yet, and make it their owner.

        Args:
            worker: the worker.
            lanes: names of lanes.
            known: entries that it has read before.
            max_records: number of records after which no further entry is returned; nor is one after `READ_BYTES`.
        """
        taken: list[StoredEntry] = []
        records = size = 0
        for entry_id, kept in self._readable(worker, lanes, known):
            if records >= max_records or size >= READ_BYTES:
                break
            kept.give(worker)
            records += kept.entry.records
            size += len(kept.entry.body)
            taken.append(StoredEntry(id=entry_id, entry=kept.entry, deliveries=kept.deliveries))
        return taken

    def _readable(
        self, worker: str, lanes: Collection[str], known: Collection[EntryId]
    ) -> Iterator[tuple[EntryId, Kept]]:
        for is_claimed in (True, False):
            for lane in lanes:
                if is_ordered(lane) and not self.may_serve(worker, lane):
                    continue
                for number, kept in [*self.lanes[lane].items()]:
                    entry_id = EntryId(lane, number)
                    if kept.owner == (worker if is_claimed else None) and entry_id not in known:
                        yield entry_id, kept

    def may_serve(self, worker: str, lane: str) -> bool:
        """Return whether a worker holds the lease of an ordered lane and need not give it to another."""
        return self.owner_of(lane) == worker and self._preferred(lane) in (worker, None)

    def owner_of(self, lane: str) -> str | None:
        """Return the worker that holds the lease of an ordered lane."""
        owner, until = self.leases.get(lane, ("", 0.0))
        return owner if until > self.clock() else None

    def _preferred(self, lane: str) -> str | None:
        kind = kind_of(lane)
        fit = [one for one, state in self.workers.items() if state.kinds is None or kind in state.kinds]
        return preferred_worker(lane, [one for one in fit if self.is_alive(one)])

    def owns(self, worker: str, id: EntryId) -> bool:
        """Return whether an entry is in the queue and belongs to the worker."""
        kept = self.lanes.get(id.lane, {}).get(id.id)
        return kept is not None and kept.owner == worker

    def _holds(self, worker: str, id: EntryId) -> bool:
        """Return whether an entry belongs to the worker, which also holds the lease of an ordered lane."""
        return self.owns(worker, id) and (not is_ordered(id.lane) or self.owner_of(id.lane) == worker)

    def begin(self, worker: str, id: EntryId) -> BeginResult:
        """Note that the worker begins a request with the non-idempotent records of an entry."""
        if not self._holds(worker, id):
            return BeginResult.GONE
        return self.lanes[id.lane][id.id].begin(worker)

    def settle(self, worker: str, id: EntryId, dead: Sequence[DeadEntry]) -> bool:
        """Remove an ended entry that the worker owns and store its dead letters. Return whether it did."""
        if not self.owns(worker, id):
            return False
        kept = self.remove(id.lane, id.id)
        for one in dead:
            self._bury(one)
        self.counters["out"] += kept.entry.records - sum(len(one.records) + one.unreadable for one in dead)
        return True

    def _bury(self, dead: DeadEntry) -> None:
        self.counters[counter_of(dead.reason)] += len(dead.records) + dead.unreadable
        if dead.reason is DropReason.PURGED:
            return
        for position, body in enumerate(dead.records):
            self.dead[next(self._numbers)] = Letter(
                lane=dead.id.lane,
                reason=dead.reason,
                message=dead.message,
                died=self.clock(),
                body=body,
                is_once_only=position in dead.non_idempotent,
            )
        while len(self.dead) > self._keep_dead:
            del self.dead[next(iter(self.dead))]

    def pause(self, endpoint: str, seconds: float) -> None:
        """Extend the pause of an endpoint."""
        self._pauses[endpoint] = max(self._pauses.get(endpoint, 0.0), self.clock() + seconds)

    def heartbeat(self, worker: str, kinds: Collection[str] | None, known: Collection[EntryId]) -> Held:
        """Renew a worker, share out the lanes, and take over entries of dead workers.

        Args:
            worker: the worker.
            kinds: kinds that it serves; None for all.
            known: entries that it has read.
        """
        # As in Redis, where all workers count as dead after an outage: each first renews itself.
        was_dead = not self.is_alive(worker)
        self.announce(worker, kinds)
        now = self.clock()
        for lane in filter(is_ordered, lane_names(self._partitions, kinds)):
            self._share_out(lane, worker, now, may_acquire=not was_dead)
        if not was_dead:
            self._take_over(worker, kinds)
        return Held(
            lanes=frozenset(lane for lane in self.lanes if is_ordered(lane) and self.owner_of(lane) == worker),
            gone=frozenset(one for one in known if not self._holds(worker, one)),
            pauses={endpoint: until - now for endpoint, until in self._pauses.items() if until > now},
            waiting=self.records,
            oldest_at=min(
                (one.entry.accepted_at for lane in self.lanes.values() for one in lane.values()), default=None
            ),
            dead=len(self.dead),
            waiting_bytes=self.bytes,
            workers=sum(map(self.is_alive, self.workers)),
        )

    def _share_out(self, lane: str, worker: str, now: float, *, may_acquire: bool) -> None:
        """Renew, give up or acquire the lease of an ordered lane. An expired one is renewed unless another has it."""
        owner, preferred = self.owner_of(lane), self._preferred(lane)
        if owner is None and self.leases.get(lane, ("", 0.0))[0] == worker:
            owner = worker
        if owner == worker and preferred != worker and not any(one.owner for one in self.lanes[lane].values()):
            del self.leases[lane]
        elif owner == worker or (owner is None and preferred == worker and may_acquire):
            self.leases[lane] = (worker, now + LEASE_SECONDS)
            for kept in self.lanes[lane].values():
                if kept.owner is not None:
                    kept.give(worker)

    def _take_over(self, worker: str, kinds: Collection[str] | None) -> None:
        for lane in lane_names(self._partitions, kinds):
            if is_ordered(lane):
                continue
            for kept in self.lanes[lane].values():
                if kept.owner is not None and not self.is_alive(kept.owner):
                    kept.give(worker)
        owners = {kept.owner for lane in self.lanes.values() for kept in lane.values()}
        for one in [one for one in self.workers if not self.is_alive(one) and one not in owners]:
            del self.workers[one]

    def release(self, worker: str, not_begun: Collection[EntryId]) -> None:
        """Remove a worker, its leases and the marks of some entries, and give its entries back."""
        for one in not_begun:
            if (found := self.lanes.get(one.lane, {}).get(one.id)) is not None:
                found.retract(worker)
        self.workers.pop(worker, None)
        self.leases = {lane: lease for lane, lease in self.leases.items() if lease[0] != worker}
        for lane in self.lanes.values():
            for kept in lane.values():
                if kept.owner == worker:
                    kept.give_back()
