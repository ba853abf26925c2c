"""The spool's SQLite database: rows of opaque bytes, who wrote them, and what became of those that died.

A row's number says whose it is and of which kind: owner, then lane, then a sequence of the owner's own. So what one
client left of one kind is one range, no row is ever rewritten to change hands, and taking a batch out is a range, too.
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

# More parameters in one statement than this an old SQLite does not take; 3 to a row.
_ROWS_PER_STATEMENT: Final = 300
# What the write-ahead log is cut back to after a checkpoint.
_MAX_LOG_BYTES: Final = 8 * 1024 * 1024
# The file may grow past its cap by this share before SQLite itself refuses: the exact bound is the client's, this one
# holds also against several clients that write at the same moment.
_HARD_CAP: Final = 1.1
# What one transaction gives back. SQLite may look through all that lies idle for each page, and writes anew what it
# moves: a file of gigabytes at once would hold the lock for minutes and make the log as large as itself.
_PAGES_PER_TRANSACTION: Final = 32
_CHECK_UP_TO_BYTES: Final = 256 * 1024 * 1024
# Stands in the stored bytes for the project's token as JSON has it. JSON never holds a raw control character.
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

Row = tuple[int, int, bytes]
"""Number, state, body."""


class Damaged(Exception):  # noqa: N818  a signal inside the package
    """The file is no spool that can be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A row for the table of dead letters."""

    lane: int
    state: int
    reason: str
    message: str
    body: bytes


def lane_start(owner: int, lane: int) -> int:
    """The number before the first row of an owner's lane."""
    return (owner << OWNER_SHIFT) | (lane << SEQUENCE_BITS)


def hide_token(body: bytes, token: bytes) -> bytes:
    """The bytes to store: the token is a credential, which has no place on disk."""
    return body.replace(token, _TOKEN_MARK)


def show_token(body: bytes, token: bytes) -> bytes:
    """The bytes to send."""
    return body.replace(_TOKEN_MARK, token)


