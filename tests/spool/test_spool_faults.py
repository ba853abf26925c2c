"""What the disk does to a spool, one test or more for each row of part E of the fault catalogue."""

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
from spool_bench import DAMAGE, IO_ERROR, TOKEN, Bench, fast_folder, record, spooled

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
from mixpanel_async._spool.database import APPLICATION_ID, Database, open_database
from mixpanel_async.emulator import Emulator

AGAIN = Retry(message="not now", applied=False, status=503)
UNKNOWN = Retry(message="no answer", applied=True)
ONE_EACH = BatchPolicy(max_events=1, linger=0.0)


@pytest.fixture
def path() -> Iterator[Path]:
    """In memory if the system has such a place: what is tried here is not the speed of a disk."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder) / "spool" / "spool.db"


@pytest.fixture
def opened() -> Iterator[Callable[..., Bench]]:
    """Makes clients that are let go at the end, and hold the law of conservation then."""
    benches: list[Bench] = []

    def make(path: Path, **options: Any) -> Bench:
        benches.append(Bench(path, **options))
        return benches[-1]

    yield make
    for bench in benches:
        bench.check()
        bench.abandon()


def deliver_all(bench: Bench) -> list[bytes]:
    """What arrives, in its order."""
    arrived: list[bytes] = []
    for _ in range(3_000):
        bench.now += 1.0
        assert bench.step()
        while (batch := bench.take()) is not None:
            arrived += [bytes(item) for item in batch.items]
            bench.settle(batch, Delivered())
        if not bench.queue.pending and not bench.journal._has_more():
            break
    assert bench.step()
    assert bench.rows() == {}
    return arrived


def filled(bench: Bench, count: int, size: int = 200, kind: RecordKind = RecordKind.EVENTS) -> list[bytes]:
    items = [record(number, size) for number in range(count)]
    for item in items:
        bench.offer(item, kind)
    bench.settle_down()
    return items


def asides(path: Path) -> list[Path]:
    found = sorted(path.parent.glob("*.corrupt-*"))
    return [one for one in found if not one.name.endswith(("-wal", "-shm"))]


# E1: the disk is full


@pytest.mark.parametrize("overflow", list(Overflow))
def test_e1_a_full_disk_refuses_or_drops_and_goes_on_when_there_is_room(
    path: Path, opened: Callable[..., Bench], overflow: Overflow
) -> None:
    bench = opened(path, overflow=overflow, batching=ONE_EACH)
    bench.step()
    pages = bench.session._db._number("PRAGMA page_count")
    bench.session._db._db.execute(f"PRAGMA max_page_count={pages + 40}")
    kept = 0
    while True:
        group = bench.offer(record(kept, 900), awaited=True)
        assert group is not None
        bench.step()
        assert group.is_done
        if bench.queue.stats().pending == kept:
            break
        kept += 1
    raises = overflow in {Overflow.RAISE, Overflow.WAIT}
    assert isinstance(group.error, QueueFullError) is raises
    assert bench.queue.stats().losses == ({} if raises else {"spool_full": 1})
    assert bench.queue.stats().accepted == kept + (not raises)
    bench.check()

    # What comes while it is full is refused at once, and costs none of what is there.
    late = record(10_000, 900)
    if overflow is Overflow.RAISE:
        with pytest.raises(QueueFullError):
            bench.offer(late)
    else:
        bench.offer(late)
    assert bench.queue.stats().pending == kept
    assert bench.heard.reasons[DropReason.QUEUE_FULL] == 0

    # Deletes still work, and so there is room again.
    for _ in range(20):
        batch = bench.take()
        assert batch is not None
        bench.settle(batch, Delivered())
    assert bench.step()
    assert len(bench.rows()) == kept - 20
    group = bench.offer(record(20_000, 900), awaited=True)
    assert bench.step()
    assert group is not None
    assert group.error is None
    bench.check()
    assert len(deliver_all(bench)) == kept - 19


def test_e1_a_full_disk_lets_no_update_go_unmarked(path: Path, opened: Callable[..., Bench]) -> None:
    """A request that must not be made twice may not begin before that is on disk, whatever else is dropped."""
    bench = opened(path, batching=ONE_EACH)
    bench.offer(record(0, once=True), RecordKind.PEOPLE)
    bench.step()
    batch = bench.take()
    assert batch is not None
    bench.fail(sqlite3.OperationalError("database or disk is full"))
    group = bench.mark(batch)
    assert group is not None
    bench.step()
    assert group.is_done
    assert not group.marks_written
    bench.heal()
    bench.step()
    (state,) = sqlite3.connect(path).execute("SELECT state FROM records").fetchone()
    assert state == 2


def test_e1_a_full_disk_does_not_cost_what_waits_in_memory(path: Path, opened: Callable[..., Bench]) -> None:
    bench = opened(path, overflow=Overflow.DROP_OLDEST, max_records=1_000)
    items = filled(bench, 50)
    bench.fail(sqlite3.OperationalError("database or disk is full"))
    for number in range(100, 150):
        bench.offer(record(number))
        bench.step()
    bench.heal()
    assert bench.heard.reasons == {DropReason.SPOOL_FULL: 50}
    bench.now += 11.0
    bench.step()
    assert deliver_all(bench) == items


# E2: the disk fails

E2 = """
    import json, os, resource, sys, time
    from pathlib import Path
    import anyio
    from mixpanel_async import SqliteSpool, SpoolError, BatchPolicy
    from mixpanel_async.emulator import Emulator

    async def main():
        emulator = Emulator()
        told = {}
        mp = emulator.client(spool=SqliteSpool(sys.argv[1], timeout=0.2), batching=BatchPolicy(linger=3600.0))
        await mp.start()
        for number in range(50):
            await mp.track("user", "Before", {"number": number})
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            await mp.track("user", "Refused")
        except SpoolError as error:
            told["refused"] = str(error)
        mp.track_nowait("user", "Kept")
        # They arrive, and their rows cannot be taken out.
        told["flushed"] = (await mp.flush(timeout=0.5)).delivered
        used, until = time.process_time(), time.monotonic() + 2.5
        while time.monotonic() < until:
            await anyio.sleep(0.1)
        told["busy"] = (time.process_time() - used) / 2.5
        told["sent"] = len(emulator.raw_events())
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        while True:
            try:
                await mp.track("user", "After")
                break
            except SpoolError:
                await anyio.sleep(0.05)
        await mp.aclose()
        told["raw"] = [event["event"] for event in emulator.raw_events()]
        stats = mp.stats()
        told["law"] = stats.accepted == stats.delivered + stats.failed + stats.dropped + stats.uncertain + stats.pending
        told["pending"], told["delivered"] = stats.pending, stats.delivered
        again = emulator.client(spool=SqliteSpool(sys.argv[1]))
        await again.start()
        told["recovered"] = again.stats().recovered
        await again.aclose()
        print(json.dumps(told))

    anyio.run(main)
