"""Flush and end of a client: on request, at garbage collection, and at the exit of the interpreter."""

from __future__ import annotations

import atexit
import logging
import threading
import warnings
import weakref
from concurrent.futures import wait
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Final

import anyio

from .._model.errors import count_of
from .._model.records import DropReason
from .._model.stats import FlushResult
from .._runtime.environment import Environment
from .._runtime.event_loop import BackgroundTask, EventLoop, yield_to_loop
from .._runtime.fork import at_worker_end
from .._runtime.log_events import log_event
from .._runtime.threads import run_in_worker, start_daemon_thread, start_thread_from_finalizer
from .._runtime.timers import move_on_after
from .batch import FlushBarrier

if TYPE_CHECKING:
    from .batch_sender import BatchSender
    from .destination import Connections
    from .loop_binding import LoopBinding
    from .queue import Queue
    from .sender import Sender

# Seconds for cancelled tasks, and for callbacks, to end when the client closes.
_STOP_TIMEOUT: Final = 1.0
# Seconds to deliver at exit if the last event loop has just failed to deliver.
_LAST_ATTEMPT_TIMEOUT: Final = 1.0
# Seconds after which a flush checks its condition without a signal.
_CHECK_EVERY: Final = 1.0
# Seconds after which a client that is still closing says why.
_EXPLAIN_AFTER: Final = 1.0