class Database:
    """One connection. Use it from the thread that opened it.

    Args:
        path: the file, as `files.prepare` left it.
        is_new: whether the file is empty.
        max_bytes: cap of the file.
        wait: seconds to wait for another process's transaction.
        fsync: whether each commit survives a power failure.
        erase: whether what is deleted is overwritten wherever it lay, and not only where that costs nothing.

    Raises:
        Damaged: if what is there cannot be used and must be set aside.
        ConfigurationError: if it is somebody else's database, or a newer version's.
        sqlite3.Error: if the disk fails.
    """

    def __init__(
        self, path: Path, *, is_new: bool, max_bytes: int, wait: float, fsync: bool, erase: bool = False
    ) -> None:
        self.path = path
        self._db = sqlite3.connect(path, timeout=wait, isolation_level=None, cached_statements=64)
        try:
            self._db.execute("PRAGMA trusted_schema=OFF")
            self._db.execute("PRAGMA cell_size_check=ON")
            if is_new:
                # Only before the first page is written.
                self._db.execute("PRAGMA auto_vacuum=INCREMENTAL")
            else:
                # Nothing of what belongs to another program may be changed.
                self._refuse_foreign()
            mode = self._one("PRAGMA journal_mode=WAL")
            if mode != "wal":
                raise_configuration_error("the file system of the spool does not allow SQLite's write-ahead log")
            self._db.execute(f"PRAGMA synchronous={'FULL' if fsync else 'NORMAL'}")
            self._db.execute(f"PRAGMA journal_size_limit={_MAX_LOG_BYTES}")
            self._db.execute(f"PRAGMA secure_delete={'ON' if erase else 'FAST'}")
            self._page_bytes = self._number("PRAGMA page_size")
            self._db.execute(f"PRAGMA max_page_count={int(max_bytes * _HARD_CAP) // self._page_bytes}")
            with self.transaction():
                self._check_or_make()
                # Whether it can be written shows only when it is.
                self.set_salt(self.salt)
            self._check_pages()
            self.inode = files.inode_of(path)
        except BaseException as error:
            self._db.close()
            if is_damage(error) or _is_disguised(error, path):
                raise Damaged(str(error)) from None
            raise

    def _tables(self) -> tuple[str, ...]:
        rows = self._db.execute("SELECT sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY rowid")
        return tuple(sql for (sql,) in rows)

    def _refuse_foreign(self) -> bool:
        is_ours = self._number("PRAGMA application_id") == APPLICATION_ID
        if not is_ours and self._tables() not in {(), SCHEMA}:
            raise_configuration_error("the file of the spool is another program's SQLite database")
        return is_ours

    def _check_or_make(self) -> None:
        found = self._tables()
        if not found and not self._number("PRAGMA user_version"):
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
                f"the spool was written by a newer version of this package (schema {version}, known: {VERSION})"
            )
        if not is_ours or found != SCHEMA or len(self.salt) != 16:
            raise Damaged("its tables are not those of a spool")

    def _check_pages(self) -> None:
        if self._number("PRAGMA page_count") * self._page_bytes > _CHECK_UP_TO_BYTES:
            return
        if self._one("PRAGMA quick_check(1)") != "ok":
            raise Damaged("SQLite's check found damage")

    def _one(self, sql: str, *values: object) -> object:
        row = self._db.execute(sql, values).fetchone()
        return None if row is None else row[0]

    def _number(self, sql: str, *values: object) -> int:
        value = self._one(sql, *values)
        return value if isinstance(value, int) else 0

    @property
    def salt(self) -> bytes:
        """Keys the fingerprints of projects in this file."""
        salt = self._one("SELECT value FROM meta WHERE name='salt'")
        return salt if isinstance(salt, bytes) else b""

    def set_salt(self, salt: bytes) -> None:
        """Key the fingerprints with this: what was salvaged keeps its projects."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES ('salt', ?)", (salt,))

    def project_key(self, token: str) -> bytes:
        """What stands for a project in this file: rows are bound to it, and it tells nobody the token."""
        return hashlib.blake2b(token.encode(), key=self.salt, digest_size=16).digest()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. The write lock is taken at once, so that it is waited for only here."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            # After some errors SQLite has rolled back by itself.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See one state of the file, whatever others write meanwhile."""
        is_first = not self._db.in_transaction
        if is_first:
            self._db.execute("BEGIN")
        try:
            yield
        finally:
            if is_first and self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def add_owner(self, project: bytes, born: float, *, above: int = 0) -> int:
        """A number that no other client has or had, and larger than `above`. Within a transaction."""
        last = self._number("SELECT seq FROM sqlite_sequence WHERE name='owners'")
        owner = max(last, above) + 1
        self._db.execute("INSERT INTO owners (id, project, born) VALUES (?, ?, ?)", (owner, project, born))
        return owner

    def owners(self) -> list[tuple[int, bytes, float]]:
        return self._db.execute("SELECT id, project, born FROM owners ORDER BY id").fetchall()

    def remove_owner(self, owner: int) -> None:
        self._db.execute("DELETE FROM owners WHERE id=?", (owner,))

    def insert(self, rows: Sequence[Row]) -> None:
        """Add rows, many with each statement: between statements another thread may hold the interpreter for long."""
        at = 0
        while at < len(rows):
            # Sizes are powers of two or the largest, so that few statements are ever compiled.
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
        """Add dead letters, and drop the oldest beyond `keep`."""
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
        """Those of these rows that are there."""
        found: set[int] = set()
        for span in id_ranges(ids):
            found.update(
                number for (number,) in self._db.execute("SELECT id FROM records WHERE id BETWEEN ? AND ?", span)
            )
        return found

    def sizes(self, owner: int, lane: int) -> tuple[int, int]:
        """How many rows an owner has in a lane, and their bytes."""
        low = lane_start(owner, lane)
        row = self._db.execute(
            "SELECT count(*), coalesce(sum(length(body)), 0) FROM records WHERE id > ? AND id <= ?",
            (low, low + (1 << SEQUENCE_BITS) - 1),
        ).fetchone()
        return int(row[0]), int(row[1])

    def sending(self, owner: int) -> list[Row]:
        """Rows of an owner whose request had begun and whose end is not known."""
        return self._db.execute(
            "SELECT id, state, body FROM records WHERE id > ? AND id < ? AND state = ?",
            (lane_start(owner, 0), lane_start(owner + 1, 0), SENDING),
        ).fetchall()

    def read(self, after: int, last: int, *, max_records: int, max_bytes: int) -> list[Row]:
        """The first rows of a range, at least one if there is any.

        Args:
            after: the number before the range.
            last: its last number.
            max_records: rows at most.
            max_bytes: bytes at most, but for a first row that is larger.
        """
        # Rows may be purged by another process at any moment.
        with self.snapshot():
            return self._read(after, last, max_records, max_bytes)

    def _read(self, after: int, last: int, max_records: int, max_bytes: int) -> list[Row]:
        # One row for all: each step of a statement may hand the interpreter to a busy thread.
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
                raise Damaged("a row is not what it should be") from None
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
            raise Damaged("rows do not have the size that they say")
        return rows

    def used_bytes(self) -> int:
        """What is in use of the file, pages that wait to be used again aside."""
        return (self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")) * self._page_bytes

    def restore_dead(self, rows: Sequence[tuple[object, ...]]) -> None:
        """Add dead letters of another file, as they were."""
        self._db.executemany(
            "INSERT INTO dead (project, lane, state, reason, message, died, body) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
        )

    def checkpoint(self) -> None:
        """Move what the log holds into the file, and empty it."""
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def shrink(self) -> bool:
        """Give some pages back to the disk if more lie idle than are in use. Returns whether to go on."""
        if not self._is_mostly_idle():
            return False
        # As a script, which alone steps through all of it.
        self._db.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_TRANSACTION})")
        if self._is_mostly_idle():
            return True
        self.checkpoint()
        return False

    def _is_mostly_idle(self) -> bool:
        return self._number("PRAGMA freelist_count") * 2 > self._number("PRAGMA page_count")

    def close(self) -> None:
        self._db.close()


def id_ranges(ids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Numbers as ranges: first and last of each."""
    for _, group in groupby(enumerate(sorted(ids)), key=lambda pair: pair[1] - pair[0]):
        numbers = [number for _, number in group]
        yield numbers[0], numbers[-1]


def is_damage(error: BaseException) -> bool:
    """Whether an error says that the file holds something else than it should, and not that the disk fails."""
    if isinstance(error, sqlite3.OperationalError):
        return "decode" in str(error)
    # A name that is no text is not even an error of SQLite's.
    return isinstance(error, (Damaged, sqlite3.DatabaseError, UnicodeDecodeError))


def _is_disguised(error: BaseException, path: Path) -> bool:
    """Whether a file that could be written says of itself that it may not, or is of a format that there is not."""
    if not isinstance(error, sqlite3.OperationalError):
        return False
    is_writable = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)
    return "unsupported file format" in str(error) or ("readonly" in str(error) and is_writable)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room."""
    return isinstance(error, sqlite3.OperationalError) and "full" in str(error)
