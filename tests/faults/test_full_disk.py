"""A disk that was full and has room again: the next commit tries, and the errors name the disk."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from mixpanel_async import AsyncMixpanel, BatchPolicy, Overflow, QueueFullError, SpoolError, SqliteSpool
from mixpanel_async.emulator import Emulator

pytestmark = pytest.mark.sample(every=3)

# Seconds within which records must be accepted again. Before, it took up to 11.
SOON = 2.0
MAX_BYTES = 1_000_000
BODY = {"text": "." * 2_000}


class SmallDisk:
    """Place for a spool that the test fills and empties."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "spool.db"

    def fill(self) -> None:
        """Take all the room."""

    def empty(self) -> None:
        """Give the room back."""


class FullFileSystem(SmallDisk):
    """Small file system in memory."""

    def fill(self) -> None:
        with (self.path.parent / "ballast").open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"." * 4096):
                pass

    def empty(self) -> None:
        (self.path.parent / "ballast").unlink()


class FullFile(SmallDisk):
    """File that another process has filled to its limit, with dead letters."""

    def fill(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=5.0)) as db, db:
            db.executemany(
                "INSERT INTO dead VALUES (NULL, x'00', 0, 0, 'rejected', '', 1.0, zeroblob(20000))", [()] * 80
            )

    def empty(self) -> None:
        with closing(sqlite3.connect(self.path, timeout=5.0)) as db, db:
            db.execute("DELETE FROM dead")


@pytest.fixture(params=["file system", "file"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SmallDisk]:
    if request.param == "file":
        yield FullFile(tmp_path)
        return
    mounts = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], capture_output=True, check=False
        ).returncode
    )
    if not mounts:
        pytest.skip("this user may not mount a file system")
    try:
        yield FullFileSystem(tmp_path)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def client_of(emulator: Emulator, disk: SmallDisk, overflow: Overflow, **options: Any) -> AsyncMixpanel:
    return emulator.client(
        spool=SqliteSpool(disk.path, max_bytes=MAX_BYTES, fsync=False),
        overflow=overflow,
        batching=BatchPolicy(linger=3600.0, wait_timeout=0.3),
        **options,
    )


async def reach(condition: Callable[[], bool], seconds: float) -> float:
    """Wait for a condition. Return the seconds that it took."""
    began = time.monotonic()
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  another thread fulfils it
            await anyio.sleep(0.002)
    return time.monotonic() - began


async def refusal_of(mp: AsyncMixpanel, *, nowait: bool = False) -> str:
    """Track one event. Return the error or the reason of its loss; empty if it was accepted."""
    before = mp.stats().losses
    try:
        if nowait:
            mp.track_nowait("user", "Event", BODY)
            await anyio.sleep(0.005)
        else:
            await mp.track("user", "Event", BODY)
    except (QueueFullError, SpoolError) as error:
        return str(error)
    return next((reason for reason, count in mp.stats().losses.items() if count > before.get(reason, 0)), "")


async def wait_until_accepted(mp: AsyncMixpanel, *, nowait: bool = False) -> None:
    """Track until a record is accepted."""
    with anyio.fail_after(SOON):
        while await refusal_of(mp, nowait=nowait):  # noqa: ASYNC110  another thread fulfils it
            await anyio.sleep(0.005)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("nowait", [False, True], ids=["track", "track_nowait"])
@pytest.mark.parametrize("overflow", list(Overflow), ids=lambda one: one.value)
async def test_g7_records_are_accepted_again_soon_after_a_full_disk_has_room(
    disk: SmallDisk, overflow: Overflow, nowait: bool
) -> None:
    emulator = Emulator()
    async with client_of(emulator, disk, overflow) as mp:
        for _ in range(10):
            await mp.track("user", "Before")
        for _ in range(2):
            disk.fill()
            refusal = ""
            while not refusal:
                refusal = await refusal_of(mp, nowait=nowait)
            if overflow in {Overflow.RAISE, Overflow.WAIT} and not nowait:
                assert refusal.startswith(f"{disk.path}: the disk of the spool is full")
            disk.empty()
            await wait_until_accepted(mp, nowait=nowait)
        await mp.flush(timeout=10.0)
        stats = mp.stats()
        assert stats.pending == 0
        assert stats.delivered == stats.accepted - stats.dropped > 10
    assert len(emulator.events()) == stats.delivered


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_g7_waiting_caller_gets_the_room_of_a_full_disk(disk: SmallDisk) -> None:
    emulator = Emulator()
    mp = emulator.client(
        spool=SqliteSpool(disk.path, max_bytes=MAX_BYTES, fsync=False),
        overflow=Overflow.WAIT,
        batching=BatchPolicy(linger=3600.0, wait_timeout=10.0),
    )
    async with mp:
        await mp.track("user", "Before")
        disk.fill()
        done = anyio.Event()

        async def track_until_full() -> None:
            for _ in range(300):
                await mp.track("user", "Event", BODY)
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(track_until_full)
            await anyio.sleep(0.5)
            assert not done.is_set()
            disk.empty()
            with anyio.fail_after(5.0):
                await done.wait()
        stats = mp.stats()
        assert stats.pending + stats.delivered == stats.accepted == 301


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("leaves_records", [False, True], ids=["start", "restart"])
@pytest.mark.parametrize("overflow", list(Overflow), ids=lambda one: one.value)
async def test_g7_start_on_a_full_disk_names_it_and_records_follow_once_there_is_room(
    disk: SmallDisk, overflow: Overflow, leaves_records: bool
) -> None:
    emulator = Emulator()
    first = client_of(emulator, disk, overflow, shutdown_timeout=0.0)
    for _ in range(10 if leaves_records else 1):
        await first.track("user", "Before")
    if not leaves_records:
        await first.flush()
    await first.aclose()
    disk.fill()
    mp = client_of(emulator, disk, overflow)
    with suppress(SpoolError):
        await mp.start()
    error = mp.stats().last_error
    if error is not None:
        assert error.startswith(f"{disk.path}: cannot write the spool (")
    disk.empty()
    await mp.start()
    await reach(lambda: mp.stats().recovered == 10 * leaves_records, SOON)
    await wait_until_accepted(mp)
    await mp.flush(timeout=5.0)
    stats = mp.stats()
    assert stats.delivered == stats.accepted - stats.dropped > 10 * leaves_records
    assert len(emulator.events("Before")) == (10 if leaves_records else 1)
    await mp.aclose()
