"""Outages and clocks. Trio's mock clock jumps to the next event, so an outage of minutes takes no time."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import client_in, emulator_client_in

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, ServiceAccountCredentials, Stats
from mixpanel_async._http.retry import RetryBudget
from mixpanel_async._runtime.environment import Environment, real_environment
from mixpanel_async.emulator import Emulator

START = 1_790_000_000.0
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)


class Outage:
    """Mixpanel server that responds with 503 while `is_down`, and records the time of each request."""

    def __init__(self) -> None:
        self.is_down = True
        self.asked: list[float] = []
        self.taken = 0

    def client(self) -> httpx.AsyncClient:
        def answer(request: httpx.Request) -> httpx.Response:
            self.asked.append(trio.current_time())
            if self.is_down:
                return httpx.Response(503)
            self.taken += 1
            return httpx.Response(200, json={"status": 1})

        return httpx.AsyncClient(transport=httpx.MockTransport(answer))


def in_virtual_time(body: Callable[[Outage, Environment], Awaitable[None]], seed: int) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)
    # Not `trio.current_time`: the statistics are read after the end of the loop, too.
    runtime = replace(
        real_environment(),
        wall_time=lambda: START + clock.current_time(),
        monotonic=clock.current_time,
        random=random.Random(seed).random,
    )
    trio.run(body, Outage(), runtime, clock=clock)


@pytest.mark.parametrize("seed", range(20))
def test_c4_outage_causes_no_retry_storm(seed: int) -> None:
    """In 60 s of 503, there are at most ten retries plus 10 % of the other requests."""

    async def body(outage: Outage, runtime: Environment) -> None:
        async with outage.client() as http, client_in(runtime, "t", http_client=http) as mp:
            for _ in range(600):
                await mp.track("u", "e")
                await trio.sleep(0.1)
            stats = mp.stats()
            assert stats.retries <= 0.1 * (stats.requests - stats.retries) + 10
            assert stats.requests == len(outage.asked) >= 2
            outage.is_down = False

    in_virtual_time(body, seed)


@pytest.mark.parametrize("seed", range(10))
def test_c4_repeated_flushes_do_not_raise_the_retry_budget(seed: int) -> None:
    async def body(outage: Outage, runtime: Environment) -> None:
        async with outage.client() as http, client_in(runtime, "t", http_client=http) as mp:
            for _ in range(60):
                await mp.track("u", "e")
                result = await mp.flush(1.0)
                assert result.delivered == 0
                await trio.sleep(1.0)
            # In two minutes, retries beyond the initial budget come every 30 to 60 s.
            assert mp.stats().retries <= 10 + 5
            outage.is_down = False

    in_virtual_time(body, seed)


@pytest.mark.parametrize("seed", range(10))
def test_c5_backlog_drains_within_one_pause_after_a_long_outage(seed: int) -> None:
    async def body(outage: Outage, runtime: Environment) -> None:
        batching = BatchPolicy(max_events=100)
        async with (
            outage.client() as http,
            client_in(runtime, "t", http_client=http, batching=batching) as mp,
        ):
            for _ in range(600):
                await mp.track("u", "e")
                await mp.track("u", "e")
                await trio.sleep(1.0)
            assert mp.stats().delivered == 0
            outage.is_down = False
            await trio.sleep(60.0)
            assert mp.stats().delivered >= 1_199
            assert mp.stats().retries <= 10 + 600 / 30

    in_virtual_time(body, seed)


def test_c3_retries_of_many_clients_are_spread() -> None:
    """The attempts of 200 clients after 30 s of outage are spread, even if all of them flush."""

    async def body(outage: Outage, runtime: Environment) -> None:
        async def one(seed: int) -> None:
            own = replace(runtime, random=random.Random(seed).random)
            async with outage.client() as http, client_in(own, "t", http_client=http) as mp:
                await mp.track("u", "e")
                await mp.flush(120.0)

        async with trio.open_nursery() as nursery:
            for seed in range(200):
                nursery.start_soon(one, seed)
            await trio.sleep(30.0)
            since = len(outage.asked)
            outage.is_down = False
        back = outage.asked[since:]
        assert outage.taken == 200
        assert len(set(back)) == len(back)
        mean = len(back) / (max(back) - min(back))
        assert max(sum(1 for at in back if low <= at < low + 1.0) for low in back) <= 3 * max(mean, 40.0)

    in_virtual_time(body, 0)


@given(st.lists(st.sampled_from(["fail", "good", "good again"]), max_size=200))
@PROPERTY
def test_retry_budget_is_never_negative(outcomes: list[str]) -> None:
    budget = RetryBudget(RetryPolicy(initial=1.0, maximum=60.0))
    quick = 0
    for outcome in outcomes:
        if outcome == "fail":
            wait = budget.spend(0.5, 0.5)
            assert wait in (0.5, 45.0)
            quick += wait == 0.5
        else:
            budget.succeeded(again=outcome == "good again")
    assert quick <= 10 + outcomes.count("good again") + 0.1 * outcomes.count("good") + 1e-6


def test_spent_budget_keeps_a_longer_delay() -> None:
    budget = RetryBudget(RetryPolicy(initial=1.0, maximum=60.0))
    for _ in range(10):
        budget.spend(1.0, 0.0)
    assert budget.is_spent
    assert budget.spend(300.0, 1.0) == 300.0


AT_ONCE = BatchPolicy(linger=0.0)


class SettableClock:
    """Clock that can be set forward, with random numbers that give the longest delays."""

    def __init__(self) -> None:
        self.passed = 0.0

    def runtime(self) -> Environment:
        return replace(
            real_environment(),
            wall_time=lambda: time.time() + self.passed,
            monotonic=lambda: time.monotonic() + self.passed,
            random=lambda: 1.0,
        )

    async def pass_after_a_failure(self, mp: AsyncMixpanel, days: float) -> None:
        """Set the clock forward during the backoff after the first failure."""
        while not mp.stats().last_error:
            await anyio.lowlevel.checkpoint()
        assert mp.stats().pending == 1
        self.passed += days * 86_400.0


@pytest.mark.anyio
async def test_d9_events_too_old_for_track_are_dropped() -> None:
    days = SettableClock()
    told: list[Any] = []
    emulator = Emulator()
    mp = emulator_client_in(
        days.runtime(),
        emulator,
        batching=AT_ONCE,
        on_drop=lambda records, reason: told.append((reason, len(records))),
    )
    emulator.fail_next(status=503, times=1)
    async with mp:
        await mp.track("u", "old")
        await days.pass_after_a_failure(mp, 6)
        await mp.track("u", "new")
        result = await mp.flush()
    assert (result.delivered, result.failed, result.losses) == (1, 1, {"too_old": 1})
    assert told == [("too_old", 1)]
    assert [event["event"] for event in emulator.events()] == ["new"]
    assert mp.stats().requests == 2


@pytest.mark.anyio
async def test_d9_events_too_old_for_track_go_to_import_with_credentials() -> None:
    days = SettableClock()
    emulator = Emulator()
    account = ServiceAccountCredentials("account", "secret", "1")
    mp = emulator_client_in(days.runtime(), emulator, credentials=account, events_endpoint="track", batching=AT_ONCE)
    emulator.fail_next(status=503, times=1)
    async with mp:
        await mp.track("u", "old")
        await days.pass_after_a_failure(mp, 6)
        await mp.track("u", "new")
        result = await mp.flush()
    assert (result.delivered, result.failed) == (2, 0)
    paths = [request.path for request in emulator.requests()]
    assert sorted(path.partition("?")[0] for path in paths) == ["/import", "/track", "/track"]


class ResettingServer:
    """Server that responds to the first request of each connection and resets it at the second one."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = self.connections = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                if not self._read(connection):
                    continue
                body = b'{"status": 1}'
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
                connection.sendall(head + body)
                # Read the second request and reset the connection without a response.
                self._read(connection)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def _read(self, connection: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = connection.recv(65_536)
            if not chunk:
                return False
            data += chunk
        head, _, body = data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65_536)
        self.requests += 1
        return True

    def close(self) -> None:
        self._listener.close()


