"""Leases, marks, dead workers, poison and outages: what a worker may send, and what it leaves to others."""

from __future__ import annotations

import logging
from dataclasses import replace

import anyio
import anyio.lowlevel
import httpx
import pytest
from worker_samples import (
    START,
    TOKEN,
    Stage,
    Wrapped,
    accepted,
    add_one,
    entry,
    events,
    in_virtual_time,
    other_worker,
    put,
    running,
    set_value,
    wait_until,
)

from mixpanel_async._model.errors import OutboxError
from mixpanel_async._model.records import IdentityRecord
from mixpanel_async.outbox import Entry


def test_updates_of_a_person_keep_their_order_across_retries() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503), httpx.ReadTimeout("slow")]
        async with stage.worker() as worker, running(worker):
            for value in range(30):
                await put(stage.outbox, entry([set_value("ada", value)], "people:1"))
                await anyio.sleep(0.3)
            await wait_until(lambda: worker.stats().delivered == 30)
        applied = [one["$set"]["value"] for one in stage.mixpanel.updates()[-30:]]
        assert applied[-1] == 29
        assert applied == sorted(applied)

    in_virtual_time(body)


def test_partitions_share_a_request_and_one_is_in_flight() -> None:
    async def body(stage: Stage) -> None:
        in_flight: list[int] = []

        async def slow() -> httpx.Response:
            in_flight.append(1)
            assert len(in_flight) == 1
            await anyio.sleep(2)
            in_flight.pop()
            return accepted("/engage", 1, START)

        stage.mixpanel.answers[:] = [slow, slow]
        for partition in range(8):
            await put(stage.outbox, entry([set_value(f"person-{partition}", 1)], f"people:{partition}"))
        async with stage.worker() as worker, running(worker):
            await wait_until(lambda: worker.stats().in_flight == 1)
            await put(stage.outbox, *(entry([set_value(f"person-{at}", 2)], f"people:{at}") for at in range(8)))
            await wait_until(lambda: worker.stats().delivered == 16)
        assert [len(sent) for _, sent in stage.mixpanel.requests] == [8, 8]

    in_virtual_time(body)


def test_update_with_an_unknown_outcome_is_uncertain_and_not_sent_again() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers.append(httpx.ReadTimeout("slow"))
        await put(stage.outbox, entry([add_one("ada"), set_value("ada", 1)], "people:0"))
        async with stage.worker() as worker:
            assert await worker.drain()
        assert [list(one) for one in stage.mixpanel.updates()[2:]] == [["$token", "$distinct_id", "$set"]]
        assert stage.counters == {"in": 2, "out": 1, "uncertain": 1}

    in_virtual_time(body)


def test_update_that_mixpanel_refused_to_take_now_is_sent_again() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(429), httpx.ConnectError("refused")]
        await put(stage.outbox, entry([add_one("ada")], "people:0"))
        async with stage.worker() as worker:
            assert await worker.drain()
        assert len(stage.mixpanel.requests) == 3
        assert stage.counters == {"in": 1, "out": 1}

    in_virtual_time(body)


def test_update_that_a_dead_worker_had_begun_is_uncertain() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, entry([set_value("ada", 1), add_one("ada")], "people:0"), entry(events(0, 2)))
        dead = await other_worker(stage.outbox)
        taken = [
            *await dead.read(["people:0"], max_records=10, wait=0),
            *await dead.read(["events"], max_records=9, wait=0),
        ]
        await dead.begin([one.id for one in taken[:1]])
        async with stage.worker() as worker, running(worker):
            await wait_until(lambda: worker.stats().delivered == 3)
            assert anyio.current_time() >= 15
            assert worker.stats().uncertain == 1
        assert [list(one) for one in stage.mixpanel.updates()] == [["$token", "$distinct_id", "$set"]]
        assert stage.counters == {"in": 4, "out": 3, "uncertain": 1}

    in_virtual_time(body)


def test_worker_that_was_stopped_for_longer_than_its_lease_sends_nothing_that_others_took() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503)] * 99
        await put(stage.outbox, entry([add_one("ada"), set_value("ada", 1)], "people:0"), entry(events(0, 5)))
        outbox = Wrapped(stage.outbox)
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await wait_until(lambda: len(stage.mixpanel.requests) >= 2)
            outbox.fails = {"heartbeat"}
            await anyio.sleep(16)
            other = await other_worker(stage.outbox)
            (taken,) = await other.read(["people:0"], max_records=10, wait=0)
            (others,) = await other.read(["events"], max_records=10, wait=0)
            sent = len(stage.mixpanel.requests)
            stage.mixpanel.answers.clear()
            outbox.fails = set()
            await anyio.sleep(10)
            assert len(stage.mixpanel.requests) == sent
            assert worker.stats().claimed == 0
            assert await other.settle([taken.id, others.id]) == 2

    in_virtual_time(body)


