"""Tables of the spool, the objects that other programs add to its file, and damage."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from .._model.errors import raise_configuration_error
from . import files

APPLICATION_ID: Final = 0x6D786173
VERSION: Final = 1
# Larger files are opened without SQLite's check, which takes seconds for each GB.
_CHECK_UP_TO_BYTES: Final = 256 * 1024 * 1024

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


class Damaged(Exception):  # noqa: N818  internal signal, never raised to users
    """The file is not a usable spool."""


class Connection:
    """Connection whose tables are those of a spool. The subclass opens `_db` and sets `_page_bytes`."""

    _db: sqlite3.Connection
    _page_bytes: int
    # Version of the list of objects when it was last checked; 0 before, and for other kinds of connections.
    _schema_version = 0

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


def is_damage(error: BaseException) -> bool:
    """Return whether an error means that the contents of the file are damaged, as opposed to a failing disk."""
    if isinstance(error, sqlite3.OperationalError):
        return "decode" in str(error)
    # A name that is not UTF-8 raises no sqlite3 error.
    return isinstance(error, (Damaged, sqlite3.DatabaseError, UnicodeDecodeError))


def is_disguised(error: BaseException, path: Path) -> bool:
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
