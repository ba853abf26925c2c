"""Destination of the batches of a client with an outbox: an engine that many hosts share.

A batch is handed over as one entry, or as one entry for each partition of its profile updates. `delivered` then means
that the engine has the records.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from math import inf
from typing import Final, NamedTuple

import anyio

from .._encoding.batch_body import Compressor
from .._encoding.clock import read_moment
from .._encoding.partitions import split_by_partition
from .._http.metrics import RequestMetrics
from .._http.progress import Progress
from .._model.errors import ConfigurationError, OutboxError
from .._model.outcomes import ConfigurationRefused, Delivered, Expired, Outcome, Retry
from .._model.records import RecordKind
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.fork import ForkMarker
from .._runtime.log_events import is_logged
from .._runtime.threads import run_in_worker
from ..outbox.packing import pack, positions_of_non_idempotent
from ..outbox.protocol import Entry, EntryWriter, Outbox, PutResult
from .batch import Batch
from .destination import Connections, log_batch
from .log import cause_of
from .staging import IN_REQUEST

_PACKING_THREADS: Final = 2
# Seconds to close the connections to the engine, which a cancellation does not shorten.
_CLOSE_TIMEOUT: Final = 1.0
_IDENTITY_LANE: Final = RecordKind.IDENTITY.value
_PARTITIONED: Final = frozenset({RecordKind.PEOPLE, RecordKind.GROUPS})
_FULL: Final = "the outbox is full"


class OutboxLink:
    """Connections of a client: to the engine for batches, and to Mixpanel for calls whose caller waits.

    Each event loop has its own writer. All writers of a process have the same producer id, so that the engine knows an
    entry that another event loop had put.

    Args:
        outbox: the engine.
        token: token of the project.
        http: connection pool for requests to Mixpanel.
        new_id: returns a random id for a producer.
    """

    def __init__(self, outbox: Outbox, token: str, http: Connections, new_id: Callable[[], str]) -> None:
        self._outbox = outbox
        self._token = token
        self._http = http
        self._new_id = new_id
        self._fork_marker = ForkMarker()
        self._producer = new_id()
        self._writer: EntryWriter | None = None
        self._opening: anyio.Lock | None = None
        self._is_closed = False

    def bind_loop(self, loop: EventLoop) -> None:
        """Serve only requests from this event loop from now on."""
        self._http.bind_loop(loop)

    async def open(self) -> None:
        """Connect to the engine. An engine that is away is not an error: the next batch tries again and reports it.

        Raises:
            ConfigurationError: if the options do not fit the queue, the server or the event loop.
        """
        try:
            await self.writer()
        except OutboxError:
            return

    async def writer(self) -> EntryWriter:
        """Return the writer of this event loop, connected.

        Raises:
            ConfigurationError: if the options do not fit the queue, the server or the event loop.
            OutboxError: if the engine cannot be reached or refuses.
        """
        if self._writer is not None:
            return self._writer
        opening = self._opening = self._opening or anyio.Lock()
        async with opening:
            if self._writer is None:
                writer = self._outbox.writer(self._token, self._producer)
                is_needed = False
                try:
                    await writer.open()
                    is_needed = self._opening is opening and not self._is_closed
                finally:
                    if not is_needed:
                        await _close(writer)
                if not is_needed:
                    raise OutboxError("the client is closed, or runs in another event loop now")
                self._writer = writer
            return self._writer

    def detach_pool(self) -> Callable[[], Awaitable[None]]:
        """Forget all connections without closing them, because their event loop ends, or belongs to a parent process.

        Returns:
            A function that closes them in their event loop, and keeps them alive.
        """
        close_http = self._http.detach_pool()
        writer, self._writer, self._opening = self._writer, None, None
        if not self._fork_marker.is_current:
            self._fork_marker = ForkMarker()
            self._producer = self._new_id()
        return partial(_close_both, close_http, writer)

    async def aclose(self) -> None:
        """Close all connections; later puts fail."""
        self._is_closed = True
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                await _close(writer)
        finally:
            await self._http.aclose()


async def _close(writer: EntryWriter) -> None:
    with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        await writer.aclose()


async def _close_both(close_http: Callable[[], Awaitable[None]], writer: EntryWriter | None) -> None:
    try:
        if writer is not None:
            await _close(writer)
    finally:
        await close_http()


class _Part(NamedTuple):
    """Records of a batch for one entry.

    Args:
        entry: the packed records.
        positions: their positions in the batch.
    """

    entry: Entry
    positions: Sequence[int]


class OutboxDestination:
    """Hands batches over to an engine.

    Args:
        link: connection to the engine.
        token: token of the project, which entries do not contain.
        new_compressor: makes a gzip compressor; None to compress nothing.
        off_loop_from: body size in bytes from which a batch is packed in a thread.
        at_least_once: let workers send records again of which it is unknown whether Mixpanel applied them.
        timeout: seconds for one hand-over.
        requests: counts hand-overs.
        environment: clocks.
    """

    def __init__(
        self,
        link: OutboxLink,
        token: str,
        *,
        new_compressor: Callable[[], Compressor] | None,
        off_loop_from: int,
        at_least_once: bool,
        timeout: float,
        requests: RequestMetrics,
        environment: Environment,
    ) -> None:
        self._link = link
        self._token = token
        self._new_compressor = new_compressor
        self._off_loop_from = off_loop_from
        self._at_least_once = at_least_once
        self._timeout = timeout
        self._requests = requests
        self._environment = environment
        self._sequences = count(1)
        self._threads: anyio.CapacityLimiter | None = None

    def bind_loop(self) -> None:
        """Bind to the running event loop."""
        self._threads = anyio.CapacityLimiter(_PACKING_THREADS)

    def expired(self, batch: Batch) -> Expired | None:  # noqa: ARG002  part of the protocol
        """Return None: the workers decide about old events."""
        return None

    async def deliver(self, batch: Batch, progress: Progress) -> Outcome:  # noqa: ARG002  a put can be repeated
        """Hand a batch over and return the outcome."""
        monotonic = self._environment.monotonic
        started = monotonic()
        self._requests.request_started(
            again=batch.attempts > 1, now=read_moment(self._environment.machine_time, monotonic)
        )
        token = IN_REQUEST.set(True)
        outcome: Outcome = Retry(message=f"the outbox did not answer within {self._timeout:g} s", applied=False)
        try:
            with anyio.move_on_after(self._timeout):
                outcome = await self._hand_over(batch)
            # A log handler may track events. No line about a batch of only such events, which would cause the next.
            if is_logged(logging.DEBUG) and batch.opened != inf:
                cause = "handed over" if isinstance(outcome, Delivered) else cause_of(outcome)
                log_batch(batch, batch.size, cause, monotonic() - started)
        finally:
            IN_REQUEST.reset(token)
        if isinstance(outcome, (Retry, ConfigurationRefused)):
            self._requests.record_error(f"outbox: {outcome.message}")
        return outcome

    async def _hand_over(self, batch: Batch) -> Outcome:
        was_unanswered = batch.is_unanswered
        try:
            writer = await self._link.writer()
            sequence = batch.sequence or next(self._sequences)
            parts = await self._pack(batch, writer.partitions, sequence)
            batch.begin_put(sequence)
            results = await writer.put([part.entry for part in parts])
        except ConfigurationError as error:
            return ConfigurationRefused(str(error), None)
        except OutboxError as error:
            if batch.is_unanswered:
                batch.end_put(is_answered=not (was_unanswered or error.uncertain))
            if error.refused:
                return ConfigurationRefused(error.message, None)
            return Retry(message=error.message, applied=False)
        taken = [part for part, result in zip(parts, results, strict=True) if result is not PutResult.FULL]
        # An engine without memory refuses before it looks whether it has the entry from an earlier put.
        batch.end_put(is_answered=not was_unanswered or len(taken) == len(parts))
        if len(taken) == len(parts):
            return Delivered()
        return Retry(message=_FULL, applied=False, delivered=frozenset(at for part in taken for at in part.positions))

    async def _pack(self, batch: Batch, partitions: int, sequence: int) -> list[_Part]:
        """Return the entries of a batch."""
        work = partial(self._parts, batch, partitions, sequence)
        if batch.size < self._off_loop_from:
            return work()
        assert self._threads is not None
        return await run_in_worker(work, "mixpanel packing", self._threads)

    def _parts(self, batch: Batch, partitions: int, sequence: int) -> list[_Part]:
        kind, records = batch.kind, batch.items
        if batch.route is not None:
            return [self._part(_IDENTITY_LANE, batch, [*records], range(len(records)), sequence)]
        if kind not in _PARTITIONED:
            return [self._part(kind.value, batch, [*records], range(len(records)), None)]
        items = [*records]
        return [
            self._part(f"{kind.value}:{partition}", batch, [items[at] for at in positions], positions, sequence)
            for partition, positions in split_by_partition(items, partitions).items()
        ]

    def _part(
        self, lane: str, batch: Batch, records: Sequence[bytes], positions: Sequence[int], sequence: int | None
    ) -> _Part:
        body, is_compressed = pack(records, self._token, self._new_compressor)
        waited = 0.0 if batch.opened == inf else max(0.0, self._environment.monotonic() - batch.opened)
        is_repeatable = self._at_least_once or batch.lane.kind not in _PARTITIONED
        entry = Entry(
            lane=lane,
            records=len(records),
            body=body,
            is_compressed=is_compressed,
            non_idempotent=() if is_repeatable else positions_of_non_idempotent(records),
            accepted_at=self._environment.wall_time() - waited,
            sequence=sequence,
        )
        return _Part(entry, positions)