def test_worker_begins_no_request_without_a_heartbeat_for_12_seconds() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await anyio.sleep(1)
            stage.mixpanel.answers[:] = [httpx.Response(503)] * 99
            await put(stage.outbox, entry(events(0, 5)))
            await wait_until(lambda: len(stage.mixpanel.requests) > 0)
            outbox.fails = {"heartbeat"}
            await anyio.sleep(60)
            assert max(stage.mixpanel.times) < 5.1 + 12.0
            stage.mixpanel.answers.clear()
            outbox.fails = set()
            await wait_until(lambda: worker.stats().delivered == 5)

    in_virtual_time(body)


def test_settlement_waits_for_the_outbox(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mixpanel_async")

    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await anyio.sleep(1)
            outbox.fails = {"settle", "read", "begin"}
            await put(stage.outbox, entry(events(0, 5)))
            await anyio.sleep(20)
            outbox.fails = {"settle"}
            await wait_until(lambda: worker.stats().delivered == 5)
            await anyio.sleep(20)
            assert stage.counters == {"in": 5}
            assert worker.stats().last_error == "settle failed"
            outbox.fails = set()
            await wait_until(lambda: stage.counters == {"in": 5, "out": 5})
            await anyio.sleep(3)
            assert worker.stats().last_error is None
        lines = [one.getMessage() for one in caplog.records if "outbox" in one.getMessage()]
        assert lines[0].startswith("the outbox is not available (")
        assert lines[-1] == "the outbox is available again"

    in_virtual_time(body)


def test_worker_waits_for_an_outbox_that_is_away_at_the_start() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.fails = {"open"}
        await put(stage.outbox, entry(events(0, 5)))
        async with stage.worker(outbox=outbox) as worker:
            with pytest.raises(OutboxError, match="open failed"):
                await worker.drain()
            async with running(worker):
                await anyio.sleep(30)
            async with running(worker):
                await anyio.sleep(30)
                outbox.fails = set()
                await wait_until(lambda: worker.stats().delivered == 5)

    in_virtual_time(body)


def test_mark_that_cannot_be_written_delays_the_request() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.fails = {"begin"}
        await put(stage.outbox, entry([add_one("ada")], "people:0"), entry(events(0, 2)))
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await wait_until(lambda: worker.stats().delivered == 2)
            await anyio.sleep(10)
            assert [path for path, _ in stage.mixpanel.requests] == ["/track"]
            outbox.fails = set()
            await wait_until(lambda: worker.stats().delivered == 3)

    in_virtual_time(body)


def test_entry_whose_workers_died_becomes_a_dead_letter() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, entry(events(0, 3)), entry([add_one("ada")], "people:0"))
        for kept in (
            lane for name in ("events", "people:0") for lane in stage.outbox._shared.state.lanes[name].values()
        ):
            kept.owner, kept.deliveries = None, 20
        async with stage.worker() as worker:
            assert await worker.drain()
            assert worker.stats().losses == {"crashed": 4}
        assert not stage.mixpanel.requests
        assert stage.counters == {"in": 4, "dead": 4}
        letters = [*stage.outbox._shared.state.dead.values()]
        assert {one.message for one in letters} == {"20 workers died with this entry"}
        assert [one.is_once_only for one in letters if one.lane == "people:0"] == [True]

    in_virtual_time(body)


def test_entry_of_a_worker_that_died_is_sent_without_lingering() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, entry(events(0, 3)))
        for kept in stage.outbox._shared.state.lanes["events"].values():
            kept.deliveries = 4
        async with stage.worker() as worker, running(worker):
            await wait_until(lambda: worker.stats().delivered == 3)
            assert anyio.current_time() < 0.5

    in_virtual_time(body)


def test_spoiled_body_becomes_a_dead_letter() -> None:
    async def body(stage: Stage) -> None:
        spoiled = Entry(lane="events", records=7, body=b"\x1f\x8bxx", is_compressed=True, accepted_at=START)
        await put(stage.outbox, spoiled, entry(events(0, 3)))
        async with stage.worker() as worker:
            assert await worker.drain()
            assert worker.stats().losses == {"spoiled": 7}
            assert worker.stats().delivered == 3
        assert stage.counters == {"in": 10, "out": 3, "dead": 7}

    in_virtual_time(body)


def test_records_of_erased_persons_are_purged() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.renames = lambda found: [replace(one, erased=(0, 2)) for one in found]
        await put(stage.outbox, entry(events(0, 4)))
        async with stage.worker(outbox=outbox) as worker:
            assert await worker.drain()
            assert worker.stats().losses == {"purged": 2}
            assert worker.stats().dropped == 2
        assert stage.mixpanel.events == ["user-1", "user-3"]
        assert stage.counters == {"in": 4, "out": 2, "purged": 2}

    in_virtual_time(body)


