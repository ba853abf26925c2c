"""The files of a spool: nobody else's to read, on a disk of this machine, and locked by whoever lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .._model.errors import SpoolError, raise_configuration_error

_PRIVATE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700
# SQLite's write-ahead log needs memory that all its users share, which these do not give.
# https://www.sqlite.org/wal.html, read 2026-11-22.
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "davfs"}
)
_REMOTE_FUSE: Final = ("fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.gcsfuse", "fuse.rclone", "fuse.davfs")
# Bytes at the start of a file that tell a text from a damaged database, which has zeros in its first hundred.
_LOOK: Final = 4096
_MOUNTS: Final = Path("/proc/self/mountinfo")


def prepare(path: Path) -> bool:
    """Make the place ready: folder and file are there, private, and no link.

    Returns:
        Whether the file is new or empty.

    Raises:
        ConfigurationError: if the place cannot hold a spool.
    """
    folder = path.parent
    if not folder.exists():
        if not folder.parent.is_dir():
            raise_configuration_error("the folder of the spool does not exist, nor the one above it")
        with _as_configuration_error("the folder of the spool cannot be made"):
            # Several processes may come at once.
            folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
    if is_remote(folder.resolve(), _mounts()):
        raise_configuration_error("the spool must lie on a disk of this machine, not on a network file system")
    with _as_configuration_error("the file of the spool cannot be made"), contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE))
    with _as_configuration_error("the files of the spool cannot be looked at"):
        size = _check_file(path).st_size
        for name in with_log_files(path)[1:]:
            with contextlib.suppress(FileNotFoundError):
                _check_file(name)
    return size == 0


def _check_file(path: Path) -> os.stat_result:
    """See to it that a file is regular and ours.

    It is not opened: to close it again would lift every lock that SQLite holds on it in this process.
    https://www.sqlite.org/howtocorrupt.html section 2.2, read 2026-11-22.
    """
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        raise_configuration_error("the path of the spool is a folder, not a regular file")
    if not stat.S_ISREG(status.st_mode):
        raise_configuration_error("the path of the spool is a link, or not a regular file")
    if status.st_uid != os.geteuid():
        raise_configuration_error("the file of the spool belongs to another user")
    return status


def make_private(path: Path) -> None:
    """Close the files of a spool to everybody else, once they are known to be that.

    Raises:
        ConfigurationError: if that cannot be done.
    """
    with _as_configuration_error("the files of the spool cannot be made private"):
        for name in with_log_files(path):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE(_check_file(name).st_mode) != _PRIVATE:
                    name.chmod(_PRIVATE)


def is_text(path: Path) -> bool:
    """Whether a file that is no database looks like something that a person wrote."""
    try:
        with path.open("rb") as file:
            start = file.read(_LOOK)
        # Its last letter may have been cut in two.
        return b"\0" not in start and bool(start[:-3].decode() if len(start) == _LOOK else start.decode())
    except (OSError, UnicodeDecodeError):
        return False


def with_log_files(path: Path) -> list[Path]:
    """The database and the two files that SQLite puts beside it."""
    return [path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")]


@contextlib.contextmanager
def _as_configuration_error(text: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise_configuration_error(f"{text} ({error.strerror or type(error).__name__})")


def _mounts() -> str:
    try:
        return _MOUNTS.read_text(errors="replace")
    except OSError:
        return ""


def is_remote(folder: Path, mounts: str) -> bool:
    """Whether a folder lies on a network file system.

    Args:
        folder: an absolute path without links.
        mounts: what Linux says of its mounts in `/proc/self/mountinfo`; empty elsewhere.
    """
    best, kind = "", ""
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = fields[4].replace("\\040", " ")
        inside = point == "/" or folder == Path(point) or Path(point) in folder.parents
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind in _REMOTE or kind.startswith(_REMOTE_FUSE)


class OwnerLock:
    """The right to send what one client wrote: a lock on a file, which the system lifts when its holder dies.

    It belongs to the open file and not to the process, so that two clients of one process exclude each other as well.
    """

    __slots__ = ("_handle", "_path")

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle

    @classmethod
    def acquire(cls, spool: Path, owner: int) -> OwnerLock | None:
        """Lock the file of an owner, which is made if it is missing. None if somebody else holds it."""
        path = _lock_path(spool, owner)
        while True:
            handle = _open_lock_file(path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever held it before may have taken the file away since it was opened here.
                is_current = os.fstat(handle).st_nlink > 0
            except BlockingIOError:
                os.close(handle)
                return None
            except BaseException:
                os.close(handle)
                raise
            if is_current:
                return cls(path, handle)
            os.close(handle)

    @staticmethod
    def is_held(spool: Path, owner: int) -> bool:
        """Whether an owner lives. Makes no file."""
        try:
            handle = os.open(_lock_path(spool, owner), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            # Whose it is cannot be told; nothing may be taken from an owner who might live.
            return True
        try:
            # Shared, so that two who ask do not take each other for the owner.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def release(self, *, remove: bool) -> None:
        """Give it up; `remove` when there is nothing left to claim."""
        if self._handle >= 0:
            if remove:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            # Closing alone would leave it locked for as long as a forked child has the file open as well.
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            self.close_without_unlock()

    def close_without_unlock(self) -> None:
        """Let go of the file without a word: in a forked child, the lock is the parent's."""
        if self._handle >= 0:
            with contextlib.suppress(OSError):
                os.close(self._handle)
            self._handle = -1


def _lock_path(spool: Path, owner: int) -> Path:
    return spool.with_name(f"{spool.name}-owner-{owner}")


def _open_lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE)
    except OSError as error:
        raise SpoolError(f"a lock file of the spool cannot be opened ({error.strerror})") from None


def inode_of(path: Path) -> int:
    """What tells one file from another at the same path; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def find_set_aside(path: Path, inode: int) -> Path | None:
    """Where a file has gone that was set aside."""
    start = path.name + ".corrupt-"
    for name in sorted(os.listdir(path.parent)):
        if name.startswith(start) and inode_of(path.with_name(name)) == inode:
            return path.with_name(name)
    return None


def set_aside(path: Path, stamp: int) -> Path:
    """Rename a damaged database and what lies beside it, so that a new one can take its place.

    Args:
        path: the database.
        stamp: seconds since 1970, for its new name.
    """
    number = 0
    while True:
        tail = f".corrupt-{stamp}" + (f"-{number}" if number else "")
        aside = path.with_name(path.name + tail)
        if not aside.exists():
            break
        number += 1
    # The log first: one that lies there without its database would be deleted by whoever opens a new one.
    for old, new in zip(reversed(with_log_files(path)), reversed(with_log_files(aside)), strict=True):
        with contextlib.suppress(FileNotFoundError):
            old.rename(new)
    return aside
