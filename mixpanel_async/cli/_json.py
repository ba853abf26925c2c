"""Records out of JSON: one a line, in an array, or one after another."""

from __future__ import annotations

import codecs
import io
import json
import re
from time import monotonic
from typing import Any, Final

import orjson

from ._inputs import DamagedError
from ._stream import BOM, CHUNK_BYTES, MAX_RECORD_BYTES, File, Position, Row, Stream, Unreadable, shown, words

_LOOK_AT_CLOCK: Final = 64
_SPACE: Final = re.compile(r"[ \t\r\n]*")


class NdjsonSource(Stream):
    """One JSON value a line."""

    def __init__(self, content: io.BufferedReader, start: Position, file: File) -> None:
        super().__init__(content, start, file)
        if start.offset:
            content.seek(start.offset)

    def _fill(self, rows: list[Row], most: int, late: float) -> None:
        readline, loads = self._content.readline, orjson.loads
        offset, number = self._offset, self._line
        end = offset + CHUNK_BYTES
        try:
            while len(rows) < most and offset < end:
                line = readline(MAX_RECORD_BYTES)
                if not line:
                    self.is_over = True
                    break
                number += 1
                offset += len(line)
                try:
                    rows.append((number, loads(line)))
                except ValueError as error:
                    offset += self._odd(line, number, error, rows)
                if number % _LOOK_AT_CLOCK == 0 and monotonic() > late:
                    break
        finally:
            self._offset, self._line = offset, number

    def _odd(self, line: bytes, number: int, error: ValueError, rows: list[Row]) -> int:
        """Deal with what is no JSON, and return how many further bytes belong to it."""
        if len(line) >= MAX_RECORD_BYTES and not line.endswith(b"\n"):
            rows.append((number, Unreadable(f"is longer than {MAX_RECORD_BYTES} bytes", shown(line))))
            return self._rest_of_line()
        if number == 1 and line.startswith(BOM):
            line = line[len(BOM) :]
            try:
                rows.append((number, orjson.loads(line)))
            except ValueError as second:
                error = second
            else:
                return 0
        if line.strip():
            rows.append((number, Unreadable(f"is no valid JSON: {words(error)}", shown(line))))
        return 0

    def _rest_of_line(self) -> int:
        skipped = 0
        while piece := self._content.readline(CHUNK_BYTES):
            skipped += len(piece)
            if piece.endswith(b"\n"):
                break
        return skipped


class JsonSource(Stream):
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
                if end < len(self._text) or not self._more():
                    return value, end
