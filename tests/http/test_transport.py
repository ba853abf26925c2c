"""The connection pool on real sockets: how many there are, who gets one, and what is closed when."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import respx
import trio
import trio.testing

from mixpanel_async._http.transport import Transport
from mixpanel_async._model.outcomes import Request, Response, TransportFailure

LONG = 20.0
SOON = 0.2


class Server:
    """Answers a request as soon as its gate is open; keeps what it read first of each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.gate = anyio.Event()
        self.made = self.open = self.most = 0
        self.waiting: list[str] = []
        self.answered: list[str] = []
        self.parts: list[int] = []

    async def handle(self, stream: anyio.abc.SocketStream) -> None:
        self.made += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            async with stream:
                while path := await self._read(stream):
                    self.waiting.append(path)
                    async with anyio.create_task_group() as tasks:
                        # So that a connection that is closed meanwhile is noticed.
                        tasks.start_soon(self._end, stream, tasks.cancel_scope)
                        await self.gate.wait()
                        tasks.cancel_scope.cancel()
                    if not self.gate.is_set():
                        return
                    self.answered.append(path)
                    await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream):
            pass
        finally:
            self.open -= 1

    async def _end(self, stream: anyio.abc.SocketStream, scope: anyio.CancelScope) -> None:
        try:
            await stream.receive()
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            await stream.aclose()
            scope.cancel()

    async def _read(self, stream: anyio.abc.SocketStream) -> str:
        data = b""
        parts = 0
        while True:
            data += await stream.receive()
            parts += 1
            head, end, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: *(\d+)", head)
            if end and len(body) == int(length[1] if length else 0):
                self.parts.append(parts)
                return head.split()[1].decode()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    server = Server(f"http://127.0.0.1:{port}")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.handle)
        yield server
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await anyio.lowlevel.checkpoint()


def post(path: str, body: bytes = b"[]") -> Request:
    return Request(path=path, headers={"Content-Type": "application/json"}, body=body)


class Calls:
    """Requests under way, and what came of them."""

    def __init__(self, transport: Transport, tasks: anyio.abc.TaskGroup) -> None:
        self._transport = transport
        self._tasks = tasks
        self.replies: dict[str, Response | TransportFailure] = {}

    def start(self, path: str, timeout: float = LONG) -> anyio.CancelScope:
        scope = anyio.CancelScope()
        self._tasks.start_soon(self._send, path, timeout, scope)
        return scope

    async def _send(self, path: str, timeout: float, scope: anyio.CancelScope) -> None:
        with scope:
            self.replies[path] = await self._transport.send(post(path), timeout=timeout)


@asynccontextmanager
async def pool_of(most: int) -> AsyncIterator[tuple[Server, Transport, Calls]]:
    async with serving() as server:
        transport = Transport(server.url, timeout=LONG, max_connections=most)
        await transport.open()
        async with anyio.create_task_group() as tasks:
            yield server, transport, Calls(transport, tasks)
        await transport.aclose()
        await until(lambda: server.open == 0)


@pytest.mark.anyio
async def test_requests_that_begin_together_share_a_bounded_number_of_connections() -> None:
    async with pool_of(3) as (server, _, calls):
        for number in range(50):
            calls.start(f"/{number}")
        await until(lambda: len(server.waiting) == 3)
        server.gate.set()
        await until(lambda: len(calls.replies) == 50)
    assert (server.made, server.most) == (3, 3)
    assert all(isinstance(reply, Response) for reply in calls.replies.values())


@pytest.mark.anyio
async def test_who_waits_is_served_in_turn() -> None:
    async with pool_of(1) as (server, _, calls):
        calls.start("/0")
        await until(lambda: server.waiting == ["/0"])
        for number in range(1, 10):
            calls.start(f"/{number}")
            await anyio.wait_all_tasks_blocked()
        server.gate.set()
    assert server.answered == [f"/{number}" for number in range(10)]


@pytest.mark.anyio
async def test_a_wait_for_a_connection_ends_by_the_deadline_and_nothing_was_sent() -> None:
    async with pool_of(1) as (server, transport, calls):
        calls.start("/first")
        await until(lambda: server.waiting == ["/first"])
        reply = await transport.send(post("/late"), timeout=SOON)
        assert isinstance(reply, TransportFailure)
        assert not reply.sent
        assert "no connection" in reply.message
        server.gate.set()
        await until(lambda: "/first" in calls.replies)
        assert isinstance(await transport.send(post("/next")), Response)
    assert (server.made, server.answered) == (1, ["/first", "/next"])


@pytest.mark.anyio
async def test_a_waiter_that_is_cancelled_keeps_no_connection() -> None:
    async with pool_of(1) as (server, transport, calls):
        calls.start("/first")
        await until(lambda: server.waiting == ["/first"])
        waiters = [calls.start(f"/{number}") for number in range(20)]
        await anyio.wait_all_tasks_blocked()
        server.gate.set()
        for number, waiter in enumerate(waiters):
            for _ in range(number % 7):
                await anyio.lowlevel.checkpoint()
            waiter.cancel()
        with anyio.fail_after(LONG):
            assert isinstance(await transport.send(post("/last")), Response)


