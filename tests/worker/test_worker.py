"""A worker delivers what an outbox holds: batches, retries, dead letters, drain and hand-over."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anyio
import httpx
import pytest
from worker_samples import (
    START,
    TOKEN,
    Mixpanel,
    Stage,
    add_one,
    entry,
    event,
    events,
    in_virtual_time,
    put,
    running,
    set_value,
    wait_until,
)

from mixpanel_async import (
    BatchPolicy,
    ConfigurationError,
    DropReason,
    LostRecord,
    RetryPolicy,
    ServiceAccountCredentials,
)
from mixpanel_async._model.errors import ClientClosedError
from mixpanel_async._model.records import Record
from mixpanel_async.emulator import Emulator
from mixpanel_async.outbox import MemoryOutbox
from mixpanel_async.testing import assert_profile
from mixpanel_async.worker import Worker


def test_small_entries_share_a_request() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, *(entry(events(10 * at, 10 * at + 10)) for at in range(30)))
        async with stage.worker() as worker, running(worker):
            await wait_until(lambda: worker.stats().delivered == 300)
        assert [len(records) for _, records in stage.mixpanel.requests] == [300]
        assert stage.mixpanel.events == [f"user-{at}" for at in range(300)]
        assert stage.counters == {"in": 300, "out": 300}

    in_virtual_time(body)


def test_entry_that_comes_alone_waits_for_the_linger_time_only() -> None:
    async def body(stage: Stage) -> None:
        async with stage.worker(batching=BatchPolicy(linger=0.5)) as worker, running(worker):
            await anyio.sleep(20)
            await put(stage.outbox, entry(events(0, 3)))
            began = anyio.current_time()
            await wait_until(lambda: worker.stats().delivered == 3)
            assert anyio.current_time() - began < 0.8

    in_virtual_time(body)


def test_large_backlog_goes_out_in_full_batches() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, *(entry(events(500 * at, 500 * at + 500)) for at in range(16)))
        async with stage.worker() as worker:
            assert await worker.drain()
            assert worker.stats().delivered == 8_000
        assert [len(records) for _, records in stage.mixpanel.requests] == [2_000] * 4

    in_virtual_time(body)


def test_worker_holds_few_entries_while_mixpanel_is_down() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503) for _ in range(12)]
        await put(stage.outbox, *(entry(events(500 * at, 500 * at + 500)) for at in range(40)))
        async with stage.worker(retry=RetryPolicy(maximum=4.0)) as worker, running(worker):
            await wait_until(lambda: len(stage.mixpanel.requests) > 10)
            # Two full batches wait, and four had a request when the first one failed.
            assert worker.stats().claimed <= 12_000
            await wait_until(lambda: worker.stats().delivered == 20_000)
        assert sorted(set(stage.mixpanel.events)) == sorted(f"user-{at}" for at in range(20_000))

    in_virtual_time(body)


def test_worker_holds_few_bytes_while_mixpanel_is_down() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503) for _ in range(6)]
        padding = b" " * 900_000
        await put(stage.outbox, *(entry([Record(bytes(event(at))[:-1] + padding + b"}")]) for at in range(60)))
        async with stage.worker(retry=RetryPolicy(maximum=4.0)) as worker, running(worker):
            await wait_until(lambda: len(stage.mixpanel.requests) > 5)
            # 16 MiB wait, one more read of 4 MiB, and four requests of 2 MB.
            assert worker.stats().claimed <= 35
            await wait_until(lambda: worker.stats().delivered == 60)

    in_virtual_time(body)


def test_rejected_records_become_dead_letters_without_the_token() -> None:
    async def body(stage: Stage) -> None:
        failed = {"index": 1, "$insert_id": "id-1", "field": "properties.time", "message": "'time' is invalid"}
        answer = {"code": 400, "error": "some data points failed", "failed_records": [failed]}
        stage.mixpanel.answers.append(httpx.Response(400, json={**answer, "num_records_imported": 2}))
        await put(stage.outbox, entry(events(0, 3)))
        credentials = ServiceAccountCredentials("name", "secret", "12")
        worker = stage.worker(credentials=credentials)
        async with worker:
            assert await worker.drain()
            stats = worker.stats()
        assert (stats.delivered, stats.failed, stats.losses) == (2, 1, {"rejected": 1})
        assert stage.counters == {"in": 3, "out": 2, "dead": 1}
        (letter,) = stage.outbox._shared.state.dead.values()
        assert (letter.reason.value, letter.message, letter.lane) == ("rejected", "'time' is invalid", "events")
        assert b"id-1" in letter.body
        assert TOKEN.encode() not in letter.body

    in_virtual_time(body)


def test_413_splits_the_batch_and_ends_the_entries_once() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers.append(httpx.Response(413))
        await put(stage.outbox, entry(events(0, 40)), entry(events(40, 100)))
        async with stage.worker() as worker:
            assert await worker.drain()
        assert [len(records) for _, records in stage.mixpanel.requests] == [100, 50, 50]
        assert stage.counters == {"in": 100, "out": 100}

    in_virtual_time(body)


def test_exhausted_records_become_dead_letters() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503), httpx.Response(503)]
        await put(stage.outbox, entry(events(0, 3)), entry([set_value("ada", 1)], "people:0"))
        async with stage.worker(retry=RetryPolicy(attempts=1)) as worker:
            assert await worker.drain()
        assert stage.counters == {"in": 4, "dead": 4}

    in_virtual_time(body)


def test_old_events_are_dead_letters_without_credentials_and_imports_with_them() -> None:
    async def body(stage: Stage) -> None:
        week = 7 * 86_400.0
        old = [event(1, time=START - week), event(2, time=START)]
        async with stage.worker() as worker:
            await put(stage.outbox, entry(events(5, 6)))
            # The first response shows that the clock of the worker is right.
            assert await worker.drain()
            await put(stage.outbox, entry(old, at=START - week))
            assert await worker.drain()
            assert worker.stats().losses == {"too_old": 1}
        assert stage.mixpanel.events == ["user-5", "user-2"]
        await put(stage.outbox, entry(old, at=START - week))
        credentials = ServiceAccountCredentials("name", "secret", "12")
        async with stage.worker(credentials=credentials, events_endpoint="track") as worker:
            assert await worker.drain()
            assert worker.stats().delivered == 2
        assert sorted(path for path, _ in stage.mixpanel.requests) == ["/import", "/track", "/track", "/track"]

    in_virtual_time(body)


def test_kinds_limit_what_a_worker_takes() -> None:
    async def body(stage: Stage) -> None:
        await put(stage.outbox, entry(events(0, 3)), entry([set_value("ada", 1)], "people:0"))
        async with stage.worker(kinds=["people"]) as worker:
            assert await worker.drain()
            assert worker.stats().delivered == 1
        assert [path for path, _ in stage.mixpanel.requests] == ["/engage"]

    in_virtual_time(body)


def test_stopped_worker_gives_its_entries_back_at_once() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503)] * 3
        await put(stage.outbox, entry(events(0, 3)), entry([set_value("ada", 1)], "people:0"))
        async with stage.worker() as first, running(first):
            await wait_until(lambda: len(stage.mixpanel.requests) >= 2)
        assert first.stats().delivered == 0
        began = anyio.current_time()
        async with stage.worker() as second:
            assert await second.drain()
        assert anyio.current_time() - began < 5
        assert stage.counters == {"in": 4, "out": 4}

    in_virtual_time(body)


def test_stop_waits_for_requests_in_flight() -> None:
    async def body(stage: Stage) -> None:
        async def slow() -> httpx.Response:
            await anyio.sleep(4)
            return httpx.Response(200, json={"status": 1})

        stage.mixpanel.answers.append(slow)
        await put(stage.outbox, entry(events(0, 3)))
        async with stage.worker(shutdown_timeout=5) as worker, running(worker):
            await wait_until(lambda: worker.stats().in_flight == 1)
        assert stage.counters == {"in": 3, "out": 3}

    in_virtual_time(body)


def test_request_that_outlasts_the_shutdown_timeout_leaves_its_entry_to_another_worker() -> None:
    async def body(stage: Stage) -> None:
        async def hanging() -> httpx.Response:
            await anyio.sleep_forever()
            raise AssertionError

        stage.mixpanel.answers.append(hanging)
        await put(stage.outbox, entry([set_value("ada", 1), add_one("ada")], "people:0"))
        async with stage.worker(shutdown_timeout=0.5, timeout=60) as worker, running(worker):
            await wait_until(lambda: worker.stats().in_flight == 1)
        assert worker.stats().uncertain == 1
        # The entry has not ended, so that its dead letter was not stored either. The next worker finds the mark.
        assert stage.counters == {"in": 2}
        async with stage.worker() as second:
            assert await second.drain()
        assert stage.counters == {"in": 2, "out": 1, "uncertain": 1}
        assert stage.mixpanel.updates()[2:] == [{"$token": TOKEN, "$distinct_id": "ada", "$set": {"value": 1}}]

    in_virtual_time(body)


def test_cancelled_run_hands_over() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503)] * 9
        await put(stage.outbox, entry(events(0, 3)))
        async with stage.worker() as worker:
            with anyio.move_on_after(3) as scope:
                await worker.run()
            assert scope.cancelled_caught
        assert [kept.owner for kept in stage.outbox._shared.state.lanes["events"].values()] == [None]

    in_virtual_time(body)


@pytest.mark.anyio
async def test_callbacks_learn_of_losses_and_deliveries_before_the_worker_ends() -> None:
    seen: list[Any] = []

    async def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        await anyio.sleep(0.05)
        seen.append((len(records), reason))

    mixpanel, outbox = Mixpanel(), MemoryOutbox()
    mixpanel.answers.append(httpx.Response(400, json={"error": "bad", "status": 0}))
    await put(outbox, entry(events(0, 1)), entry([set_value("ada", 1)], "people:0"))
    options: dict[str, Any] = {"on_drop": on_drop, "on_delivered": lambda delivery: seen.append(delivery.records)}
    async with Worker(outbox, TOKEN, http_client=mixpanel.client(), **options) as worker:
        assert await worker.drain()
    assert sorted(seen, key=str) == [(1, DropReason.REJECTED), 1]


@pytest.mark.anyio
async def test_worker_delivers_to_the_emulator_on_both_event_loops() -> None:
    emulator, outbox = Emulator(), MemoryOutbox()
    async with anyio.create_task_group() as tasks:
        for at in range(3):
            tasks.start_soon(
                put, outbox, entry([event(one, time=time.time()) for one in range(100 * at, 100 * at + 100)])
            )
    await put(outbox, entry([set_value("ada", 1), add_one("ada"), set_value("ada", 2)], "people:3"))
    async with Worker(outbox, TOKEN, api_host="http://127.0.0.1", http_client=_client_of(emulator)) as worker:
        assert await worker.drain()
    assert len(emulator.raw_events("Order placed")) == 300
    assert_profile(emulator, "ada", {"value": 2, "count": 1})
    assert worker.stats().delivered == 303


def _client_of(emulator: Emulator) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(emulator.app))


def test_second_run_sends_nothing_that_the_first_gave_back() -> None:
    async def body(stage: Stage) -> None:
        stage.mixpanel.answers[:] = [httpx.Response(503)] * 2
        await put(stage.outbox, entry(events(0, 3)), entry([add_one("ada")], "people:0"))
        async with stage.worker(batching=BatchPolicy(linger=1)) as worker:
            async with running(worker):
                await wait_until(lambda: worker.stats().pending == 4)
            stats = worker.stats()
            assert (stats.claimed, stats.pending, stats.entries) == (0, 0, 0)
            stage.mixpanel.answers.clear()
            stage.mixpanel.requests.clear()
            assert await worker.drain()
        assert worker.stats().delivered == 4
        assert stage.mixpanel.events == ["user-0", "user-1", "user-2"]
        assert len(stage.mixpanel.updates()) == 1

    in_virtual_time(body)


def test_worker_runs_in_one_event_loop_after_another() -> None:
    outbox, mixpanel = MemoryOutbox(), Mixpanel(clock=time.monotonic)
    worker = Worker(outbox, TOKEN, http_client=mixpanel.client())

    async def run(at: int) -> None:
        await put(outbox, entry([event(at, time=time.time())]))
        async with running(worker):
            await wait_until(lambda: worker.stats().delivered == at)

    for at in (1, 2, 3):
        asyncio.run(run(at))
    assert mixpanel.events == ["user-1", "user-2", "user-3"]


@pytest.mark.anyio
async def test_run_returns_after_stop_and_can_be_repeated() -> None:
    outbox = MemoryOutbox()
    async with Worker(outbox, TOKEN, http_client=_client_of(Emulator()), api_host="http://127.0.0.1") as worker:
        async with running(worker):
            await wait_until(lambda: worker.stats().lanes > 0)
        await put(outbox, entry([event(1, time=time.time())]))
        assert await worker.drain()
    with pytest.raises(ClientClosedError, match="closed"):
        await worker.run()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency"),
        ({"concurrency": 101}, "concurrency"),
        ({"kinds": []}, "kinds"),
        ({"kinds": ["event"]}, "kinds"),
        ({"kinds": 5}, "kinds .* not int"),
        ({"outbox": "redis://user:secret@queue"}, "outbox must be an engine .* not str"),
        ({"outbox": MemoryOutbox}, "outbox must be an engine .* not MemoryOutbox"),
        ({"name": ""}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"token": " "}, "token"),
        ({"shutdown_timeout": -1}, "shutdown_timeout"),
        ({"api_host": "http://example.com"}, "http"),
    ],
)
def test_wrong_option_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Worker(**{"outbox": MemoryOutbox(), "token": TOKEN, **options})


def test_options_come_from_the_environment() -> None:
    environ = {"MIXPANEL_TOKEN": TOKEN, "MIXPANEL_REGION": "eu"}
    worker = Worker.from_env(MemoryOutbox(), environ, name="host-1")
    assert worker.name == "host-1"
    with pytest.raises(ConfigurationError, match="MIXPANEL_TOKEN"):
        Worker.from_env(MemoryOutbox(), {})
