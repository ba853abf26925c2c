"""A project on disk, in one SQLite file; the only module that knows SQLite.

What a request changed is written in one transaction before the request is answered; requests that come while one is
being written share the next. With `synchronous=NORMAL` an answered request survives the death of the process by any
signal; should the machine lose power, the last of them may be gone, but the file stays whole.
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

from ..project.change_set import ChangeSet, EventRow, IdentityRow
from ..project.identity import IdentityResult, Link, Outcome
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
    """What happened cannot be written down; the text says why."""


class _DamagedFileError(Exception):
    """The file holds something that this module has not written."""


@final
class ProjectStore:
    """A directory that holds one project, for one process at a time.

    A file that cannot be read is set aside under a name ending in `.corrupt-1`, `.corrupt-2` and so on; a warning in
    the log says so, and the project starts empty.

    Args:
        directory: made if it is not there, with access for its owner only.
        id_merge: the project's system of identities, which cannot change once there is a file.

    Raises:
        OSError: if the directory or the file cannot be used, or another process uses it.
        ValueError: if the file was written by a later version, or for another system of identities.
    """

    def __init__(self, directory: Path, id_merge: str) -> None:
        self.changes = ChangeSet()
        """Where the project notes its changes. Guarded by the lock that is given to `flush`."""
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
        # Of damaged text even the message of an error may be damaged.
        except (sqlite3.Error, UnicodeError, _DamagedFileError) as error:
            if isinstance(error, sqlite3.Error) and _is_access_error(error):
                raise OSError(f"{self._path} cannot be used: {error}") from error
            self._set_aside(error)
            try:
                self._open(id_merge)
            except sqlite3.Error as second:
                raise OSError(f"{self._path} cannot be used: {second}") from second

    @property
    def has_unwritten_changes(self) -> bool:
        """Whether something could not be written yet."""
        return bool(self._unwritten)

    def _release_lock(self) -> None:
        held, self._lock_file = self._lock_file, None
        if held is not None:
            os.close(held)

    def take_saved(self) -> ChangeSet:
        """What was on disk at the start. It is handed out once, so that it is not held in memory twice."""
        saved, self._saved = self._saved, ChangeSet()
        return saved

    def flush(self, lock: threading.Lock) -> None:
        """Write what is in the ledger. Returns once all that was there before the call is on disk.

        Args:
            lock: guards the ledger; must not be held by the caller.

        Raises:
            StoreError: if it cannot be written, or the store is closed. It stays noted, for the next call.
        """
        with self._write_lock:
            with lock:
                taken = self.changes.take()
            if self._db is None:
                raise StoreError("the emulator is closed")
            if taken:
                self._unwritten.append(taken)
            if self._unwritten:
                try:
                    self._write(self._db)
                except sqlite3.Error as error:
                    raise StoreError(f"the emulator cannot write to its data directory: {error}") from error

    def close(self, lock: threading.Lock) -> None:
        """Write what is in the ledger and let go of the file. Does nothing if that was done before.

        Nobody waits for what cannot be written any more: its requests were answered as failed.

        Args:
            lock: as for `flush`.
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
            # Made here, because SQLite would make it readable for everybody; its other files take their mode from it.
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
        # The lock is taken by the first write, and held until the file is closed.
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
            raise _DamagedFileError("it is not a file of the emulator's")
        elif version > _VERSION:
            raise ValueError(f"{self._path} was written by a later version of mixpanel-async")
        else:
            kept = db.execute("SELECT value FROM meta WHERE name = 'id_merge'").fetchone()
            if kept is None or kept[0] not in {each.value for each in IdMerge}:
                raise _DamagedFileError("it does not say how it joins ids")
            if kept[0] != id_merge:
                raise ValueError(f"{self._path} holds a project with id_merge={kept[0]!r}, not {id_merge!r}")
        db.execute("COMMIT")
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "journal_size_limit=16777216"):
            db.execute(f"PRAGMA {pragma}").fetchall()

    def _set_aside(self, error: Exception) -> None:
        number = 1
        while any(_with_suffix(self._path, f"{end}.corrupt-{number}").exists() for end in _FILE_SUFFIXES):
            number += 1
        for end in _FILE_SUFFIXES:
            source = _with_suffix(self._path, end)
            if source.exists():
                source.rename(_with_suffix(self._path, f"{end}.corrupt-{number}"))
        aside = _with_suffix(self._path, f".corrupt-{number}")
        # SQLite quotes what it cannot decode, and people's data has no place in a log.
        words = "it holds text that is no UTF-8" if "decode" in str(error).lower() else error
        _log.warning("the emulator's data cannot be read (%s); set aside as %s, starting empty", words, aside)

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
    """A lock that only the end of this process, or of the store, gives up.

    SQLite's own lock is not enough: POSIX drops it when anything in the process closes the file.

    Raises:
        OSError: if another emulator has it, in this process or another.
    """
    if sys.platform == "win32":
        # Locks belong to the open file there.
        return None
    import fcntl  # noqa: PLC0415  not everywhere

    held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(held)
        raise OSError(f"{path.parent} is in use by another emulator") from error
    return held


def _is_access_error(error: sqlite3.Error) -> bool:
    """Whether an error says that the file cannot be reached now, and nothing of what is in it."""
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
                (name, payload, said.outcome, said.reason, said.description, said.kept, said.absorbed)
                for name, payload, said in changes.identity_rows
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
    """Number of the next event, and of the oldest that is kept."""
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
        saved.identity_rows.append(_log_row(row))
    for at, *link in db.execute("SELECT at, verb, first, second, kept FROM links ORDER BY seq"):
        _check_types((float, str, str, str), (at, *link[:3]))
        saved.links.append((at, Link(*link)))
    for person, properties in db.execute("SELECT person, properties FROM profiles ORDER BY rowid"):
        saved.profiles[person] = _parse_object(properties)
    for key, group_id, properties in db.execute("SELECT group_key, group_id, properties FROM groups ORDER BY rowid"):
        saved.groups[key, group_id] = _parse_object(properties)
    return saved


def _log_row(row: tuple[Any, ...]) -> IdentityRow:
    name, payload, outcome, reason, description, kept, absorbed = row
    _check_types((str, bytes, str, str), (name, payload, outcome, description))
    if outcome not in get_args(Outcome):
        raise _DamagedFileError("it holds an outcome that there is not")
    _parse_object(payload)
    verdict = IdentityResult(outcome=outcome, reason=reason, description=description, kept=kept, absorbed=absorbed)
    return name, payload, verdict


def _parse_object(payload: Any) -> dict[str, Any]:
    try:
        value = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise _DamagedFileError("it holds text that is no JSON") from error
    if type(value) is not dict:
        raise _DamagedFileError("it holds a value that is no JSON object")
    return cast("dict[str, Any]", value)


def _check_types(types: tuple[type, ...], values: tuple[object, ...]) -> None:
    if tuple(map(type, values)) != types:
        raise _DamagedFileError("it holds a value of the wrong type")


def _with_suffix(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)
