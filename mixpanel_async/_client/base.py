"""Base class of the client's methods: the components of the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._encoding.records import DroppedByHook, RecordEncoder
from .._model.config import ClientOptions
from .._model.errors import MixpanelException, ValidationError, without_traceback
from .._model.records import RecordKind
from .._runtime.environment import Environment

if TYPE_CHECKING:
    from .._delivery.direct_sender import DirectSender
    from .._delivery.queue import Queue
    from .._delivery.sender import Sender

Properties = Mapping[str, Any]
Meta = Mapping[str, Any] | None


class ClientBase:
    """Components of the client, which its methods share.

    Args:
        options: plain options of the client.
        encoder: encodes records.
        queue: accepted records.
        sender: sends the records of the queue in background tasks.
        direct_sender: sends requests whose caller waits for the response.
        environment: clocks, random numbers and ids.
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
        # With a service account, events and imports go to the same endpoint. They share a lane, and so their batches.
        is_shared = options.credentials is not None and options.by_import
        self._lanes[RecordKind.IMPORTS] = (
            self._lanes[RecordKind.EVENTS] if is_shared else queue.lane(RecordKind.IMPORTS)
        )
        self._events = self._lanes[RecordKind.EVENTS]
        self._staging = queue.staging
        self._staging.use_encoder(encoder.fast_encoder, environment)
        queue.enable_staging(self._events)

    async def _update(self, kind: RecordKind, message: Mapping[str, Any], meta: Meta) -> None:
        """Encode and enqueue a profile update."""
        lane = self._lanes[kind]
        try:
            record = self._encoder.encode_profile(message, meta, now=self._staging.now())
        except DroppedByHook as dropped:
            self._queue.discard(lane, dropped.record, dropped.reason)
            return
        except MixpanelException as error:
            raise without_traceback(error) from None
        except Exception as error:  # noqa: BLE001  a user's types may raise anything
            failure = unreadable_arguments(error)
        else:
            await self._sender.enqueue(lane, record, self._options.batching.wait_timeout)
            return
        raise failure


def unreadable_arguments(error: Exception) -> ValidationError:
    """Return the error for an argument whose own methods raise."""
    return ValidationError("arguments", f"cannot be read: reading them raised {type(error).__name__}")
