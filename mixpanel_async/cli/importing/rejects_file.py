"""Rejects file: records that were not imported and the reason, one JSON object per line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import orjson

_MAX_TEXT_LENGTH: Final = 1_000_000
_TOKEN_KEYS: Final = ("token", "$token")
# Beginning of every entry, without white space.
_HEAD_BYTES: Final = 64
_ENTRY_START: Final = b'{"file":"'


class RejectsFile:
    """File of rejected records. It is created with the first entry.

    Args:
        path: path of the file; None discards all entries.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def ensure_writable(self) -> None:
        """Check that an entry could be written. Leaves no file and changes no file.

        Raises:
            OSError: if no entry could be written.
        """
        path = self.path
        if path is None or self._file is not None:
            return
        with _adding_path(path):
            try:
                mode = path.stat().st_mode
            except FileNotFoundError:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                with suppress(OSError):
                    path.unlink()
                return
            # A pipe is not opened: closing it again would signal end of file to its reader.
            if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
                os.close(os.open(path, os.O_WRONLY | os.O_APPEND))

    def has_other_content(self) -> bool:
        """Return whether the file exists and begins with something else than an entry.

        Raises:
            OSError: if it cannot be read.
        """
        if self.path is None or self._file is not None or not self.path.is_file():
            return False
        with self.path.open("rb") as file:
            head = b"".join(file.read(_HEAD_BYTES).split())
        # A killed process may leave an incomplete entry.
        return not _ENTRY_START.startswith(head[: len(_ENTRY_START)])

    def add(self, source: str, line: int | None, reason: str, problem: str, record: object, field: str = "") -> None:
        """Write an entry.

        Args:
            source: absolute path of the input file.
            line: line, row or record number in the input file; None if unknown.
            reason: `unreadable`, `invalid` (rejected by this program), `uncertain`, or the value of a `DropReason`.
            problem: description of the problem.
            record: the record as read, or as it would have been sent; the token is removed.
            field: path of the offending field.

        Raises:
            OSError: if the entry cannot be written.
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
        with _adding_path(self.path):
            if self._file is None:
                self._file = _open_private(self.path)
            self._file.write(_to_json(entry) + b"\n")

    def sync(self) -> None:
        """Flush all entries to disk.

        Raises:
            OSError: if that fails.
        """
        if self._file is not None:
            with _adding_path(self.path):
                self._file.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Write buffered entries and close the file.

        Raises:
            OSError: if that fails.
        """
        file, self._file = self._file, None
        if file is not None:
            with _adding_path(self.path):
                file.close()

    def prune(self, last_lines: Mapping[str, int]) -> None:
        """Remove entries that an interrupted import wrote for records that are read again.

        Args:
            last_lines: by absolute path of an input file, its last line that is not read again.

        Raises:
            OSError: if the file cannot be rewritten.
        """
        path = self.path
        if path is None or not path.is_file():
            return
        temporary = path.with_name(path.name + ".new")
        with path.open("rb") as old, _open_private(temporary, truncate=True) as new:
            for entry in old:
                if _is_kept(entry, last_lines):
                    new.write(entry)
            new.flush()
            os.fsync(new.fileno())
        temporary.replace(path)


@contextmanager
def _adding_path(path: Path | None) -> Iterator[None]:
    """Add the path to an `OSError` that has none."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def _is_kept(entry: bytes, last_lines: Mapping[str, int]) -> bool:
    try:
        fields = orjson.loads(entry)
        last = last_lines.get(fields["file"])
        # The position of an entry without a line is unknown. A duplicate is better than a missing entry.
        return last is None or fields["line"] is None or fields["line"] <= last
    except (ValueError, TypeError, KeyError):
        # A killed process may leave an incomplete entry.
        return False


def _open_private(path: Path, *, truncate: bool = False) -> BinaryIO:
    """Open a file that only its owner can read, because records may contain personal data."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if truncate else os.O_APPEND)
    return os.fdopen(os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600), "wb")


def _without_token(record: object) -> object:
    if not isinstance(record, dict):
        return record
    clean = {key: value for key, value in record.items() if key not in _TOKEN_KEYS}
    properties: Any = clean.get("properties")
    if isinstance(properties, dict) and "token" in properties:
        clean["properties"] = {key: value for key, value in properties.items() if key != "token"}
    return clean


def _to_json(entry: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(entry, default=repr, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # A lone surrogate or an integer over 64 bits: store the record as text.
        return orjson.dumps({**entry, "record": ascii(entry["record"])[:_MAX_TEXT_LENGTH]})
