"""Part F of the fault catalogue: queue, memory, input. Test names start with the row id."""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import orjson
import pytest

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    DropReason,
    LostRecord,
    Overflow,
    QueueFullError,
    RetryPolicy,
    SqliteSpool,
    ValidationError,
)
from mixpanel_async.emulator import Emulator

NO_BACKOFF = RetryPolicy(initial=0.0, maximum=0.0)
NO_LINGER_TIMEOUT = BatchPolicy(linger=3600.0)
OK = {"status": 1, "error": None}

# Track at full speed during an outage, then end the outage. Prints measurements as JSON.
OUTAGE = """
import asyncio, json, re, sys, time
from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow, SqliteSpool

events, path, limit = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
TEXT = "x" * 900
up = False

def rss(peak=False):
    status = open("/proc/self/status").read()
    return int(re.search(r"^Vm%s:\\s+(\\d+) kB$" % ("HWM" if peak else "RSS"), status, re.M)[1]) * 1024

class Protocol(asyncio.Protocol):
    # No framework, so that the measurement covers only the client.
    def connection_made(self, transport):
        self.transport, self.buffer = transport, bytearray()
    def data_received(self, data):
        self.buffer += data
        head, end, body = self.buffer.partition(b"\\r\\n\\r\\n")
        if end and len(body) >= int(re.search(rb"(?i)content-length: *(\\d+)", head)[1]):
            self.buffer.clear()
            status, answer = (b"200 OK", b'{"status":1}') if up else (b"503 Down", b"{}")
            self.transport.write(b"HTTP/1.1 %b\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (status, len(answer), answer))

async def main():
    global up
    server = await asyncio.get_running_loop().create_server(Protocol, "127.0.0.1", 0)
    origin = "http://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
    spool = SqliteSpool(path) if path else None
    batching = BatchPolicy(max_pending_bytes=limit) if spool is None else BatchPolicy(linger=0.1)
    mp = AsyncMixpanel("token", api_host=origin, spool=spool, batching=batching, shutdown_timeout=60)
    await mp.start()
    for _ in range(2_000):
        await mp.track("user", "Warm", {"text": TEXT})
    await asyncio.sleep(0.3)
    before, began = rss(), time.perf_counter()
    for start in range(0, events, 1_000):
        numbers = range(start, start + 1_000)
        await asyncio.gather(*(mp.track("user", "Event", {"text": TEXT, "number": number}) for number in numbers))
    tracked = time.perf_counter() - began
    growth = rss(peak=True) - before
    held, losses, pending = mp.stats().pending_bytes, dict(mp.stats().losses), mp.stats().pending
    up, began = True, time.perf_counter()
    while mp.stats().pending:
        await mp.flush(timeout=5)
    drained = time.perf_counter() - began
    peak = rss(peak=True) - before
    await mp.aclose()
    stats = mp.stats()
    server.close()
    print(json.dumps({
        "growth": growth, "peak": peak, "held": held, "losses": losses, "pending": pending, "tracked": tracked,
        "drained": drained, "accepted": stats.accepted, "delivered": stats.delivered, "dropped": stats.dropped,
    }))

asyncio.run(main())
"""


MIB = 2**20
DEFAULT_LIMIT = BatchPolicy().max_pending_bytes