def test_person_erased_while_a_worker_holds_the_records() -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.renames = lambda found: [replace(one, since=100.0) for one in found]
        stage.mixpanel.answers[:] = [httpx.Response(503, headers={"Retry-After": "20"})] * 2
        await put(stage.outbox, entry(events(0, 4)), entry([add_one("ada")], "people:0"))
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await wait_until(lambda: len(stage.mixpanel.requests) == 2)
            names = (b"user-1", b"ada")
            outbox.changes = lambda held: replace(
                held, erased=lambda record, since: since == 100.0 and any(one in record for one in names)
            )
            await wait_until(lambda: worker.stats().pending == 0)
            assert worker.stats().losses == {"purged": 2}
        assert stage.mixpanel.events[-3:] == ["user-0", "user-2", "user-3"]
        assert stage.counters == {"in": 5, "out": 3, "purged": 2}

    in_virtual_time(body)


def test_newer_entries_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async def body(stage: Stage) -> None:
        outbox = Wrapped(stage.outbox)
        outbox.changes = lambda held: replace(held, newer=3)
        async with stage.worker(outbox=outbox) as worker, running(worker):
            await anyio.sleep(30)
        (line,) = [one for one in caplog.records if one.levelno == logging.ERROR]
        assert line.getMessage().startswith("3 entries wait in the outbox from a newer version")

    in_virtual_time(body)


def test_retry_after_holds_for_all_workers() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers.append(httpx.Response(429, headers={"Retry-After": "30"}))
        await put(stage.outbox, entry(events(0, 3)), entry([set_value("ada", 1)], "people:0"))
        async with stage.worker(kinds=["events"]) as first, running(first):
            await wait_until(lambda: len(stage.mixpanel.requests) == 1)
            began = anyio.current_time()
            async with stage.worker() as second, running(second):
                await put(stage.outbox, entry(events(3, 6)))
                # Another endpoint does not pause.
                await wait_until(lambda: second.stats().delivered == 1)
                await wait_until(lambda: first.stats().delivered + second.stats().delivered == 7)
        paths = [path for path, _ in stage.mixpanel.requests]
        times = [at for at, path in zip(stage.mixpanel.times, paths, strict=True) if path == "/track"]
        assert all(at - began >= 24 for at in times[1:])
        assert stage.counters == {"in": 7, "out": 7}

    in_virtual_time(body)


def test_lane_moves_to_a_new_worker_once_nothing_of_it_is_in_flight() -> None:
    async def body(stage: Stage) -> None:
        workers = [stage.worker(name=f"worker-{at}") for at in range(3)]
        values = {f"person-{at}": 0 for at in range(8)}
        async with anyio.create_task_group() as tasks:
            for at, worker in enumerate(workers):
                tasks.start_soon(worker.run)
                for _ in range(20):
                    for partition, person in enumerate(values):
                        values[person] += 1
                        await put(stage.outbox, entry([set_value(person, values[person])], f"people:{partition}"))
                    await anyio.sleep(0.6)
                assert sum(one.stats().lanes > 0 for one in workers) == at + 1
            await wait_until(lambda: sum(worker.stats().delivered for worker in workers) == 480)
            for worker in workers:
                worker.stop()
        for person in values:
            seen = [one["$set"]["value"] for one in stage.mixpanel.updates() if one["$distinct_id"] == person]
            assert seen == [*range(1, 61)]

    in_virtual_time(body)


def test_merge_goes_to_import_and_other_identity_calls_to_track() -> None:
    async def body(stage: Stage) -> None:
        alias = b'{"event":"$create_alias","properties":{"distinct_id":"a","alias":"b","token":"%b"}}' % TOKEN.encode()
        merge = b'{"event":"$merge","properties":{"$distinct_ids":["a","b"],"token":"%b"}}' % TOKEN.encode()
        records = [IdentityRecord(one) for one in (alias, merge, alias)]
        await put(stage.outbox, entry(records, "identity"))
        async with stage.worker() as worker:
            assert await worker.drain()
        assert [path for path, _ in stage.mixpanel.requests] == ["/track", "/import", "/track"]
        assert stage.counters == {"in": 3, "out": 3}

    in_virtual_time(body)


def test_repeated_updates_of_a_lane_share_a_request_as_before() -> None:
    """The dead worker had applied a whole request. A smaller one would take the profile back to an older value."""

    async def body(stage: Stage) -> None:
        for value in range(4):
            for lane in ("people:0", "people:1"):
                await put(stage.outbox, entry([set_value(lane, value), *[set_value("x", 0)] * 399], lane))
        dead = await other_worker(stage.outbox)
        await dead.read(["people:0", "people:1"], max_records=9_000, wait=0)
        async with stage.worker() as worker, running(worker):
            await wait_until(lambda: worker.stats().delivered == 3_200)
        for path, sent in stage.mixpanel.requests:
            assert path == "/engage"
            (person,) = {one["$distinct_id"] for one in sent} - {"x"}
            assert [one["$set"]["value"] for one in sent if one["$distinct_id"] == person] == [0, 1, 2, 3]

    in_virtual_time(body)
