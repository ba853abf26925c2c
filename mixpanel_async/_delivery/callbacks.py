"""Callbacks of the user: called in order, in a thread if they are plain functions. Their errors are only logged.

A callback that tracks records may cause its own next call: `on_drop` while the queue is full, or `on_delivered`. The
calls of such a callback are spaced out, so that they do not use a whole core.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextvars import Context
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final, TypeVar

import anyio

from .._encoding.records import payload_of
from .._model.errors import raise_configuration_error
from .._model.records import DropReason, Loss, RecordKind, RefusedRecord
from .._model.stats import Delivery, LostRecord
from .._runtime.log_events import log_event
from .._runtime.threads import run_in_worker, start_daemon_thread, wait_for
from .._runtime.timers import move_on_after, sleep
from .staging import IN_CALLBACK

T = TypeVar("T")
OnDrop = Callable[[list[LostRecord], DropReason], Awaitable[None] | None]
"""Callback that receives lost records and the reason."""
OnDelivered = Callable[[Delivery], Awaitable[None] | None]
"""Callback that receives each request that Mixpanel accepted."""

# Bytes of payload kept for a slow `on_drop`. Beyond them only the number of lost records is kept.
_MAX_KEPT_BYTES: Final = 16 * 1024 * 1024
# Seconds between two calls of a callback that tracks records. They double with each call.
_MIN_PAUSE: Final = 0.05
_MAX_PAUSE: Final = 1.0
# Seconds if further deliveries wait, which other records have caused. Losses that wait share a call.
_BUSY_PAUSE: Final = 0.01
# Seconds before the next attempt if the process can start no thread.
_NO_THREAD_PAUSE: Final = 0.1
# Memory of a kept record in addition to its payload.
_RECORD_OVERHEAD: Final = 64


class Callbacks:
    """Losses and deliveries that have not been reported to the user yet.

    Args:
        on_drop: called with records that ended without delivery.
        on_delivered: called for each request that Mixpanel accepted.

    Raises:
        ConfigurationError: if one of them is not callable.

    Attributes:
        is_enabled: there is at least one callback.
        wants_deliveries: there is an `on_delivered`.
    """

    def __init__(self, on_drop: OnDrop | None, on_delivered: OnDelivered | None) -> None:
        for name, callback in (("on_drop", on_drop), ("on_delivered", on_delivered)):
            if callback is not None and not callable(callback):
                raise_configuration_error(f"{name} must be callable, not {type(callback).__name__}")
        self._on_drop = on_drop
        self._on_delivered = on_delivered
        self.wants_deliveries = on_delivered is not None
        self.is_enabled = self.wants_deliveries or on_drop is not None
        self._pending: deque[Loss | Delivery] = deque()
        self._lock = threading.RLock()
        # Losses whose records were not kept, by kind and reason.
        self._counted: dict[tuple[RecordKind, DropReason], Loss] = {}
        self._kept_bytes = 0
        self._has_failed = False
        self._task: int | None = None
        self._is_reporting_losses = False
        self._thread: int | None = None
        # A callback of an event loop that has ended may still run.
        self._call_lock = threading.Lock()
        self._has_tracked = False
        self._pause = 0.0
        self._hurried: anyio.Event | None = None
        self._is_hurried = False

    def reset_after_fork(self) -> None:
        """Forget the reports of the parent process."""
        self._pending.clear()
        self._counted.clear()
        self._lock, self._call_lock = threading.RLock(), threading.Lock()
        self._kept_bytes, self._task = 0, None

    def enqueue_losses(self, losses: Sequence[Loss]) -> bool:
        """Add losses, from any thread.

        Losses of records that `on_drop` tracks itself are not reported: it would be called without end.

        Returns:
            Whether there is something for `run` to report.
        """
        if self._on_drop is None or not losses or (self._is_reporting_losses and self._is_in_on_drop()):
            return False
        with self._lock:
            for loss in losses:
                self._append(loss)
        return True

    def _append(self, loss: Loss) -> None:
        size = _size(loss)
        if self._kept_bytes + size > _MAX_KEPT_BYTES:
            self._count(loss)
            return
        self._kept_bytes += size
        last = self._pending[-1] if self._pending else None
        # An overflow loses records one by one, so similar losses share one call.
        if isinstance(last, Loss) and _can_merge(last, loss):
            last.merge(loss)
            return
        self._pending.append(loss.copy())

    def _count(self, loss: Loss) -> None:
        """Keep only the number of lost records, in one entry for each kind and reason."""
        lost = len(loss.items) + loss.count_only
        counted = self._counted.get((loss.kind, loss.reason))
        if counted is not None:
            counted.merge(Loss(kind=loss.kind, reason=loss.reason, items=(), count_only=lost))
            return
        counted = Loss(kind=loss.kind, reason=loss.reason, items=[], count_only=lost, message=loss.message)
        self._counted[loss.kind, loss.reason] = counted
        self._pending.append(counted)

    def undelivered(self) -> int:
        """Return the number of lost records that have not been reported."""
        with self._lock:
            return sum(len(entry.items) + entry.count_only for entry in self._pending if isinstance(entry, Loss))

    def enqueue_delivery(self, delivery: Delivery) -> bool:
        """Add a delivery. Return whether there is something for `run` to report."""
        if self._on_delivered is None:
            return False
        with self._lock:
            self._pending.append(delivery)
        return True

    @property
    def idle(self) -> bool:
        """Whether nothing is left to report."""
        return not self._pending

    def is_running_in_callback(self) -> bool:
        """Return whether the current task runs a callback, which must not wait for itself."""
        return self._task is not None and self._task == anyio.get_current_task().id

    def _is_in_on_drop(self) -> bool:
        """Return whether the current thread or task runs `on_drop`."""
        if self._thread == threading.get_ident():
            return True
        try:
            return self.is_running_in_callback()
        except RuntimeError:
            # There is no event loop in this thread.
            return False

    def note_tracked(self) -> None:
        """Note that a callback has tracked a record. From any thread."""
        self._has_tracked = True

    def hurry(self) -> None:
        """Make no pauses any more, as the client closes. Call it in the event loop of the client."""
        self._is_hurried = True
        if self._hurried is not None:
            self._hurried.set()

    async def _pause_if_needed(self) -> None:
        if self._pause and not self._is_hurried:
            self._hurried = anyio.Event()
            with move_on_after(self._pause):
                await self._hurried.wait()

    def _set_pause(self, *, is_loss: bool) -> None:
        """Set the pause before the next call."""
        if not self._has_tracked:
            self._pause = 0.0
        elif is_loss or len(self._pending) <= 1:
            # The one that waits may be the callback's own, if it has flushed.
            self._pause = min(_MAX_PAUSE, max(_MIN_PAUSE, 2 * self._pause))
        else:
            self._pause = _BUSY_PAUSE

    async def run(self) -> None:
        """Report everything, in order."""
        self._task = anyio.get_current_task().id
        try:
            await self._run()
        finally:
            self._task = None

    async def _run(self) -> None:
        while self._pending:
            await self._pause_if_needed()
            with self._lock:
                if not self._pending:
                    return
                entry = self._pending.popleft()
                if isinstance(entry, Loss):
                    self._kept_bytes -= _size(entry)
                    if self._counted.get((entry.kind, entry.reason)) is entry:
                        del self._counted[entry.kind, entry.reason]
            self._has_tracked = False
            if isinstance(entry, Loss):
                assert self._on_drop is not None
                try:
                    records = await run_in_worker(
                        partial(_records, entry), "mixpanel callback", anyio.CapacityLimiter(1)
                    )
                except BaseException as error:
                    if not isinstance(error, Exception):
                        # The event loop ends. The next one, or the end of the client, reports it.
                        with self._lock:
                            self._pending.appendleft(entry)
                            self._kept_bytes += _size(entry)
                    raise
                self._is_reporting_losses = True
                try:
                    await self._call("on_drop", self._on_drop, records, entry.reason)
                finally:
                    self._is_reporting_losses = False
            elif self._on_delivered is not None:
                await self._call("on_delivered", self._on_delivered, entry)
            self._set_pause(is_loss=isinstance(entry, Loss))

    async def _call(self, name: str, callback: Callable[..., Any], *args: object) -> None:
        try:
            if iscoroutinefunction(callback) or iscoroutinefunction(getattr(callback, "__call__", None)):  # noqa: B004
                await self._await(callback(*args))
                return
            guarded = partial(self._guarded, callback, *args)
            result = await _in_thread(guarded)
            if isinstance(result, BaseException):
                self._report(name, result)
            elif isawaitable(result):
                await self._await(result)
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  a callback must not end the program
            self._report(name, error)

    async def _await(self, result: Awaitable[Any]) -> None:
        token = IN_CALLBACK.set(True)
        try:
            await result
        finally:
            IN_CALLBACK.reset(token)

    def _guarded(self, callback: Callable[..., Any], *args: object) -> Any:
        """Call a callback in an empty context while holding the lock. Return its result or its exception."""
        context = Context()
        context.run(IN_CALLBACK.set, True)  # noqa: FBT003  the value of a variable
        try:
            with self._call_lock:
                self._thread = threading.get_ident()
                try:
                    return context.run(callback, *args)
                finally:
                    self._thread = None
        except BaseException as error:  # noqa: BLE001
            return error

    def _report(self, name: str, error: BaseException) -> None:
        # Once per client: a callback that fails usually fails every time.
        if not self._has_failed:
            self._has_failed = True
            text, cause = "%s raised %s; later failures of callbacks are not logged", type(error).__name__
            log_event(logging.ERROR, "callback_failed", text, name, cause, callback=name, error=cause)


async def _in_thread(work: Callable[[], T]) -> T:
    """Run a function that may never return in a daemon thread, as soon as the process can start one."""
    while (future := _start(work)) is None:
        await sleep(_NO_THREAD_PAUSE)
    return await wait_for(future)


def _start(work: Callable[[], T]) -> Future[T] | None:
    try:
        return start_daemon_thread(work, "mixpanel callback")
    except RuntimeError:
        return None


def _size(loss: Loss) -> int:
    return sum(map(len, loss.items)) + _RECORD_OVERHEAD * len(loss.items)


def _can_merge(one: Loss, other: Loss) -> bool:
    same = (one.kind, one.reason, one.message) == (other.kind, other.reason, other.message)
    return same and not (one.details or other.details)


def _records(loss: Loss) -> list[LostRecord]:
    details = dict(enumerate(loss.details)) if len(loss.details) == len(loss.items) else {}
    records = []
    for at, item in enumerate(loss.items):
        detail = details.get(at)
        field, message = (detail.field, detail.message) if detail else ("", loss.message)
        if isinstance(item, RefusedRecord):
            field, message = item.read()
        records.append(LostRecord(kind=loss.kind.value, payload=payload_of(item), field=field, message=message))
    # These records are equal, so one object represents all of them.
    counted = LostRecord(kind=loss.kind.value, payload=None, message=loss.message)
    return records + [counted] * loss.count_only
