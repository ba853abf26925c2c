"""Import run: hands chunks of records to the client, commits checkpoints and stops cleanly.

A checkpoint moves to a position after a flush has settled every record before it and the rejected records are on disk.
Events continue to be sent during a commit. After an interruption, unconfirmed events are resent with the same
`$insert_id` and time, so Mixpanel counts them once. Profile updates have no such key: they are sent in ranges, and the
checkpoint records each range before it is sent. After an interruption, updates of an unconfirmed range are resent only
if they are idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
import anyio.to_thread

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    AuthenticationError,
    Checker,
    Delivery,
    DropReason,
    LostRecord,
    RateLimitError,
    Stats,
    TransportError,
    ValidationError,
)

from .arrival_order import EARLY_WARNING, ArrivalOrder
from .concurrency import ConcurrencyController
from .event_order import IDENTITY_EVENTS, OrderGuard
from .file_import import FileImport, ImportPosition
from .limits import BATCH_BYTES, BATCH_RECORDS, ImportLimits
from .option_values import ImportKind
from .progress import Display, WorkProgress
from .reader import Chunk, ChunkReader
from .record_conversion import EventArguments, RowId, event_converter, record_key, update_converter
from .reject_tracker import RejectTracker
from .signals import SignalCounter
from .source_factory import ReadOptions
from .spread import spread_rows

if TYPE_CHECKING:
    from .client import OnDelivered, OnDrop
    from .column_mapping import ColumnMapping
    from .spread import Record

_CHUNK_RECORDS: Final = 500
_COMMIT_RECORDS: Final = 6_000
_COMMIT_SECONDS: Final = 5.0
_SUPERVISE_INTERVAL: Final = 0.1
# Seconds without progress after which the display names the cause.
_NOTE_AFTER: Final = 3.0
# A commit waits until its records are settled; `_supervise` enforces the time limit.
_FLUSH_TIMEOUT: Final = 1e9
_WRONG_ENDPOINT_STATUSES: Final = frozenset({404, 405})
_ACCESS_REFUSED_STATUSES: Final = (401, 402, 403, 407)

FIX_CREDENTIALS: Final = "Fix the token or the service account"
FIX_HOST: Final = "Fix the region or the host"
FIX_FILE: Final = "Free disk space or make the file writable"


class Importer:
    """Import run over some files.

    Args:
        files: the files.
        create_client: creates the client, given its two callbacks.
        read_options: options for reading the files.
        mapping: maps their columns to fields and properties.
        limits: see `ImportLimits`.
        order: counts events that are not in order of arrival; None to leave that out.
        display: shows progress.
        signals: counts the signals that ask the import to stop.
    """

    def __init__(
        self,
        files: Sequence[FileImport],
        create_client: Callable[[OnDrop, OnDelivered], AsyncMixpanel],
        *,
        read_options: ReadOptions,
        mapping: ColumnMapping,
        limits: ImportLimits,
        order: ArrivalOrder | None,
        display: Display,
        signals: SignalCounter,
    ) -> None:
        self._files = files
        self._mp = create_client(self._on_drop, self._on_delivered)
        self._read_options = read_options
        self._mapping = mapping
        self._limits = limits
        self._order, self._is_order_shown = order, False
        self._display = display
        self._signals = signals
        self._is_serial = mapping.kind is not ImportKind.EVENTS
        self._checker = Checker()
        self._concurrency = ConcurrencyController(1 if self._is_serial else limits.concurrency)
        self._imported_earlier = sum(file.earlier.imported for file in files)
        self._positions: dict[int, tuple[FileImport, ImportPosition]] = {}
        self._reported_losses = self._uncommitted = 0
        self._committed_at = monotonic()
        self._save_lock: anyio.Lock
        self._changed: anyio.Event
        self._reader: ChunkReader
        self._is_endpoint_verified = self._is_serial
        self.rejects = RejectTracker(mapping)
        self.failure: str | None = None
        """Error that stopped the import; None if it was not stopped by an error."""
        self.advice = ""
        """Fix that is needed before rerunning the command, or an empty string."""

    async def run(self) -> None:
        """Import all files, or as much as possible until the import is stopped."""
        self._save_lock, self._changed = anyio.Lock(), anyio.Event()
        chunk_records = BATCH_RECORDS if self._is_serial else _CHUNK_RECORDS
        self._reader = ChunkReader(self._files, self._read_options, chunk_records)
        async with self._mp:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._supervise, tasks.cancel_scope)
                self._reader.start()
                await self._send_chunks(tasks.start_soon)
                await self._commit()
                tasks.cancel_scope.cancel()
            self._reader.stop()
        for file in self._files:
            self._record_reject(file.rejects.close)
        self._show_progress(self._mp.stats(), "", last=True)

    @property
    def delivered(self) -> int:
        """Number of records that Mixpanel accepted in this run."""
        return self._mp.stats().delivered

    async def _send_chunks(self, spawn: Callable[..., object]) -> None:
        convert_event, convert_update = event_converter(self._mapping), update_converter(self._mapping)
        while (chunk := await self._reader.next()) is not None:
            file = chunk.file
            file.set_bytes_read(chunk.bytes_read)
            if chunk.damage is not None:
                file.mark_damaged(chunk.damage)
                continue
            if not await self._wait_for_room(len(chunk.rows)):
                return
            if self._is_serial:
                if chunk.rows and not await self._record_intent(chunk):
                    return
                read, rejected, uncertain = await self._send_updates(chunk, convert_update)
            else:
                read, rejected, uncertain = await self._send_events(chunk, convert_event)
            if self.failure is not None:
                return
            counts = file.add_submitted(read=read, rejected=rejected, uncertain=uncertain)
            reached = ImportPosition(position=chunk.position, counts=counts, complete=chunk.is_last)
            self._positions[id(file)] = (file, reached)
            self._uncommitted += read
            if self._is_serial:
                await self._commit()
            elif self._is_commit_due():
                spawn(self._commit)
                # The commit must take the positions before more records are accepted.
                await anyio.lowlevel.checkpoint()

    def _is_commit_due(self) -> bool:
        return self._uncommitted >= _COMMIT_RECORDS or monotonic() - self._committed_at > _COMMIT_SECONDS

    async def _wait_for_room(self, records: int) -> bool:
        """Wait until records may be handed to the client. Return False if the import is to stop."""
        while not self._signals.count:
            stats = self._mp.stats()
            limit = self._concurrency.limit
            if stats.pending + records <= limit * BATCH_RECORDS and stats.pending_bytes < limit * BATCH_BYTES:
                return True
            await self._wait_for_change()
        return False

    async def _wait_for_change(self) -> None:
        """Wait until a batch is settled, or for one interval of `_supervise`."""
        await self._changed.wait()

    def _notify_change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()

    async def _send_events(
        self, chunk: Chunk, convert: Callable[[object, RowId], EventArguments]
    ) -> tuple[int, int, int]:
        """Hand the events of a chunk to the client. Return how many were read, rejected, and uncertain."""
        file, content_id, origins = chunk.file, chunk.file.input.content_id, self.rejects.in_flight
        read = rejected = 0
        order = OrderGuard(self._settle, is_settled=not self._mp.stats().pending)
        for line, row in spread_rows(chunk.rows, self._mapping.spreader):
            read += 1
            try:
                distinct_id, name, properties, user_id, device_id, time, insert_id = convert(row, (content_id, line))
                if order.is_strict or name in IDENTITY_EVENTS:
                    await order.before_record()
                if type(insert_id) is str:
                    origins[insert_id] = (file, line)
                if self._order is not None:
                    self._order.add(row, name, user_id, device_id, time)
                send = self._mp.track if self._is_endpoint_verified else self._send_probe_event
                await send(
                    distinct_id,
                    name,
                    properties,
                    user_id=user_id,
                    device_id=device_id,
                    time=time,
                    insert_id=insert_id,
                )
            except ValidationError as error:
                rejected += 1
                self._reject(file, line, row, error)
            if self.failure is not None:
                break
        if order.is_strict and self.failure is None:
            await self._settle()
        self._show_order()
        return read, rejected, 0

    def _show_order(self) -> None:
        """Warn once if events are not in order of arrival, while most of a stream may be still unsent."""
        if self._order is not None and not self._is_order_shown and self._order.warning() is not None:
            self._is_order_shown = True
            self._display.print(EARLY_WARNING)

    async def _settle(self) -> None:
        """Wait until all records handed over so far are settled."""
        await self._mp.flush(_FLUSH_TIMEOUT)

    async def _send_probe_event(
        self, distinct_id: str | None, name: str, properties: Record, **arguments: object
    ) -> None:
        """Send the first event by itself, to learn whether the endpoint accepts the credentials.

        Raises:
            ValidationError: as `track` does.
        """
        try:
            await self._mp.track_immediate(distinct_id, name, properties, **arguments)  # type: ignore[arg-type]
        except ApiError as error:
            is_unauthorized = isinstance(error, AuthenticationError)
            if is_unauthorized or error.status in _WRONG_ENDPOINT_STATUSES or 300 <= error.status < 400:
                self._fail(str(error), FIX_CREDENTIALS if is_unauthorized else FIX_HOST)
                return
            self._is_endpoint_verified = True
            if isinstance(error, RateLimitError) or error.status >= 500 or error.status == 408:
                await self._mp.track(distinct_id, name, properties, **arguments)  # type: ignore[arg-type]
        except TransportError:
            # An outage is handled like a later one: the client retries and the display names the cause.
            self._is_endpoint_verified = True
            await self._mp.track(distinct_id, name, properties, **arguments)  # type: ignore[arg-type]
        self._is_endpoint_verified = True

    async def _send_updates(self, chunk: Chunk, convert: Callable[[object], Record]) -> tuple[int, int, int]:
        """Hand the updates of a chunk to the client. Return how many were read, rejected, and uncertain."""
        file = chunk.file
        read = rejected = uncertain = 0
        send = self._mp.people_update if self._mapping.kind is ImportKind.PEOPLE else self._mp.group_update
        for line, row in spread_rows(chunk.rows, self._mapping.spreader):
            read += 1
            try:
                message = convert(row)
                if line <= file.possibly_sent_line and not self._may_resend(message):
                    uncertain += 1
                    self._record_reject(self.rejects.add_uncertain, file, line, row)
                else:
                    self.rejects.in_flight[record_key(message)] = (file, line)
                    await send(message)
            except ValidationError as error:
                rejected += 1
                self._reject(file, line, row, error)
            if self.failure is not None:
                break
        return read, rejected, uncertain

    def _may_resend(self, message: Record) -> bool:
        return self._limits.at_least_once or self._checker.update(message).repeatable

    async def _record_intent(self, chunk: Chunk) -> bool:
        """Record in the checkpoint that a range of updates is about to be sent. Return False on failure."""
        try:
            await anyio.to_thread.run_sync(chunk.file.record_intent, chunk.position.line)
        except OSError as error:
            self._fail(f"cannot write the checkpoint: {error.strerror or error}", FIX_FILE)
            return False
        return True

    def _reject(self, file: FileImport, line: int, row: object, error: ValidationError) -> None:
        self._record_reject(self.rejects.add_invalid, file, line, row, error)

    def _record_reject(self, write: Callable[..., None], *arguments: object) -> None:
        """Call a function that writes to a rejects file. Stop the import if it fails, so that no reject is lost."""
        try:
            write(*arguments)
        except OSError as error:
            self._fail(f"cannot write rejected records to {error.filename}: {error.strerror or error}", FIX_FILE)

    async def _on_drop(self, records: list[LostRecord], reason: DropReason) -> None:
        self._record_reject(self.rejects.add_losses, records, reason, self._files[0])
        self._reported_losses += len(records)
        self._notify_change()

    async def _on_delivered(self, delivery: Delivery) -> None:
        self._concurrency.on_delivered(delivery.attempts)
        self._notify_change()

    async def _commit(self) -> None:
        """Wait until all records handed over so far are settled, then move the checkpoints to their position."""
        positions, self._positions = self._positions, {}
        origins = self.rejects.begin_commit()
        self._uncommitted, self._committed_at = 0, monotonic()
        result = await self._mp.flush(_FLUSH_TIMEOUT)
        if result.pending:
            return
        stats = self._mp.stats()
        while self._reported_losses < _losses(stats):
            await self._wait_for_change()
        async with self._save_lock:
            for file, reached in positions.values():
                if self.failure is None and file.settle(reached):
                    try:
                        await anyio.to_thread.run_sync(file.save, reached)
                    except OSError as error:
                        self._fail(f"cannot write the checkpoint: {error.strerror or error}", FIX_FILE)
        self.rejects.end_commit(origins)

    def _fail(self, message: str, advice: str = "") -> None:
        if self.failure is None:
            self.failure, self.advice = message, advice

    async def _supervise(self, scope: anyio.CancelScope) -> None:
        """Show progress, and end the import after a signal, a failure or `patience` seconds without progress."""
        limits, settled, settled_at, stopped_at = self._limits, -1, monotonic(), 0.0
        while True:
            await anyio.sleep(_SUPERVISE_INTERVAL)
            now, stats = monotonic(), self._mp.stats()
            count = stats.accepted - stats.pending
            if count != settled or not stats.pending:
                settled, settled_at = count, now
            idle = now - settled_at
            if idle > limits.patience:
                last = stats.last_error or "no response"
                is_refused = any(f"HTTP {status}" in last for status in _ACCESS_REFUSED_STATUSES)
                self._fail(
                    f"no record was accepted for {limits.patience:g} seconds; {last}",
                    FIX_CREDENTIALS if is_refused else "",
                )
            if self._signals.count and not stopped_at:
                stopped_at = now
                self._display.print(
                    "Stopping after the requests in flight are settled. Interrupt again to stop immediately."
                )
                self._reader.stop()
            is_late = stopped_at and now - stopped_at > limits.grace
            if self.failure is not None or self._signals.count > 1 or is_late:
                scope.cancel()
            note = f"waiting: {stats.last_error or 'no response yet'}" if idle > _NOTE_AFTER else ""
            self._show_progress(stats, note)
            self._notify_change()

    def _show_progress(self, stats: Stats, note: str, *, last: bool = False) -> None:
        sizes = [file.input.size for file in self._files]
        progress = WorkProgress(
            records=self._imported_earlier + stats.delivered,
            earlier_records=self._imported_earlier,
            rejected=sum(file.not_imported for file in self._files),
            done=sum(file.bytes_read for file in self._files),
            total=None if None in sizes else sum(size or 0 for size in sizes),
            note=note,
        )
        self._display.show(progress, last=last)


def _losses(stats: Stats) -> int:
    return stats.failed + stats.dropped + stats.uncertain
