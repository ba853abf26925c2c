"""HTTP server for all subjects: stores requests and answers with the success response each client expects.

Bodies are decoded and counted only by `/take`, after the measurement, so that the server does not slow it down.
`/delay?N` delays each response by N milliseconds. `python -m benchmarks.sink` prints the port and serves until standard
input closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import sys
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ENCODED: Final = re.compile(rb"\r\ncontent-encoding: *gzip", re.IGNORECASE)
_FORM: Final = re.compile(rb"\r\ncontent-type: *application/x-www-form-urlencoded", re.IGNORECASE)

# The success response that each client expects; Mixpanel's is that of /track with verbose=1.
_SUCCESS: Final = {
    b"/track": b'{"error":null,"status":1}',
    b"/import": b'{"code":200,"status":"OK"}',
    b"/engage": b'{"error":null,"status":1}',
    b"/groups": b'{"error":null,"status":1}',
    b"/batch/": b'{"status":"Ok"}',
}
_TLS_HANDSHAKE: Final = 0x16


def ask(origin: str, path: str) -> dict[str, int]:
    """Send `/take` or `/delay?N` to the sink and return its counts."""
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(origin + path) as reply:
        counts: dict[str, int] = json.load(reply)
    return counts


@dataclass
class Received:
    """Head and body of each request since the last `/take`."""

    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    """Number of connections whose first request arrived since the last `/take`."""
    delay: float = 0.0
    """Delay of each response in seconds."""

    def take(self) -> bytes:
        """Count and discard the requests; return the counts as JSON."""
        ids: set[str] = set()
        events = size = 0
        for head, packed in self.requests:
            body = plain(head, packed)
            size += len(body)
            for record in records(body):
                events += 1
                # Profile updates have no insert id, and some identity calls neither; events always have one.
                ids.add(record.get("uuid") or record.get("properties", {}).get("$insert_id") or str(events))
        counts = {"requests": len(self.requests), "events": events, "distinct": len(ids), "bytes": size}
        counts["connections"] = self.connections
        self.requests.clear()
        self.connections = 0
        return orjson.dumps(counts)


def plain(head: bytes, body: bytes) -> bytes:
    """Return the JSON body of a request, decompressed and extracted from a form."""
    if _ENCODED.search(head):
        body = gzip.decompress(body)
    return urllib.parse.parse_qs(body.decode())["data"][0].encode() if _FORM.search(head) else body


def records(body: bytes) -> list[dict[str, Any]]:
    """Return the records of a JSON body, which PostHog wraps in an object."""
    content = orjson.loads(body)
    if isinstance(content, dict):
        content = content.get("batch", [content])
    return list(content)


class SinkProtocol(asyncio.Protocol):
    """Minimal HTTP/1.1: requests with a Content-Length on keep-alive connections."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._buffer = bytearray()
        self._head = b""
        self._missing = 0
        self._is_counted = False
        self._transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if data[0] == _TLS_HANDSHAKE and not self._is_counted:
            self._transport.close()
            return
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
        path, _, query = head.split(b" ", 2)[1].partition(b"?")
        status, content, delay = b"200 OK", _SUCCESS.get(path, b"{}"), 0.0
        if path == b"/take":
            content = self._received.take()
        elif path == b"/delay":
            self._received.delay = int(query) / 1000
        elif path in _SUCCESS:
            self._received.requests.append((head, body))
            self._received.connections += not self._is_counted
            self._is_counted = True
            delay = self._received.delay
        else:
            status = b"404 Not Found"
        answer = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
            status,
            len(content),
            content,
        )
        if delay:
            asyncio.get_running_loop().call_later(delay, self._transport.write, answer)
        else:
            self._transport.write(answer)


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
