"""Loopback server and proxies that misbehave at one phase of a request, and then behave."""

from __future__ import annotations

import contextlib
import re
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import trustme
from anyio.streams.tls import TLSStream

AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()
DISCONNECTED = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, ssl.SSLError)
ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 25\r\n\r\n{"status":1,"error":null}'
CLOSE = b"Connection: close\r\n"


def server_context(authority: trustme.CA = AUTHORITY, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("localhost", "127.0.0.1", "mixpanel.test"))).configure_cert(context)
    return context


CONTEXT = server_context()


class Peer:
    """Server or proxy. The first connections get the misbehaviour, and all later ones are served.

    Args:
        misbehave: gets a connection; None to serve all.
        limit: number of connections that misbehave.
        is_tls: whether the served connections begin with TLS.
        proxy: `http` or `socks` if the connections first open a tunnel, which leads to this peer.

    Attributes:
        url: address of the peer.
        seen: connections so far.
        bodies: bodies of the requests that were answered.
    """

    def __init__(
        self,
        misbehave: Callable[[anyio.abc.ByteStream], Awaitable[None]] | None,
        *,
        limit: int = 2,
        is_tls: bool = False,
        proxy: str = "",
    ) -> None:
        self._misbehave = misbehave
        self._limit = limit
        self._is_tls = is_tls
        self._proxy = proxy
        self.port = 0
        self.seen = 0
        self.bodies: list[bytes] = []

    async def handle(self, stream: anyio.abc.ByteStream) -> None:
        self.seen += 1
        with contextlib.suppress(*DISCONNECTED):
            async with stream:
                if self._misbehave is not None and self.seen <= self._limit:
                    await self._misbehave(stream)
                    return
                if self._proxy == "https":
                    stream = await begin_tls(stream)
                if self._proxy:
                    await open_tunnel(stream, self._proxy)
                if self._is_tls:
                    stream = await begin_tls(stream)
                while True:
                    self.bodies.append(await read_request(stream))
                    await stream.send(ANSWER)


@asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[Peer]:
    """Serve on a free port."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=peer.port)
    peer.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, peer.handle)
        yield peer
        tasks.cancel_scope.cancel()


async def begin_tls(stream: anyio.abc.ByteStream, context: ssl.SSLContext = CONTEXT) -> TLSStream:
    return await TLSStream.wrap(stream, ssl_context=context, server_side=True, standard_compatible=False)


async def read_request(stream: anyio.abc.ByteStream) -> bytes:
    """Return the body of the next request."""
    data = b""
    while True:
        data += await stream.receive()
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if end and len(body) == int(length[1] if length else 0):
            return body


async def open_tunnel(stream: anyio.abc.ByteStream, kind: str) -> None:
    if kind != "socks":
        await read_request(stream)
        await stream.send(b"HTTP/1.1 200 Connected\r\n\r\n")
    else:
        await socks_greeting(stream)
        await stream.receive()
        await stream.send(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")


async def socks_greeting(stream: anyio.abc.ByteStream) -> None:
    await stream.receive()
    await stream.send(b"\x05\x00")


# Misbehaviour


async def hang(stream: anyio.abc.ByteStream) -> None:
    """Read and never answer."""
    while True:
        await stream.receive()


async def cut(stream: anyio.abc.ByteStream) -> None:
    """Close after the first bytes."""
    await stream.receive()


async def close(stream: anyio.abc.ByteStream) -> None:
    """Close at once."""


async def reset(stream: anyio.abc.ByteStream) -> None:
    """Reset the connection at the first bytes."""
    await stream.receive()
    reset_now(stream)


def reset_now(stream: anyio.abc.ByteStream) -> None:
    """Reset the connection."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    # SO_LINGER of 0 seconds.
    raw.setsockopt(1, 13, struct.pack("ii", 1, 0))


def answer(data: bytes) -> Callable[[anyio.abc.ByteStream], Awaitable[None]]:
    """Answer the first bytes with these, and close."""

    async def misbehave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(data)

    return misbehave


def answer_and_hang(data: bytes) -> Callable[[anyio.abc.ByteStream], Awaitable[None]]:
    """Answer the first bytes with these, and nothing else."""

    async def misbehave(stream: anyio.abc.ByteStream) -> None:
        await stream.receive()
        await stream.send(data)
        await hang(stream)

    return misbehave


def wrong_certificate(*names: str, authority: trustme.CA) -> Callable[[anyio.abc.ByteStream], Awaitable[None]]:
    """Begin TLS with a certificate that the client must not accept."""
    context = server_context(authority, *names)

    async def misbehave(stream: anyio.abc.ByteStream) -> None:
        await begin_tls(stream, context)
        await hang(stream)

    return misbehave


def in_tunnel(
    kind: str, misbehave: Callable[[anyio.abc.ByteStream], Awaitable[None]]
) -> Callable[[anyio.abc.ByteStream], Awaitable[None]]:
    """Open the tunnel and misbehave in it."""

    async def tunnel(stream: anyio.abc.ByteStream) -> None:
        await open_tunnel(stream, kind)
        await misbehave(stream)

    return tunnel


async def socks_hang(stream: anyio.abc.ByteStream) -> None:
    await socks_greeting(stream)
    await hang(stream)


async def socks_cut(stream: anyio.abc.ByteStream) -> None:
    await socks_greeting(stream)
    await stream.receive()


async def socks_refuse(stream: anyio.abc.ByteStream) -> None:
    await socks_greeting(stream)
    await stream.receive()
    await stream.send(b"\x05\x05\x00\x01\x00\x00\x00\x00\x00\x00")


async def socks_wants_credentials(stream: anyio.abc.ByteStream) -> None:
    await stream.receive()
    await stream.send(b"\x05\xff")
