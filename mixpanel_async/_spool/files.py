"""Files of a spool: private, on a local disk, with one lock file for each live client."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .._model.errors import SpoolError, raise_configuration_error

# SQLite extends its shared memory by this many bytes.
_LEAST_ROOM: Final = 32 * 1024
_PRIVATE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700
# SQLite's write-ahead log needs shared memory, which network file systems do not provide.
# https://www.sqlite.org/wal.html, read 2026-11-22.
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "ceph", "glusterfs", "lustre", "davfs"}
)
_REMOTE_FUSE: Final = ("fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.gcsfuse", "fuse.rclone", "fuse.davfs")
# SQLite maps the index of its write-ahead log into memory and reserves its space by writing one byte in each 4096. On
# smaller blocks, and where each change of a page needs a new block, a full disk then kills the process with SIGBUS.
# https://github.com/sqlite/sqlite/blob/version-3.53.3/src/os_unix.c#L5159, read 2026-11-29.
_MAPPED_PAGE: Final = 4096
_COPY_ON_WRITE: Final = frozenset({"btrfs", "bcachefs"})
# Bytes read to distinguish a text file from a damaged database, which has zeros in its first hundred bytes.
_TEXT_SAMPLE: Final = 4096
_MOUNTS: Final = Path("/proc/self/mountinfo")


def prepare(path: Path) -> bool:
    """Create the directory and the file if they are missing, and check that they can hold a spool.

    Returns:
        Whether the file is new or empty.

    Raises:
        ConfigurationError: if the path cannot hold a spool.
    """
    folder = path.parent
    if not folder.exists():
        if not folder.parent.is_dir():
            raise_configuration_error(
                f"the directory {folder} does not exist, and its parent does not exist either; create the parent first"
            )
        with _as_configuration_error("cannot create the directory of the spool"):
            # Several processes may create it at the same time.
            folder.mkdir(mode=_PRIVATE_FOLDER, exist_ok=True)
    if is_remote(folder.resolve(), _mounts()):
        raise_configuration_error("the path is on a network file system; a spool needs a local disk")
    with _as_configuration_error("cannot create the spool file"), contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _PRIVATE))
    with _as_configuration_error("cannot examine the spool files"):
        size = _check_file(path).st_size
        for name in with_log_files(path)[1:]:
            with contextlib.suppress(FileNotFoundError):
                _check_file(name)
    return size == 0


def _check_file(path: Path) -> os.stat_result:
    """Check that a file is regular and belongs to this user.

    Do not open it: closing it again would release every lock that SQLite holds on it in this process.
    https://www.sqlite.org/howtocorrupt.html section 2.2, read 2026-11-22.
    """
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        raise_configuration_error("the path is a directory, not a regular file")
    if not stat.S_ISREG(status.st_mode):
        raise_configuration_error("the path is a symbolic link or not a regular file")
    if status.st_uid != os.geteuid():
        raise_configuration_error(f"the spool file belongs to another user (uid {status.st_uid})")
    return status


def make_private(path: Path) -> None:
    """Make the files of a spool readable by this user only.

    Raises:
        ConfigurationError: if the permissions cannot be changed.
    """
    with _as_configuration_error("cannot make the spool files private"):
        for name in with_log_files(path):
            with contextlib.suppress(FileNotFoundError):
                if stat.S_IMODE(_check_file(name).st_mode) != _PRIVATE:
                    name.chmod(_PRIVATE)


def is_text(path: Path) -> bool:
    """Return whether a file that is not a database looks like text."""
    try:
        with path.open("rb") as file:
            start = file.read(_TEXT_SAMPLE)
        # The sample may end within a multi-byte character.
        return b"\0" not in start and bool(start[:-3].decode() if len(start) == _TEXT_SAMPLE else start.decode())
    except (OSError, UnicodeDecodeError):
        return False


def with_log_files(path: Path) -> list[Path]:
    """Return the database and the files that SQLite adds to it."""
    return [path, *(path.with_name(path.name + end) for end in ("-wal", "-shm", "-journal"))]


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
    """Return whether a directory is on a network file system.

    Args:
        folder: absolute path without symbolic links.
        mounts: contents of `/proc/self/mountinfo` on Linux; empty on other systems.
    """
    kind = _file_system(folder, mounts)
    return kind in _REMOTE or kind.startswith(_REMOTE_FUSE)


def can_map(path: Path) -> bool:
    """Return whether SQLite may map a file beside this one into memory."""
    folder = path.parent.resolve()
    return is_mapping_safe(folder, os.statvfs(folder).f_frsize, _mounts())


def is_mapping_safe(folder: Path, block_bytes: int, mounts: str) -> bool:
    """Return whether writing to mapped files works in a directory also when its disk is full.

    Args:
        folder: absolute path without symbolic links.
        block_bytes: size of a block of its file system.
        mounts: contents of `/proc/self/mountinfo` on Linux; empty on other systems.
    """
    return block_bytes >= _MAPPED_PAGE and _file_system(folder, mounts) not in _COPY_ON_WRITE


def _file_system(folder: Path, mounts: str) -> str:
    """Return the type of the file system of a directory; empty if it is unknown."""
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
    return kind


class OwnerLock:
    """Exclusive right to send the rows of one owner: a file lock, released by the system when the process dies.

    The lock belongs to the open file and not to the process, so that two clients of one process exclude each other.
    """

    __slots__ = ("_handle", "_path")

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle

    @classmethod
    def acquire(cls, spool: Path, owner: int) -> OwnerLock | None:
        """Lock the file of an owner, created if it is missing. Return None if another client holds the lock."""
        path = _lock_path(spool, owner)
        while True:
            handle = _open_lock_file(path)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The previous holder may have deleted the file since it was opened here.
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
        """Return whether the client of an owner is alive. Create no file."""
        try:
            handle = os.open(_lock_path(spool, owner), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            # Unknown: treat the owner as alive, so that no row is sent twice.
            return True
        try:
            # A shared lock, so that two processes that ask do not take each other for the owner.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def release(self, *, remove: bool) -> None:
        """Unlock. `remove` deletes the file: the owner has no rows left."""
        if self._handle >= 0:
            if remove:
                with contextlib.suppress(OSError):
                    self._path.unlink()
            # After a plain close, the file stays locked while a forked child has it open too.
            with contextlib.suppress(OSError):
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            self.close_without_unlock()

    def close_without_unlock(self) -> None:
        """Close the file but keep it locked. For a forked child, whose parent owns the lock."""
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
        raise SpoolError(f"cannot open the lock file {path.name} ({error.strerror})") from None


def has_no_room(path: Path) -> bool:
    """Return whether the disk of a file is full. SQLite reports some failures of a full disk as I/O errors."""
    try:
        found = os.statvfs(path.parent)
    except OSError:
        return False
    return found.f_blocks > 0 and found.f_bavail * found.f_frsize < _LEAST_ROOM


def inode_of(path: Path | str) -> int:
    """Return the inode of a file; 0 if it does not exist."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def find_set_aside(path: Path, inode: int) -> Path | None:
    """Return the current path of a file that was set aside; None if it is not found."""
    start = path.name + ".corrupt-"
    for name in sorted(os.listdir(path.parent)):
        if name.startswith(start) and inode_of(path.with_name(name)) == inode:
            return path.with_name(name)
    return None


def set_aside(path: Path, stamp: int) -> Path:
    """Rename a damaged database and its log files, so that a new one can be created.

    Args:
        path: database file.
        stamp: seconds since 1970, for the new name.
    """
    number = 0
    while True:
        tail = f".corrupt-{stamp}" + (f"-{number}" if number else "")
        aside = path.with_name(path.name + tail)
        if not aside.exists():
            break
        number += 1
    # The log first: SQLite deletes a log without its database when a new database is created.
    for old, new in zip(reversed(with_log_files(path)), reversed(with_log_files(aside)), strict=True):
        with contextlib.suppress(FileNotFoundError):
            old.rename(new)
    return aside
