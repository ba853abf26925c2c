"""Record sources: the interface, the base class of stream formats, and the line reader."""

from __future__ import annotations

import io
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, Protocol

from .inputs import DamagedError
from .option_values import Format

MAX_RECORD_BYTES: Final = 8 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
"""Maximum number of bytes read at a time."""
TRUNCATED_BYTES: Final = 2_000
"""Length to which a line over `MAX_RECORD_BYTES` is truncated."""
BOM: Final = b"\xef\xbb\xbf"
READ_ERRORS: Final = (OSError, EOFError, zlib.error)
"""Exceptions of a stream that cannot be read further."""

# After this time a source returns the rows it has, so that a slow pipe does not delay them.
_CHUNK_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Position:
    """Position between two records. Field names are part of the checkpoint format.

    Args:
        offset: offset in the decompressed content, in bytes (Parquet: rows).
        line: number of lines or records before the position.
    """

    offset: int = 0
    line: int = 0


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """Part of a file that cannot be parsed as a record.

    Args:
        problem: description of the problem.
        text: text of the row in the file.
    """

    problem: str
    text: str


Row = tuple[int, object]
"""Number of the line or record, from 1, and its content: a decoded value or `UnreadableRow`."""


class RecordSource(Protocol):
    """Open file that returns records."""

    def take(self, limit: int) -> list[Row]:
        """Return the next rows, at most `limit`. The list may be empty before the end of the file.

        Raises:
            DamagedError: if the rest of the file cannot be read.
        """

    @property
    def is_exhausted(self) -> bool:
        """Whether all rows were taken."""

    @property
    def position(self) -> Position:
        """Position after the last row taken."""

    @property
    def format(self) -> Format:
        """Format of the file."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns that the file itself lists; empty for JSON."""

    def bytes_read(self) -> int:
        """Return the number of bytes of the file, as stored, that were read so far."""

    def close(self) -> None: ...


class FileHandle(Protocol):
    """Operations on an open file that a stream source needs in addition to its content."""

    def bytes_read(self) -> int: ...

    def close(self) -> None: ...


class StreamSource(ABC):
    """Base class of sources that read a stream. Subclasses implement `_fill` and keep `_offset` and `_line` current."""

    format: Format

    def __init__(self, content: io.BufferedReader, start: Position, file: FileHandle) -> None:
        self._content = content
        self._file = file
        self._offset = start.offset
        self._line = start.line
        self._damage: str | None = None
        self.is_exhausted = False
        self.columns: Sequence[str] = ()

    @property
    def position(self) -> Position:
        return Position(self._offset, self._line)

    def bytes_read(self) -> int:
        return self._file.bytes_read()

    def close(self) -> None:
        self._file.close()

    def take(self, limit: int) -> list[Row]:
        rows: list[Row] = []
        try:
            if self._damage is None:
                self._fill(rows, limit, monotonic() + _CHUNK_SECONDS)
        except (*READ_ERRORS, DamagedError) as error:
            self._damage = f"damaged after line {self._line}: {error}"
        # Rows before the damage are returned first. A stream that failed once is not read again.
        if self._damage is not None and not rows:
            raise DamagedError(self._damage)
        return rows

    @abstractmethod
    def _fill(self, rows: list[Row], limit: int, deadline: float) -> None:
        """Append the next rows, at most `limit`. Stop waiting for input when `monotonic()` reaches `deadline`."""


def decode_row(line: bytes, encoding: str = "utf-8") -> str:
    """Decode a row for the rejects file. Invalid bytes are replaced."""
    return line.decode(encoding, "replace").rstrip("\r\n")


def parser_message(error: Exception) -> str:
    """Return the message of a parser without the parser's own line and column numbers."""
    return str(error).partition(": line ")[0][:200] or type(error).__name__


class TruncatedLine(bytes):
    """Beginning of a line over `MAX_RECORD_BYTES`. `len` returns the length of the whole line."""

    full_length: int

    def __new__(cls, line: bytes, full_length: int) -> TruncatedLine:  # noqa: PYI034  `Self` needs Python 3.11
        self = super().__new__(cls, line[:TRUNCATED_BYTES])
        self.full_length = full_length
        return self

    def __len__(self) -> int:
        return self.full_length


class LineReader:
    """Reader of lines from a stream. Returns the lines that have arrived without waiting for more.

    Args:
        content: the stream.
    """

    def __init__(self, content: io.BufferedReader) -> None:
        self._content = content
        self._lines: list[bytes] = []
        self._next = 0
        self._tail = b""
        # Bytes dropped from the line that is being read, because it is too long.
        self._dropped_bytes = 0
        self._is_at_end = False
        self.lines_taken = self.bytes_taken = 0

    @property
    def is_empty(self) -> bool:
        """Whether no complete line is buffered."""
        return self._next == len(self._lines)

    def seek(self, offset: int, line: int) -> None:
        """Continue at the beginning of a line."""
        self._content.seek(offset)
        self._lines, self._next, self._tail, self._dropped_bytes, self._is_at_end = [], 0, b"", 0, False
        self.lines_taken, self.bytes_taken = line, offset

    def take(self, limit: int) -> list[bytes]:
        """Return at most `limit` lines without line ends. The list is empty only at the end of the stream."""
        while self.is_empty and not self._is_at_end:
            self._load()
        lines = self._lines[self._next : self._next + limit]
        self._next += len(lines)
        self.lines_taken += len(lines)
        self.bytes_taken += sum(map(len, lines)) + len(lines)
        return lines

    def _load(self) -> None:
        data = self._content.read1(CHUNK_BYTES)
        if not data:
            self._is_at_end = True
            last = self._complete_line(b"")
            self._lines, self._next = [last] if last else [], 0
            # `take` counts one byte for the line end, which the last line does not have.
            self.bytes_taken -= len(self._lines)
            return
        lines = data.split(b"\n")
        if len(lines) > 1:
            lines[0] = self._complete_line(lines[0])
            self._tail = lines.pop()
        else:
            self._tail += lines.pop()
        if len(self._tail) > MAX_RECORD_BYTES:
            self._dropped_bytes += len(self._tail) - TRUNCATED_BYTES
            self._tail = self._tail[:TRUNCATED_BYTES]
        self._lines, self._next = lines, 0

    def _complete_line(self, end: bytes) -> bytes:
        line, self._tail = self._tail + end, b""
        if self._dropped_bytes or len(line) > MAX_RECORD_BYTES:
            dropped, self._dropped_bytes = self._dropped_bytes, 0
            return TruncatedLine(line, len(line) + dropped)
        return line
