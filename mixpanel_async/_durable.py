"""The queue's side of the spool: what its thread reports is entered in the buffer, and callers wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import anyio

from ._backlog import LOAD_RECORDS, Entry
from ._buffer import Buffer, Offer
from ._errors import MixpanelException, QueueFullError, SpoolError
from ._host import Host
from ._lanes import LANE_CODES, Batch, Lane, Loss
from ._records import DropReason, OnceOnly
from ._runtime import Runtime
from ._spool.work import ONCE, SENDING, Group, Reports, Settings, Writer

T = TypeVar("T")


class Owner(Protocol):
    """The queue, as far as the journal's thread needs it."""

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
        self._monotonic = runtime.monotonic
        # A group may have to wait until the one before it has given up.
        self._patience = 2 * settings.wait + 1.0
        self._at_least_once = settings.at_least_once
        self._owner: Owner
        self.journal = make_journal(self)

    def belong_to(self, owner: Owner) -> None:
        self._owner = owner

    def offer(self, lane: Lane, item: bytes, *, is_awaited: bool) -> tuple[Offer, Group]:
        """Take a record into the buffer and the next commit. Hold the queue's lock."""
        journal = self.journal
        with journal.mutex:
            group = journal.group
            verdict = self._buffer.offer(lane, item, self._monotonic(), group.number)
            if verdict is not Offer.FULL:
                group.entries.append(Entry(lane, lane.last_id, item, is_awaited))
        if verdict is not Offer.FULL:
            journal.ring()
        return verdict, group

    def make_room(self, size: int) -> None:
        """Drop the oldest of what waits on disk alone. Hold the queue's lock."""
        lanes = [lane for lane in self._buffer.lanes_on_disk() if not lane.is_loading or lane.on_disk > LOAD_RECORDS]
        if not lanes:
            return
        lane = max(lanes, key=lambda lane: lane.on_disk)
        # As many as make up for the new one, by their mean size.
        count = min(lane.on_disk, 1 + size * lane.on_disk // max(1, lane.on_disk_bytes))
        own = lane.disk_from
        estimate = self._buffer.doom(lane, count)
        self.journal.ask(lambda work: work.evictions.append((lane.code, own, count, estimate)))

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
        event: anyio.Event | None = group.waiters
        if event is None:
            event = group.waiters = anyio.Event()
            group.when_done(lambda: host.call_soon(event.set))
            # One of them all watches the clock: a scope each would cost more than the write.
            with anyio.move_on_after(self._patience):
                await event.wait()
            group.waiters = None
            if not group.is_done and not event.is_set():
                group.is_late = True
                event.set()
        else:
            await event.wait()
        if not group.is_done:
            if group.is_late:
                raise SpoolError("the disk did not answer in time", uncertain=True)
            await self._wait(group, host)

    async def begin(self, batch: Batch, host: Host) -> None:
        """Note on disk that a request begins, if a record in it must not be sent twice.

        Raises:
            MixpanelException: if that could not be noted; the request must not be made.
        """
        if ids := self._once(batch):
            await self.landed(self.journal.ask(lambda work: work.marks.append((ids, SENDING))), host)

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

    def written(self, entries: Sequence[Entry], group: int, used_bytes: int, freed: int) -> None:
        self._owner.locked(lambda: self._buffer.written(entries, group, used_bytes, freed))
        self._owner.moved()

    def not_written(self, entries: Sequence[Entry], *, full: bool) -> list[Entry]:
        losses: list[Loss] = []

        def work() -> list[Entry]:
            self._buffer.is_disk_full = full
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

    def refusal(self, error: MixpanelException, *, full: bool) -> MixpanelException | None:
        """What those who wait for a group that was not written are told."""
        if not full:
            return error
        return None if self._drops else QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def loaded(self, lane: int, rows: list[tuple[int, bytes]], committed: int) -> None:
        losses: list[Loss] = []

        def work() -> None:
            into = self._lane(lane)
            if rows:
                self._buffer.restock(into, rows, self._monotonic())
            elif into.on_disk and into.disk_group <= committed:
                losses.append(self._buffer.vanished(into, DropReason.PURGED))
            else:
                into.is_loading = False

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

    def held(self) -> list[tuple[int, bytes]]:
        return self._owner.locked(self._held)

    def _held(self) -> list[tuple[int, bytes]]:
        batches = [batch for lane in self._buffer.lanes.values() for batch in lane.batches()]
        return [
            row
            for batch in batches
            if batch.group <= self._buffer.committed
            for row in zip(batch.ids, batch.items, strict=False)
        ]

    def reopened(self) -> None:
        losses: list[Loss] = []

        def work() -> None:
            lanes = self._buffer.lanes_on_disk()
            losses.extend(self._buffer.vanished(lane, DropReason.SPOOL_FAILED) for lane in lanes)

        self._owner.locked(work)
        self._owner.report(losses)


def _copy_of(error: MixpanelException) -> Any:
    if isinstance(error, SpoolError):
        return SpoolError(error.message, uncertain=error.uncertain)
    return type(error)(*error.args)
