"""What writers and inboxes do when Redis fails, refuses, forgets or is full. Each test starts a separate server."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import anyio
import pytest
from conformance import TOKEN, entry_of, ids, numbered, numbers, put, read, worker
from redis_server import RedisServer

from mixpanel_async import ConfigurationError
from mixpanel_async._model.errors import OutboxError
from mixpanel_async._model.records import DropReason, NonIdempotentRecord
from mixpanel_async.outbox import BeginResult, DeadEntry, Inbox, PutResult, RedisOutbox

pytestmark = pytest.mark.anyio
T = TypeVar("T")
NewServer = Callable[..., RedisServer]


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"debug": True})


@asynccontextmanager
async def closing(*connections: T) -> AsyncIterator[tuple[T, ...]]:
    """Close writers and inboxes at the end."""
    async with AsyncExitStack() as stack:
        for one in connections:
            stack.push_async_callback(one.aclose)  # type: ignore[attr-defined]
        yield connections


@asynccontextmanager
async def open_writer(outbox: RedisOutbox) -> AsyncIterator[Any]:
    writer = outbox.writer(TOKEN)
    async with closing(writer):
        await writer.open()
        yield writer


@asynccontextmanager
async def open_worker(outbox: RedisOutbox, name: str = "w") -> AsyncIterator[Inbox]:
    inbox = outbox.inbox(TOKEN, name)
    async with closing(inbox):
        await inbox.open()
        await inbox.heartbeat()
        yield inbox


async def yield_to_server() -> None:
    """Give another process time."""
    await anyio.sleep(0.01)


async def succeed(call: Callable[[], Any]) -> Any:
    """Repeat a call until Redis is back."""
    with anyio.fail_after(20):
        while True:
            with contextlib.suppress(OutboxError):
                return await call()
            await yield_to_server()


async def test_killed_server_keeps_what_it_confirmed(new_redis_server: NewServer) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        assert await writer.put([numbered(1), numbered(2, "people:0", sequence=1)]) == [PutResult.TAKEN] * 2
        (first,) = await read(inbox)
        server.kill()
        with pytest.raises(OutboxError) as caught:
            await writer.put([numbered(3)])
        assert not caught.value.refused
        with pytest.raises(OutboxError, match="no connection to Redis") as caught:
            await inbox.settle([first.id])
        assert not caught.value.uncertain
        server.start()
        answers = await succeed(lambda: writer.put([numbered(2, "people:0", sequence=1), numbered(3)]))
        assert answers == [PutResult.KNOWN, PutResult.TAKEN]
        assert await succeed(lambda: inbox.settle([first.id])) == 1
        assert (await inbox.heartbeat()).gone == frozenset()
        assert sorted(numbers(await read(inbox, "events", "people:0"))) == [2, 3]


async def test_answer_that_was_lost_is_found_again(new_redis_server: NewServer) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url, timeout=0.2)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        await writer.put([numbered(1), numbered(2)])
        (first,) = await read(inbox, most=1)
        server.signal(signal.SIGSTOP)
        started = time.monotonic()
        with pytest.raises(OutboxError) as caught:
            await read(inbox)
        assert caught.value.uncertain
        with pytest.raises(OutboxError):
            await writer.put([numbered(3, "people:0", sequence=1)])
        assert time.monotonic() - started < 5
        server.signal(signal.SIGCONT)
        answers = await succeed(lambda: writer.put([numbered(3, "people:0", sequence=1)]))
        assert answers[0] in (PutResult.TAKEN, PutResult.KNOWN)
        held = await succeed(inbox.heartbeat)
        assert held.gone == frozenset()
        assert numbers([*await read(inbox), *await read(inbox, "people:0")]) == [2, 3]
        assert await inbox.settle([first.id]) == 1


async def test_slow_server_is_waited_for_up_to_the_timeout(new_redis_server: NewServer) -> None:
    server = new_redis_server()
    async with open_writer(RedisOutbox(server.url, timeout=0.2)) as writer:
        server.command("CLIENT", "PAUSE", "600")
        with pytest.raises(OutboxError, match="no answer from Redis") as caught:
            await writer.put([numbered(1)])
        assert (caught.value.uncertain, caught.value.refused) == (True, False)


async def test_full_server_takes_nothing_and_workers_drain_it(new_redis_server: NewServer) -> None:
    server = new_redis_server("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    outbox = RedisOutbox(server.url)
    big = entry_of(b'{"a":"%b"}' % os.urandom(30_000).hex().encode(), NonIdempotentRecord(b'{"b":1}'))
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        taken = 0
        while (await writer.put([big]))[0] is PutResult.TAKEN:
            taken += 1
        assert 10 < taken < 100
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        assert await writer.put([numbered(1), numbered(2)]) == [PutResult.FULL] * 2
        await inbox.pause("/track", 10)
        assert (await inbox.heartbeat()).pauses["/track"] > 5
        async with open_worker(outbox, "another") as other:
            await other.release()
        while found := await read(inbox, most=10):
            assert [*await inbox.begin(ids(found))] == [BeginResult.MINE] * len(found)
            dead = [DeadEntry(id=ids(found)[0], reason=DropReason.REJECTED, records=[b'{"a":1}'])]
            taken -= await inbox.settle(ids(found), dead)
        assert taken == 0
        held = await inbox.heartbeat()
        assert (held.waiting, held.dead > 0) == (0, True)
        await inbox.release()
        server.command("CONFIG", "SET", "maxmemory", "100mb")
        assert await writer.put([numbered(1)]) == [PutResult.TAKEN]


async def test_emptied_server_is_reported_once_and_used_again(
    new_redis_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        await writer.put([*map(numbered, range(3)), numbered(4, "people:0")])
        await inbox.heartbeat()
        found = ids(await read(inbox, "events", "people:0"))
        server.command("FLUSHALL")
        assert await writer.put([numbered(5)]) == [PutResult.TAKEN]
        assert [*await inbox.begin(found[:1])] == [BeginResult.GONE]
        assert await inbox.settle(found[:1]) == 0
        held = await inbox.heartbeat()
        assert held.gone == set(found[1:])
        assert (held.waiting, held.losses, held.lost_records) == (1, 1, 4)
        assert (await inbox.heartbeat()).losses == 0
        assert numbers(await read(inbox)) == [5]
    lines = [one for one in caplog.records if one.levelno >= logging.ERROR]
    events: list[Any] = [one.__dict__["mixpanel"] for one in lines]
    assert [one["event"] for one in events] == ["outbox_lost", "outbox_lost"]  # of the writer and of the inbox
    assert [one["records"] for one in events] == [None, 4]


async def test_removed_stream_is_counted_and_made_again(
    new_redis_server: NewServer, caplog: pytest.LogCaptureFixture
) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url, max_records=4)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        await writer.put([*map(numbered, range(3)), numbered(3, "people:0")])
        found = ids(await read(inbox))
        server.command("DEL", "{mixpanel}:events")
        assert await inbox.settle(found[:1]) == 0
        assert (await inbox.heartbeat()).gone == set(found[1:])
        assert (await inbox.heartbeat()).waiting == 1
        assert await writer.put([*map(numbered, range(4))]) == [PutResult.TAKEN] * 3 + [PutResult.FULL]
        assert numbers(await read(inbox)) == [0, 1, 2]
    assert [one.__dict__["mixpanel"]["records"] for one in caplog.records if one.name == "mixpanel_async"] == [3]


@pytest.mark.parametrize("lane", ["events", "people:0"])
async def test_entry_that_ends_after_its_group_was_removed_is_not_read_again(
    redis_server: RedisServer, lane: str
) -> None:
    outbox = RedisOutbox(redis_server.url)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        await writer.put([entry_of(NonIdempotentRecord(b'{"number":1}'), lane=lane), numbered(2, lane)])
        (first,) = await read(inbox, lane, most=1)
        assert await inbox.begin([first.id]) == [BeginResult.MINE]
        redis_server.command("XGROUP", "DESTROY", f"{{mixpanel}}:{lane}", "w")
        assert await inbox.settle([first.id]) == 1
        await inbox.heartbeat()
        assert numbers(await read(inbox, lane)) == [2]


@pytest.mark.parametrize("lane", ["events", "people:0"])
async def test_entry_that_was_gone_is_read_again(redis_server: RedisServer, lane: str) -> None:
    outbox = RedisOutbox(redis_server.url)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        await writer.put([numbered(1, lane), numbered(2, lane)])
        first, second = await read(inbox, lane)
        redis_server.command("XGROUP", "DESTROY", f"{{mixpanel}}:{lane}", "w")
        assert await inbox.begin([first.id]) == [BeginResult.GONE]
        await inbox.heartbeat()
        assert ids(await read(inbox, lane)) == [first.id, second.id]


@pytest.mark.parametrize("key", ["dead", "begun:events"])
async def test_settlement_that_meets_a_foreign_key_changes_nothing(redis_server: RedisServer, key: str) -> None:
    outbox = RedisOutbox(redis_server.url)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox, outbox.admin() as queue:
        await writer.put([numbered(1)])
        (one,) = await read(inbox)
        dead = DeadEntry(id=one.id, reason=DropReason.REJECTED, records=[b'{"number":1}'])
        redis_server.command("SET", f"{{mixpanel}}:{key}", "foreign")
        for _ in range(2):
            with pytest.raises(OutboxError, match="WRONGTYPE"):
                await inbox.settle([one.id], [dead])
        redis_server.command("DEL", f"{{mixpanel}}:{key}")
        assert await inbox.settle([one.id], [dead]) == 1
        status = await queue.status()
        assert (status.counters["in"], status.counters["dead"], status.records) == (1, 1, 0)


async def test_scripts_are_loaded_again(new_redis_server: NewServer) -> None:
    server = new_redis_server()
    outbox = RedisOutbox(server.url)
    async with open_writer(outbox) as writer, open_worker(outbox) as inbox:
        server.command("SCRIPT", "FLUSH")
        assert await writer.put([numbered(1)]) == [PutResult.TAKEN]
        assert numbers(await read(inbox)) == [1]


async def test_replica_is_read_only_and_has_the_records(new_redis_server: NewServer) -> None:
    server = new_redis_server()
    replica = new_redis_server("--replicaof", "127.0.0.1", str(server.port))
    outbox = RedisOutbox(server.url, replicas=1)
    async with open_writer(outbox) as writer:
        with anyio.fail_after(15):
            while b"master_link_status:up" not in replica.command("INFO", "replication"):
                await yield_to_server()
        assert await writer.put([numbered(1)]) == [PutResult.TAKEN]
        with pytest.raises(OutboxError, match="is not available") as caught:
            await put(RedisOutbox(replica.url), numbered(1))
        assert (caught.value.uncertain, caught.value.refused) == (False, False)
        replica.kill()
        with pytest.raises(OutboxError, match="0 of 1 replicas") as caught:
            await put(RedisOutbox(server.url, replicas=1, timeout=0.6), numbered(2))
        assert caught.value.uncertain


async def test_refusals_last_until_the_settings_change(new_redis_server: NewServer) -> None:
    server = new_redis_server("--requirepass", "secret-password")
    with_password = server.url.replace("redis://", "redis://:secret-password@")
    rules = ["~{mixpanel}:*", "+@stream", "+@hash", "+@sortedset", "+del", "+exists", "+time", "+eval", "+evalsha"]
    for url, words in [
        (server.url, "login"),
        (server.url.replace("redis://", "redis://:wrong-password@"), "login"),
        (server.url.replace("redis://", "redis://nobody:wrong-password@"), "login"),
    ]:
        with pytest.raises(OutboxError, match=words) as caught:
            await put(RedisOutbox(url), numbered(1))
        assert caught.value.refused
        assert "password" not in str(caught.value).replace("check user and password", "")
    admin = ["AUTH", "secret-password"]
    server.commands(admin, ["ACL", "SETUSER", "limited", "on", ">limited-password", *rules])
    server.commands(admin, ["ACL", "SETUSER", "other", "on", ">other-password", "~other:*", *rules[1:]])
    limited = RedisOutbox(server.url.replace("redis://", "redis://limited:limited-password@"))
    assert await put(limited, numbered(1)) == [PutResult.TAKEN]
    async with open_worker(limited) as inbox:
        assert numbers(await read(inbox)) == [1]
        await inbox.release()
    with pytest.raises(OutboxError, match="ACL") as caught:
        await put(RedisOutbox(server.url.replace("redis://", "redis://other:other-password@")), numbered(1))
    assert caught.value.refused
    with pytest.raises(OutboxError, match="the user may not run SELECT; check the ACL") as caught:
        await put(RedisOutbox(str(limited.url).removesuffix("/0") + "/1"), numbered(1))
    server.commands(admin, ["ACL", "SETUSER", "limited", "-xadd"])
    with pytest.raises(OutboxError, match="can't run this command") as caught:
        await put(limited, numbered(2))
    assert await put(RedisOutbox(with_password), numbered(2)) == [PutResult.TAKEN]


async def test_evicting_policy_is_refused(new_redis_server: NewServer) -> None:
    server = new_redis_server("--maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigurationError, match=r"allkeys-lru.*noeviction"):
        await put(RedisOutbox(server.url), numbered(1))


async def test_queue_with_other_settings_is_refused(redis_server: RedisServer) -> None:
    assert await put(RedisOutbox(redis_server.url, partitions=4), numbered(1)) == [PutResult.TAKEN]
    with pytest.raises(ConfigurationError, match="has 4 partitions, not 8"):
        await put(RedisOutbox(redis_server.url), numbered(1))
    assert await put(RedisOutbox(redis_server.url, name="other"), numbered(1)) == [PutResult.TAKEN]
    redis_server.command("HSET", "{other}:meta", "v", "2")
    with pytest.raises(ConfigurationError, match=r"format 2.*upgrade"):
        await put(RedisOutbox(redis_server.url, name="other"), numbered(1))


async def test_newer_and_spoiled_entries_do_not_stop_the_others(redis_server: RedisServer) -> None:
    outbox = RedisOutbox(redis_server.url)
    await put(outbox, numbered(1))
    newer = ["t", "1000", "n", "1", "v", "2", "b", "?"]
    redis_server.command("XADD", "{mixpanel}:events", "*", *newer)
    redis_server.command("XADD", "{mixpanel}:people:0", "*", *newer)
    redis_server.command("XADD", "{mixpanel}:events", "*", "unknown", "field")
    await put(outbox, numbered(2, "people:0"), numbered(3))
    async with open_worker(outbox) as inbox:
        found = await read(inbox, "events", "people:0")
        assert [one.entry.body for one in found] == [numbered(1).body, b"", numbered(3).body]
        assert (await inbox.heartbeat()).newer == 2
        assert await read(inbox, "events", "people:0") == []
        await inbox.release()
    async with open_worker(outbox, "upgraded") as inbox:
        assert numbers([one for one in await read(inbox) if one.entry.body]) == [1, 3]


async def test_entry_that_was_removed_by_hand_is_skipped(redis_server: RedisServer) -> None:
    outbox = RedisOutbox(redis_server.url)
    await put(outbox, numbered(1), numbered(2))
    async with open_worker(outbox) as first:
        (one, _) = await read(first)
        redis_server.command("XDEL", "{mixpanel}:events", one.id.id)
        await first.release()
    async with open_worker(outbox) as second:
        assert numbers(await read(second)) == [2]


async def test_decoding_client_is_refused(redis_server: RedisServer) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(redis_server.url, decode_responses=True)
    try:
        with pytest.raises(ConfigurationError, match="decode_responses"):
            await put(RedisOutbox(client=client), numbered(1))
    finally:
        await client.aclose()


async def test_client_of_the_user_stays_open(redis_server: RedisServer) -> None:
    from redis.asyncio import Redis

    client = Redis.from_url(redis_server.url)
    try:
        outbox = RedisOutbox(client=client)
        assert await put(outbox, numbered(1)) == [PutResult.TAKEN]
        inbox = await worker(outbox)
        assert numbers(await read(inbox)) == [1]
        await inbox.aclose()
        assert await client.ping()
    finally:
        await client.aclose()


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_trio_is_refused(anyio_backend: str) -> None:
    with pytest.raises(ConfigurationError, match="asyncio"):
        await RedisOutbox("redis://127.0.0.1:1").writer(TOKEN).open()


@pytest.mark.parametrize(
    ("url", "options", "words"),
    [
        (None, {}, "url"),
        ("http://user:hidden@localhost", {}, "redis://host"),
        ("redis://localhost:notaport", {}, "redis://host"),
        ("redis://localhost?decode_responses=true", {}, "decode_responses"),
        ("redis://user:hidden@localhost/database", {}, "database"),
        ("redis://user:hidden@localhost/-1", {}, "database"),
        ("redis://user:hidden@localhost?hidden=1", {}, "options"),
        ("redis://user:hidden@localhost?protocol=7", {}, "options"),
        ("rediss://user:hidden@localhost?ssl_cert_reqs=hidden", {}, "options"),
        ("redis://user:hidden@localhost ", {}, "redis://host"),
        ("redis://user:hidden#@localhost", {}, "redis://host"),
        ("unix://", {}, "unix://"),
        ("redis://localhost", {"name": ""}, "name"),
        ("redis://localhost", {"name": "a{b"}, "braces"),
        ("redis://localhost", {"name": "\ud800"}, "name"),
        ("redis://localhost", {"replicas": 11}, "replicas"),
        ("redis://localhost", {"timeout": 0.01}, "timeout"),
        ("redis://localhost", {"client": object()}, "not both"),
        (None, {"client": object()}, "redis.asyncio"),
    ],
)
async def test_wrong_option_is_refused(url: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        RedisOutbox(url, **options)
    assert "hidden" not in str(caught.value)
    trace = caught.value.__traceback__
    assert trace is not None
    # Error reporters show the locals of every frame; the first one is that of this test.
    while (trace := trace.tb_next) is not None:
        assert "hidden" not in repr(trace.tb_frame.f_locals)


def test_url_is_not_shown() -> None:
    assert "hidden" not in repr(RedisOutbox("redis://user:hidden@localhost"))
