"""Construction of a worker's parts."""

from __future__ import annotations

from collections.abc import Collection

from .._delivery.batch_sender import BatchSender
from .._delivery.callbacks import Callbacks
from .._delivery.claimed import ClaimedBuffer, ClaimedQueue
from .._delivery.destination import HttpDestination
from .._encoding.requests import RequestEncoder, fastest_compressor
from .._http.transport import HttpClient, Transport
from .._model.config import ClientOptions
from .._model.records import RecordKind
from .._runtime.environment import Environment
from ..outbox.lanes import kind_of, lane_names
from ..outbox.protocol import Inbox
from .claims import Claims
from .destination import MarkingDestination
from .fence import Fence
from .outage import Outage
from .pauses import Pauses
from .reader import Reader
from .session import OutboxState, Session
from .signals import Signals

# Kinds of which only one request is in flight.
_ORDERED_KINDS = 3


class Assembly:
    """Parts of a worker that outlive one run.

    Args:
        options: options of its requests.
        callbacks: the user's callbacks.
        http_client: the user's own HTTP client; None to create one.
        environment: clocks and randomness.
    """

    def __init__(
        self, options: ClientOptions, callbacks: Callbacks, http_client: HttpClient | None, environment: Environment
    ) -> None:
        self._options = options
        self._callbacks = callbacks
        self.environment = environment
        new_compressor, self._off_loop_from = fastest_compressor()
        self._encoder = RequestEncoder(
            token=options.token,
            credentials=options.credentials,
            events_by_import=options.by_import,
            new_compressor=new_compressor,
        )
        self.transport = Transport(
            options.origin,
            timeout=options.timeout,
            http_client=http_client,
            max_connections=2 * options.batching.max_in_flight + _ORDERED_KINDS,
        )
        self._signals = Signals()
        self.claims = Claims(options.token, self._signals.notify)
        self.outage = Outage(environment)
        self.state = OutboxState()
        buffer = ClaimedBuffer(options.batching, options.retry, self.claims)
        self.queue = ClaimedQueue(buffer, callbacks, environment.monotonic, self._signals)

    def session(self, inbox: Inbox, kinds: Collection[str] | None) -> Session:
        """Return the tasks of one run with an open connection to the outbox."""
        options, environment = self._options, self.environment
        fence = Fence(environment.monotonic)
        paths = {kind: self._encoder.endpoints[kind].path.partition("?")[0] for kind in RecordKind}
        pauses = Pauses(paths, self._signals.notify)
        mixpanel = HttpDestination(
            self.transport,
            self._encoder,
            off_loop_from=self._off_loop_from,
            requests=self.queue.requests,
            environment=environment,
        )
        destination = MarkingDestination(
            mixpanel,
            inbox,
            self.queue,
            self.claims,
            fence,
            retry=options.retry,
            at_least_once=options.batching.at_least_once,
            pauses=pauses,
        )
        batch_sender = BatchSender(
            self.queue, self._signals, destination=destination, retry=options.retry, environment=environment
        )
        lanes = lane_names(inbox.partitions, kinds)
        readers = [
            self._reader(kind, lanes, inbox, fence) for kind in RecordKind if kinds is None or kind.value in kinds
        ]
        return Session(
            inbox,
            self.queue,
            batch_sender,
            claims=self.claims,
            fence=fence,
            outage=self.outage,
            signals=self._signals,
            callbacks=self._callbacks,
            readers=readers,
            lanes=lanes,
            pauses=pauses,
            environment=environment,
            shutdown_timeout=options.shutdown_timeout,
            state=self.state,
        )

    def _reader(self, kind: RecordKind, lanes: Collection[str], inbox: Inbox, fence: Fence) -> Reader:
        return Reader(
            kind,
            [lane for lane in lanes if kind_of(lane) == kind.value],
            inbox=inbox,
            queue=self.queue,
            claims=self.claims,
            fence=fence,
            outage=self.outage,
            signals=self._signals,
            token=self._options.token,
            batch_records=self._options.batching.max_events,
            environment=self.environment,
        )
