"""How a spool's file is opened: looked at first, and made private only once it is known to be one."""

from __future__ import annotations

from pathlib import Path

from .._model.errors import raise_configuration_error
from . import files
from .database import Damaged, Database


def open_database(path: Path, *, max_bytes: int, wait: float, fsync: bool, erase: bool = False) -> Database:
    """Make the place ready and open what is there.

    Raises:
        Damaged, ConfigurationError, sqlite3.Error: as `Database` does.
    """
    is_new = files.prepare(path)
    try:
        db = Database(path, is_new=is_new, max_bytes=max_bytes, wait=wait, fsync=fsync, erase=erase)
    except Damaged:
        if files.is_text(path):
            raise_configuration_error("the path of the spool leads to a text file, which is left alone")
        raise
    files.make_private(path)
    return db
