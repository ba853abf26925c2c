"""Construction of a client's pipeline: queue, sender and transport."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from .._delivery.batch_sender import BatchSender
from .._delivery.buffer import Buffer
from .._delivery.callbacks import Callbacks
from .._delivery.closer import Closer
from .._delivery.destination import HttpDestination
from .._delivery.direct_sender import DirectSender
from .._delivery.loop_binding import LoopBinding
from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._delivery.watchdog import Watchdog
from .._encoding.requests import RequestEncoder, fastest_compressor
from .._http.api import Api
from .._http.retry import PolicyRule
from .._http.transport import HttpClient, Transport
from .._model.config import BatchPolicy, ClientOptions
from .._runtime.environment import Environment

if TYPE_CHECKING:
    from .._spool.spool import SqliteSpool

# Connections for awaited calls, in addition to those for batches.
_SPARE_CONNECTIONS: Final = 10


class Pipeline(NamedTuple):
    """Connected parts of a client."""

    queue: Queue
    sender: Sender
    closer: Closer
    watchdog: Watchdog
    direct_sender: DirectSender
    transport: Transport


def max_in_flight(policy: BatchPolicy) -> int:
    """Return the maximum number of batches in flight: events, imports, user and group updates."""
    return 2 * policy.max_in_flight + 2


def build_pipeline(
    options: ClientOptions,
    callbacks: Callbacks,
    spool: SqliteSpool | None,
    http_client: HttpClient | None,
    environment: Environment,
) -> Pipeline:
    """Create and connect the parts. Those of a disabled client send nothing and store nothing.

    Args:
        options: options of the client.
        callbacks: the user's callbacks.
        spool: keeps records on disk; None without one.
        http_client: the user's own HTTP client; None to create one.
        environment: clocks, randomness and ids.

    Raises:
        ConfigurationError: if `spool` is not a `SqliteSpool`, or this system cannot lock files.
    """
    new_compressor, off_loop_from = fastest_compressor()
    encoder = RequestEncoder(
        token=options.token,
        credentials=options.credentials,
        events_by_import=options.by_import,
        new_compressor=new_compressor,
    )
    transport = Transport(
        options.origin,
        timeout=options.timeout,
        http_client=http_client,
        max_connections=max_in_flight(options.batching) + _SPARE_CONNECTIONS,
    )
    binding = LoopBinding(callbacks, transport)
    if spool is None or not options.enabled:
        make_spool = None
        buffer = Buffer(options.batching, options.retry, None, new_compressor, mixes_identity=options.mixes_identity)
    else:
        from .._delivery.spool_bridge import make_bridge, make_buffer  # noqa: PLC0415  only imported with a spool

        buffer = make_buffer(options, spool, new_compressor)
        make_spool = partial(make_bridge, options, spool, buffer, environment)
    queue = Queue(buffer, options.overflow, callbacks, environment.monotonic, binding, make_spool)
    destination = HttpDestination(
        transport, encoder, off_loop_from=off_loop_from, requests=queue.requests, environment=environment
    )
    batch_sender = BatchSender(queue, binding, destination=destination, retry=options.retry, environment=environment)
    sender_class, closer_class, direct_sender_class = _sender_classes(options)
    sender = sender_class(
        queue,
        binding,
        transport=transport,
        batch_sender=batch_sender,
        environment=environment,
        loop_end_timeout=options.loop_end_timeout,
    )
    closer = closer_class(
        queue,
        binding,
        sender,
        transport=transport,
        batch_sender=batch_sender,
        environment=environment,
        timeout=options.shutdown_timeout,
        exit_timeout=options.loop_end_timeout,
    )
    api = Api(transport, environment, queue.requests)
    direct_sender = direct_sender_class(sender, api, encoder, PolicyRule(options.identity_retry))
    return Pipeline(queue, sender, closer, Watchdog(queue, binding), direct_sender, transport)


def _sender_classes(options: ClientOptions) -> tuple[type[Sender], type[Closer], type[DirectSender]]:
    if options.enabled:
        return Sender, Closer, DirectSender
    from .disabled import NullCloser, NullDirectSender, NullSender  # noqa: PLC0415  only imported if used

    return NullSender, NullCloser, NullDirectSender
