"""What every source of records has: a place in its file, and how it fails."""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

from .inputs import DamagedError

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
"""What one chunk of records may take of a file."""
KEPT: Final = 2_000
"""Bytes that are kept of a line that is longer than any record may be."""
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
    """What should have been a record: why it is none, and what stands there."""

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


class RecordSource(ABC):
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

    @abstractmethod
    def _fill(self, rows: list[Row], most: int, late: float) -> None:
        """Add the next rows, at most `most`; those that have to be waited for, until `monotonic()` is at `late`."""


def text_of(line: bytes, encoding: str = "utf-8") -> str:
    """What stands in a file, as it can be written down."""
    return line.decode(encoding, "replace").rstrip("\r\n")


def words(error: Exception) -> str:
    """What a parser says, without what it says of its own place."""
    return str(error).partition(": line ")[0][:200] or type(error).__name__


class LongLine(bytes):
    """The beginning of a line that is longer than any record may be. Its length is that of the whole line."""

    whole: int

    def __len__(self) -> int:
        return self.whole


class LineReader:
    """The lines of a stream, as many at once as have come in: who reads a slow pipe need not wait for more.

    Args:
        content: the stream.
    """

    def __init__(self, content: io.BufferedReader) -> None:
        self._content = content
        self._block: list[bytes] = []
        self._at = 0
        self._tail = b""
        # Length of a line of which no more is kept.
        self._dropped = 0
        self._has_ended = False
        self.taken = self.bytes_taken = 0

    @property
    def is_dry(self) -> bool:
        """Whether the next lines have to be waited for."""
        return self._at == len(self._block)

    def seek(self, offset: int, line: int) -> None:
        """Go on at the beginning of a line."""
        self._content.seek(offset)
        self._block, self._at, self._tail, self._dropped, self._has_ended = [], 0, b"", 0, False
        self.taken, self.bytes_taken = line, offset

    def take(self, most: int) -> list[bytes]:
        """Lines without their ends, at most so many; none at the end of the stream."""
        while self.is_dry and not self._has_ended:
            self._load()
        lines = self._block[self._at : self._at + most]
        self._at += len(lines)
        self.taken += len(lines)
        self.bytes_taken += sum(map(len, lines)) + len(lines)
        return lines

    def _load(self) -> None:
        data = self._content.read1(CHUNK_BYTES)
        if not data:
            self._has_ended = True
            rest = self._whole(b"")
            self._block, self._at = [rest] if rest else [], 0
            # The last line has no end that would count.
            self.bytes_taken -= len(self._block)
            return
        block = data.split(b"\n")
        if len(block) > 1:
            block[0] = self._whole(block[0])
            self._tail = block.pop()
        else:
            self._tail += block.pop()
        if len(self._tail) > MAX_RECORD_BYTES:
            self._dropped += len(self._tail) - KEPT
            self._tail = self._tail[:KEPT]
        self._block, self._at = block, 0

    def _whole(self, end: bytes) -> bytes:
        line, self._tail = self._tail + end, b""
        if self._dropped or len(line) > MAX_RECORD_BYTES:
            dropped, self._dropped = self._dropped, 0
            short = LongLine(line[:KEPT])
            short.whole = len(line) + dropped
            return short
        return line
