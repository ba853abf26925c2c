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
from .._runtime.clock import Environment
from .._runtime.event_loop import BackgroundTask, EventLoop, current_loop, yield_to_loop
from .._runtime.threads import run_in_worker
from .batch_request import BatchSender
from .buffer import Idle
from .lanes import Batch, FlushBarrier
from .queue import Queue

if TYPE_CHECKING:
    from .._spool.messages import CommitGroup

T = TypeVar("T")

_log = logging.getLogger("mixpanel_async")
# Seconds that tasks which were told to stop, and callbacks, are given at the end.
_STOP_TIMEOUT: Final = 1.0


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
        self,
        queue: Queue,
        *,
        transport: Transport,
        batch_sender: BatchSender,
        runtime: Environment,
        stall_timeout: float,
    ) -> None:
        self._queue = queue
        self._transport = transport
        self._batch_sender = batch_sender
        self._runtime = runtime
        self.stall_timeout = stall_timeout
        self._loop: EventLoop | None = None
        self._main: BackgroundTask[None] | None = None
        self._callbacks_task: BackgroundTask[None] | None = None
        self._closer: BackgroundTask[FlushResult] | None = None
        self._tasks: set[BackgroundTask[Any]] = set()
        self._parent_resources: object = None
        self._awake = False
        self._wakeup: anyio.Event | None = None
        self._progress: anyio.Event | None = None
        self._closed: FlushResult | None = None
        self._is_stopping = self._is_abandoned = False
        batch_sender.on_settled = self._settled
        batch_sender.on_delivery = self._run_callbacks
        self.on_start: Callable[[], None] = _nothing
        """Called in the event loop whenever the sender starts there."""
        self.on_close: Callable[[], None] = _nothing
        """Called in the event loop when the client begins to close."""
        queue.on_work = self._wake_from_any_thread
        queue.on_loss = self._run_callbacks_soon
        queue.on_room = self._notify_waiters_soon
        queue.on_fork = self._forked

    @property
    def is_closed(self) -> bool:
        """Whether `aclose()` has come to its end."""
        return self._closed is not None

    def bind_loop_if_idle(self) -> None:
        """Start in the caller's event loop, if there is one and the client runs in no other."""
        is_idle = self._loop is None or self._loop.is_over() or self._main is None or self._main.done.is_set()
        if is_idle and current_loop() is not None:
            self.bind_loop()

    def bind_loop(self) -> EventLoop:
        """Bind to the running event loop and start there, unless that was done.

        Raises:
            ClientClosedError: if the client is bound to another loop that has not ended, or none is running.
        """
        host = self._loop
        if host is not None and self._queue.staging.fork_marker.is_current and host.is_current():
            if self._main is None or self._main.is_done:
                self._ensure_running()
            return host
        self._queue.check_fork()
        host = self._loop
        current = current_loop()
        if current is None:
            raise ClientClosedError("the client runs in an event loop of asyncio or trio, and none is running here")
        if host is not None:
            if not host.is_over():
                raise ClientClosedError("the client is in use in another event loop that is still running")
            self._transport.abandon_pool()
            self._queue.reclaim()
        self._loop = current
        self._progress = anyio.Event()
        self._wakeup = anyio.Event()
        self._batch_sender.bind_loop()
        self._closer = self._callbacks_task = None
        self._tasks = set()
        self._main = None
        self._ensure_running()
        if not self._queue.callbacks.idle:
            self._run_callbacks()
        return current

    def _ensure_running(self) -> None:
        """Start the main task, also if something has cancelled every task of a loop that goes on."""
        if not self._is_stopping and (self._main is None or self._main.done.is_set()):
            self._main = BackgroundTask(_nothing, self._main_ended)
            assert self._loop is not None
            self._loop.spawn(self._main, self._run, "mixpanel sender")
            self._queue.staging.bind_loop(self._loop.current)
            self.on_start()

    def _main_ended(self, job: BackgroundTask[Any]) -> None:
        if job is self._main:
            self._queue.staging.unbind_loop()
            self.notify_waiters()

    def _forked(self) -> None:
        """Let go of everything that lives in the parent's event loop and sockets.

        It is kept: a task or a connection that is collected is closed first, which reaches the parent, as both
        processes have one selector.
        """
        self._parent_resources = (
            self._loop,
            self._main,
            self._callbacks_task,
            self._closer,
            self._tasks,
            self._transport.abandon_pool(),
        )
        self._loop = self._main = self._callbacks_task = self._closer = None
        self._queue.staging.unbind_loop()
        self._tasks = set()
        self._awake = False

    def _spawn(
        self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None] = _nothing
    ) -> BackgroundTask[T]:
        assert self._loop is not None
        job: BackgroundTask[T] = BackgroundTask(if_unstarted, self._tasks.discard)
        self._loop.spawn(job, work, name)
        return job

    async def open(self) -> None:
        """Bind to the running loop and make the pool ready."""
        if self._queue.closed:
            raise ClientClosedError("the client is closed and cannot be started again")
        self.bind_loop()
        await self._transport.open()
        if self._queue.spool is not None:
            await self.wait_committed(self._queue.spool.writer.start())

    async def wait_committed(self, group: CommitGroup) -> None:
        """Wait until the spool has written this.

        Raises:
            MixpanelException: if it could not.
        """
        assert self._queue.spool is not None
        assert self._loop is not None
        await self._queue.spool.wait_committed(group, self._loop)

    def _wake_from_any_thread(self) -> None:
        if not self._awake:
            self._awake = True
            if self._loop is not None:
                self._loop.call_soon(self._wake)

    def _wake(self) -> None:
        if self._wakeup is not None:
            self._wakeup.set()

    def _notify_waiters_soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon(self.notify_waiters)

    def _run_callbacks_soon(self) -> None:
        if self._loop is not None:
            self._loop.call_soon(self._run_callbacks)

    def _run_callbacks(self) -> None:
        if self._loop is not None and (self._callbacks_task is None or self._callbacks_task.done.is_set()):
            self._callbacks_task = self._spawn(self._queue.callbacks.run, "mixpanel callbacks")

    async def _run(self) -> None:
        host = self._loop
        while self._loop is host:
            self._wakeup = anyio.Event()
            self._awake = False
            step = self._queue.poll()
            if isinstance(step, Batch):
                assert host is not None
                deliver = partial(self._batch_sender.send, step, host)
                self._tasks.add(
                    self._spawn(deliver, "mixpanel request", partial(self._batch_sender.settle_unsent, step))
                )
                continue
            patience = None if isinstance(step, Idle) else max(0.0, step.at - self._runtime.monotonic())
            with anyio.move_on_after(patience):
                await self._wakeup.wait()

    def _settled(self) -> None:
        if self._is_abandoned:
            # It outlived the close, and what it brings back has no place to wait any more.
            self._queue.abandon()
        self.notify_waiters()

    def notify_waiters(self) -> None:
        """Wake the sender and every task that waits for records to be settled."""
        # Directly and not with `call_soon`: one iteration of a busy loop may take long.
        self._wake()
        progress, self._progress = self._progress, anyio.Event()
        if progress is not None:
            progress.set()

    def settle_single(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End what `Queue.lease_alone` began."""
        self._queue.settle_single(batch, reason, message)
        self.notify_waiters()

    def spawn(self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None]) -> BackgroundTask[T]:
        """Run an awaited call's requests in a task of the package's own.

        Raises:
            ClientClosedError: if the client is closed, or bound to another loop that has not ended.
        """
        if self._queue.closed:
            raise ClientClosedError("the client is closed")
        self.bind_loop()
        job = self._spawn(work, name, if_unstarted)
        self._tasks.add(job)
        return job

    async def wait_for_room(self, size: int, deadline: float) -> bool:
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
            await yield_to_loop()
            return FlushResult(0, 0, 0)
        self.bind_loop()
        barrier = self._queue.barrier()
        try:
            # Also if there is nothing to wait for: whoever flushed again and again until nothing is pending would stop
            # all other tasks, and asyncio, which forgets a cancelled timer in a later turn only, would heap up timers.
            await yield_to_loop()
            await self._wait_for_barrier(barrier, timeout)
        finally:
            self._queue.forget(barrier)
        if not self._queue.callbacks.is_running_in_callback():
            with anyio.move_on_after(_STOP_TIMEOUT):
                await self._callbacks_done()
        return barrier.result()

    async def _wait_for_barrier(self, barrier: FlushBarrier, timeout: float | None) -> None:
        self._wake_from_any_thread()
        clock = self._runtime.monotonic
        deadline = clock() + (self.stall_timeout if timeout is None else timeout)
        left = barrier.pending
        while barrier.pending:
            self._ensure_running()
            progress = self._progress
            if timeout is None and barrier.pending < left:
                left, deadline = barrier.pending, clock() + self.stall_timeout
            # A wait that would end after the deadline is not begun.
            # Nor are pauses cut short for ever in an outage that lasts; the last word of a client is worth a try.
            spacing = (
                self._batch_sender.final_probe_interval if self._queue.closed else self._batch_sender.probe_interval
            )
            if progress is None or max(self._queue.next_try(spacing), clock()) >= deadline:
                return
            self._wake_from_any_thread()
            with anyio.move_on_after(deadline - clock()):
                await progress.wait()

    async def aclose(self, timeout: float) -> FlushResult:
        """See `AsyncMixpanel.aclose`."""
        if self._closed is not None:
            return self._closed
        self.bind_loop()
        self._queue.close()
        self.on_close()
        self.notify_waiters()
        if self._closer is None or self._closer.done.is_set():
            from_callback = self._queue.callbacks.is_running_in_callback()
            self._closer = self._spawn(partial(self._close, timeout, from_callback), "mixpanel close")
        # Bounded by its own deadline, so that leaving a cancelled block still delivers.
        closer = self._closer
        with anyio.CancelScope(shield=True):
            await closer.done.wait()
        return await closer.result()

    async def _close(self, timeout: float, from_callback: bool) -> FlushResult:  # noqa: FBT001  passed on
        deadline = self._runtime.monotonic() + timeout
        barrier = self._queue.barrier()
        await self._wait_for_barrier(barrier, timeout)
        self._is_stopping = True
        # Awaited calls may still be under way.
        with anyio.move_on_after(deadline - self._runtime.monotonic()):
            for job in [*self._tasks]:
                await job.done.wait()
        jobs = [*self._tasks, *([self._main] if self._main else [])]
        for job in jobs:
            job.cancel()
        with anyio.move_on_after(_STOP_TIMEOUT):
            for job in jobs:
                await job.done.wait()
        self._is_abandoned = True
        if left := self._queue.abandon():
            _log.warning("closed with %d records undelivered; last error: %s", left, self._queue.requests.last_error)
        await self._close_spool(max(_STOP_TIMEOUT, deadline - self._runtime.monotonic()))
        self.notify_waiters()
        # A callback that closes the client is waiting for this very task.
        if not from_callback:
            with anyio.move_on_after(max(_STOP_TIMEOUT, deadline - self._runtime.monotonic())):
                await self._callbacks_done()
            if self._callbacks_task is not None:
                self._callbacks_task.cancel()
            if untold := self._queue.callbacks.undelivered():
                _log.warning("closed before on_drop could be told of %d records", untold)
        await self._transport.aclose()
        self._closed = barrier.result()
        return self._closed

    async def _close_spool(self, timeout: float) -> None:
        if self._queue.spool is None:
            return
        close = partial(self._queue.spool.writer.close, timeout)
        if not await run_in_worker(close, anyio.CapacityLimiter(1)):
            _log.warning("the spool could not be closed in time")
        if left := self._queue.pending:
            _log.warning("closed with %d records left in the spool", left)

    async def _callbacks_done(self) -> None:
        while not self._queue.callbacks.idle or not (
            self._callbacks_task is None or self._callbacks_task.done.is_set()
        ):
            self._run_callbacks()
            if self._callbacks_task is not None:
                await self._callbacks_task.done.wait()

    def abandon(self) -> None:
        """Stop without waiting for the network: the client was dropped, from whatever thread."""
        self._queue.close()
        if self._queue.spool is not None:
            self._queue.spool.writer.close(_STOP_TIMEOUT)
        if self._loop is not None:
            self._loop.call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for job in (*self._tasks, self._main, self._callbacks_task):
            if job is not None:
                job.cancel()
