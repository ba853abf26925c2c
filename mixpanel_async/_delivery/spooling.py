"""The queue's side of the spool: what its thread reports is entered in the buffer, and callers wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio

from .._encoding.batch_body import Packer
from .._model.config import ClientOptions, Overflow
from .._model.errors import MixpanelException, QueueFullError, SpoolError, refuse
from .._model.records import DropReason, Loss, OnceOnly
from .._runtime.clock import Runtime
from .._runtime.event_loop import Host
from .._spool.messages import LANE_CODES, ONCE, SENDING, Entry, Eviction, Group, Held, Reports, Settings, Writer
from .._spool.spool import SqliteSpool, journal_of
from .buffer import Buffer, Offer
from .disk_backlog import SpoolLimits
from .lanes import Batch, Lane

T = TypeVar("T")


class Owner(Protocol):
    """The queue, as far as the journal's thread needs it."""

    last_error: str | None

    def locked(self, work: Callable[[], T]) -> T: ...

    def report(self, losses: list[Loss]) -> None: ...

    def moved(self) -> None:
        """Records may be sent, or there is room, that was not before."""


class Durable:
    """Joins a buffer to a journal.

    Args:
        settings: of the journal.
        buffer: what waits.
        runtime: clocks.
        drops: whether a record for which the disk has no room is dropped instead of refused.
        make_journal: makes the journal, given whom to report to.
    """

    def __init__(
        self,
        settings: Settings,
        buffer: Buffer,
        runtime: Runtime,
        *,
        drops: bool,
        make_journal: Callable[[Reports], Writer],
    ) -> None:
        self._buffer = buffer
        self._drops = drops
        self._path = settings.path
        self._monotonic = runtime.monotonic
        # A group may have to wait until the one before it has given up.
        self._patience = 2 * settings.wait + 1.0
        self._at_least_once = settings.at_least_once
        self._owner: Owner
        self.journal = make_journal(self)

    def belong_to(self, owner: Owner) -> None:
        self._owner = owner

    def offer(self, lane: Lane, item: bytes, now: float, *, is_awaited: bool) -> tuple[Offer, Group]:
        """Take a record into the buffer and the next commit. Hold the queue's lock."""
        journal = self.journal
        with journal.mutex:
            group = journal.group
            verdict = self._buffer.offer(lane, item, now)
            if verdict is not Offer.FULL:
                group.entries.append(Entry(lane, lane.last_id, item, is_awaited))
                group.size += len(item)
        if verdict is not Offer.FULL:
            journal.ring()
        return verdict, group

    def make_room(self, size: int) -> None:
        """Drop the oldest of what waits on disk alone, if that makes room. Hold the queue's lock."""
        buffer = self._buffer
        flying = [batch for lane in buffer.active for batch in (*lane.leased, *lane.alone)]
        held, held_bytes = sum(len(batch.items) for batch in flying), sum(batch.payload for batch in flying)
        if not buffer.is_full(size) or not buffer.can_make_room(size, held, held_bytes):
            return
        for lane in sorted(buffer.lanes_on_disk(), key=lambda lane: -lane.on_disk):
            count = buffer.excess(lane, size)
            if not count:
                continue
            eviction = buffer.doom(lane, count)
            if not lane.is_loading:
                self._ask_to_evict(eviction)
            elif lane.doomed is None:
                # They are on their way into memory, or right behind what is.
                lane.doomed = eviction
            else:
                lane.doomed.absorb(eviction)

    def _ask_to_evict(self, eviction: Eviction) -> None:
        self.journal.ask(lambda work: work.evict(eviction))

    def note(self) -> None:
        """Have the rows taken out of the spool whose records have ended. Hold the queue's lock."""
        ended, self._buffer.ended = self._buffer.ended, []
        self.journal.ask(lambda work: work.ended.extend(ended))

    def refill(self) -> None:
        """Have lanes that run low read from the disk. Hold the queue's lock."""
        for lane in self._buffer.lanes_on_disk():
            if self._buffer.wants(lane):
                lane.is_loading = True
                self._ask_to_load(lane)

    def _ask_to_load(self, lane: Lane) -> None:
        self.journal.ask(lambda work: work.loads.append((lane.code, lane.disk_from)))

    async def landed(self, group: Group, host: Host) -> None:
        """Wait until a group is on disk.

        Raises:
            MixpanelException: if it is not, or not within the time that the spool may take.
        """
        if not group.is_done:
            await self._wait(group, host)
        if group.error is not None:
            # One for each waiter, so that tracebacks do not grow.
            raise _copy_of(group.error)

    async def _wait(self, group: Group, host: Host) -> None:
        while not group.is_done:
            watch: _Watch | None = group.watch
            # One that an event loop has left behind rings no more.
            if watch is None or watch.host is not host:
                watch = group.watch = _Watch(host, anyio.current_time() + self._patience)
                group.when_done(watch.ring_soon)
            if anyio.current_time() >= watch.until:
                raise SpoolError(f"{self._path}: the disk did not answer in time", uncertain=True)
            if watch.is_kept:
                await watch.bell.wait()
                continue
            # One of them all watches the clock: a scope each would cost more than the write.
            watch.is_kept = True
            try:
                with anyio.move_on_after(watch.until - anyio.current_time()):
                    await watch.bell.wait()
            finally:
                # Late, or cancelled: then another one must watch.
                watch.is_kept = False
                watch.ring()

    async def begin(self, batch: Batch, host: Host) -> None:
        """Note on disk that a request begins, if a record in it must not be sent twice.

        Raises:
            MixpanelException: if that could not be noted; the request must not be made.
        """
        if ids := self._once(batch):
            group = self.journal.ask(lambda work: work.marks.append((ids, SENDING)))
            await self.landed(group, host)
            if not group.is_noted:
                raise SpoolError(f"{self._path}: the spool could not be written")

    def settled(self, batch: Batch) -> None:
        """Note that no request is under way for what is left of a batch. Hold the queue's lock, before `note`."""
        if ids := self._once(batch):
            ended = {row for end in self._buffer.ended for row in end.ids}
            if left := [row for row in ids if row not in ended]:
                self.journal.ask(lambda work: work.marks.append((left, ONCE)))

    def _once(self, batch: Batch) -> list[int]:
        if self._at_least_once or not batch.ids:
            return []
        return [row for row, item in zip(batch.ids, batch.items, strict=True) if isinstance(item, OnceOnly)]

    def _lane(self, code: int) -> Lane:
        for lane in self._buffer.lanes.values():
            if lane.code == code:
                return lane
        kind = next(kind for (kind, signed), number in LANE_CODES.items() if number == code and not signed)
        return self._buffer.lane(kind)

    # What follows is called in the journal's thread.

    def written(self, entries: Sequence[Entry], used_bytes: int, freed: int) -> None:
        self._owner.locked(lambda: self._buffer.written(entries, used_bytes, freed))
        self._owner.moved()

    def not_written(self, entries: Sequence[Entry], *, full: bool) -> list[Entry]:
        losses: list[Loss] = []

        def work() -> list[Entry]:
            self._buffer.not_written(full=full)
            if full and self._drops:
                losses.extend(self._buffer.retract(entries, DropReason.SPOOL_FULL))
                return []
            again = [entry for entry in entries if not entry.is_awaited]
            if full:
                losses.extend(self._buffer.retract(again, DropReason.SPOOL_FULL))
                again = []
            self._buffer.retract([entry for entry in entries if entry.is_awaited], None)
            return again

        again = self._owner.locked(work)
        self._owner.report(losses)
        self._owner.moved()
        return again

    def failed(self, words: str) -> None:
        self._owner.last_error = words

    def refusal(self, error: MixpanelException, *, full: bool) -> MixpanelException | None:
        """What those who wait for a group that was not written are told."""
        if not full:
            return error
        return None if self._drops else QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def loaded(self, lane: int, rows: list[tuple[int, bytes]], spoiled: int) -> None:
        losses: list[Loss] = []

        def work() -> None:
            into = self._lane(lane)
            if spoiled:
                losses.append(self._buffer.vanished(into, min(spoiled, into.on_disk), DropReason.SPOOL_FAILED))
            losses.extend(self._buffer.arrived(into, rows, self._monotonic()))
            if into.doomed is not None and into.doomed.count:
                self._ask_to_evict(into.doomed)
            into.doomed = None
            if not (rows or spoiled or into.unwritten) and into.on_disk:
                losses.append(self._buffer.vanished(into, into.on_disk, DropReason.PURGED))

        self._owner.locked(work)
        self._owner.report(losses)
        self._owner.moved()

    def given_up(self, entries: Sequence[Entry]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            self._buffer.retract([entry for entry in entries if entry.is_awaited], None)
            others = [entry for entry in entries if not entry.is_awaited]
            losses.extend(self._buffer.retract(others, DropReason.SPOOL_FAILED))

        self._owner.locked(work)
        self._owner.report(losses)
        self._owner.moved()

    def evicted(self, lane: int, items: list[bytes]) -> None:
        self._owner.report([Loss(kind=self._lane(lane).kind, reason=DropReason.QUEUE_FULL, items=items)])

    def adopted(self, lanes: dict[int, tuple[int, int]], unsure: dict[int, list[bytes]]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            for code, (records, size) in lanes.items():
                self._buffer.adopt(self._lane(code), records, size)
            for code, items in unsure.items():
                losses.append(self._buffer.adopt_lost(self._lane(code), items))

        self._owner.locked(work)
        self._owner.report(losses)
        self._owner.moved()

    def held(self) -> tuple[list[Held], set[int]]:
        return self._owner.locked(self._held)

    def _held(self) -> tuple[list[Held], set[int]]:
        held = [
            Held(row, item, isinstance(item, OnceOnly) and batch in lane.leased and not self._at_least_once)
            for lane in self._buffer.lanes.values()
            for batch in lane.batches()
            for row, item in zip(batch.ids, batch.items, strict=False)
            if lane.is_written(row)
        ]
        return held, self.journal.ended_rows()

    def reopened(self) -> None:
        losses: list[Loss] = []

        def work() -> None:
            dropped = self.journal.drop_readings()
            for lane in self._buffer.lanes.values():
                if lane.doomed is not None:
                    self._buffer.freeing -= lane.doomed.size
                    dropped.append(lane.doomed)
                lane.is_loading, lane.doomed = False, None
                if gone := lane.on_disk - lane.unwritten:
                    losses.append(self._buffer.vanished(lane, gone, DropReason.SPOOL_FAILED))
                if lane.unwritten:
                    # Where the new file's rows on disk alone begin: behind all that is in memory.
                    lane.disk_from = max(lane.unwritten_from, lane.written_to + 1)
            # They have been counted, and are told without a word of what was in them.
            losses.extend(
                Loss(kind=self._lane(one.lane).kind, reason=DropReason.QUEUE_FULL, items=(), bare=one.count)
                for one in dropped
                if one.count
            )

        self._owner.locked(work)
        self._owner.report(losses)


@dataclass(slots=True)
class _Watch:
    """For those of one event loop that wait for a group: which of them minds the clock, and until when."""

    host: Host
    until: float
    is_kept: bool = False
    bell: anyio.Event = field(default_factory=anyio.Event)

    def ring(self) -> None:
        """Let everybody look again."""
        bell, self.bell = self.bell, anyio.Event()
        bell.set()

    def ring_soon(self) -> None:
        self.host.call_soon(self.ring)


def buffer_of(options: ClientOptions, spool: SqliteSpool, new_packer: Callable[[], Packer]) -> Buffer:
    """A buffer that may leave records to this spool.

    Raises:
        ConfigurationError: if it is none.
    """
    if not isinstance(spool, SqliteSpool):
        refuse(f"spool must be an instance of SqliteSpool, not {type(spool).__name__}")
    limits = SpoolLimits(max_bytes=spool.max_bytes, max_records=spool.max_records)
    return Buffer(options.batching, options.retry, limits, new_packer)


def durable_of(options: ClientOptions, spool: SqliteSpool, buffer: Buffer, runtime: Runtime) -> Durable:
    """What joins this buffer to this spool.

    Raises:
        ConfigurationError: if this system has no locks that a spool can stand on.
    """
    settings = Settings(
        path=spool.file,
        max_bytes=spool.max_bytes,
        keep_dead=spool.keep_dead,
        wait=spool.timeout,
        fsync=spool.fsync,
        erase=spool.erase,
        token=options.token,
        at_least_once=options.batching.at_least_once,
    )
    return Durable(
        settings,
        buffer,
        runtime,
        drops=options.overflow in {Overflow.DROP_NEWEST, Overflow.DROP_OLDEST},
        make_journal=lambda reports: journal_of(settings, reports, runtime),
    )


def _copy_of(error: MixpanelException) -> Any:
    if isinstance(error, SpoolError):
        return SpoolError(error.message, uncertain=error.uncertain)
    return type(error)(*error.args)
