"""The tasks that hold records: they ask the buffer what to do, do it, and tell the buffer what became of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from ._buffer import Barrier, Batch, Buffer, Idle, Lane, Loss, Offer
from ._config import Overflow, RetryPolicy, Secret
from ._errors import ClientClosedError, QueueFullError
from ._hooks import Hooks
from ._host import Host, Job, current_host
from ._records import (
    Delivered,
    Delivery,
    DropReason,
    FlushResult,
    Kind,
    Misconfigured,
    Outcome,
    Request,
    Retry,
    Stats,
)
from ._retry import PROBE_AFTER, backoff
from ._runtime import Runtime
from ._transport import Transport
from ._wire import replies
from ._wire.encode import Encoder, secrets_of

T = TypeVar("T")

_log = logging.getLogger("mixpanel_async")
_WIND_UP: Final = 1.0


class Sender:
    """Owns the buffer, its lock, the pool and every background task.

    Args:
        buffer: what is waiting.
        transport: the pool.
        encoder: makes requests.
        off_loop_from: size in bytes from which a body is packed in a thread.
        overflow: what to do without room.
        retry: backoff of batches.
        hooks: the user's callbacks.
        runtime: clocks and chance.
        patience: seconds that a flush without a time-out goes on without any progress.
    """

    def __init__(
        self,
        *,
        buffer: Buffer,
        transport: Transport,
        encoder: Encoder,
        off_loop_from: int,
        overflow: Overflow,
        retry: RetryPolicy,
        hooks: Hooks,
        runtime: Runtime,
        patience: float,
    ) -> None:
        self._buffer = buffer
        self._transport = transport
        self._encoder = encoder
        self._off_loop_from = off_loop_from
        self._overflow = overflow
        self._retry = retry
        self._hooks = hooks
        self._runtime = runtime
        self._patience = patience
        # Re-entrant: a finalizer or a signal handler may track while this very thread holds it.
        self._lock = threading.RLock()
        self._host: Host | None = None
        self._main: Job[None] | None = None
        self._telling: Job[None] | None = None
        self._closer: Job[FlushResult] | None = None
        self._jobs: set[Job[None]] = set()
        self._awake = False
        self._bell: anyio.Event | None = None
        self._progress: anyio.Event | None = None
        self._closing = False
        self._closed: FlushResult | None = None
        self._requests = self._retries = 0
        self._last_error: str | None = None
        self._complaint: tuple[Kind, int | None] | None = None

    # From any thread.

    def lane(self, kind: Kind, secret: Secret | None = None) -> Lane:
        with self._lock:
            return self._buffer.lane(kind, secret)

    @property
    def pending(self) -> int:
        return self._buffer.pending

    @property
    def closed(self) -> bool:
        return self._closing

    def offer(self, lane: Lane, item: bytes) -> bool:
        """Take a record.

        Returns:
            False if there is no room and the policy is to wait for it; the record is then not accepted.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room and the policy is to raise.
        """
        losses: list[Loss] = []
        with self._lock:
            if self._closing:
                raise ClientClosedError("the client is closed; the record was not accepted")
            now = self._runtime.monotonic()
            verdict = self._buffer.offer(lane, item, now)
            if verdict is Offer.FULL:
                if self._overflow is Overflow.WAIT:
                    return False
                if self._overflow is Overflow.RAISE:
                    raise self.full()
                if self._overflow is Overflow.DROP_OLDEST:
                    losses = self._buffer.evict(len(item))
                    verdict = self._buffer.offer(lane, item, now)
                if verdict is Offer.FULL:
                    losses.append(self._buffer.discard(lane, [item], DropReason.QUEUE_FULL))
        if losses:
            self._report(losses)
        if verdict is not Offer.TAKEN:
            self._wake()
        return True

    def full(self) -> QueueFullError:
        return QueueFullError(self._buffer.pending, self._buffer.pending_bytes)

    def discard(self, lane: Lane, item: bytes, reason: DropReason) -> None:
        """Count a record as accepted and dropped at once."""
        with self._lock:
            if self._closing:
                raise ClientClosedError("the client is closed; the record was not accepted")
            loss = self._buffer.discard(lane, [item], reason)
        self._report([loss])

    def stats(self) -> Stats:
        with self._lock:
            buffer = self._buffer
            return Stats(
                accepted=buffer.accepted,
                delivered=buffer.delivered,
                failed=buffer.failed,
                dropped=buffer.dropped,
                uncertain=buffer.uncertain,
                pending=buffer.pending,
                pending_bytes=buffer.pending_bytes,
                in_flight=buffer.in_flight,
                requests=self._requests,
                retries=self._retries,
                losses={reason.value: count for reason, count in buffer.losses.items()},
                last_error=self._last_error,
            )

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            if self._host is not None:
                self._host.call_soon(self._ring)

    def _report(self, losses: list[Loss]) -> None:
        if self._hooks.lost(losses) and self._host is not None:
            self._host.call_soon(self._tell)

    def attach_if_idle(self) -> None:
        """Start in the caller's event loop, if there is one and no other was begun."""
        if self._main is None or self._main.done.is_set():
            self.attach()

    # In the event loop only.

    def attach(self) -> Host | None:
        """Bind to the running event loop and start there, unless that was done. None if no loop is running.

        Raises:
            ClientClosedError: if the client is bound to another loop that has not ended.
        """
        host = self._host
        if host is not None and host.is_current():
            if self._main is None or self._main.done.is_set():
                # Something cancelled every task of a loop that goes on.
                self._main = host.spawn(self._run, "mixpanel sender")
            return host
        current = current_host()
        if current is None:
            return None
        if host is not None and not host.is_over():
            raise ClientClosedError("the client is in use in another event loop that is still running")
        if host is not None:
            self._transport.forget()
        self._host = current
        self._progress = anyio.Event()
        self._bell = anyio.Event()
        self._closer = self._telling = None
        self._jobs.clear()
        self._main = current.spawn(self._run, "mixpanel sender")
        if not self._hooks.idle:
            self._tell()
        return current

    async def open(self) -> None:
        """Bind to the running loop and make the pool ready."""
        if self._closing:
            raise ClientClosedError("the client is closed and cannot be started again")
        self.attach()
        await self._transport.open()

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()

    def _tell(self) -> None:
        if self._host is not None and (self._telling is None or self._telling.done.is_set()):
            self._telling = self._host.spawn(self._hooks.run, "mixpanel callbacks")

    async def _run(self) -> None:
        assert self._host is not None
        while True:
            self._bell = anyio.Event()
            self._awake = False
            with self._lock:
                step = self._buffer.poll(self._runtime.monotonic())
            if isinstance(step, Batch):
                job = self._host.spawn(partial(self._deliver, step), "mixpanel request")
                self._jobs = {held for held in self._jobs if not held.done.is_set()} | {job}
                continue
            patience = None if isinstance(step, Idle) else max(0.0, step.at - self._runtime.monotonic())
            with anyio.move_on_after(patience):
                await self._bell.wait()

    async def _deliver(self, batch: Batch) -> None:
        # What holds if this task dies before it learns better: cancellation is no Exception, and the lease must end.
        outcome: Outcome = Retry(message="the sender was stopped", applied=False)
        started = self._runtime.monotonic()
        try:
            request = await self._packed(batch)
            outcome = Retry(message="the sender was stopped during a request", applied=True)
            outcome = await self.attempt(request, len(batch.items), again=batch.attempts > 1)
        finally:
            self._settle(batch, outcome, started)

    async def _packed(self, batch: Batch) -> Request:
        pack = partial(self._encoder.request, batch.lane.kind, batch.items, secret=batch.lane.secret)
        if batch.size < self._off_loop_from:
            return pack()
        return await anyio.to_thread.run_sync(pack)

    async def attempt(self, request: Request, count: int, *, again: bool, timeout: float | None = None) -> Outcome:
        """One counted request of `count` records. `again` says that it repeats an earlier one."""
        with self._lock:
            self._requests += 1
            self._retries += again
        reply = await self._transport.send(request, timeout=timeout)
        outcome = replies.read(reply, count, now=self._runtime.wall(), secrets=secrets_of(request))
        if not isinstance(outcome, Delivered):
            status = "" if outcome.status is None else f"HTTP {outcome.status}: "
            self._last_error = f"{request.endpoint}: {status}{outcome.message}"
        return outcome

    def _settle(self, batch: Batch, outcome: Outcome, started: float) -> None:
        now = self._runtime.monotonic()
        delay = 0.0
        if isinstance(outcome, Retry):
            delay = backoff(self._retry, batch.episode + 1, outcome.retry_after, self._runtime.chance())
        elif isinstance(outcome, Misconfigured):
            delay = PROBE_AFTER * (1 + self._runtime.chance()) / 2
        size = batch.size
        with self._lock:
            before = self._buffer.delivered
            losses = self._buffer.settle(batch, outcome, now, delay)
            delivered = self._buffer.delivered - before
        self._note(batch.lane.kind, outcome, len(batch.items))
        self._report(losses)
        if delivered:
            delivery = Delivery(
                kind=batch.lane.kind.value,
                records=delivered,
                body_bytes=size,
                attempts=batch.attempts,
                duration=now - started,
            )
            if self._hooks.delivered(delivery):
                self._tell()
        self.progressed()

    def _note(self, kind: Kind, outcome: Outcome, records: int) -> None:
        """Tell the log what went wrong, once an episode."""
        if isinstance(outcome, Delivered):
            if self._complaint is not None and self._complaint[0] is kind:
                _log.info("delivery of %s works again", kind.value)
                self._complaint = None
            return
        status = outcome.status
        if self._complaint == (kind, status):
            return
        self._complaint = (kind, status)
        level = logging.ERROR if isinstance(outcome, Misconfigured) else logging.WARNING
        _log.log(level, "a request of %d %s did not succeed (%s)", records, kind.value, status or "no answer")

    def progressed(self) -> None:
        """Let everybody look again who waits for records to be settled."""
        progress, self._progress = self._progress, anyio.Event()
        if progress is not None:
            progress.set()
        self._wake()

    def lease_alone(self, lane: Lane, item: bytes) -> Batch:
        """Charge a record that is sent on its own.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if there is no room for it.
        """
        with self._lock:
            if self._closing:
                raise ClientClosedError("the client is closed; the record was not accepted")
            batch = self._buffer.lease_alone(lane, item, self._runtime.monotonic())
            if batch is None:
                raise self.full()
            return batch

    def conclude(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End what `lease_alone` began."""
        with self._lock:
            losses = self._buffer.conclude(batch, reason, message=message)
        self._report(losses)
        self.progressed()

    def spawn(self, work: Callable[[], Awaitable[T]], name: str) -> Job[T]:
        """Run an awaited call's requests in a task of the package's own.

        Raises:
            ClientClosedError: if the client is closed.
        """
        if self._closing:
            raise ClientClosedError("the client is closed")
        host = self.attach()
        assert host is not None, "a coroutine runs in an event loop"
        job = host.spawn(work, name)
        self._jobs = {held for held in self._jobs if not held.done.is_set()} | {job}  # type: ignore[arg-type]
        return job

    async def room(self, size: int, deadline: float) -> bool:
        """Wait until a record of this size may have room. False if the deadline came first."""
        self.attach()
        while True:
            progress = self._progress
            with self._lock:
                if self._closing or not self._buffer.is_full(size):
                    return True
            left = deadline - self._runtime.monotonic()
            if left <= 0 or progress is None:
                return False
            with anyio.move_on_after(left):
                await progress.wait()

    async def flush(self, timeout: float | None) -> FlushResult:
        """See `AsyncMixpanel.flush`."""
        if self._closed is not None:
            return FlushResult(0, 0, 0)
        self.attach()
        with self._lock:
            barrier = self._buffer.barrier()
        await self._passed(barrier, timeout)
        return barrier.result()

    async def _passed(self, barrier: Barrier, timeout: float | None) -> None:
        self._wake()
        clock = self._runtime.monotonic
        deadline = clock() + (self._patience if timeout is None else timeout)
        left = barrier.pending
        while barrier.pending:
            progress = self._progress
            with self._lock:
                next_try = self._buffer.next_try()
            if timeout is None and barrier.pending < left:
                left, deadline = barrier.pending, clock() + self._patience
            # A wait that would end after the deadline is not begun.
            if progress is None or max(next_try, clock()) >= deadline:
                return
            with anyio.move_on_after(deadline - clock()):
                await progress.wait()

    async def aclose(self, timeout: float) -> FlushResult:
        """See `AsyncMixpanel.aclose`."""
        if self._closed is not None:
            return self._closed
        host = self.attach()
        assert host is not None, "a coroutine runs in an event loop"
        self._closing = True
        if self._closer is None or self._closer.done.is_set():
            self._closer = host.spawn(partial(self._close, timeout), "mixpanel close")
        with anyio.CancelScope(shield=True):
            return await self._closer.result()

    async def _close(self, timeout: float) -> FlushResult:
        deadline = self._runtime.monotonic() + timeout
        with self._lock:
            barrier = self._buffer.barrier()
        await self._passed(barrier, timeout)
        jobs = [*self._jobs, *([self._main] if self._main else [])]
        for job in jobs:
            job.cancel()
        with anyio.move_on_after(_WIND_UP):
            for job in jobs:
                await job.done.wait()
        with self._lock:
            losses = self._buffer.abandon(DropReason.CLOSED)
        if losses:
            _log.warning("closed with %d records undelivered", sum(len(loss.items) for loss in losses))
        self._report(losses)
        self._tell()
        with anyio.move_on_after(max(_WIND_UP, deadline - self._runtime.monotonic())):
            while not self._hooks.idle or not (self._telling is None or self._telling.done.is_set()):
                self._tell()
                if self._telling is not None:
                    await self._telling.done.wait()
        if self._telling is not None:
            self._telling.cancel()
        await self._transport.aclose()
        self._closed = barrier.result()
        return self._closed

    def abandon(self) -> None:
        """Stop without an event loop to wait in: the client was dropped. What waits is lost, and was reported."""
        self._closing = True
        if self._host is not None:
            self._host.call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for job in (*self._jobs, self._main, self._telling):
            if job is not None:
                job.cancel()
