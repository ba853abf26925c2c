"""Records that were not imported, and why: one JSON object a line, in a file that can be corrected and imported."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

_LONGEST: Final = 1_000_000
_PROJECT_KEYS: Final = ("token", "$token")


class Rejects:
    """The file of one import's rejected records. It is made when there is a first one.

    Args:
        path: of the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def check(self) -> None:
        """Find out whether an entry could be written, and leave everything as it is.

        Raises:
            OSError: if it could not.
        """
        path = self.path
        if path is None or self._file is not None:
            return
        with self._named(path):
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                with suppress(OSError):
                    path.unlink()
                return
            # Whoever reads a pipe would take the end of this look for the end of all.
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                os.close(os.open(path, os.O_WRONLY | os.O_APPEND))

    def add(self, source: str, line: int | None, reason: str, problem: str, record: object, field: str = "") -> None:
        """Write an entry.

        Args:
            source: absolute path of the file that the record is from.
            line: its line, row or number there; None if it is not known any more.
            reason: `unreadable`, `invalid` (this program refused it), `uncertain`, or a `DropReason` of the client's.
            problem: in words.
            record: as it was read, or as it would have been sent; without the project's token.
            field: path of what is wrong in it.

        Raises:
            OSError: if it cannot be written.
        """
        if self.path is None:
            return
        entry = {
            "file": source,
            "line": line,
            "reason": reason,
            "field": field,
            "message": problem,
            "record": _without_token(record),
        }
        with self._named(self.path):
            if self._file is None:
                self._file = _private(self.path)
            self._file.write(_json(entry) + b"\n")

    def sync(self) -> None:
        """Bring everything to the disk.

        Raises:
            OSError: if that fails.
        """
        if self._file is not None:
            with self._named(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Bring what is left to the file, and close it.

        Raises:
            OSError: if that fails.
        """
        file, self._file = self._file, None
        if file is not None:
            with self._named(self.path):
                file.close()

    @staticmethod
    @contextmanager
    def _named(path: Path | None) -> Iterator[None]:
        """Let an error say of which file it is."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None

    def prune(self, kept: Mapping[str, int]) -> None:
        """Take out what an interrupted import wrote of records that will be read again.

        Args:
            kept: by absolute path of a file, the last line of it that is not read again.

        Raises:
            OSError: if the file cannot be written anew.
        """
        path = self.path
        if path is None or not path.is_file():
            return
        fresh = path.with_name(path.name + ".new")
        with path.open("rb") as old, _private(fresh, truncate=True) as new:
            for entry in old:
                if _stays(entry, kept):
                    new.write(entry)
            new.flush()
            os.fsync(new.fileno())
        fresh.replace(path)


def _stays(entry: bytes, kept: Mapping[str, int]) -> bool:
    try:
        found = orjson.loads(entry)
        last = kept.get(found["file"])
        # Of one without a line nobody can tell where it is from: better twice than not at all.
        return last is None or found["line"] is None or found["line"] <= last
    except (ValueError, TypeError, KeyError):
        # A line that a killed process did not write to its end.
        return False


def _private(path: Path, *, truncate: bool = False) -> BinaryIO:
    """Opened for its owner alone: it holds what the events hold."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if truncate else os.O_APPEND)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _without_token(record: object) -> object:
    if not isinstance(record, dict):
        return record
    clean = {key: value for key, value in record.items() if key not in _PROJECT_KEYS}
    properties: Any = clean.get("properties")
    if isinstance(properties, dict) and "token" in properties:
        clean["properties"] = {key: value for key, value in properties.items() if key != "token"}
    return clean


def _json(entry: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(entry, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # A lone surrogate, a number over 64 bits: the text of what cannot be written otherwise.
        return orjson.dumps({**entry, "record": ascii(entry["record"])[:_LONGEST]})
