"""Background tasks of a client: they take batches from the queue, send them and report the outcome.

A client runs in one event loop at a time. Callers in other event loops have their requests made there. When that event
loop ends, the client delivers what it holds and lets go, and the next caller's event loop takes over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from .._model.errors import ClientClosedError, QueueFullError, TransportError
from .._model.records import DropReason
from .._runtime.environment import Environment
from .._runtime.event_loop import BackgroundTask, EventLoop, cancel_tasks, current_loop, yield_to_loop
from .._runtime.remote_call import RemoteCall
from .batch import Batch, Confirmation
from .lanes import Idle, Lane
from .log import log_loop_ended
from .staging import YIELD_AFTER_BYTES
from .waiting import wait_confirmed, wait_for_room

if TYPE_CHECKING:
    from .batch_sender import BatchSender
    from .destination import Connections
    from .intake import Commit
    from .loop_binding import LoopBinding
    from .queue import Queue

T = TypeVar("T")
ClosePool = Callable[[], Awaitable[None]]

# Seconds without a turn after which another event loop takes over from the client's event loop.
_UNRESPONSIVE_AFTER: Final = 0.5
# Seconds after a failed delivery at the end of an event loop in which the one at exit takes less time.
_GAVE_UP_RECENTLY: Final = 10.0
_NO_LOOP: Final = "no event loop is running; call this inside asyncio or trio"
# Seconds for cancelled tasks, and for callbacks, when the event loop ends.
_LAST_STEPS_TIMEOUT: Final = 1.0


def _nothing() -> None:
    return None


class Sender:
    """Runs the background tasks of a client in one event loop, and makes requests there for callers in any other.

    Args:
        queue: waiting records.
        binding: event loop of the client.
        connections: connections for batches and awaited calls.
        batch_sender: sends one batch.
        environment: clocks.
        loop_end_timeout: seconds to deliver waiting records when the event loop ends.
    """

    def __init__(
        self,
        queue: Queue,
        binding: LoopBinding,
        *,
        connections: Connections,
        batch_sender: BatchSender,
        environment: Environment,
        loop_end_timeout: float,
    ) -> None:
        self._queue = queue
        self._binding = binding
        self._connections = connections
        self._batch_sender = batch_sender
        self._monotonic = environment.monotonic
        self._loop_end_timeout = loop_end_timeout
        self._main: BackgroundTask[None] | None = None
        # The client is about to be closed; it is closed; it was garbage-collected.
        self._is_stopping = self._is_finished = self._is_dropped = False
        self._gave_up_at = -inf
        # Bytes from callers in other event loops since one of them let its other tasks run.
        self._bytes_from_others = 0
        self._on_start: list[Callable[[], None]] = []
        self._on_close: list[Callable[[], None]] = []

    def subscribe(self, on_start: Callable[[], None], on_close: Callable[[], None]) -> None:
        """Add functions that are called in the event loop of the client.

        Args:
            on_start: called whenever the sender starts in an event loop.
            on_close: called when the client begins to close.
        """
        self._on_start.append(on_start)
        self._on_close.append(on_close)

    # Event loop

    def has_just_given_up(self) -> bool:
        """Return whether the last event loop has just ended without delivering everything."""
        return self._monotonic() - self._gave_up_at < _GAVE_UP_RECENTLY

    @property
    def loop(self) -> EventLoop | None:
        """Event loop of the client; None if it runs in none."""
        return self._binding.loop

    def attach(self) -> bool:
        """Bind the client to the caller's event loop, unless it runs in another one.

        Returns:
            Whether the caller runs in the event loop of the client. False also if it runs in no event loop.
        """
        loop = self._binding.loop
        if loop is not None and self._queue.staging.fork_marker.is_current and loop.is_current():
            if self._main is None or self._main.is_done:
                self._start_main()
            return True
        self._queue.check_fork()
        loop = self._binding.loop
        if loop is not None and not loop.is_over():
            # The caller runs in another event loop or thread. `_bind` would find the same, with a lock.
            return False
        here = current_loop()
        return here is not None and self._bind(here)

    def attach_if_idle(self) -> bool:
        """Bind the client to the caller's event loop, if the client runs in none.

        Returns:
            Whether the client runs in an event loop.
        """
        loop = self._binding.loop
        return (loop is not None and not loop.is_over()) or self.attach()

    def _bind(self, here: EventLoop, *, instead_of: EventLoop | None = None) -> bool:
        """Bind to the running event loop if the client is free. `instead_of` does not count as running."""
        with self._binding.lock:
            loop = self._binding.loop
            if loop is not None and loop.is_same(here):
                return True
            if self._is_finished or (loop is not None and loop is not instead_of and not loop.is_over()):
                return False
            if loop is not None:
                self._binding.abandon()
                self._queue.reclaim()
            try:
                self._begin_in(here)
            except BaseException:  # raised by a signal handler; the next call binds again
                self._binding.release()
                raise
            return True

    def _begin_in(self, here: EventLoop) -> None:
        self._binding.bind(here)
        self._connections.bind_loop(here)
        self._batch_sender.bind_loop()
        self._is_stopping = False
        self._main = None
        here.on_end(partial(self._end_in, here))
        self._start_main()

    def _start_main(self) -> None:
        """Start the main task, also if something has cancelled every task of the event loop."""
        loop = self._binding.loop
        if self._is_stopping or self._binding.is_ending or loop is None:
            return
        self._main = self._binding.spawn(self._run, "mixpanel sender", on_end=self._main_ended)
        self._queue.staging.bind_loop(loop.current)
        for callback in self._on_start:
            callback()
        if not self._queue.callbacks.idle:
            self._binding.on_delivery()

    def _main_ended(self, task: BackgroundTask[Any]) -> None:
        if task is self._main:
            self._queue.staging.unbind_loop()
            self._binding.on_settled()
            loop = self._binding.loop
            if self._queue.pending and not self._is_stopping and loop is not None and not loop.keeps_tasks:
                # The app has cancelled every task. If the event loop goes on, no call may follow for a long time.
                loop.call_soon(self._restart)

    def _restart(self) -> None:
        if self._main is not None and self._main.is_done:
            self._start_main()

    async def open(self) -> None:
        """Bind to the running event loop unless the client runs in another one, and prepare the connection pool."""
        if self._queue.closed:
            raise ClientClosedError("the client is closed and cannot be started again; create a new client")
        if self.attach():
            await self._connections.open()
        elif current_loop() is None:
            raise ClientClosedError(_NO_LOOP)
        if self._queue.spool is not None:
            await self._queue.spool.wait_committed(self._queue.spool.writer.start(), self._loop_of_caller())

    async def _run(self) -> None:
        loop = self._binding.loop
        while self._binding.loop is loop and not self._is_stopping:
            self._binding.reset_wakeup()
            step = self._queue.dispatch(self._spawn_batch)
            if step is not None:
                delay = None if isinstance(step, Idle) else max(0.0, step.at - self._monotonic())
                await self._binding.wait_for_work(delay)

    def _spawn_batch(self, batch: Batch) -> None:
        assert self._binding.loop is not None
        send = partial(self._batch_sender.send, batch, self._binding.loop)
        # The last function is called also if the task cannot settle the batch, because a signal handler raises.
        settle = partial(self._batch_sender.settle_unsent, batch)
        self._binding.spawn_request(send, "mixpanel request", _nothing, on_end=settle)

    # End

    async def _end_in(self, loop: EventLoop) -> None:
        """Deliver what waits and release the event loop, which has cancelled its tasks and ends after this call."""
        if self._binding.loop is not loop or self._is_finished:
            return
        requests = self._binding.begin_end()
        self._queue.staging.unbind_loop()
        if self._main is not None:
            self._main.cancel()
        close_pool = None
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(self._loop_end_timeout):
                    close_pool = await self._deliver_last(loop)
            finally:
                close_pool = close_pool or self._queue.run_locked(partial(self._let_go, loop))
            if left := self._queue.pending:
                self._gave_up_at = self._monotonic()
                fate = None if self._queue.spool is None else self._queue.spool.fate(left)
                log_loop_ended(left, fate, self._queue.requests.last_error, is_dropped=self._is_dropped)
            if self._is_dropped:
                self._queue.end(_LAST_STEPS_TIMEOUT)
            await cancel_tasks(requests, _LAST_STEPS_TIMEOUT)
            with anyio.move_on_after(_LAST_STEPS_TIMEOUT):
                await self._queue.callbacks.run()
            await close_pool()

    async def _deliver_last(self, loop: EventLoop) -> ClosePool | None:
        """Send until the queue is empty and let go then, or return None if no attempt is allowed in time."""
        deadline = self._monotonic() + self._loop_end_timeout
        close_pool: ClosePool | None = None
        async with anyio.create_task_group() as tasks:
            while not (close_pool := self._queue.run_locked(partial(self._let_go_if_empty, loop))):
                self._binding.reset_wakeup()
                self._queue.forget(self._queue.barrier())
                if self._queue.next_try(self._batch_sender.final_probe_interval) >= deadline:
                    break
                step = self._queue.dispatch(lambda batch: tasks.start_soon(self._send_last, batch, loop))
                if step is not None:
                    delay = None if isinstance(step, Idle) else max(0.0, step.at - self._monotonic())
                    await self._binding.wait_for_work(delay)
        return close_pool

    def _let_go_if_empty(self, loop: EventLoop) -> ClosePool | None:
        is_needed = self._queue.pending and self._binding.loop is loop
        return None if is_needed else self._let_go(loop)

    async def _send_last(self, batch: Batch, loop: EventLoop) -> None:
        # An error has been logged, and must not end the delivery of the other batches.
        with suppress(Exception):
            await self._batch_sender.send(batch, loop)

    def _let_go(self, loop: EventLoop) -> ClosePool:
        """Release the event loop. A record that is accepted later finds the client unbound.

        Returns:
            A function that closes the connection pool.
        """
        if self._binding.loop is not loop:
            return _close_nothing
        close_pool = self._connections.detach_pool()
        self._binding.release()
        return close_pool

    def begin_close(self) -> None:
        """Call the functions that were subscribed to the end of the client."""
        for callback in self._on_close:
            callback()

    async def stop(self, timeout: float) -> None:
        """Cancel every task that sends something, as the client closes. Call it in the event loop of the client.

        Args:
            timeout: seconds for these tasks to end.
        """
        self._is_stopping = True
        tasks = [*self._binding.requests, *([self._main] if self._main else [])]
        await cancel_tasks(tasks, timeout)

    def drop(self) -> None:
        """Note that the client was garbage-collected, so that no event loop will follow. From any thread."""
        self._is_dropped = True

    def finish(self) -> None:
        """Note that the client is closed and must not run again."""
        self._is_finished = True
        if self._binding.loop is not None:
            self._binding.loop.forget_end()

    # Calls

    def run_in_loop(self, callback: Callable[[], None]) -> None:
        """Call a function in the event loop of the client: now if the caller runs there, else soon.

        Nothing happens if the client runs in no event loop and the caller neither.
        """
        if self.attach():
            callback()
        elif (loop := self._binding.loop) is not None:
            loop.call_soon(callback)

    def spawn(self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None]) -> BackgroundTask[T]:
        """Run requests in a background task. Call it only in the event loop of the client.

        Raises:
            ClientClosedError: if the client is closed.
        """
        if self._queue.closed:
            raise ClientClosedError("the client is closed")
        return self._binding.spawn_request(work, name, if_unstarted)

    async def request(
        self, work: Callable[[], Awaitable[T]], name: str, if_unstarted: Callable[[], None] = _nothing
    ) -> T:
        """Run requests in a background task of the client, in the context of the caller, and return the result.

        If the event loop of the client ends meanwhile, the requests are made again in the caller's event loop. They
        must be idempotent. A caller that is cancelled does not cancel the task.

        Args:
            work: makes the requests.
            name: name of the task.
            if_unstarted: called if the task was cancelled before its first step.

        Raises:
            ClientClosedError: if the client is closed, or no event loop is running.
            Exception: the error of `work`.
        """
        here, caller_context = current_loop(), copy_context()

        def start(on_end: Callable[[BackgroundTask[Any]], None]) -> BackgroundTask[T]:
            # A context names the async library. A copy, because the task of an earlier attempt may still run in it.
            is_same_library = type(here) is type(self._binding.loop)
            context = caller_context.copy() if is_same_library else Context()
            return self._binding.spawn_request(work, name, if_unstarted, context=context, on_end=on_end)

        while True:
            if self._queue.closed:
                raise ClientClosedError("the client is closed")
            loop = self._binding.loop
            task = await self._run_task(start)
            if task is None:
                continue
            has_moved = loop is not None and loop is not self._binding.loop
            if self._queue.closed or not (task.is_cut or (has_moved and task.has_raised(TransportError))):
                return task.result()

    async def in_loop(self, work: Callable[[], Awaitable[T]], name: str) -> T:
        """Await a coroutine function in the event loop of the client. It is cancelled together with the caller.

        Args:
            work: the function. It may be called again if the event loop of the client ends.
            name: name of the task.

        Raises:
            ClientClosedError: if no event loop is running.
            Exception: the error of `work`.
        """

        def start(on_end: Callable[[BackgroundTask[Any]], None]) -> BackgroundTask[T]:
            return self._binding.spawn(work, name, on_end=on_end)

        while True:
            if self._is_finished or self.attach():
                return await work()
            task = await self._run_task(start, is_bound_to_caller=True)
            if task is not None and not task.is_cut:
                return task.result()

    async def _run_task(
        self,
        start: Callable[[Callable[[BackgroundTask[Any]], None]], BackgroundTask[T]],
        *,
        is_bound_to_caller: bool = False,
    ) -> BackgroundTask[T] | None:
        """Start a task in the event loop of the client and wait until it has ended.

        Returns:
            The task; None if that event loop does not respond, and the caller's event loop has taken over.
        """
        if self.attach():
            task = start(_ignore)
            await task.done.wait()
            return task
        here, loop = current_loop(), self._binding.loop
        if here is None:
            raise ClientClosedError(_NO_LOOP)
        if loop is None:
            return None
        call = RemoteCall(loop, here, start)
        if await call.begin(_UNRESPONSIVE_AFTER):
            try:
                await call.wait()
            except BaseException:
                if is_bound_to_caller:
                    call.cancel()
                raise
            return call.task
        self._bind(here, instead_of=loop)
        return None

    # Queueing

    async def enqueue(self, lane: Lane, record: bytes, wait_timeout: float, *, must_fit: bool = False) -> None:
        """Enqueue a record. With a spool, wait until it is on disk; with an outbox that confirms, until that has it.

        Args:
            lane: lane of the record.
            record: the encoded record.
            wait_timeout: seconds to wait for room under `Overflow.WAIT`.
            must_fit: raise where the overflow policy would drop this record.

        Raises:
            ClientClosedError: if the client is closed.
            QueueFullError: if the record does not fit, and the overflow policy raises or `wait_timeout` ran out.
            SpoolError: if the spool could not write the record.
            OutboxError: if the outbox confirms records, and has not taken this one in time.
        """
        is_own_loop = self.attach()
        commits: list[Commit] | None = [] if self._queue.has_commits else None
        deadline = self._monotonic() + wait_timeout
        if not self._queue.offer(lane, record, commits, must_fit=must_fit):
            wait = partial(wait_for_room, self._queue, self._binding, self._monotonic, len(record), deadline)
            while await self.in_loop(wait, "mixpanel overflow"):
                if self._queue.offer(lane, record, commits):
                    break
            else:
                raise self._queue.full()
        if not is_own_loop:
            # The event loop of the client may have ended before the record was accepted.
            self.attach_if_idle()
        if commits:
            # Another event loop may have taken over while this call waited for room.
            await self._commit(commits[0], self._loop_of_caller(), lane, record, deadline)
        elif is_own_loop and self._queue.staging.must_yield(len(record)):
            self._queue.reopen_staging(YIELD_AFTER_BYTES)
            await yield_to_loop()
        elif not is_own_loop:
            self._bytes_from_others += len(record)
            # Without an event loop there is nothing to yield to.
            if self._bytes_from_others >= YIELD_AFTER_BYTES and current_loop() is not None:
                self._bytes_from_others = 0
                await yield_to_loop()

    async def _commit(self, commit: Commit, loop: EventLoop, lane: Lane, record: bytes, deadline: float) -> None:
        """Wait until a record is on disk, or in the outbox. If the disk has no room, apply the overflow policy."""
        if isinstance(commit, Confirmation):
            return await wait_confirmed(commit, loop, self._queue.confirm_timeout)
        assert self._queue.spool is not None
        try:
            return await self._queue.spool.wait_committed(commit, loop)
        except QueueFullError:
            if not self._queue.waits or self._monotonic() >= deadline:
                raise
        return await self.enqueue(lane, record, deadline - self._monotonic())

    def _loop_of_caller(self) -> EventLoop:
        """Return the event loop in which the caller waits for a commit or a confirmation."""
        loop = self._binding.loop
        if loop is None or not loop.is_current():
            loop = current_loop()
        if loop is None:
            raise ClientClosedError(_NO_LOOP)
        return loop

    def settle_single(self, batch: Batch, reason: DropReason | None, message: str) -> None:
        """End a lease made by `Queue.lease_single`."""
        self._queue.settle_single(batch, reason, message)
        self._binding.on_settled()

    def requeue_single(self, batch: Batch) -> None:
        """End a lease made by `Queue.lease_single` without an outcome. Its record waits for the next batch."""
        self._queue.requeue_single(batch)
        self._binding.on_settled()


def _ignore(_: BackgroundTask[Any]) -> None:
    return None


async def _close_nothing() -> None:
    return None
