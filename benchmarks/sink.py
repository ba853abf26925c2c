"""The server that all subjects talk to: it keeps what it is sent and says yes in the form each client expects.

Bodies are only decoded and counted when `/take` asks for it, after the measurement, so that the server stays far from
being what is measured. Run as `python -m benchmarks.sink`: it prints its port and serves until its standard input
closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re
import sys
import urllib.parse
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ENCODED: Final = re.compile(rb"\r\ncontent-encoding: *gzip", re.IGNORECASE)
_FORM: Final = re.compile(rb"\r\ncontent-type: *application/x-www-form-urlencoded", re.IGNORECASE)

# The success that each client's own code looks for; Mixpanel's is that of /track with verbose=1.
_SUCCESS: Final = {
    b"/track": b'{"error":null,"status":1}',
    b"/batch/": b'{"status":"Ok"}',
}


@dataclass
class Received:
    """The requests since the last `/take`: head and body of each, as they came."""

    requests: list[tuple[bytes, bytes]] = field(default_factory=list)

    def take(self) -> bytes:
        """Count what came, forget it, and give the counts as JSON."""
        ids: set[str] = set()
        events = 0
        for head, body in self.requests:
            for record in _records(head, body):
                events += 1
                ids.add(record.get("uuid") or record["properties"]["$insert_id"])
        counts = {"requests": len(self.requests), "events": events, "distinct": len(ids)}
        self.requests.clear()
        return orjson.dumps(counts)


def _records(head: bytes, body: bytes) -> list[dict[str, Any]]:
    if _ENCODED.search(head):
        body = gzip.decompress(body)
    if _FORM.search(head):
        body = urllib.parse.parse_qs(body.decode())["data"][0].encode()
    content = orjson.loads(body)
    if isinstance(content, dict):
        content = content.get("batch", [content])
    return list(content)


class SinkProtocol(asyncio.Protocol):
    """As little HTTP/1.1 as the subjects speak: requests with a Content-Length, on connections that stay open."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._buffer = bytearray()
        self._head = b""
        self._missing = 0
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._read_head() and len(self._buffer) >= self._missing:
            body = bytes(self._buffer[: self._missing])
            del self._buffer[: self._missing]
            head, self._head = self._head, b""
            self._answer(head, body)

    def _read_head(self) -> bool:
        if not self._head:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return False
            self._head = bytes(self._buffer[:end])
            del self._buffer[: end + 4]
            length = _LENGTH.search(self._head)
            self._missing = int(length[1]) if length else 0
        return True

    def _answer(self, head: bytes, body: bytes) -> None:
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        status, content = b"200 OK", _SUCCESS.get(path, b"")
        if path == b"/take":
            content = self._received.take()
        elif content:
            self._received.requests.append((head, body))
        else:
            status = b"404 Not Found"
        self._transport.write(
            b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(content), content)
        )


async def _serve() -> None:
    received = Received()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: SinkProtocol(received), "127.0.0.1", 0)
    async with server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve())
