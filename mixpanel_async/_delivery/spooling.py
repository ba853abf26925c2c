"""The queue's side of the spool: what its thread reports is entered in the buffer, and callers wait for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import anyio

from .._encoding.batch_body import Compressor
from .._model.config import ClientOptions, Overflow
from .._model.errors import MixpanelException, QueueFullError, SpoolError, raise_configuration_error
from .._model.records import DropReason, Loss, NonIdempotentRecord
from .._runtime.clock import Environment
from .._runtime.event_loop import EventLoop
from .._spool.messages import (
    LANE_CODES,
    ONCE,
    SENDING,
    CommitGroup,
    Eviction,
    PendingWrite,
    RowInMemory,
    SpoolSettings,
    WriterListener,
    WriterProtocol,
)
from .._spool.spool import SqliteSpool, make_writer
from .buffer import Buffer, OfferResult
from .disk_backlog import SpoolLimits
from .lanes import Batch, Lane

T = TypeVar("T")


class SpoolListener(Protocol):
    """The queue, as far as the journal's thread needs it."""

    def record_error(self, text: str) -> None: ...

    def run_locked(self, work: Callable[[], T]) -> T: ...

    def report_losses(self, losses: list[Loss]) -> None: ...

    def notify_progress(self) -> None:
        """Records may be sent, or there is room, that was not before."""


