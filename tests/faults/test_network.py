"""Part C of the fault catalogue: network and HTTP. Test names start with the row id."""

from __future__ import annotations

import contextlib
import logging
import random
import re
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from simulated import emulator_client_in

from mixpanel_async import (
    ApiError,
    AsyncMixpanel,
    BatchPolicy,
    IdMerge,
    LostRecord,
    MixpanelException,
    RetryPolicy,
    ServiceAccountCredentials,
)
from mixpanel_async._delivery.batch import Batch
from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._http.retry import backoff
from mixpanel_async._model.outcomes import Retry
from mixpanel_async._model.records import RecordKind
from mixpanel_async._runtime.environment import real_environment
from mixpanel_async.emulator import Emulator

NO_BACKOFF = RetryPolicy(initial=0.0, maximum=0.0)
NO_LINGER_TIMEOUT = BatchPolicy(linger=3600.0)
ACCOUNT = ServiceAccountCredentials("account", "canary-secret", "12345")


def _first_success(chance: random.Random) -> float:
    """Return the virtual time of the first success after an outage from 0 to 30 s."""
    policy = RetryPolicy()
    buffer = Buffer(BatchPolicy(linger=0.0), policy, None)
    now = chance.random()
    buffer.offer(buffer.lane(RecordKind.EVENTS), b"{}", now)
    failures = 0
    while True:
        step = buffer.poll(now)
        assert isinstance(step, Batch)
        if now >= 30:
            return now
        failures += 1
        wait = backoff(policy, failures, None, chance.random())
        buffer.settle(step, Retry(message="503", applied=False, status=503), now, wait)
        now += wait


def test_c3_200_clients_do_not_reconnect_at_the_same_time() -> None:
    """No second has more than three times the mean. Summed over 25 fleets; one fleet has only about four a second."""
    arrivals = [_first_success(random.Random(client)) for client in range(25 * 200)]
    assert len(set(arrivals)) == len(arrivals)
    mean = len(arrivals) / (max(arrivals) - 30)
    assert max(Counter(int(at) for at in arrivals).values()) <= 3 * mean


def _virtual(**options: Any) -> tuple[Emulator, AsyncMixpanel]:
    """Return an emulator and a client on trio's mock clock, which jumps to the next deadline."""
    emulator = Emulator()
    # Not `trio.current_time`: the statistics are read after the end of the loop, too.
    clock = trio.lowlevel.current_clock()
    runtime = replace(real_environment(), monotonic=clock.current_time, random=random.Random(5).random)
    return emulator, emulator_client_in(runtime, emulator, **options)


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  in virtual time
        await trio.sleep(0.01)


def test_c5_backlog_drains_at_full_rate_after_ten_minutes_of_outage() -> None:
    async def main() -> None:
        emulator, mp = _virtual()
        began = trio.current_time()
        emulator.fail_next(503, times=1_000_000)
        for second in range(600):
            for number in range(20):
                mp.track_nowait("user", "Event", {"number": second * 20 + number})
            await mp.people_set("user", {"second": second})
            await trio.sleep(1)
        assert mp.stats().delivered == 0
        tries = len(emulator.requests())
        # Two lanes with at max_connections about one attempt in half a maximum backoff.
        assert tries <= 80
        emulator.stop_faults()
        recovered = trio.current_time()
        await _until(lambda: mp.stats().delivered > 0)
        assert trio.current_time() - recovered <= 61
        await _until(lambda: mp.stats().pending == 0)
        assert trio.current_time() - recovered <= 120
        assert trio.current_time() - began >= 600
        await mp.aclose()
        assert mp.stats().delivered == 12_600
        assert len(emulator.events()) == len(emulator.raw_events()) == 12_000
        assert (emulator.profile("user") or {})["second"] == 599

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.0))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["drop", "hang", "half", "empty", "truncated"])
async def test_c6_request_applied_without_response_counts_once_and_is_uncertain(kind: Any) -> None:
    emulator = Emulator()
    emulator.break_next(kind, path="/track", apply=True)
    emulator.break_next(kind, path="/engage", apply=True)
    async with emulator.client(retry=NO_BACKOFF, batching=NO_LINGER_TIMEOUT, timeout=0.2) as mp:
        for number in range(10):
            await mp.track("user", "Event", {"number": number})
        for _ in range(10):
            await mp.people_increment("user", {"visits": 1})
        result = await mp.flush()
        assert (result.delivered, result.losses) == (10, {"uncertain": 10})
        assert mp.stats().uncertain == 10
    assert len(emulator.events("Event")) == 10
    assert (emulator.profile("user") or {})["visits"] == 10


@pytest.mark.anyio
async def test_c10_200_awaited_calls_share_a_bounded_pool() -> None:
    emulator = Emulator(IdMerge.ORIGINAL, cluster_limit=1_000)
    emulator.latency = 0.01
    max_connections = 0
    async with emulator.serve() as server, AsyncMixpanel("token", api_host=server.url) as mp:

        async def watch() -> None:
            nonlocal max_connections
            while True:
                max_connections = max(max_connections, len(server._connections))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as watching:
            watching.start_soon(watch)
            async with anyio.create_task_group() as tasks:
                for number in range(200):
                    tasks.start_soon(mp.alias, f"alias-{number}", "person")
            watching.cancel_scope.cancel()
    assert len(emulator.cluster("person")) == 201
    assert 1 < max_connections <= 30


