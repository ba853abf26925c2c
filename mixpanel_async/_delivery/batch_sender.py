"""Request of one batch: send it, read the response, decide how long the lane pauses, and settle the batch."""

from __future__ import annotations

import logging
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import anyio

from .._encoding.clock import UNKNOWN, Moment, read_moment
from .._encoding.requests import RequestEncoder
from .._encoding.responses import read_response
from .._encoding.timestamps import expired_positions
from .._http.progress import Progress
from .._http.retry import PROBE_AFTER, RetryBudget, backoff
from .._http.transport import Transport
from .._model.config import RetryPolicy
from .._model.errors import count_of
from .._model.outcomes import (
    ConfigurationRefused,
    Delivered,
    Expired,
    Outcome,
    Refused,
    Request,
    Response,
    Retry,
    TransportFailure,
)
from .._model.records import RecordKind
from .._model.stats import Delivery
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.log_events import is_logged, log_event
from .._runtime.threads import run_in_worker
from .batch import Batch
from .listeners import DeliveryListener
from .log import EpisodeLog, cause_of
from .staging import IN_REQUEST

if TYPE_CHECKING:
    from .queue import Queue

_COMPRESSION_THREADS: Final = 2
# A batch that has waited for this many seconds may hold events that have become too old.
_CHECK_AGE_AFTER: Final = 60.0
# Minimum seconds between probes while a flush waits for a failing lane.
_MIN_PROBE_INTERVAL: Final = 0.05


