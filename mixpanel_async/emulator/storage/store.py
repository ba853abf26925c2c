"""Storage of a project in one SQLite file. The only module of the emulator that uses SQLite.

The changes of a request are written in one transaction before the request is answered. Requests that arrive during a
write share the next transaction. With `synchronous=NORMAL`, an answered request survives the death of the process by
any signal. A power failure may lose the latest requests, but does not damage the file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast, final, get_args

import orjson

from mixpanel_async._model.config import IdMerge
from mixpanel_async.identity.results import IdentityResult, Outcome, Reason
from mixpanel_async.identity.systems import Link

from ..project.change_set import ChangeSet, EventRow, IdentityRow
from ..project.project import IDENTITY_LOG_LIMIT

FILE_NAME: Final = "emulator.sqlite3"
LOCK_NAME: Final = "emulator.lock"

_VERSION: Final = 1
_APPLICATION: Final = 0x6D786D75
_FILE_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")
_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, name TEXT NOT NULL, person TEXT NOT NULL, payload BLOB NOT NULL,
    endpoint TEXT NOT NULL, arrived REAL NOT NULL
);
CREATE TABLE identity_log (
    seq INTEGER PRIMARY KEY, name TEXT NOT NULL, payload BLOB NOT NULL, outcome TEXT NOT NULL,
    reason TEXT, description TEXT NOT NULL, kept TEXT, absorbed TEXT
);
CREATE TABLE links (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, verb TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, kept TEXT
);
CREATE TABLE profiles (person TEXT PRIMARY KEY, properties BLOB NOT NULL);
CREATE TABLE groups (
    group_key TEXT NOT NULL, group_id TEXT NOT NULL, properties BLOB NOT NULL, PRIMARY KEY (group_key, group_id)
);
"""
_TABLES: Final = ("events", "identity_log", "links", "profiles", "groups")

_log = logging.getLogger(__name__)


class StoreError(Exception):
    """Changes cannot be written to disk. The message states the reason."""


class _DamagedFileError(Exception):
    """The file contains data that this module did not write."""


