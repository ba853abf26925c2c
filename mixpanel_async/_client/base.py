"""What the verbs stand on: a record admitted to the queue, or a message sent and waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._delivery.direct_request import Caller, reason_of
from .._delivery.lanes import Batch, Lane
from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._delivery.staging import YIELD_AFTER_BYTES
from .._encoding.fast_event import UsualEvents, rest_of
from .._encoding.records import Builder, Discarded
from .._model.config import ClientOptions
from .._model.credentials import Secret
from .._model.errors import ClientClosedError, MixpanelException, ValidationError, bare
from .._model.records import DropReason, Kind
from .._runtime.clock import Runtime
from .._runtime.event_loop import let_others_run

if TYPE_CHECKING:
    from .._spool.messages import Group

Properties = Mapping[str, Any]
Meta = Mapping[str, Any] | None


class Core:
    """The parts, and the three things that the verbs do with them.

    Args:
        options: the client's plain options.
        builder: makes records.
        queue: holds them.
        sender: has them sent.
        caller: sends single messages.
        runtime: clocks, chance and ids.
    """

    def __init__(
        self,
        *,
        options: ClientOptions,
        builder: Builder,
        queue: Queue,
        sender: Sender,
        caller: Caller,
        runtime: Runtime,
    ) -> None:
        self._options = options
        self._builder = builder
        self._queue = queue
        self._sender = sender
        self._caller = caller
        self._runtime = runtime
        self._lanes = {kind: queue.lane(kind) for kind in (Kind.EVENTS, Kind.PEOPLE, Kind.GROUPS)}
        # With a service account, imports and events are the same request: they share a lane, and so their batches.
        same = options.credentials is not None and options.by_import
        self._lanes[Kind.IMPORTS] = self._lanes[Kind.EVENTS] if same else queue.lane(Kind.IMPORTS)
        self._events = self._lanes[Kind.EVENTS]
        self._stage = queue.stage
        queue.set_stage(self._events)
        self._usual = UsualEvents("") if builder.usual is None else builder.usual
        self._rest_of = _nothing if builder.usual is None else rest_of
        self._wall = runtime.wall

    def _now(self) -> float:
        """Wall clock in seconds, put right if Mixpanel's answers have shown that it is ahead of theirs.

        Mixpanel overwrites a `time` that lies in its future, and two tries of one event could then differ.
        """
        return self._runtime.wall() - self._stage.seconds_ahead

    async def _update(self, kind: Kind, message: Mapping[str, Any], meta: Meta) -> None:
        lane = self._lanes[kind]
        try:
            item = self._builder.profile(message, meta, now=self._now())
        except Discarded as kept:
            self._queue.discard(lane, kept.record, kept.reason)
        except MixpanelException as error:
            raise bare(error) from None
        except Exception as error:  # noqa: BLE001  a user's types may fail in any way
            failure = unreadable(error)
        else:
            await self._admit(lane, item)
            return
        raise failure

    async def _admit(self, lane: Lane, item: bytes) -> None:
        self._sender.attach()
        tickets: list[Group] | None = None if self._queue.durable is None else []
        if not self._queue.offer(lane, item, tickets):
            deadline = self._runtime.monotonic() + self._options.batching.wait_timeout
            while await self._sender.room(len(item), deadline):
                if self._queue.offer(lane, item, tickets):
                    break
            else:
                raise self._queue.full()
        if tickets:
            await self._sender.landed(tickets[0])
            return
        await self._yielded(item)

    async def _yielded(self, item: bytes) -> None:
        """Let others run, if enough has been done since they last did."""
        stage = self._stage
        stage.until_yield -= stage.weight * len(item)
        if stage.until_yield <= 0:
            await self._give_way()

    async def _give_way(self) -> None:
        self._queue.open_stage(YIELD_AFTER_BYTES)
        await let_others_run()

    async def _awaited(self, kind: Kind, item: bytes, secret: Secret | None = None, batch: Batch | None = None) -> None:
        """Send a message in a task of the package's own, and wait for what becomes of it."""
        is_gone = False

        def conclude(reason: DropReason | None = DropReason.CLOSED, message: str = "") -> None:
            if batch is not None:
                self._sender.conclude(batch, reason, message)

        async def work() -> None:
            reason: DropReason | None = DropReason.CLOSED
            message = ""
            try:
                await self._caller.call(kind, item, secret, lambda: is_gone)
                reason = None
            except Exception as error:
                reason, message = reason_of(error), str(error)
                raise
            finally:
                conclude(reason, message)

        if batch is not None:
            batch.begun = True
        try:
            job = self._sender.spawn(work, f"mixpanel {kind.value}", conclude)
        except ClientClosedError:
            conclude()
            raise
        try:
            await job.result()
        except BaseException:
            is_gone = True
            raise


def _nothing(_: object) -> bytes | None:
    return None


def unreadable(error: Exception) -> ValidationError:
    """For an argument that fails when it is looked at."""
    return ValidationError("arguments", f"cannot be read: looking at them raised {type(error).__name__}")
