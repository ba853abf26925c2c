"""Client with a queue in a real Redis server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from outboxes import count_stored, stored, until
from redis_server import RedisServer

from mixpanel_async import AsyncMixpanel, BatchPolicy, ConfigurationError, RetryPolicy, SqliteSpool
from mixpanel_async.outbox import RedisOutbox

PROGRAM = Path(__file__).with_name("producer_process.py")
AT_ONCE = RetryPolicy(initial=0.01, maximum=0.05)
pytestmark = pytest.mark.anyio


def client(outbox: RedisOutbox, **options: Any) -> AsyncMixpanel:
    return AsyncMixpanel("token", outbox=outbox, **{"retry": AT_ONCE, **options})


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"debug": True})


async def updates(outbox: RedisOutbox, key: str = "n") -> list[int]:
    found = await stored(outbox)
    return [item["$add"][key] for lane in found.values() for item in lane if key in item.get("$add", {})]


async def test_records_of_all_kinds_are_in_redis(redis_server: RedisServer) -> None:
    outbox = RedisOutbox(redis_server.url)
    async with client(outbox) as mp:
        for number in range(1_000):
            await mp.track("user", "Event", {"number": number})
        await mp.import_data(None, "user", "Imported", 1_600_000_000)
        await mp.people_increment("user", {"n": 1})
        await mp.group_set("company", "Acme", {"n": 1})
        await mp.alias("user", "device", deferred=True)
    found = await stored(outbox)
    assert {lane.partition(":")[0]: len(items) for lane, items in found.items()} == {
        "events": 1_000, "imports": 1, "identity": 1, "people": 1, "groups": 1,
    }  # fmt: skip
    assert [item["properties"]["number"] for item in found["events"]] == [*range(1_000)]


def test_killed_producer_loses_nothing_that_was_confirmed(redis_server: RedisServer) -> None:
    acknowledged: dict[str, list[int]] = {}
    for producer in ("a", "b"):
        command = [sys.executable, str(PROGRAM), redis_server.url, producer]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(200)]
            process.kill()
            lines += process.stdout.read().splitlines()
        acknowledged[producer] = [int(line.split()[1]) for line in lines if line.strip()]
    for producer, numbers in acknowledged.items():
        kept = anyio.run(updates, RedisOutbox(redis_server.url), producer)
        assert len(numbers) >= 200
        assert len(kept) == len({*kept})
        assert {*numbers} <= {*kept}


async def test_killed_server_loses_nothing_and_stores_no_update_twice(
    new_redis_server: Callable[..., RedisServer],
) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url, timeout=0.5)
    async with client(outbox, batching=BatchPolicy(linger=0.0, max_events=20)) as mp:
        for turn in range(3):
            for number in range(turn * 100, turn * 100 + 100):
                await mp.people_increment(f"user-{number % 7}", {"n": number})
                await mp.track("user", f"Event {number}")
                if number % 100 == 50:
                    server.kill()
            server.start()
            await mp.flush()
        assert mp.stats().delivered == 600
    assert sorted(await updates(outbox)) == [*range(300)]
    assert len({item["event"] for item in (await stored(outbox))["events"]}) == 300


async def test_stopped_server_stores_no_update_twice(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url, timeout=0.1)
    async with client(outbox, batching=BatchPolicy(linger=0.0)) as mp:
        await mp.people_increment("user", {"n": 0})
        await mp.flush()
        server.signal(signal.SIGSTOP)
        await mp.people_increment("user", {"n": 1})
        await until(lambda: mp.stats().retries >= 2)
        server.signal(signal.SIGCONT)
        await mp.flush()
        assert mp.stats().delivered == 2
    assert await updates(outbox) == [0, 1]


async def test_read_only_and_full_servers_delay_records(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url)
    async with client(outbox, batching=BatchPolicy(linger=0.0)) as mp:
        for number, (begin, end) in enumerate(
            [
                (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
                (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
            ]
        ):
            assert server.command(*begin).startswith(b"+OK")
            await mp.people_increment("user", {"n": number})
            await mp.track("user", "Event")
            retries = mp.stats().retries
            await until(lambda: mp.stats().retries >= retries + 2)  # noqa: B023  called at once
            assert mp.stats().delivered == 2 * number
            assert server.command(*end).startswith(b"+OK")
            await mp.flush()
        assert mp.stats().delivered == 4
    assert await updates(outbox) == [0, 1]


async def test_wrong_password_keeps_records_and_is_reported(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server("--requirepass", "right")
    wrong = server.url.replace("redis://", "redis://:canary@")
    async with client(RedisOutbox(wrong), shutdown_timeout=0.0) as mp:
        await mp.track("user", "Event")
        result = await mp.flush(timeout=0.2)
        assert result.pending == 1
        assert "outbox: " in (result.last_error or "")
        assert "canary" not in (result.last_error or "")


async def test_evicting_server_is_refused_at_the_start(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server("--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match="allkeys-lru"):
        async with client(RedisOutbox(server.url)):
            pass


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused_at_the_start(redis_server: RedisServer) -> None:
    with pytest.raises(ConfigurationError, match="asyncio"):
        async with client(RedisOutbox(redis_server.url)):
            pass


async def test_environment_variable_names_the_queue(redis_server: RedisServer) -> None:
    variables = {"MIXPANEL_TOKEN": "token", "MIXPANEL_OUTBOX": f" {redis_server.url} "}
    async with AsyncMixpanel.from_env(variables) as mp:
        await mp.track("user", "Event")
    assert mp.stats().delivered == await count_stored(RedisOutbox(redis_server.url)) == 1
    async with AsyncMixpanel.from_env({**variables, "MIXPANEL_DISABLED": "1", "MIXPANEL_OUTBOX": "canary"}) as mp:
        assert not mp.enabled
    with pytest.raises(ConfigurationError) as error:
        AsyncMixpanel.from_env({**variables, "MIXPANEL_OUTBOX": "http://canary"})
    assert "canary" not in str(error.value)


def test_client_moves_to_the_next_event_loop_and_a_forked_child_has_its_own_connection(
    redis_server: RedisServer,
) -> None:
    outbox = RedisOutbox(redis_server.url)
    mp = client(outbox)

    async def add(number: int) -> None:
        await mp.people_increment("user", {"n": number})
        await mp.flush()

    async def fork() -> None:
        await add(1)
        pid = os.fork()
        if not pid:
            # The event loop of the parent is unusable in the child: another thread runs a new one.
            done = 1
            try:
                thread = threading.Thread(target=anyio.run, args=(add, 2))
                thread.start()
                thread.join()
                done = 0 if mp.stats().delivered == 1 else 2
            finally:
                os._exit(done)
        _, status = await anyio.to_thread.run_sync(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        await add(3)

    async def close() -> None:
        await add(4)
        await mp.aclose()

    anyio.run(add, 0)
    anyio.run(fork)
    anyio.run(close)
    assert anyio.run(updates, outbox) == [0, 1, 2, 3, 4]
    assert mp.stats().delivered == 4


async def test_spool_below_an_outbox_survives_an_outage_and_a_restart(
    new_redis_server: Callable[..., RedisServer], tmp_path: Path
) -> None:
    server = new_redis_server()
    server.kill()
    options: dict[str, Any] = {"spool": SqliteSpool(tmp_path / "spool.db"), "shutdown_timeout": 0.0}
    outbox = RedisOutbox(server.url)
    async with client(outbox, **options) as mp:
        for number in range(50):
            await mp.people_increment(f"user-{number}", {"n": number})
        assert mp.stats().pending == 50
    server.start()
    async with client(outbox, **options) as mp:
        await until(lambda: mp.stats().recovered == 50)
        await mp.flush(timeout=20)
        assert mp.stats().delivered == 50
    assert sorted(await updates(outbox)) == [*range(50)]
