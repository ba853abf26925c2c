"""What becomes of one batch: its request, the reading of the answer, and the decision how long its lane pauses."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio

from .._encoding.requests import RequestEncoder
from .._encoding.responses import read_response
from .._encoding.timestamps import expired_positions
from .._http.retry import PROBE_AFTER, RetryBudget, backoff
from .._http.transport import Transport
from .._model.config import RetryPolicy
from .._model.outcomes import (
    ConfigurationRefused,
    Delivered,
    Expired,
    Outcome,
    Request,
    Retry,
)
from .._model.records import RecordKind
from .._model.stats import Delivery
from .._runtime.clock import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.threads import run_in_worker
from .lanes import Batch
from .log import EpisodeLog
from .queue import IN_REQUEST, Queue

_log = logging.getLogger("mixpanel_async")
_COMPRESSION_THREADS: Final = 2
# A batch that has waited for so many seconds may hold events that have become too old.
_CHECK_AGE_AFTER: Final = 60.0
# Seconds between probes, at the least, while somebody waits for a lane in trouble.
_MIN_PROBE_INTERVAL: Final = 0.05


class BatchSender:
    """Takes a leased batch to Mixpanel and settles it.

    Args:
        queue: where batches are settled.
        transport: the pool.
        encoder: makes requests.
        off_loop_from: size in bytes from which a body is packed in a thread.
        retry: backoff of batches.
        runtime: clocks and chance.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        transport: Transport,
        encoder: RequestEncoder,
        off_loop_from: int,
        retry: RetryPolicy,
        runtime: Environment,
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._encoder = encoder
        self._off_loop_from = off_loop_from
        self._retry = retry
        self._runtime = runtime
        self._budget = RetryBudget(retry)
        self._min_probe_interval = max(retry.initial, _MIN_PROBE_INTERVAL)
        # Drawn anew at each failure, so that a fleet whose clients all flush does not come back as one.
        self._probe_interval = self._min_probe_interval
        self._threads: anyio.CapacityLimiter | None = None
        self._log = EpisodeLog(runtime.monotonic)
        self.on_settled: Callable[[], None] = _nothing
        """Called when a batch has ended."""
        self.on_delivery: Callable[[], None] = _nothing
        """Called when the user's callbacks have a delivery to be told of."""

    def bind_loop(self) -> None:
        """Begin in an event loop."""
        # Of the package's own: an application that keeps all its threads busy must not stop delivery.
        self._threads = anyio.CapacityLimiter(_COMPRESSION_THREADS)

    @property
    def probe_interval(self) -> float | None:
        """Seconds between tries while somebody waits; None if so many have failed that pauses are kept."""
        return None if self._budget.is_spent else self._probe_interval

    @property
    def final_probe_interval(self) -> float:
        """The same for the last words of a client, which are worth a try in any case."""
        return self._probe_interval

    def settle_unsent(self, batch: Batch) -> None:
        """Settle a batch whose task ended before its first step."""
        self._settle(batch, Retry(message="the sender was stopped", applied=False), self._runtime.monotonic())

    async def send(self, batch: Batch, loop: EventLoop) -> None:
        # What holds if this task dies before it learns better: cancellation is no Exception, and the lease must end.
        outcome: Outcome = Retry(message="the sender was stopped", applied=False)
        started = self._runtime.monotonic()
        if (old := self._expired(batch)) is not None:
            self._queue.expire(batch, old)
            self.on_settled()
            return
        try:
            if self._queue.spool is not None:
                await self._queue.spool.begin(batch, loop)
            request = await self._make_request(batch)
            batch.is_request_begun = True
            outcome = Retry(message="the sender was stopped during a request", applied=True)
            outcome = await self._exchange(request, len(batch.items), again=batch.attempts > 1)
        except Exception as error:
            _log.error("a request could not be made (%s); its records are tried again", type(error).__name__)
            raise
        finally:
            self._settle(batch, outcome, started)

    def _expired(self, batch: Batch) -> Expired | None:
        """What of a batch that has waited for long must not go to `/track` any more."""
        waited = self._runtime.monotonic() - batch.opened >= _CHECK_AGE_AFTER or batch.is_from_disk
        if not waited or batch.lane.kind is not RecordKind.EVENTS or self._encoder.events_by_import:
            return None
        old = expired_positions(batch.items, now=self._runtime.wall_time())
        return Expired(positions=old, by_import=self._encoder.credentials is not None) if old else None

    async def _make_request(self, batch: Batch) -> Request:
        pack = partial(self._encoder.request, batch.lane.kind, batch.items, secret=batch.lane.secret)
        if batch.size < self._off_loop_from or batch.items.is_compressed:
            return pack()
        assert self._threads is not None
        return await run_in_worker(pack, self._threads)

    async def _exchange(self, request: Request, count: int, *, again: bool) -> Outcome:
        """Send one request of `count` records. `again` is True for a retry."""
        self._queue.requests.request_started(again=again)
        inside = IN_REQUEST.set(True)
        try:
            reply = await self._transport.send(request)
        finally:
            IN_REQUEST.reset(inside)
        now = self._runtime.wall_time()
        outcome = read_response(reply, count, now=now, secrets=request.secrets)
        self._queue.requests.request_ended(request, reply, outcome, now=now)
        return outcome

    def _settle(self, batch: Batch, outcome: Outcome, started: float) -> None:
        delay = 0.0
        again = batch.attempts > 1
        if isinstance(outcome, Retry):
            delay = backoff(self._retry, batch.failure_epoch + 1, outcome.retry_after, self._runtime.random())
            # Once: a server that closes each connection is in trouble, too.
            delay = 0.0 if outcome.immediately and not again else self._budget.spend(delay, self._runtime.random())
            self._probe_interval = self._min_probe_interval * (0.5 + self._runtime.random())
        elif isinstance(outcome, Delivered):
            self._budget.succeeded(again=again)
        elif isinstance(outcome, ConfigurationRefused):
            delay = PROBE_AFTER * (1 + self._runtime.random()) / 2
        kind, records, size = batch.lane.kind, len(batch.items), batch.size
        delivered = self._queue.settle(batch, outcome, delay)
        self._log.request(kind, outcome, records)
        if delivered:
            delivery = Delivery(
                kind=kind.value,
                records=delivered,
                body_bytes=size,
                attempts=batch.attempts,
                duration=self._runtime.monotonic() - started,
            )
            if self._queue.callbacks.enqueue_delivery(delivery):
                self.on_delivery()
        self.on_settled()


def _nothing() -> None:
    return None
