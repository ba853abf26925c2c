"""Client without event loop and threads: the real queue, writer and database, advanced step by step by the test."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from mixpanel_async._delivery.batch import Batch, Confirmation
from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._delivery.disk_backlog import SpoolLimits
from mixpanel_async._delivery.lanes import Lane
from mixpanel_async._delivery.listeners import SpoolListener
from mixpanel_async._delivery.queue import Queue
from mixpanel_async._delivery.spool_bridge import SpoolBridge
from mixpanel_async._model.config import BatchPolicy, Overflow, RetryPolicy
from mixpanel_async._model.outcomes import Outcome
from mixpanel_async._model.records import DropReason, Loss, NonIdempotentRecord, RecordKind
from mixpanel_async._runtime.environment import Environment
from mixpanel_async._spool.messages import SENDING, CommitGroup, SpoolSettings
from mixpanel_async._spool.writer import SpoolWriter

TOKEN = "canary-token-5f1c"
IO_ERROR = sqlite3.OperationalError("disk I/O error")
DISK_FULL = sqlite3.OperationalError("database or disk is full")
LOCKED = sqlite3.OperationalError("database is locked")
DAMAGE = sqlite3.DatabaseError("database disk image is malformed")


class Recorder:
    """Records reported losses in place of the user's callbacks."""

    def __init__(self) -> None:
        self.lost: Counter[bytes] = Counter()
        self.reasons: Counter[DropReason] = Counter()
        self.without_items = 0

    def record(self, losses: Sequence[Loss]) -> bool:
        for loss in losses:
            self.lost.update(bytes(item) for item in loss.items)
            self.reasons[loss.reason] += len(loss.items) + loss.count_only
            self.without_items += loss.count_only
        return False


class SilentListener:
    """Listener of a queue that ignores its signals: the test calls `step`."""

    def on_work(self) -> None:
        return None

    on_losses = on_room = on_fork = on_work


class RecordingCallbacks:
    def __init__(self, recorder: Recorder) -> None:
        self.enqueue_losses = recorder.record

    def reset_after_fork(self) -> None:
        return None


