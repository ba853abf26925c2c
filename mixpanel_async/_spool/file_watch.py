"""Notices harm to the files of an open spool: moved, replaced, truncated or overwritten, with the log or without it.

SQLite does not notice it: it goes on writing to deleted files, and trusts pages that it has in memory. So the files are
compared with their last known state directly before and after each commit.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, NamedTuple

from .._model.errors import ConfigurationError
from .files import inode_of, make_private, with_log_files

# Start of the log that never changes: magic number, version and page size.
_HEADER_BYTES: Final = 12

_PRIVATE: Final = 0o600

_State = tuple[int, int, int, int, int]
"""Device, inode, size, time of the last change and permissions of a file; zeros if it is missing."""
_MISSING: Final[_State] = (0, 0, 0, 0, 0)


class Files(NamedTuple):
    """State of the database and of its log at one moment."""

    database: _State
    log: _State


class FileWatch:
    """State of the files of an open database.

    Args:
        path: database file.
        log_limit: SQLite may truncate the log to this size.
    """

    def __init__(self, path: Path, log_limit: int) -> None:
        self._path = path
        self._names = [os.fspath(name) for name in with_log_files(path)[:3]]
        self._log_limit = log_limit
        self._handle = -1
        self._header = b""
        # SQLite locks the database and its shared memory, but not the log. So it may be opened and closed here.
        with contextlib.suppress(FileNotFoundError):
            self._handle = os.open(self._names[1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._header = self._read_header()
        self._index_inode = inode_of(self._names[2])
        self._known = self.look()

    @property
    def inode(self) -> int:
        """Inode of the database."""
        return self._known.database[1]

    def look(self) -> Files:
        """Return the present state."""
        database = _state(self._names[0])
        if database[4] not in {_PRIVATE, 0}:
            with contextlib.suppress(ConfigurationError):
                make_private(self._path)
        return Files(database, _state(self._names[1]) if self._handle >= 0 else _MISSING)

    def note(self, found: Files | None = None) -> None:
        """Take this state, or the present one, as the known one."""
        self._known = found or self.look()

    def find_loss(self, found: Files, *, may_be_empty: bool) -> str:
        """Return what happened to the files if they are not those that were opened; empty if they are.

        Args:
            found: present state.
            may_be_empty: whether another client may have emptied the log, by moving its contents into the database.
        """
        if found.database[:2] != self._known.database[:2]:
            return "the spool file was deleted or replaced"
        if self._handle >= 0 and (
            found.log[:2] != self._known.log[:2]
            or inode_of(self._names[2]) != self._index_inode
            or not (self._read_header() == self._header or (may_be_empty and found.log[2] == 0))
        ):
            return "the log of the spool was deleted, replaced or overwritten"
        return ""

    def is_changed(self, found: Files) -> bool:
        """Return whether another program has written to a file or truncated it."""
        return found != self._known

    def is_changed_by_others(self, found: Files) -> bool:
        """Return whether more has changed than a commit of this connection changes: it only adds to the log."""
        if self._handle < 0:
            return False
        known = self._known
        return found.database[:4] != known.database[:4] or found.log[2] < min(known.log[2], self._log_limit)

    def _read_header(self) -> bytes:
        return os.pread(self._handle, _HEADER_BYTES, 0)

    def close(self) -> None:
        """Close the log."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _state(path: str) -> _State:
    try:
        found = os.stat(path)
    except OSError:
        return _MISSING
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode & 0o777