"""


def test_e2_real_write_errors_delete_included_lose_and_repeat_nothing(path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(E2), str(path)], capture_output=True, text=True, check=True
    )
    told = json.loads(child.stdout)
    assert "nothing was accepted" in told["refused"]
    assert told["flushed"] == 50
    assert told["sent"] == 50
    assert told["busy"] < 0.5
    assert sorted(told["raw"]) == ["After"] + ["Before"] * 50 + ["Kept"]
    assert (told["law"], told["pending"], told["delivered"], told["recovered"]) == (True, 0, 52, 0)


def test_e2_a_record_dropped_while_it_could_not_be_written_is_counted_once(
    path: Path, opened: Callable[..., Bench]
) -> None:
    bench = opened(path, overflow=Overflow.DROP_OLDEST, max_records=5)
    bench.step()
    bench.fail(IO_ERROR)
    for number in range(12):
        bench.offer(record(number), awaited=number % 2 == 0)
    bench.step()
    bench.check()
    bench.heal()
    bench.settle_down()
    bench.check()
    # Those that somebody waited for were refused; of the others the newest are there.
    assert [json.loads(item)["n"] for item in deliver_all(bench)] == [7, 9, 11]


def test_e2_what_was_never_written_is_accounted_for_at_the_close(path: Path, opened: Callable[..., Bench]) -> None:
    bench = opened(path)
    filled(bench, 3)
    bench.fail(IO_ERROR)
    for number in range(10, 15):
        bench.offer(record(number))
    group = bench.offer(record(20), awaited=True)
    bench.step()
    bench.close()
    stats = bench.queue.stats()
    assert (stats.pending, stats.losses) == (3, {"spool_failed": 5})
    assert group is not None
    assert isinstance(group.error, SpoolError)
    assert len(bench.rows()) == 3


def test_e2_orphans_are_taken_over_once_the_disk_lets_it(path: Path, opened: Callable[..., Bench]) -> None:
    first = opened(path)
    items = filled(first, 5)
    second = opened(path)
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
async def test_e3_a_locked_file_is_waited_for_within_bounds_and_not_on_the_loop(path: Path) -> None:
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
async def test_e3_who_waits_beside_a_cancelled_call_is_told_in_time_as_well(path: Path) -> None:
    emulator = Emulator()
    told: list[str] = []
    async with emulator.client(spool=SqliteSpool(path, timeout=0.1)) as mp:
        await mp.track("user", "Before")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")

        async def patient(name: str) -> None:
            try:
                await mp.track("user", name)
            except SpoolError as error:
                told.append(str(error))

        async with anyio.create_task_group() as tasks:
            with anyio.CancelScope() as first:
                async with anyio.create_task_group() as hasty:
                    hasty.start_soon(patient, "Cancelled")
                    await anyio.lowlevel.checkpoint()
                    for _ in range(3):
                        tasks.start_soon(patient, "Patient")
                    await anyio.sleep(0.01)
                    first.cancel()
        assert len(told) == 3
        other.close()


# E4: what is found is not what was left


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool that another client left: rows in three lanes, once-only ones, dead letters, holes, and a long log."""
    path = tmp_path_factory.mktemp("sound") / "a" / "spool.db"
    bench = Bench(path, batching=BatchPolicy(max_events=20, linger=0.0))
    for number in range(300):
        kind = (RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.IMPORTS)[number % 3]
        bench.offer(record(number, number % 400, once=kind is RecordKind.PEOPLE and number % 2 == 0), kind)
        if number % 50 == 0:
            bench.step()
    bench.step()
    first = bench.take()
    second = bench.take()
    assert first is not None
    assert second is not None
    bench.settle(first, Delivered())
    bench.settle(second, UNKNOWN)
    bench.step()
    return bench.crash(path.parent.parent / "left")


