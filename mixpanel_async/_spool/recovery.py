"""What can still be read of a damaged spool moves into a new one; the damaged file is set aside, never deleted."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

from .._model.errors import SpoolError
from . import files
from .connection import open_database
from .database import LANES, OWNER_SHIFT, SCHEMA, Database, Row, lane_start, show_token
from .messages import ONCE, REPEATABLE, SENDING, SEQUENCE_BITS

_PAGE: Final = 4096
_PAGES_AT: Final = slice(28, 32)
_FREELIST_AT: Final = slice(32, 40)
# A file that is damaged all over is given up after so many holes.
_MAX_HOLES: Final = 10_000
_ROWS_PER_TRANSACTION: Final = 2_000
_UNREADABLE: Final = (sqlite3.DatabaseError, UnicodeDecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What became of a damaged spool.

    Args:
        aside: the name that the damaged file has now.
        rows: how many rows moved to the new one.
        holes: places that could not be read; each held a few rows.
    """

    aside: Path
    rows: int
    unreadable: int


def recover(
    path: Path,
    stamp: int,
    open_new: Callable[[], Database],
    *,
    skip: Container[int] = frozenset(),
    above_owner: int = 0,
) -> tuple[Database, Recovery]:
    """Set a damaged spool aside and begin a new one with what can be read of it.

    Rows of other clients that are alive are left.

    Args:
        path: the damaged file.
        stamp: seconds since 1970, for its new name.
        make: opens the new database at the same path.
        leave: rows that are not wanted.
        above: no owner of the new one gets this number, or a smaller one.
    """
    aside = files.set_aside(path, stamp)
    fresh = open_new()
    return fresh, recover_remaining(aside, fresh, path, skip=skip, above_owner=above_owner)


def recover_remaining(
    aside: Path,
    target: Database,
    path: Path,
    *,
    skip: Container[int] = frozenset(),
    above_owner: int = 0,
    only_owners: Container[int] | None = None,
) -> Recovery:
    """Copy what can be read of a file that was set aside.

    Args:
        aside: its name now.
        fresh: the database in its place.
        path: of that one.
        leave: rows that are not wanted.
        above: no owner of the new one gets this number, or a smaller one.
        only: the owners whose rows are wanted; None for all that live no more, and the dead letters.
    """
    rows = holes = 0
    try:
        with contextlib.closing(_DamagedFile(aside)) as wreck:
            owners = list(wreck.owners())
            above_owner = max([above_owner, *(owner for owner, _ in owners)])
            if owners and only_owners is None:
                with target.transaction():
                    target.set_salt(wreck.salt)
            for owner, project in owners:
                claim = files.OwnerLock.acquire(path, owner) if only_owners is None or owner in only_owners else None
                if claim is None:
                    continue
                heir = 0
                for found in wreck.chunks(owner):
                    chunk = [row for row in found if row[0] not in skip]
                    with target.transaction():
                        if chunk and not heir:
                            heir = target.add_owner(project, 0.0, above=above_owner)
                        target.insert([_moved(row, owner, heir) for row in chunk])
                    rows += len(chunk)
                claim.release(remove=True)
            if only_owners is None:
                for letters in wreck.dead():
                    with target.transaction():
                        target.restore_dead(letters)
            holes = wreck.unreadable
    except (sqlite3.Error, UnicodeDecodeError, OSError, SpoolError):
        # What was copied is committed; the rest stays in the file that is set aside.
        holes += 1
    return Recovery(aside=aside, rows=rows, unreadable=holes)


def _moved(row: Row, owner: int, heir: int) -> Row:
    return row[0] + ((heir - owner) << OWNER_SHIFT), row[1], row[2]


