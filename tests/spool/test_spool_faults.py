"""Disk faults of a spool: at least one test for each row of part E of the fault catalogue."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from spool_harness import DAMAGE, IO_ERROR, TOKEN, SpoolHarness, fast_folder, record, spooled

from mixpanel_async import (
    BatchPolicy,
    ConfigurationError,
    MixpanelException,
    Overflow,
    QueueFullError,
    RetryPolicy,
    ServiceAccountCredentials,
    SpoolError,
    SqliteSpool,
)
from mixpanel_async._model.outcomes import Delivered, Retry
from mixpanel_async._model.records import DropReason, RecordKind
from mixpanel_async._spool import files
from mixpanel_async._spool.database import Database, open_database
from mixpanel_async._spool.schema import APPLICATION_ID
from mixpanel_async.emulator import Emulator

AGAIN = Retry(message="not now", applied=False, status=503)
UNKNOWN = Retry(message="no answer", applied=True)
ONE_EACH = BatchPolicy(max_events=1, linger=0.0)


@pytest.fixture
def path() -> Iterator[Path]:
    """Path of a spool, in memory if possible: these tests do not depend on a real disk."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder) / "spool" / "spool.db"


@pytest.fixture
def new_client() -> Iterator[Callable[..., SpoolHarness]]:
    """Return a factory of clients that are checked and released at the end of the test."""
    harnesses: list[SpoolHarness] = []

    def make(path: Path, **options: Any) -> SpoolHarness:
        harnesses.append(SpoolHarness(path, **options))
        return harnesses[-1]

    yield make
    for harness in harnesses:
        harness.check()
        harness.abandon()


def deliver_all(harness: SpoolHarness) -> list[bytes]:
    """Deliver everything. Return the records in order of arrival."""
    arrived: list[bytes] = []
    for _ in range(3_000):
        harness.now += 1.0
        assert harness.step()
        while (batch := harness.take()) is not None:
            arrived += [bytes(item) for item in batch.items]
            harness.settle(batch, Delivered())
        if not harness.queue.pending and not harness.writer._has_more():
            break
    assert harness.step()
    assert harness.rows() == {}
    return arrived


def filled(harness: SpoolHarness, count: int, size: int = 200, kind: RecordKind = RecordKind.EVENTS) -> list[bytes]:
    items = [record(number, size) for number in range(count)]
    for item in items:
        harness.offer(item, kind)
    harness.run_until_idle()
    return items


def set_aside_files(path: Path) -> list[Path]:
    found = sorted(path.parent.glob("*.corrupt-*"))
    return [one for one in found if not one.name.endswith(("-wal", "-shm", "-journal"))]


# E1: the disk is full


@pytest.mark.parametrize("overflow", list(Overflow))
def test_e1_full_disk_applies_overflow_policy_until_there_is_room(
    path: Path, new_client: Callable[..., SpoolHarness], overflow: Overflow
) -> None:
    harness = new_client(path, overflow=overflow, batching=ONE_EACH)
    harness.step()
    pages = harness.session._db._number("PRAGMA page_count")
    harness.session._db._db.execute(f"PRAGMA max_page_count={pages + 40}")
    kept = 0
    while True:
        group = harness.offer(record(kept, 900), awaited=True)
        assert group is not None
        harness.step()
        assert group.is_done
        if harness.queue.stats().pending == kept:
            break
        kept += 1
    raises = overflow in {Overflow.RAISE, Overflow.WAIT}
    assert isinstance(group.error, QueueFullError) is raises
    assert harness.queue.stats().losses == ({} if raises else {"spool_full": 1})
    assert harness.queue.stats().accepted == kept + (not raises)
    harness.check()

    # A record offered to a full spool is refused at once and drops no stored record.
    late = record(10_000, 900)
    if overflow is Overflow.RAISE:
        with pytest.raises(QueueFullError):
            harness.offer(late)
    else:
        harness.offer(late)
    assert harness.queue.stats().pending == kept
    assert harness.recorder.reasons[DropReason.QUEUE_FULL] == 0

    # Deletes still work and make room.
    for _ in range(20):
        batch = harness.take()
        assert batch is not None
        harness.settle(batch, Delivered())
    assert harness.step()
    assert len(harness.rows()) == kept - 20
    group = harness.offer(record(20_000, 900), awaited=True)
    assert harness.step()
    assert group is not None
    assert group.error is None
    harness.check()
    assert len(deliver_all(harness)) == kept - 19


