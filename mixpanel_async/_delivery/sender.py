"""Background tasks of a client: they take batches from the queue, send them and report the outcome."""

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
from .._runtime.environment import Environment
from .._runtime.event_loop import BackgroundTask, EventLoop, current_loop, yield_to_loop
from .._runtime.threads import run_in_worker
from .lanes import Batch, FlushBarrier, Idle, Lane
from .staging import YIELD_AFTER_BYTES

if TYPE_CHECKING:
    from .._spool.messages import CommitGroup
    from .batch_sender import BatchSender
    from .callbacks import Callbacks
    from .queue import Queue

T = TypeVar("T")

_log = logging.getLogger("mixpanel_async")
# Seconds for cancelled tasks, and for callbacks, to end when the client closes.
_STOP_TIMEOUT: Final = 1.0


def _nothing(_: object = None) -> None:
    return None


class LoopBinding:
    """Event loop of a client, its background tasks, and the signals that wake them.

    It is the `QueueListener` and the `DeliveryListener` of the client. Only `on_work`, `on_losses` and `on_room` may be
    called from other threads.

    Args:
        callbacks: the user's callbacks.
        transport: connection pool.

    Attributes:
        loop: the bound event loop; None before the first one, and in a forked child.
        requests: tasks that send a request.
        progress: set, and replaced, whenever waiting tasks have to check their condition.
    """

    def __init__(self, callbacks: Callbacks, transport: Transport) -> None:
        self._callbacks = callbacks
        self._transport = transport
        self.loop: EventLoop | None = None
        self.requests: set[BackgroundTask[Any]] = set()
        self.progress: anyio.Event | None = None
        self._callbacks_task: BackgroundTask[None] | None = None
        self._parent_resources: object = None
        self._is_awake = False
        self._wakeup: anyio.Event | None = None

    def bind(self, loop: EventLoop) -> None:
        """Bind to the running event loop."""
        self.loop = loop
        self.progress = anyio.Event()
        self._wakeup = anyio.Event()
        self._callbacks_task = None
        self.requests = set()

    def spawn(
        self,
        work: Callable[[], Awaitable[T]],
        name: str,
        *,
        if_unstarted: Callable[[], None] = _nothing,
        on_end: Callable[[BackgroundTask[Any]], None] = _nothing,
    ) -> BackgroundTask[T]:
        """Run a coroutine function in a background task."""
        assert self.loop is not None
        task: BackgroundTask[T] = BackgroundTask(if_unstarted, on_end)
        self.loop.spawn(task, work, name)
        return task

    def spawn_request(
        self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None]
    ) -> BackgroundTask[T]:
        """Run a coroutine function that sends a request. `aclose()` waits for it."""
        task = self.spawn(work, name, if_unstarted=if_unstarted, on_end=self.requests.discard)
        self.requests.add(task)
        return task

    # Signals to the sender

    def on_work(self) -> None:
        """Wake the sender. Callable from any thread."""
        if not self._is_awake:
            self._is_awake = True
            if self.loop is not None:
                self.loop.call_soon(self._wake)

    def _wake(self) -> None:
        if self._wakeup is not None:
            self._wakeup.set()

    def reset_wakeup(self) -> None:
        """Make later signals wake the next `wait_for_work`. Call this before looking at the queue."""
        self._wakeup = anyio.Event()
        self._is_awake = False

    async def wait_for_work(self, timeout: float | None) -> None:
        """Wait for a signal, for at most this number of seconds."""
        assert self._wakeup is not None
        with anyio.move_on_after(timeout):
            await self._wakeup.wait()

    # Signals to waiting tasks

    def on_room(self) -> None:
        """Let all waiting tasks check their condition again. Callable from any thread."""
        if self.loop is not None:
            self.loop.call_soon(self.on_settled)

    def on_settled(self) -> None:
        """Let all waiting tasks check their condition again, as a batch was settled or the client closes."""
        # Not through the loop: a busy producer can delay its next turn for a long time. The sender is woken first, so
        # that the next batch leaves before the waiting tasks continue.
        self._wake()
        progress, self.progress = self.progress, anyio.Event()
        if progress is not None:
            progress.set()

    # Callbacks

    def on_losses(self) -> None:
        """Schedule the user's callbacks. Callable from any thread."""
        if self.loop is not None:
            self.loop.call_soon(self.on_delivery)

    def on_delivery(self) -> None:
        """Run the user's callbacks, unless they are running."""
        if self.loop is not None and (self._callbacks_task is None or self._callbacks_task.is_done):
            self._callbacks_task = self.spawn(self._callbacks.run, "mixpanel callbacks")

    async def callbacks_done(self) -> None:
        """Run the user's callbacks until nothing is left to report."""
        while not self._callbacks.idle or not (self._callbacks_task is None or self._callbacks_task.is_done):
            self.on_delivery()
            if self._callbacks_task is not None:
                await self._callbacks_task.done.wait()

    def cancel_callbacks(self) -> None:
        """Cancel the task that runs the user's callbacks."""
        if self._callbacks_task is not None:
            self._callbacks_task.cancel()

    # Fork

    def on_fork(self) -> None:
        """Detach from the event loop and the sockets of the parent.

        They are kept alive: a task or a connection closes itself when it is collected, which reaches the parent because
        both processes share one selector.
        """
        self._parent_resources = (self.loop, self._callbacks_task, self.requests, self._transport.abandon_pool())
        self.loop = self._callbacks_task = None
        self.requests = set()
        self._is_awake = False


