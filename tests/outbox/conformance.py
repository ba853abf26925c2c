"""Behaviour of every engine: the tests of the class `Conformance` run against each of them.

A module of tests derives a class from it and has a fixture `engine`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import anyio
import pytest

from mixpanel_async import ConfigurationError
from mixpanel_async._model.errors import OutboxError
from mixpanel_async._model.records import DropReason
from mixpanel_async.outbox import BeginResult, DeadEntry, Entry, EntryId, Inbox, Outbox, PutResult, StoredEntry
from mixpanel_async.outbox.packing import pack, positions_of_non_idempotent, unpack
from mixpanel_async.outbox.protocol import READ_BYTES

TOKEN = "0123456789abcdef0123456789abcdef"


class Engine(Protocol):
    """Engine under test. Its outboxes share one queue."""

    def outbox(self, **options: Any) -> Outbox:
        """Return an outbox; connections of it are closed at the end of the test."""
        ...

    async def pass_lease_time(self) -> None:
        """Let the time pass after which all workers count as dead and all leases end."""
        ...


def entry_of(*records: bytes, lane: str = "events", sequence: int | None = None, at: float = 1_000.0) -> Entry:
    records = records or (b'{"event":"Signed up"}',)
    packed = pack(records, TOKEN)
    return Entry(
        lane=lane,
        records=len(records),
        body=packed.body,
        is_compressed=packed.is_compressed,
        non_idempotent=positions_of_non_idempotent(records),
        accepted_at=at,
        sequence=sequence,
    )


def numbered(number: int, lane: str = "events", **options: Any) -> Entry:
    return entry_of(b'{"number":%d}' % number, lane=lane, **options)


def numbers(found: Sequence[StoredEntry]) -> list[int]:
    return [int(item[10:-1]) for one in found for item in unpack(one.entry, TOKEN)]


async def put(outbox: Outbox, *entries: Entry, token: str = TOKEN) -> list[PutResult]:
    writer = outbox.writer(token)
    try:
        await writer.open()
        return [*await writer.put(entries)]
    finally:
        await writer.aclose()


async def worker(outbox: Outbox, name: str = "w", **options: Any) -> Inbox:
    inbox = outbox.inbox(TOKEN, name, **options)
    await inbox.open()
    await inbox.heartbeat()
    return inbox


async def read(inbox: Inbox, *lanes: str, most: int = 10_000) -> list[StoredEntry]:
    return [*await inbox.read(lanes or ("events",), max_records=most, wait=0)]


def ids(found: Sequence[StoredEntry]) -> list[EntryId]:
    return [one.id for one in found]


class Conformance:
    async def test_entry_is_read_as_it_was_put(self, engine: Engine) -> None:
        outbox = engine.outbox()
        entry = entry_of(b'{"a":"%b"}' % TOKEN.encode(), b'{"b":2}', at=12.345)
        assert TOKEN.encode() not in entry.body
        assert await put(outbox, entry) == [PutResult.TAKEN]
        (found,) = await read(await worker(outbox))
        assert (found.entry, found.deliveries, found.erased) == (entry, 1, ())
        assert unpack(found.entry, TOKEN) == [b'{"a":"%b"}' % TOKEN.encode(), b'{"b":2}']

    async def test_read_stops_after_max_records_and_keeps_the_order(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, *(numbered(number, "people:3") for number in range(5)))
        inbox = await worker(outbox)
        assert numbers(await read(inbox, "people:3", most=2)) == [0, 1]
        assert numbers(await read(inbox, "people:3")) == [2, 3, 4]
        assert await read(inbox, "people:3") == []

    @pytest.mark.parametrize("is_taken_over", [False, True])
    async def test_read_returns_few_large_entries(self, engine: Engine, *, is_taken_over: bool) -> None:
        outbox = engine.outbox()
        for number in range(4):
            await put(outbox, entry_of(b'{"number":%d%b}' % (number, b" " * (READ_BYTES // 2)), lane="people:3"))
        inbox = await worker(outbox)
        if is_taken_over:
            assert len(await read(inbox, "people:3") + await read(inbox, "people:3")) == 4
            await inbox.release()
            inbox = await worker(outbox)
        assert [len(await read(inbox, "people:3")) for _ in range(3)] == [2, 2, 0]

    async def test_two_workers_share_an_unordered_lane(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, *map(numbered, range(4)))
        first, second = await worker(outbox, "a"), await worker(outbox, "b")
        assert numbers(await read(first, most=2)) + numbers(await read(second)) == [0, 1, 2, 3]

    async def test_ordered_lane_has_one_worker(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=4)
        inboxes = [await worker(outbox, name) for name in "ab"]
        # The second worker takes its share once the first has given it up.
        held = [(await inbox.heartbeat()).lanes for _ in range(2) for inbox in inboxes][2:]
        assert held[0].isdisjoint(held[1])
        lanes = sorted(held[0] | held[1])
        assert lanes == sorted(["identity", *(f"{kind}:{n}" for kind in ("people", "groups") for n in range(4))])
        await put(outbox, *(numbered(number, lane) for number, lane in enumerate(lanes)))
        for inbox, own in zip(inboxes, held, strict=True):
            assert {one.id.lane for one in await read(inbox, *lanes)} == own

    async def test_lane_moves_only_after_its_entries_ended(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=8)
        first = await worker(outbox, "a")
        lanes = sorted((await first.heartbeat()).lanes)
        await put(outbox, *(numbered(0, lane) for lane in lanes))
        found = await read(first, *lanes)
        await put(outbox, *(numbered(1, lane) for lane in lanes))
        second = await worker(outbox, "b")
        assert (await first.heartbeat()).lanes == set(lanes)
        assert (await second.heartbeat()).lanes == frozenset()
        # It reads no further entries of the lanes that it is to give up.
        later = await read(first, *lanes)
        assert 0 < len(later) < len(lanes)
        await first.settle(ids(found))
        await first.settle(ids(later))
        moved = set(lanes) - {one.id.lane for one in later}
        assert (await first.heartbeat()).lanes == set(lanes) - moved
        assert (await second.heartbeat()).lanes == moved
        assert {one.id.lane for one in await read(second, *lanes)} == moved

    async def test_worker_gets_only_lanes_of_its_kinds(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=2)
        events = await worker(outbox, "events", kinds=["events"])
        people = await worker(outbox, "people", kinds=["people"])
        assert (await events.heartbeat()).lanes == frozenset()
        assert (await people.heartbeat()).lanes == {"people:0", "people:1"}

    async def test_repeated_sequence_is_known(self, engine: Engine) -> None:
        outbox = engine.outbox()
        writer = outbox.writer(TOKEN)
        await writer.open()
        first = numbered(1, "people:0", sequence=7)
        assert [*await writer.put([first, numbered(2, "people:1", sequence=7)])] == [PutResult.TAKEN] * 2
        writer.forget()
        await writer.open()
        known, older, later = (
            numbered(1, "people:0", sequence=7),
            numbered(0, "people:0", sequence=6),
            numbered(3, "people:0", sequence=8),
        )
        assert [*await writer.put([known, older, later])] == [PutResult.KNOWN, PutResult.KNOWN, PutResult.TAKEN]
        await writer.aclose()
        assert await put(outbox, first) == [PutResult.TAKEN]  # another producer
        for expected in (PutResult.TAKEN, PutResult.KNOWN):
            named = outbox.writer(TOKEN, "producer 1")
            await named.open()
            assert [*await named.put([numbered(4, "people:2", sequence=1)])] == [expected]
            await named.aclose()
        assert numbers(await read(await worker(outbox), "people:0")) == [1, 3, 1]

    async def test_full_queue_takes_nothing_until_there_is_room(self, engine: Engine) -> None:
        size = len(numbered(1).body)
        outbox = engine.outbox(max_bytes=2 * size)
        assert await put(outbox, *map(numbered, range(3))) == [PutResult.TAKEN, PutResult.TAKEN, PutResult.FULL]
        inbox = await worker(outbox)
        found = await read(inbox)
        assert await put(outbox, numbered(3)) == [PutResult.FULL]
        await inbox.settle(ids(found)[:1])
        assert await put(outbox, numbered(3)) == [PutResult.TAKEN]

    async def test_full_entry_of_an_ordered_lane_does_not_use_its_sequence(self, engine: Engine) -> None:
        outbox = engine.outbox(max_records=1)
        writer = outbox.writer(TOKEN)
        await writer.open()
        entry = numbered(1, "people:0", sequence=1)
        assert [*await writer.put([numbered(0), entry])] == [PutResult.TAKEN, PutResult.FULL]
        inbox = await worker(outbox)
        await inbox.settle(ids(await read(inbox)))
        assert [*await writer.put([entry])] == [PutResult.TAKEN]
        await writer.aclose()

    async def test_settled_entries_are_gone(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, *map(numbered, range(3)))
        first = await worker(outbox, "a")
        found = ids(await read(first))
        assert await first.settle(found[:2]) == 2
        assert await first.settle(found[:2]) == 0
        await engine.pass_lease_time()
        second = await worker(outbox, "b")
        assert numbers(await read(second)) == [2]

    async def test_dead_worker_loses_its_entries(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, *map(numbered, range(3)))
        first = await worker(outbox, "a")
        found = ids(await read(first, most=2))
        await engine.pass_lease_time()
        second = await worker(outbox, "b")
        taken = await read(second)
        assert sorted(numbers(taken)) == [0, 1, 2]
        assert numbers(taken)[2] == 2
        assert [one.deliveries for one in taken] == [2, 2, 1]
        assert (await first.heartbeat()).gone == set(found)
        assert [*await first.begin(found)] == [BeginResult.GONE] * 2
        assert await first.settle(found) == 0
        assert await second.settle(ids(taken)) == 3

    async def test_workers_keep_what_they_have_after_an_outage(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=2)
        await put(outbox, *map(numbered, range(2)), numbered(2, "people:0"), numbered(3, "people:1"))
        inboxes = [await worker(outbox, name) for name in "ab"]
        held = [(await inbox.heartbeat()).lanes for _ in range(2) for inbox in inboxes][2:]
        found = [
            ids([*await read(inbox, most=1), *await read(inbox, *sorted(own))])
            for inbox, own in zip(inboxes, held, strict=True)
        ]
        await engine.pass_lease_time()
        for _ in range(2):
            for inbox, own in zip(inboxes, held, strict=True):
                after = await inbox.heartbeat()
                assert (after.lanes, after.gone) == (own, frozenset())
        assert [await inbox.settle(one) for inbox, one in zip(inboxes, found, strict=True)] == [*map(len, found)]

    async def test_ordered_lane_is_taken_over_in_order(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=1)
        await put(outbox, *(numbered(number, "people:0") for number in range(4)))
        first = await worker(outbox, "a")
        found = await read(first, "people:0", most=2)
        await engine.pass_lease_time()
        assert await read(first, "people:0") == []
        second = await worker(outbox, "b")
        assert numbers(await read(second, "people:0")) == [0, 1, 2, 3]
        held = await first.heartbeat()
        assert not held.lanes
        assert held.gone == set(ids(found))

    async def test_released_entries_and_lanes_go_to_others_at_once(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=1)
        await put(outbox, numbered(0), numbered(1, "people:0"), numbered(2, "people:0"))
        first = await worker(outbox, "a")
        assert sorted(numbers(await read(first, "events", "people:0"))) == [0, 1, 2]
        await first.release()
        await first.aclose()
        second = await worker(outbox, "b")
        found = await read(second, "events", "people:0")
        assert numbers([one for one in found if one.id.lane == "people:0"]) == [1, 2]
        assert len(found) == 3
        assert {one.deliveries for one in found} == {1}

    async def test_begun_entry_is_begun_for_the_next_worker(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=1)
        await put(outbox, numbered(0, "people:0"), numbered(1, "people:0"), numbered(2))
        first = await worker(outbox, "a")
        found = ids(await read(first, "people:0"))
        unordered = ids(await read(first))
        assert [*await first.begin([found[0], *unordered])] == [BeginResult.MINE] * 2
        # The answer may have been lost.
        assert [*await first.begin(found[:1])] == [BeginResult.MINE]
        await engine.pass_lease_time()
        second = await worker(outbox, "b")
        assert ids(await read(second, "people:0", "events")) == found + unordered
        answers = [*await second.begin([*found, *unordered])]
        assert answers == [BeginResult.BEGUN, BeginResult.MINE, BeginResult.BEGUN]

    async def test_released_entry_that_was_not_begun_can_be_begun_again(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=1)
        await put(outbox, *(numbered(at, "people:0") for at in range(3)), numbered(3), numbered(4))
        first = await worker(outbox, "a")
        found = ids(await read(first, "people:0", "events"))
        await first.begin(found)
        # One that nobody began, one that was settled, and one that never was.
        await first.settle(found[1:2])
        unknown = [EntryId("people:0", "1-0"), EntryId("events", "1-0")]
        await first.release([found[0], found[1], found[3], *unknown])
        second = await worker(outbox, "b")
        assert sorted(ids(await read(second, "people:0", "events"))) == sorted([found[0], *found[2:]])
        answers = [*await second.begin([found[0], *found[2:]])]
        assert answers == [BeginResult.MINE, BeginResult.BEGUN, BeginResult.MINE, BeginResult.BEGUN]

    async def test_release_leaves_the_marks_of_other_workers(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=1)
        await put(outbox, numbered(0), numbered(1))
        first = await worker(outbox, "a")
        found = ids(await read(first))
        await first.begin(found)
        await engine.pass_lease_time()
        # The second worker takes both over; the first one has no right to their marks any more.
        second = await worker(outbox, "b")
        assert ids(await read(second)) == found
        await first.release(found[:1])
        await second.release(found[1:])
        third = await worker(outbox, "c")
        assert ids(await read(third)) == found
        assert [*await third.begin(found)] == [BeginResult.BEGUN] * 2

    async def test_begin_of_an_unknown_entry_is_gone(self, engine: Engine) -> None:
        inbox = await worker(engine.outbox())
        assert [*await inbox.begin([EntryId("events", "1-0"), EntryId("people:0", "1-0")])] == [BeginResult.GONE] * 2
        assert await inbox.settle([EntryId("events", "1-0")]) == 0

    async def test_heartbeat_counts_what_waits_and_what_is_dead(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, entry_of(b'{"a":1}', b'{"a":2}', b'{"a":3}', at=50.5), numbered(4, "people:0", at=60.5))
        inbox = await worker(outbox)
        held = await inbox.heartbeat()
        assert (held.waiting, held.oldest_at, held.dead, held.newer) == (4, 50.5, 0, 0)
        assert held.waiting_bytes > 0
        assert held.workers == 1
        (found,) = ids(await read(inbox))
        dead = [
            DeadEntry(id=found, reason=DropReason.REJECTED, records=[b'{"a":1}'], message="no"),
            DeadEntry(id=found, reason=DropReason.PURGED, records=[b'{"a":2}']),
            DeadEntry(id=found, reason=DropReason.REJECTED, unreadable=1),
        ]
        assert await inbox.settle([found], dead) == 1
        assert await inbox.settle([found], dead) == 0
        held = await inbox.heartbeat()
        assert (held.waiting, held.oldest_at, held.dead) == (1, 60.5, 1)

    async def test_dead_letter_of_another_entry_is_refused(self, engine: Engine) -> None:
        inbox = await worker(engine.outbox())
        dead = DeadEntry(id=EntryId("events", "1-0"), reason=DropReason.REJECTED, records=[b"{}"])
        with pytest.raises(ValueError, match="not in `ended`"):
            await inbox.settle([], [dead])

    async def test_pause_holds_for_all_workers_and_is_never_shortened(self, engine: Engine) -> None:
        outbox = engine.outbox()
        first, second = await worker(outbox, "a"), await worker(outbox, "b")
        await first.pause("/track", 60)
        await first.pause("/track", 5)
        await first.pause("/engage", 1e-9)
        pauses = (await second.heartbeat()).pauses
        assert pauses["/track"] == pytest.approx(60, abs=5)
        assert pauses.get("/engage", 0) < 1

    async def test_other_token_is_refused(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, numbered(1))
        with pytest.raises(ConfigurationError, match="another project") as caught:
            await put(outbox, numbered(1), token="other")
        assert TOKEN not in str(caught.value)
        with pytest.raises(ConfigurationError, match="another project"):
            await outbox.inbox("other", "w").open()

    async def test_unknown_lane_is_refused(self, engine: Engine) -> None:
        outbox = engine.outbox(partitions=2)
        with pytest.raises(ValueError, match="people:2"):
            await put(outbox, numbered(1, "people:2"))

    async def test_connection_that_is_not_open_raises(self, engine: Engine) -> None:
        outbox = engine.outbox()
        writer, inbox = outbox.writer(TOKEN), outbox.inbox(TOKEN, "w")
        with pytest.raises(OutboxError, match="not open"):
            await writer.put([numbered(1)])
        with pytest.raises(OutboxError, match="not open"):
            await inbox.heartbeat()

    async def test_forgotten_inbox_reads_its_entries_again(self, engine: Engine) -> None:
        outbox = engine.outbox()
        await put(outbox, numbered(1))
        inbox = await worker(outbox)
        found = await read(inbox)
        inbox.forget()
        await inbox.open()
        await inbox.heartbeat()
        assert ids(await read(inbox)) == ids(found)

    async def test_read_waits_for_an_entry(self, engine: Engine) -> None:
        outbox = engine.outbox()
        inbox = await worker(outbox)
        assert [*await inbox.read(["events"], max_records=1, wait=0.02)] == []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(put, outbox, numbered(1))
            assert numbers(await inbox.read(["events"], max_records=1, wait=20)) == [1]


WRONG_OPTIONS: Final = [
    ({"partitions": 0}, "partitions"),
    ({"partitions": 257}, "partitions"),
    ({"max_bytes": 0}, "max_bytes"),
    ({"max_records": 0}, "max_records"),
    ({"keep_dead": -1}, "keep_dead"),
    ({"confirm": 1}, "confirm"),
]
"""Options that every engine refuses, and the name in the message."""
