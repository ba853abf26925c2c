"""File lock that prevents two runs over one file at a time. Two would apply the same updates twice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from .inputs import InputFile


class LockedError(Exception):
    """Another process holds the lock of the file."""


@contextmanager
def lock_file(input_file: InputFile, activity: str = "import") -> Iterator[None]:
    """Lock a file for the length of the block. The operating system releases the lock when the process ends.

    Does nothing where files cannot be locked (Windows, some network file systems).

    Args:
        input_file: the file.
        activity: what holds the lock, for the error.

    Raises:
        LockedError: if another process holds the lock.
    """
    if input_file.identity is None or find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with Path(input_file.name).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise LockedError(f"another {activity} of {input_file.name} is running") from None
        yield
