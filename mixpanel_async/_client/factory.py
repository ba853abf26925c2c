"""Construction of a client's pipeline: queue, sender and transport."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._delivery.batch_sender import BatchSender
from .._delivery.buffer import Buffer
from .._delivery.callbacks import Callbacks
from .._delivery.closer import Closer
from .._delivery.destination import Connections, HttpDestination
from .._delivery.direct_sender import DirectSender
from .._delivery.loop_binding import LoopBinding
from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._delivery.watchdog import Watchdog
from .._encoding.batch_body import Compressor
from .._encoding.hooks import BeforeSend, SerializerOption
from .._encoding.records import RecordEncoder
from .._encoding.requests import RequestEncoder, fastest_compressor
from .._http.api import Api
from .._http.retry import PolicyRule
from .._http.transport import HttpClient, Transport
from .._model.config import BatchPolicy, ClientOptions
from .._runtime.environment import Environment, is_memory_limited
from .._runtime.log_events import log_event

if TYPE_CHECKING:
    from .._delivery.listeners import SpoolListener
    from .._delivery.outbox_destination import OutboxDestination, OutboxLink
    from .._delivery.spool_bridge import SpoolBridge
    from .._spool.spool import SqliteSpool
    from ..outbox.protocol import Outbox

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


def build_encoder(
    options: ClientOptions,
    super_properties: Mapping[str, Any] | None,
    serializer: SerializerOption,
    before_send: BeforeSend | None,
) -> RecordEncoder:
    """Create the encoder of records.

    Args:
        options: options of the client.
        super_properties: defaults for the properties of every event.
        serializer: converts values of other types.
        before_send: the user's hook.

    Raises:
        ConfigurationError: if an argument is invalid.
    """
    return RecordEncoder(
        options.token,
        super_properties=super_properties,
        serializer=serializer,
        before_send=before_send,
        recent=options.is_recent_only,
        nesting=options.nesting,
        warn=partial(log_event, logging.WARNING, "property_renamed"),
        is_memory_limited=is_memory_limited(),
    )


def build_pipeline(
    options: ClientOptions,
    callbacks: Callbacks,
    spool: SqliteSpool | None,
    outbox: Outbox | None,
    http_client: HttpClient | None,
    environment: Environment,
) -> Pipeline:
    """Create and connect the parts. Those of a disabled client send nothing and store nothing.

    Args:
        options: options of the client.
        callbacks: the user's callbacks.
        spool: keeps records on disk; None without one.
        outbox: engine that takes the records; None to send them to Mixpanel.
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
    link = None if outbox is None else _make_link(outbox, options, transport, environment)
    connections: Connections = transport if link is None else link
    binding = LoopBinding(callbacks, connections)
    buffer, make_spool = _make_storage(options, spool, None if outbox else new_compressor, environment)
    timeout = options.timeout if options.confirms else None
    queue = Queue(
        buffer, options.overflow, callbacks, environment.monotonic, binding, make_spool, confirm_timeout=timeout
    )
    destination = (
        HttpDestination(
            transport, encoder, off_loop_from=off_loop_from, requests=queue.requests, environment=environment
        )
        if outbox is None or link is None
        else _make_outbox_destination(outbox, link, options, queue, environment)
    )
    batch_sender = BatchSender(queue, binding, destination=destination, retry=options.retry, environment=environment)
    sender_class, closer_class, direct_sender_class = _sender_classes(options)
    sender = sender_class(
        queue,
        binding,
        connections=connections,
        batch_sender=batch_sender,
        environment=environment,
        loop_end_timeout=options.loop_end_timeout,
    )
    closer = closer_class(
        queue,
        binding,
        sender,
        connections=connections,
        batch_sender=batch_sender,
        environment=environment,
        timeout=options.shutdown_timeout,
        exit_timeout=options.loop_end_timeout,
    )
    api = Api(transport, environment, queue.requests)
    direct_sender = direct_sender_class(sender, api, encoder, PolicyRule(options.identity_retry))
    return Pipeline(queue, sender, closer, Watchdog(queue, binding), direct_sender, transport)


def _make_storage(
    options: ClientOptions,
    spool: SqliteSpool | None,
    new_compressor: Callable[[], Compressor] | None,
    environment: Environment,
) -> tuple[Buffer, Callable[[SpoolListener], SpoolBridge] | None]:
    """Return the buffer, and a function that connects it to the spool; None without a spool."""
    if spool is None or not options.enabled:
        mixes_identity = options.mixes_identity
        return Buffer(options.batching, options.retry, None, new_compressor, mixes_identity=mixes_identity), None
    from .._delivery.spool_bridge import make_bridge, make_buffer  # noqa: PLC0415  only imported with a spool

    buffer = make_buffer(options, spool, new_compressor)
    return buffer, partial(make_bridge, options, spool, buffer, environment)


def _make_link(outbox: Outbox, options: ClientOptions, transport: Transport, environment: Environment) -> OutboxLink:
    from .._delivery.outbox_destination import OutboxLink  # noqa: PLC0415  only imported with an outbox

    return OutboxLink(outbox, options.token, transport, environment.new_id)


def _make_outbox_destination(
    outbox: Outbox, link: OutboxLink, options: ClientOptions, queue: Queue, environment: Environment
) -> OutboxDestination:
    from .._delivery.outbox_destination import OutboxDestination  # noqa: PLC0415  only imported with an outbox

    new_compressor, off_loop_from = fastest_compressor()
    return OutboxDestination(
        link,
        options.token,
        new_compressor=new_compressor if outbox.compress else None,
        off_loop_from=off_loop_from,
        at_least_once=options.batching.at_least_once,
        timeout=options.timeout,
        requests=queue.requests,
        environment=environment,
    )


def _sender_classes(options: ClientOptions) -> tuple[type[Sender], type[Closer], type[DirectSender]]:
    if options.enabled:
        return Sender, Closer, DirectSender
    from .disabled import NullCloser, NullDirectSender, NullSender  # noqa: PLC0415  only imported if used

    return NullSender, NullCloser, NullDirectSender
