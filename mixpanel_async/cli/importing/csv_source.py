"""Records out of CSV: the rows below a header."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from time import monotonic

from .inputs import DamagedError, InputError
from .source import BOM, MAX_RECORD_BYTES, File, LineReader, Position, RecordSource, Row, Unreadable, text_of


class CsvSource(RecordSource):
    """Rows below a header."""

    def __init__(self, content: io.BufferedReader, start: Position, file: File, delimiter: str, encoding: str) -> None:
        super().__init__(content, Position(), file)
        csv.field_size_limit(MAX_RECORD_BYTES)
        self._encoding = encoding
        self._lines = LineReader(content)
        self._rows = csv.reader(self._text(), delimiter=delimiter, strict=True)
        self._row_start = 0
        # The lines of the row that is being read.
        self._taken: list[bytes] = []
        try:
            header = next(self._rows, [])
        except (csv.Error, DamagedError) as error:
            raise InputError(f"the header cannot be read: {error}") from None
        self._columns = _columns([name.strip() for name in header], delimiter)
        self._width = len(header)
        if start.line:
            self._lines.seek(start.offset, start.line)
        self._offset, self._line = self._lines.bytes_taken, self._lines.taken

    def _text(self) -> Iterator[str]:
        lines = self._lines
        while taken := lines.take(1):
            if lines.bytes_taken - self._row_start > MAX_RECORD_BYTES:
                raise DamagedError(f"a row is longer than {MAX_RECORD_BYTES} bytes; a quote may not be closed")
            line = taken[0].removeprefix(BOM) if lines.taken == 1 else taken[0]
            self._taken.append(line)
            # The end of a line may be part of a cell.
            yield line.decode(self._encoding, "surrogateescape") + "\n"

    def _fill(self, rows: list[Row], most: int, late: float) -> None:
        lines = self._lines
        while len(rows) < most and not (rows and (lines.is_dry or monotonic() > late)):
            self._row_start = self._offset
            self._taken.clear()
            row = self._next()
            if row is None:
                self.is_over = True
                break
            if row:
                rows.append((self._line + 1, row if isinstance(row, Unreadable) else self._record(row)))
            # Not before: a row that cannot be read to its end is not taken.
            self._offset, self._line = lines.bytes_taken, lines.taken

    def _next(self) -> list[str] | Unreadable | None:
        try:
            return next(self._rows, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DamagedError("a quote is not closed") from None
            return self._unreadable(f"is no valid CSV: {error}")

    def _record(self, row: list[str]) -> dict[str, str] | Unreadable:
        if len(row) != self._width:
            return self._unreadable(f"has {len(row)} cells, and the header {self._width}")
        return {name: cell for name, cell in zip(self._columns, row, strict=True) if name and cell}

    def _unreadable(self, problem: str) -> Unreadable:
        return Unreadable(problem, text_of(b"\n".join(self._taken), self._encoding))


def _columns(header: list[str], delimiter: str) -> list[str]:
    """The names of a header.

    Raises:
        InputError: if there are none, or one comes twice.
    """
    if not any(header):
        raise InputError("there is no header")
    check_unique([name for name in header if name])
    if len(header) == 1:
        for other in ";\t|":
            if other != delimiter and other in header[0]:
                raise InputError(f"the header has one column; name another with --delimiter, such as {other!r}")
    return header


def check_unique(columns: list[str]) -> None:
    """Refuse columns of the same name.

    Raises:
        InputError: naming the first that comes twice.
    """
    seen = set()
    for name in columns:
        if name in seen:
            raise InputError(f"column {name!r} comes twice")
        seen.add(name)
