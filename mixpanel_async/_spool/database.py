"""SQLite database of the spool: records as opaque bytes, their owners, and dead letters.

A row id is composed of owner, lane and a sequence number of that owner. All rows of one client and lane form one range
of ids, so that taking over a client rewrites no row and deleting a batch deletes a range.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Final

from .._model.errors import raise_configuration_error
from . import files
from .file_watch import Files, FileWatch
from .messages import SENDING, SEQUENCE_BITS
from .schema import Connection, Damaged, is_damage, is_disguised

LANE_BITS: Final = 3
OWNER_SHIFT: Final = LANE_BITS + SEQUENCE_BITS
LANES: Final = 1 << LANE_BITS

# A statement for each number of rows, which all fit into the cache of the sqlite3 module (128).
_ROWS_PER_STATEMENT: Final = 64
# Size of the write-ahead log after a checkpoint.
_MAX_LOG_BYTES: Final = 8 * 1024 * 1024
# The log is moved into the file after about as many bytes, which are estimated from the changes.
_CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
_BYTES_PER_COMMIT: Final = 5 * 4096
_BYTES_PER_DELETION: Final = 100
# SQLite refuses to grow the file beyond `max_bytes` times this factor. Clients enforce the exact limit; this one also
# holds when several clients write at the same time.
_HARD_CAP: Final = 1.1
# Pages returned to the file system in one transaction. SQLite may scan all free pages for each one and rewrites pages
# that it moves: gigabytes in one transaction would hold the lock for minutes and fill the log.
_PAGES_PER_TRANSACTION: Final = 32

Row = tuple[int, int, bytes]
"""Row id, state, body."""


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


class Database(Connection):
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

    # None until the connection is open, and for other kinds of connections.
    _watch: FileWatch | None = None
    # Version of the data after the last transaction of this connection, to notice those of others.
    _data_version = 0
    # Whether another client has written to the file recently.
    _is_shared = False
    # Estimated bytes written to the log since the last checkpoint.
    _bytes_in_log = 0

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
            # Other changes of the database are then made by other programs.
            self._db.execute("PRAGMA wal_autocheckpoint=0")
            self._data_version = self._number("PRAGMA data_version")
            self._watch = FileWatch(path, _MAX_LOG_BYTES)
        except BaseException as error:
            self._db.close()
            if is_damage(error) or is_disguised(error, path):
                raise Damaged(str(error)) from None
            raise

        self._expected_rows: Callable[[], Iterable[int]] = tuple

    def expect(self, rows: Callable[[], Iterable[int]]) -> None:
        """Set a function that returns the ids of rows that must be in the file, also if others change it."""
        self._expected_rows = rows

    @property
    def inode(self) -> int:
        return self._watch.inode if self._watch is not None else 0

    def notes(self, prefix: str) -> dict[str, object]:
        """Return the notes whose names begin with `prefix`, which ends with a space."""
        return dict(
            self._db.execute("SELECT name, value FROM meta WHERE name > ? AND name < ?", (prefix, prefix[:-1] + "!"))
        )

    def set_note(self, name: str, value: str | int) -> None:
        """Write a note. Earlier versions ignore notes that they do not know."""
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def remove_notes(self, names: Iterable[str]) -> None:
        self._db.executemany("DELETE FROM meta WHERE name=?", [(name,) for name in names])

    def project_key(self, token: str) -> bytes:
        """Return the keyed hash that identifies a project in this file without revealing its token."""
        return hashlib.blake2b(token.encode(), key=self.salt, digest_size=16).digest()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run a transaction. Take the write lock at the start, so that no later statement waits for it.

        Raises:
            Damaged: if the files were harmed, so that the transaction is not safe on disk.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self._schema_version:
                self._check_schema_again()
            yield
            self.check_files()
            self._db.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back after some errors.
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        if self._watch is not None:
            self._end_commit(self._watch)

    def _end_commit(self, watch: FileWatch) -> None:
        found = watch.look()
        if not self._is_shared and watch.is_changed_by_others(found):
            self._verify()
        # Another client may have written, and emptied the log, directly after this commit.
        self._raise_loss(watch, found, may_be_empty=found.log[2] == 0 and self._has_other_client())
        self._bytes_in_log += _BYTES_PER_COMMIT
        if self._bytes_in_log >= _CHECKPOINT_BYTES:
            self._bytes_in_log = 0
            # As after a failed checkpoint of SQLite itself, the log grows until one succeeds.
            with suppress(sqlite3.OperationalError):
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            found = watch.look()
        watch.note(found)

    def _has_other_client(self) -> bool:
        """Return whether another client has ever written to the file. Its changes cannot be distinguished from harm."""
        version, self._data_version = self._data_version, self._number("PRAGMA data_version")
        self._is_shared = self._is_shared or version != self._data_version
        return self._is_shared

    def _raise_loss(self, watch: FileWatch, found: Files, *, may_be_empty: bool) -> None:
        if loss := watch.find_loss(found, may_be_empty=may_be_empty):
            raise Damaged(loss)

    def check_files(self) -> None:
        """Check that only clients have changed the files since the last transaction.

        Raises:
            Damaged: if the files were harmed.
        """
        watch = self._watch
        if watch is not None and watch.is_changed(found := watch.look()):
            self._raise_loss(watch, found, may_be_empty=True)
            if not self._has_other_client():
                self._verify()
            watch.note()

    def watch_again(self) -> None:
        """Watch for harm again, until another client writes to the file."""
        version, self._data_version = self._data_version, self._number("PRAGMA data_version")
        self._is_shared = version != self._data_version

    def _verify(self) -> None:
        """Check the file without the pages that are in memory.

        Raises:
            Damaged: if it has damage, or rows are missing.
        """
        self._db.execute("PRAGMA shrink_memory")
        try:
            self._check_pages()
            expected = {*self._expected_rows()}
            is_missing = self.present(expected) != expected
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise
            raise Damaged(str(error)) from None
        if is_missing:
            raise Damaged("another program has changed the spool file")

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
        for at in range(0, len(rows), _ROWS_PER_STATEMENT):
            part = rows[at : at + _ROWS_PER_STATEMENT]
            self._db.execute(_insertion(len(part)), [value for row in part for value in row])
        self._bytes_in_log += sum([len(row[2]) for row in rows])

    def delete(self, ids: Iterable[int]) -> None:
        for first, last in id_ranges(ids):
            self._db.execute("DELETE FROM records WHERE id BETWEEN ? AND ?", (first, last))
            self._bytes_in_log += (last - first) * _BYTES_PER_DELETION

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

    def rows(self, ids: Iterable[int]) -> list[Row]:
        """Return those rows that exist."""
        sql = "SELECT id, state, body FROM records WHERE id BETWEEN ? AND ?"
        return [row for span in id_ranges(ids) for row in self._db.execute(sql, span)]

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
        self._bytes_in_log = 0
        if self._watch is not None:
            self._watch.note()

    def shrink(self) -> bool:
        """Return some free pages to the file system if most pages are free. Return whether to continue."""
        if not self._is_mostly_free():
            return False
        self.check_files()
        # `execute` would stop after the first page; only `executescript` runs the pragma to its end.
        self._db.executescript(f"PRAGMA incremental_vacuum({_PAGES_PER_TRANSACTION})")
        self._bytes_in_log += 2 * _PAGES_PER_TRANSACTION * self._page_bytes
        if self._watch is not None:
            self._end_commit(self._watch)
        if self._is_mostly_free():
            return True
        self.checkpoint()
        return False

    def _is_mostly_free(self) -> bool:
        return self._number("PRAGMA freelist_count") * 2 > self._number("PRAGMA page_count")

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._db.close()


@lru_cache(_ROWS_PER_STATEMENT)
def _insertion(rows: int) -> str:
    """Return the statement that inserts this number of rows."""
    return f"INSERT INTO records VALUES {','.join(['(?,?,?)'] * rows)}"  # noqa: S608


def id_ranges(ids: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Group ids into ranges. Yield the first and last id of each."""
    numbers = sorted({*ids})
    if numbers and numbers[-1] - numbers[0] == len(numbers) - 1:
        # The rows of a batch, in most cases.
        yield numbers[0], numbers[-1]
        return
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        part = [number for _, number in group]
        yield part[0], part[-1]
