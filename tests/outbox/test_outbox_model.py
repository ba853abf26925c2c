"""Random sequences of producers and workers: no entry is lost, settled twice, begun twice or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import pytest
from conformance import TOKEN, Engine, ids, numbered, numbers
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from redis_server import RedisServer
from test_memory import MemoryEngine
from test_redis import RedisEngine

from mixpanel_async._model.records import DropReason
from mixpanel_async.outbox import BeginResult, DeadEntry, EntryId, Inbox, PutResult, StoredEntry

T = TypeVar("T")
LANES = ("events", "people:0", "people:1", "identity")
SLOTS = st.integers(0, 2)
ACTIONS = st.sampled_from(
    [*["put", "heartbeat", "begin", "settle"] * 2, *["read"] * 4, "change_kinds", "release", "die", "suspend_all"]
)


class Client:
    """Worker of the machine, with the entries that it has read and not settled."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.read: dict[EntryId, int] = {}
        # Number of suspensions when each was read.
        self.read_in: dict[EntryId, int] = {}


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self, new_engine: Callable[[], Any]) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.engine: Engine = new_engine()
        self.outbox: Any = None
        self.writer: Any = None
        self.clients: list[Client] = []
        self.count = 0
        self.unsettled: dict[int, str] = {}  # number of a record -> lane
        self.suspensions = 0
        self.reader: dict[int, Client] = {}
        self.begun: dict[int, Client] = {}
        self.maybe_begun: set[int] = set()
        self.last_of: dict[tuple[Client, str], int] = {}
        self.held: dict[Client, frozenset[str]] = {}

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    @initialize()
    def open(self) -> None:
        self.outbox = self.engine.outbox(partitions=2)
        self.writer = self.outbox.writer(TOKEN)
        self.run(self.writer.open())
        self.put([*LANES, *LANES], repeat=False)
        self.clients = [self.join(None) for _ in range(3)]

    # One rule: hypothesis would leave out most of several rules in each example.
    @rule(action=ACTIONS, at=SLOTS, most=st.sampled_from([1, 2, 100]), data=st.data())
    def step(self, action: str, at: int, most: int, data: st.DataObject) -> None:
        if action == "put":
            lanes = data.draw(st.lists(st.sampled_from(LANES), min_size=1, max_size=4))
            self.put(lanes, repeat=most == 1)
        elif action == "read":
            self.read(at, beats=most % 3, most=most)
        elif action == "settle":
            self.settle(at, most, dead=data.draw(st.booleans()))
        elif action == "release":
            self.release(at, most)
        elif action == "change_kinds":
            self.change_kinds(at, data.draw(st.sampled_from([("events",), ("people", "identity")])))
        elif action == "suspend_all":
            self.suspend_all()
        else:
            getattr(self, action)(at)

    def put(self, lanes: list[str], repeat: bool) -> None:
        entries = []
        for lane in lanes:
            self.count += 1
            self.unsettled[self.count] = lane
            entries.append(numbered(self.count, lane, sequence=None if lane == "events" else self.count))
        assert self.run(self.writer.put(entries)) == [PutResult.TAKEN] * len(entries)
        ordered = [one for one in entries if one.sequence is not None]
        if repeat and ordered:
            assert self.run(self.writer.put(ordered)) == [PutResult.KNOWN] * len(ordered)

    def change_kinds(self, at: int, kinds: Any) -> None:
        self.release(at, 0)
        self.clients[at] = self.join(kinds)

    def join(self, kinds: Any) -> Client:
        client = Client(self.outbox.inbox(TOKEN, "w", kinds=kinds))
        self.run(client.inbox.open())
        self.beat(client)
        return client

    def heartbeat(self, at: int) -> None:
        self.beat(self.clients[at])

    def beat(self, client: Client) -> None:
        held = self.run(client.inbox.heartbeat())
        self.held[client] = held.lanes
        for one in held.gone:
            client.read.pop(one, None)
        for lane in set(LANES) - held.lanes:
            self.last_of.pop((client, lane), None)
        assert held.waiting == len(self.unsettled)

    def read(self, at: int, beats: int, most: int) -> None:
        client = self.clients[at]
        for _ in range(beats):
            self.beat(client)
        for lane in LANES:
            self.accept(client, self.run(client.inbox.read([lane], max_records=most, wait=0)))

    def accept(self, client: Client, found: Sequence[StoredEntry]) -> None:
        for one, number in zip(found, numbers(found), strict=True):
            assert self.unsettled[number] == one.id.lane
            assert one.id not in client.read
            # Without a suspension in between, no other worker has it.
            others = [own.read_in.get(one.id) for own in self.clients if own is not client and one.id in own.read]
            assert self.suspensions not in others
            client.read[one.id], client.read_in[one.id] = number, self.suspensions
            self.reader[number] = client
            if one.id.lane != "events":
                assert self.last_of.get((client, one.id.lane), 0) < number
                self.last_of[client, one.id.lane] = number

    def begin(self, at: int) -> None:
        client = self.clients[at]
        chosen = sorted(client.read)
        for one, answer in zip(chosen, self.run(client.inbox.begin(chosen)), strict=True):
            if answer is BeginResult.GONE:
                for other in [*client.read]:
                    if other == one or (one.lane != "events" and other.lane == one.lane):
                        del client.read[other]
                        self.last_of.pop((client, other.lane), None)
                continue
            number = client.read.get(one, 0)
            if answer is BeginResult.MINE and number in self.maybe_begun:
                self.maybe_begun.discard(number)
                self.begun[number] = client
            elif answer is BeginResult.MINE:
                assert self.begun.setdefault(number, client) is client
            elif answer is BeginResult.BEGUN:
                assert self.begun[number] is not client

    def settle(self, at: int, most: int, dead: bool) -> None:
        client = self.clients[at]
        chosen = [one for one, _ in sorted(client.read.items(), key=lambda item: item[1])][:most]
        letters = [DeadEntry(id=one, reason=DropReason.REJECTED, records=[b"{}"]) for one in chosen] if dead else []
        removed = self.run(client.inbox.settle(chosen, letters))
        # Another worker may own some of them now.
        assert removed <= sum(self.reader[client.read[one]] is client for one in chosen)
        owned = [one for one in chosen if self.run(self.is_gone(one))] if removed < len(chosen) else chosen
        for one in chosen:
            number = client.read.pop(one)
            if one in owned:
                self.unsettled.pop(number, None)

    async def is_gone(self, one: EntryId) -> bool:
        return not await self.engine.has(one)  # type: ignore[attr-defined]

    def release(self, at: int, most: int) -> None:
        client = self.clients[at]
        not_begun = [*client.read][:most]
        self.run(client.inbox.release(not_begun))
        for one in not_begun:
            number = client.read[one]
            if self.begun.get(number) is not client:
                continue
            if client.read_in[one] == self.suspensions:
                del self.begun[number]
            else:
                # The mark stays if another worker owns the entry by now.
                self.maybe_begun.add(number)
        self.drop(client)
        self.clients[at] = self.join(None)

    def die(self, at: int) -> None:
        self.drop(self.clients[at])
        self.suspend_all()
        self.clients[at] = self.join(None)

    def suspend_all(self) -> None:
        self.run(self.engine.pass_lease_time())
        self.held.clear()
        self.suspensions += 1

    def drop(self, client: Client) -> None:
        self.run(client.inbox.aclose())
        self.held.pop(client, None)
        client.read.clear()

    @invariant()
    def lanes_have_one_worker(self) -> None:
        lanes = [lane for held in self.held.values() for lane in held]
        assert len(lanes) == len(set(lanes))

    def teardown(self) -> None:
        if self.outbox is not None:
            self.run(self.drain())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    async def drain(self) -> None:
        await self.engine.pass_lease_time()
        last = Client(self.outbox.inbox(TOKEN, "last"))
        await last.inbox.open()
        await last.inbox.heartbeat()
        left = {lane: [number for number, own in self.unsettled.items() if own == lane] for lane in LANES}
        for lane in LANES:
            found = await last.inbox.read([lane], max_records=10_000, wait=0)
            assert (sorted if lane == "events" else list)(numbers(found)) == left[lane]
            assert await last.inbox.settle(ids(found)) == len(found)
        held = await last.inbox.heartbeat()
        assert (held.waiting, held.gone) == (0, frozenset())
        await self.writer.aclose()
        for one in getattr(self.engine, "opened", []):
            await one.aclose()


