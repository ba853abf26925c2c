"""Commands of an inbox that Redis carries out although their answer is lost, or after the client has given up."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from conformance import ids, numbered, numbers, put, read, worker
from redis_proxy import RedisProxy, proxied
from redis_server import RedisServer

from mixpanel_async import OutboxError
from mixpanel_async.outbox import BeginResult, Inbox, RedisOutbox
from mixpanel_async.outbox.redis_scripts import FETCH, HEARTBEAT, TAKE

pytestmark = pytest.mark.anyio
LANES = ("events", "people:0")


@pytest.fixture
def anyio_backend() -> Any:
    return ("asyncio", {"debug": True})


@pytest.fixture
async def proxy(redis_server: RedisServer) -> Any:
    async with proxied(redis_server.port) as proxy:
        yield proxy


@pytest.fixture
async def inbox(proxy: RedisProxy) -> Any:
    inbox = await worker(RedisOutbox(proxy.url))
    # A script is sent a second time if the server does not have it yet.
    await read(inbox)
    yield inbox
    await inbox.aclose()


@pytest.mark.parametrize("lane", LANES)
async def test_entry_whose_read_was_not_answered_is_read_later(
    redis_server: RedisServer, proxy: RedisProxy, inbox: Inbox, lane: str
) -> None:
    outbox = RedisOutbox(redis_server.url)
    await put(outbox, numbered(1, lane), numbered(2, lane))
    proxy.cut(TAKE)
    with pytest.raises(OutboxError):
        await read(inbox, lane, most=1)
    seen: list[int] = []
    if lane == "events":
        found = await read(inbox, lane)
        seen = numbers(found)
        await inbox.settle(ids(found))
    # In an ordered lane, the next entry must not overtake the first one.
    with pytest.raises(OutboxError, match="heartbeat"):
        await read(inbox, lane)
    await inbox.heartbeat()
    found = await read(inbox, lane)
    assert sorted([*seen, *numbers(found)]) == [1, 2]
    assert await inbox.settle(ids(found)) == len(found)


async def test_entry_is_read_later_if_the_erased_persons_were_not_answered(
    redis_server: RedisServer, proxy: RedisProxy, inbox: Inbox
) -> None:
    outbox = RedisOutbox(redis_server.url)
    await put(outbox, numbered(1))
    async with outbox.admin() as queue:
        await queue.purge(distinct_id="ada")
    proxy.cut_command("HGETALL")
    with pytest.raises(OutboxError):
        await read(inbox)
    await inbox.heartbeat()
    assert numbers(await read(inbox)) == [1]


@pytest.mark.parametrize(
    ("script", "lane"),
    [(TAKE, "events"), (TAKE, "people:0"), (HEARTBEAT, "events")],
    ids=["read", "ordered read", "heartbeat"],
)
async def test_command_that_is_carried_out_late_takes_nothing(
    redis_server: RedisServer, proxy: RedisProxy, inbox: Inbox, lane: str, script: str
) -> None:
    outbox = RedisOutbox(redis_server.url)
    if script == HEARTBEAT:
        other = await worker(outbox, "other", kinds=["events"])
        await put(outbox, numbered(1))
        await read(other)
    else:
        await put(outbox, numbered(1, lane))
    proxy.hold(script)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(*((inbox.heartbeat,) if script == HEARTBEAT else (read, inbox, lane)))
        await proxy.held()
        tasks.cancel_scope.cancel()
    await inbox.heartbeat()
    if script == HEARTBEAT:
        await other.release()
        await other.aclose()
    await proxy.release()
    await inbox.heartbeat()
    assert numbers(await read(inbox, lane)) == [1]


async def test_entry_before_a_settled_one_is_not_taken_for_settled(
    redis_server: RedisServer, proxy: RedisProxy, inbox: Inbox
) -> None:
    await put(RedisOutbox(redis_server.url), numbered(1, "people:0"), numbered(2, "people:0"))
    found = await read(inbox, "people:0")
    redis_server.command("XGROUP", "DESTROY", "{mixpanel}:people:0", "w")
    assert await inbox.begin([found[0].id]) == [BeginResult.GONE]
    await inbox.heartbeat()
    # A request with the second one was in flight; the first one waits for its turn again.
    assert await inbox.settle([found[1].id]) == 1
    proxy.cut(TAKE)
    with pytest.raises(OutboxError):
        await read(inbox, "people:0")
    await inbox.heartbeat()
    assert numbers(await read(inbox, "people:0")) == [1]


async def test_entries_that_are_taken_over_during_a_read_are_all_read(
    redis_server: RedisServer, proxy: RedisProxy
) -> None:
    outbox = RedisOutbox(redis_server.url)
    others = [await worker(outbox, name) for name in ("a", "b")]
    for other, entries in zip(others, ([0, 1], [2]), strict=True):
        await put(outbox, *map(numbered, entries))
        assert numbers(await read(other)) == entries
    inbox = await worker(RedisOutbox(proxy.url))
    await others[0].release()
    await inbox.heartbeat()
    first: list[Any] = []

    async def read_first() -> None:
        first.extend(await read(inbox, most=1))

    proxy.hold(FETCH)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_first)
        await proxy.held()
        await others[1].release()
        await inbox.heartbeat()
        await proxy.release()
    assert sorted(numbers([*first, *await read(inbox)])) == [0, 1, 2]
    for one in (inbox, *others):
        await one.aclose()