class Closer:
    """Flushes and closes a client.

    Args:
        queue: waiting records.
        binding: event loop of the client.
        sender: sends the records.
        connections: connections for batches and awaited calls.
        batch_sender: tells when a flush may try again.
        environment: clocks.
        timeout: seconds without progress after which a flush without a timeout ends, and seconds to deliver if the
            client is garbage-collected in a running event loop.
        exit_timeout: seconds to deliver at the exit of the interpreter.
    """

    def __init__(
        self,
        queue: Queue,
        binding: LoopBinding,
        sender: Sender,
        *,
        connections: Connections,
        batch_sender: BatchSender,
        environment: Environment,
        timeout: float,
        exit_timeout: float,
    ) -> None:
        self._queue = queue
        self._binding = binding
        self._sender = sender
        self._connections = connections
        self._batch_sender = batch_sender
        self._monotonic = environment.monotonic
        self._timeout = timeout
        self._exit_timeout = exit_timeout
        self._task: BackgroundTask[FlushResult] | None = None
        self._task_loop: EventLoop | None = None
        self._result: FlushResult | None = None
        self._has_ended = threading.Event()
        binding.subscribe(self._begin_use)

    # Flush

    async def flush(self, timeout: float | None) -> FlushResult:
        """See `AsyncMixpanel.flush`."""
        if self._result is not None:
            await yield_to_loop()
            return FlushResult(0, 0, 0)
        return await self._sender.in_loop(partial(self._flush, timeout), "mixpanel flush")

    async def _flush(self, timeout: float | None) -> FlushResult:
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
        return barrier.result(self._last_error)

    async def _wait_for_barrier(self, barrier: FlushBarrier, timeout: float | None) -> None:
        self._binding.on_work()
        clock = self._monotonic
        deadline = clock() + (self._timeout if timeout is None else timeout)
        left = barrier.pending
        while barrier.pending:
            self._sender.attach()
            progress = self._binding.progress
            if timeout is None and barrier.pending < left:
                left, deadline = barrier.pending, clock() + self._timeout
            # Backoffs are not shortened without limit in a long outage, except for the last flush of a client.
            interval = (
                self._batch_sender.final_probe_interval if self._queue.closed else self._batch_sender.probe_interval
            )
            # Do not wait for an attempt that would begin after the deadline.
            if progress is None or max(self._queue.next_try(interval), clock()) >= deadline:
                return
            self._binding.on_work()
            with move_on_after(min(_CHECK_EVERY, deadline - clock())):
                await progress.wait()
            if self._binding.progress is progress:
                # A signal handler that raises may have cut off the code that wakes the sender or signals progress.
                self._binding.wake()

    # Close

    async def aclose(self, timeout: float) -> FlushResult:
        """See `AsyncMixpanel.aclose`."""
        if self._result is not None:
            return self._result
        return await self._sender.in_loop(partial(self._aclose, timeout), "mixpanel aclose")

    async def _aclose(self, timeout: float) -> FlushResult:
        if self._result is not None:
            return self._result
        self._queue.close()
        self._sender.begin_close()
        self._binding.on_settled()
        if self._task is None or self._task.is_done or self._task_loop is not self._binding.loop:
            from_callback = self._queue.callbacks.is_running_in_callback()
            self._task_loop = self._binding.loop
            self._task = self._binding.spawn(partial(self._close, timeout, from_callback), "mixpanel close")
        # Bounded by its own deadline, so that leaving a cancelled block still delivers.
        task = self._task
        with anyio.CancelScope(shield=True):
            await task.done.wait()
        return task.result()

    async def _close(self, timeout: float, from_callback: bool) -> FlushResult:  # noqa: FBT001  passed on
        deadline = self._monotonic() + timeout
        barrier = self._queue.barrier()
        await self._deliver_last(barrier, timeout)
        # Awaited calls may still be in flight.
        with anyio.move_on_after(deadline - self._monotonic()):
            for task in [*self._binding.requests]:
                await task.done.wait()
        await self._sender.stop(_STOP_TIMEOUT)
        self._queue.abandon()
        await self._close_spool(max(_STOP_TIMEOUT, deadline - self._monotonic()))
        self._binding.on_settled()
        # A callback that closes the client waits for this task.
        self._queue.callbacks.hurry()
        if not from_callback:
            with anyio.move_on_after(max(_STOP_TIMEOUT, deadline - self._monotonic())):
                await self._binding.callbacks_done()
            self._binding.cancel_callbacks()
            if unreported := self._queue.callbacks.undelivered():
                text = "closed before %s reported to on_drop"
                lost = count_of(unreported, "lost record was", "lost records were")
                log_event(logging.WARNING, "losses_not_reported", text, lost, records=unreported)
        await self._connections.aclose()
        self._queue.log_last_losses()
        self._result = barrier.result(self._last_error)
        self._log_end(self._result)
        self._sender.finish()
        self._has_ended.set()
        return self._result

    async def _deliver_last(self, barrier: FlushBarrier, timeout: float) -> None:
        """Wait for the records of a client that closes, and say how long that may take."""
        deadline, records = self._monotonic() + timeout, barrier.pending
        if records:
            text = "closing: %s to be delivered, for up to %.1f s"
            waiting = count_of(records, "record waits", "records wait")
            log_event(logging.INFO, "closing", text, waiting, timeout, records=records, seconds=timeout)
        if timeout > _EXPLAIN_AFTER:
            has_ended = False
            with move_on_after(_EXPLAIN_AFTER):
                await self._wait_for_barrier(barrier, timeout)
                has_ended = True
            if has_ended:
                return
            self._explain(barrier.pending, deadline - self._monotonic())
        await self._wait_for_barrier(barrier, deadline - self._monotonic())

    def _explain(self, records: int, left: float) -> None:
        """Say why the client is still closing.

        Args:
            records: number of waiting records.
            left: seconds until the client gives up.
        """
        if records and left > 0:
            waiting, error = count_of(records, "record still waits", "records still wait"), self._last_error
            log_event(
                logging.WARNING, "closing", "closing: %s, for up to %.1f s; last error: %s",
                waiting, left, error or "none",
                records=records, seconds=round(left, 1), error=error,
            )  # fmt: skip

    @property
    def _last_error(self) -> str | None:
        return self._queue.requests.last_error

    def _log_end(self, result: FlushResult) -> None:
        is_complete = not (result.failed or result.pending)
        if is_complete and not result.delivered:
            return
        level, error = logging.WARNING, self._last_error
        if is_complete:
            level, error = logging.INFO, None
        left = "" if self._queue.spool is None else f", {result.pending} left in the spool"
        text = "closed: %d delivered, %d lost%s; last error: %s"
        log_event(
            level, "closed", text, result.delivered, result.failed, left, error or "none",
            delivered=result.delivered, lost=result.failed, pending=result.pending, error=error,
        )  # fmt: skip

    async def _close_spool(self, timeout: float) -> None:
        if self._queue.spool is None:
            return
        close = partial(self._queue.spool.close, timeout)
        if not await run_in_worker(close, "mixpanel close", anyio.CapacityLimiter(1)):
            text = "the spool did not close within %.1f s; records that were not written to it are lost"
            log_event(logging.WARNING, "spool_not_closed", text, timeout, seconds=timeout)

    # End without `aclose`

    def finish_unclosed(self) -> None:
        """Deliver and close, as the client was garbage-collected or the interpreter exits. Call it from any thread."""
        self._queue.check_fork()
        if self._result is not None:
            return
        pending, lost = self._queue.pending, self._not_written()
        self._queue.close()
        self._sender.drop()
        # The main thread has ended before the functions of `atexit` run.
        is_exit = not threading.main_thread().is_alive()
        loop = self._binding.loop
        if loop is not None and loop.is_running():
            timeout = self._exit_timeout if is_exit else self._timeout
            loop.call_soon(partial(self._binding.spawn, partial(self._aclose, timeout), "mixpanel end"))
            if is_exit and pending:
                self._has_ended.wait(timeout + _STOP_TIMEOUT)
                self._end_spool(is_exit=True)
            elif pending and self._queue.spool is None:
                self._finish_at_exit()
        elif self._queue.spool is not None:
            self._end_spool(is_exit=is_exit)
        elif pending:
            # One more attempt is enough if the last event loop has just waited in vain.
            timeout = min(self._exit_timeout, _LAST_ATTEMPT_TIMEOUT if self._sender.has_just_given_up() else inf)
            self._close_in_thread(timeout, is_exit=is_exit)
            if is_exit:
                self._has_ended.wait(timeout + _STOP_TIMEOUT)
        if pending:
            self._report_unclosed(pending, self._not_written() - lost, is_exit=is_exit)

    def _not_written(self) -> int:
        """Return how many records were lost because the spool could not be written."""
        return self._queue.stats().losses.get(DropReason.SPOOL_FAILED.value, 0)

    def _end_spool(self, *, is_exit: bool) -> None:
        """Close the spool and report the records that could not be written to it."""
        if self._queue.spool is None or self._has_ended.is_set():
            return
        self._queue.spool.close(_STOP_TIMEOUT)
        self._queue.log_last_losses()
        if self._queue.callbacks.idle:
            return
        has_reported = threading.Event()

        def run() -> None:
            try:
                anyio.run(self._queue.callbacks.run)
            finally:
                has_reported.set()

        try:
            start_thread_from_finalizer(run)
        except RuntimeError:
            # The process can start no thread now. A callback that blocks must not hold up its exit.
            return
        if is_exit:
            has_reported.wait(_STOP_TIMEOUT)

    def _finish_at_exit(self) -> None:
        """Deliver at exit, if the event loop is stopped before it has delivered. A Jupyter kernel stops it so."""

        def finish() -> None:
            closer = reference()
            if closer is not None and closer._queue.pending and closer._result is None:
                closer.finish_unclosed()

        reference = weakref.ref(self, lambda _: atexit.unregister(finish))
        atexit.register(finish)

    def _begin_use(self) -> None:
        def finish() -> None:
            if (closer := reference()) is not None:
                closer._finish_worker()

        reference = weakref.ref(self)
        at_worker_end(finish)

    def _finish_worker(self) -> None:
        """Deliver as a worker process of `multiprocessing` ends. The client is not closed: code may still track."""
        self._queue.check_fork()
        if self._result is not None or not self._queue.pending:
            return

        async def deliver() -> None:
            # The end of an event loop delivers, if the client runs in it.
            if not self._sender.attach():
                await self.flush(self._exit_timeout)

        ended = start_daemon_thread(partial(anyio.run, deliver), "mixpanel end")
        wait([ended], self._exit_timeout + _STOP_TIMEOUT)
        if (left := self._queue.pending) and self._queue.spool is None:
            text, error = "a worker process ended before %s delivered; last error: %s", self._last_error
            records = count_of(left, "record was", "records were")
            log_event(logging.WARNING, "not_closed", text, records, error or "none", records=left, error=error)

    def _close_in_thread(self, timeout: float, *, is_exit: bool) -> None:
        wait_at_exit = partial(self._has_ended.wait, timeout)

        def run() -> None:
            try:
                # Try at once, also if the last event loop left a backoff that is longer than the time left.
                self._queue.next_try(0.0)
                anyio.run(self.aclose, timeout)
            finally:
                self._has_ended.set()
                atexit.unregister(wait_at_exit)

        if not is_exit:
            # The interpreter may exit before the thread has ended.
            atexit.register(wait_at_exit)
        try:
            start_thread_from_finalizer(run)
        except RuntimeError:
            # The process can start no thread now. At a collection of garbage, nothing may wait.
            if is_exit:
                run()
            else:
                atexit.unregister(wait_at_exit)
                atexit.register(run)

    def _report_unclosed(self, pending: int, lost: int, *, is_exit: bool) -> None:
        left, spool = self._queue.pending, self._queue.spool
        text = "an AsyncMixpanel was dropped without aclose(); "
        waiting = count_of(pending, "record was waiting", "records were waiting")
        if spool is not None:
            text += f"{count_of(left, 'record')} {spool.fate(left)}"
            if lost:
                text += f"; {count_of(lost, 'is', 'are')} lost, because the spool could not be written"
        elif is_exit and left:
            undelivered = count_of(left, "record was not delivered", "records were not delivered")
            text += undelivered if left == pending else f"{waiting}, and {undelivered}"
        else:
            text += f"{waiting}; {'it is' if pending == 1 else 'they are'} delivered in the background"
        # Python hides a ResourceWarning by default, so the log reports a loss as well.
        if self._queue.spool is not None or (is_exit and left):
            log_event(logging.WARNING, "not_closed", text, records=left, error=self._queue.requests.last_error)
        warnings.warn(text, ResourceWarning, stacklevel=2)
