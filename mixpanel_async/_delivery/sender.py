"""The tasks that hold records: they ask the queue what to do, do it, and tell the queue what became of it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from .._http.transport import Transport
from .._model.errors import ClientClosedError
from .._model.records import DropReason
from .._model.stats import FlushResult
from .._runtime.clock import Runtime
from .._runtime.event_loop import Host, Job, current_host, let_others_run
from .._runtime.threads import worked
from .batch_request import Courier
from .buffer import Idle
from .lanes import Barrier, Batch
from .queue import Queue

if TYPE_CHECKING:
    from .._spool.messages import Group

T = TypeVar("T")

_log = logging.getLogger("mixpanel_async")
# Seconds that tasks which were told to stop, and callbacks, are given at the end.
_WIND_UP: Final = 1.0


def _nothing() -> None:
    return None


class Sender:
    """Owns the pool and every background task.

    Args:
        queue: what is waiting.
        transport: the pool.
        courier: sends one batch.
        runtime: clocks.
        patience: seconds that a flush without a time-out goes on without any progress.
    """

    def __init__(
        self, queue: Queue, *, transport: Transport, courier: Courier, runtime: Runtime, patience: float
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._courier = courier
        self._runtime = runtime
        self._patience = patience
        self._host: Host | None = None
        self._main: Job[None] | None = None
        self._telling: Job[None] | None = None
        self._closer: Job[FlushResult] | None = None
        self._jobs: set[Job[Any]] = set()
        self._inherited: object = None
        self._awake = False
        self._bell: anyio.Event | None = None
        self._progress: anyio.Event | None = None
        self._closed: FlushResult | None = None
        self._is_winding_up = self._is_abandoned = False
        courier.on_settled = self._settled
        courier.on_delivery = self._tell
        self.on_start: Callable[[], None] = _nothing
        """Called in the event loop whenever the sender starts there."""
        self.on_close: Callable[[], None] = _nothing
        """Called in the event loop when the client begins to close."""
        queue.on_work = self._wake
        queue.on_loss = self._tell_soon
        queue.on_room = self._progressed_soon
        queue.on_fork = self._forked

    @property
    def is_closed(self) -> bool:
        """Whether `aclose()` has come to its end."""
        return self._closed is not None

    def attach_if_idle(self) -> None:
        """Start in the caller's event loop, if there is one and the client runs in no other."""
        is_idle = self._host is None or self._host.is_over() or self._main is None or self._main.done.is_set()
        if is_idle and current_host() is not None:
            self.attach()

    def attach(self) -> Host:
        """Bind to the running event loop and start there, unless that was done.

        Raises:
            ClientClosedError: if the client is bound to another loop that has not ended, or none is running.
        """
        self._queue.note_fork()
        host = self._host
        if host is not None and host.is_current():
            if self._main is None or self._main.is_over:
                self._revive()
            return host
        current = current_host()
        if current is None:
            raise ClientClosedError("the client runs in an event loop of asyncio or trio, and none is running here")
        if host is not None:
            if not host.is_over():
                raise ClientClosedError("the client is in use in another event loop that is still running")
            self._transport.forget()
            self._queue.reclaim()
        self._host = current
        self._progress = anyio.Event()
        self._bell = anyio.Event()
        self._courier.arrive()
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
            self._queue.stage.settle_in(self._host.runner)
            self.on_start()

    def _main_ended(self, job: Job[Any]) -> None:
        if job is self._main:
            self._queue.stage.leave()
            self.progressed()

    def _forked(self) -> None:
        """Let go of everything that lives in the parent's event loop and sockets.

        It is kept: a task or a connection that is collected is closed first, which reaches the parent, as both
        processes have one selector.
        """
        self._inherited = self._host, self._main, self._telling, self._closer, self._jobs, self._transport.forget()
        self._host = self._main = self._telling = self._closer = None
        self._queue.stage.leave()
        self._jobs = set()
        self._awake = False

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
        if self._queue.durable is not None:
            await self.landed(self._queue.durable.journal.begin())

    async def landed(self, group: Group) -> None:
        """Wait until the spool has written this.

        Raises:
            MixpanelException: if it could not.
        """
        assert self._queue.durable is not None
        assert self._host is not None
        await self._queue.durable.landed(group, self._host)

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            if self._host is not None:
                self._host.call_soon(self._ring)

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.set()

    def _progressed_soon(self) -> None:
        if self._host is not None:
            self._host.call_soon(self.progressed)

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
                assert host is not None
                deliver = partial(self._courier.deliver, step, host)
                self._jobs.add(self._spawn(deliver, "mixpanel request", partial(self._courier.unsent, step)))
                continue
            patience = None if isinstance(step, Idle) else max(0.0, step.at - self._runtime.monotonic())
            with anyio.move_on_after(patience):
                await self._bell.wait()

    def _settled(self) -> None:
        if self._is_abandoned:
            # It outlived the close, and what it brings back has no place to wait any more.
            self._queue.abandon()
        self.progressed()

    def progressed(self) -> None:
        """Let everybody look again who waits for records to be settled."""
        progress, self._progress = self._progress, anyio.Event()
        if progress is not None:
            progress.set()
        # At once, and not by way of the loop: a turn of it may take as long as a producer keeps it.
        self._ring()

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
            await let_others_run()
            return FlushResult(0, 0, 0)
        self.attach()
        barrier = self._queue.barrier()
        try:
            # Also if there is nothing to wait for: whoever flushed again and again until nothing is pending would stop
            # all other tasks, and asyncio, which forgets a cancelled timer in a later turn only, would heap up timers.
            await let_others_run()
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
            # Nor are pauses cut short for ever in an outage that lasts; the last word of a client is worth a try.
            spacing = self._courier.last_spacing if self._queue.closed else self._courier.spacing
            if progress is None or max(self._queue.next_try(spacing), clock()) >= deadline:
                return
            self._wake()
            with anyio.move_on_after(deadline - clock()):
                await progress.wait()

    async def aclose(self, timeout: float) -> FlushResult:
        """See `AsyncMixpanel.aclose`."""
        if self._closed is not None:
            return self._closed
        self.attach()
        self._queue.close()
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
        await self._close_spool(max(_WIND_UP, deadline - self._runtime.monotonic()))
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

    async def _close_spool(self, timeout: float) -> None:
        if self._queue.durable is None:
            return
        close = partial(self._queue.durable.journal.close, timeout)
        if not await worked(close, anyio.CapacityLimiter(1)):
            _log.warning("the spool could not be closed in time")
        if left := self._queue.pending:
            _log.warning("closed with %d records left in the spool", left)

    async def _told(self) -> None:
        while not self._queue.hooks.idle or not (self._telling is None or self._telling.done.is_set()):
            self._tell()
            if self._telling is not None:
                await self._telling.done.wait()

    def abandon(self) -> None:
        """Stop without waiting for the network: the client was dropped, from whatever thread."""
        self._queue.close()
        if self._queue.durable is not None:
            self._queue.durable.journal.close(_WIND_UP)
        if self._host is not None:
            self._host.call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for job in (*self._jobs, self._main, self._telling):
            if job is not None:
                job.cancel()
