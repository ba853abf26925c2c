"""Local HTTP server whose connections and requests a test observes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel

from mixpanel_async._http.transport import Transport
from mixpanel_async._model.outcomes import Request, Response, TransportFailure

LONG = 20.0
SHORT = 0.2


class Server:
    """Answers each request once its gate is open.

    Attributes:
        accepted: connections accepted so far.
        open: connections open now.
        max_open: maximum of `open` so far.
        waiting: targets of the requests read so far.
        answered: targets of the requests answered so far.
        read_counts: number of reads that each request took.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.gate = anyio.Event()
        self.accepted = self.open = self.max_open = 0
        self.waiting: list[str] = []
        self.answered: list[str] = []
        self.read_counts: list[int] = []

    async def handle(self, stream: anyio.abc.SocketStream) -> None:
        self.accepted += 1
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        try:
            async with stream:
                while True:
                    target, reads = await read_request(stream)
                    self.read_counts.append(reads)
                    self.waiting.append(target)
                    async with anyio.create_task_group() as tasks:
                        # Notice a connection that is closed while the gate is shut.
                        tasks.start_soon(self._watch, stream, tasks.cancel_scope)
                        await self.gate.wait()
                        tasks.cancel_scope.cancel()
                    if not self.gate.is_set():
                        return
                    self.answered.append(target)
                    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            pass
        finally:
            self.open -= 1

    async def _watch(self, stream: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
        try:
            await stream.receive()
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            await stream.aclose()
            scope.cancel()


async def read_request(stream: anyio.abc.SocketStream) -> tuple[str, int]:
    """Return the target of the next request and the number of reads it took."""
    data = b""
    reads = 0
    while True:
        data += await stream.receive()
        reads += 1
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if end and len(body) == int(length[1] if length else 0):
            return head.split()[1].decode(), reads


@asynccontextmanager
async def serve(handle: Callable[[anyio.abc.SocketStream], object] | None = None) -> AsyncIterator[Server]:
    """Serve on a free port, with `Server.handle` unless another function is given."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    server = Server(f"http://127.0.0.1:{port}")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle or server.handle)
        yield server
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.lowlevel.checkpoint()


def post(path: str, body: bytes = b"[]") -> Request:
    return Request(path=path, headers={"Content-Type": "application/json"}, body=body)


class Calls:
    """Requests in flight, and their results by path."""

    def __init__(self, transport: Transport, tasks: anyio.abc.TaskGroup) -> None:
        self._transport = transport
        self._tasks = tasks
        self.results: dict[str, Response | TransportFailure] = {}

    def start(self, path: str, timeout: float = LONG) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self._tasks.start_soon(self._send, path, timeout, scope)
        return scope

    async def _send(self, path: str, timeout: float, scope: anyio.CancelScope) -> None:
        with scope:
            self.results[path] = await self._transport.send(post(path), timeout=timeout)


@asynccontextmanager
async def pool_of(size: int) -> AsyncIterator[tuple[Server, Transport, Calls]]:
    """Yield a server, a transport with a pool of this size, and a helper that starts requests."""
    async with serve() as server:
        transport = Transport(server.url, timeout=LONG, max_connections=size)
        await transport.open()
        async with anyio.create_task_group() as tasks:
            yield server, transport, Calls(transport, tasks)
        await transport.aclose()
        await until(lambda: server.open == 0)
