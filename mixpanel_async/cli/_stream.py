"""What every source of records has: a place in its file, and how it fails."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

from ._inputs import DamagedError

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
"""What one chunk of records may take of a file."""
SHOWN: Final = 2_000
"""Characters that are shown of what is no record."""
BOM: Final = b"\xef\xbb\xbf"
FAULTS: Final = (OSError, EOFError, zlib.error)
"""What a stream raises that cannot be read on."""

# A slow pipe hands over what it has after so many seconds.
_CHUNK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two records: the offset in the content, in bytes or rows, and the records or lines before it."""

    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What should have been a record: why it is none, and how it begins."""

    problem: str
    text: str


Row = tuple[int, object]
"""Number of the line or record, from 1; and what was there: a decoded value, or `Unreadable`."""


class Source(Protocol):
    """An open file."""

    def take(self, most: int) -> list[Row]:
        """The next records, at most so many. There may be none although it goes on.

        Raises:
            DamagedError: if it cannot be read any further.
        """

    @property
    def is_over(self) -> bool:
        """Whether everything was taken."""

    @property
    def position(self) -> Position:
        """After what was taken last."""

    def done(self) -> int:
        """Bytes of the file itself that were read so far."""

    def close(self) -> None: ...


class File(Protocol):
    """What a source needs of an open file beside its content."""

    def done(self) -> int: ...

    def close(self) -> None: ...


class Stream:
    """What all sources of streams have in common. A source fills rows, and keeps its place up to date when it fails."""

    def __init__(self, content: io.BufferedReader, start: Position, file: File) -> None:
        self._content = content
        self._file = file
        self._offset = start.offset
        self._line = start.line
        self._damage: str | None = None
        self.is_over = False

    @property
    def position(self) -> Position:
        return Position(self._offset, self._line)

    def done(self) -> int:
        return self._file.done()

    def close(self) -> None:
        self._file.close()

    def take(self, most: int) -> list[Row]:
        rows: list[Row] = []
        try:
            if self._damage is None:
                self._fill(rows, most, monotonic() + _CHUNK_SECONDS)
        except (*FAULTS, DamagedError) as error:
            self._damage = f"after line {self._line}: {error}"
        # What came before a fault is handed over first. A stream that failed once is not asked again.
        if self._damage is not None and not rows:
            raise DamagedError(self._damage)
        return rows

    def _fill(self, rows: list[Row], most: int, late: float) -> None:
        raise NotImplementedError


def shown(line: bytes) -> str:
    return line[:SHOWN].decode(errors="replace").rstrip("\r\n")


def words(error: Exception) -> str:
    """What a parser says, without what it says of its own place."""
    return str(error).partition(": line ")[0][:200] or type(error).__name__
