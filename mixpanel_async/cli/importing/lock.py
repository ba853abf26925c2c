"""One import of a file at a time, as two would apply the same updates twice."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from .inputs import Input


class LockedError(Exception):
    """Another import has the file."""


@contextmanager
def locked(one: Input) -> Iterator[None]:
    """Hold a file for the length of the block; the system lets go of it however the process ends.

    Where files cannot be locked (Windows, some network file systems) nothing is held.

    Raises:
        LockedError: if another process holds it.
    """
    if one.identity is None or find_spec("fcntl") is None:
        yield
        return
    import fcntl

    with Path(one.name).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
                raise LockedError(f"another import of {one.name} is under way") from None
        yield