@pytest.mark.anyio
async def test_c9_stale_connection_is_replaced_immediately() -> None:
    server = ResettingServer()
    slow = RetryPolicy(initial=3600.0, maximum=3600.0)
    unlucky = replace(real_environment(), random=lambda: 1.0)
    try:
        async with client_in(unlucky, "t", api_host=server.url, retry=slow) as mp:
            for _ in range(5):
                await mp.track("u", "e")
                assert (await mp.flush(5.0)).delivered == 1
            # Awaited calls behave the same.
            with anyio.fail_after(5.0):
                await mp.alias("a", "b")
            stats = mp.stats()
    finally:
        server.close()
    assert (stats.delivered, stats.uncertain) == (5, 0)
    assert stats.retries == server.requests - 6


@pytest.mark.anyio
async def test_c9_non_idempotent_record_is_not_resent_on_a_stale_connection() -> None:
    server = ResettingServer()
    try:
        async with AsyncMixpanel("t", api_host=server.url) as mp:
            await mp.track("u", "e")
            await mp.flush(5.0)
            await mp.people_increment("u", {"n": 1})
            result = await mp.flush(5.0)
            stats: Stats = mp.stats()
    finally:
        server.close()
    assert (result.delivered, result.losses) == (0, {"uncertain": 1})
    assert stats.retries == 0
