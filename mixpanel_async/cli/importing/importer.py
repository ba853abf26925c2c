"""The import itself: chunks to the client, what became of them to checkpoints, and an end in good order.

A checkpoint moves to a place when a flush has confirmed everything before it, and what was rejected is on the disk.
Events are sent on meanwhile; what an interruption leaves unconfirmed is sent again with the same `$insert_id` and time,
which Mixpanel counts once. Updates of profiles have no such key. They go range by range, each noted down before it is
sent: what is found noted but not confirmed is sent again only if it may be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

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

from .column_mapping import ColumnMapping, ImportKind, Record
from .concurrency import ConcurrencyController
from .conversion import Event, event_of, key_of, update_of
from .file_import import FileImport, ImportPosition
from .open_source import Reading
from .progress import Display, Figures
from .reader import Chunk, Reader
from .reject_tracker import RejectTracker
from .signals import Signals

BATCH: Final = 2_000
BATCH_BYTES: Final = 2_000_000
_CHUNK: Final = 500
_COMMIT_EVERY: Final = 6_000
_COMMIT_SECONDS: Final = 5.0
_TICK: Final = 0.1
# Seconds without an answer after which it is said what is waited for.
_SAY_AFTER: Final = 3.0
# A flush ends when everything is settled; how long that may take is watched elsewhere.
_NO_END: Final = 1e9
_NO_SUCH_PLACE: Final = frozenset({404, 405})
_NOT_LET_IN: Final = (401, 402, 403, 407)

CREDENTIALS: Final = "Mend the token or the service account first"
HOST: Final = "Mend the region or the host first"
MAKE_ROOM: Final = "Make room for that file, or let it be written, first"

OnDrop = Callable[[list[LostRecord], DropReason], Awaitable[None]]
OnDelivered = Callable[[Delivery], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportLimits:
    """How an import behaves.

    Args:
        concurrency: requests at once, at most.
        patience: seconds without any record settled after which it gives up.
        grace: seconds for what is under way after a first signal.
        at_least_once: send updates again that may have been applied.
    """

    concurrency: int
    patience: float
    grace: float
    at_least_once: bool


class Importer:
    """One import of some files.

    Args:
        jobs: the files.
        connect: makes the client, given its two callbacks.
        reading: how files are read.
        shape: what their columns mean.
        limits: see `Limits`.
        display: shows how far it is.
        signals: what the user sends.
    """

    def __init__(
        self,
        jobs: Sequence[FileImport],
        connect: Callable[[OnDrop, OnDelivered], AsyncMixpanel],
        *,
        reading: Reading,
        shape: ColumnMapping,
        limits: ImportLimits,
        display: Display,
        signals: Signals,
    ) -> None:
        self._jobs = jobs
        self._mp = connect(self._dropped, self._delivered)
        self._reading = reading
        self._shape = shape
        self._limits = limits
        self._display = display
        self._signals = signals
        self._is_serial = shape.kind is not ImportKind.EVENTS
        self._checker = Checker()
        self._pace = ConcurrencyController(1 if self._is_serial else limits.concurrency)
        self._before = sum(job.before.imported for job in jobs)
        self._marks: dict[int, tuple[FileImport, ImportPosition]] = {}
        self._told = self._uncommitted = 0
        self._committed_at = monotonic()
        self._saving: anyio.Lock
        self._news: anyio.Event
        self._reader: Reader
        self._is_introduced = self._is_serial
        self.journal = RejectTracker(shape)
        self.failure: str | None = None
        """Why it stopped before the end, if it was not the user's wish."""
        self.mend = ""
        """What has to be mended before it is of use to try again, if anything has to."""

    async def run(self) -> None:
        """Import everything, or as much as can be until it is stopped."""
        self._saving, self._news = anyio.Lock(), anyio.Event()
        self._reader = Reader(self._jobs, self._reading, BATCH if self._is_serial else _CHUNK)
        async with self._mp:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, tasks.cancel_scope)
                self._reader.start()
                await self._feed(tasks.start_soon)
                await self._commit()
                tasks.cancel_scope.cancel()
            self._reader.stop()
        for job in self._jobs:
            self._guarded(job.rejects.close)
        self._show(self._mp.stats(), "", last=True)

    @property
    def delivered(self) -> int:
        """Records that Mixpanel took in this run."""
        return self._mp.stats().delivered

    async def _feed(self, spawn: Callable[..., object]) -> None:
        read_event, read_update = event_of(self._shape), update_of(self._shape)
        while (chunk := await self._reader.next()) is not None:
            job = chunk.job
            job.done = chunk.done
            if chunk.damage is not None:
                job.damage = chunk.damage
                continue
            if not await self._has_room(len(chunk.rows)):
                return
            if self._is_serial:
                if chunk.rows and not await self._announce(chunk):
                    return
                counts = await self._updates(chunk, read_update)
            else:
                counts = await self._events(chunk, read_event)
            if self.failure is not None:
                return
            read, rejected, uncertain = counts
            job.fed = job.fed.plus(read=read, rejected=rejected, uncertain=uncertain)
            self._marks[id(job)] = (job, ImportPosition(position=chunk.position, counts=job.fed, complete=chunk.ended))
            self._uncommitted += read
            if self._is_serial:
                await self._commit()
            elif self._is_due():
                spawn(self._commit)
                # It is to note what was accepted before more comes in.
                await anyio.lowlevel.checkpoint()

    def _is_due(self) -> bool:
        return self._uncommitted >= _COMMIT_EVERY or monotonic() - self._committed_at > _COMMIT_SECONDS

    async def _has_room(self, records: int) -> bool:
        """Wait until records may be handed to the client. False if it is to stop."""
        while not self._signals.count:
            stats = self._mp.stats()
            most = self._pace.requests
            if stats.pending + records <= most * BATCH and stats.pending_bytes < most * BATCH_BYTES:
                return True
            await self._hear()
        return False

    async def _hear(self) -> None:
        """Wait until something was settled, or some time has passed."""
        await self._news.wait()

    def _ring(self) -> None:
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _events(self, chunk: Chunk, read: Callable[[object, object], Event]) -> tuple[int, int, int]:
        """Hand events to the client. Returns how many were read, rejected and uncertain."""
        job, mark, places = chunk.job, chunk.job.input.mark, self.journal.under_way
        rejected = 0
        for line, row in chunk.rows:
            try:
                distinct_id, name, properties, user_id, device_id, time, insert_id = read(row, (mark, line))
                if type(insert_id) is str:
                    places[insert_id] = (job, line)
                send = self._mp.track if self._is_introduced else self._introduce
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
                self._refuse(job, line, row, error)
            if self.failure is not None:
                break
        return len(chunk.rows), rejected, 0

    async def _introduce(self, distinct_id: str | None, name: str, properties: Record, **arguments: object) -> None:
        """Send the first event alone, and learn whether Mixpanel takes anything from here.

        Raises:
            ValidationError: as `track` does.
        """
        try:
            await self._mp.track_immediate(distinct_id, name, properties, **arguments)  # type: ignore[arg-type]
        except ApiError as error:
            if isinstance(error, AuthenticationError) or error.status in _NO_SUCH_PLACE or 300 <= error.status < 400:
                self._fail(str(error), CREDENTIALS if isinstance(error, AuthenticationError) else HOST)
                return
            self._is_introduced = True
            if isinstance(error, RateLimitError) or error.status >= 500 or error.status == 408:
                await self._mp.track(distinct_id, name, properties, **arguments)  # type: ignore[arg-type]
        except TransportError:
            # It is waited for, as later on, and said to be.
            self._is_introduced = True
            await self._mp.track(distinct_id, name, properties, **arguments)  # type: ignore[arg-type]
        self._is_introduced = True

    async def _updates(self, chunk: Chunk, read: Callable[[object], Record]) -> tuple[int, int, int]:
        """Hand updates to the client. Returns how many were read, rejected and uncertain."""
        job = chunk.job
        rejected = uncertain = 0
        send = self._mp.people_update if self._shape.kind is ImportKind.PEOPLE else self._mp.group_update
        for line, row in chunk.rows:
            try:
                message = read(row)
                if line <= job.unsure and not self._is_repeatable(message):
                    uncertain += 1
                    self._guarded(self.journal.doubt, job, line, row)
                else:
                    self.journal.under_way[key_of(message)] = (job, line)
                    await send(message)
            except ValidationError as error:
                rejected += 1
                self._refuse(job, line, row, error)
            if self.failure is not None:
                break
        return len(chunk.rows), rejected, uncertain

    def _is_repeatable(self, message: Record) -> bool:
        return self._limits.at_least_once or self._checker.update(message).repeatable

    async def _announce(self, chunk: Chunk) -> bool:
        """Note down that updates are about to be sent. False if that cannot be done."""
        try:
            await anyio.to_thread.run_sync(chunk.job.announce, chunk.position.line)
        except OSError as error:
            self._fail(f"cannot write the checkpoint: {error.strerror or error}", MAKE_ROOM)
            return False
        return True

    def _refuse(self, job: FileImport, line: int, row: object, error: ValidationError) -> None:
        self._guarded(self.journal.refuse, job, line, row, error)

    def _guarded(self, note: Callable[..., None], *arguments: object) -> None:
        """Write down what was rejected, and stop if that cannot be done: nothing is rejected in silence."""
        try:
            note(*arguments)
        except OSError as error:
            self._fail(f"cannot write what was rejected to {error.filename}: {error.strerror or error}", MAKE_ROOM)

    async def _dropped(self, records: list[LostRecord], reason: DropReason) -> None:
        """The client's callback: what Mixpanel did not take."""
        self._guarded(self.journal.lose, records, reason, self._jobs[0])
        self._told += len(records)
        self._ring()

    async def _delivered(self, delivery: Delivery) -> None:
        """The client's callback: what Mixpanel took."""
        self._pace.delivered(delivery.attempts)
        self._ring()

    async def _commit(self) -> None:
        """Wait until everything handed over so far is settled, and move the checkpoints there."""
        marks, self._marks = self._marks, {}
        places = self.journal.turn()
        self._uncommitted, self._committed_at = 0, monotonic()
        result = await self._mp.flush(_NO_END)
        if result.pending:
            return
        stats = self._mp.stats()
        while self._told < _losses(stats):
            await self._hear()
        async with self._saving:
            for job, mark in marks.values():
                if self.failure is None and job.settle(mark):
                    try:
                        await anyio.to_thread.run_sync(job.save, mark)
                    except OSError as error:
                        self._fail(f"cannot write the checkpoint: {error.strerror or error}", MAKE_ROOM)
        self.journal.forget(places)

    def _fail(self, words: str, mend: str = "") -> None:
        if self.failure is None:
            self.failure, self.mend = words, mend

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Show how far it is, and end what is to end: at signals, after a failure, and when nothing moves any more."""
        limits, settled, since, stopped_at = self._limits, -1, monotonic(), 0.0
        while True:
            await anyio.sleep(_TICK)
            now, stats = monotonic(), self._mp.stats()
            done = stats.accepted - stats.pending
            if done != settled or not stats.pending:
                settled, since = done, now
            waits = now - since
            if waits > limits.patience:
                last = stats.last_error or "no answer"
                is_refused = any(f"HTTP {status}" in last for status in _NOT_LET_IN)
                self._fail(
                    f"nothing was taken for {limits.patience:g} seconds; {last}", CREDENTIALS if is_refused else ""
                )
            if self._signals.count and not stopped_at:
                stopped_at = now
                self._display.say("Stopping when what is on its way is settled; once more to stop at once.")
                self._reader.stop()
            is_late = stopped_at and now - stopped_at > limits.grace
            if self.failure is not None or self._signals.count > 1 or is_late:
                scope.cancel()
            note = f"waiting: {stats.last_error or 'no answer yet'}" if waits > _SAY_AFTER else ""
            self._show(stats, note)
            self._ring()

    def _show(self, stats: Stats, note: str, *, last: bool = False) -> None:
        sizes = [job.input.size for job in self._jobs]
        figures = Figures(
            records=self._before + stats.delivered,
            before=self._before,
            rejected=sum(job.refused for job in self._jobs),
            done=sum(job.done for job in self._jobs),
            total=None if None in sizes else sum(size or 0 for size in sizes),
            note=note,
        )
        self._display.show(figures, last=last)


def _losses(stats: Stats) -> int:
    return stats.failed + stats.dropped + stats.uncertain
