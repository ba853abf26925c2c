"""What is known about one attempt to send a request: whether a byte of it may have left, and how its response ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from .framing import ResponseFraming

# Events of httpcore: https://www.encode.io/httpcore/extensions/#trace
_CONNECTING: Final = (".connect_tcp.started", ".connect_unix_socket.started")
_SENDING: Final = frozenset({"http11.send_request_headers.started", "http2.send_request_headers.started"})
_ANSWERED: Final = frozenset({"http11.receive_response_headers.complete", "http2.receive_response_headers.complete"})


class Progress:
    """Progress of one attempt. Reading it is safe at any time, also after the attempt was cut.

    Messages to a proxy that asks for a tunnel, and TLS handshakes, are not part of the request.
    """

    def __init__(self) -> None:
        # False: no byte of the request has left. None: unknown, because a library has the request.
        self._sent: bool | None = False
        self._is_new = self._is_read = self._is_answered = False
        self._framing: ResponseFraming | None = None
        self.phase = ""
        """What the attempt waits for while it has no connection; empty if that is unknown."""

    @property
    def may_be_sent(self) -> bool:
        """Whether a byte of the request may have left. True if that is unknown."""
        return self._sent is not False

    @property
    def is_sent(self) -> bool:
        """Whether a byte of the request has left, or was about to. False if that is unknown."""
        return self._sent is True

    @property
    def is_new_connection(self) -> bool:
        """Whether the attempt opened its connection."""
        return self._is_new

    @property
    def is_read(self) -> bool:
        """Whether what is written now belongs to the request, and not to the opening of a tunnel."""
        return self._is_read

    @property
    def is_stale(self) -> bool:
        """Whether the request was written to a connection kept from an earlier one and no byte came back."""
        return self.is_sent and not self._is_new and not self._is_answered

    @property
    def has_ended_exactly(self) -> bool:
        """Whether the bytes received are one complete response and nothing more."""
        return self._framing is not None and self._framing.is_complete

    def hand_over(self) -> None:
        """Note that a library has the request from now on, so that only what it reports is known."""
        self._sent = None

    def take_over(self) -> None:
        """Note that the sockets note everything from now on, and nothing has left."""
        self._sent = False

    def note_connecting(self) -> None:
        """Note that a connection is opened, so that nothing of the request has left unless it was noted before."""
        self._is_new = True
        if self._sent is None:
            self._sent = False

    def note_phase(self, phase: str) -> None:
        """Note what the attempt waits for."""
        self.phase = phase

    def note_read(self) -> None:
        """Note that the body of the request is read in order to be sent: the connection and its tunnel are open."""
        self._is_read = True
        self._framing = ResponseFraming()

    def note_sent(self) -> None:
        """Note that the first byte of the request is about to leave."""
        self._sent = True

    def note_received(self, data: bytes) -> None:
        """Note bytes that arrived."""
        if self._framing is not None:
            self._is_answered = True
            self._framing.feed(data)

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Note an event of httpcore, as its `trace` extension reports it."""
        if event.endswith(_CONNECTING):
            self.note_connecting()
        elif event in _SENDING:
            if getattr(info.get("request"), "method", b"") != b"CONNECT":
                self.note_sent()
        elif event in _ANSWERED:
            self._is_answered = self._is_answered or self.is_sent