def checkpointed(source: Path, folder: Path) -> Path:
    """The same with everything in the database itself."""
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


def reopened(bench: Bench, originals: set[bytes]) -> int:
    """Open what was damaged, use it, and say how many rows arrive as they were."""
    group = bench.offer(record(99_999), awaited=True)
    for _ in range(3):
        if bench.step():
            break
        bench.now += 1.0
    assert group is not None
    assert group.is_done
    if group.error is not None:
        # Found only when it was used: the next call meets a new file.
        bench.offer(record(99_999), awaited=True)
    arrived: list[bytes] = []
    for _ in range(200):
        bench.now += 1.0
        bench.step()
        while (batch := bench.take()) is not None:
            arrived += [bytes(item) for item in batch.items]
            bench.settle(batch, Delivered())
        if not bench.queue.pending and not bench.journal._has_more():
            break
    bench.check()
    assert bench.queue.stats().pending == 0
    assert bytes(record(99_999)) in arrived
    for item in arrived:
        assert isinstance(json.loads(item), dict)
    return sum(spooled(item) in originals for item in arrived)


def test_e4_a_smashed_header_costs_no_row(
    sound: Path, tmp_path: Path, opened: Callable[..., Bench], caplog: Any
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    originals = bodies(path)
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)
    bench = opened(path)
    bench.step()
    assert len(asides(path)) == 1
    assert asides(path)[0].name.startswith("spool.db.corrupt-")
    assert f"{len(originals)} rows were recovered" in caplog.text
    assert bench.queue.stats().recovered == len(originals)
    assert sorted(map(spooled, deliver_all(bench))) == sorted(originals)


