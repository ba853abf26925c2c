"""Row G11: bytes that arrive beyond a response, or before it was asked for, never answer a request."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from misbehaving import AUTHORITY, DISCONNECTED, begin_tls, open_tunnel, read_request

from mixpanel_async import ApiError, AsyncMixpanel, RetryPolicy

pytestmark = pytest.mark.sample(every=4)

OK_BODY = b'{"status":1,"error":null}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n" + OK_BODY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n" + OK_BODY[:9] + b"\r\n10\r\n" + OK_BODY[9:]
CHUNKED += b"\r\n0\r\n\r\n"
TRAILED = CHUNKED[:-2] + b"X-Trailer: 1\r\n\r\n"
LONG = b"HTTP/1.1 200 OK\r\nX-Padding: %s\r\nContent-Length: 25\r\n\r\n" + OK_BODY
REFUSED = b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}"
FIRST = {
    "length": OK,
    "chunked": CHUNKED,
    "trailers": TRAILED,
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n" + OK,
    # 65,536 bytes are one read of httpcore.
    "one_read": LONG % (b"x" * (65_536 - len(LONG % b""))),
}
LEFTOVERS = {
    "response": OK,
    "two_responses": OK + OK,
    "chunked": CHUNKED,
    "head": OK[: -len(OK_BODY)],
    "all_but_one_byte": OK[:-1],
    "one_byte": b"H",
    "status_line": b"HTTP/1.1 200 OK\r\n",
    "open_header": b"HTTP/1.1 200 OK\r\nContent-Length: 25\r\nX-Open: ",
    "open_body": b"HTTP/1.1 200 OK\r\nContent-Length: 200\r\n\r\n" + OK_BODY,
    "line_break": b"\r\n",
    "line_break_and_response": b"\r\n" + OK,
    "interim": b"HTTP/1.1 100 Continue\r\n\r\n",
    "garbage": b"\x00\x01garbage",
    "end_of_chunks": b"0\r\n\r\n",
}


class Server:
    """Server that sends more than it was asked for on its first connection, and refuses every other request.

    Args:
        first: the response to the first request.
        leftover: bytes that follow it.
        way: `together` in one write; `later` in a second one after a pause; over TLS also `records` for two records in
            one write, and `half_record`.
        transport: `plain`, `tls` or `tunnel`.
    """

    def __init__(self, first: bytes, leftover: bytes, way: str, transport: str) -> None:
        self._first = first
        self._leftover = leftover
        self._way = way
        self._transport = transport
        self.connections = 0
        self.requests = 0
        self.has_sent_leftover = anyio.Event()

    async def handle(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        number = self.connections
        with contextlib.suppress(*DISCONNECTED):
            async with stream:
                writes = Writes(stream)
                upper: anyio.abc.ByteStream = writes
                if self._transport == "tunnel":
                    await open_tunnel(upper, "http")
                if self._transport != "plain":
                    upper = await begin_tls(upper)
                await read_request(upper)
                self.requests += 1
                if number == 1:
                    await self._send_more(upper, writes)
                else:
                    await upper.send(REFUSED)
                while True:
                    await read_request(upper)
                    self.requests += 1
                    await upper.send(REFUSED)

    async def _send_more(self, upper: anyio.abc.ByteStream, writes: Writes) -> None:
        if self._way == "together":
            await upper.send(self._first + self._leftover)
        elif self._way == "later":
            await upper.send(self._first)
            await anyio.sleep(0.01)
            await upper.send(self._leftover)
        else:
            writes.hold()
            await upper.send(self._first)
            await upper.send(self._leftover)
            await writes.release(all_but=7 if self._way == "half_record" else 0)
        self.has_sent_leftover.set()


class Writes(anyio.abc.ByteStream):
    """Stream that can join writes."""

    def __init__(self, inner: anyio.abc.ByteStream) -> None:
        self._inner = inner
        self._held: bytes | None = None
        self._rest = b""

    def hold(self) -> None:
        self._held = b""

    async def release(self, all_but: int) -> None:
        assert self._held is not None
        data, self._held = self._held, None
        await self._inner.send(data[: len(data) - all_but])
        self._rest = data[len(data) - all_but :]

    async def receive(self, max_bytes: int = 65_536) -> bytes:
        return await self._inner.receive(max_bytes)

    async def send(self, item: bytes) -> None:
        if self._held is not None:
            self._held += item
            return
        rest, self._rest = self._rest, b""
        await self._inner.send(rest + item)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._inner.extra_attributes


WAYS = [
    *((transport, way) for transport in ("plain", "tls", "tunnel") for way in ("together", "later")),
    *((transport, way) for transport in ("tls", "tunnel") for way in ("records", "half_record")),
]


@pytest.mark.anyio
@pytest.mark.parametrize(("transport", "way"), WAYS)
async def test_g11_leftover_bytes_never_answer_a_request(
    transport: str, way: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server refuses the second `alias`. It must raise, whatever the first response left on its connection."""
    bundle = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    for form, first in FIRST.items():
        for name, leftover in LEFTOVERS.items():
            server = Server(first, leftover, way, transport)
            listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            origin = f"{'http' if transport == 'plain' else 'https'}://localhost:{port}"
            if transport == "tunnel":
                monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
            mp = AsyncMixpanel("token", api_host=origin, identity_retry=RetryPolicy(attempts=1), timeout=5.0)
            async with listener, anyio.create_task_group() as tasks:
                tasks.start_soon(listener.serve, server.handle)
                async with mp:
                    await mp.alias("new", "old")
                    await server.has_sent_leftover.wait()
                    with pytest.raises(ApiError) as caught:
                        await mp.alias("newer", "old")
                tasks.cancel_scope.cancel()
            assert caught.value.status == 400, (form, name)
            assert (server.connections, server.requests) == (2, 2), (form, name)


@pytest.mark.anyio
@pytest.mark.parametrize("transport", ["plain", "tls"])
@pytest.mark.parametrize("form", ["length", "chunked", "trailers", "interim"])
async def test_g11_connection_without_leftover_bytes_is_used_again(
    form: str, transport: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    connections = 0

    async def handle(stream: anyio.abc.ByteStream) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(*DISCONNECTED):
            async with stream:
                upper = await begin_tls(stream) if transport == "tls" else stream
                while True:
                    await read_request(upper)
                    # Split at each place in turn would be slow; bytes alone cover all of them.
                    for at in range(len(FIRST[form])):
                        await upper.send(FIRST[form][at : at + 1])

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        origin = f"{'http' if transport == 'plain' else 'https'}://localhost:{port}"
        async with AsyncMixpanel("token", api_host=origin, timeout=5.0) as mp:
            for number in range(3):
                await mp.alias(f"new{number}", "old")
        tasks.cancel_scope.cancel()
    assert connections == 1
