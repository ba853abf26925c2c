"""Thread-safe queue: leases, outcomes, flushes and reports of the records that `intake.py` accepts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from typing import TypeVar

from .._model.outcomes import Expired, Outcome
from .._model.records import DropReason, Loss
from .._model.stats import Stats
from .batch import Batch, FlushBarrier
from .intake import Intake
from .lanes import Idle, Lane, WaitUntil

T = TypeVar("T")


class Queue(Intake):
    """Leases records to requests, settles and counts them. The arguments are those of `Intake`."""

    # Requests

    def lease_single(self, lane: Lane, item: bytes) -> Batch:
        """Charge and lease a record that is sent alone.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if it does not fit.
        """
        self._refuse_if_closed()
        known = self._repairer.leases()
        try:
            batch = self.run_locked(lambda: self._buffer.lease_single(lane, item, self._monotonic()))
        except BaseException:
            self.run_locked(partial(self._repairer.end_leases_except, known))
            raise
        if batch is None:
            raise self.full()
        return batch

    def settle_single(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End a lease made by `lease_single`: delivered, or lost if there is a reason."""
        self.report_losses(self.run_locked(lambda: self._buffer.settle_single(batch, reason, message=message)))

    def requeue_single(self, batch: Batch) -> None:
        """End a lease made by `lease_single` without an outcome: its record joins those that wait."""

        def work() -> list[Loss]:
            self._buffer.requeue_single(batch)
            return self._abandoned()

        self.report_losses(self.run_locked(work))

    def poll(self) -> Batch | WaitUntil | Idle:
        """Return a batch, leased to the caller, or how long to wait for one."""

        def work() -> Batch | WaitUntil | Idle:
            if self.spool is not None:
                self.spool.refill()
            return self._buffer.poll(self._monotonic())

        return self.run_locked(work)

    def dispatch(self, send: Callable[[Batch], object]) -> WaitUntil | Idle | None:
        """Lease a batch and pass it to a function, or return how long to wait for one."""
        known = self._repairer.leases()
        try:
            step = self.poll()
            if not isinstance(step, Batch):
                return step
            send(step)
        except BaseException:
            # No lease may stay that no request knows about.
            self.run_locked(partial(self._repairer.end_leases_except, known))
            raise
        return None

    def settle(self, batch: Batch, outcome: Outcome, delay: float) -> int:
        """End a lease; see `Buffer.settle`.

        Returns:
            How many records were delivered.
        """
        accounting = self._buffer.accounting

        def work() -> tuple[int, list[Loss]]:
            before = accounting.delivered
            losses = self._buffer.settle(batch, outcome, self._monotonic(), delay)
            if self.spool is not None:
                self.spool.end_request(batch)
            return accounting.delivered - before, losses + self._abandoned()

        delivered, losses = self.run_locked(work)
        self.report_losses(losses)
        self._losses.log_due()
        return delivered

    def expire(self, batch: Batch, outcome: Expired) -> None:
        """End a lease for which no request was made."""
        self.report_losses(self.run_locked(lambda: self._buffer.expire(batch, outcome) + self._abandoned()))

    def _abandoned(self) -> list[Loss]:
        """Drop records of a request that outlived the client: they have no place to wait."""
        return self._buffer.abandon(DropReason.CLOSED) if self._is_abandoned else []

    def reclaim(self) -> None:
        """Release the leases held by an event loop that has ended."""
        self.report_losses(self.run_locked(self._buffer.reclaim))

    def abandon(self) -> int:
        """Give up every waiting record, as the client is closed.

        Returns:
            The number of these records.
        """

        def work() -> list[Loss]:
            self._is_abandoned = True
            return self._buffer.abandon(DropReason.CLOSED)

        losses = self.run_locked(work)
        self.report_losses(losses)
        self.log_last_losses()
        return sum(len(loss.items) for loss in losses)

    def end(self, timeout: float) -> None:
        """Give up every waiting record and close the spool, as the client was dropped and its event loop ends.

        Args:
            timeout: seconds to wait for the disk.
        """
        self.abandon()
        if self.spool is not None:
            self.spool.close(timeout)
            self.log_last_losses()

    def count_identity(self, counter: str) -> None:
        """Add one to this field of `IdentityStats`."""
        self.run_locked(partial(self._buffer.accounting.count_identity, counter))

    def sign_in_failed(self, error: Exception, is_final: bool) -> None:  # noqa: FBT001  a callback
        """Log an error that `sign_in` did not raise; see `SignInLog.failed`."""
        self._sign_in_log.failed(error, is_final=is_final)

    # Flushes

    def barrier(self) -> FlushBarrier:
        """Make everything accepted so far due now, and return a barrier that counts it."""
        barrier = self.run_locked(self._buffer.barrier)
        self._repairer.barriers.append(barrier)
        return barrier

    def forget(self, barrier: FlushBarrier) -> None:
        """Stop counting for this barrier."""
        if barrier in self._repairer.barriers:
            self._repairer.barriers.remove(barrier)
        self.run_locked(lambda: self._buffer.forget(barrier))

    def next_try(self, shorten_backoff: float | None) -> float:
        """Return when a waiting batch may be sent, after backoffs were shortened to this number of seconds."""

        def work() -> float:
            if shorten_backoff is not None:
                self._buffer.shorten_backoff(shorten_backoff)
            return self._buffer.next_try()

        return self.run_locked(work)

    # Reports

    def stats(self) -> Stats:
        """Return a snapshot of all counters."""

        def work() -> Stats:
            deferred = [item for _, item, _ in [*self._deferred]]
            spool, stats = self.spool, self._buffer.stats(deferred, self.requests)
            opened = min((batch.opened for lane in self._buffer.active for batch in lane.batches()), default=inf)
            return replace(
                stats,
                # Infinite for events that were tracked inside requests, and without records.
                oldest_age=0.0 if opened == inf else max(0.0, self._monotonic() - opened),
                spool_bytes=0 if spool is None else spool.used_bytes,
                dead_letters=0 if spool is None else spool.dead_letters,
            )

        return self.run_locked(work)

    def log_last_losses(self) -> None:
        """Log the losses that no line has counted yet, as the client closes."""
        self._losses.log_due(is_last=True)