class Sender:
    """Runs the background tasks of a client, flushes and closes it.

    Args:
        queue: waiting records.
        binding: event loop of the client.
        transport: connection pool.
        batch_sender: sends one batch.
        environment: clocks.
        stall_timeout: seconds without progress after which a flush without a timeout ends.
    """

    def __init__(
        self,
        queue: Queue,
        binding: LoopBinding,
        *,
        transport: Transport,
        batch_sender: BatchSender,
        environment: Environment,
        stall_timeout: float,
    ) -> None:
        self._queue = queue
        self._binding = binding
        self._transport = transport
        self._batch_sender = batch_sender
        self._monotonic = environment.monotonic
        self.stall_timeout = stall_timeout
        self._main: BackgroundTask[None] | None = None
        self._closer: BackgroundTask[FlushResult] | None = None
        self._closed: FlushResult | None = None
        self._is_stopping = False
        self._on_start: list[Callable[[], None]] = []
        self._on_close: list[Callable[[], None]] = []

    def subscribe(self, on_start: Callable[[], None], on_close: Callable[[], None]) -> None:
        """Add functions that are called in the event loop.

        Args:
            on_start: called whenever the sender starts in an event loop.
            on_close: called when the client begins to close.
        """
        self._on_start.append(on_start)
        self._on_close.append(on_close)

    @property
    def is_closed(self) -> bool:
        """Whether `aclose()` has ended."""
        return self._closed is not None

    # Event loop

    def bind_loop_if_idle(self) -> None:
        """Start in the caller's event loop, if there is one and the client runs in no other."""
        loop = self._binding.loop
        is_idle = loop is None or loop.is_over() or self._main is None or self._main.is_done
        if is_idle and current_loop() is not None:
            self.bind_loop()

    def bind_loop(self) -> EventLoop:
        """Bind to the running event loop and start there, unless that was done before.

        Raises:
            ClientClosedError: if the client is bound to another loop that has not ended, or none is running.
        """
        loop = self._binding.loop
        if loop is not None and self._queue.staging.fork_marker.is_current and loop.is_current():
            self._ensure_running()
            return loop
        self._queue.check_fork()
        loop = self._binding.loop
        current = current_loop()
        if current is None:
            raise ClientClosedError("no event loop is running; call this inside asyncio or trio")
        if loop is not None:
            if not loop.is_over():
                raise ClientClosedError("the client is in use in another event loop that is still running")
            self._transport.abandon_pool()
            self._queue.reclaim()
        self._binding.bind(current)
        self._batch_sender.bind_loop()
        self._closer = self._main = None
        self._ensure_running()
        if not self._queue.callbacks.idle:
            self._binding.on_delivery()
        return current

    def _ensure_running(self) -> None:
        """Start the main task, also if something has cancelled every task of the event loop."""
        if not self._is_stopping and (self._main is None or self._main.is_done):
            loop = self._binding.loop
            assert loop is not None
            self._main = self._binding.spawn(self._run, "mixpanel sender", on_end=self._main_ended)
            self._queue.staging.bind_loop(loop.current)
            for callback in self._on_start:
                callback()

    def _main_ended(self, task: BackgroundTask[Any]) -> None:
        if task is self._main:
            self._queue.staging.unbind_loop()
            self._binding.on_settled()

    async def open(self) -> None:
        """Bind to the running loop and prepare the connection pool."""
        if self._queue.closed:
            raise ClientClosedError("the client is closed and cannot be started again; create a new client")
        self.bind_loop()
        await self._transport.open()
        if self._queue.spool is not None:
            await self._wait_committed(self._queue.spool.writer.start())

    async def _run(self) -> None:
        loop = self._binding.loop
        while self._binding.loop is loop:
            self._binding.reset_wakeup()
            step = self._queue.poll()
            if isinstance(step, Batch):
                assert loop is not None
                self._binding.spawn_request(
                    partial(self._batch_sender.send, step, loop),
                    "mixpanel request",
                    partial(self._batch_sender.settle_unsent, step),
                )
                continue
            await self._binding.wait_for_work(None if isinstance(step, Idle) else max(0.0, step.at - self._monotonic()))

    def spawn(self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None]) -> BackgroundTask[T]:
        """Run the requests of an awaited call in a background task.

        Raises:
            ClientClosedError: if the client is closed, or bound to another loop that has not ended.
        """
        if self._queue.closed:
            raise ClientClosedError("the client is closed")
        self.bind_loop()
        return self._binding.spawn_request(work, name, if_unstarted)

    # Waiting

    async def _wait_committed(self, group: CommitGroup) -> None:
        """Wait until the spool has written this group.

        Raises:
            MixpanelException: if it could not.
        """
        assert self._queue.spool is not None
        assert self._binding.loop is not None
        await self._queue.spool.wait_committed(group, self._binding.loop)

    def settle_single(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End a lease made by `Queue.lease_single`."""
        self._queue.settle_single(batch, reason, message)
        self._binding.on_settled()

    async def enqueue(self, lane: Lane, record: bytes, wait_timeout: float) -> None:
        """Enqueue a record. With a spool, wait until it is on disk.

        Args:
            lane: lane of the record.
            record: the encoded record.
            wait_timeout: seconds to wait for room under `Overflow.WAIT`.

        Raises:
            ClientClosedError: if the client is closed, or bound to another loop that is still running.
            QueueFullError: if the record does not fit, and the overflow policy raises or `wait_timeout` ran out.
            SpoolError: if the spool could not write the record.
        """
        self.bind_loop()
        commits: list[CommitGroup] | None = None if self._queue.spool is None else []
        if not self._queue.offer(lane, record, commits):
            deadline = self._monotonic() + wait_timeout
            while await self._wait_for_room(len(record), deadline):
                if self._queue.offer(lane, record, commits):
                    break
            else:
                raise self._queue.full()
        if commits:
            await self._wait_committed(commits[0])
        elif self._queue.staging.must_yield(len(record)):
            self._queue.reopen_staging(YIELD_AFTER_BYTES)
            await yield_to_loop()

    async def _wait_for_room(self, size: int, deadline: float) -> bool:
        """Wait until a record of this size may fit. Return False after the deadline."""
        while True:
            progress = self._binding.progress
            if self._queue.closed or not self._queue.is_full(size):
                return True
            left = deadline - self._monotonic()
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
            # Even with nothing to wait for: a caller that flushes in a loop would otherwise block all other tasks, and
            # asyncio would collect cancelled timers, which it removes in a later turn.
            await yield_to_loop()
            await self._wait_for_barrier(barrier, timeout)
        finally:
            self._queue.forget(barrier)
        callbacks = self._queue.callbacks
        if callbacks.is_enabled and not callbacks.is_running_in_callback():
            with anyio.move_on_after(_STOP_TIMEOUT):
                await self._binding.callbacks_done()
        return barrier.result()

    async def _wait_for_barrier(self, barrier: FlushBarrier, timeout: float | None) -> None:
        self._binding.on_work()
        clock = self._monotonic
        deadline = clock() + (self.stall_timeout if timeout is None else timeout)
        left = barrier.pending
        while barrier.pending:
            self._ensure_running()
            progress = self._binding.progress
            if timeout is None and barrier.pending < left:
                left, deadline = barrier.pending, clock() + self.stall_timeout
            # Backoffs are not shortened without limit in a long outage, except for the last flush of a client.
            interval = (
                self._batch_sender.final_probe_interval if self._queue.closed else self._batch_sender.probe_interval
            )
            # Do not wait for an attempt that would begin after the deadline.
            if progress is None or max(self._queue.next_try(interval), clock()) >= deadline:
                return
            self._binding.on_work()
            with anyio.move_on_after(deadline - clock()):
                await progress.wait()

    # Closing

    async def aclose(self, timeout: float) -> FlushResult:
        """See `AsyncMixpanel.aclose`."""
        if self._closed is not None:
            return self._closed
        self.bind_loop()
        self._queue.close()
        for callback in self._on_close:
            callback()
        self._binding.on_settled()
        if self._closer is None or self._closer.is_done:
            from_callback = self._queue.callbacks.is_running_in_callback()
            self._closer = self._binding.spawn(partial(self._close, timeout, from_callback), "mixpanel close")
        # Bounded by its own deadline, so that leaving a cancelled block still delivers.
        closer = self._closer
        with anyio.CancelScope(shield=True):
            await closer.done.wait()
        return await closer.result()

    async def _close(self, timeout: float, from_callback: bool) -> FlushResult:  # noqa: FBT001  passed on
        deadline = self._monotonic() + timeout
        barrier = self._queue.barrier()
        await self._wait_for_barrier(barrier, timeout)
        self._is_stopping = True
        # Awaited calls may still be in flight.
        with anyio.move_on_after(deadline - self._monotonic()):
            for task in [*self._binding.requests]:
                await task.done.wait()
        tasks = [*self._binding.requests, *([self._main] if self._main else [])]
        for task in tasks:
            task.cancel()
        with anyio.move_on_after(_STOP_TIMEOUT):
            for task in tasks:
                await task.done.wait()
        if left := self._queue.abandon():
            _log.warning("closed with %d records undelivered; last error: %s", left, self._queue.requests.last_error)
        await self._close_spool(max(_STOP_TIMEOUT, deadline - self._monotonic()))
        self._binding.on_settled()
        # A callback that closes the client waits for this task.
        if not from_callback:
            with anyio.move_on_after(max(_STOP_TIMEOUT, deadline - self._monotonic())):
                await self._binding.callbacks_done()
            self._binding.cancel_callbacks()
            if unreported := self._queue.callbacks.undelivered():
                _log.warning("closed before %d lost records were reported to on_drop", unreported)
        await self._transport.aclose()
        self._closed = barrier.result()
        return self._closed

    async def _close_spool(self, timeout: float) -> None:
        if self._queue.spool is None:
            return
        close = partial(self._queue.spool.writer.close, timeout)
        if not await run_in_worker(close, anyio.CapacityLimiter(1)):
            _log.warning("the spool did not close within %.1f s", timeout)
        if left := self._queue.pending:
            _log.warning("closed with %d records left in the spool", left)

    def abandon(self) -> None:
        """Stop without waiting for the network, from any thread: the client was dropped without being closed."""
        self._queue.close()
        if self._queue.spool is not None:
            self._queue.spool.writer.close(_STOP_TIMEOUT)
        if self._binding.loop is not None:
            self._binding.loop.call_soon(self._cancel_all)

    def _cancel_all(self) -> None:
        for task in (*self._binding.requests, self._main):
            if task is not None:
                task.cancel()
        self._binding.cancel_callbacks()
