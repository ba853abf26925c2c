"""Libraries under measurement: each is an async context manager that yields a `Subject` for one server.

Libraries are imported inside the context managers, so that a child process loads only the measured library.
"""

from __future__ import annotations

import importlib.util
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from .event import TOKEN

Track = Callable[[str, str, dict[str, Any]], Awaitable[object]]

_BATCH: Final = 2_000


@dataclass(frozen=True)
class Subject:
    """A started sender; `close` returns after all tracked events are delivered."""

    track: Track
    close: Callable[[], Awaitable[object]]


@asynccontextmanager
async def harness(origin: str, events: int) -> AsyncIterator[Subject]:  # noqa: ARG001  same signature for all subjects
    """Empty subject: the cost of the loop, of the properties and of awaiting a coroutine."""

    async def track(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:
        """Take the arguments."""

    async def close() -> None:
        """Do nothing."""

    yield Subject(track, close)


@asynccontextmanager
async def floor(origin: str, events: int) -> AsyncIterator[Subject]:  # noqa: ARG001
    """Lower bound: one dict, one JSON encoding, and a share of one gzip pass and one socket write."""
    import orjson

    compress = _compressor()
    url = urlsplit(origin)
    connection = socket.create_connection((url.hostname or "", url.port or 80))
    # One growing buffer instead of a list, because each bytes object from orjson may retain a page of memory.
    batch = bytearray(b"[")
    held = 0

    def send() -> None:
        nonlocal held
        batch[-1:] = b"]"
        body = compress(batch)
        batch[1:] = b""
        held = 0
        head = (
            f"POST /track?verbose=1 HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
            f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        if b'"status":1' not in connection.recv(4096):
            raise RuntimeError("the sink rejected a batch")

    async def track(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:
        nonlocal batch, held
        message = {
            "event": event_name,
            "properties": {
                "token": TOKEN,
                "distinct_id": distinct_id,
                "time": time.time(),
                "$insert_id": f"{random.getrandbits(128):032x}",
                "mp_lib": "python",
                "$lib_version": "5.4.1",
                **properties,
            },
        }
        batch += orjson.dumps(message)
        batch += b","
        held += 1
        if held >= _BATCH:
            send()

    async def close() -> None:
        if held:
            send()

    with connection:
        yield Subject(track, close)


def _compressor() -> Callable[[bytearray], bytes]:
    try:
        from isal import igzip
    except ImportError:
        import gzip

        return lambda data: gzip.compress(data, compresslevel=1)
    return lambda data: igzip.compress(data, compresslevel=1)


@asynccontextmanager
async def mixpanel_async(origin: str, events: int) -> AsyncIterator[Subject]:
    """mixpanel-async with default settings."""
    from mixpanel_async import AsyncMixpanel, BatchPolicy

    policy = BatchPolicy(max_events=_BATCH, max_pending_events=max(events, _BATCH))
    async with AsyncMixpanel(TOKEN, api_host=origin, batching=policy) as client:
        yield Subject(client.track, client.aclose)


@asynccontextmanager
async def official(origin: str, events: int) -> AsyncIterator[Subject]:  # noqa: ARG001
    """Official SDK with its `BufferedConsumer` and batches of 50 events, its maximum."""
    from mixpanel import BufferedConsumer, Mixpanel

    consumer = BufferedConsumer(max_size=50, events_url=f"{origin}/track")
    client = Mixpanel(TOKEN, consumer=consumer)

    async def track(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:
        client.track(distinct_id, event_name, properties)

    async def close() -> None:
        consumer.flush()

    yield Subject(track, close)


@asynccontextmanager
async def posthog(origin: str, events: int) -> AsyncIterator[Subject]:
    """PostHog's `AsyncPosthog` with batches of 2,000, a queue for all events, and no compression."""
    from posthog import AsyncPosthog

    client = AsyncPosthog(
        TOKEN,
        host=origin,
        flush_at=_BATCH,
        max_queue_size=max(events, _BATCH),
        disable_geoip=False,
        is_server=False,
    )

    async def track(distinct_id: str, event_name: str, properties: dict[str, Any]) -> None:
        client.capture(event_name, distinct_id=distinct_id, properties=properties)

    async def close() -> None:
        await client.flush(timeout_seconds=None)
        await client.shutdown()

    async with client:
        yield Subject(track, close)


SUBJECTS: Final[Mapping[str, Callable[[str, int], Any]]] = {
    "harness": harness,
    "floor": floor,
    "mixpanel_async": mixpanel_async,
    "official": official,
    "posthog": posthog,
}


def without_isal() -> None:
    """Make imports of isal fail in this process."""
    sys.modules["isal"] = None  # type: ignore[assignment]


def installed(name: str) -> bool:
    """Return whether the library of a subject, or an optional speed-up, is installed."""
    module = {"official": "mixpanel", "posthog": "posthog", "uvloop": "uvloop", "isal": "isal"}.get(name)
    return module is None or importlib.util.find_spec(module) is not None