@final
class ProjectStore:
    """Directory that stores one project, for one emulator at a time.

    An unreadable file is renamed: its name gets the suffix `.corrupt-1`, `.corrupt-2` and so on. A warning is logged,
    and the project starts empty.

    Args:
        directory: directory of the project. It is created, with access for its owner only, if it does not exist.
        id_merge: ID merge system of the project. It cannot change once the file exists.

    Raises:
        OSError: if the directory or the file cannot be used, or another emulator uses it.
        ValueError: if the file was written by a later version, or for another ID merge system.
    """

    def __init__(self, directory: Path, id_merge: str) -> None:
        self.changes = ChangeSet()
        """Changes of the project not yet written. Guarded by the lock passed to `flush`."""
        self._unwritten: list[ChangeSet] = []
        self._write_lock = threading.Lock()
        self._path = directory / FILE_NAME
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db: sqlite3.Connection | None = None
        self._next_number = 1
        self._oldest_number = 1
        self._saved = ChangeSet()
        self._lock_file = _lock_directory(directory / LOCK_NAME)
        try:
            self._open_or_replace(id_merge)
        except BaseException:
            self._release_lock()
            raise

    def _open_or_replace(self, id_merge: str) -> None:
        try:
            self._open(id_merge)
        # If text in the file is damaged, decoding the error message may fail as well.
        except (sqlite3.Error, UnicodeError, _DamagedFileError) as error:
            if isinstance(error, sqlite3.Error) and _is_access_error(error):
                raise OSError(f"cannot open {self._path}: {error}") from error
            self._rename_corrupt_file(error)
            try:
                self._open(id_merge)
            except sqlite3.Error as second:
                raise OSError(f"cannot create {self._path}: {second}") from second

    @property
    def has_unwritten_changes(self) -> bool:
        """Whether an earlier write failed and its changes are still to be written."""
        return bool(self._unwritten)

    def _release_lock(self) -> None:
        lock_file, self._lock_file = self._lock_file, None
        if lock_file is not None:
            os.close(lock_file)

    def take_saved(self) -> ChangeSet:
        """Return the data found on disk at the start, once, so that it is not kept in memory twice."""
        saved, self._saved = self._saved, ChangeSet()
        return saved

    def flush(self, lock: threading.Lock) -> None:
        """Write the pending changes. Return once all changes made before the call are on disk.

        Args:
            lock: lock that guards `changes`. The caller must not hold it.

        Raises:
            StoreError: if the changes cannot be written, or the store is closed. The next call tries again.
        """
        with self._write_lock:
            with lock:
                taken = self.changes.take()
            if self._db is None:
                raise StoreError("the emulator is closed; create a new one for this data directory")
            if taken:
                self._unwritten.append(taken)
            if self._unwritten:
                try:
                    self._write(self._db)
                except sqlite3.Error as error:
                    raise StoreError(f"the emulator cannot write to its data directory: {error}") from error

    def close(self, lock: threading.Lock) -> None:
        """Write the pending changes and release the file. Does nothing if the store is closed.

        Changes that cannot be written are discarded: their requests have been answered as failed.

        Args:
            lock: lock that guards `changes`. The caller must not hold it.
        """
        with contextlib.suppress(StoreError):
            self.flush(lock)
        with self._write_lock:
            db, self._db = self._db, None
            if db is not None:
                db.close()
            self._release_lock()

    def _open(self, id_merge: str) -> None:
        if self._path.is_symlink():
            raise OSError(f"{self._path} is a symbolic link")
        if not self._path.exists():
            # SQLite would create the file readable for all users. Its other files get their mode from this one.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        self._path.chmod(0o600)
        db = sqlite3.connect(self._path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._prepare(db, id_merge)
            self._saved = _read_all(db)
            self._next_number, self._oldest_number = _event_bounds(db)
        except sqlite3.OperationalError as error:
            db.close()
            if "locked" in str(error):
                raise OSError(f"{self._path} is in use by another emulator") from error
            raise
        except BaseException:
            db.close()
            raise
        self._db = db

    def _prepare(self, db: sqlite3.Connection, id_merge: str) -> None:
        for pragma in ("locking_mode=EXCLUSIVE", "trusted_schema=OFF", "cell_size_check=ON"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        # The first write takes the lock, which is held until the file is closed.
        db.execute("BEGIN IMMEDIATE")
        version, application = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
        )
        if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in filter(str.strip, _SCHEMA.split(";")):
                db.execute(statement)
            db.execute("INSERT INTO meta VALUES ('id_merge', ?)", (id_merge,))
            db.execute(f"PRAGMA application_id={_APPLICATION}")
            db.execute(f"PRAGMA user_version={_VERSION}")
        elif application != _APPLICATION:
            raise _DamagedFileError("it is not a file of the emulator")
        elif version > _VERSION:
            raise ValueError(f"{self._path} was written by a later version of mixpanel-async; upgrade mixpanel-async")
        else:
            kept = db.execute("SELECT value FROM meta WHERE name = 'id_merge'").fetchone()
            if kept is None or kept[0] not in {each.value for each in IdMerge}:
                raise _DamagedFileError("it contains no valid id_merge")
            if kept[0] != id_merge:
                raise ValueError(f"{self._path} holds a project with id_merge={kept[0]!r}, not {id_merge!r}")
        db.execute("COMMIT")
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "journal_size_limit=16777216"):
            db.execute(f"PRAGMA {pragma}").fetchall()

    def _rename_corrupt_file(self, error: Exception) -> None:
        number = 1
        while any(_with_suffix(self._path, f"{end}.corrupt-{number}").exists() for end in _FILE_SUFFIXES):
            number += 1
        for end in _FILE_SUFFIXES:
            source = _with_suffix(self._path, end)
            if source.exists():
                source.rename(_with_suffix(self._path, f"{end}.corrupt-{number}"))
        renamed = _with_suffix(self._path, f".corrupt-{number}")
        # SQLite quotes text that it cannot decode, and personal data must not be logged.
        reason = "it contains invalid UTF-8" if "decode" in str(error).lower() else error
        _log.warning("emulator data file is unreadable (%s); renamed to %s, starting empty", reason, renamed)

    def _write(self, db: sqlite3.Connection) -> None:
        following, oldest = self._next_number, self._oldest_number
        db.execute("BEGIN IMMEDIATE")
        try:
            for changes in self._unwritten:
                if changes.cleared:
                    for table in _TABLES:
                        db.execute(f"DELETE FROM {table}")  # noqa: S608  a constant
                    oldest = following
                db.executemany(
                    "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", _numbered_rows(changes.event_rows, following)
                )
                following += len(changes.event_rows)
                if changes.events_removed:
                    oldest += changes.events_removed
                    db.execute("DELETE FROM events WHERE seq < ?", (oldest,))
                _write_identities(db, changes)
                _write_profiles(db, changes)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._next_number, self._oldest_number = following, oldest
        self._unwritten.clear()


def _lock_directory(path: Path) -> int | None:
    """Lock a directory until the store or the process ends.

    SQLite's lock is not enough: POSIX releases it as soon as any code in the process closes the file.

    Raises:
        OSError: if another emulator holds the lock, in this process or another.
    """
    if sys.platform == "win32":
        # On Windows, SQLite's lock belongs to the open file and is sufficient.
        return None
    import fcntl  # noqa: PLC0415  not available on Windows

    lock_file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock_file)
        raise OSError(f"{path.parent} is in use by another emulator") from error
    return lock_file


