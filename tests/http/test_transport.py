"""The connection pool on real sockets: size, order, deadlines, cancellation and closing."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from http_server import LONG, SHORT, pool_of, post, until

from mixpanel_async._model.outcomes import Request, Response, TransportFailure


@pytest.mark.anyio
async def test_concurrent_requests_share_a_bounded_number_of_connections() -> None:
    async with pool_of(3) as (server, _, calls):
        for number in range(50):
            calls.start(f"/{number}")
        await until(lambda: len(server.waiting) == 3)
        server.gate.set()
        await until(lambda: len(calls.results) == 50)
    assert (server.accepted, server.max_open) == (3, 3)
    assert all(isinstance(result, Response) for result in calls.results.values())


@pytest.mark.anyio
async def test_waiting_requests_are_served_in_order() -> None:
    async with pool_of(1) as (server, _, calls):
        calls.start("/0")
        await until(lambda: server.waiting == ["/0"])
        for number in range(1, 10):
            calls.start(f"/{number}")
            await anyio.wait_all_tasks_blocked()
        server.gate.set()
    assert server.answered == [f"/{number}" for number in range(10)]


@pytest.mark.anyio
async def test_wait_for_a_connection_ends_at_the_deadline_without_sending() -> None:
    async with pool_of(1) as (server, transport, calls):
        calls.start("/first")
        await until(lambda: server.waiting == ["/first"])
        result = await transport.send(post("/late"), timeout=SHORT)
        assert isinstance(result, TransportFailure)
        assert not result.sent
        assert "no connection" in result.message
        server.gate.set()
        await until(lambda: "/first" in calls.results)
        assert isinstance(await transport.send(post("/next")), Response)
    assert (server.accepted, server.answered) == (1, ["/first", "/next"])


@pytest.mark.anyio
async def test_cancelled_waiter_keeps_no_connection() -> None:
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
@pytest.mark.parametrize("ends", ["timeout", "cancellation"])
async def test_interrupted_request_closes_only_its_own_connection(ends: str) -> None:
    async with pool_of(2) as (server, transport, calls):
        calls.start("/other")
        await until(lambda: server.waiting == ["/other"])
        scope = calls.start("/cut", SHORT if ends == "timeout" else LONG)
        await until(lambda: len(server.waiting) == 2)
        if ends == "cancellation":
            scope.cancel()
        await until(lambda: server.open == 1)
        # Its slot is free for the next request.
        calls.start("/next")
        await until(lambda: len(server.waiting) == 3)
        server.gate.set()
        await until(lambda: {"/other", "/next"} <= calls.results.keys())
        assert isinstance(await transport.send(post("/last")), Response)
    assert (server.accepted, server.max_open) == (3, 2)
    assert "/cut" not in server.answered
    if ends == "timeout":
        cut = calls.results.pop("/cut")
        assert isinstance(cut, TransportFailure)
        assert cut.sent
    assert all(isinstance(result, Response) for result in calls.results.values())


@pytest.mark.anyio
async def test_response_that_is_too_large_closes_its_connection() -> None:
    async with pool_of(1) as (server, transport, _):
        server.gate.set()
        request = Request(path="/large", headers={}, body=b"[]", max_response_bytes=1)
        result = await transport.send(request)
        assert isinstance(result, TransportFailure)
        assert result.message == "the response is larger than 1 bytes"
        await until(lambda: server.open == 0)
        assert isinstance(await transport.send(post("/next")), Response)
    assert server.accepted == 2


def test_idle_connections_of_a_burst_are_closed_with_a_later_request() -> None:
    async def main() -> None:
        async with pool_of(5) as (server, transport, calls):
            for number in range(5):
                calls.start(f"/{number}")
            await until(lambda: len(server.waiting) == 5)
            server.gate.set()
            await until(lambda: len(calls.results) == 5)
            assert server.open == 5
            clock.jump(4.0)
            await transport.send(post("/early"))
            assert server.open == 5
            clock.jump(4.0)
            await transport.send(post("/late"))
            await until(lambda: server.open == 1)
            assert server.accepted == 5

    clock = trio.testing.MockClock()
    trio.run(main, clock=clock)


@pytest.mark.anyio
async def test_detached_pool_stays_open_and_another_is_created() -> None:
    async with pool_of(2) as (server, transport, _):
        server.gate.set()
        assert isinstance(await transport.send(post("/one")), Response)
        close = transport.detach_pool()
        assert isinstance(await transport.send(post("/two")), Response)
        assert (server.accepted, server.open) == (2, 2)
        await transport.aclose()
        await until(lambda: server.open == 1)
        await close()


@pytest.mark.anyio
async def test_closing_ends_running_and_waiting_requests_and_opens_no_connection() -> None:
    async with pool_of(2) as (server, transport, calls):
        for number in range(4):
            calls.start(f"/{number}")
        await until(lambda: len(server.waiting) == 2)
        await anyio.wait_all_tasks_blocked()
        await transport.aclose()
        await until(lambda: len(calls.results) == 4)
        await until(lambda: server.open == 0)
        after = await transport.send(post("/after"))
        await transport.open()
    results = [*calls.results.values(), after]
    assert sorted(isinstance(result, TransportFailure) and result.sent for result in results) == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert server.accepted == 2
    assert server.answered == []


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 2, 2_000, 100_000, 3_000_000])
async def test_small_body_is_written_together_with_its_head(size: int) -> None:
    async with pool_of(1) as (server, transport, _):
        server.gate.set()
        for number in range(3):
            assert isinstance(await transport.send(post(f"/{number}", b"x" * size)), Response)
    assert server.answered == ["/0", "/1", "/2"]
    if size <= 2_000:
        assert server.read_counts == [1, 1, 1]
