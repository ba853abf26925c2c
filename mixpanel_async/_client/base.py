"""Base class of the client's methods: the components of the client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from .._encoding.hooks import DroppedByHook
from .._encoding.records import RecordEncoder
from .._model.config import ClientOptions
from .._model.errors import MixpanelException
from .._model.records import Record, RecordKind
from .._runtime.environment import Environment
from .invalid import as_refusal, make_policy

if TYPE_CHECKING:
    from .._delivery.closer import Closer
    from .._delivery.direct_sender import DirectSender
    from .._delivery.lanes import Lane
    from .._delivery.queue import Queue
    from .._delivery.sender import Sender
    from .._delivery.watchdog import Watchdog

Properties = Mapping[str, Any]
"""Properties of an event or profile by name."""
Meta = Mapping[str, Any] | None
"""Fields that are merged into a message, next to `event` or the operation; None for none."""
Outcome = DroppedByHook | MixpanelException
NO_SECRETS_IN_OUTBOX: Final = (
    "is not stored in an outbox; leave it out, and give the workers a service account, which signs all requests"
)


def as_encoded(record: bytes, _second: None, _third: None, _stamp: bytes, _shared: bytes | None) -> bytes:
    """Return a record that is encoded already, as a function for `StagingBuffer.try_append`."""
    return record


def as_outcome(error: Exception) -> Outcome:
    """Return why a record was not encoded, given what its encoder raised."""
    return error if isinstance(error, DroppedByHook) else as_refusal(error)


class ClientBase:
    """Components of the client, which its methods share.

    Args:
        options: plain options of the client.
        encoder: encodes records.
        queue: accepted records.
        sender: sends the records of the queue in background tasks.
        direct_sender: sends requests whose caller waits for the response.
        watchdog: warns if no event loop runs the client.
        closer: flushes and closes.
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
        watchdog: Watchdog,
        closer: Closer,
        environment: Environment,
    ) -> None:
        self._options = options
        self._encoder = encoder
        self._queue = queue
        self._sender = sender
        self._direct_sender = direct_sender
        self._watchdog = watchdog
        self._closer = closer
        self._environment = environment
        self._lanes = {kind: queue.lane(kind) for kind in (RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.GROUPS)}
        # With a service account, events and imports go to the same endpoint. They share a lane, and so their batches.
        # The workers of an outbox may have none.
        is_shared = options.credentials is not None and options.by_import and not options.has_outbox
        self._lanes[RecordKind.IMPORTS] = (
            self._lanes[RecordKind.EVENTS] if is_shared else queue.lane(RecordKind.IMPORTS)
        )
        self._events = self._lanes[RecordKind.EVENTS]
        self._invalid = make_policy(options, queue, self._lanes)
        self._staging = queue.staging
        self._staging.use_environment(environment)
        self._stages = {kind: queue.stage(lane) for kind, lane in self._lanes.items()}
        self._event_stage = self._stages[RecordKind.EVENTS]
        self._encode_usual = encoder.encode_usual

    async def _update(self, kind: RecordKind, message: Mapping[str, Any], meta: Meta) -> None:
        """Encode and enqueue a profile update."""
        if not self._options.enabled:
            return
        lane = self._lanes[kind]
        is_group = kind is RecordKind.GROUPS
        try:
            record = self._encoder.encode_profile(message, meta, now=self._staging.now(), is_group=is_group)
        except Exception as error:  # noqa: BLE001  a user's types may raise anything
            outcome = as_outcome(error)
        else:
            if self._staging.try_append(self._stages[kind], as_encoded, record, None, None) is not True:
                # Error reporters show the variables of frames, but not the content of a `Record`.
                record = record if isinstance(record, Record) else Record(record)
                await self._sender.enqueue(lane, record, self._options.batching.wait_timeout)
            return
        self._end(outcome, lane, kind)

    @property
    def token(self) -> str:
        """Token of the project. Browsers know it too: it is part of the name of the browser SDK's cookie."""
        return self._options.token

    @property
    def api_host(self) -> str:
        """Host to which the client sends, with scheme: `https://api.mixpanel.com` unless an option changes it."""
        return self._options.origin

    def _end(self, outcome: Outcome, lane: Lane, kind: RecordKind) -> None:
        """Count or raise that a record was not encoded. Call it outside of `except`, whose frames hold the token."""
        if isinstance(outcome, DroppedByHook):
            self._queue.discard(lane, outcome.record, outcome.reason)
        else:
            self._invalid.refuse(kind, outcome)
