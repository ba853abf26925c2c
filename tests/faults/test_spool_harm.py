"""Harm to the files of a spool while a client uses it: what a call accepted after it survives a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from forked_python import popen
from spool_harness import SpoolHarness, fast_folder

from mixpanel_async._model.outcomes import Delivered

pytestmark = pytest.mark.sample(every=7)

PROGRAM = Path(__file__).with_name("spool_harm_program.py")
EVENTS = 400
SMALL = 300
# The events then fill the log, so that SQLite has moved it into the file.
LARGE = 15_000
# More than the events that may be accepted by a commit that ended before the harm.
MORE = 200

Harm = Callable[[Path], object]


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def index_of(path: Path) -> Path:
    return path.with_name(path.name + "-shm")


def truncate(path: Path, part: float) -> None:
    os.truncate(path, int(path.stat().st_size * part))


def overwrite(path: Path, size: int | None = None) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(size or path.stat().st_size))


def rename_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.rename(file.with_name("old-" + file.name))


def replace(path: Path, content: bytes) -> None:
    other = path.with_name("other")
    other.write_bytes(content)
    other.chmod(0o600)
    other.replace(path)


def remove_files(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def remove_log(path: Path) -> None:
    log_of(path).unlink()
    index_of(path).unlink()


def restore_backup(path: Path) -> None:
    """Overwrite the file with the backup that was made before the first event."""
    path.write_bytes((path.parent.parent / "backup").read_bytes())


HARMS: dict[str, Harm] = {
    "file deleted": Path.unlink,
    "all files deleted": remove_files,
    "folder deleted": lambda path: shutil.rmtree(path.parent),
    "folder renamed": lambda path: path.parent.rename(path.parent.with_name("moved")),
    "file renamed": lambda path: path.rename(path.with_name("moved.db")),
    "all files renamed": rename_all,
    "file emptied": lambda path: truncate(path, 0.0),
    "file cut in half": lambda path: truncate(path, 0.5),
    "file overwritten": overwrite,
    "header overwritten": lambda path: overwrite(path, 100),
    "old backup restored": restore_backup,
    "file replaced by an empty one": lambda path: replace(path, b""),
    "file replaced by garbage": lambda path: replace(path, os.urandom(50_000)),
    "file replaced by its copy": lambda path: replace(path, path.read_bytes()),
    "log deleted": lambda path: log_of(path).unlink(),
    "log emptied": lambda path: truncate(log_of(path), 0.0),
    "log cut in half": lambda path: truncate(log_of(path), 0.5),
    "log overwritten": lambda path: overwrite(log_of(path)),
    "log renamed": lambda path: log_of(path).rename(path.with_name("moved-wal")),
    "index of the log deleted": lambda path: index_of(path).unlink(),
    "log and its index deleted": remove_log,
    "nobody may read it": lambda path: path.chmod(0),
    "everyone may read it": lambda path: path.chmod(0o666),
    "times changed": lambda path: os.utime(path, (1, 1)),
}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Tracker:
    """Process that tracks."""

    def __init__(self, path: Path, limit: int, size: int) -> None:
        self._receipts = path.parent.parent / "receipts"
        # Nothing listens on this port.
        given = ["http://127.0.0.1:9", path, self._receipts, limit, size]
        command = [sys.executable, str(PROGRAM), *map(str, given)]
        self._log = path.parent.parent / "log"
        with self._log.open("wb") as log:
            self._process = popen(command, stdin=subprocess.PIPE, stderr=log, modules=())

    def accepted(self) -> set[int]:
        try:
            return set(map(int, self._receipts.read_text().split("\n")[:-1]))
        except FileNotFoundError:
            return set()

    def wait_for(self, count: int) -> None:
        wait_until(lambda: len(self.accepted()) >= count)

    def track_one(self) -> None:
        assert self._process.stdin is not None
        before = len(self.accepted())
        self._process.stdin.write(b"more\n")
        self._process.stdin.flush()
        self.wait_for(before + 1)

    def has_noticed(self) -> bool:
        return "written to a new file" in self._log.read_text()

    def kill(self) -> None:
        assert self._process.poll() is None
        self._process.kill()
        self._process.communicate()


# Harm that an idle client does not notice.
UNNOTICED: Final = {
    "header overwritten", "index of the log deleted", "nobody may read it", "everyone may read it", "times changed"
}  # fmt: skip


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as name:
        yield Path(name)


def found_in(path: Path) -> set[int]:
    """Return the numbers of the events that the next client finds."""
    client = SpoolHarness(path, token="token")
    found: list[int] = []
    for _ in range(100):
        client.step()
        while (batch := client.take()) is not None:
            found += [int(json.loads(item)["properties"]["$insert_id"].rpartition("-")[2]) for item in batch.items]
            client.settle(batch, Delivered())
        if not client.queue.pending and not client.writer._has_more():
            break
    client.abandon()
    return set(found)


@pytest.mark.parametrize(
    ("moment", "size"), [("busy", SMALL), ("next call", SMALL), ("next call", LARGE), ("idle", SMALL), ("idle", LARGE)]
)
@pytest.mark.parametrize("harm", HARMS)
def test_g6_nothing_accepted_after_harm_to_an_open_spool_is_lost_by_a_kill(harm: str, moment: str, size: int) -> None:
    with folder() as place:
        path = place / "spool" / "spool.db"
        first = SpoolHarness(path, token="token")
        first.step()
        shutil.copy(path, place / "backup")
        first.session.close()
        tracker = Tracker(path, 0 if moment == "busy" else EVENTS, size)
        tracker.wait_for(EVENTS)
        HARMS[harm](path)
        if moment == "busy":
            tracker.wait_for(len(tracker.accepted()) + MORE)
        elif moment == "next call":
            tracker.track_one()
        else:
            # Harm that is not noticed by then must be harmless.
            deadline = time.monotonic() + (3.0 if harm in UNNOTICED else 20.0)
            wait_until(lambda: tracker.has_noticed() or time.monotonic() > deadline)
        tracker.kill()
        accepted = tracker.accepted()
        assert len(accepted) >= EVENTS
        assert not accepted - found_in(path)
        if harm == "everyone may read it":
            assert path.stat().st_mode & 0o777 == 0o600