class CheckedMemoryEngine(MemoryEngine):
    def outbox(self, **options: Any) -> Any:
        self._outbox = super().outbox(**options)
        return self._outbox

    async def has(self, one: EntryId) -> bool:
        return one.id in self._outbox._shared.state.lanes[one.lane]


class CheckedRedisEngine(RedisEngine):
    def __init__(self, server: RedisServer) -> None:
        super().__init__(server)
        server.command("FLUSHALL")

    async def has(self, one: EntryId) -> bool:
        return self._server.command("XRANGE", f"{{mixpanel}}:{one.lane}", one.id, one.id) != b"*0\r\n"


def check(new_engine: Callable[[], Any], examples: int) -> None:
    run_state_machine_as_test(
        lambda: OutboxMachine(new_engine),  # type: ignore[arg-type]
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=[*HealthCheck]
        ),
    )


@pytest.mark.timeout(300)  # a failure is reduced to a short sequence
def test_memory_engine_follows_the_model() -> None:
    check(CheckedMemoryEngine, 30)


@pytest.mark.timeout(300)
def test_redis_engine_follows_the_model(redis_server: RedisServer) -> None:
    check(lambda: CheckedRedisEngine(redis_server), 15)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_memory_engine_follows_the_model_for_long() -> None:
    check(CheckedMemoryEngine, 2_000)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_redis_engine_follows_the_model_for_long(redis_server: RedisServer) -> None:
    check(lambda: CheckedRedisEngine(redis_server), 500)