@pytest.mark.anyio
async def test_c12_three_bad_rows_of_2_000_lose_three_in_one_request() -> None:
    emulator = Emulator()
    emulator.break_next("partial", path="/import", indexes=(0, 777, 1_999))
    lost: list[LostRecord] = []
    async with emulator.client(
        credentials=ACCOUNT, batching=NO_LINGER_TIMEOUT, on_drop=lambda records, reason: lost.extend(records)
    ) as mp:
        for number in range(2_000):
            await mp.track("user", "Event", {"number": number})
        result = await mp.flush()
    assert (result.delivered, result.losses) == (1_997, {"rejected": 3})
    assert len(emulator.requests()) == 1
    assert [(record.payload or {})["properties"]["number"] for record in lost] == [0, 777, 1_999]
    assert all(record.field and record.message for record in lost)


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


class RecordingServer:
    """Server that records requests and sends one fixed response, or none."""

    def __init__(self, answer: bytes = b"") -> None:
        self.answer = answer
        self.seen = b""
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                request = b""
                while not _is_whole(request):
                    part = connection.recv(65_536)
                    if not part:
                        break
                    request += part
                    self.seen += part
                if self.answer:
                    connection.sendall(self.answer)

    def close(self) -> None:
        # `close` alone does not wake a thread blocked in `accept`.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def recording_server() -> Iterator[RecordingServer]:
    recording_server = RecordingServer()
    yield recording_server
    recording_server.close()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["elsewhere", "itself"])
async def test_c16_redirect_is_not_followed_and_leaks_nothing(
    status: int, where: str, recording_server: RecordingServer
) -> None:
    answer = (
        f"HTTP/1.1 {status} Moved\r\nLocation: %s/track?canary-query\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    )
    sender = RecordingServer()
    sender.answer = (answer % (recording_server.url if where == "elsewhere" else sender.url)).encode()
    try:
        mp = AsyncMixpanel("token", api_host=sender.url, credentials=ACCOUNT, shutdown_timeout=0.1)
        async with mp:
            with pytest.raises(ApiError) as caught:
                await mp.alias("new", "old")
            await mp.track("user", "Event")
            assert (await mp.flush(timeout=0.1)).delivered == 0
            assert mp.stats().pending == 1
    finally:
        sender.close()
    assert (caught.value.status, caught.value.attempts) == (status, 1)
    assert "canary-query" not in f"{caught.value}{mp.stats()}"
    assert recording_server.connections == 0
    assert sender.connections == 2


@pytest.mark.anyio
async def test_c18_proxy_of_the_environment_is_used_and_its_password_is_never_shown(
    monkeypatch: pytest.MonkeyPatch, recording_server: RecordingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    recording_server.answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://user:canary-password@127.0.0.1:{recording_server.port}")
    shown = []
    for host in ("https://mixpanel.invalid", "http://mixpanel.invalid"):
        mp = AsyncMixpanel(
            "token",
            api_host=host,
            allow_http=True,
            identity_retry=RetryPolicy(attempts=1),
            shutdown_timeout=0.1,
            timeout=5.0,
        )
        async with mp:
            with pytest.raises(MixpanelException) as caught:
                await mp.alias("new", "old")
            await mp.track("user", "Event")
        shown.append(f"{caught.value!r} {caught.value} {mp.stats()} {mp!r}")
    assert b"CONNECT mixpanel.invalid:443" in recording_server.seen
    assert b"POST http://mixpanel.invalid/track" in recording_server.seen
    assert b"Proxy-Authorization: Basic" in recording_server.seen
    text = "".join(shown) + caplog.text
    for secret in ("canary-password", "dXNlcjpjYW5hcnktcGFzc3dvcmQ="):
        assert secret not in text


RESOLVER = """
import asyncio, socket, sys, time
from mixpanel_async import AsyncMixpanel

def getaddrinfo(*args, **options):
    time.sleep(60)

socket.getaddrinfo = getaddrinfo

async def main():
    mp = AsyncMixpanel("token", api_host="https://mixpanel.invalid", shutdown_timeout=0.5, timeout=0.3)
    for _ in range(5):
        await mp.track("user", "Event")
        await mp.flush(timeout=0.1)
    await mp.aclose()
    print(mp.stats().losses)

asyncio.run(main())
"""


def test_c8_blocked_resolver_delays_neither_close_nor_exit() -> None:
    done = subprocess.run([sys.executable, "-c", RESOLVER], capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 0
    assert done.stdout.strip() == "{'closed': 5}"


def test_c17_backoff_of_one_lane_does_not_delay_another() -> None:
    """Failures of `/engage` never delay an event beyond its linger. Runs in virtual time."""

    async def main() -> None:
        emulator, mp = _virtual(batching=BatchPolicy(linger=1.0))
        emulator.fail_next(503, times=1_000_000, path="/engage")
        delays = []
        for number in range(200):
            await mp.people_set("user", {"number": number})
            began = trio.current_time()
            await mp.track("user", "Event")
            await _until(lambda: mp.stats().delivered > number)  # noqa: B023  awaited here
            delays.append(trio.current_time() - began)
        assert max(delays) <= 1.2
        assert mp.stats().pending == 200
        assert all(later >= earlier for earlier, later in pairwise(sorted(delays)))
        emulator.stop_faults()
        await mp.aclose()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.0))
