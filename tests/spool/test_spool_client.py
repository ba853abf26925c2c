"""Client with a spool, through its public methods: results for callers, and records that arrive."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from spool_harness import fast_folder

from mixpanel_async import (
    AsyncMixpanel,
    BatchPolicy,
    ClientClosedError,
    ConfigurationError,
    DropReason,
    LostRecord,
    Overflow,
    QueueFullError,
    RetryPolicy,
    ServiceAccountCredentials,
    SpoolError,
    SqliteSpool,
)
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.anyio

NO_LINGER_TIMEOUT = BatchPolicy(linger=3600.0)
AT_ONCE = RetryPolicy(initial=0.0, maximum=0.0)


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder) / "spool" / "spool.db"


def down(emulator: Emulator) -> Emulator:
    emulator.fail_next(503, times=100_000)
    return emulator


def names(emulator: Emulator) -> list[Any]:
    return [event["properties"].get("number") for event in emulator.raw_events()]


async def leave_on_disk(path: Path, count: int, **options: Any) -> list[tuple[Any, Any]]:
    """Leave events of a closed client on disk. Return their times and insert ids."""
    emulator = down(Emulator())
    seen: list[tuple[Any, Any]] = []

    def before_send(message: dict[str, Any]) -> dict[str, Any]:
        if "properties" in message:
            seen.append((message["properties"]["time"], message["properties"]["$insert_id"]))
        return message

    mp = emulator.client(spool=SqliteSpool(path), shutdown_timeout=0.02, before_send=before_send, **options)
    for number in range(count):
        await mp.track("user", "Event", {"number": number})
    result = await mp.aclose()
    assert (result.delivered, result.failed, result.pending) == (0, 0, count)
    assert mp.stats().pending == count
    assert mp.stats().losses == {}
    return seen


async def test_next_client_sends_remaining_records_unchanged(path: Path) -> None:
    seen = await leave_on_disk(path, 50)
    emulator = Emulator()
    async with emulator.client(spool=SqliteSpool(path)) as mp:
        assert mp.stats().recovered == 50
        assert (await mp.flush()).delivered == 50
    properties = [event["properties"] for event in emulator.raw_events()]
    assert [(one["time"], one["$insert_id"]) for one in properties] == seen
    assert [one["number"] for one in properties] == list(range(50))
    stats = mp.stats()
    assert (stats.accepted, stats.delivered, stats.pending, stats.pending_bytes) == (50, 50, 0, 0)


async def test_flush_reports_pending_records_and_the_next_client_sends_them(path: Path) -> None:
    emulator = Emulator()
    emulator.fail_next(429, retry_after=60)
    mp = emulator.client(spool=SqliteSpool(path), shutdown_timeout=0.05)
    await mp.track("user", "Event")
    result = await mp.flush()
    assert (result.delivered, result.failed, result.pending) == (0, 0, 1)
    result = await mp.aclose()
    assert (result.delivered, result.failed, result.pending) == (0, 0, 1)
    async with emulator.client(spool=SqliteSpool(path)) as again:
        assert (await again.flush()).delivered == 1


async def test_pending_bytes_of_inherited_records_stay_positive(path: Path) -> None:
    """A stored record is smaller than the sent one, because a marker replaces the token."""
    await leave_on_disk(path, 800)
    emulator = Emulator()
    seen = []
    mp = emulator.client(spool=SqliteSpool(path), batching=BatchPolicy(max_events=25, max_pending_events=100))
    mp_stats = mp.stats
    async with mp:
        while mp_stats().pending:
            seen.append(mp_stats())
            await anyio.lowlevel.checkpoint()
    assert len(seen) > 3
    assert all(one.pending_bytes > 0 for one in seen)
    assert mp.stats().delivered == 800


@pytest.mark.parametrize("ticks", range(12))
async def test_cancelled_call_counts_once_and_arrives(path: Path, ticks: int) -> None:
    """Cancel `track()` at each of its await points."""
    emulator = Emulator()
    async with emulator.client(spool=SqliteSpool(path), batching=NO_LINGER_TIMEOUT) as mp:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def call() -> None:
                    await mp.track("user", "Cancelled")

                tasks.start_soon(call)
                for _ in range(ticks):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        await mp.track("user", "After")
        await mp.flush()
        accepted = mp.stats().accepted
    assert accepted in ({1, 2} if ticks == 0 else {2})
    assert len(emulator.raw_events()) == accepted
    assert mp.stats().delivered == accepted


async def test_threads_track_into_the_spool(path: Path) -> None:
    emulator = Emulator()

    def work(first: int, mp: AsyncMixpanel) -> None:
        for number in range(first, first + 250):
            mp.track_nowait("user", "Event", {"number": number})

    async with emulator.client(spool=SqliteSpool(path)) as mp:
        threads = [threading.Thread(target=work, args=(first, mp)) for first in range(0, 1_000, 250)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        assert (await mp.flush()).delivered == 1_000
    assert sorted(names(emulator)) == list(range(1_000))


async def test_many_callers_share_few_commits(path: Path) -> None:
    emulator = Emulator()
    async with emulator.client(spool=SqliteSpool(path), batching=NO_LINGER_TIMEOUT) as mp:
        async with anyio.create_task_group() as tasks:
            for number in range(1_000):
                tasks.start_soon(mp.track, "user", "Event", {"number": number})
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (1_000,)
        connection.close()
    assert sorted(names(emulator)) == list(range(1_000))


async def test_events_take_the_fast_encoder_also_after_commits(path: Path) -> None:
    emulator = Emulator()
    async with emulator.client(spool=SqliteSpool(path)) as mp:
        for _ in range(3):
            async with anyio.create_task_group() as tasks:
                for _ in range(100):
                    tasks.start_soon(mp.track, "user", "Event")
    ids = [event["properties"]["$insert_id"] for event in emulator.raw_events()]
    assert len({*ids}) == 300
    # It draws one random number for all events of a millisecond.
    assert len({one[:-2] for one in ids}) < 150


async def test_event_of_a_bound_client_is_on_disk_when_the_call_returns(path: Path) -> None:
    emulator = down(Emulator())
    mp = emulator.client(spool=SqliteSpool(path), batching=NO_LINGER_TIMEOUT, shutdown_timeout=0.02)
    await mp.track("user", "Event")
    bound = mp.bind(user_id="user", device_id="device", ip="203.0.113.7", properties={"app": "shop"})
    for number in range(5):
        await bound.track("Event", {"number": number})
        connection = sqlite3.connect(path)
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (2 + number,)
        connection.close()
    await mp.aclose()
    emulator.stop_faults()
    async with emulator.client(spool=SqliteSpool(path)) as again:
        assert (await again.flush()).delivered == 6
    assert names(emulator) == [None, *range(5)]
    expected = {"$user_id": "user", "$device_id": "device", "ip": "203.0.113.7", "app": "shop", "distinct_id": "user"}
    for event in emulator.raw_events()[1:]:
        assert expected.items() <= event["properties"].items()


@pytest.mark.parametrize("overflow", list(Overflow))
async def test_full_spool_applies_the_overflow_policy(path: Path, overflow: Overflow) -> None:
    emulator = Emulator()
    emulator.fail_next(429, retry_after=60)
    lost: list[LostRecord] = []
    reasons: set[DropReason] = set()

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        lost.extend(records)
        reasons.add(reason)

    mp = emulator.client(
        spool=SqliteSpool(path, max_records=5),
        overflow=overflow,
        on_drop=on_drop,
        shutdown_timeout=0.05,
        batching=BatchPolicy(linger=3600.0, wait_timeout=0.05),
    )
    await mp.track("user", "Event", {"number": 0})
    # The failed request ends, so that nothing is in flight.
    await mp.flush()
    refused = [number for number in range(1, 8) if await is_refused(mp, number)]
    raises = overflow in {Overflow.WAIT, Overflow.RAISE}
    assert refused == ([5, 6, 7] if raises else [])
    assert (await mp.aclose()).pending == 5
    stats = mp.stats()
    assert stats.losses == ({} if raises else {"queue_full": 3})
    assert stats.accepted == (5 if raises else 8)
    async with emulator.client(spool=SqliteSpool(path)) as again:
        await again.flush()
    assert names(emulator) == ([3, 4, 5, 6, 7] if overflow is Overflow.DROP_OLDEST else [0, 1, 2, 3, 4])
    if not raises:
        assert reasons == {DropReason.QUEUE_FULL}
        numbers = [one.payload["properties"]["number"] for one in lost if one.payload]
        assert numbers == ([0, 1, 2] if overflow is Overflow.DROP_OLDEST else [5, 6, 7])
        assert all("token" not in one.payload["properties"] for one in lost if one.payload)


async def is_refused(mp: AsyncMixpanel, number: int) -> bool:
    try:
        await mp.track("user", "Event", {"number": number})
    except QueueFullError:
        return True
    return False


async def test_callers_that_wait_for_room_get_it(path: Path) -> None:
    emulator = Emulator()
    async with (
        emulator.client(
            spool=SqliteSpool(path, max_records=10), overflow=Overflow.WAIT, batching=BatchPolicy(linger=0.0)
        ) as mp,
        anyio.create_task_group() as tasks,
    ):
        for number in range(100):
            tasks.start_soon(mp.track, "user", "Event", {"number": number})
    assert sorted(names(emulator)) == list(range(100))


async def test_inherited_imports_are_signed_with_the_present_credentials(path: Path) -> None:
    emulator = down(Emulator())
    account = ServiceAccountCredentials("account", "secret", "12345")
    mp = emulator.client(spool=SqliteSpool(path), shutdown_timeout=0.02, batching=NO_LINGER_TIMEOUT)
    for number in range(5):
        await mp.import_data(None, "user", "Old", 1_700_000_000 + number, api_secret="project-secret")
        await mp.import_data(None, "user", "Older", 1_600_000_000 + number)
    assert (await mp.aclose()).pending == 10
    emulator.reset()
    async with emulator.client(spool=SqliteSpool(path), credentials=account) as again:
        assert again.stats().recovered == 10
        assert (await again.flush()).delivered == 10
    by_name = {name: [one["properties"]["time"] for one in emulator.raw_events(name)] for name in ("Old", "Older")}
    assert len(by_name["Old"]) == len(by_name["Older"]) == 5
    assert {request.path for request in emulator.requests()} == {"/import"}


async def leave_update_in_flight(path: Path, **options: Any) -> None:
    """Leave an update on disk in the state of a process killed during its request."""
    emulator = Emulator()
    mp = emulator.client(spool=SqliteSpool(path), shutdown_timeout=0.02, **options)
    emulator.fail_next(503, times=1_000)
    await mp.people_increment("user", {"visits": 1})
    await mp.people_set("user", {"name": "Ada"})
    await mp.aclose()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET state = 2 WHERE state = 1")
    connection.commit()
    connection.close()


async def test_update_with_a_started_request_is_uncertain_and_not_sent(path: Path) -> None:
    await leave_update_in_flight(path)
    emulator = Emulator()
    lost: list[tuple[DropReason, Any]] = []

    def on_drop(records: list[LostRecord], reason: DropReason) -> None:
        lost.extend((reason, record.payload) for record in records)

    async with emulator.client(spool=SqliteSpool(path), on_drop=on_drop) as mp:
        await mp.flush()
    stats = mp.stats()
    assert (stats.accepted, stats.recovered, stats.uncertain, stats.delivered) == (2, 2, 1, 1)
    assert (emulator.profile("user") or {})["name"] == "Ada"
    assert "visits" not in (emulator.profile("user") or {})
    ((reason, payload),) = lost
    assert reason is DropReason.UNCERTAIN
    assert payload["$add"] == {"visits": 1}
    assert "$token" not in payload
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT reason FROM dead").fetchall() == [("uncertain",)]
    connection.close()


async def test_at_least_once_repeats_an_update_with_a_started_request(path: Path) -> None:
    await leave_update_in_flight(path)
    emulator = Emulator()
    async with emulator.client(spool=SqliteSpool(path), batching=BatchPolicy(at_least_once=True)) as mp:
        await mp.flush()
    assert mp.stats().delivered == 2
    assert (emulator.profile("user") or {})["visits"] == 1


async def test_rejected_record_becomes_a_dead_letter_without_token(path: Path) -> None:
    now = time.time()
    emulator = Emulator(now=lambda: now - 7_200)
    lost: list[LostRecord] = []
    account = ServiceAccountCredentials("account", "secret", "12345")
    async with emulator.client(
        spool=SqliteSpool(path),
        credentials=account,
        batching=NO_LINGER_TIMEOUT,
        on_drop=lambda records, reason: lost.extend(records),
    ) as mp:
        await mp.track("user", "Good", time=now - 8_000)
        await mp.track("user", "Ahead of the server", time=now)
        result = await mp.flush()
    assert (result.delivered, result.failed) == (1, 1)
    (record,) = lost
    assert record.payload is not None
    assert "token" not in record.payload["properties"]
    connection = sqlite3.connect(path)
    ((reason, body),) = connection.execute("SELECT reason, body FROM dead").fetchall()
    connection.close()
    assert reason == "rejected"
    assert b"Ahead" in body
    assert b"emulator-token" not in body


async def test_closed_client_accepts_nothing(path: Path) -> None:
    mp = Emulator().client(spool=SqliteSpool(path))
    await mp.track("user", "Event")
    await mp.aclose()
    with pytest.raises(ClientClosedError):
        await mp.track("user", "Late")
    assert mp.stats().pending == 0


def test_second_event_loop_works_after_calls_were_left_waiting_in_the_first(path: Path) -> None:
    """The commit group that it joins may have waiters of the first loop."""
    emulator = Emulator()
    mp = emulator.client(spool=SqliteSpool(path, timeout=0.3), batching=NO_LINGER_TIMEOUT)

    async def first() -> None:
        await mp.start()
        lock.execute("BEGIN IMMEDIATE")
        calls = [asyncio.ensure_future(mp.track("user", "First", {"number": 0}))]
        await asyncio.sleep(0.05)
        # These join the next commit and are cancelled when their loop ends.
        calls += [asyncio.ensure_future(mp.track("user", "First", {"number": number})) for number in (1, 2)]
        await asyncio.sleep(0.01)

    async def second() -> None:
        await mp.track("user", "Second", {"number": 3})
        await mp.aclose()

    lock = _lock_new_spool(path)
    asyncio.run(first())
    lock.execute("ROLLBACK")
    lock.close()
    asyncio.run(second())
    stats = mp.stats()
    assert stats.pending == 0
    assert 3 in names(emulator)
    assert stats.delivered == len(names(emulator)) == stats.accepted


def _lock_new_spool(path: Path) -> sqlite3.Connection:
    async def make() -> None:
        async with Emulator().client(spool=SqliteSpool(path)):
            pass

    asyncio.run(make())
    return sqlite3.connect(path, isolation_level=None, timeout=0.0)


async def test_broken_disk_does_not_delay_delivery_of_stored_records(path: Path) -> None:
    emulator = Emulator()
    mp = emulator.client(spool=SqliteSpool(path, timeout=0.1), batching=NO_LINGER_TIMEOUT)
    for number in range(10):
        await mp.track("user", "Event", {"number": number})
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    mp.track_nowait("user", "Event", {"number": 10})
    with pytest.raises(SpoolError) as caught:
        await mp.track("user", "Event", {"number": 11})
    assert (str(caught.value).index(str(path)), str(caught.value).count(str(path))) == (0, 1)
    assert (await mp.flush(timeout=0.2)).delivered == 10
    assert names(emulator) == list(range(10))
    lock.execute("ROLLBACK")
    lock.close()
    assert (await mp.aclose()).pending == 0
    assert names(emulator) == list(range(11))


@pytest.mark.anyio
@pytest.mark.parametrize("text", [b"KEY=value\n", ("näme " * 2_000).encode()])
async def test_text_file_is_refused_and_unchanged(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "my.env"
    path.write_bytes(text)
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="a text file") as caught:
        await Emulator().client(spool=SqliteSpool(path)).start()
    assert str(caught.value).count(str(path)) == 1
    assert path.read_bytes() == text
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["my.env"]


async def test_stats_show_the_spool_error_to_callers_that_do_not_wait(tmp_path: Path) -> None:
    path = tmp_path / "my.env"
    path.write_bytes(b"KEY=value\n")
    mp = Emulator().client(spool=SqliteSpool(path), shutdown_timeout=0.0)
    mp.track_nowait("user", "Event")
    with anyio.fail_after(10):
        while mp.stats().last_error is None:  # noqa: ASYNC110  a thread changes the condition
            await anyio.sleep(0.001)
    assert mp.stats().last_error == f"{path}: the file is a text file, not a spool; choose another path"
    await mp.aclose()
    assert mp.stats().losses == {"spool_failed": 1}


@pytest.mark.anyio
async def test_database_of_another_program_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(path)) as theirs:
        theirs.execute("CREATE TABLE notes (text TEXT)")
        theirs.commit()
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        await Emulator().client(spool=SqliteSpool(path)).start()
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644


def test_purge_refuses_an_age_for_waiting_records(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="in separate calls"):
        SqliteSpool(tmp_path / "s.db").purge(waiting=True, older_than=60.0)
