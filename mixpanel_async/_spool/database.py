"""SQLite database of the spool: records as opaque bytes, their owners, and dead letters.

A row id is composed of owner, lane and a sequence number of that owner. All rows of one client and lane form one range
of ids, so that taking over a client rewrites no row and deleting a batch deletes a range.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final

from .._model.errors import raise_configuration_error
from . import files
from .messages import SENDING, SEQUENCE_BITS

APPLICATION_ID: Final = 0x6D786173
VERSION: Final = 1
LANE_BITS: Final = 3
OWNER_SHIFT: Final = LANE_BITS + SEQUENCE_BITS
LANES: Final = 1 << LANE_BITS

# Old SQLite versions allow 999 parameters in one statement; a row takes 3.
_ROWS_PER_STATEMENT: Final = 300
# Size of the write-ahead log after a checkpoint.
_MAX_LOG_BYTES: Final = 8 * 1024 * 1024
# SQLite refuses to grow the file beyond `max_bytes` times this factor. Clients enforce the exact limit; this one also
# holds when several clients write at the same time.
_HARD_CAP: Final = 1.1
# Pages returned to the file system in one transaction. SQLite may scan all free pages for each one and rewrites pages
# that it moves: gigabytes in one transaction would hold the lock for minutes and fill the log.
_PAGES_PER_TRANSACTION: Final = 32
# Larger files are opened without SQLite's check, which takes seconds for each GB.
_CHECK_UP_TO_BYTES: Final = 256 * 1024 * 1024
# Replaces the project token in stored bytes. Valid JSON contains no raw control character.
_TOKEN_MARK: Final = b"\x01"

SCHEMA: Final = (
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE owners (id INTEGER PRIMARY KEY AUTOINCREMENT, project BLOB NOT NULL, born REAL NOT NULL)",
    "CREATE TABLE records (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, body BLOB NOT NULL)",
    (
        "CREATE TABLE dead (id INTEGER PRIMARY KEY AUTOINCREMENT, project BLOB NOT NULL, lane INTEGER NOT NULL,"
        " state INTEGER NOT NULL, reason TEXT NOT NULL, message TEXT NOT NULL, died REAL NOT NULL, body BLOB NOT NULL)"
    ),
)

TABLE_NAMES: Final = ("meta", "owners", "records", "dead")
TABLES: Final = str(TABLE_NAMES)
"""SQL list of the names of the tables. A file may also hold objects of other programs."""

Row = tuple[int, int, bytes]
"""Row id, state, body."""


class Damaged(Exception):  # noqa: N818  internal signal, never raised to users
    """The file is not a usable spool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Row of the dead letter table."""

    lane: int
    state: int
    reason: str
    message: str
    body: bytes


def lane_start(owner: int, lane: int) -> int:
    """Return the id before the first row of an owner's lane."""
    return (owner << OWNER_SHIFT) | (lane << SEQUENCE_BITS)


def lane_of(row_id: int) -> int:
    """Return the lane code in a row id."""
    return row_id >> SEQUENCE_BITS & (LANES - 1)


def hide_token(body: bytes, token: bytes) -> bytes:
    """Return the bytes to store, with the token replaced by a marker: the token is a credential."""
    return body.replace(token, _TOKEN_MARK)


def show_token(body: bytes, token: bytes) -> bytes:
    """Return the bytes to send, with the token put back."""
    return body.replace(_TOKEN_MARK, token)


def open_database(path: Path, *, max_bytes: int, timeout: float, fsync: bool, erase: bool = False) -> Database:
    """Create or open the database at `path`, and make its files private once they are known to be a spool.

    Raises:
        Damaged, ConfigurationError, sqlite3.Error: as `Database` does.
    """
    is_new = files.prepare(path)
    try:
        db = Database(path, is_new=is_new, max_bytes=max_bytes, timeout=timeout, fsync=fsync, erase=erase)
    except Damaged:
        if files.is_text(path):
            raise_configuration_error("the file is a text file, not a spool; choose another path")
        raise
    files.make_private(path)
    return db


