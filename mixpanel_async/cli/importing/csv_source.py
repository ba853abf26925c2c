"""CSV source: each row below the header is a record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from time import monotonic

from .inputs import DamagedError, InputError
from .option_values import Format
from .record_source import (
    BOM,
    MAX_RECORD_BYTES,
    FileHandle,
    LineReader,
    Position,
    Row,
    StreamSource,
    UnreadableRow,
    decode_row,
)


class CsvSource(StreamSource):
    """Source of CSV rows.

    Args:
        content: the decompressed content.
        start: position to start at.
        file: the open file.
        delimiter: one character.
        encoding: an encoding that extends ASCII.

    Raises:
        InputError: if the header is missing or cannot be used.
    """

    def __init__(
        self, content: io.BufferedReader, start: Position, file: FileHandle, delimiter: str, encoding: str
    ) -> None:
        super().__init__(content, Position(), file)
        csv.field_size_limit(MAX_RECORD_BYTES)
        self.format = Format.TSV if delimiter == "\t" else Format.CSV
        self._encoding = encoding
        self._lines = LineReader(content)
        self._rows = csv.reader(self._decoded_lines(), delimiter=delimiter, strict=True)
        self._row_start = 0
        # Lines of the row that is being read.
        self._row_lines: list[bytes] = []
        try:
            header = next(self._rows, [])
        except (csv.Error, DamagedError) as error:
            raise InputError(f"cannot read the header: {_describe(error)}") from None
        self._header = _check_header([name.strip() for name in header], delimiter)
        self.columns = [name for name in self._header if name]
        self._width = len(header)
        if start.line:
            self._lines.seek(start.offset, start.line)
        self._offset, self._line = self._lines.bytes_taken, self._lines.lines_taken

    def _decoded_lines(self) -> Iterator[str]:
        lines = self._lines
        while taken := lines.take(1):
            if lines.bytes_taken - self._row_start > MAX_RECORD_BYTES:
                raise DamagedError(
                    f"a row is longer than {MAX_RECORD_BYTES} bytes; check for a quote that is not closed"
                )
            line = taken[0].removeprefix(BOM) if lines.lines_taken == 1 else taken[0]
            self._row_lines.append(line)
            # A quoted cell may contain the line end.
            yield line.decode(self._encoding, "surrogateescape") + "\n"

    def _fill(self, rows: list[Row], limit: int, deadline: float) -> None:
        lines = self._lines
        while len(rows) < limit and not (rows and (lines.is_empty or monotonic() > deadline)):
            self._row_start = self._offset
            self._row_lines.clear()
            row = self._next_row()
            if row is None:
                self.is_exhausted = True
                break
            if row:
                rows.append((self._line + 1, row if isinstance(row, UnreadableRow) else self._record(row)))
            # Updated last: a row that cannot be read completely is not taken.
            self._offset, self._line = lines.bytes_taken, lines.lines_taken

    def _next_row(self) -> list[str] | UnreadableRow | None:
        try:
            return next(self._rows, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DamagedError("a quote is not closed") from None
            return self._unreadable(f"is not valid CSV: {_describe(error)}")

    def _record(self, row: list[str]) -> dict[str, str] | UnreadableRow:
        if len(row) != self._width:
            return self._unreadable(f"has {len(row)} cells, but the header has {self._width}")
        return {name: cell for name, cell in zip(self._header, row, strict=True) if name and cell}

    def _unreadable(self, problem: str) -> UnreadableRow:
        return UnreadableRow(problem, decode_row(b"\n".join(self._row_lines), self._encoding))


def _describe(error: Exception) -> str:
    """Return the message of an error, without advice for programmers."""
    if "new-line character" in str(error):
        return "a carriage return outside of quotes ends no line; if lines end with one, convert them to \\n"
    return str(error)


def _check_header(header: list[str], delimiter: str) -> list[str]:
    """Return the column names of a header.

    Raises:
        InputError: if the header is empty, or a name occurs twice.
    """
    if not any(header):
        raise InputError("the file has no header")
    check_unique([name for name in header if name])
    if len(header) == 1:
        for other in ";\t|":
            if other != delimiter and other in header[0]:
                raise InputError(
                    f"the header has one column; if cells are separated by {other!r}, use --delimiter {other!r}"
                )
    return header


def check_unique(columns: list[str]) -> None:
    """Check that no column name occurs twice.

    Raises:
        InputError: naming the first duplicate.
    """
    seen = set()
    for name in columns:
        if name in seen:
            raise InputError(f"column {name!r} occurs twice")
        seen.add(name)
