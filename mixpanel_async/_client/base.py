"""What the verbs stand on: a record admitted to the queue, or a message sent and waited for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._delivery.direct_request import DirectSender
from .._delivery.lanes import Lane
from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._delivery.staging import YIELD_AFTER_BYTES
from .._encoding.fast_event import FastEventEncoder, encode_properties
from .._encoding.records import DroppedByHook, RecordEncoder
from .._model.config import ClientOptions
from .._model.errors import MixpanelException, ValidationError, without_traceback
from .._model.records import RecordKind
from .._runtime.clock import Environment
from .._runtime.event_loop import yield_to_loop

if TYPE_CHECKING:
    from .._spool.messages import CommitGroup

Properties = Mapping[str, Any]
Meta = Mapping[str, Any] | None


class ClientBase:
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
        encoder: RecordEncoder,
        queue: Queue,
        sender: Sender,
        direct_sender: DirectSender,
        environment: Environment,
    ) -> None:
        self._options = options
        self._encoder = encoder
        self._queue = queue
        self._sender = sender
        self._direct_sender = direct_sender
        self._environment = environment
        self._lanes = {kind: queue.lane(kind) for kind in (RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.GROUPS)}
        # With a service account, imports and events are the same request: they share a lane, and so their batches.
        same = options.credentials is not None and options.by_import
        self._lanes[RecordKind.IMPORTS] = self._lanes[RecordKind.EVENTS] if same else queue.lane(RecordKind.IMPORTS)
        self._events = self._lanes[RecordKind.EVENTS]
        self._staging = queue.staging
        queue.enable_staging(self._events)
        self._fast_encoder = FastEventEncoder("") if encoder.fast_encoder is None else encoder.fast_encoder
        self._encode_properties = _nothing if encoder.fast_encoder is None else encode_properties
        self._wall = environment.wall_time

    def _now(self) -> float:
        """Wall clock in seconds, put right if Mixpanel's answers have shown that it is ahead of theirs.

        Mixpanel overwrites a `time` that lies in its future, and two tries of one event could then differ.
        """
        return self._environment.wall_time() - self._staging.clock_offset

    async def _update(self, kind: RecordKind, message: Mapping[str, Any], meta: Meta) -> None:
        lane = self._lanes[kind]
        try:
            item = self._encoder.profile(message, meta, now=self._now())
        except DroppedByHook as kept:
            self._queue.discard(lane, kept.record, kept.reason)
        except MixpanelException as error:
            raise without_traceback(error) from None
        except Exception as error:  # noqa: BLE001  a user's types may fail in any way
            failure = unreadable_arguments(error)
        else:
            await self._enqueue(lane, item)
            return
        raise failure

    async def _enqueue(self, lane: Lane, item: bytes) -> None:
        self._sender.bind_loop()
        tickets: list[CommitGroup] | None = None if self._queue.spool is None else []
        if not self._queue.offer(lane, item, tickets):
            deadline = self._environment.monotonic() + self._options.batching.wait_timeout
            while await self._sender.wait_for_room(len(item), deadline):
                if self._queue.offer(lane, item, tickets):
                    break
            else:
                raise self._queue.full()
        if tickets:
            await self._sender.wait_committed(tickets[0])
            return
        await self._yield_if_due(item)

    async def _yield_if_due(self, item: bytes) -> None:
        """Let others run, if enough has been done since they last did."""
        stage = self._staging
        stage.yield_budget -= stage.cost_factor * len(item)
        if stage.yield_budget <= 0:
            await self._yield()

    async def _yield(self) -> None:
        self._queue.reopen_staging(YIELD_AFTER_BYTES)
        await yield_to_loop()


def _nothing(_: object) -> bytes | None:
    return None


def unreadable_arguments(error: Exception) -> ValidationError:
    """For an argument that fails when it is looked at."""
    return ValidationError("arguments", f"cannot be read: looking at them raised {type(error).__name__}")
