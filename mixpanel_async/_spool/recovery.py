"""Recovery of a damaged spool: set the file aside and copy its readable rows to a new one. Nothing is deleted."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from .._encoding.stored_records import show_token
from .._model.errors import SpoolError, count_of
from .._runtime.log_events import log_event
from . import files
from .database import (
    OWNER_SHIFT,
    Database,
    Row,
    lane_of,
    lane_start,
    open_database,
)
from .messages import LANE_CODES, ONCE, REPEATABLE, SENDING
from .schema import SCHEMA, TABLES, is_damage

_LANE_CODES: Final = frozenset(LANE_CODES.values())
_PAGE: Final = 4096
# Offsets in the header of the file: number of pages; first free page and number of free pages.
_PAGE_COUNT: Final = slice(28, 32)
_FREELIST: Final = slice(32, 40)
# Recovery of a badly damaged file stops after this many unreadable places.
_MAX_UNREADABLE: Final = 10_000
_ROWS_PER_TRANSACTION: Final = 2_000
_READ_ERRORS: Final = (sqlite3.DatabaseError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """Result of a recovery.

    Args:
        aside: path to which the damaged file was moved.
        rows: rows copied to the new file.
        unreadable: unreadable places; each held a few rows.
    """

    aside: Path
    rows: int
    unreadable: int


def recover(
    path: Path,
    stamp: int,
    open_again: Callable[[], Database],
    open_new: Callable[[], Database],
    *,
    skip: Container[int],
    above_owner: int,
) -> tuple[Database, bool]:
    """Set a damaged spool aside and copy its readable rows to a new one, unless another process did so.

    Rows of other live clients are left out; those clients copy them.

    Args:
        path: damaged file.
        stamp: seconds since 1970, for its new name.
        open_again: opens the path as it is.
        open_new: opens the new file that takes its place.
        skip: ids of rows to leave out.
        above_owner: owners in the new file get larger numbers.

    Returns:
        The open database, and whether this call recovered it.

    Raises:
        SpoolError: while another process recovers the file.
    """
    # No owner has the number 0, so this lock serializes recovery.
    lock = files.OwnerLock.acquire(path, 0)
    if lock is None:
        raise SpoolError("another process is recovering the damaged spool; the write is retried")
    try:
        try:
            return open_again(), False
        except Exception as error:
            if not is_damage(error):
                raise
        aside = files.set_aside(path, stamp)
        db = open_new()
        found = recover_remaining(aside, db, path, skip=skip, above_owner=above_owner)
    finally:
        lock.release(remove=True)
    text = "%s: the spool was damaged and was set aside as %s; %s recovered, %s unreadable"
    log_event(
        logging.ERROR, "spool_recovered", text, path, found.aside.name,
        count_of(found.rows, "row was", "rows were"), count_of(found.unreadable, "place was", "places were"),
        path=str(path), rows=found.rows, unreadable=found.unreadable,
    )  # fmt: skip
    return db, True


def recover_remaining(
    aside: Path,
    target: Database,
    path: Path,
    *,
    skip: Container[int],
    above_owner: int,
    only_owners: Container[int] | None = None,
) -> Recovery:
    """Copy the readable rows of a file that was set aside.

    Args:
        aside: path to which the damaged file was moved.
        target: database that takes its place.
        path: path of that database.
        skip: ids of rows to leave out.
        above_owner: owners in the new file get larger numbers.
        only_owners: owners whose rows to copy. None copies the dead letters and the rows of all ended clients.
    """
    rows = unreadable = 0
    try:
        with contextlib.closing(_DamagedFile(aside)) as damaged:
            owners = list(damaged.owners())
            above_owner = max([above_owner, *(owner for owner, _ in owners)])
            if owners and only_owners is None:
                with target.transaction():
                    target.set_salt(damaged.salt)
            for owner, project in owners:
                is_wanted = only_owners is None or owner in only_owners
                lock = files.OwnerLock.acquire(path, owner) if is_wanted else None
                if lock is None:
                    continue
                new_owner = 0
                for found in damaged.chunks(owner):
                    chunk = [row for row in found if row[0] not in skip]
                    with target.transaction():
                        if chunk and not new_owner:
                            new_owner = target.add_owner(project, 0.0, above=above_owner)
                        target.insert([_moved(row, owner, new_owner) for row in chunk])
                    rows += len(chunk)
                lock.release(remove=True)
            if only_owners is None:
                for letters in damaged.dead_letters():
                    with target.transaction():
                        target.restore_dead(letters)
            unreadable = damaged.unreadable
    except (sqlite3.Error, UnicodeDecodeError, OSError, SpoolError):
        # Copied rows are committed; the others stay in the file that was set aside.
        unreadable += 1
    return Recovery(aside=aside, rows=rows, unreadable=unreadable)


def _moved(row: Row, owner: int, new_owner: int) -> Row:
    return row[0] + ((new_owner - owner) << OWNER_SHIFT), row[1], row[2]


class _DamagedFile:
    """Damaged database, read as far as possible.

    A spool always creates its tables in the same order, so their root pages are known. If the first page, which lists
    them, is lost, it is replaced by the first page of a new spool.
    """

    def __init__(self, path: Path) -> None:
        self.unreadable = 0
        self.salt = b""
        self._db = _connect(path)
        try:
            self.salt = self._salt()
        except (*_READ_ERRORS, IndexError):
            # This also moves the contents of the log into the file.
            self._db.close()
            _replace_first_page(path, _first_page(path.with_name(path.name + "-page")))
            self.unreadable += 1
            self._db = _connect(path)
            with contextlib.suppress(*_READ_ERRORS, IndexError):
                self.salt = self._salt()

    def _salt(self) -> bytes:
        tables = self._db.execute(
            f"SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND rootpage > 1 AND name IN {TABLES}"  # noqa: S608
        )
        if tables.fetchone()[0] != len(SCHEMA):
            raise sqlite3.DatabaseError
        for columns in ("id, project FROM owners", "id, state, body FROM records"):
            self._db.execute(f"SELECT {columns} LIMIT 0")
        salt = self._db.execute("SELECT value FROM meta WHERE name='salt'").fetchall()[0][0]
        return salt if isinstance(salt, bytes) and len(salt) == 16 else b""

    def owners(self) -> Iterator[tuple[int, bytes]]:
        """Yield owners and their project keys. Without the salt, rows cannot be assigned to projects: yield nothing."""
        found: list[tuple[int, bytes]] = []
        if self.salt:
            with contextlib.suppress(*_READ_ERRORS):
                for owner, project in self._db.execute("SELECT id, project FROM owners ORDER BY id"):
                    found.append((owner, project))
        for owner, project in found:
            if isinstance(owner, int) and 0 < owner < 1 << (63 - OWNER_SHIFT) and isinstance(project, bytes):
                yield owner, project

    def chunks(self, owner: int) -> Iterator[list[Row]]:
        """Yield the readable rows of an owner in chunks."""
        chunk: list[Row] = []
        for row in self._rows(lane_start(owner, 0), lane_start(owner + 1, 0)):
            if _is_readable_row(row):
                chunk.append(row)
            else:
                self.unreadable += 1
            if len(chunk) >= _ROWS_PER_TRANSACTION:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def dead_letters(self) -> Iterator[list[tuple[object, ...]]]:
        """Yield the dead letters in order, up to the first unreadable one."""
        if not self.salt:
            return
        with contextlib.suppress(*_READ_ERRORS):
            cursor = self._db.execute(
                "SELECT project, lane, state, reason, message, died, body FROM dead"
                " WHERE typeof(project) = 'blob' AND typeof(body) = 'blob' AND typeof(lane) = 'integer'"
                " AND typeof(reason) = 'text' AND typeof(message) = 'text' AND typeof(died) = 'real' ORDER BY id"
            )
            while letters := cursor.fetchmany(_ROWS_PER_TRANSACTION):
                yield letters

    def _rows(self, after: int, end: int) -> Iterator[Row]:
        while after < end and self.unreadable < _MAX_UNREADABLE:
            try:
                for row in self._after(after, end):
                    if not isinstance(row[0], int) or not after < row[0] < end:
                        break
                    after = row[0]
                    yield row
                else:
                    return
            except _READ_ERRORS:
                pass
            self.unreadable += 1
            after = self._skip_unreadable(after, end)

    def _after(self, after: int, end: int) -> Iterator[Row]:
        return self._db.execute("SELECT id, state, body FROM records WHERE id > ? AND id < ? ORDER BY id", (after, end))

    def _skip_unreadable(self, after: int, end: int) -> int:
        """Return the last id after which reading fails, found by exponential and then binary search."""
        step = 1
        while after + step < end and not self._is_readable(after + step, end):
            step *= 2
        low, high = after + step // 2, min(after + step, end)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_readable(middle, end) else (middle, high)
        return high

    def _is_readable(self, after: int, end: int) -> bool:
        try:
            row = next(iter(self._after(after, end)), None)
        except _READ_ERRORS:
            return False
        return row is None or (isinstance(row[0], int) and after < row[0] < end)

    def close(self) -> None:
        self._db.close()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    if not files.can_map(path):
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("PRAGMA trusted_schema=OFF")
    # Ignore objects whose definition SQLite cannot read.
    db.execute("PRAGMA writable_schema=ON")
    return db


def _is_readable_row(row: Row) -> bool:
    number, state, body = row
    if lane_of(number) not in _LANE_CODES or state not in {REPEATABLE, ONCE, SENDING} or not isinstance(body, bytes):
        return False
    return is_record(show_token(body, b'""'))


def is_record(item: bytes) -> bool:
    """Return whether bytes are a JSON object. SQLite does not notice damaged bodies."""
    try:
        return isinstance(orjson.loads(memoryview(item)), dict)
    except orjson.JSONDecodeError:
        return False


def _first_page(scratch: Path) -> bytes:
    """Return the first page of an empty spool, created at `scratch` and deleted again."""
    blank = open_database(scratch, max_bytes=1024 * 1024, timeout=1.0, fsync=False)
    blank.checkpoint()
    blank.close()
    try:
        return scratch.read_bytes()[:_PAGE]
    finally:
        scratch.unlink()


def _replace_first_page(path: Path, page: bytes) -> None:
    """Overwrite the first page with one of a new spool, with this file's size and an empty list of free pages."""
    size = path.stat().st_size
    if size < _PAGE:
        return
    head = bytearray(page)
    head[_PAGE_COUNT] = (size // _PAGE).to_bytes(4, "big")
    head[_FREELIST] = bytes(8)
    with path.open("r+b") as file:
        file.write(head)