class BatchSender:
    """Sends a leased batch to Mixpanel and settles it.

    Args:
        queue: settles the batch.
        listener: receives the signals of the batch sender.
        transport: connection pool.
        encoder: creates requests.
        off_loop_from: body size in bytes from which a body is compressed in a thread.
        retry: backoff of batches.
        environment: clocks and randomness.
    """

    def __init__(
        self,
        queue: Queue,
        listener: DeliveryListener,
        *,
        transport: Transport,
        encoder: RequestEncoder,
        off_loop_from: int,
        retry: RetryPolicy,
        environment: Environment,
    ) -> None:
        self._queue = queue
        self._listener = listener
        self._transport = transport
        self._encoder = encoder
        self._off_loop_from = off_loop_from
        self._retry = retry
        self._environment = environment
        self._budget = RetryBudget(retry)
        self._min_probe_interval = max(retry.initial, _MIN_PROBE_INTERVAL)
        # Random after each failure, so that many clients that flush do not probe at the same moment.
        self._probe_interval = self._min_probe_interval
        self._threads: anyio.CapacityLimiter | None = None
        self._log = EpisodeLog(environment.monotonic)
        # From here on, the clock is known to have been set when it has been.
        queue.requests.clock.note(self._moment())

    def bind_loop(self) -> None:
        """Bind to the running event loop."""
        # Not anyio's default limiter: an application that uses all its threads must not stop delivery.
        self._threads = anyio.CapacityLimiter(_COMPRESSION_THREADS)

    @property
    def probe_interval(self) -> float | None:
        """Seconds between attempts while a flush waits; None if the retry budget is spent, so backoffs are kept."""
        return None if self._budget.is_spent else self._probe_interval

    @property
    def final_probe_interval(self) -> float:
        """Seconds between attempts during the last flush of a client, which ignores the retry budget."""
        return self._probe_interval

    def settle_unsent(self, batch: Batch, _: object = None) -> None:
        """Settle a batch, unless that is done: its task has ended, perhaps before its first step."""
        if batch in batch.lane.leased:
            outcome = Retry(message="the sender was stopped", applied=batch.is_request_begun)
            self._settle(batch, outcome, self._environment.monotonic())

    async def send(self, batch: Batch, loop: EventLoop) -> None:
        """Send a leased batch and settle it, however this ends."""
        if batch not in batch.lane.leased:
            # The lease has ended: the start of this task was reported as failed.
            return
        # Outcome if this task is cancelled, which raises no Exception but must end the lease.
        outcome: Outcome | None = None
        progress = Progress()
        started = self._environment.monotonic()
        if (expired := self._expired(batch)) is not None:
            self._queue.expire(batch, expired)
            self._listener.on_settled()
            return
        try:
            if self._queue.spool is not None:
                await self._queue.spool.begin_request(batch, loop)
            request = await self._make_request(batch)
            batch.begin_request()
            outcome = await self._exchange(request, batch, progress)
            if isinstance(outcome, ConfigurationRefused) and self._is_refused_alone(batch):
                outcome = Refused(outcome.status, outcome.message)
        except Exception as error:
            text, name = "cannot create a request (%s); its records are retried", type(error).__name__
            log_event(logging.ERROR, "request_not_created", text, name, error=name)
            raise
        finally:
            if outcome is None:
                during = " during a request" if progress.may_be_sent else ""
                outcome = Retry(message=f"the sender was stopped{during}", applied=progress.may_be_sent)
            self._settle(batch, outcome, started)

    def _expired(self, batch: Batch) -> Expired | None:
        """Return the records of an old batch that are too old for `/track` now, if there are any."""
        may_be_old = batch.is_from_disk or self._environment.monotonic() - batch.opened >= _CHECK_AGE_AFTER
        if not may_be_old or batch.kind is not RecordKind.EVENTS or self._encoder.events_by_import:
            return None
        if self._environment.is_wall_time_replaced():
            return None
        accepted = None if batch.is_from_disk else batch.opened
        now = self._queue.requests.clock.earliest_now(self._moment(), since=accepted)
        by_import = self._encoder.credentials is not None
        if by_import:
            # `/import` accepts events of any age, so a wrong clock does no harm.
            now = max(now or 0.0, self._environment.wall_time())
        if now is None:
            return None
        positions = expired_positions(batch.items, now=now)
        return Expired(positions=positions, by_import=by_import) if positions else None

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
        self._queue.requests.request_started(again=batch.attempts > 1, now=sent)
        token = IN_REQUEST.set(True)
        try:
            reply = await self._transport.send(request, progress=progress)
            received = self._moment()
            outcome = read_response(reply, len(batch.items), now=received.wall, secrets=request.secrets)
            # A log handler may track events. No line about a batch of only such events, which would cause the next.
            if is_logged(logging.DEBUG) and batch.opened != inf:
                _log_batch(batch, request, reply, outcome, received.monotonic - sent.monotonic)
        finally:
            IN_REQUEST.reset(token)
        if self._environment.is_wall_time_replaced():
            # The server's clock may be replaced as well.
            sent = UNKNOWN
        self._queue.requests.request_ended(request, reply, outcome, sent=sent, received=received)
        return outcome

    def _moment(self) -> Moment:
        return read_moment(self._environment.machine_time, self._environment.monotonic)

    def _settle(self, batch: Batch, outcome: Outcome, started: float) -> None:
        again = batch.attempts > 1
        delay = self._delay(batch, outcome, again=again)
        if isinstance(outcome, Delivered) and not self._budget.is_full:
            self._budget.succeeded(again=again)
        try:
            self._end_lease(batch, outcome, delay, started)
        finally:
            self._listener.on_settled()

    def _end_lease(self, batch: Batch, outcome: Outcome, delay: float, started: float) -> None:
        """Settle a batch, log failures and report deliveries."""
        kind, records, size = batch.reported_kind, len(batch.items), batch.size
        delivered = self._queue.settle(batch, outcome, delay)
        if isinstance(outcome, Delivered):
            if self._log.failures:
                self._log.request_succeeded(kind)
        else:
            self._log.request_failed(kind, outcome, records)
        if delivered and self._queue.callbacks.wants_deliveries:
            self._queue.callbacks.enqueue_delivery(
                Delivery(
                    kind=kind.value,
                    records=delivered,
                    body_bytes=size,
                    attempts=batch.attempts,
                    duration=self._environment.monotonic() - started,
                )
            )
            self._listener.on_delivery()

    def _delay(self, batch: Batch, outcome: Outcome, *, again: bool) -> float:
        """Return the seconds for which the lane pauses after this outcome."""
        if isinstance(outcome, ConfigurationRefused):
            return PROBE_AFTER * (1 + self._environment.random()) / 2
        if not isinstance(outcome, Retry):
            return 0.0
        delay = backoff(self._retry, batch.failure_epoch + 1, outcome.retry_after, self._environment.random())
        # Only once without a delay: a server that closes every connection is failing.
        delay = 0.0 if outcome.immediately and not again else self._budget.spend(delay, self._environment.random())
        self._probe_interval = self._min_probe_interval * (0.5 + self._environment.random())
        return delay


def _log_batch(
    batch: Batch, request: Request, reply: Response | TransportFailure, outcome: Outcome, seconds: float
) -> None:
    kind, records, size = batch.reported_kind.value, len(batch.items), len(request.body)
    status = reply.status if isinstance(reply, Response) else None
    text = "%s: batch of %s, %d bytes, attempt %d: %s after %.1f ms"
    milliseconds = round(seconds * 1000, 1)
    log_event(
        logging.DEBUG, "batch_sent", text,
        kind, count_of(records, "record"), size, batch.attempts, cause_of(outcome), milliseconds,
        kind=kind, records=records, bytes=size, status=status, milliseconds=milliseconds, attempt=batch.attempts,
    )  # fmt: skip