def _outage(events: int, path: str, limit: int = DEFAULT_LIMIT) -> dict[str, Any]:
    command = [sys.executable, "-c", OUTAGE, str(events), path, str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3_000, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    sys.stdout.write(
        f"\n{'spool' if path else 'memory'}: {events:,} events of 1 kB in {figures['tracked']:.0f} s of outage; growth "
        f"{figures['growth'] / 2**20:.0f} MiB, {figures['peak'] / 2**20:.0f} MiB with draining; {figures['pending']:,} "
        f"drained at {figures['pending'] / figures['drained']:,.0f} a second; dropped {figures['dropped']:,}\n"
    )
    assert figures["accepted"] == events + 2_000 == figures["delivered"] + figures["dropped"]
    return figures


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_f1_outage_keeps_memory_within_its_bound() -> None:
    limit = 20 * MIB
    figures = _outage(30_000, "", limit)
    assert figures["dropped"] > 0
    assert figures["losses"] == {"queue_full": figures["dropped"]}
    assert figures["growth"] <= limit * 1.5 + 32 * MIB


@pytest.mark.long
@pytest.mark.timeout(3_100)
def test_f1_ten_minute_outage_at_5_000_events_a_second_in_memory() -> None:
    figures = _outage(3_000_000, "")
    assert figures["peak"] <= DEFAULT_LIMIT * 1.5 + 32 * MIB


@pytest.mark.long
@pytest.mark.timeout(3_100)
def test_f1_ten_minute_outage_at_5_000_events_a_second_with_a_spool(tmp_path: Path) -> None:
    figures = _outage(3_000_000, str(tmp_path / "spool"))
    assert figures["dropped"] == 0
    assert figures["growth"] <= 64 * MIB
    assert figures["peak"] <= 64 * MIB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_f1_outage_with_a_spool_keeps_memory_small(tmp_path: Path) -> None:
    figures = _outage(8_000, str(tmp_path / "spool"))
    assert figures["dropped"] == 0
    assert figures["peak"] <= 64 * MIB


def test_f2_slow_server_causes_few_tasks_and_sockets() -> None:
    emulator = Emulator()

    async def main() -> None:
        emulator.break_next("hang", times=1_000)
        with emulator.serve() as server:
            mp = AsyncMixpanel(
                "token", api_host=server.url, batching=BatchPolicy(max_events=10, linger=0.0), shutdown_timeout=0.0
            )
            max_tasks = max_sockets = 0
            for number in range(20_000):
                await mp.track("user", "Event", {"number": number})
                if number == 1_000:
                    while len(emulator.requests()) < BatchPolicy().max_in_flight:
                        await anyio.lowlevel.checkpoint()
                if number % 500 == 0:
                    await asyncio.sleep(0)
                    max_tasks = max(max_tasks, len(asyncio.all_tasks()))
                    max_sockets = max(max_sockets, len(server._connections))
            assert mp.stats().in_flight <= BatchPolicy().max_in_flight
            await mp.aclose()
        # The senders plus a few other tasks; the server runs in another loop.
        assert max_tasks <= BatchPolicy().max_in_flight + 5
        assert 0 < max_sockets <= BatchPolicy().max_in_flight

    asyncio.run(main())


@pytest.mark.anyio
@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST], ids=lambda one: one.value)
async def test_f3_drops_are_counted_reported_and_logged_once(
    overflow: Overflow, caplog: pytest.LogCaptureFixture
) -> None:
    reported: list[int] = []
    calls = 0

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        nonlocal calls
        assert reason is DropReason.QUEUE_FULL
        calls += 1
        reported.extend((record.payload or {})["properties"]["number"] for record in records)

    emulator = Emulator()
    policy = BatchPolicy(max_pending_events=100, linger=3600.0)
    mp = emulator.client(batching=policy, overflow=overflow, on_drop=on_drop)
    for number in range(1_000):
        mp.track_nowait("user", "Event", {"number": number})
    await mp.aclose()
    kept = [event["properties"]["number"] for event in emulator.events()]
    assert mp.stats().losses == {"queue_full": 900}
    assert sorted(reported + kept) == list(range(1_000))
    assert kept == (list(range(100)) if overflow is Overflow.DROP_NEWEST else list(range(900, 1_000)))
    lines = [record.getMessage() for record in caplog.records if "dropped" in record.getMessage()]
    assert lines == [
        "events: 1 record dropped (queue_full), 1 so far",
        "events: 899 records dropped (queue_full), 900 so far",
    ]


class Counted:
    """Value that the serializer converts to a number and counts."""


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("call", ["track", "people_set", "import_data", "bind"])
async def test_f4_property_with_millions_of_values_is_refused_without_visiting_all(call: str) -> None:
    serialized = 0

    def serializer(value: Any) -> int:
        nonlocal serialized
        serialized += 1
        return 0

    # Three nested lists of 254 elements represent 16 million values.
    shared: Any = Counted()
    for _ in range(3):
        shared = [shared] * 254
    properties = {"fine": 1, "shared": shared}
    async with Emulator().client(serializer=serializer) as mp:
        calls: dict[str, Any] = {
            "track": lambda: mp.track("user", "Event", properties),
            "people_set": lambda: mp.people_set("user", properties),
            "bind": lambda: mp.bind(properties=properties).track("Event"),
            "import_data": lambda: mp.import_data(None, "user", "Event", 1_700_000_000, properties),
        }
        with pytest.raises(ValidationError, match="less than 1000000 bytes as JSON") as caught:
            await calls[call]()
    assert "shared[" in caught.value.path
    # At two bytes for each value, a message has room for this many.
    assert serialized <= 500_000