def _is_access_error(error: sqlite3.Error) -> bool:
    """Return whether an error concerns access to the file and not its content."""
    words = ("unable to open", "disk i/o", "is full", "readonly", "locked", "out of memory", "denied")
    return any(word in str(error).lower() for word in words)


def _numbered_rows(rows: list[EventRow], following: int) -> Iterator[tuple[Any, ...]]:
    for seq, (name, person, payload, (endpoint, arrived)) in enumerate(rows, following):
        yield seq, name, person, payload, endpoint, arrived


def _write_identities(db: sqlite3.Connection, changes: ChangeSet) -> None:
    db.executemany(
        "INSERT INTO links (at, verb, first, second, kept) VALUES (?, ?, ?, ?, ?)",
        ((at, link.verb, link.first, link.second, link.kept) for at, link in changes.links),
    )
    if changes.identity_rows:
        db.executemany(
            "INSERT INTO identity_log (name, payload, outcome, reason, description, kept, absorbed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (name, payload, result.outcome, result.failure_code, result.description, result.kept, result.absorbed)
                for name, payload, result in changes.identity_rows
            ),
        )
        db.execute(
            "DELETE FROM identity_log WHERE seq <= (SELECT max(seq) FROM identity_log) - ?", (IDENTITY_LOG_LIMIT,)
        )


def _write_profiles(db: sqlite3.Connection, changes: ChangeSet) -> None:
    for person, properties in changes.profiles.items():
        if properties is None:
            db.execute("DELETE FROM profiles WHERE person = ?", (person,))
        else:
            db.execute("INSERT OR REPLACE INTO profiles VALUES (?, ?)", (person, orjson.dumps(properties)))
    for (key, group_id), properties in changes.groups.items():
        if properties is None:
            db.execute("DELETE FROM groups WHERE group_key = ? AND group_id = ?", (key, group_id))
        else:
            db.execute("INSERT OR REPLACE INTO groups VALUES (?, ?, ?)", (key, group_id, orjson.dumps(properties)))


def _event_bounds(db: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of the next event and of the oldest event stored."""
    oldest, latest = db.execute("SELECT min(seq), max(seq) FROM events").fetchone()
    return (1, 1) if latest is None else (latest + 1, oldest)


def _read_all(db: sqlite3.Connection) -> ChangeSet:
    saved = ChangeSet()
    for name, person, payload, endpoint, arrived in db.execute(
        "SELECT name, person, payload, endpoint, arrived FROM events ORDER BY seq"
    ):
        _check_types((str, str, bytes, str, float), (name, person, payload, endpoint, arrived))
        _parse_object(payload)
        saved.event_rows.append((name, person, payload, (endpoint, arrived)))
    for row in db.execute(
        "SELECT name, payload, outcome, reason, description, kept, absorbed FROM identity_log ORDER BY seq"
    ):
        saved.identity_rows.append(_identity_row(row))
    for at, *link in db.execute("SELECT at, verb, first, second, kept FROM links ORDER BY seq"):
        _check_types((float, str, str, str), (at, *link[:3]))
        saved.links.append((at, Link(*link)))
    for person, properties in db.execute("SELECT person, properties FROM profiles ORDER BY rowid"):
        saved.profiles[person] = _parse_object(properties)
    for key, group_id, properties in db.execute("SELECT group_key, group_id, properties FROM groups ORDER BY rowid"):
        saved.groups[key, group_id] = _parse_object(properties)
    return saved


def _identity_row(row: tuple[Any, ...]) -> IdentityRow:
    name, payload, outcome, reason, description, kept, absorbed = row
    _check_types((str, bytes, str, str), (name, payload, outcome, description))
    if outcome not in get_args(Outcome):
        raise _DamagedFileError("it contains an unknown outcome")
    _parse_object(payload)
    known = None if reason is None else Reason.of_code(reason)
    result = IdentityResult(outcome=outcome, reason=known, description=description, kept=kept, absorbed=absorbed)
    return name, payload, result


def _parse_object(payload: Any) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _DamagedFileError("it contains invalid JSON") from error
    if type(value) is not dict:
        raise _DamagedFileError("it contains a JSON value that is not an object")
    return cast("dict[str, Any]", value)


def _check_types(types: tuple[type, ...], values: tuple[object, ...]) -> None:
    if tuple(map(type, values)) != types:
        raise _DamagedFileError("it contains a value of the wrong type")


def _with_suffix(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)