def test_e1_full_disk_allows_no_unmarked_update(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    """A request that must not be repeated may start only after its mark is on disk, even if the disk is full."""
    harness = new_client(path, batching=ONE_EACH)
    harness.offer(record(0, once=True), RecordKind.PEOPLE)
    harness.step()
    batch = harness.take()
    assert batch is not None
    harness.fail(sqlite3.OperationalError("database or disk is full"))
    group = harness.mark(batch)
    assert group is not None
    harness.step()
    assert group.is_done
    assert not group.marks_written
    harness.heal()
    harness.step()
    (state,) = sqlite3.connect(path).execute("SELECT state FROM records").fetchone()
    assert state == 2


def test_e1_full_disk_keeps_records_in_memory(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    harness = new_client(path, overflow=Overflow.DROP_OLDEST, max_records=1_000)
    items = filled(harness, 50)
    harness.fail(sqlite3.OperationalError("database or disk is full"))
    for number in range(100, 150):
        harness.offer(record(number))
        harness.step()
    harness.heal()
    assert harness.recorder.reasons == {DropReason.SPOOL_FULL: 50}
    harness.now += 11.0
    harness.step()
    assert deliver_all(harness) == items


# E2: the disk fails

E2 = """
    import json, os, resource, sys, time
    from pathlib import Path
    import anyio
    from mixpanel_async import SqliteSpool, SpoolError, BatchPolicy
    from mixpanel_async.emulator import Emulator

    async def main():
        emulator = Emulator()
        report = {}
        mp = emulator.client(spool=SqliteSpool(sys.argv[1], timeout=0.2), batching=BatchPolicy(linger=3600.0))
        await mp.start()
        for number in range(50):
            await mp.track("user", "Before", {"number": number})
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            await mp.track("user", "Refused")
        except SpoolError as error:
            report["refused"] = str(error)
        mp.track_nowait("user", "Kept")
        # The records are delivered, but their rows cannot be deleted.
        report["flushed"] = (await mp.flush(timeout=0.5)).delivered
        used, until = time.process_time(), time.monotonic() + 2.5
        while time.monotonic() < until:
            await anyio.sleep(0.1)
        report["busy"] = (time.process_time() - used) / 2.5
        report["sent"] = len(emulator.raw_events())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        while True:
            try:
                await mp.track("user", "After")
                break
            except SpoolError:
                await anyio.sleep(0.05)
        await mp.aclose()
        report["raw"] = [event["event"] for event in emulator.raw_events()]
        stats = mp.stats()
        settled = stats.delivered + stats.failed + stats.dropped + stats.uncertain
        report["is_conserved"] = stats.accepted == settled + stats.pending
        report["pending"], report["delivered"] = stats.pending, stats.delivered
        again = emulator.client(spool=SqliteSpool(sys.argv[1]))
        await again.start()
        report["recovered"] = again.stats().recovered
        await again.aclose()
        print(json.dumps(report))

    anyio.run(main)
"""


def test_e2_write_and_delete_errors_lose_and_repeat_nothing(path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(E2), str(path)], capture_output=True, text=True, check=True
    )
    report = json.loads(child.stdout)
    assert "nothing was accepted" in report["refused"]
    assert report["flushed"] == 50
    assert report["sent"] == 50
    assert report["busy"] < 0.5
    assert sorted(report["raw"]) == ["After"] + ["Before"] * 50 + ["Kept"]
    assert (report["is_conserved"], report["pending"], report["delivered"], report["recovered"]) == (True, 0, 52, 0)


def test_e2_record_dropped_during_write_errors_is_counted_once(
    path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    harness = new_client(path, overflow=Overflow.DROP_OLDEST, max_records=5)
    harness.step()
    harness.fail(IO_ERROR)
    for number in range(12):
        harness.offer(record(number), awaited=number % 2 == 0)
    harness.step()
    harness.check()
    harness.heal()
    harness.run_until_idle()
    harness.check()
    # Awaited records were refused; of the others, the newest are kept.
    assert [json.loads(item)["n"] for item in deliver_all(harness)] == [7, 9, 11]


def test_e2_unwritten_records_are_counted_at_close(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    harness = new_client(path)
    filled(harness, 3)
    harness.fail(IO_ERROR)
    for number in range(10, 15):
        harness.offer(record(number))
    group = harness.offer(record(20), awaited=True)
    harness.step()
    harness.close()
    stats = harness.queue.stats()
    assert (stats.pending, stats.losses) == (3, {"spool_failed": 5})
    assert group is not None
    assert isinstance(group.error, SpoolError)
    assert len(harness.rows()) == 3


def test_e2_orphans_are_taken_over_once_the_disk_works(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    first = new_client(path)
    items = filled(first, 5)
    second = new_client(path)
    second.step()
    first.abandon()
    second.now += 11.0
    second.fail(IO_ERROR, after=6)
    assert not second.step()
    second.heal()
    second.now += 11.0
    assert second.step()
    assert deliver_all(second) == items


# E3: another process holds the lock


@pytest.mark.anyio
async def test_e3_locked_file_is_waited_for_within_the_timeout_without_blocking_the_loop(path: Path) -> None:
    emulator = Emulator()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0.001)

    async with emulator.client(spool=SqliteSpool(path, timeout=0.2)) as mp:
        await mp.track("user", "Before")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tick)
            with pytest.raises(SpoolError, match="nothing was accepted"):
                await mp.track("user", "Refused")
            tasks.cancel_scope.cancel()
        assert ticks > 20
        mp.track_nowait("user", "Kept")
        other.execute("ROLLBACK")
        other.close()
        await mp.track("user", "After")
        await mp.flush()
    assert sorted(event["event"] for event in emulator.raw_events()) == ["After", "Before", "Kept"]


@pytest.mark.anyio
async def test_e3_callers_still_time_out_after_another_caller_is_cancelled(path: Path) -> None:
    emulator = Emulator()
    report: list[str] = []
    async with emulator.client(spool=SqliteSpool(path, timeout=0.1)) as mp:
        await mp.track("user", "Before")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def call(name: str) -> None:
            try:
                await mp.track("user", name)
            except SpoolError as error:
                report.append(str(error))

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as first:
                async with anyio.create_task_group() as cancelled_tasks:
                    cancelled_tasks.start_soon(call, "Cancelled")
                    await anyio.lowlevel.checkpoint()
                    for _ in range(3):
                        tasks.start_soon(call, "Patient")
                    await anyio.sleep(0.01)
                    first.cancel()
        assert len(report) == 3
        other.close()


# E4: the file is damaged, foreign or missing


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Spool left by another client: rows in three lanes, non-idempotent rows, dead letters, gaps and a long log."""
    path = tmp_path_factory.mktemp("sound") / "a" / "spool.db"
    harness = SpoolHarness(path, batching=BatchPolicy(max_events=20, linger=0.0))
    for number in range(300):
        kind = (RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.IMPORTS)[number % 3]
        harness.offer(record(number, number % 400, once=kind is RecordKind.PEOPLE and number % 2 == 0), kind)
        if number % 50 == 0:
            harness.step()
    harness.step()
    first = harness.take()
    second = harness.take()
    assert first is not None
    assert second is not None
    harness.settle(first, Delivered())
    harness.settle(second, UNKNOWN)
    harness.step()
    return harness.crash(path.parent.parent / "left")


def checkpointed(source: Path, folder: Path) -> Path:
    """Copy the spool and move the contents of its log into the database."""
    shutil.copytree(source.parent, folder)
    with_log = folder / source.name
    connection = sqlite3.connect(with_log)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()
    return with_log


def bodies(path: Path) -> list[bytes]:
    connection = sqlite3.connect(path)
    try:
        return [body for (body,) in connection.execute("SELECT body FROM records ORDER BY id")]
    finally:
        connection.close()


def reopened(harness: SpoolHarness, originals: set[bytes]) -> int:
    """Open a damaged spool and deliver its records. Return how many arrive unchanged."""
    group = harness.offer(record(99_999), awaited=True)
    for _ in range(3):
        if harness.step():
            break
        harness.now += 1.0
    assert group is not None
    assert group.is_done
    if group.error is not None:
        # The damage was found during the write; the next write goes to a new file.
        harness.offer(record(99_999), awaited=True)
    arrived: list[bytes] = []
    for _ in range(200):
        harness.now += 1.0
        harness.step()
        while (batch := harness.take()) is not None:
            arrived += [bytes(item) for item in batch.items]
            harness.settle(batch, Delivered())
        if not harness.queue.pending and not harness.writer._has_more():
            break
    harness.check()
    assert harness.queue.stats().pending == 0
    assert bytes(record(99_999)) in arrived
    for item in arrived:
        assert isinstance(json.loads(item), dict)
    return sum(spooled(item) in originals for item in arrived)


def test_e4_overwritten_header_loses_no_row(
    sound: Path, tmp_path: Path, new_client: Callable[..., SpoolHarness], caplog: Any
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    originals = bodies(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)
    harness = new_client(path)
    harness.step()
    assert len(set_aside_files(path)) == 1
    assert set_aside_files(path)[0].name.startswith("spool.db.corrupt-")
    assert f"{len(originals)} rows were recovered" in caplog.text
    assert harness.queue.stats().recovered == len(originals)
    assert sorted(map(spooled, deliver_all(harness))) == sorted(originals)


def test_e4_overwritten_page_loses_only_its_own_rows(
    sound: Path, tmp_path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    originals = bodies(path)
    page = path.read_bytes().index(originals[len(originals) // 2]) // 4096
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(os.urandom(4096))
    harness = new_client(path)
    harness.step()
    arrived = deliver_all(harness)
    lost = set(originals) - {spooled(item) for item in arrived}
    assert 0 < len(lost) <= 40
    assert len(arrived) == len(originals) - len(lost)


def test_e4_truncated_log_loses_only_its_own_rows(
    sound: Path, tmp_path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    shutil.copytree(sound.parent, tmp_path / "spool")
    path = tmp_path / "spool" / sound.name
    log = path.with_name(path.name + "-wal")
    originals = set(bodies(sound))
    log.write_bytes(log.read_bytes()[: log.stat().st_size * 2 // 3])
    assert 0 < reopened(new_client(path), originals) < len(originals)


def test_e4_missing_log_index_loses_nothing(
    sound: Path, tmp_path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    shutil.copytree(sound.parent, tmp_path / "spool")
    path = tmp_path / "spool" / sound.name
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    harness = new_client(path)
    harness.step()
    assert len(deliver_all(harness)) == len(bodies(sound)) - harness.queue.stats().uncertain
    assert set_aside_files(path) == []


def test_e4_empty_file_and_garbage_file_are_replaced(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"")
    assert reopened(new_client(path), set()) == 0
    assert set_aside_files(path) == []
    other = path.with_name("other.db")
    other.write_bytes(random.Random(1).randbytes(50_000))
    assert reopened(new_client(other), set()) == 0
    assert len(set_aside_files(other)) == 1


def test_e4_file_of_a_newer_version_is_refused_and_unchanged(
    sound: Path, tmp_path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=2")
    connection.commit()
    connection.close()
    harness = new_client(path)
    group = harness.offer(record(0), awaited=True)
    assert not harness.step()
    assert group is not None
    assert isinstance(group.error, ConfigurationError)
    assert "newer version" in str(group.error)
    assert set_aside_files(path) == []
    assert len(bodies(path)) > 200


def test_e4_database_of_another_program_is_refused_and_unchanged(
    path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.execute("INSERT INTO notes VALUES ('mine')")
    connection.commit()
    connection.close()
    harness = new_client(path)
    group = harness.offer(record(0), awaited=True)
    assert not harness.step()
    assert group is not None
    assert isinstance(group.error, ConfigurationError)
    assert set_aside_files(path) == []
    assert sqlite3.connect(path).execute("SELECT text FROM notes").fetchall() == [("mine",)]


def test_e4_row_without_a_record_is_not_sent(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    first = new_client(path)
    items = filled(first, 30)
    first.abandon()
    connection = sqlite3.connect(path)
    ids = [number for (number,) in connection.execute("SELECT id FROM records ORDER BY id")]
    connection.execute("UPDATE records SET body = ? WHERE id = ?", (b'{"n": \xff', ids[7]))
    connection.execute("UPDATE records SET body = ? WHERE id = ?", (b"[1]", ids[8]))
    connection.commit()
    connection.close()
    second = new_client(path)
    second.step()
    assert deliver_all(second) == items[:7] + items[9:]
    assert second.queue.stats().losses == {"spool_failed": 2}
    dead = sqlite3.connect(path).execute("SELECT reason, message FROM dead").fetchall()
    assert dead == [("spool_failed", "damaged on disk")] * 2


def test_e4_row_with_unknown_lane_stays_in_the_file(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    first = new_client(path)
    items = filled(first, 3)
    first.abandon()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET id = id + (7 << 36) WHERE id = (SELECT max(id) FROM records)")
    connection.commit()
    connection.close()
    second = new_client(path)
    assert second.step()
    assert second.take() is None
    assert second.step()
    batch = second.take()
    assert batch is not None
    assert batch.items == items[:2]
    assert second.queue.stats().accepted == 2


def test_e4_dead_letters_are_recovered(sound: Path, tmp_path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    select = "SELECT project, lane, state, reason, message, died, body FROM dead ORDER BY id"
    before = sqlite3.connect(path).execute(select).fetchall()
    assert before
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)
    new_client(path).step()
    assert sqlite3.connect(path).execute(select).fetchall() == before


@pytest.mark.parametrize("in_look", [False, True])
def test_e4_damage_during_use_loses_and_repeats_nothing(
    path: Path, new_client: Callable[..., SpoolHarness], in_look: bool
) -> None:
    """Recovery restores rows that are only on disk, keeps rows in memory and does not restore settled rows."""
    policy = BatchPolicy(max_events=5, linger=0.0, max_pending_events=20)
    harness = new_client(path, batching=policy)
    items = []
    for number in range(60):
        items.append(record(number))
        harness.offer(items[-1])
        harness.step()
    ended, flying = harness.take(), harness.take()
    assert ended is not None
    assert flying is not None
    harness.settle(ended, Delivered())
    harness.offer(record(60))
    items.append(record(60))
    if in_look:
        harness.now += 11.0
    harness.fail(DAMAGE, after=8 if in_look else 3)
    harness.step()
    harness.step()
    assert len(set_aside_files(path)) == 1
    harness.settle(flying, Delivered())
    arrived = deliver_all(harness)
    assert sorted([*ended.items, *flying.items, *arrived]) == sorted(items)


def test_e4_two_clients_recover_a_shared_damaged_file_once(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    policy = BatchPolicy(max_events=5, linger=0.0, max_pending_events=20)
    first, second = new_client(path, batching=policy), new_client(path, batching=policy)
    items = [record(number) for number in range(120)]
    for number, item in enumerate(items):
        (first, second)[number % 2].offer(item)
        first.step()
        second.step()
    first.now += 11.0
    first.fail(DAMAGE)
    first.step()
    first.step()
    assert len(set_aside_files(path)) == 1
    second.now += 11.0
    assert second.step()
    assert len(set_aside_files(path)) == 1
    arrived: list[Any] = []
    for _ in range(100):
        for harness in (first, second):
            harness.now += 1.0
            harness.step()
            while (batch := harness.take()) is not None:
                arrived += batch.items
                harness.settle(batch, Delivered())
    assert sorted(arrived) == sorted(items)
    assert first.rows() == {}


def test_e4_deleted_file_is_created_again_with_the_records_in_memory(
    path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    harness = new_client(path)
    items = filled(harness, 10)
    for file in path.parent.iterdir():
        file.unlink()
    harness.now += 11.0
    harness.step()
    harness.step()
    assert len(harness.rows()) == 10
    assert deliver_all(harness) == items


def test_e4_rows_purged_during_a_read_are_not_reported_as_damage(
    path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    first = new_client(path)
    filled(first, 30)
    database: Database = first.session._db
    other = sqlite3.connect(path, isolation_level=None)
    seen = 0

    def purge(statement: str) -> None:
        nonlocal seen
        seen += statement.startswith("SELECT CAST")
        if statement.startswith("SELECT CAST"):
            other.execute("DELETE FROM records WHERE id % 2 = 0")

    database._db.set_trace_callback(purge)
    rows = database.read(0, 1 << 62, max_records=100, max_bytes=10**9)
    assert (len(rows), seen) == (30, 1)
    assert all(json.loads(body.replace(b"\x01", b'""')) for *_, body in rows)
    assert len(database.read(0, 1 << 62, max_records=100, max_bytes=10**9)) == 15
    other.close()


def try_header(sound: Path, folder: Path, places: Iterable[int], values: Iterable[int]) -> None:
    whole = checkpointed(sound, folder / "whole")
    for at, value in product(places, values):
        place = folder / f"{at}-{value}"
        shutil.copytree(whole.parent, place)
        path = place / whole.name
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([value]))
        harness = SpoolHarness(path)
        try:
            reopened(harness, set())
        except BaseException as error:
            raise AssertionError(f"{value} at {at}") from error
        finally:
            harness.abandon()


def test_e4_damaged_header_bytes_do_not_stop_clients(sound: Path, tmp_path: Path) -> None:
    # File format, size, schema format, encoding, application id.
    try_header(sound, tmp_path, [0, 16, 18, 19, 31, 47, 59, 68], [5])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_e4_every_header_byte_can_be_damaged_without_stopping_clients(sound: Path, tmp_path: Path) -> None:
    # All bytes except the schema version: a file of a newer version is not changed.
    try_header(sound, tmp_path, sorted({*range(100)} - {*range(60, 64)}), [0, 5, 0xFF])


def bits(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 10, 500])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def page(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(0, len(data), 4096)
    data[at : at + 4096] = chance.randbytes(len(data[at : at + 4096]))


def head(data: bytearray, chance: random.Random) -> None:
    size = min(len(data), chance.choice([1, 16, 100, 4096]))
    data[:size] = chance.randbytes(size)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def grow(data: bytearray, chance: random.Random) -> None:
    data += chance.randbytes(chance.choice([1, 4096, 50_000]))


def zeros(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    size = len(data[at : at + chance.choice([1, 4096, 40_000])])
    data[at : at + size] = bytes(size)


def swap(data: bytearray, chance: random.Random) -> None:
    one, two = (4096 * chance.randrange(max(1, len(data) // 4096)) for _ in range(2))
    data[one : one + 4096], data[two : two + 4096] = data[two : two + 4096], data[one : one + 4096]


def mutate(path: Path, chance: random.Random) -> str:
    """Damage the files in one or several random ways. Return a description."""
    log, index = path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")
    done = []
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        target = chance.choice([path, path, path, log]) if log.exists() else path
        data = bytearray(target.read_bytes())
        change = chance.choice([bits, page, head, cut, grow, zeros, swap, None])
        if change is None:
            target, size = chance.choice([(index, 0), (index, 32_768), (log, 0), (log, 5_000), (path, 0)])
            data = bytearray(chance.randbytes(size))
        elif data:
            change(data, chance)
        target.write_bytes(data)
        done.append(f"{change.__name__ if change else 'another'} of {target.name}")
    return ", ".join(done)


def try_mutations(sound: Path, folder: Path, seeds: range) -> None:
    originals = set(bodies(sound))
    whole = checkpointed(sound, folder / "whole")
    for seed in seeds:
        chance = random.Random(seed)
        place = folder / str(seed)
        shutil.copytree((whole if chance.random() < 0.5 else sound).parent, place)
        path = place / sound.name
        what = mutate(path, chance)
        harness = SpoolHarness(path)
        try:
            reopened(harness, originals)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        finally:
            harness.abandon()
        shutil.rmtree(place)


def test_e4_random_damage_does_not_stop_clients(sound: Path, tmp_path: Path) -> None:
    try_mutations(sound, tmp_path, range(15))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_e4_random_damage_does_not_stop_clients_in_500_runs(sound: Path, tmp_path: Path) -> None:
    try_mutations(sound, tmp_path, range(1_000, 1_500))


# E7: another project


@pytest.mark.anyio
async def test_e7_rows_of_another_project_are_kept_and_logged_and_not_sent(path: Path, caplog: Any) -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=1_000)
    first = emulator.client(token="project-a", spool=SqliteSpool(path), shutdown_timeout=0.05)
    for number in range(20):
        await first.track("user", "A", {"number": number})
    assert (await first.aclose()).pending == 20
    emulator.reset()
    async with emulator.client(token="project-b", spool=SqliteSpool(path)) as second:
        await second.track("user", "B")
        await second.flush()
        assert second.stats().recovered == 0
    assert [event["event"] for event in emulator.raw_events()] == ["B"]
    assert "other projects (clients: 1)" in caplog.text
    async with emulator.client(token="project-a", spool=SqliteSpool(path)) as third:
        await third.flush()
    tokens = {event["properties"]["token"] for event in emulator.raw_events() if event["event"] == "A"}
    assert tokens == {"project-a"}
    assert len(emulator.raw_events()) == 21


# E9: unsupported places

MOUNTS = """\
21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
22 21 0:40 / /mnt/share rw - nfs4 server:/share rw
23 22 8:2 / /mnt/share/local\\040disk rw - xfs /dev/sdb1 rw
24 21 0:41 / /home/me/remote rw - fuse.sshfs me@host:/ rw
25 21 0:42 / /windows rw - cifs //server/share rw
"""


@pytest.mark.parametrize(
    ("folder", "remote"),
    [
        ("/var/lib/app", False),
        ("/mnt/share", True),
        ("/mnt/share/deep/down", True),
        ("/mnt/shared", False),
        ("/mnt/share/local disk/spool", False),
        ("/home/me/remote/x", True),
        ("/home/me", False),
        ("/windows/spool", True),
    ],
)
def test_e9_network_file_system_is_detected(folder: str, remote: bool) -> None:
    assert files.is_remote(Path(folder), MOUNTS) is remote
    assert files.is_remote(Path(folder), "") is False


@pytest.mark.anyio
async def test_e9_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = path.parent.parent / "mounts"
    mounts.write_text(f"21 1 0:40 / {path.parent.parent} rw - nfs4 server:/share rw\n")
    monkeypatch.setattr(files, "_MOUNTS", mounts)
    await refused(path, "network file system")


async def refused(path: Path, words: str) -> None:
    """Check that the client accepts no record and keeps none in memory."""
    mp = Emulator().client(spool=SqliteSpool(path), shutdown_timeout=0.1)
    with pytest.raises(MixpanelException, match=words):
        await mp.track("user", "Event")
    mp.track_nowait("user", "Event")
    result = await mp.aclose()
    assert (result.delivered, result.pending) == (0, 0)
    assert mp.stats().losses == {"spool_failed": 1}


@pytest.mark.anyio
async def test_e9_one_missing_directory_is_created_and_two_are_not(tmp_path: Path) -> None:
    await refused(tmp_path / "a" / "b" / "spool.db", "does not exist")
    async with Emulator().client(spool=SqliteSpool(tmp_path / "a" / "spool.db")) as mp:
        await mp.track("user", "Event")
    assert (tmp_path / "a" / "spool.db").exists()


READ_ONLY = """
    import os, sys
    import anyio._backends._asyncio, mixpanel_async._spool.writer
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    import anyio
    from mixpanel_async import AsyncMixpanel, SqliteSpool, MixpanelException

    async def main():
        mp = AsyncMixpanel("token", spool=SqliteSpool(sys.argv[1]), shutdown_timeout=0.1)
        try:
            await mp.track("user", "Event")
        except MixpanelException as error:
            print(type(error).__name__, error)
        await mp.aclose()
        print(mp.stats().accepted)

    anyio.run(main)
"""


def test_e9_read_only_directory_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "closed"
    place.mkdir()
    # The child gives up root's rights and must still be able to enter the folder; pytest's folders are private.
    for folder in place.parents:
        if folder.owner() == place.owner() and not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    place.chmod(0o555)
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ_ONLY), str(place / "spool.db")],
        capture_output=True,
        text=True,
        check=True,
    )
    error, accepted = child.stdout.splitlines()
    cannot = "cannot create the spool file (Permission denied)"
    assert error.startswith(f"ConfigurationError {place / 'spool.db'}: {cannot}")
    assert accepted == "0"
    assert list(place.iterdir()) == []


# E10: the cap


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
@pytest.mark.parametrize("steps_every", [7, 10**9])
@pytest.mark.parametrize("window", [50, 100_000])
def test_e10_max_records_drops_exactly_the_oldest_or_newest_records(
    path: Path, new_client: Callable[..., SpoolHarness], overflow: Overflow, steps_every: int, window: int
) -> None:
    policy = BatchPolicy(max_events=100, linger=0.0, max_pending_events=max(window, 10 * (steps_every < 100)))
    if window == 50 and steps_every > 100:
        policy = BatchPolicy(max_events=100, linger=0.0, max_pending_bytes=4_000_000)
    harness = new_client(path, overflow=overflow, max_records=1_000, batching=policy)
    harness.step()
    items = [record(number, 100) for number in range(1_500)]
    for number, item in enumerate(items):
        harness.offer(item)
        if number % steps_every == 0:
            harness.step()
    harness.run_until_idle()
    harness.check()
    assert harness.queue.stats().losses == {"queue_full": 500}
    gone = items[1_000:] if overflow is Overflow.DROP_NEWEST else items[:500]
    kept = items[:1_000] if overflow is Overflow.DROP_NEWEST else items[500:]
    assert sorted(harness.recorder.lost.elements()) == sorted(map(bytes, gone))
    assert deliver_all(harness) == kept


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
def test_e10_records_being_loaded_count_as_the_oldest(
    path: Path, new_client: Callable[..., SpoolHarness], overflow: Overflow
) -> None:
    policy = BatchPolicy(max_events=10, linger=0.0, max_pending_events=20)
    harness = new_client(path, overflow=overflow, max_records=100, batching=policy)
    items = [record(number) for number in range(160)]
    for number, item in enumerate(items):
        harness.offer(item)
        if number % 5 == 0:
            harness.step()
        if number == 120:
            # A load is requested, and its rows are dropped before it runs.
            harness.bridge.refill()
    harness.run_until_idle()
    harness.check()
    gone = items[100:] if overflow is Overflow.DROP_NEWEST else items[:60]
    assert harness.queue.stats().losses == {"queue_full": 60}
    assert sorted(harness.recorder.lost.elements()) == sorted(map(bytes, gone))
    assert sorted(deliver_all(harness)) == sorted(set(items) - set(gone))


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
def test_e10_max_bytes_limits_the_file_and_drops_the_oldest_or_newest_records(
    path: Path, new_client: Callable[..., SpoolHarness], overflow: Overflow
) -> None:
    cap = 1_000_000
    policy = BatchPolicy(max_events=100, linger=0.0, max_pending_events=500)
    harness = new_client(path, overflow=overflow, max_bytes=cap, batching=policy)
    items = [record(number, 700) for number in range(2_000)]
    largest = 0
    for number, item in enumerate(items):
        harness.offer(item)
        if number % 20 == 0:
            harness.step()
            largest = max(largest, path.stat().st_size)
    harness.run_until_idle()
    harness.check()
    stats = harness.queue.stats()
    assert 900 < stats.pending < 1_400
    assert largest <= cap * 1.1
    kept = deliver_all(harness)
    assert len(kept) == stats.pending
    assert kept == (items[: len(kept)] if overflow is Overflow.DROP_NEWEST else items[-len(kept) :])


@pytest.mark.anyio
@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
async def test_e10_tight_loop_drops_the_oldest_or_newest_records(path: Path, overflow: Overflow) -> None:
    emulator = Emulator()
    lost: list[int] = []
    hold = RetryPolicy(initial=0.05, maximum=0.05)
    mp = emulator.client(
        spool=SqliteSpool(path, max_records=2_000),
        overflow=overflow,
        retry=hold,
        batching=BatchPolicy(linger=3600.0),
        on_drop=lambda records, reason: lost.extend((one.payload or {})["properties"]["number"] for one in records),
    )
    await mp.start()
    for number in range(3_000):
        mp.track_nowait("user", "Event", {"number": number})
    assert (await mp.flush()).delivered == 2_000
    await mp.aclose()
    arrived = [event["properties"]["number"] for event in emulator.raw_events()]
    expected = range(2_000) if overflow is Overflow.DROP_NEWEST else range(1_000, 3_000)
    # Requests with events may overtake each other.
    assert sorted(arrived) == list(expected)
    assert sorted(lost) == sorted(set(range(3_000)) - set(expected))


# E11: the log stays small, and the file shrinks


def write_and_deliver(path: Path, rows: int, *, rows_per_step: int) -> tuple[int, int, int]:
    """Write and deliver rows. Return the largest size of the log, and the largest and final size of the file."""
    harness = SpoolHarness(path, batching=BatchPolicy(linger=0.0), max_bytes=4 * 1024**3, wait=5.0)
    log = path.with_name(path.name + "-wal")
    largest_log = largest = 0
    item = record(0, 300)
    try:
        for _ in range(rows // rows_per_step):
            for _ in range(rows_per_step):
                harness.offer(item)
            while harness.writer._has_more():
                assert harness.step()
                largest_log = max(largest_log, log.stat().st_size)
        largest = path.stat().st_size
        for _ in range(rows):
            harness.now += 1.0
            assert harness.step()
            largest_log = max(largest_log, log.stat().st_size)
            while (batch := harness.take()) is not None:
                harness.settle(batch, Delivered())
            if not harness.queue.pending:
                break
        for _ in range(2):
            harness.now += 11.0
            harness.run_until_idle()
        largest_log = max(largest_log, log.stat().st_size)
        harness.check()
        assert harness.rows() == {}
        return largest_log, largest, path.stat().st_size
    finally:
        harness.abandon()


def test_e11_log_stays_small_and_file_shrinks(path: Path) -> None:
    log, largest, final_size = write_and_deliver(path, 30_000, rows_per_step=30_000)
    assert log <= 16 * 1024 * 1024
    assert largest > 7_000_000
    assert final_size < 100_000


@pytest.mark.long
@pytest.mark.timeout(600)
def test_e11_log_stays_small_and_file_shrinks_with_a_million_rows(path: Path) -> None:
    log, largest, final_size = write_and_deliver(path, 1_000_000, rows_per_step=50_000)
    assert log <= 16 * 1024 * 1024
    assert largest > 300_000_000
    assert final_size < 100_000


def test_e11_free_pages_are_returned_in_small_steps_once_no_backlog_is_loaded(
    path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    harness = new_client(path, batching=BatchPolicy(linger=0.0), max_bytes=100_000_000)
    items = filled(harness, 40_000)

    def pages() -> int:
        return harness.session._db._number("PRAGMA page_count")

    whole = pages()
    # Until most pages of the file are free.
    while harness.queue.pending > 10_000:
        harness.now += 5.0
        if (batch := harness.take()) is not None:
            harness.settle(batch, Delivered())
        harness.step()
        assert pages() == whole
    log = path.with_name(path.name + "-wal")
    largest_log, size = log.stat().st_size, whole
    for _ in range(200):
        harness.now += 0.5
        harness.step()
        assert size - pages() <= 100
        size = pages()
        largest_log = max(largest_log, log.stat().st_size)
    assert size < whole / 2
    assert harness.session._db._number("PRAGMA freelist_count") * 2 <= size
    assert largest_log <= 8 * 1024 * 1024
    left = harness.queue.pending
    assert deliver_all(harness) == items[-left:]


# E12: private files


def test_e12_files_and_directory_are_private_for_any_umask(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    before = os.umask(0o022)
    try:
        harness = new_client(path)
        filled(harness, 10)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["spool.db", "spool.db-wal", "spool.db-shm", "spool.db-owner-1"], 0o600)


def test_e12_permissions_of_an_existing_file_are_restricted(
    path: Path, new_client: Callable[..., SpoolHarness]
) -> None:
    filled(new_client(path), 1)
    path.chmod(0o644)
    filled(new_client(path), 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def make_obstacle(path: Path, what: str) -> None:
    path.parent.mkdir()
    if what == "a symbolic link":
        path.with_name("target").touch()
        path.symlink_to(path.with_name("target"))
    elif what == "not a regular file":
        path.mkdir()
    else:
        path.touch()


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["a symbolic link", "not a regular file", "another user"])
async def test_e12_link_and_directory_and_foreign_file_are_refused(
    path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_obstacle(path, what)
    if what == "another user":
        someone_else = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: someone_else)
    await refused(path, what)
    if what == "a symbolic link":
        assert os.stat(path.with_name("target")).st_size == 0


# Contents of the files

SECRETS = ("canary-token-77", "canary-user", "canary-secret-88", "canary-project-secret-99")


@pytest.mark.anyio
async def test_files_contain_no_credential(path: Path) -> None:
    emulator = Emulator()
    emulator.fail_next(503, times=1_000)
    account = ServiceAccountCredentials("canary-user", "canary-secret-88", "12345")
    mp = emulator.client(token="canary-token-77", credentials=account, spool=SqliteSpool(path), shutdown_timeout=0.05)
    await mp.track("user", "Event")
    await mp.people_increment("user", {"visits": 1})
    await mp.group_set("company", "acme", {"a": 1})
    await mp.import_data(None, "user", "Old", 1_700_000_000, api_secret="canary-project-secret-99")
    with pytest.raises(MixpanelException):
        await mp.track_immediate("user", "Awaited")
    raw = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"Event" in raw
    await mp.aclose()
    raw += b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in SECRETS:
        assert secret.encode() not in raw
    assert b"Authorization" not in raw
    assert b"Basic " not in raw


@pytest.mark.parametrize("erase", [False, True])
def test_erase_overwrites_deleted_records(path: Path, new_client: Callable[..., SpoolHarness], erase: bool) -> None:
    harness = new_client(path, erase=erase)
    for number in range(300):
        harness.offer(record(number, 300).replace(b"...", b"pii", 1))
    harness.run_until_idle()
    deliver_all(harness)
    harness.session._db.checkpoint()
    assert (b"pii" in path.read_bytes()) is not erase


def test_file_size_has_a_hard_limit(path: Path) -> None:
    files.prepare(path)
    database = open_database(path, max_bytes=1_000_000, timeout=0.1, fsync=False)
    assert database._number("PRAGMA max_page_count") * 4096 <= 1_100_000
    assert database._number("PRAGMA application_id") == APPLICATION_ID
    database.close()


def test_token_is_restored_unchanged(path: Path, new_client: Callable[..., SpoolHarness]) -> None:
    item = b'{"n":1,"token":"%s","x":"%s \\u0001"}' % (TOKEN.encode(), TOKEN.encode())
    first = new_client(path)
    first.offer(item)
    first.step()
    first.abandon()
    second = new_client(path)
    second.step()
    assert deliver_all(second) == [item]
