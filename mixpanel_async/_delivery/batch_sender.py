"""Delivery of one batch: pass it to the destination, decide how long the lane pauses, and settle the batch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from .._http.progress import Progress
from .._http.retry import PROBE_AFTER, RetryBudget, backoff
from .._model.config import RetryPolicy
from .._model.outcomes import ConfigurationRefused, Delivered, Outcome, Retry
from .._model.stats import Delivery
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.log_events import log_event
from .batch import Batch
from .destination import Destination
from .listeners import DeliveryListener
from .log import EpisodeLog

if TYPE_CHECKING:
    from .queue import Queue

# Minimum seconds between probes while a flush waits for a failing lane.
_MIN_PROBE_INTERVAL: Final = 0.05


class BatchSender:
    """Passes a leased batch to its destination and settles it.

    Args:
        queue: settles the batch.
        listener: receives the signals of the batch sender.
        destination: where the batch goes.
        retry: backoff of batches.
        environment: clocks and randomness.
    """

    def __init__(
        self,
        queue: Queue,
        listener: DeliveryListener,
        *,
        destination: Destination,
        retry: RetryPolicy,
        environment: Environment,
    ) -> None:
        self._queue = queue
        self._listener = listener
        self._destination = destination
        self._retry = retry
        self._environment = environment
        self._budget = RetryBudget(retry)
        self._min_probe_interval = max(retry.initial, _MIN_PROBE_INTERVAL)
        # Random after each failure, so that many clients that flush do not probe at the same moment.
        self._probe_interval = self._min_probe_interval
        self._log = EpisodeLog(environment.monotonic)

    def bind_loop(self) -> None:
        """Bind to the running event loop."""
        self._destination.bind_loop()

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
        if (expired := self._destination.expired(batch)) is not None:
            self._queue.expire(batch, expired)
            self._listener.on_settled()
            return
        try:
            if self._queue.spool is not None:
                await self._queue.spool.begin_request(batch, loop)
            outcome = await self._destination.deliver(batch, progress)
        except Exception as error:
            text, name = "cannot create a request (%s); its records are retried", type(error).__name__
            log_event(logging.ERROR, "request_not_created", text, name, error=name)
            raise
        finally:
            if outcome is None:
                during = " during a request" if progress.may_be_sent else ""
                outcome = Retry(message=f"the sender was stopped{during}", applied=progress.may_be_sent)
            self._settle(batch, outcome, started)

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
