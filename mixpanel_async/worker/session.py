"""Delivery of one worker in one event loop: readers, requests, settlements and heartbeats, until the hand-over."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup

from .._delivery.batch import Batch
from .._delivery.batch_sender import BatchSender
from .._delivery.callbacks import Callbacks
from .._delivery.claimed import ClaimedQueue
from .._delivery.lanes import Idle
from .._model.errors import OutboxError, count_of
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.log_events import log_event
from .._runtime.timers import move_on_after, sleep
from ..outbox.lanes import is_ordered
from ..outbox.protocol import HEARTBEAT_SECONDS, Held, Inbox
from .claims import Claims
from .fence import Fence
from .outage import Outage
from .pauses import Pauses
from .reader import Reader
from .signals import Signals, wait_for

# Seconds for the outbox to take the last settlements and the entries that are given back.
_LAST_STEPS_TIMEOUT: Final = 2.0
# Part by which the workers spread after a shared pause.
_PAUSE_JITTER: Final = 0.25


class OutboxState:
    """Latest answer of the outbox.

    Attributes:
        held: answer to the last heartbeat; None before the first.
        losses: times that the queue or a part of it was found removed, in all runs.
        lost_records: records lost with these, as far as their number is known.
    """

    def __init__(self) -> None:
        self.held: Held | None = None
        self.losses = self.lost_records = 0

    def update(self, held: Held) -> None:
        """Note the answer to a heartbeat."""
        self.held = held
        self.losses += held.losses
        self.lost_records += held.lost_records


class Session:
    """Runs the tasks of a worker.

    Args:
        inbox: the outbox.
        queue: claimed records.
        batch_sender: sends one batch and settles it.
        claims: entries of the records.
        fence: whether requests may begin.
        outage: failures of the outbox.
        signals: changes of the queue.
        callbacks: the user's callbacks.
        readers: one for each kind of records.
        lanes: names of all lanes that the worker serves.
        pauses: pauses that are to be shared with other workers.
        environment: clocks and randomness.
        shutdown_timeout: seconds for requests in flight to end when the worker stops.
        state: answers of the outbox.
    """

    def __init__(
        self,
        inbox: Inbox,
        queue: ClaimedQueue,
        batch_sender: BatchSender,
        *,
        claims: Claims,
        fence: Fence,
        outage: Outage,
        signals: Signals,
        callbacks: Callbacks,
        readers: Collection[Reader],
        lanes: Collection[str],
        pauses: Pauses,
        environment: Environment,
        shutdown_timeout: float,
        state: OutboxState,
    ) -> None:
        self._inbox = inbox
        self._queue = queue
        self._batch_sender = batch_sender
        self._claims = claims
        self._fence = fence
        self._outage = outage
        self._signals = signals
        self._callbacks = callbacks
        self._readers = readers
        self._ordered = frozenset(filter(is_ordered, lanes))
        self._environment = environment
        self._monotonic = environment.monotonic
        self._shutdown_timeout = shutdown_timeout
        self._stop = anyio.Event()
        self._requests = 0
        self._reading = 0
        self._is_reporting = False
        self._pauses = pauses
        self._has_seen_newer = False
        self._error: Exception | None = None
        self._state = state

    def stop(self) -> None:
        """Hand over: claim nothing more, let requests in flight end, and give the other entries back."""
        self._stop.set()

    async def run(self, loop: EventLoop, *, until_empty: bool) -> bool:
        """Deliver until `stop` is called, or until nothing is left.

        Args:
            loop: the running event loop.
            until_empty: end when the outbox has no entry for this worker.

        Returns:
            Whether nothing is left, as the worker was not stopped before.

        Raises:
            Exception: an error that is not one of the outbox or of Mixpanel.
        """
        self._signals.bind_loop()
        self._batch_sender.bind_loop()
        try:
            async with anyio.create_task_group() as tasks:
                for work in (self._beat, self._settle, self._share_pauses, self._report):
                    tasks.start_soon(self._guard, work)
                await self._feed(tasks, loop, until_empty=until_empty)
                await self._wait_for_requests()
                await self._wait_for_callbacks()
                tasks.cancel_scope.cancel()
        finally:
            # Also if this task was cancelled: ended entries must not be sent again.
            with anyio.CancelScope(shield=True):
                await self._hand_over(is_drained=until_empty and not self._stop.is_set())
        if self._error is not None:
            raise self._error
        return not self._stop.is_set()

    async def _feed(self, tasks: TaskGroup, loop: EventLoop, *, until_empty: bool) -> None:
        """Claim and send until the worker is stopped, or until nothing is left."""
        self._reading = len(self._readers)
        async with anyio.create_task_group() as feeders:
            feeders.start_soon(self._cancel_when_stopped, feeders.cancel_scope)
            for reader in self._readers:
                feeders.start_soon(self._guard, partial(self._read, reader, until_empty=until_empty))
            await self._guard(partial(self._dispatch, tasks, loop))
            feeders.cancel_scope.cancel()

    async def _cancel_when_stopped(self, scope: anyio.CancelScope) -> None:
        await self._stop.wait()
        scope.cancel()

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Stop the worker if one of its tasks fails."""
        try:
            await work()
        except Exception as error:  # noqa: BLE001  raised again by `run`
            self._error = self._error or error
            self.stop()

    # Claim and send

    async def _read(self, reader: Reader, *, until_empty: bool) -> None:
        await reader.run(until_empty=until_empty)
        self._reading -= 1
        self._signals.notify()

    async def _dispatch(self, tasks: TaskGroup, loop: EventLoop) -> None:
        """Start a request for each batch that may be sent."""
        while self._reading or not self._claims.is_empty:
            changed = self._signals.changed
            if self._claims.has_gone:
                self._queue.withdraw(self._claims.is_gone)
            if not self._fence.is_open:
                await wait_for(changed, None)
                continue
            step = self._queue.poll()
            if isinstance(step, Batch):
                self._requests += 1
                tasks.start_soon(self._send, step, loop)
            else:
                await wait_for(changed, None if isinstance(step, Idle) else max(0.0, step.at - self._monotonic()))

    async def _send(self, batch: Batch, loop: EventLoop) -> None:
        try:
            # An error has been logged, and the records wait for the next attempt.
            with suppress(Exception):
                await self._batch_sender.send(batch, loop)
        finally:
            self._batch_sender.settle_unsent(batch)
            self._requests -= 1
            self._signals.notify()

    async def _wait_for_requests(self) -> None:
        with move_on_after(self._shutdown_timeout):
            while self._requests:
                await wait_for(self._signals.changed, None)

    # Outbox

    async def _beat(self) -> None:
        """Renew the worker and its leases."""
        while True:
            began = self._monotonic()
            try:
                held = await self._inbox.heartbeat()
            except OutboxError as error:
                await self._outage.wait("heartbeat", error)
                continue
            self._outage.ended("heartbeat")
            self._fence.renew(began)
            self._apply(held)
            await sleep(HEARTBEAT_SECONDS)

    def _apply(self, held: Held) -> None:
        self._state.update(held)
        self._claims.note_erased(held.erased)
        self._claims.lose(held.gone)
        self._claims.lose_other_lanes(held.lanes, self._ordered)
        for path, seconds in held.pauses.items():
            # Workers that begin again at the same moment would meet the same limit together.
            jitter = 1.0 + _PAUSE_JITTER * self._environment.random()
            self._queue.hold(self._pauses.kinds_of(path), seconds * jitter)
        if held.newer and not self._has_seen_newer:
            self._has_seen_newer = True
            text = "%s in the outbox from a newer version of this package; update the workers before the producers"
            entries = count_of(held.newer, "entry waits", "entries wait")
            log_event(logging.ERROR, "outbox_newer", text, entries, entries=held.newer)
        self._signals.notify()

    async def _settle(self) -> None:
        """Tell the outbox which entries have ended."""
        while True:
            changed = self._signals.changed
            if not await self._settle_ended():
                await wait_for(changed, None)

    async def _settle_ended(self) -> bool:
        """Settle the ended entries. Return whether there was anything."""
        settlement = self._claims.take_ended()
        if not settlement.ended:
            return False
        try:
            await self._inbox.settle(settlement.ended, settlement.dead)
        except BaseException as error:
            # To settle an entry twice does no harm.
            self._claims.put_back(settlement)
            if not isinstance(error, OutboxError):
                raise
            await self._outage.wait("settle", error)
            return True
        self._outage.ended("settle")
        self._signals.notify()
        return True

    async def _share_pauses(self) -> None:
        """Let all workers pause after Mixpanel has asked one of them to."""
        while True:
            changed = self._signals.changed
            pauses = self._pauses.take()
            try:
                for path, seconds in pauses.items():
                    await self._inbox.pause(path, seconds)
            except OutboxError as error:
                # The other workers find out themselves.
                await self._outage.wait("pause", error)
            else:
                self._outage.ended("pause")
            if not pauses:
                await wait_for(changed, None)

    # Reports

    async def _report(self) -> None:
        """Run the user's callbacks."""
        while True:
            await self._signals.reports()
            self._is_reporting = True
            await self._callbacks.run()
            self._is_reporting = False
            self._signals.notify()

    async def _wait_for_callbacks(self) -> None:
        """Let the user's callbacks report everything: one that is cut off is not called again."""
        with move_on_after(_LAST_STEPS_TIMEOUT):
            while self._is_reporting or not self._callbacks.idle:
                await wait_for(self._signals.changed, None)

    async def _hand_over(self, *, is_drained: bool) -> None:
        self._fence.close()
        error = "no answer"
        with move_on_after(_LAST_STEPS_TIMEOUT):
            try:
                settlement = self._claims.take_ended()
                await self._inbox.settle(settlement.ended, settlement.dead)
                if is_drained:
                    # The statistics then show what the others have.
                    self._state.update(await self._inbox.heartbeat())
                await self._inbox.release(self._claims.take_not_begun())
                error = ""
            except OutboxError as raised:
                error = str(raised)
        if error:
            text = "the outbox was not told that this worker ends (%s); other workers take over after 15 s"
            log_event(logging.WARNING, "outbox_not_released", text, error, error=error)
        # A later run reads them again if they are still its own.
        self._claims.lose_all()
        self._queue.withdraw(self._claims.is_gone)
        self._queue.log_last_losses()