class _DamagedFile:
    """A damaged database, read as far as it goes.

    Its tables have been made in one order only, so that their places in the file are known even if its first page,
    which names them, is lost: that page is then taken from a new spool.
    """

    def __init__(self, path: Path) -> None:
        self.unreadable = 0
        self.salt = b""
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self.salt = self._salt()
        except (*_UNREADABLE, IndexError):
            self._db.close()
            _replace_first_page(path, _first_page(path.with_name(path.name + "-page")))
            self.unreadable += 1
            self._db = sqlite3.connect(path, isolation_level=None)
            with contextlib.suppress(*_UNREADABLE, IndexError):
                self.salt = self._salt()

    def _salt(self) -> bytes:
        tables = self._db.execute("SELECT sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY rowid")
        if tuple(sql for (sql,) in tables.fetchall()) != SCHEMA:
            raise sqlite3.DatabaseError
        salt = self._db.execute("SELECT value FROM meta WHERE name='salt'").fetchall()[0][0]
        return salt if isinstance(salt, bytes) and len(salt) == 16 else b""

    def owners(self) -> Iterator[tuple[int, bytes]]:
        """Who wrote it, with their projects. Without the salt nobody can tell what belongs to whom: nothing."""
        found: list[tuple[int, bytes]] = []
        if self.salt:
            with contextlib.suppress(*_UNREADABLE):
                for owner, project in self._db.execute("SELECT id, project FROM owners ORDER BY id"):
                    found.append((owner, project))
        for owner, project in found:
            if isinstance(owner, int) and 0 < owner < 1 << (63 - OWNER_SHIFT) and isinstance(project, bytes):
                yield owner, project

    def chunks(self, owner: int) -> Iterator[list[Row]]:
        """The sound rows of an owner."""
        chunk: list[Row] = []
        for row in self._rows(lane_start(owner, 0), lane_start(owner + 1, 0)):
            if _is_sound(row):
                chunk.append(row)
            else:
                self.unreadable += 1
            if len(chunk) >= _ROWS_PER_TRANSACTION:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    def dead(self) -> Iterator[list[tuple[object, ...]]]:
        """The dead letters, as far as they can be read in their order."""
        if not self.salt:
            return
        with contextlib.suppress(*_UNREADABLE):
            cursor = self._db.execute(
                "SELECT project, lane, state, reason, message, died, body FROM dead"
                " WHERE typeof(project) = 'blob' AND typeof(body) = 'blob' AND typeof(lane) = 'integer'"
                " AND typeof(reason) = 'text' AND typeof(message) = 'text' AND typeof(died) = 'real' ORDER BY id"
            )
            while letters := cursor.fetchmany(_ROWS_PER_TRANSACTION):
                yield letters

    def _rows(self, after: int, end: int) -> Iterator[Row]:
        while after < end and self.unreadable < _MAX_HOLES:
            try:
                for row in self._after(after, end):
                    if not isinstance(row[0], int) or not after < row[0] < end:
                        break
                    after = row[0]
                    yield row
                else:
                    return
            except _UNREADABLE:
                pass
            self.unreadable += 1
            after = self._skip_unreadable(after, end)

    def _after(self, after: int, end: int) -> Iterator[Row]:
        return self._db.execute("SELECT id, state, body FROM records WHERE id > ? AND id < ? ORDER BY id", (after, end))

    def _skip_unreadable(self, after: int, end: int) -> int:
        """The last number after which nothing can be read: found by ever longer steps, then by halving."""
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
        except _UNREADABLE:
            return False
        return row is None or (isinstance(row[0], int) and after < row[0] < end)

    def close(self) -> None:
        self._db.close()


def _is_sound(row: Row) -> bool:
    number, state, body = row
    lane = number >> SEQUENCE_BITS & (LANES - 1)
    if lane > 4 or state not in {REPEATABLE, ONCE, SENDING} or not isinstance(body, bytes):
        return False
    return is_record(show_token(body, b'""'))


def is_record(item: bytes) -> bool:
    """Whether bytes from a disk are a record; SQLite cannot tell."""
    try:
        return isinstance(orjson.loads(memoryview(item)), dict)
    except orjson.JSONDecodeError:
        return False


def _first_page(scratch: Path) -> bytes:
    """The first page of a spool that holds nothing, made for this."""
    blank = open_database(scratch, max_bytes=1024 * 1024, wait=1.0, fsync=False)
    blank.checkpoint()
    blank.close()
    try:
        return scratch.read_bytes()[:_PAGE]
    finally:
        scratch.unlink()


def _replace_first_page(path: Path, page: bytes) -> None:
    """Give a file the first page of a new spool, which says how large it is and that no page of it is free."""
    size = path.stat().st_size
    if size < _PAGE:
        return
    head = bytearray(page)
    head[_PAGES_AT] = (size // _PAGE).to_bytes(4, "big")
    head[_FREELIST_AT] = bytes(8)
    with path.open("r+b") as file:
        file.write(head)
