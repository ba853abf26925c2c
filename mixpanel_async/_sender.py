"""The tasks that hold records: they ask the queue what to do, do it, and tell the queue what became of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

import anyio
import anyio.to_thread

from ._buffer import Idle
from ._config import RetryPolicy
from ._errors import ClientClosedError
from ._host import Host, Job, current_host
from ._lanes import Barrier, Batch
from ._logbook import Logbook
from ._queue import Queue
from ._records import Delivered, Delivery, DropReason, FlushResult, Misconfigured, Outcome, Request, Retry
from ._retry import PROBE_AFTER, backoff
from ._runtime import Runtime
from ._transport import Transport
from ._wire import replies
from ._wire.encode import Encoder, secrets_of

T = TypeVar("T")

_log = logging.getLogger("mixpanel_async")
# Seconds that tasks which were told to stop, and callbacks, are given at the end.
_WIND_UP: Final = 1.0
_PACKING_THREADS: Final = 2
# Seconds between probes, at the least, while somebody waits for a lane in trouble.
_LEAST_HURRY: Final = 0.05


def _nothing() -> None:
    return None


class Sender:
    """Owns the pool and every background task.

    Args:
        queue: what is waiting.
        transport: the pool.
        encoder: makes requests.
        off_loop_from: size in bytes from which a body is packed in a thread.
        retry: backoff of batches.
        runtime: clocks and chance.
        patience: seconds that a flush without a time-out goes on without any progress.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        transport: Transport,
        encoder: Encoder,
        off_loop_from: int,
        retry: RetryPolicy,
        runtime: Runtime,
        patience: float,
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._encoder = encoder
        self._off_loop_from = off_loop_from
        self._retry = retry
        self._runtime = runtime
        self._patience = patience
        self._hurry = max(retry.initial, _LEAST_HURRY)
        self._host: Host | None = None
        self._main: Job[None] | None = None
        self._telling: Job[None] | None = None
        self._closer: Job[FlushResult] | None = None
        self._jobs: set[Job[Any]] = set()
        self._awake = False
        self._bell: anyio.Event | None = None
        self._progress: anyio.Event | None = None
        self._threads: anyio.CapacityLimiter | None = None
        self._closed: FlushResult | None = None
        self._is_winding_up = self._is_abandoned = False
        self._logbook = Logbook(runtime.monotonic)
        self.on_start: Callable[[], None] = _nothing
        """Called in the event loop whenever the sender starts there."""
        self.on_close: Callable[[], None] = _nothing
        """Called in the event loop when the client begins to close."""
        queue.on_work = self._wake
        queue.on_loss = self._tell_soon
        queue.on_fork = self._forked

    @property
    def is_closed(self) -> bool:
        """Whether `aclose()` has come to its end."""
        return self._closed is not None

    def attach_if_idle(self) -> None:
        """Start in the caller's event loop, if there is one and the client runs in no other."""
        if self._host is None or self._host.is_over() or self._main is None or self._main.done.is_set():
            self.attach()

    def attach(self) -> Host | None:
        """Bind to the running event loop and start there, unless that was done. None if no loop is running.

        Raises:
            ClientClosedError: if the client is bound to another loop that has not ended.
        """
        host = self._host
        if host is not None and host.is_current():
            if self._main is None or self._main.is_over:
                self._revive()
            return host
        current = current_host()
        if current is None:
            return None
        if host is not None:
            if not host.is_over():
                raise ClientClosedError("the client is in use in another event loop that is still running")
            self._transport.forget()
            self._queue.reclaim()
        self._host = current
        self._progress = anyio.Event()
        self._bell = anyio.Event()
        # Of the package's own: an application that keeps all its threads busy must not stop delivery.
        self._threads = anyio.CapacityLimiter(_PACKING_THREADS)
        self._closer = self._telling = None
        self._jobs = set()
        self._main = None
        self._revive()
        if not self._queue.hooks.idle:
            self._tell()
        return current

    def _revive(self) -> None:
        """Start the main task, also if something has cancelled every task of a loop that goes on."""
        if not self._is_winding_up and (self._main is None or self._main.done.is_set()):
            self._main = Job(_nothing, self._main_ended)
            assert self._host is not None
            self._host.spawn(self._main, self._run, "mixpanel sender")
            self.on_start()

    def _main_ended(self, job: Job[Any]) -> None:
        if job is self._main:
            self.progressed()

    def _forked(self) -> None:
        """Let go of everything that lives in the parent's event loop and sockets."""
        self._host = self._main = self._telling = self._closer = None
        self._jobs = set()
        self._awake = False
        self._transport.forget()

    def _spawn(
        self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None] = _nothing
    ) -> Job[T]:
        assert self._host is not None
        job: Job[T] = Job(if_unstarted, self._jobs.discard)
        self._host.spawn(job, work, name)
        return job

    async def open(self) -> None:
        """Bind to the running loop and make the pool ready."""
        if self._queue.closed:
            raise ClientClosedError("the client is closed and cannot be started again")
        self.attach()
        await self._transport.open()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            if self._host is not None:
                self._host.call_soon(self._ring)

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()

    def _tell_soon(self) -> None:
        if self._host is not None:
            self._host.call_soon(self._tell)

    def _tell(self) -> None:
        if self._host is not None and (self._telling is None or self._telling.done.is_set()):
            self._telling = self._spawn(self._queue.hooks.run, "mixpanel callbacks")

    async def _run(self) -> None:
        host = self._host
        while self._host is host:
            self._bell = anyio.Event()
            self._awake = False
            step = self._queue.poll()
            if isinstance(step, Batch):
                unsent = Retry(message="the sender was stopped", applied=False)
                unstarted = partial(self._settle, step, unsent, self._runtime.monotonic())
                self._jobs.add(self._spawn(partial(self._deliver, step), "mixpanel request", unstarted))
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
            batch.begun = True
            outcome = Retry(message="the sender was stopped during a request", applied=True)
            outcome = await self.attempt(request, len(batch.items), again=batch.attempts > 1)
        except Exception as error:
            _log.error("a request could not be made (%s); its records are tried again", type(error).__name__)
            raise
        finally:
            self._settle(batch, outcome, started)

    async def _packed(self, batch: Batch) -> Request:
        pack = partial(self._encoder.request, batch.lane.kind, batch.items, secret=batch.lane.secret)
        if batch.size < self._off_loop_from:
            return pack()
        return await anyio.to_thread.run_sync(pack, limiter=self._threads)

    async def attempt(self, request: Request, count: int, *, again: bool, timeout: float | None = None) -> Outcome:
        """One counted request of `count` records. `again` says that it repeats an earlier one."""
        self._queue.count_request(again=again)
        reply = await self._transport.send(request, timeout=timeout)
        outcome = replies.read(reply, count, now=self._runtime.wall(), secrets=secrets_of(request))
        if not isinstance(outcome, Delivered):
            status = "" if outcome.status is None else f"HTTP {outcome.status}: "
            self._queue.count_error(f"{request.endpoint}: {status}{outcome.message}")
        return outcome

    def _settle(self, batch: Batch, outcome: Outcome, started: float) -> None:
        delay = 0.0
        if isinstance(outcome, Retry):
            delay = backoff(self._retry, batch.episode + 1, outcome.retry_after, self._runtime.chance())
        elif isinstance(outcome, Misconfigured):
            delay = PROBE_AFTER * (1 + self._runtime.chance()) / 2
        kind, records, size = batch.lane.kind, len(batch.items), batch.size
        delivered = self._queue.settle(batch, outcome, delay)
        self._logbook.request(kind, outcome, records)
        if delivered:
            delivery = Delivery(
                kind=kind.value,
                records=delivered,
                body_bytes=size,
                attempts=batch.attempts,
                duration=self._runtime.monotonic() - started,
            )
            if self._queue.hooks.delivered(delivery):
                self._tell()
        if self._is_abandoned:
            # It outlived the close, and what it brings back has no place to wait any more.
            self._queue.abandon()
        self.progressed()

    def progressed(self) -> None:
        """Let everybody look again who waits for records to be settled."""
        progress, self._progress = self._progress, anyio.Event()
        if progress is not None:
            progress.set()
        self._wake()

    def conclude(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End what `Queue.lease_alone` began."""
        self._queue.conclude(batch, reason, message)
        self.progressed()

    def spawn(self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None]) -> Job[T]:
        """Run an awaited call's requests in a task of the package's own.

        Raises:
            ClientClosedError: if the client is closed, or bound to another loop that has not ended.
        """
        if self._queue.closed:
            raise ClientClosedError("the client is closed")
        self.attach()
        job = self._spawn(work, name, if_unstarted)
        self._jobs.add(job)
        return job

    async def room(self, size: int, deadline: float) -> bool:
        """Wait until a record of this size may have room. False if the deadline came first."""
        while True:
            progress = self._progress
            if self._queue.closed or not self._queue.is_full(size):
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
        barrier = self._queue.barrier()
        try:
            await self._passed(barrier, timeout)
        finally:
            self._queue.forget(barrier)
        if not self._queue.hooks.is_caller():
            with anyio.move_on_after(_WIND_UP):
                await self._told()
        return barrier.result()

    async def _passed(self, barrier: Barrier, timeout: float | None) -> None:
        self._wake()
        clock = self._runtime.monotonic
        deadline = clock() + (self._patience if timeout is None else timeout)
        left = barrier.pending
        while barrier.pending:
            self._revive()
            progress = self._progress
            if timeout is None and barrier.pending < left:
                left, deadline = barrier.pending, clock() + self._patience
            # A wait that would end after the deadline is not begun.
            if progress is None or max(self._queue.next_try(self._hurry), clock()) >= deadline:
                return
            self._wake()
            with anyio.move_on_after(deadline - clock()):
                await progress.wait()

    async def aclose(self, timeout: float) -> FlushResult:
        """See `AsyncMixpanel.aclose`."""
        if self._closed is not None:
            return self._closed
        self.attach()
        self._queue.closed = True
        self.on_close()
        self.progressed()
        if self._closer is None or self._closer.done.is_set():
            from_callback = self._queue.hooks.is_caller()
            self._closer = self._spawn(partial(self._close, timeout, from_callback), "mixpanel close")
        # Bounded by its own deadline, so that leaving a cancelled block still delivers.
        closer = self._closer
        with anyio.CancelScope(shield=True):
            await closer.done.wait()
        return await closer.result()

    async def _close(self, timeout: float, from_callback: bool) -> FlushResult:  # noqa: FBT001  passed on
        deadline = self._runtime.monotonic() + timeout
        barrier = self._queue.barrier()
        await self._passed(barrier, timeout)
        self._is_winding_up = True
        # Awaited calls may still be under way.
        with anyio.move_on_after(deadline - self._runtime.monotonic()):
            for job in [*self._jobs]:
                await job.done.wait()
        jobs = [*self._jobs, *([self._main] if self._main else [])]
        for job in jobs:
            job.cancel()
        with anyio.move_on_after(_WIND_UP):
            for job in jobs:
                await job.done.wait()
        self._is_abandoned = True
        if left := self._queue.abandon():
            _log.warning("closed with %d records undelivered; last error: %s", left, self._queue.last_error)
        self.progressed()
        # A callback that closes the client is waiting for this very task.
        if not from_callback:
            with anyio.move_on_after(max(_WIND_UP, deadline - self._runtime.monotonic())):
                await self._told()
            if self._telling is not None:
                self._telling.cancel()
            if untold := self._queue.hooks.untold():
                _log.warning("closed before on_drop could be told of %d records", untold)
        await self._transport.aclose()
        self._closed = barrier.result()
        return self._closed

    async def _told(self) -> None:
        while not self._queue.hooks.idle or not (self._telling is None or self._telling.done.is_set()):
            self._tell()
            if self._telling is not None:
                await self._telling.done.wait()

    def abandon(self) -> None:
        """Stop without waiting: the client was dropped, from whatever thread."""
        self._queue.closed = True
        if self._host is not None:
            self._host.call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for job in (*self._jobs, self._main, self._telling):
            if job is not None:
                job.cancel()