class EndlessMapping(dict[str, Any]):
    def items(self) -> Any:
        number = 0
        while True:
            number += 1
            yield str(number), number


class EndlessList(list[Any]):
    def __iter__(self) -> Any:
        while True:
            yield 1


@pytest.mark.anyio
async def test_f4_endless_containers_are_refused() -> None:
    async with Emulator().client() as mp:
        bound = mp.bind(distinct_id="user")
        calls: dict[str, Callable[[], Any]] = {
            "properties": lambda: mp.track("user", "Event", EndlessMapping()),
            "properties.a": lambda: mp.track("user", "Event", {"a": EndlessMapping()}),
            "properties.b": lambda: mp.track("user", "Event", {"b": EndlessList()}),
            "$set": lambda: mp.people_set("user", EndlessMapping()),
            "$set.a": lambda: mp.people_set("user", {"a": EndlessList()}),
            "message": lambda: mp.people_update(EndlessMapping()),
            "meta": lambda: mp.alias("new", "old", EndlessMapping()),
            "$unset": lambda: mp.people_unset("user", EndlessList(["a"])),
        }
        for path, call in calls.items():
            with pytest.raises(ValidationError) as caught, anyio.fail_after(5):
                await call()
            assert caught.value.path.startswith(path)
        with pytest.raises(ValidationError):
            await bound.track("Event", EndlessMapping())


def nested(levels: int, value: Any = 1) -> Any:
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.anyio
async def test_f4_no_accepted_value_fails_a_batch() -> None:
    emulator = Emulator()
    odd: list[Any] = [
        2**64 - 1, -(2**63), 1e308, "\x00", "\ud7ff", "é" * 300, [[[]]], {"": {"": {}}}, "x" * 900_000, [1] * 254,
        nested(100),
    ]  # fmt: skip
    refused = [float("nan"), float("inf"), "\ud800", b"b", 10**400, {(1,): 1}, {1, b""}, nested(101)]
    async with emulator.client() as mp:
        for value in odd:
            await mp.track("user", "Event", {"value": value})
        for value in refused:
            with pytest.raises(ValidationError, match=r"properties\.value"):
                await mp.track("user", "Event", {"value": value})
    assert mp.stats().delivered == len(odd)
    assert emulator.rejected() == []


@pytest.mark.anyio
async def test_f5_later_changes_of_arguments_are_not_sent() -> None:
    emulator = Emulator()
    properties: dict[str, Any] = {"list": [1], "nested": {"a": [1]}}
    async with emulator.client(batching=NO_LINGER_TIMEOUT) as mp:
        bound = mp.bind(distinct_id="user", properties=properties)
        await mp.track("user", "Event", properties)
        await mp.people_set("user", properties)
        properties["list"].append(2)
        properties["nested"]["a"].append(2)
        properties["new"] = 1
        await bound.track("Bound")
    for event in emulator.events():
        assert (event["properties"]["list"], event["properties"]["nested"]) == ([1], {"a": [1]})
        assert "new" not in event["properties"]
    assert (emulator.profile("user") or {})["list"] == [1]


@pytest.mark.anyio
async def test_f6_validation_errors_show_the_size_and_not_the_payload() -> None:
    async with Emulator().client() as mp:
        for properties in (
            {"text": "canary" * 200_000},
            {f"canary{number}": 1 for number in range(255)},
            {"a": ["canary"] * 255},
            {"a": nested(101, "canary")},
        ):
            with pytest.raises(ValidationError) as caught:
                await mp.track("user", "Event", properties)
            assert "canary" not in str(caught.value)
            assert re.search(r"\d|deeper", str(caught.value))


