"""Destination of batches: delivers a batch and returns the outcome. `HttpDestination` is Mixpanel's API.

`outbox_destination.py` has the one of a client with an outbox.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from math import inf
from typing import Final, Protocol

import anyio

from .._encoding.clock import UNKNOWN, Moment, read_moment
from .._encoding.requests import RequestEncoder
from .._encoding.responses import read_response
from .._encoding.timestamps import expired_positions
from .._http.metrics import RequestMetrics
from .._http.progress import Progress
from .._http.transport import Transport
from .._model.errors import count_of
from .._model.outcomes import ConfigurationRefused, Expired, Outcome, Refused, Request, Response
from .._model.records import RecordKind
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.log_events import is_logged, log_event
from .._runtime.threads import run_in_worker
from .batch import Batch
from .log import cause_of
from .staging import IN_REQUEST

_COMPRESSION_THREADS: Final = 2
# A batch that has waited for this many seconds may hold events that have become too old.
_CHECK_AGE_AFTER: Final = 60.0


class Connections(Protocol):
    """Connections of a client, in one event loop at a time."""

    def bind_loop(self, loop: EventLoop) -> None:
        """Serve only requests from this event loop from now on."""
        ...

    async def open(self) -> None:
        """Prepare the first request. A failure that may pass is not raised: the request reports it."""
        ...

    def detach_pool(self) -> Callable[[], Awaitable[None]]:
        """Forget the connections without closing them, because their event loop ends, or belongs to a parent process.

        Returns:
            A function that closes them in their event loop, and keeps them alive.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections; later requests fail."""
        ...


class Destination(Protocol):
    """Receives leased batches. `BatchSender` settles them with the outcome."""

    def bind_loop(self) -> None:
        """Bind to the running event loop."""
        ...

    def expired(self, batch: Batch) -> Expired | None:
        """Return the records of a batch that the destination would refuse because of their age, if there are any."""
        ...

    async def deliver(self, batch: Batch, progress: Progress) -> Outcome:
        """Send a batch once and return the outcome.

        Args:
            batch: leased batch.
            progress: notes whether a part of the batch may have left in a way that another attempt would repeat.
        """
        ...


class HttpDestination:
    """Sends each batch to Mixpanel in one request.

    Args:
        transport: connection pool.
        encoder: creates requests.
        off_loop_from: body size in bytes from which a body is compressed in a thread.
        requests: counts requests, and learns the server's clock from them.
        environment: clocks.
    """

    def __init__(
        self,
        transport: Transport,
        encoder: RequestEncoder,
        *,
        off_loop_from: int,
        requests: RequestMetrics,
        environment: Environment,
    ) -> None:
        self._transport = transport
        self._encoder = encoder
        self._off_loop_from = off_loop_from
        self._requests = requests
        self._environment = environment
        self._threads: anyio.CapacityLimiter | None = None
        # From here on, the clock is known to have been set when it has been.
        requests.clock.note(self._moment())

    def bind_loop(self) -> None:
        """Bind to the running event loop."""
        # Not anyio's default limiter: an application that uses all its threads must not stop delivery.
        self._threads = anyio.CapacityLimiter(_COMPRESSION_THREADS)

    def expired(self, batch: Batch) -> Expired | None:
        """Return the records of an old batch that are too old for `/track` now, if there are any."""
        may_be_old = batch.is_from_disk or self._environment.monotonic() - batch.opened >= _CHECK_AGE_AFTER
        if not may_be_old or batch.kind is not RecordKind.EVENTS or self._encoder.events_by_import:
            return None
        if self._environment.is_wall_time_replaced():
            return None
        accepted = None if batch.is_from_disk else batch.opened
        now = self._requests.clock.earliest_now(self._moment(), since=accepted)
        by_import = self._encoder.credentials is not None
        if by_import:
            # `/import` accepts events of any age, so a wrong clock does no harm.
            now = max(now or 0.0, self._environment.wall_time())
        if now is None:
            return None
        positions = expired_positions(batch.items, now=now)
        return Expired(positions=positions, by_import=by_import) if positions else None

    async def deliver(self, batch: Batch, progress: Progress) -> Outcome:
        """Send the request of a batch and read the response."""
        request = await self._make_request(batch)
        batch.begin_request()
        outcome = await self._exchange(request, batch, progress)
        if isinstance(outcome, ConfigurationRefused) and self._is_refused_alone(batch):
            assert outcome.status is not None
            return Refused(outcome.status, outcome.message)
        return outcome

    def _is_refused_alone(self, batch: Batch) -> bool:
        """Return whether a batch with refused credentials must not hold up its lane, whose records need others.

        For example, a project may accept events by token, but no merges.
        """
        endpoints = self._encoder.endpoints
        return endpoints[batch.kind].path != endpoints[batch.lane.kind].path

    async def _make_request(self, batch: Batch) -> Request:
        encode = partial(self._encoder.request, batch.kind, batch.items, secret=batch.secret)
        if batch.size < self._off_loop_from or batch.items.is_compressed:
            return encode()
        assert self._threads is not None
        return await run_in_worker(encode, "mixpanel compression", self._threads)

    async def _exchange(self, request: Request, batch: Batch, progress: Progress) -> Outcome:
        """Send the request of a batch."""
        sent = self._moment()
        self._requests.request_started(again=batch.attempts > 1, now=sent)
        token = IN_REQUEST.set(True)
        try:
            reply = await self._transport.send(request, progress=progress)
            received = self._moment()
            outcome = read_response(reply, len(batch.items), now=received.wall, secrets=request.secrets)
            # A log handler may track events. No line about a batch of only such events, which would cause the next.
            if is_logged(logging.DEBUG) and batch.opened != inf:
                status = reply.status if isinstance(reply, Response) else None
                seconds = received.monotonic - sent.monotonic
                log_batch(batch, len(request.body), cause_of(outcome), seconds, status=status)
        finally:
            IN_REQUEST.reset(token)
        if self._environment.is_wall_time_replaced():
            # The server's clock may be replaced as well.
            sent = UNKNOWN
        self._requests.request_ended(request, reply, outcome, sent=sent, received=received)
        return outcome

    def _moment(self) -> Moment:
        return read_moment(self._environment.machine_time, self._environment.monotonic)


def log_batch(batch: Batch, size: int, cause: str, seconds: float, *, status: int | None = None) -> None:
    """Log that a batch was sent.

    Args:
        batch: the batch.
        size: bytes of the body.
        cause: what came of it, without the server's words.
        seconds: duration.
        status: status of the response.
    """
    kind, records = batch.reported_kind.value, len(batch.items)
    text = "%s: batch of %s, %d bytes, attempt %d: %s after %.1f ms"
    milliseconds = round(seconds * 1000, 1)
    log_event(
        logging.DEBUG, "batch_sent", text,
        kind, count_of(records, "record"), size, batch.attempts, cause, milliseconds,
        kind=kind, records=records, bytes=size, status=status, milliseconds=milliseconds, attempt=batch.attempts,
    )  # fmt: skip