class SpoolBridge:
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
        settings: SpoolSettings,
        buffer: Buffer,
        runtime: Environment,
        *,
        drops: bool,
        make_writer: Callable[[WriterListener], WriterProtocol],
    ) -> None:
        self._buffer = buffer
        self._drops = drops
        self._path = settings.path
        self._monotonic = runtime.monotonic
        # A group may have to wait until the one before it has given up.
        self._timeout = 2 * settings.timeout + 1.0
        self._at_least_once = settings.at_least_once
        self._listener: SpoolListener
        self.writer = make_writer(self)

    def attach(self, owner: SpoolListener) -> None:
        self._listener = owner

    def offer(self, lane: Lane, item: bytes, now: float, *, is_awaited: bool) -> tuple[OfferResult, CommitGroup]:
        """Take a record into the buffer and the next commit. Hold the queue's lock."""
        journal = self.writer
        with journal.group_lock:
            group = journal.group
            verdict = self._buffer.offer(lane, item, now)
            if verdict is not OfferResult.FULL:
                group.add(PendingWrite(lane, lane.last_id, item, is_awaited))
        if verdict is not OfferResult.FULL:
            journal.wake()
        return verdict, group

    def make_room(self, size: int) -> None:
        """Drop the oldest of what waits on disk alone, if that makes room. Hold the queue's lock."""
        buffer = self._buffer
        flying = [batch for lane in buffer.active for batch in (*lane.leased, *lane.single_requests)]
        held, held_bytes = sum(len(batch.items) for batch in flying), sum(batch.payload for batch in flying)
        if not buffer.is_full(size) or not buffer.can_make_room(size, held, held_bytes):
            return
        for lane in sorted(buffer.lanes_on_disk(), key=lambda lane: -lane.on_disk):
            count = buffer.excess(lane, size)
            if not count:
                continue
            eviction = buffer.evict_on_disk(lane, count)
            if not lane.is_loading:
                self._ask_to_evict(eviction)
            elif lane.pending_eviction is None:
                # They are on their way into memory, or right behind what is.
                lane.pending_eviction = eviction
            else:
                lane.pending_eviction.merge(eviction)

    def _ask_to_evict(self, eviction: Eviction) -> None:
        self.writer.submit(lambda work: work.evict(eviction))

    def delete_settled(self) -> None:
        """Have the rows taken out of the spool whose records have ended. Hold the queue's lock."""
        ended, self._buffer.settled_rows = self._buffer.settled_rows, []
        self.writer.submit(lambda work: work.settled.extend(ended))

    def refill(self) -> None:
        """Have lanes that run low read from the disk. Hold the queue's lock."""
        for lane in self._buffer.lanes_on_disk():
            if self._buffer.should_load(lane):
                lane.is_loading = True
                self._ask_to_load(lane)

    def _ask_to_load(self, lane: Lane) -> None:
        self.writer.submit(lambda work: work.loads.append((lane.code, lane.disk_from)))

    async def wait_committed(self, group: CommitGroup, host: EventLoop) -> None:
        """Wait until a group is on disk.

        Raises:
            MixpanelException: if it is not, or not within the time that the spool may take.
        """
        if not group.is_done:
            await self._wait(group, host)
        if group.error is not None:
            # One for each waiter, so that tracebacks do not grow.
            raise _copy_of(group.error)

    async def _wait(self, group: CommitGroup, host: EventLoop) -> None:
        while not group.is_done:
            watch: _CommitWaiter | None = group.waiter
            # One that an event loop has left behind rings no more.
            if watch is None or watch.loop is not host:
                watch = group.waiter = _CommitWaiter(host, anyio.current_time() + self._timeout)
                group.when_done(watch.wake_soon)
            if anyio.current_time() >= watch.until:
                raise SpoolError(f"{self._path}: the disk did not answer in time", uncertain=True)
            if watch.is_kept:
                await watch.event.wait()
                continue
            # One of them all watches the clock: a scope each would cost more than the write.
            watch.is_kept = True
            try:
                with anyio.move_on_after(watch.until - anyio.current_time()):
                    await watch.event.wait()
            finally:
                # Late, or cancelled: then another one must watch.
                watch.is_kept = False
                watch.wake()

    async def begin(self, batch: Batch, host: EventLoop) -> None:
        """Note on disk that a request begins, if a record in it must not be sent twice.

        Raises:
            MixpanelException: if that could not be noted; the request must not be made.
        """
        if ids := self._once(batch):
            group = self.writer.submit(lambda work: work.marks.append((ids, SENDING)))
            await self.wait_committed(group, host)
            if not group.marks_written:
                raise SpoolError(f"{self._path}: the spool could not be written")

    def settled(self, batch: Batch) -> None:
        """Note that no request is under way for what is left of a batch. Hold the queue's lock, before `note`."""
        if ids := self._once(batch):
            ended = {row for end in self._buffer.settled_rows for row in end.ids}
            if left := [row for row in ids if row not in ended]:
                self.writer.submit(lambda work: work.marks.append((left, ONCE)))

    def _once(self, batch: Batch) -> list[int]:
        if self._at_least_once or not batch.ids:
            return []
        return [row for row, item in zip(batch.ids, batch.items, strict=True) if isinstance(item, NonIdempotentRecord)]

    def _lane(self, code: int) -> Lane:
        for lane in self._buffer.lanes.values():
            if lane.code == code:
                return lane
        kind = next(kind for (kind, signed), number in LANE_CODES.items() if number == code and not signed)
        return self._buffer.lane(kind)

    # What follows is called in the journal's thread.

    def on_written(self, entries: Sequence[PendingWrite], used_bytes: int, freed: int) -> None:
        self._listener.run_locked(lambda: self._buffer.written(entries, used_bytes, freed))
        self._listener.notify_progress()

    def on_write_failed(self, entries: Sequence[PendingWrite], *, full: bool) -> list[PendingWrite]:
        losses: list[Loss] = []

        def work() -> list[PendingWrite]:
            self._buffer.not_written(full=full)
            if full and self._drops:
                losses.extend(self._buffer.undo_writes(entries, DropReason.SPOOL_FULL))
                return []
            again = [entry for entry in entries if not entry.is_awaited]
            if full:
                losses.extend(self._buffer.undo_writes(again, DropReason.SPOOL_FULL))
                again = []
            self._buffer.undo_writes([entry for entry in entries if entry.is_awaited], None)
            return again

        again = self._listener.run_locked(work)
        self._listener.report_losses(losses)
        self._listener.notify_progress()
        return again

    def on_error(self, message: str) -> None:
        self._listener.record_error(message)

    def error_for_callers(self, error: MixpanelException, *, full: bool) -> MixpanelException | None:
        """What those who wait for a group that was not written are told."""
        if not full:
            return error
        return None if self._drops else QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def on_loaded(self, lane: int, rows: list[tuple[int, bytes]], unreadable: int) -> None:
        losses: list[Loss] = []

        def work() -> None:
            into = self._lane(lane)
            if unreadable:
                losses.append(self._buffer.rows_missing(into, min(unreadable, into.on_disk), DropReason.SPOOL_FAILED))
            losses.extend(self._buffer.rows_loaded(into, rows, self._monotonic()))
            if into.pending_eviction is not None and into.pending_eviction.count:
                self._ask_to_evict(into.pending_eviction)
            into.pending_eviction = None
            if not (rows or unreadable or into.unwritten) and into.on_disk:
                losses.append(self._buffer.rows_missing(into, into.on_disk, DropReason.PURGED))

        self._listener.run_locked(work)
        self._listener.report_losses(losses)
        self._listener.notify_progress()

    def on_discarded(self, entries: Sequence[PendingWrite]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            self._buffer.undo_writes([entry for entry in entries if entry.is_awaited], None)
            others = [entry for entry in entries if not entry.is_awaited]
            losses.extend(self._buffer.undo_writes(others, DropReason.SPOOL_FAILED))

        self._listener.run_locked(work)
        self._listener.report_losses(losses)
        self._listener.notify_progress()

    def on_evicted(self, lane: int, items: list[bytes]) -> None:
        self._listener.report_losses([Loss(kind=self._lane(lane).kind, reason=DropReason.QUEUE_FULL, items=items)])

    def on_taken_over(self, lanes: dict[int, tuple[int, int]], uncertain: dict[int, list[bytes]]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            for code, (records, size) in lanes.items():
                self._buffer.take_over(self._lane(code), records, size)
            for code, items in uncertain.items():
                losses.append(self._buffer.take_over_lost(self._lane(code), items))

        self._listener.run_locked(work)
        self._listener.report_losses(losses)
        self._listener.notify_progress()

    def rows_in_memory(self) -> tuple[list[RowInMemory], set[int]]:
        return self._listener.run_locked(self._rows_in_memory)

    def _rows_in_memory(self) -> tuple[list[RowInMemory], set[int]]:
        held = [
            RowInMemory(
                row, item, isinstance(item, NonIdempotentRecord) and batch in lane.leased and not self._at_least_once
            )
            for lane in self._buffer.lanes.values()
            for batch in lane.batches()
            for row, item in zip(batch.ids, batch.items, strict=False)
            if lane.is_written(row)
        ]
        return held, self.writer.rows_to_delete()

    def on_reopened(self) -> None:
        losses: list[Loss] = []

        def work() -> None:
            dropped = self.writer.discard_reads()
            for lane in self._buffer.lanes.values():
                if lane.pending_eviction is not None:
                    self._buffer.bytes_being_freed -= lane.pending_eviction.size
                    dropped.append(lane.pending_eviction)
                lane.is_loading, lane.pending_eviction = False, None
                if gone := lane.on_disk - lane.unwritten:
                    losses.append(self._buffer.rows_missing(lane, gone, DropReason.SPOOL_FAILED))
                if lane.unwritten:
                    # Where the new file's rows on disk alone begin: behind all that is in memory.
                    lane.disk_from = max(lane.unwritten_from, lane.written_to + 1)
            # They have been counted, and are told without a word of what was in them.
            losses.extend(
                Loss(kind=self._lane(one.lane).kind, reason=DropReason.QUEUE_FULL, items=(), count_only=one.count)
                for one in dropped
                if one.count
            )

        self._listener.run_locked(work)
        self._listener.report_losses(losses)


@dataclass(slots=True)
class _CommitWaiter:
    """For those of one event loop that wait for a group: which of them minds the clock, and until when."""

    loop: EventLoop
    until: float
    is_kept: bool = False
    event: anyio.Event = field(default_factory=anyio.Event)

    def wake(self) -> None:
        """Let everybody look again."""
        bell, self.event = self.event, anyio.Event()
        bell.set()

    def wake_soon(self) -> None:
        self.loop.call_soon(self.wake)


def make_buffer(options: ClientOptions, spool: SqliteSpool, new_compressor: Callable[[], Compressor]) -> Buffer:
    """A buffer that may leave records to this spool.

    Raises:
        ConfigurationError: if it is none.
    """
    if not isinstance(spool, SqliteSpool):
        raise_configuration_error(f"spool must be an instance of SqliteSpool, not {type(spool).__name__}")
    limits = SpoolLimits(max_bytes=spool.max_bytes, max_records=spool.max_records)
    return Buffer(options.batching, options.retry, limits, new_compressor)


def make_bridge(options: ClientOptions, spool: SqliteSpool, buffer: Buffer, runtime: Environment) -> SpoolBridge:
    """What joins this buffer to this spool.

    Raises:
        ConfigurationError: if this system has no locks that a spool can stand on.
    """
    settings = SpoolSettings(
        path=spool.file,
        max_bytes=spool.max_bytes,
        keep_dead=spool.keep_dead,
        timeout=spool.timeout,
        fsync=spool.fsync,
        erase=spool.erase,
        token=options.token,
        at_least_once=options.batching.at_least_once,
    )
    return SpoolBridge(
        settings,
        buffer,
        runtime,
        drops=options.overflow in {Overflow.DROP_NEWEST, Overflow.DROP_OLDEST},
        make_writer=lambda reports: make_writer(settings, reports, runtime),
    )


def _copy_of(error: MixpanelException) -> Any:
    if isinstance(error, SpoolError):
        return SpoolError(error.message, uncertain=error.uncertain)
    return type(error)(*error.args)
