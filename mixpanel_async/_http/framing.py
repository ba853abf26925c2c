"""Where a response ends in the bytes of a connection. Pure."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r|$)", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*(?:\r|$)", re.IGNORECASE)
_ENCODED: Final = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
_STATUS: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3})[ \r]")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_NO_BODY: Final = frozenset({b"204", b"304"})
_MAX_HEAD: Final = 128 * 1024


class _State(Enum):
    HEAD = auto()
    BODY = auto()
    CHUNK_SIZE = auto()
    CHUNK = auto()
    TRAILER = auto()
    END = auto()
    UNKNOWN = auto()


class ResponseFraming:
    """Follows the bytes of one HTTP/1.1 response, to tell whether a byte arrived beyond its end.

    A form that it does not know counts as incomplete, so that the connection is not used again. It is stricter than the
    parser of httpcore, which keeps further bytes for the next response and does not tell.
    """

    def __init__(self) -> None:
        self._state = _State.HEAD
        self._line = b""
        self._left = 0

    @property
    def is_complete(self) -> bool:
        """Whether the bytes so far are one response from its first to its last byte."""
        return self._state is _State.END

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived."""
        while data:
            if self._state is _State.UNKNOWN:
                return
            if self._state is _State.END:
                self._state = _State.UNKNOWN
            elif self._state in {_State.BODY, _State.CHUNK}:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                if not self._left:
                    self._state = _State.END if self._state is _State.BODY else _State.CHUNK_SIZE
            else:
                data = self._read_text(data)

    def _read_text(self, data: bytes) -> bytes:
        """Read a head or a line. Return the bytes after it."""
        end = b"\r\n\r\n" if self._state is _State.HEAD else b"\r\n"
        text, found, rest = (self._line + data).partition(end)
        if not found:
            self._line = text
            if len(text) > _MAX_HEAD:
                self._state = _State.UNKNOWN
            return b""
        self._line = b""
        if self._state is _State.HEAD:
            self._state = self._after_head(text)
        elif self._state is _State.CHUNK_SIZE:
            self._state = self._after_chunk_size(text)
        elif not text:
            # The empty line after the trailers.
            self._state = _State.END
        return rest

    def _after_head(self, head: bytes) -> _State:
        status = _STATUS.match(head + b"\r")
        if status is None or status[1] == b"101":
            return _State.UNKNOWN
        if status[1].startswith(b"1"):
            return _State.HEAD
        lengths = _LENGTH.findall(head)
        if status[1] in _NO_BODY:
            return _State.END
        if _ENCODED.search(head):
            return _State.CHUNK_SIZE if _CHUNKED.search(head) and not lengths else _State.UNKNOWN
        if len(lengths) != 1:
            return _State.UNKNOWN
        self._left = int(lengths[0])
        return _State.BODY if self._left else _State.END

    def _after_chunk_size(self, line: bytes) -> _State:
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            return _State.UNKNOWN
        length = int(size[1], 16)
        # The line break after the chunk belongs to it.
        self._left = length + 2
        return _State.CHUNK if length else _State.TRAILER
