"""`RedisOutbox` with clients that the user made: of a cluster, and of Sentinel."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis_server import RedisServer, free_port, require_binary

from mixpanel_async import AsyncMixpanel
from mixpanel_async.emulator import Emulator
from mixpanel_async.outbox import RedisOutbox
from mixpanel_async.worker import Worker

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
TOKEN: Final = "0123456789abcdef0123456789abcdef"
SLOTS: Final = 16_384


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)


async def assert_works(client: Any) -> None:
    """Hand records over, deliver them, and inspect and remove the queue."""
    outbox, emulator = RedisOutbox(client=client), Emulator(token=TOKEN)
    async with AsyncMixpanel(TOKEN, outbox=outbox) as mp:
        await mp.track("ada", "Viewed")
        await mp.people_increment("ada", {"visits": 1})
        assert (await mp.flush()).delivered == 2
    async with outbox.admin() as queue:
        status = await queue.status()
        assert (status.records, status.server.append_fsync, status.server.policy) == (2, "everysec", "noeviction")
        assert len([record async for record in queue.records()]) == 2
    with emulator.serve() as server:
        async with Worker(outbox, TOKEN, api_host=server.url) as worker:
            assert await worker.drain()
    assert (len(emulator.events("Viewed")), emulator.profile("ada")) == (1, {"visits": 1})
    async with outbox.admin() as queue:
        await queue.remove()
    await client.aclose()


async def test_client_of_a_cluster(new_redis_server: Callable[..., RedisServer]) -> None:
    server = new_redis_server("--cluster-enabled", "yes")
    assert server.command("CLUSTER", "ADDSLOTS", *map(str, range(SLOTS))) == b"+OK\r\n"
    wait_until(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"))
    await assert_works(RedisCluster(host="127.0.0.1", port=server.port))
    assert server.command("DBSIZE") == b":0\r\n"


async def test_client_of_sentinel(new_redis_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    server, port = new_redis_server(), free_port()
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor mixpanel 127.0.0.1 {server.port} 1\n"
    )
    log = (tmp_path / "sentinel.log").open("wb")
    command = [require_binary(), str(settings), "--sentinel"]
    with log, subprocess.Popen(command, stdout=log) as process:  # noqa: ASYNC220
        sentinel: Any = Sentinel([("127.0.0.1", port)])  # type: ignore[no-untyped-call]
        try:
            wait_until(lambda: b"+monitor" in (tmp_path / "sentinel.log").read_bytes())
            await assert_works(sentinel.master_for("mixpanel"))
        finally:
            for one in sentinel.sentinels:
                await one.aclose()
            process.send_signal(signal.SIGTERM)
    assert server.command("DBSIZE") == b":0\r\n"
