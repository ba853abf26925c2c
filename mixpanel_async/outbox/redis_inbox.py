"""`Inbox` of `RedisOutbox`."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from math import inf
from typing import Any, Final

from .._model.errors import OutboxError
from .._runtime.environment import real_environment
from .._runtime.timers import sleep
from .erasure import ErasedPersons
from .lanes import entries_lost_with, is_ordered
from .memory import dead_by_entry
from .protocol import LEASE_SECONDS, READ_BYTES, BeginResult, DeadEntry, EntryId, Held, StoredEntry
from .redis_keys import entry_from, fields_of, is_newer, settle_args, sort_key
from .redis_queue import RedisQueue
from .redis_scripts import ANNOUNCE, BEGIN, FETCH, HEARTBEAT, PAUSE, RELEASE, RELEASED, SETTLE, TAKE

_LEASE_MS: Final = round(LEASE_SECONDS * 1000)
# Redis serves no other client while a script runs.
_ENTRIES_PER_SCRIPT: Final = 200
_TAKE_OVER_PER_HEARTBEAT: Final = 5_000
_SETTLED_KEPT: Final = 10_000
# Seconds between two looks for entries: the first one, and the longest.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.1


class RedisInbox:
    """Implementation of `Inbox`.

    After a command without an answer, Redis may count entries as read that this object does not know. The next
    heartbeat lists them, and `read` returns them. Until then, `read` returns nothing of ordered lanes: later entries
    must not overtake them.

    Args:
        queue: the queue.
        worker: name of the worker in Redis: `<name>#<random>/<kinds>`.
    """

    def __init__(self, queue: RedisQueue, worker: str) -> None:
        self._queue = queue
        self._worker = worker
        # Entries that `read` has returned, or keeps back because a newer version wrote them.
        self._known: set[EntryId] = set()
        self._newer: set[EntryId] = set()
        self._settling: set[EntryId] = set()
        # Entries that this worker owns and `read` has not returned yet: id and deliveries.
        self._claimed: dict[str, deque[tuple[str, int]]] = {lane: deque() for lane in queue.keys.lanes}
        self._held: frozenset[str] = frozenset()
        self._leaving: frozenset[str] = frozenset()
        # Entries that were settled lately. If Redis is killed, it may forget that they were.
        self._settled: dict[EntryId, None] = {}
        self._settled_in = ""
        self._must_list = True
        # Raised after a lost answer, so that Redis takes nothing for commands that it carries out too late.
        self._term = 0
        # Reads whose answer was lost, and how many of them had been when the last heartbeat listed the entries.
        self._lost_reads = self._found_reads = 0
        self._erasures = b""
        self._erased = ErasedPersons("", {})
        self._turn = 0

    @property
    def partitions(self) -> int:
        """See `Inbox.partitions`."""
        return self._queue.settings.partitions

    async def open(self) -> None:
        """See `Inbox.open`."""
        self._must_list = True
        await self._queue.open()
        await self._script(ANNOUNCE, self._queue.keys("none", "meta", "workers"), [self._worker, _LEASE_MS])

    async def _script(self, source: str, keys: Sequence[str], args: Sequence[str | bytes | int]) -> list[Any]:
        try:
            return await self._queue.script(source, keys, args, on_lost=self._on_lost)
        except BaseException:
            self._must_list = True
            raise

    def _on_lost(self) -> None:
        self._must_list = True
        self._held = frozenset()

    # Reading

    async def read(self, lanes: Collection[str], *, max_records: int, wait: float) -> list[StoredEntry]:
        """See `Inbox.read`.

        Raises:
            OutboxError: also while entries may be missing, because the answer to a read was lost.
        """
        until = inf if wait == inf else real_environment().monotonic() + wait
        pause = _FIRST_PAUSE
        while True:
            found = await self._read_claimed(lanes, max_records)
            records, size = _sum(found)
            if records < max_records and size < READ_BYTES:
                found += await self._take(lanes, max_records - records, READ_BYTES - size)
            remaining = until - real_environment().monotonic()
            if found:
                return found
            if remaining <= 0:
                if self._is_unsure:
                    raise OutboxError("the next heartbeat has to find the entries of a read that was not answered")
                return found
            await sleep(min(remaining, pause))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _read_claimed(self, lanes: Collection[str], max_records: int) -> list[StoredEntry]:
        found: list[StoredEntry] = []
        for lane in lanes:
            while self._claimed[lane] and self._may_read(lane):
                records, size = _sum(found)
                if records >= max_records or size >= READ_BYTES:
                    return found
                found += await self._fetch(lane, max_records - records, READ_BYTES - size)
        return found

    @property
    def _is_unsure(self) -> bool:
        """Whether this worker may have entries that it does not know."""
        return self._lost_reads != self._found_reads

    def _may_read(self, lane: str) -> bool:
        if not is_ordered(lane):
            return True
        is_served = lane in self._held and lane not in self._leaving
        return is_served and not self._is_unsure and not self._is_blocked(lane)

    def _is_blocked(self, lane: str) -> bool:
        return any(one.lane == lane for one in self._newer)

    async def _fetch(self, lane: str, max_records: int, max_bytes: int) -> list[StoredEntry]:
        """Return the next entries of a lane that were taken over."""
        some = dict(islice(self._claimed[lane], _ENTRIES_PER_SCRIPT))
        args: list[str | int] = [self._worker, max_records, max_bytes, *some]
        erasures, *answer = await self._script(FETCH, self._queue.keys("meta", lane), args)
        await self._note_erasures(erasures)
        bodies = [(number.decode(), fields) for number, fields in zip(answer[::2], answer[1::2], strict=True)]
        await self._remove_missing([EntryId(lane, number) for number, fields in bodies if fields is None])
        # Only now, and by their ids: a heartbeat may have changed the deque during the wait.
        done = {number for number, _ in bodies}
        self._claimed[lane] = deque(one for one in self._claimed[lane] if one[0] not in done)
        return [
            *self._accept(
                (EntryId(lane, number), fields, some[number]) for number, fields in bodies if fields is not None
            )
        ]

    async def _remove_missing(self, ids: Sequence[EntryId]) -> None:
        """Acknowledge entries that were removed from their stream. Those of other workers are left alone."""
        if ids:
            await self._settle(ids, {})

    async def _take(self, lanes: Collection[str], max_records: int, max_bytes: int) -> list[StoredEntry]:
        """Return entries that no worker has read."""
        free = [lane for lane in lanes if self._may_read(lane) and not self._claimed[lane]]
        if not free:
            return []
        # Another lane is the first one each time, so that a busy lane does not hold up the others.
        self._turn = (self._turn + 1) % len(free)
        order = [*free[self._turn :], *free[: self._turn]]
        keys = self._queue.keys("none", "meta", "workers", "leases", "terms", *order)
        args: list[str | int] = [self._worker, max_records, _ENTRIES_PER_SCRIPT, self._term, max_bytes, *order]
        try:
            erasures, *answer = await self._script(TAKE, keys, args)
            await self._note_erasures(erasures)
        except BaseException:
            self._lost_reads += 1
            raise
        return [
            *self._accept(
                (EntryId(lane.decode(), number.decode()), fields, 1)
                for lane, number, fields in zip(answer[::3], answer[1::3], answer[2::3], strict=True)
            )
        ]

    def _accept(self, answers: Iterable[tuple[EntryId, list[bytes], int]]) -> Iterator[StoredEntry]:
        for one, flat, deliveries in answers:
            fields = fields_of(flat)
            if one in self._known:
                continue
            if is_ordered(one.lane) and self._is_blocked(one.lane):
                self._claimed[one.lane].append((one.id, deliveries))
                continue
            self._known.add(one)
            if is_newer(fields):
                self._newer.add(one)
                continue
            entry = entry_from(one.lane, fields)
            since = min(entry.accepted_at, sort_key(one.id)[0] / 1000)
            erased = self._erased.positions(entry, since)
            yield StoredEntry(id=one, entry=entry, deliveries=deliveries, erased=erased, since=since)

    async def _note_erasures(self, erasures: bytes) -> None:
        if erasures != self._erasures:
            try:
                flat = await self._queue.connection.call("HGETALL", *self._queue.keys("forget"))
            except BaseException:
                # The caller drops an answer with entries that this worker has got.
                self._must_list = True
                raise
            pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2], strict=True)
            times = {person.decode(): int(time) / 1000 for person, time in pairs}
            self._erased, self._erasures = ErasedPersons(self._queue.salt, times), erasures

    # Settling

    async def begin(self, ids: Sequence[EntryId]) -> list[BeginResult]:
        """See `Inbox.begin`."""
        keys, numbers = self._queue.keys.with_lanes(["none", "meta", "leases"], [one.lane for one in ids])
        args = [value for one in ids for value in (numbers[one.lane], one.lane, one.id)]
        results = [BeginResult[one.decode()] for one in await self._script(BEGIN, keys, [self._worker, *args])]
        if gone := {one for one, result in zip(ids, results, strict=True) if result is BeginResult.GONE}:
            # The next heartbeat finds those that still belong to this worker, and `read` returns them in order.
            lost = entries_lost_with(gone, self._known)
            self._known -= lost
            self._newer -= lost
            self._must_list = True
        return results

    async def settle(self, ended: Sequence[EntryId], dead: Sequence[DeadEntry] = ()) -> int:
        """See `Inbox.settle`."""
        count = await self._settle(ended, dead_by_entry(ended, dead))
        if self._settled_in != self._queue.epoch:
            # The ids of a queue that was removed may be given again.
            self._settled, self._settled_in = {}, self._queue.epoch
        if count == len(entries := dict.fromkeys(ended)):
            # None of them belongs to another worker, which may give it back unsent.
            self._settled.update(entries)
        for one in [*islice(self._settled, max(0, len(self._settled) - _SETTLED_KEPT))]:
            del self._settled[one]
        return count

    async def _settle(self, ended: Sequence[EntryId], dead: dict[EntryId, list[DeadEntry]]) -> int:
        settings = self._queue.settings
        self._settling.update(ended)
        try:
            keys, numbers = self._queue.keys.with_lanes(["none", "meta", "dead"], [one.lane for one in ended])
            values = [
                value
                for one in dict.fromkeys(ended)
                for value in settle_args(one, numbers[one.lane], dead.get(one, []))
            ]
            args = [self._worker, settings.keep_dead, settings.max_bytes, *values]
            (count,) = await self._script(SETTLE, keys, args)
        finally:
            self._settling.difference_update(ended)
        self._known.difference_update(ended)
        return int(count)

    # Leases

    async def pause(self, endpoint: str, seconds: float) -> None:
        """See `Inbox.pause`."""
        await self._script(PAUSE, self._queue.keys("none", "meta", "pauses"), [endpoint, max(0, round(seconds * 1000))])

    async def heartbeat(self) -> Held:
        """See `Inbox.heartbeat`."""
        known, must_list, self._must_list = frozenset(self._known), self._must_list, False
        lost_reads = self._lost_reads
        self._term += must_list
        keys = self._queue.keys
        answer = await self._script(
            HEARTBEAT,
            keys.all_lanes("none", "meta", "workers", "leases", "pauses", "dead", "forget", "terms"),
            [self._worker, _LEASE_MS, _TAKE_OVER_PER_HEARTBEAT, "1" if must_list else "", self._term, *keys.lanes],
        )
        was_dead, held, leaving, pauses, taken, own, waiting, oldest, dead, size, workers, erasures = answer
        await self._note_erasures(erasures)
        self._held = frozenset(lane.decode() for lane in held)
        self._leaving = frozenset(lane.decode() for lane in leaving)
        gone = {one for one in self._known if is_ordered(one.lane) and one.lane not in self._held}
        if was_dead or must_list:
            listed = _triples(own)
            gone |= (known & self._known) - {one for one, _ in listed} - self._settling
            await self._claim(listed)
            self._found_reads = lost_reads
        await self._claim(_triples(taken))
        for lane in self._claimed:
            if is_ordered(lane) and lane not in self._held:
                self._claimed[lane].clear()
        self._known -= gone
        self._newer -= gone
        self._queue.note_waiting(int(waiting))
        losses, lost_records = self._queue.take_losses()
        return Held(
            lanes=self._held,
            gone=frozenset(gone),
            pauses={path.decode(): left / 1000 for path, left in zip(pauses[::2], pauses[1::2], strict=True)},
            newer=len(self._newer),
            waiting=int(waiting),
            oldest_at=None if oldest is None else int(oldest) / 1000,
            dead=int(dead),
            waiting_bytes=int(size),
            workers=int(workers),
            erased=self._erased.names,
            losses=losses,
            lost_records=lost_records,
        )

    async def _claim(self, found: Sequence[tuple[EntryId, int]]) -> None:
        """Let `read` return entries that this worker owns, unless it has returned them."""
        waiting = {EntryId(lane, number) for lane, claimed in self._claimed.items() for number, _ in claimed}
        settled = []
        for one, deliveries in found:
            if one in waiting or one in self._known or one in self._settling:
                continue
            if one in self._settled and self._settled_in == self._queue.epoch:
                # Redis was killed before it had written that this worker settled the entry.
                settled.append(one)
            else:
                self._claimed[one.lane].append((one.id, deliveries))
        for lane in {one.lane for one, _ in found}:
            self._claimed[lane] = deque(sorted(self._claimed[lane], key=lambda one: sort_key(one[0])))
        if settled:
            await self._settle(settled, {})

    async def release(self, not_begun: Collection[EntryId] = ()) -> None:
        """See `Inbox.release`."""
        self._held = frozenset()
        keys = self._queue.keys
        names = ["none", "meta", "workers", "leases", "terms", *keys.lanes, *(f"begun:{lane}" for lane in keys.lanes)]
        numbers = {lane: number for number, lane in enumerate(keys.lanes, 1)}
        marks = [value for one in not_begun for value in (numbers[one.lane], one.id)]
        await self._script(RELEASE, keys(*names), [self._worker, RELEASED, len(keys.lanes), *keys.lanes, *marks])
        self._drop()

    def forget(self) -> None:
        """See `Inbox.forget`."""
        self._queue.forget()
        self._drop()

    def _drop(self) -> None:
        self._known.clear()
        self._newer.clear()
        self._must_list = True
        for claimed in self._claimed.values():
            claimed.clear()

    async def aclose(self) -> None:
        """See `Inbox.aclose`."""
        await self._queue.aclose()


def _sum(found: Sequence[StoredEntry]) -> tuple[int, int]:
    """Return the number of the records, and the bytes of their packed bodies."""
    return sum(one.entry.records for one in found), sum(len(one.entry.body) for one in found)


def _triples(flat: Sequence[Any]) -> list[tuple[EntryId, int]]:
    return [
        (EntryId(lane.decode(), number.decode()), int(deliveries))
        for lane, number, deliveries in zip(flat[::3], flat[1::3], flat[2::3], strict=True)
    ]