class Database:
    """Connection to the database. Use it only in the thread that opened it.

    Args:
        path: file prepared by `files.prepare`.
        is_new: whether the file is empty.
        max_bytes: maximum size of the file.
        timeout: seconds to wait for a transaction of another process.
        fsync: whether each commit survives a power failure.
        erase: whether all deleted data is overwritten, also where that costs extra writes.

    Raises:
        Damaged: if the file cannot be used and must be set aside.
        ConfigurationError: if the file belongs to another program or a newer version.
        sqlite3.Error: if the disk fails.
    """

    # Version of the list of objects when it was last checked; 0 before, and for other kinds of connections.
    _schema_version = 0

    def __init__(
        self, path: Path, *, is_new: bool, max_bytes: int, timeout: float, fsync: bool, erase: bool = False
    ) -> None:
        self.path = path
        self._db = sqlite3.connect(path, timeout=timeout, isolation_level=None, cached_statements=64)
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            mode = "wal" if files.can_map(path) else "truncate"
            if mode != "wal":
                # The file may have a log, copied from another disk: SQLite reads it here without mapping memory.
                self._db.execute("PRAGMA locking_mode=EXCLUSIVE")
            if is_new:
                # Has an effect only before the first page is written.
                self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            else:
                # The next statements write: another program's database must stay unchanged.
                self._refuse_foreign()
            if self._one(f"PRAGMA journal_mode={mode}") != mode:
                raise_configuration_error(
                    "the file system does not support SQLite's write-ahead log; move the spool to another disk"
                )
            self._db.execute("PRAGMA locking_mode=NORMAL")
            self._db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            self._db.execute(f"PRAGMA journal_size_limit={_MAX_LOG_BYTES}")
            self._db.execute(f"PRAGMA secure_delete={'ON' if erase else 'FAST'}")
            self._page_bytes = self._number("PRAGMA page_size")
            self._db.execute(f"PRAGMA max_page_count={int(max_bytes * _HARD_CAP) // self._page_bytes}")
            with self.transaction():
                self._check_or_make()
                self._drop_foreign()
                self._schema_version = self._number("PRAGMA schema_version")
                # A write shows whether the file is writable.
                self.set_salt(self.salt)
            self._check_pages()
            self.inode = files.inode_of(path)
        except BaseException as error:
            self._db.close()
            if is_damage(error) or _is_disguised(error, path):
                raise Damaged(str(error)) from None
            raise

    def _tables(self) -> tuple[str, ...]:
        """Return the SQL of the tables of the spool. Names of other objects may not even be text."""
        rows = self._db.execute(f"SELECT sql FROM sqlite_schema WHERE type='table' AND name IN {TABLES} ORDER BY rowid")  # noqa: S608
        return tuple(sql for (sql,) in rows)

    def _objects(self) -> int:
        return self._number("SELECT count(*) FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")

    def _refuse_foreign(self) -> bool:
        is_ours = self._number("PRAGMA application_id") == APPLICATION_ID
        if not is_ours and self._objects() and self._tables() != SCHEMA:
            raise_configuration_error("the file is the SQLite database of another program; choose another path")
        return is_ours

    def _drop_foreign(self) -> None:
        """Drop triggers and indexes that another program added to the tables of the spool: they can change writes.

        Its tables and views have no effect and stay.
        """
        found = self._db.execute(
            "SELECT type, name FROM sqlite_schema WHERE type IN ('trigger', 'index') AND name NOT LIKE 'sqlite_%'"  # noqa: S608
            f" AND lower(tbl_name) IN {TABLES}"
        ).fetchall()
        for kind, name in found:
            quoted = name.replace('"', '""')
            self._db.execute(f'DROP {kind} "{quoted}"')

    def _check_or_make(self) -> None:
        if not self._objects() and not self._number("PRAGMA user_version"):
            for statement in SCHEMA:
                self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version={VERSION}")
            self.set_salt(os.urandom(16))
            return
        is_ours = self._refuse_foreign()
        version = self._number("PRAGMA user_version")
        if version > VERSION:
            raise_configuration_error(
                f"the spool was written by a newer version of mixpanel-async (schema {version}, supported: {VERSION});"
                " upgrade the package"
            )
        if not is_ours or self._tables() != SCHEMA or len(self.salt) != 16:
            raise Damaged("its tables are not the tables of a spool")

    def _check_schema_again(self) -> None:
        if self._number("PRAGMA schema_version") != self._schema_version:
            # Another program has just changed the tables, or added objects to them.
            self._check_or_make()
            self._drop_foreign()
            self._schema_version = self._number("PRAGMA schema_version")

    def _check_pages(self) -> None:
        if self._number("PRAGMA page_count") * self._page_bytes > _CHECK_UP_TO_BYTES:
            return
        if self.find_damage(1):
            raise Damaged("SQLite's check found damage")

    def find_damage(self, limit: int) -> list[str]:
        """Return the errors found by SQLite's check, about `limit` of them."""
        # SQLite may be unable to check the objects of other programs.
        parts = TABLE_NAMES if self._objects() > len(SCHEMA) else (limit,)
        found = [str(text) for part in parts for (text,) in self._db.execute(f"PRAGMA quick_check({part})")]
        return [text for text in found if text != "ok"]

    def _one(self, sql: str, *values: object) -> object:
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def _number(self, sql: str, *values: object) -> int:
        value = self._one(sql, *values)
        return value if isinstance(value, int) else 0

    @property
    def salt(self) -> bytes:
        """Random key for the project keys of this file."""
        salt = self._one("SELECT value FROM meta WHERE name='salt'")
        return salt if isinstance(salt, bytes) else b""

    def set_salt(self, salt: bytes) -> None:
        """Set the salt. Recovered rows keep their project keys if the salt is copied too."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('salt', ?)", (salt,))

    def project_key(self, token: str) -> bytes:
        """Return the keyed hash that identifies a project in this file without revealing its token."""
        return hashlib.blake2b(token.encode(), key=self.salt, digest_size=16).digest()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction. Take the write lock at the start, so that no later statement waits for it."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._schema_version:
                self._check_schema_again()
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back after some errors.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read one consistent state of the file while other connections write."""
        is_first = not self._db.in_transaction
        if is_first:
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            if is_first and self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def add_owner(self, project: bytes, born: float, *, above: int = 0) -> int:
        """Add an owner with a number never used before and larger than `above`. Call it within a transaction."""
        last = self._number("SELECT seq FROM sqlite_sequence WHERE name='owners'")
        owner = max(last, above) + 1
        self._db.execute("INSERT INTO owners (id, project, born) VALUES (?, ?, ?)", (owner, project, born))
        return owner

    def owners(self) -> list[tuple[int, bytes, float]]:
        return self._db.execute("SELECT id, project, born FROM owners ORDER BY id").fetchall()

    def remove_owner(self, owner: int) -> None:
        self._db.execute("DELETE FROM owners WHERE id=?", (owner,))

    def insert(self, rows: Sequence[Row]) -> None:
        """Insert rows with few statements: after each one, another thread may hold the GIL for a long time."""
        at = 0
        while at < len(rows):
            # Powers of two or the maximum, so that SQLite compiles few different statements.
            size = min(_ROWS_PER_STATEMENT, 1 << ((len(rows) - at).bit_length() - 1))
            if len(rows) - at >= _ROWS_PER_STATEMENT:
                size = _ROWS_PER_STATEMENT
            values = [value for row in rows[at : at + size] for value in row]
            self._db.execute(f"INSERT INTO records VALUES {','.join(['(?,?,?)'] * size)}", values)  # noqa: S608
            at += size

    def delete(self, ids: Iterable[int]) -> None:
        for first, last in id_ranges(ids):
            self._db.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", (first, last))

    def mark(self, ids: Iterable[int], state: int) -> None:
        for first, last in id_ranges(ids):
            self._db.execute("UPDATE records SET state=? WHERE id BETWEEN ? AND ?", (state, first, last))

    def add_dead_letters(self, project: bytes, letters: Sequence[DeadLetter], died: float, keep: int) -> None:
        """Add dead letters. Delete the oldest beyond `keep`."""
        self._db.executemany(
            "INSERT INTO dead (project, lane, state, reason, message, died, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (project, letter.lane, letter.state, letter.reason, letter.message, died, letter.body)
                for letter in letters[-keep:]
                if keep
            ],
        )
        self._db.execute(
            "DELETE FROM dead WHERE id <= (SELECT id FROM dead ORDER BY id DESC LIMIT 1 OFFSET ?)", (keep,)
        )

    def present(self, ids: Iterable[int]) -> set[int]:
        """Return the ids of those rows that exist."""
        found: set[int] = set()
        for span in id_ranges(ids):
            found.update(
                number for (number,) in self._db.execute("SELECT id FROM records WHERE id BETWEEN ? AND ?", span)
            )
        return found

    def sizes(self, owner: int, lane: int) -> tuple[int, int]:
        """Return the number of rows an owner has in a lane, and their bytes."""
        low = lane_start(owner, lane)
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM records WHERE id > ? AND id <= ?",
            (low, low + (1 << SEQUENCE_BITS) - 1),
        ).fetchone()
        return int(row[0]), int(row[1])

    def sending(self, owner: int) -> list[Row]:
        """Return the rows of an owner whose request has started and whose outcome is unknown."""
        return self._db.execute(
            "SELECT id, state, body FROM records WHERE id > ? AND id < ? AND state = ?",
            (lane_start(owner, 0), lane_start(owner + 1, 0), SENDING),
        ).fetchall()

    def read(self, after: int, last: int, *, max_records: int, max_bytes: int) -> list[Row]:
        """Return the first rows of a range, at least one if there is any.

        Args:
            after: id before the range.
            last: last id of the range.
            max_records: maximum number of rows.
            max_bytes: maximum size of the bodies. A larger first row is returned alone.
        """
        # Another process may purge rows between the two statements.
        with self.snapshot():
            return self._read(after, last, max_records, max_bytes)

    def _read(self, after: int, last: int, max_records: int, max_bytes: int) -> list[Row]:
        # One result row for all records: each step of a statement may give the GIL to a busy thread.
        listing = self._one(
            "SELECT group_concat(id || ' ' || state || ' ' || length(body)) FROM"
            " (SELECT id, state, body FROM records WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)",
            after,
            last,
            max_records,
        )
        if not isinstance(listing, str):
            return []
        heads: list[tuple[int, int, int]] = []
        total = 0
        for text in listing.split(","):
            try:
                number, state, size = map(int, text.split())
            except ValueError:
                raise Damaged("a row has a malformed id, state or size") from None
            total += size
            if heads and total > max_bytes:
                break
            heads.append((number, state, size))
        bodies = self._one(
            "SELECT CAST(group_concat(CAST(body AS TEXT), '') AS BLOB) FROM"
            " (SELECT body FROM records WHERE id BETWEEN ? AND ? ORDER BY id)",
            heads[0][0],
            heads[-1][0],
        )
        rows: list[Row] = []
        at = 0
        whole = bodies if isinstance(bodies, bytes) else b""
        for number, state, size in heads:
            rows.append((number, state, whole[at : at + size]))
            at += size
        if at != len(whole):
            raise Damaged("the bodies of rows do not have the expected size")
        return rows

    def used_bytes(self) -> int:
        """Return the bytes in use, without free pages."""
        return (self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")) * self._page_bytes

    def dead_letter_count(self) -> int:
        """Return the number of dead letters."""
        return self._number("SELECT count(*) FROM dead")

    def restore_dead(self, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert dead letters of another file unchanged."""
        self._db.executemany(
            "INSERT INTO dead (project, lane, state, reason, message, died, body) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
        )

    def checkpoint(self) -> None:
        """Move the contents of the log into the file and truncate the log."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def shrink(self) -> bool:
        """Return some free pages to the file system if most pages are free. Return whether to continue."""
        if not self._is_mostly_free():
            return False
        # `execute` would stop after the first page; only `executescript` runs the pragma to its end.
        self._db.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_TRANSACTION})")
        if self._is_mostly_free():
            return True
        self.checkpoint()
        return False

    def _is_mostly_free(self) -> bool:
        return self._number("PRAGMA freelist_count") * 2 > self._number("PRAGMA page_count")

    def close(self) -> None:
        self._db.close()


def id_ranges(ids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Group ids into ranges. Yield the first and last id of each."""
    for _, group in groupby(enumerate(sorted(ids)), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        yield numbers[0], numbers[-1]


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that the contents of the file are damaged, as opposed to a failing disk."""
    if isinstance(error, sqlite3.OperationalError):
        return "decode" in str(error)
    # A name that is not UTF-8 raises no sqlite3 error.
    return isinstance(error, (Damaged, sqlite3.DatabaseError, UnicodeDecodeError))


def _is_disguised(error: BaseException, path: Path) -> bool:
    """Return whether damage makes a writable file look read-only or of an unknown format."""
    if not isinstance(error, sqlite3.OperationalError):
        return False
    is_writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return "unsupported file format" in str(error) or ("readonly" in str(error) and is_writable)


def is_full(error: BaseException, path: Path) -> bool:
    """Return whether an error means that the disk or the file is full."""
    if not isinstance(error, sqlite3.OperationalError):
        return False
    return "full" in str(error) or ("I/O" in str(error) and files.has_no_room(path))
