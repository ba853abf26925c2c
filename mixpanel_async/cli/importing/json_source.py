"""Records out of JSON: one a line, in an array, or one after another."""

from __future__ import annotations

import codecs
import io
import json
import re
from time import monotonic
from typing import Any, Final

import orjson

from .inputs import DamagedError
from .source import (
    BOM,
    CHUNK_BYTES,
    MAX_RECORD_BYTES,
    File,
    LineReader,
    LongLine,
    Position,
    RecordSource,
    Row,
    Unreadable,
    text_of,
    words,
)

_LINE_END: Final = 2
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class NdjsonSource(RecordSource):
    """One JSON value a line."""

    def __init__(self, content: io.BufferedReader, start: Position, file: File) -> None:
        super().__init__(content, start, file)
        self._lines = LineReader(content)
        if start.offset:
            self._lines.seek(start.offset, start.line)

    def _fill(self, rows: list[Row], most: int, late: float) -> None:  # noqa: ARG002
        lines, loads = self._lines, orjson.loads
        number = lines.taken
        taken = lines.take(most)
        self.is_over = not taken
        for line in taken:
            number += 1
            try:
                rows.append((number, loads(line)))
            except ValueError as error:
                self._odd(line, number, error, rows)
        self._offset, self._line = lines.bytes_taken, lines.taken

    @staticmethod
    def _odd(line: bytes, number: int, error: ValueError, rows: list[Row]) -> None:
        """Deal with what is no JSON."""
        if isinstance(line, LongLine):
            problem = f"is longer than {MAX_RECORD_BYTES} bytes"
            rows.append((number, Unreadable(problem, text_of(line))))
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
            rows.append((number, Unreadable(f"is no valid JSON: {words(error)}", text_of(line))))


class JsonSource(RecordSource):
    """An array of objects, or objects one after another, across lines or not. A line is a record here."""

    def __init__(self, content: io.BufferedReader, start: Position, file: File) -> None:
        super().__init__(content, start, file)
        self._parse = json.JSONDecoder().raw_decode
        self._forget()
        if self._peeked() == "\ufeff":
            self._at += 1
        self._is_array = self._peeked() == "["
        self._has_ended = False
        self._needs_comma = self._is_array and start.line > 0
        if start.offset:
            content.seek(start.offset)
            self._forget()
        elif self._is_array:
            self._at += 1

    def _forget(self) -> None:
        # A byte that is no UTF-8 becomes a lone surrogate, for which the client refuses the one record that has it.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._text, self._at, self._is_read = "", 0, False

    def _fill(self, rows: list[Row], most: int, late: float) -> None:
        used = self._at
        first = used
        try:
            while len(rows) < most and used - first < CHUNK_BYTES and monotonic() < late:
                if not self._is_at_value():
                    self.is_over = True
                    break
                value, used = self._value()
                self._at = used
                self._needs_comma = self._is_array
                self._line += 1
                rows.append((self._line, value))
                if len(self._text) - used <= _LINE_END and not self._is_read:
                    # More would have to be waited for.
                    break
        finally:
            self._offset += len(self._text[:used].encode(errors="surrogateescape"))
            self._text, self._at = self._text[used:], max(0, self._at - used)

    def _more(self) -> bool:
        """Read on. False at the end of the file."""
        if self._is_read:
            return False
        data = self._content.read1(CHUNK_BYTES)
        self._is_read = not data
        self._text += self._decode(data, self._is_read)
        return True

    def _peeked(self) -> str:
        """The next character that is no space, or an empty string at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _is_at_value(self) -> bool:
        following = self._peeked()
        if self._is_array and not self._has_ended and following == "]":
            self._at += 1
            self._has_ended = True
            following = self._peeked()
        if self._has_ended and following:
            raise DamagedError("something comes behind the end of the array")
        if self._has_ended or not self._is_array:
            return bool(following)
        if self._needs_comma and following:
            if following != ",":
                raise DamagedError("a comma is missing")
            self._at += 1
            self._needs_comma = False
            following = self._peeked()
        if not following:
            raise DamagedError("the array is not closed")
        return True

    def _value(self) -> tuple[Any, int]:
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except (ValueError, RecursionError) as error:  # noqa: PERF203  it is tried again with more
                if len(self._text) - self._at > MAX_RECORD_BYTES or not self._more():
                    raise DamagedError(f"what follows is no valid JSON: {words(error)}") from None
            else:
                # A number may go on in what was not read yet.
                if end < len(self._text) or type(value) not in {int, float} or not self._more():
                    return value, end