class FailingConnection:
    """Connection that raises an error after a given number of statements."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.fails_after = -1
        self.error: Exception = IO_ERROR

    def __getattr__(self, name: str) -> Any:
        return getattr(self.connection, name)

    def _may_fail(self, sql: str) -> None:
        # A rollback always succeeds, as in SQLite.
        if self.fails_after < 0 or sql == "ROLLBACK":
            return
        if self.fails_after == 0:
            raise self.error
        self.fails_after -= 1

    def execute(self, sql: str, *values: Any) -> Any:
        self._may_fail(sql)
        return self.connection.execute(sql, *values)

    def executemany(self, sql: str, *values: Any) -> Any:
        self._may_fail(sql)
        return self.connection.executemany(sql, *values)


def record(number: int, size: int = 0, *, once: bool = False) -> bytes:
    item = orjson.dumps({"n": number, "token": TOKEN, "x": "." * size})
    return NonIdempotentRecord(item) if once else item


class SpoolHarness:
    """One client, from its start to its end.

    Args:
        path: spool file.
        now: current time in seconds, shared by successive clients of one test.
    """

    def __init__(
        self,
        path: Path,
        *,
        batching: BatchPolicy | None = None,
        overflow: Overflow = Overflow.DROP_NEWEST,
        max_records: int | None = None,
        max_bytes: int = 10_000_000,
        token: str = TOKEN,
        erase: bool = False,
        keep_dead: int = 10_000,
        wait: float = 0.1,
        now: float = 1_000.0,
    ) -> None:
        self.now = now
        self.path = path
        self.recorder = Recorder()
        policy = batching or BatchPolicy(linger=0.0)
        self.buffer = Buffer(policy, RetryPolicy(), SpoolLimits(max_bytes=max_bytes, max_records=max_records))
        runtime = Environment(
            wall_time=lambda: 1.8e9 + self.now, monotonic=lambda: self.now, random=lambda: 0.5, new_id=lambda: "id"
        )
        settings = SpoolSettings(
            path=path,
            max_bytes=max_bytes,
            keep_dead=keep_dead,
            timeout=wait,
            fsync=False,
            erase=erase,
            token=token,
            at_least_once=policy.at_least_once,
        )
        self.writers: list[SpoolWriter] = []

        def make(reports: Any) -> SpoolWriter:
            writer = SpoolWriter(settings, reports, runtime)
            # Starts no thread: the test calls `step`.
            writer.wake = lambda group=None: None  # type: ignore[method-assign]
            self.writers.append(writer)
            return writer

        drops = overflow in {Overflow.DROP_NEWEST, Overflow.DROP_OLDEST}
        assert self.buffer.disk is not None
        self.disk = self.buffer.disk

        def make_bridge(queue: SpoolListener) -> SpoolBridge:
            return SpoolBridge(settings, self.buffer, self.disk, runtime, queue, drops=drops, make_writer=make)

        callbacks: Any = RecordingCallbacks(self.recorder)
        self.queue = Queue(self.buffer, overflow, callbacks, lambda: self.now, SilentListener(), make_bridge)
        assert self.queue.spool is not None
        self.bridge = self.queue.spool
        (self.writer,) = self.writers
        self.session = self.writer.new_session()

    def lane(self, kind: RecordKind = RecordKind.EVENTS) -> Lane:
        return self.queue.lane(kind)

    def offer(self, item: bytes, kind: RecordKind = RecordKind.EVENTS, *, awaited: bool = False) -> CommitGroup | None:
        """Offer a record. Return the commit group if the record is awaited."""
        tickets: list[CommitGroup | Confirmation] | None = [] if awaited else None
        self.queue.offer(self.lane(kind), item, tickets)
        if not tickets:
            return None
        (group,) = tickets
        assert isinstance(group, CommitGroup)
        return group

    def step(self) -> bool:
        return self.writer.step(self.session)

    def run_until_idle(self) -> None:
        """Step until all requested work is done and the file no longer shrinks."""
        for _ in range(5_000):
            if self.step() and not (self.writer._has_more() or self.writer._is_shrinking):
                return
        raise AssertionError("the writer still has work after 5,000 steps")

    def take(self) -> Batch | None:
        """Return the next batch to send, if one is ready."""
        step = self.queue.poll()
        return step if isinstance(step, Batch) else None

    def mark(self, batch: Batch) -> CommitGroup | None:
        """Request the mark that a batch is being sent. Return None if all its records are repeatable."""
        ids = self.bridge._non_idempotent_rows(batch)
        return self.writer.submit(lambda work: work.marks.append((ids, SENDING))) if ids else None

    def begin_trial(self, batch: Batch) -> None:
        """Request the note that a batch on trial is being sent."""
        ids, now = [*batch.ids], self.now
        self.writer.submit(lambda work: work.trials.append((ids, now)))

    def settle(self, batch: Batch, outcome: Outcome, delay: float = 0.0) -> None:
        self.queue.settle(batch, outcome, delay)

    def fail(self, error: Exception, after: int = 0) -> None:
        """Let the disk fail after `after` more statements."""
        database: Any = self.session._db
        if not isinstance(database._db, FailingConnection):
            database._db = FailingConnection(database._db)
        database._db.error, database._db.fails_after = error, after

    def heal(self) -> None:
        if self.session.is_open:
            database: Any = self.session._db
            if isinstance(database._db, FailingConnection):
                database._db.fails_after = -1

    def rows(self) -> dict[int, bytes]:
        """Return the rows on disk, read by another connection."""
        connection = sqlite3.connect(self.path)
        try:
            return dict(connection.execute("SELECT id, body FROM records").fetchall())
        finally:
            connection.close()

    def check(self) -> None:
        """Check conservation of records and the other invariants of the buffer."""
        stats = self.queue.stats()
        ended = stats.delivered + stats.failed + stats.dropped + stats.uncertain
        assert stats.accepted == ended + stats.pending
        assert sum(stats.losses.values()) == stats.failed + stats.dropped + stats.uncertain
        assert stats.pending >= stats.on_disk >= 0
        assert (stats.pending == 0) == (stats.pending_bytes == 0)
        assert stats.pending_bytes >= 0
        lanes, disk = self.buffer.lanes.values(), self.disk
        assert disk.unwritten >= 0
        assert disk.unwritten_bytes >= 0
        assert disk.records == sum(disk.rows(lane).records for lane in lanes)
        for rows in map(disk.rows, lanes):
            assert 0 <= rows.unwritten <= rows.records
            assert (rows.records == 0) == (rows.size == 0)
        in_memory = sum(len(batch.items) for lane in lanes for batch in lane.batches())
        assert stats.pending == in_memory + stats.on_disk

    def crash(self, folder: Path) -> Path:
        """Copy the files as a killed process leaves them. Return the path of the copy."""
        folder.mkdir()
        for file in self.path.parent.iterdir():
            if not file.name.endswith("-shm"):
                shutil.copy(file, folder / file.name)
        self.abandon()
        return folder / self.path.name

    def abandon(self) -> None:
        """End like a killed process: release locks and connections without cleanup."""
        for lock in self.writer._locks.values():
            lock.close_without_unlock()
        self.writer._locks.clear()
        if self.session.is_open:
            database: Any = self.session._db
            database._db.close()
            self.session._database = None

    def close(self) -> None:
        self.session.close()
        self.writer.discard_pending()


def spooled(item: bytes) -> bytes:
    """Return the stored form of a record."""
    return item.replace(orjson.dumps(TOKEN), b"\x01")


def fast_folder() -> str | None:
    """Return a directory in memory, if the system has one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