@pytest.mark.anyio
@pytest.mark.parametrize("ends", ["by its time-out", "by being cancelled"])
async def test_a_request_that_is_cut_off_costs_its_own_connection_and_no_other(ends: str) -> None:
    async with pool_of(2) as (server, transport, calls):
        calls.start("/other")
        await until(lambda: server.waiting == ["/other"])
        scope = calls.start("/cut", SOON if ends == "by its time-out" else LONG)
        await until(lambda: len(server.waiting) == 2)
        if ends == "by being cancelled":
            scope.cancel()
        await until(lambda: server.open == 1)
        # It has left its place to the next.
        calls.start("/next")
        await until(lambda: len(server.waiting) == 3)
        server.gate.set()
        await until(lambda: {"/other", "/next"} <= calls.replies.keys())
        assert isinstance(await transport.send(post("/last")), Response)
    assert (server.made, server.most) == (3, 2)
    assert "/cut" not in server.answered
    if ends == "by its time-out":
        cut = calls.replies.pop("/cut")
        assert isinstance(cut, TransportFailure)
        assert cut.sent
    assert all(isinstance(reply, Response) for reply in calls.replies.values())


@pytest.mark.anyio
async def test_an_answer_that_is_too_large_leaves_no_connection() -> None:
    async with pool_of(1) as (server, transport, _):
        server.gate.set()
        request = Request(path="/large", headers={}, body=b"[]", max_response_bytes=1)
        reply = await transport.send(request)
        assert isinstance(reply, TransportFailure)
        assert reply.message == "the response is larger than 1 bytes"
        await until(lambda: server.open == 0)
        assert isinstance(await transport.send(post("/next")), Response)
    assert server.made == 2


def test_connections_left_over_from_a_burst_are_closed_with_a_later_request() -> None:
    async def main() -> None:
        async with pool_of(5) as (server, transport, calls):
            for number in range(5):
                calls.start(f"/{number}")
            await until(lambda: len(server.waiting) == 5)
            server.gate.set()
            await until(lambda: len(calls.replies) == 5)
            assert server.open == 5
            clock.jump(4.0)
            await transport.send(post("/early"))
            assert server.open == 5
            clock.jump(4.0)
            await transport.send(post("/late"))
            await until(lambda: server.open == 1)
            assert server.made == 5

    clock = trio.testing.MockClock()
    trio.run(main, clock=clock)


@pytest.mark.anyio
async def test_a_pool_that_is_forgotten_is_left_as_it_is_and_another_is_made() -> None:
    async with pool_of(2) as (server, transport, _):
        server.gate.set()
        assert isinstance(await transport.send(post("/one")), Response)
        forgotten = transport.abandon_pool()
        assert isinstance(await transport.send(post("/two")), Response)
        assert (server.made, server.open) == (2, 2)
        await transport.aclose()
        await until(lambda: server.open == 1)
        for client in forgotten.close():  # type: ignore[attr-defined]
            await client.aclose()


@pytest.mark.anyio
async def test_closing_ends_what_is_under_way_and_who_waits_and_opens_nothing_again() -> None:
    async with pool_of(2) as (server, transport, calls):
        for number in range(4):
            calls.start(f"/{number}")
        await until(lambda: len(server.waiting) == 2)
        await anyio.wait_all_tasks_blocked()
        await transport.aclose()
        await until(lambda: len(calls.replies) == 4)
        await until(lambda: server.open == 0)
        after = await transport.send(post("/after"))
        await transport.open()
    replies = [*calls.replies.values(), after]
    assert sorted(isinstance(reply, TransportFailure) and reply.sent for reply in replies) == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert server.made == 2
    assert server.answered == []


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 2, 2_000, 100_000, 3_000_000])
async def test_a_small_body_leaves_with_its_head_and_any_arrives(size: int) -> None:
    async with pool_of(1) as (server, transport, _):
        server.gate.set()
        for number in range(3):
            assert isinstance(await transport.send(post(f"/{number}", b"x" * size)), Response)
    assert server.answered == ["/0", "/1", "/2"]
    if size <= 2_000:
        assert server.parts == [1, 1, 1]


@pytest.mark.parametrize("using", ["httpcore", "httpx"])
@pytest.mark.parametrize("is_first", [True, False], ids=["before the client", "after its first request"])
@pytest.mark.anyio
async def test_what_respx_takes_never_reaches_the_network(using: str, is_first: bool) -> None:
    async with serving() as server:
        server.gate.set()
        transport = Transport(server.url, timeout=LONG, max_connections=1)
        if not is_first:
            assert isinstance(await transport.send(post("/first")), Response)
        with respx.mock(using=using) as mocked:
            mocked.post(f"{server.url}/mocked").respond(202)
            reply = await transport.send(post("/mocked"))
        assert isinstance(reply, Response)
        assert reply.status == 202
        assert server.answered == ([] if is_first else ["/first"])
        await transport.aclose()
