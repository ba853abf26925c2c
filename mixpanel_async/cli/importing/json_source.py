"""JSON sources: one record per line, an array of records, or consecutive records."""

from __future__ import annotations

import codecs
import io
import json
import re
from time import monotonic
from typing import Any, Final

import orjson

from .inputs import DamagedError
from .option_values import Format
from .record_source import (
    BOM,
    CHUNK_BYTES,
    MAX_RECORD_BYTES,
    FileHandle,
    LineReader,
    Position,
    Row,
    StreamSource,
    TruncatedLine,
    UnreadableRow,
    decode_row,
    parser_message,
)

_MAX_LINE_END: Final = 2
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class NdjsonSource(StreamSource):
    """Source of NDJSON: one JSON value per line."""

    format = Format.NDJSON

    def __init__(self, content: io.BufferedReader, start: Position, file: FileHandle) -> None:
        super().__init__(content, start, file)
        self._lines = LineReader(content)
        if start.offset:
            self._lines.seek(start.offset, start.line)

    def _fill(self, rows: list[Row], limit: int, deadline: float) -> None:  # noqa: ARG002
        lines, loads = self._lines, orjson.loads
        number = lines.lines_taken
        taken = lines.take(limit)
        self.is_exhausted = not taken
        for line in taken:
            number += 1
            try:
                rows.append((number, loads(line)))
            except ValueError as error:
                self._add_invalid(line, number, error, rows)
        self._offset, self._line = lines.bytes_taken, lines.lines_taken

    @staticmethod
    def _add_invalid(line: bytes, number: int, error: ValueError, rows: list[Row]) -> None:
        """Append the row of a line that failed to parse. Skips blank lines and removes a byte order mark."""
        if isinstance(line, TruncatedLine):
            problem = f"is longer than {MAX_RECORD_BYTES} bytes"
            rows.append((number, UnreadableRow(problem, decode_row(line))))
            return
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
            try:
                rows.append((number, orjson.loads(line)))
            except ValueError as second:
                error = second
            else:
                return
        if line.strip():
            problem = _constant_problem(line) or parser_message(error)
            rows.append((number, UnreadableRow(f"is not valid JSON: {problem}", decode_row(line))))


def _constant_problem(line: bytes) -> str | None:
    """Return the problem of a line that is JSON except for `NaN` or an infinity, else None."""
    if b"NaN" not in line and b"Infinity" not in line:
        return None
    found: list[str] = []
    try:
        json.loads(line, parse_constant=found.append)
    except (ValueError, RecursionError):
        return None
    return f"{found[0]} is not JSON; write null" if found else None


class JsonSource(StreamSource):
    """Source of an array of objects, or of consecutive objects. `line` in its positions counts records."""

    format = Format.JSON

    def __init__(self, content: io.BufferedReader, start: Position, file: FileHandle) -> None:
        super().__init__(content, start, file)
        self._parse = json.JSONDecoder().raw_decode
        self._reset_text()
        if self._peek() == "\ufeff":
            self._offset_in_text += 1
        self._is_array = self._peek() == "["
        self._is_array_closed = False
        self._needs_comma = self._is_array and start.line > 0
        if start.offset:
            content.seek(start.offset)
            self._reset_text()
        elif self._is_array:
            self._offset_in_text += 1

    def _reset_text(self) -> None:
        # Invalid UTF-8 becomes a lone surrogate, so the client rejects only the record that has it.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._offset_in_text, self._is_at_end = "", 0, False

    def _fill(self, rows: list[Row], limit: int, deadline: float) -> None:
        end_of_value = self._offset_in_text
        start_of_chunk = end_of_value
        try:
            while len(rows) < limit and end_of_value - start_of_chunk < CHUNK_BYTES and monotonic() < deadline:
                if not self._seek_value():
                    self.is_exhausted = True
                    break
                value, end_of_value = self._parse_value()
                self._offset_in_text = end_of_value
                self._needs_comma = self._is_array
                self._line += 1
                rows.append((self._line, value))
                if len(self._text) - end_of_value <= _MAX_LINE_END and not self._is_at_end:
                    # Reading more could block.
                    break
        finally:
            self._offset += len(self._text[:end_of_value].encode(errors="surrogateescape"))
            self._text, self._offset_in_text = self._text[end_of_value:], max(0, self._offset_in_text - end_of_value)

    def _read_more(self) -> bool:
        """Read more text. Return False at the end of the file."""
        if self._is_at_end:
            return False
        data = self._content.read1(CHUNK_BYTES)
        self._is_at_end = not data
        self._text += self._decode(data, self._is_at_end)
        return True

    def _peek(self) -> str:
        """Skip white space. Return the next character, or an empty string at the end of the file.

        Raises:
            DamagedError: if the white space has no end.
        """
        start = self._offset_in_text
        while True:
            match = _SPACE.match(self._text, self._offset_in_text)
            assert match is not None
            self._offset_in_text = match.end()
            if self._offset_in_text < len(self._text):
                return self._text[self._offset_in_text]
            if len(self._text) - start > MAX_RECORD_BYTES:
                raise DamagedError(f"more than {MAX_RECORD_BYTES} characters of white space between two records")
            if not self._read_more():
                return ""

    def _seek_value(self) -> bool:
        """Move to the next value. Return False after the last one."""
        character = self._peek()
        if self._is_array and not self._is_array_closed and character == "]":
            self._offset_in_text += 1
            self._is_array_closed = True
            character = self._peek()
        if self._is_array_closed and character:
            raise DamagedError("unexpected data after the end of the array")
        if self._is_array_closed or not self._is_array:
            return bool(character)
        if self._needs_comma and character:
            if character != ",":
                raise DamagedError("missing comma between two records")
            self._offset_in_text += 1
            self._needs_comma = False
            character = self._peek()
        if not character:
            raise DamagedError("the array is not closed")
        return True

    def _parse_value(self) -> tuple[Any, int]:
        while True:
            try:
                value, end = self._parse(self._text, self._offset_in_text)
            except (ValueError, RecursionError) as error:  # noqa: PERF203  parsed again with more text
                if len(self._text) - self._offset_in_text > MAX_RECORD_BYTES or not self._read_more():
                    raise DamagedError(f"the next record is not valid JSON: {parser_message(error)}") from None
            else:
                # A number at the end of the text may continue in the next read.
                if end < len(self._text) or type(value) not in {int, float} or not self._read_more():
                    return value, end