def test_e4_a_page_in_the_middle_costs_its_own_rows_alone(
    sound: Path, tmp_path: Path, opened: Callable[..., Bench]
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    originals = bodies(path)
    page = path.read_bytes().index(originals[len(originals) // 2]) // 4096
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(os.urandom(4096))
    bench = opened(path)
    bench.step()
    arrived = deliver_all(bench)
    lost = set(originals) - {spooled(item) for item in arrived}
    assert 0 < len(lost) <= 40
    assert len(arrived) == len(originals) - len(lost)


def test_e4_a_truncated_log_costs_what_was_in_it_and_stops_nobody(
    sound: Path, tmp_path: Path, opened: Callable[..., Bench]
) -> None:
    shutil.copytree(sound.parent, tmp_path / "spool")
    path = tmp_path / "spool" / sound.name
    log = path.with_name(path.name + "-wal")
    originals = set(bodies(sound))
    log.write_bytes(log.read_bytes()[: log.stat().st_size * 2 // 3])
    assert 0 < reopened(opened(path), originals) < len(originals)


def test_e4_a_missing_index_of_the_log_costs_nothing(sound: Path, tmp_path: Path, opened: Callable[..., Bench]) -> None:
    shutil.copytree(sound.parent, tmp_path / "spool")
    path = tmp_path / "spool" / sound.name
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    bench = opened(path)
    bench.step()
    assert len(deliver_all(bench)) == len(bodies(sound)) - bench.queue.stats().uncertain
    assert asides(path) == []


def test_e4_an_empty_file_and_a_file_of_garbage_stop_nobody(path: Path, opened: Callable[..., Bench]) -> None:
    path.parent.mkdir()
    path.write_bytes(b"")
    assert reopened(opened(path), set()) == 0
    assert asides(path) == []
    other = path.with_name("other.db")
    other.write_bytes(random.Random(1).randbytes(50_000))
    assert reopened(opened(other), set()) == 0
    assert len(asides(other)) == 1


def test_e4_the_file_of_a_newer_version_is_refused_and_left_alone(
    sound: Path, tmp_path: Path, opened: Callable[..., Bench]
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=2")
    connection.commit()
    connection.close()
    bench = opened(path)
    group = bench.offer(record(0), awaited=True)
    assert not bench.step()
    assert group is not None
    assert isinstance(group.error, ConfigurationError)
    assert "newer version" in str(group.error)
    assert asides(path) == []
    assert len(bodies(path)) > 200


def test_e4_another_programs_database_is_refused_and_left_alone(path: Path, opened: Callable[..., Bench]) -> None:
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE notes (text TEXT)")
    connection.execute("INSERT INTO notes VALUES ('mine')")
    connection.commit()
    connection.close()
    bench = opened(path)
    group = bench.offer(record(0), awaited=True)
    assert not bench.step()
    assert group is not None
    assert isinstance(group.error, ConfigurationError)
    assert asides(path) == []
    assert sqlite3.connect(path).execute("SELECT text FROM notes").fetchall() == [("mine",)]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER DELETE ON records BEGIN INSERT INTO records VALUES (old.id, 0, old.body); END",
        "CREATE TRIGGER t AFTER INSERT ON records BEGIN DELETE FROM records; END",
        "CREATE VIEW v AS SELECT load_extension('evil')",
        "CREATE INDEX i ON records (abs(state))",
        "CREATE TABLE more (x)",
    ],
)
def test_e4_a_hostile_schema_is_set_aside_and_never_runs(
    sound: Path, tmp_path: Path, opened: Callable[..., Bench], statement: str
) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    originals = set(bodies(path))
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    bench = opened(path)
    assert reopened(bench, originals) == len(originals)
    assert len(asides(path)) == 1


def test_e4_a_row_that_is_no_record_does_not_travel(path: Path, opened: Callable[..., Bench]) -> None:
    first = opened(path)
    items = filled(first, 30)
    first.abandon()
    connection = sqlite3.connect(path)
    ids = [number for (number,) in connection.execute("SELECT id FROM records ORDER BY id")]
    connection.execute("UPDATE records SET body = ? WHERE id = ?", (b'{"n": \xff', ids[7]))
    connection.execute("UPDATE records SET body = ? WHERE id = ?", (b"[1]", ids[8]))
    connection.commit()
    connection.close()
    second = opened(path)
    second.step()
    assert deliver_all(second) == items[:7] + items[9:]
    assert second.queue.stats().losses == {"spool_failed": 2}
    dead = sqlite3.connect(path).execute("SELECT reason, message FROM dead").fetchall()
    assert dead == [("spool_failed", "damaged on disk")] * 2


def test_e4_a_row_of_no_lane_stays_where_it_is(path: Path, opened: Callable[..., Bench]) -> None:
    first = opened(path)
    items = filled(first, 3)
    first.abandon()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE records SET id = id + (7 << 36) WHERE id = (SELECT max(id) FROM records)")
    connection.commit()
    connection.close()
    second = opened(path)
    assert second.step()
    assert second.take() is None
    assert second.step()
    batch = second.take()
    assert batch is not None
    assert batch.items == items[:2]
    assert second.queue.stats().accepted == 2


def test_e4_dead_letters_are_saved_too(sound: Path, tmp_path: Path, opened: Callable[..., Bench]) -> None:
    path = checkpointed(sound, tmp_path / "spool")
    select = "SELECT project, lane, state, reason, message, died, body FROM dead ORDER BY id"
    before = sqlite3.connect(path).execute(select).fetchall()
    assert before
    with path.open("r+b") as file:
        file.write(b"\xff" * 100)
    opened(path).step()
    assert sqlite3.connect(path).execute(select).fetchall() == before


@pytest.mark.parametrize("in_look", [False, True])
def test_e4_damage_while_running_repeats_and_loses_nothing(
    path: Path, opened: Callable[..., Bench], in_look: bool
) -> None:
    """Rows on disk alone come back by the salvage, those in memory stay, those that have ended stay away."""
    policy = BatchPolicy(max_events=5, linger=0.0, max_pending_events=20)
    bench = opened(path, batching=policy)
    items = []
    for number in range(60):
        items.append(record(number))
        bench.offer(items[-1])
        bench.step()
    ended, flying = bench.take(), bench.take()
    assert ended is not None
    assert flying is not None
    bench.settle(ended, Delivered())
    bench.offer(record(60))
    items.append(record(60))
    if in_look:
        bench.now += 11.0
    bench.fail(DAMAGE, after=8 if in_look else 3)
    bench.step()
    bench.step()
    assert len(asides(path)) == 1
    bench.settle(flying, Delivered())
    arrived = deliver_all(bench)
    assert sorted([*ended.items, *flying.items, *arrived]) == sorted(items)


def test_e4_two_clients_share_a_file_that_is_found_damaged(path: Path, opened: Callable[..., Bench]) -> None:
    policy = BatchPolicy(max_events=5, linger=0.0, max_pending_events=20)
    first, second = opened(path, batching=policy), opened(path, batching=policy)
    items = [record(number) for number in range(120)]
    for number, item in enumerate(items):
        (first, second)[number % 2].offer(item)
        first.step()
        second.step()
    first.now += 11.0
    first.fail(DAMAGE)
    first.step()
    first.step()
    assert len(asides(path)) == 1
    second.now += 11.0
    assert not second.step()
    assert second.step()
    assert len(asides(path)) == 1
    arrived: list[Any] = []
    for _ in range(100):
        for bench in (first, second):
            bench.now += 1.0
            bench.step()
            while (batch := bench.take()) is not None:
                arrived += batch.items
                bench.settle(batch, Delivered())
    assert sorted(arrived) == sorted(items)
    assert first.rows() == {}


def test_e4_a_file_that_was_deleted_is_made_again_with_what_is_in_memory(
    path: Path, opened: Callable[..., Bench]
) -> None:
    bench = opened(path)
    items = filled(bench, 10)
    for file in path.parent.iterdir():
        file.unlink()
    bench.now += 11.0
    bench.step()
    bench.step()
    assert len(bench.rows()) == 10
    assert deliver_all(bench) == items


def test_e4_rows_taken_out_by_hand_in_the_middle_of_a_reading_are_no_damage(
    path: Path, opened: Callable[..., Bench]
) -> None:
    first = opened(path)
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
        bench = Bench(path)
        try:
            reopened(bench, set())
        except BaseException as error:
            raise AssertionError(f"{value} at {at}") from error
        finally:
            bench.abandon()


def test_e4_no_byte_of_the_header_stops_anybody(sound: Path, tmp_path: Path) -> None:
    # File format, size, schema format, encoding, the program's name.
    try_header(sound, tmp_path, [0, 16, 18, 19, 31, 47, 59, 68], [5])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_e4_no_byte_of_the_header_stops_anybody_at_length(sound: Path, tmp_path: Path) -> None:
    # But for those that tell of a newer version, whose file is not touched.
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
    """Do one thing or several to the files that no client does."""
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
        bench = Bench(path)
        try:
            reopened(bench, originals)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {what}") from error
        finally:
            bench.abandon()
        shutil.rmtree(place)


def test_e4_random_damage_stops_nobody(sound: Path, tmp_path: Path) -> None:
    try_mutations(sound, tmp_path, range(15))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_e4_random_damage_stops_nobody_at_length(sound: Path, tmp_path: Path) -> None:
    try_mutations(sound, tmp_path, range(1_000, 1_500))


# E7: another project


@pytest.mark.anyio
async def test_e7_rows_of_another_project_are_kept_and_told_and_not_sent(path: Path, caplog: Any) -> None:
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
    assert "1 clients of other projects" in caplog.text
    async with emulator.client(token="project-a", spool=SqliteSpool(path)) as third:
        await third.flush()
    tokens = {event["properties"]["token"] for event in emulator.raw_events() if event["event"] == "A"}
    assert tokens == {"project-a"}
    assert len(emulator.raw_events()) == 21


# E9: where a spool cannot be

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
def test_e9_a_network_file_system_is_known(folder: str, remote: bool) -> None:
    assert files.is_remote(Path(folder), MOUNTS) is remote
    assert files.is_remote(Path(folder), "") is False


@pytest.mark.anyio
async def test_e9_a_network_file_system_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = path.parent.parent / "mounts"
    mounts.write_text(f"21 1 0:40 / {path.parent.parent} rw - nfs4 server:/share rw\n")
    monkeypatch.setattr(files, "_MOUNTS", mounts)
    await refused(path, "network file system")


async def refused(path: Path, words: str) -> None:
    """Nothing is taken, and nothing is kept in memory instead."""
    mp = Emulator().client(spool=SqliteSpool(path), shutdown_timeout=0.1)
    with pytest.raises(MixpanelException, match=words):
        await mp.track("user", "Event")
    mp.track_nowait("user", "Event")
    result = await mp.aclose()
    assert (result.delivered, result.pending) == (0, 0)
    assert mp.stats().losses == {"spool_failed": 1}


@pytest.mark.anyio
async def test_e9_a_missing_folder_is_made_and_two_are_not(tmp_path: Path) -> None:
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


def test_e9_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
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
def test_e10_a_cap_in_records_drops_exactly_the_documented_side(
    path: Path, opened: Callable[..., Bench], overflow: Overflow, steps_every: int, window: int
) -> None:
    policy = BatchPolicy(max_events=100, linger=0.0, max_pending_events=max(window, 10 * (steps_every < 100)))
    if window == 50 and steps_every > 100:
        policy = BatchPolicy(max_events=100, linger=0.0, max_pending_bytes=4_000_000)
    bench = opened(path, overflow=overflow, max_records=1_000, batching=policy)
    bench.step()
    items = [record(number, 100) for number in range(1_500)]
    for number, item in enumerate(items):
        bench.offer(item)
        if number % steps_every == 0:
            bench.step()
    bench.settle_down()
    bench.check()
    assert bench.queue.stats().losses == {"queue_full": 500}
    gone = items[1_000:] if overflow is Overflow.DROP_NEWEST else items[:500]
    kept = items[:1_000] if overflow is Overflow.DROP_NEWEST else items[500:]
    assert sorted(bench.heard.lost.elements()) == sorted(map(bytes, gone))
    assert deliver_all(bench) == kept


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
def test_e10_what_is_on_its_way_into_memory_is_the_oldest_too(
    path: Path, opened: Callable[..., Bench], overflow: Overflow
) -> None:
    policy = BatchPolicy(max_events=10, linger=0.0, max_pending_events=20)
    bench = opened(path, overflow=overflow, max_records=100, batching=policy)
    items = [record(number) for number in range(160)]
    for number, item in enumerate(items):
        bench.offer(item)
        if number % 5 == 0:
            bench.step()
        if number == 120:
            # Reading is asked for, and what is to be read is dropped before it happens.
            bench.durable.refill()
    bench.settle_down()
    bench.check()
    gone = items[100:] if overflow is Overflow.DROP_NEWEST else items[:60]
    assert bench.queue.stats().losses == {"queue_full": 60}
    assert sorted(bench.heard.lost.elements()) == sorted(map(bytes, gone))
    assert sorted(deliver_all(bench)) == sorted(set(items) - set(gone))


@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
def test_e10_a_cap_in_bytes_holds_the_file_and_drops_the_documented_side(
    path: Path, opened: Callable[..., Bench], overflow: Overflow
) -> None:
    cap = 1_000_000
    policy = BatchPolicy(max_events=100, linger=0.0, max_pending_events=500)
    bench = opened(path, overflow=overflow, max_bytes=cap, batching=policy)
    items = [record(number, 700) for number in range(2_000)]
    largest = 0
    for number, item in enumerate(items):
        bench.offer(item)
        if number % 20 == 0:
            bench.step()
            largest = max(largest, path.stat().st_size)
    bench.settle_down()
    bench.check()
    stats = bench.queue.stats()
    assert 900 < stats.pending < 1_400
    assert largest <= cap * 1.1
    kept = deliver_all(bench)
    assert len(kept) == stats.pending
    assert kept == (items[: len(kept)] if overflow is Overflow.DROP_NEWEST else items[-len(kept) :])


@pytest.mark.anyio
@pytest.mark.parametrize("overflow", [Overflow.DROP_NEWEST, Overflow.DROP_OLDEST])
async def test_e10_a_tight_loop_drops_the_documented_side_as_well(path: Path, overflow: Overflow) -> None:
    emulator = Emulator()
    lost: list[int] = []
    hold = RetryPolicy(initial=0.05, maximum=0.05)
    mp = emulator.client(
        spool=SqliteSpool(path, max_records=2_000),
        overflow=overflow,
        retry=hold,
        batching=BatchPolicy(linger=3600.0),
        on_drop=lambda records, reason: lost.extend(one.payload["properties"]["number"] for one in records),
    )
    await mp.start()
    for number in range(3_000):
        mp.track_nowait("user", "Event", {"number": number})
    assert (await mp.flush()).delivered == 2_000
    await mp.aclose()
    arrived = [event["properties"]["number"] for event in emulator.raw_events()]
    expected = range(2_000) if overflow is Overflow.DROP_NEWEST else range(1_000, 3_000)
    # Requests of events may overtake one another.
    assert sorted(arrived) == list(expected)
    assert sorted(lost) == sorted(set(range(3_000)) - set(expected))


# E11: the log stays small, and the file shrinks


def through(path: Path, rows: int, *, at_once: int) -> tuple[int, int, int]:
    """The largest log, and the sizes of the file when it was largest and at the end."""
    bench = Bench(path, batching=BatchPolicy(linger=0.0), max_bytes=4 * 1024**3, wait=5.0)
    log = path.with_name(path.name + "-wal")
    largest_log = largest = 0
    item = record(0, 300)
    try:
        for _ in range(rows // at_once):
            for _ in range(at_once):
                bench.offer(item)
            while bench.journal._has_more():
                assert bench.step()
                largest_log = max(largest_log, log.stat().st_size)
        largest = path.stat().st_size
        for _ in range(rows):
            bench.now += 1.0
            assert bench.step()
            largest_log = max(largest_log, log.stat().st_size)
            while (batch := bench.take()) is not None:
                bench.settle(batch, Delivered())
            if not bench.queue.pending:
                break
        for _ in range(2):
            bench.now += 11.0
            bench.settle_down()
        largest_log = max(largest_log, log.stat().st_size)
        bench.check()
        assert bench.rows() == {}
        return largest_log, largest, path.stat().st_size
    finally:
        bench.abandon()


def test_e11_the_log_stays_small_and_the_file_shrinks(path: Path) -> None:
    log, largest, at_last = through(path, 30_000, at_once=30_000)
    assert log <= 16 * 1024 * 1024
    assert largest > 7_000_000
    assert at_last < 100_000


@pytest.mark.long
@pytest.mark.timeout(600)
def test_e11_a_million_rows(path: Path) -> None:
    log, largest, at_last = through(path, 1_000_000, at_once=50_000)
    assert log <= 16 * 1024 * 1024
    assert largest > 300_000_000
    assert at_last < 100_000


def test_e11_what_is_idle_is_given_back_a_little_at_a_time_once_nothing_is_read(
    path: Path, opened: Callable[..., Bench]
) -> None:
    bench = opened(path, batching=BatchPolicy(linger=0.0), max_bytes=100_000_000)
    items = filled(bench, 40_000)

    def pages() -> int:
        return bench.session._db._number("PRAGMA page_count")

    whole = pages()
    # Far enough for most of the file to lie idle.
    while bench.queue.pending > 10_000:
        bench.now += 5.0
        if (batch := bench.take()) is not None:
            bench.settle(batch, Delivered())
        bench.step()
        assert pages() == whole
    log = path.with_name(path.name + "-wal")
    largest_log, size = log.stat().st_size, whole
    for _ in range(200):
        bench.now += 0.5
        bench.step()
        assert size - pages() <= 100
        size = pages()
        largest_log = max(largest_log, log.stat().st_size)
    assert size < whole / 2
    assert bench.session._db._number("PRAGMA freelist_count") * 2 <= size
    assert largest_log <= 8 * 1024 * 1024
    left = bench.queue.pending
    assert deliver_all(bench) == items[-left:]


# E12: nobody else's to read


def test_e12_files_and_folder_are_private_whatever_the_umask(path: Path, opened: Callable[..., Bench]) -> None:
    before = os.umask(0o022)
    try:
        bench = opened(path)
        filled(bench, 10)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == dict.fromkeys(["spool.db", "spool.db-wal", "spool.db-shm", "spool.db-owner-1"], 0o600)


def test_e12_files_that_were_open_to_others_are_closed(path: Path, opened: Callable[..., Bench]) -> None:
    filled(opened(path), 1)
    path.chmod(0o644)
    filled(opened(path), 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def put(path: Path, what: str) -> None:
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
async def test_e12_a_link_and_what_is_not_ours_are_refused(
    path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(path, what)
    if what == "another user":
        someone_else = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: someone_else)
    await refused(path, what)
    if what == "a symbolic link":
        assert os.stat(path.with_name("target")).st_size == 0


# What is inside

SECRETS = ("canary-token-77", "canary-user", "canary-secret-88", "canary-project-secret-99")


@pytest.mark.anyio
async def test_no_credential_is_in_any_file(path: Path) -> None:
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
def test_what_is_erased_leaves_no_trace(path: Path, opened: Callable[..., Bench], erase: bool) -> None:
    bench = opened(path, erase=erase)
    for number in range(300):
        bench.offer(record(number, 300).replace(b"...", b"pii", 1))
    bench.settle_down()
    deliver_all(bench)
    bench.session._db.checkpoint()
    assert (b"pii" in path.read_bytes()) is not erase


def test_a_file_is_no_larger_than_its_hard_cap(path: Path) -> None:
    files.prepare(path)
    database = open_database(path, max_bytes=1_000_000, timeout=0.1, fsync=False)
    assert database._number("PRAGMA max_page_count") * 4096 <= 1_100_000
    assert database._number("PRAGMA application_id") == APPLICATION_ID
    database.close()


def test_the_token_comes_back_as_it_was(path: Path, opened: Callable[..., Bench]) -> None:
    item = b'{"n":1,"token":"%s","x":"%s \\u0001"}' % (TOKEN.encode(), TOKEN.encode())
    first = opened(path)
    first.offer(item)
    first.step()
    first.abandon()
    second = opened(path)
    second.step()
    assert deliver_all(second) == [item]