async def _check_request_limits(batches: int) -> None:
    chance = random.Random(8)
    sizes: list[tuple[int, int]] = []
    records = 0

    def answer(request: httpx.Request) -> httpx.Response:
        body = request.content
        if request.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        sizes.append((len(orjson.loads(body)), len(body)))
        return httpx.Response(200, json=OK)

    http_client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    policy = BatchPolicy(max_events=50, max_bytes=40_000, linger=3600.0)
    async with Emulator().client(http_client=http_client, batching=policy, overflow=Overflow.WAIT) as mp:
        while len(sizes) < batches:
            size = int(10 ** chance.uniform(0, 4.4))
            await mp.track("user", "Event", {"text": "x" * size})
            records += 1
        await mp.flush()
    await http_client.aclose()
    assert sum(count for count, _ in sizes) == records
    assert not [one for one in sizes if one[0] > 50 or one[1] > 40_000]


@pytest.mark.anyio
async def test_f8_no_request_exceeds_a_limit() -> None:
    await _check_request_limits(50)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.anyio
async def test_f8_none_of_10_000_requests_exceeds_a_limit() -> None:
    await _check_request_limits(10_000)


@pytest.mark.anyio
async def test_f10_100_flushes_return_during_tracking_and_closing() -> None:
    emulator = Emulator()
    emulator.random_faults(3, rate=0.3)
    mp = emulator.client(retry=NO_BACKOFF, batching=NO_LINGER_TIMEOUT)
    covered = 0

    async def flush(number: int) -> None:
        nonlocal covered
        await mp.track("user", "Event", {"number": number})
        before = mp.stats().accepted
        await mp.flush()
        stats = mp.stats()
        assert stats.delivered + stats.failed + stats.dropped >= before or stats.pending
        covered += 1

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(flush, number)
            while covered < 50:
                await anyio.lowlevel.checkpoint()
            tasks.start_soon(mp.aclose)
    stats = mp.stats()
    assert (covered, stats.pending) == (100, 0)
    assert stats.delivered == len(emulator.events()) == 100


@pytest.mark.anyio
@pytest.mark.parametrize("with_spool", [False, True], ids=["memory", "spool"])
async def test_f12_close_with_a_dead_server_ends_and_keeps_spooled_records(with_spool: bool, tmp_path: Path) -> None:
    emulator = Emulator()
    emulator.break_next("hang", times=1_000)
    path = tmp_path / "spool"
    options: dict[str, Any] = {"spool": SqliteSpool(path)} if with_spool else {}
    mp = emulator.client(shutdown_timeout=0.2, **options)
    # `track` would wait for one commit in each call.
    for _ in range(10_000):
        mp.track_nowait("user", "Event")
    with anyio.fail_after(5):
        result = await mp.aclose()
    stats = mp.stats()
    if not with_spool:
        assert (result.pending, stats.losses) == (0, {"closed": 10_000})
        return
    assert (result.pending, stats.pending, stats.losses) == (10_000, 10_000, {})
    emulator.stop_faults()
    later = emulator.client(**options)
    await later.start()
    with anyio.fail_after(20):
        while later.stats().recovered < 10_000 or later.stats().pending:
            await later.flush(timeout=0.5)
    await later.aclose()
    assert later.stats().delivered == len(emulator.events()) == 10_000


@pytest.mark.anyio
async def test_f11_calls_after_close_are_refused_and_the_result_adds_up() -> None:
    emulator = Emulator()
    emulator.fail_next(406, body=b'{"error":"no"}')
    mp = emulator.client(batching=BatchPolicy(max_events=5, linger=3600.0), shutdown_timeout=1.0)
    for number in range(12):
        await mp.track("user", "Event", {"number": number})
    result = await mp.aclose()
    stats = mp.stats()
    assert result.delivered + result.failed + result.pending <= 12
    # Batches of five, five and two; any of them may arrive first.
    assert (stats.delivered, stats.failed, stats.pending) in {(7, 5, 0), (10, 2, 0)}
    assert await mp.aclose() == result
    with pytest.raises(ClientClosedError, match="not accepted"):
        await mp.track("user", "Late")
    with pytest.raises(ClientClosedError, match="not accepted"):
        mp.track_nowait("user", "Late")
    assert mp.stats() == stats
    full = Emulator().client(batching=BatchPolicy(max_pending_events=1, linger=3600.0), overflow=Overflow.RAISE)
    full.track_nowait("user", "Event")
    with pytest.raises(QueueFullError):
        full.track_nowait("user", "Event")
    await full.aclose()
