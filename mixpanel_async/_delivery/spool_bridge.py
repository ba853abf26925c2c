"""Bridge between the buffer and the spool: applies the reports of the writer thread, lets callers wait for commits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio

from .._encoding.batch_body import Compressor
from .._encoding.timestamps import record_time
from .._model.config import ClientOptions, Overflow
from .._model.errors import MixpanelException, QueueFullError, SpoolError, count_of, raise_configuration_error
from .._model.records import DropReason, Loss, NonIdempotentRecord, RecordKind
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._spool.messages import (
    LANE_CODES,
    ONCE,
    SENDING,
    CommitGroup,
    EndedRows,
    Eviction,
    PendingWork,
    PendingWrite,
    RowInMemory,
    SpoolSettings,
    WriterListener,
    WriterProtocol,
)
from .._spool.spool import SqliteSpool, make_writer
from .batch import Batch
from .buffer import Buffer
from .disk_backlog import DiskBacklog, SpoolLimits
from .lanes import Lane
from .listeners import SpoolListener
from .offers import OfferResult
from .waiting import SharedWaiter

# Only these records can be non-idempotent. Looking at each record of a batch of events would cost 5 % of an event.
_UPDATES: Final = frozenset((RecordKind.PEOPLE, RecordKind.GROUPS))


class SpoolBridge:
    """Connects a buffer to the writer of a spool. The writer calls the methods that begin with `on_` in its thread.

    Args:
        settings: settings of the spool.
        buffer: waiting records.
        disk: accounting of the spool.
        environment: clocks.
        listener: the queue.
        drops: drop a record for which the disk has no room, instead of refusing it.
        make_writer: creates the writer, which reports to its argument.

    Attributes:
        path: spool file.
        used_bytes: bytes of the file that were in use after the last commit.
        dead_letters: number of dead letters in the file when it was last counted.
    """

    def __init__(
        self,
        settings: SpoolSettings,
        buffer: Buffer,
        disk: DiskBacklog,
        environment: Environment,
        listener: SpoolListener,
        *,
        drops: bool,
        make_writer: Callable[[WriterListener], WriterProtocol],
    ) -> None:
        self._buffer = buffer
        self._disk = disk
        self._drops = drops
        self.path = str(settings.path)
        self._environment = environment
        # A group may have to wait until the one before it has timed out.
        self._timeout = 2 * settings.timeout + 1.0
        self._at_least_once = settings.at_least_once
        self._listener = listener
        self.used_bytes = self.dead_letters = 0
        self.writer = make_writer(self)

    # Called with the lock of the queue

    def offer(self, lane: Lane, item: bytes, now: float, *, is_awaited: bool) -> tuple[OfferResult, CommitGroup]:
        """Accept a record into the buffer and the next commit."""
        writer = self.writer
        with writer.group_lock:
            group = writer.group
            entry = PendingWrite(lane, self._disk.rows(lane).last_row + 1, item, is_awaited)
            try:
                result = self._buffer.offer(lane, item, now)
                if result is not OfferResult.FULL:
                    group.add(entry)
            except BaseException:
                # Raised by a signal handler. An accepted record without an entry would wait for ever.
                if not group.ends_with(entry) and self._disk.holds_newest(lane, entry.row):
                    group.add(entry)
                raise
        if result is not OfferResult.FULL:
            writer.wake(group)
        else:
            self.note_full()
        return result, group

    def note_full(self) -> None:
        """Note that a record does not fit. Have the size of the file measured again, if its size is the reason."""
        self._disk.await_commit()
        if self.has_no_room and not self._disk.is_refusing:
            self.writer.measure()

    @property
    def has_no_room(self) -> bool:
        """Whether the disk, or the file, had no room after the last commit."""
        return self._disk.has_no_room()

    def make_room(self, size: int) -> None:
        """Drop the oldest records that are only on disk, if that makes room for a record of this size."""
        disk = self._disk
        if not disk.is_full(size) or not disk.can_make_room(size, *self._buffer.load_in_flight()):
            return
        for lane in sorted(disk.lanes(), key=lambda lane: -disk.rows(lane).records):
            count = disk.excess(lane, size)
            if not count:
                continue
            eviction = disk.evict(lane, count)
            if disk.rows(lane).is_loading:
                # The rows are being read, or directly follow those that are.
                disk.rows(lane).defer_eviction(eviction)
            else:
                self._submit_eviction(eviction)

    def _submit_eviction(self, eviction: Eviction) -> None:
        self.writer.submit(lambda work: work.evict(eviction))

    def delete_settled(self) -> None:
        """Have the rows of settled records deleted from the spool."""
        if settled := self._disk.settled:
            self.writer.submit(lambda work: work.take_settled(settled))

    def refill(self) -> None:
        """Have records read from disk for the lanes that run low."""
        for lane in self._disk.lanes():
            if self._disk.should_load(lane):
                self._disk.rows(lane).set_loading(is_loading=True)
                self._submit_load(lane)

    def _submit_load(self, lane: Lane) -> None:
        self.writer.submit(lambda work: work.loads.append((lane.code, self._disk.rows(lane).first_row)))

    def repair(self) -> None:
        """Count the pending writes and loads again, after an error has cut off an operation."""
        with self.writer.group_lock:
            entries, loading = self.writer.pending()
            self._disk.correct(entries, loading)

    def end_request(self, batch: Batch) -> None:
        """Clear the request marks of records that stay queued. Must be called before `delete_settled`.

        An outbox that has not answered may have the records. Another process must not hand them over again.
        """
        if not batch.is_unanswered and (ids := self._non_idempotent_rows(batch)):
            settled = {row for entry in self._disk.settled for row in entry.ids}
            if left := [row for row in ids if row not in settled]:
                self.writer.submit(lambda work: work.marks.append((left, ONCE)))
        if batch.is_on_trial and batch.is_request_begun:
            batch.end_trial()
            trial = [*batch.ids]
            self.writer.submit(lambda work: work.trials.append((trial, None)))

    # Called at the end of the client, from any thread

    def close(self, timeout: float) -> bool:
        """Write pending records and close the file. Report records as lost that are not written in time.

        Args:
            timeout: seconds to wait for the disk.

        Returns:
            Whether the writer thread has ended.
        """
        has_ended = self.writer.close(timeout)
        if not has_ended:
            self.writer.give_up()
        return has_ended

    @property
    def unwritten(self) -> int:
        """Number of pending records that are not on disk yet."""
        return self._disk.unwritten

    def fate(self, pending: int) -> str:
        """Return what becomes of this number of pending records if the process ends now, for a log line."""
        wait, on_the_way = "waits" if pending == 1 else "wait", self._disk.unwritten
        unwritten = f", except {count_of(on_the_way, 'that is', 'that are')} not written yet" if on_the_way else ""
        return f"{wait} in the spool{unwritten}"

    # Called in the event loop

    async def wait_committed(self, group: CommitGroup, loop: EventLoop) -> None:
        """Wait until a group is on disk.

        Raises:
            MixpanelException: if the commit failed, or did not end in time.
        """
        while not group.is_done:
            waiter: SharedWaiter | None = group.waiter
            # The waiter of another event loop is not woken any more.
            if waiter is None or not (waiter.loop is loop or waiter.loop.is_same(loop)):
                waiter = SharedWaiter(loop, anyio.current_time() + self._timeout, loop.new_signal())
                # In this order: if a signal handler raises between the two, no other caller waits in vain.
                group.when_done(waiter.wake_soon)
                group.set_waiter(waiter)
            if waiter.is_watched:
                # A timeout, or a look at the clock, for each caller would cost more than the write.
                await waiter.signal.wait()
            elif not await waiter.watch():
                raise SpoolError(f"{self.path}: the commit did not end in time", uncertain=True)
        if group.error is not None:
            # Each waiter raises its own copy, because raising the same one extends its traceback.
            raise _copy_of(group.error)

    async def begin_request(self, batch: Batch, loop: EventLoop) -> None:
        """Note on disk that a request begins, if a record in it must not be sent twice, or the batch is on trial.

        Raises:
            MixpanelException: if the marks could not be written; the request must not be made.
        """
        ids = self._non_idempotent_rows(batch)
        trial = [*batch.ids] if batch.is_on_trial else []
        if not (ids or trial):
            return

        def change(work: PendingWork) -> None:
            if ids:
                work.marks.append((ids, SENDING))
            if trial:
                work.trials.append((trial, self._environment.monotonic()))

        group = self.writer.submit(change)
        try:
            await self.wait_committed(group, loop)
        except MixpanelException:
            # A disk that fails must not hold up records that may be sent twice.
            if ids:
                raise
        if ids and not group.marks_written:
            raise SpoolError(f"{self.path}: the spool could not be written")

    def _non_idempotent_rows(self, batch: Batch) -> list[int]:
        if self._at_least_once or not batch.ids or batch.lane.kind not in _UPDATES:
            return []
        return [row for row, item in zip(batch.ids, batch.items, strict=True) if isinstance(item, NonIdempotentRecord)]

    # Called in the writer thread

    def _lane(self, code: int) -> Lane:
        for lane in self._buffer.lanes.values():
            if lane.code == code:
                return lane
        kind = next(kind for (kind, signed), number in LANE_CODES.items() if number == code and not signed)
        return self._buffer.lane(kind)

    def _report(self, losses: list[Loss]) -> None:
        self._listener.report_losses(losses)
        self._listener.notify_progress()

    def on_written(self, group: CommitGroup | None, used_bytes: int, freed: int, dead_letters: int | None) -> None:
        self.used_bytes = used_bytes
        if dead_letters is not None:
            self.dead_letters = dead_letters
        entries = (list) if group is None else group.take_entries
        if self._listener.run_locked(lambda: self._disk.written(entries(), used_bytes, freed)) or group is None:
            self._listener.notify_progress()

    def on_write_failed(self, group: CommitGroup, *, full: bool) -> list[PendingWrite]:
        losses: list[Loss] = []

        def work() -> list[PendingWrite]:
            entries = group.take_entries()
            self._disk.not_written(full=full)
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
        self._report(losses)
        return again

    def on_error(self, message: str) -> None:
        self._listener.record_error(message)

    def on_attempt_allowed(self) -> None:
        self._listener.run_locked(self._disk.allow_attempt)
        self._listener.notify_progress()

    def error_for_callers(self, error: MixpanelException, *, full: bool, has_records: bool) -> MixpanelException | None:
        if not full:
            return error
        if self._drops:
            return None
        if not has_records:
            return SpoolError(str(error.args[0]), uncertain=None)
        accounting = self._buffer.accounting
        return QueueFullError(accounting.pending, accounting.pending_bytes, self.path)

    def on_loaded(self, lane: int, rows: list[tuple[int, bytes]], unreadable: int, suspects: Mapping[int, int]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            target = self._lane(lane)
            state = self._disk.rows(target)
            if unreadable:
                count = min(unreadable, state.records)
                losses.append(self._disk.rows_missing(target, count, DropReason.SPOOL_FAILED))
            losses.extend(self._buffer.rows_loaded(target, rows, self._accepted_at(target, rows), suspects))
            eviction = state.take_eviction()
            if eviction is not None and eviction.count:
                self._submit_eviction(eviction)
            if not (rows or unreadable or state.unwritten) and state.records:
                losses.append(self._disk.rows_missing(target, state.records, DropReason.PURGED))

        self._listener.run_locked(work)
        self._report(losses)

    def _accepted_at(self, lane: Lane, rows: list[tuple[int, bytes]]) -> float:
        """Return about when the first of these rows was accepted, in monotonic seconds.

        Rows have no timestamp, so the time of the record counts, except for imports of old events.
        """
        time = record_time(rows[0][1]) if rows and lane.kind is not RecordKind.IMPORTS else None
        now, wall_time = self._environment.monotonic(), self._environment.wall_time()
        return now if time is None else now - max(0.0, wall_time - time)

    def on_discarded(self, groups: Sequence[CommitGroup]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            entries = [entry for group in groups for entry in group.take_entries()]
            self._buffer.undo_writes([entry for entry in entries if entry.is_awaited], None)
            others = [entry for entry in entries if not entry.is_awaited]
            losses.extend(self._buffer.undo_writes(others, DropReason.SPOOL_FAILED))

        self._listener.run_locked(work)
        self._report(losses)

    def on_evicted(self, lane: int, items: list[bytes]) -> None:
        self._listener.report_losses([Loss(kind=self._lane(lane).kind, reason=DropReason.QUEUE_FULL, items=items)])

    def on_taken_over(self, lanes: dict[int, tuple[int, int]], ended: Sequence[EndedRows]) -> None:
        losses: list[Loss] = []

        def work() -> None:
            for code, (records, size) in lanes.items():
                self._disk.take_over(self._lane(code), records, size)
            for rows in ended:
                lane = self._lane(rows.lane)
                losses.append(self._disk.take_over_lost(lane, rows.items, rows.reason, rows.message))

        self._listener.run_locked(work)
        self._report(losses)

    def rows_in_memory(self) -> tuple[list[RowInMemory], set[int]]:
        return self._listener.run_locked(self._rows_in_memory)

    def _rows_in_memory(self) -> tuple[list[RowInMemory], set[int]]:
        in_memory = [
            RowInMemory(
                row, item, isinstance(item, NonIdempotentRecord) and batch in lane.leased and not self._at_least_once
            )
            for lane in self._buffer.lanes.values()
            for batch in lane.batches()
            for row, item in zip(batch.ids, batch.items, strict=False)
            if self._disk.rows(lane).is_written(row)
        ]
        return in_memory, self.writer.rows_to_delete()

    def on_reopened(self) -> None:
        losses: list[Loss] = []

        def work() -> None:
            evictions = self.writer.discard_reads()
            lost, pending = self._disk.reopened()
            losses.extend(lost)
            # Their payload was only in the old file, so only their number is reported.
            losses.extend(
                Loss(kind=self._lane(eviction.lane).kind, reason=DropReason.QUEUE_FULL, items=(), count_only=count)
                for eviction in (*evictions, *pending)
                if (count := eviction.count)
            )

        self._listener.run_locked(work)
        self._listener.report_losses(losses)


def make_buffer(options: ClientOptions, spool: SqliteSpool, new_compressor: Callable[[], Compressor] | None) -> Buffer:
    """Create a buffer that may leave records in this spool.

    Raises:
        ConfigurationError: if `spool` is not a `SqliteSpool`.
    """
    if not isinstance(spool, SqliteSpool):
        raise_configuration_error(f"spool must be an instance of SqliteSpool, not {type(spool).__name__}")
    limits = SpoolLimits(max_bytes=spool.max_bytes, max_records=spool.max_records)
    return Buffer(options.batching, options.retry, limits, new_compressor, mixes_identity=options.mixes_identity)


def make_bridge(
    options: ClientOptions, spool: SqliteSpool, buffer: Buffer, environment: Environment, listener: SpoolListener
) -> SpoolBridge:
    """Create the bridge between this buffer and this spool.

    Raises:
        ConfigurationError: if this system has no file locks that a spool can use.
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
    assert buffer.disk is not None
    return SpoolBridge(
        settings,
        buffer,
        buffer.disk,
        environment,
        listener,
        drops=options.overflow in {Overflow.DROP_NEWEST, Overflow.DROP_OLDEST},
        make_writer=lambda listener: make_writer(settings, listener, environment),
    )


def _copy_of(error: MixpanelException) -> Any:
    if isinstance(error, SpoolError):
        return SpoolError(error.message, uncertain=error.uncertain)
    return type(error)(*error.args)
