"""The parts of a client that hold and send, joined to one another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from .._delivery.batch_request import BatchSender
from .._delivery.buffer import Buffer
from .._delivery.callbacks import Callbacks
from .._delivery.direct_request import DirectSender
from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._encoding.requests import RequestEncoder, fastest_compressor
from .._http.api import Api
from .._http.retry import PolicyRule
from .._http.transport import HttpClient, Transport
from .._model.config import BatchPolicy, ClientOptions
from .._runtime.clock import Environment

if TYPE_CHECKING:
    from .._spool.spool import SqliteSpool

# Beside the lanes' own requests, for calls that are awaited.
_SPARE_CONNECTIONS: Final = 10


class Pipeline(NamedTuple):
    queue: Queue
    sender: Sender
    direct_sender: DirectSender
    transport: Transport


def most_in_flight(policy: BatchPolicy) -> int:
    """Batches under way at once: events, imports, user and group updates."""
    return 2 * policy.max_in_flight + 2


def build_pipeline(
    options: ClientOptions,
    hooks: Callbacks,
    spool: SqliteSpool | None,
    http_client: HttpClient | None,
    runtime: Environment,
) -> Pipeline:
    """Make the parts.

    Raises:
        ConfigurationError: if the spool is none, or cannot be had on this system.
    """
    new_packer, off_loop_from = fastest_compressor()
    encoder = RequestEncoder(
        token=options.token,
        credentials=options.credentials,
        events_by_import=options.by_import,
        new_compressor=new_packer,
    )
    transport = Transport(
        options.origin,
        timeout=options.timeout,
        http_client=http_client,
        max_connections=most_in_flight(options.batching) + _SPARE_CONNECTIONS,
    )
    if spool is None:
        durable, buffer = None, Buffer(options.batching, options.retry, None, new_packer)
    else:
        from .._delivery.spooling import make_bridge, make_buffer  # noqa: PLC0415  nobody who has no spool pays for one

        buffer = make_buffer(options, spool, new_packer)
        durable = make_bridge(options, spool, buffer, runtime)
    queue = Queue(buffer, options.overflow, hooks, runtime.monotonic, durable)
    courier = BatchSender(
        queue,
        transport=transport,
        encoder=encoder,
        off_loop_from=off_loop_from,
        retry=options.retry,
        runtime=runtime,
    )
    sender = Sender(
        queue, transport=transport, batch_sender=courier, runtime=runtime, stall_timeout=options.shutdown_timeout
    )
    api = Api(transport, runtime, queue.requests)
    return Pipeline(queue, sender, DirectSender(sender, api, encoder, PolicyRule(options.identity_retry)), transport)
