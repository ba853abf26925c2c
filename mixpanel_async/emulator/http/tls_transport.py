"""TLS and plain connections on one port.

The first byte that a client sends tells whether it starts a TLS handshake. asyncio can start TLS only before the first
byte is read, so that the transport here uses the TLS objects of the standard library.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, final

# Type of a TLS record that belongs to a handshake (RFC 8446, section 5.1). No HTTP method begins with it.
HANDSHAKE: Final = b"\x16"
# Ends of the names that OpenSSL gives to the alerts of a client that rejects the certificate.
_DISTRUST: Final = ("ALERT_UNKNOWN_CA", "ALERT_CERTIFICATE_UNKNOWN", "ALERT_BAD_CERTIFICATE")
_CHUNK: Final = 64 * 1024


def _handshake_failure(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if reason.endswith(_DISTRUST):
        return "the client does not trust the certificate, or it has no such host name; see docs/guides/emulator.md"
    return f"the TLS handshake failed: {reason.replace('_', ' ').lower() or 'unknown error'}"


@final
class TlsTransport(asyncio.Transport):
    """Transport of a connection that becomes a TLS connection if the client asks for it.

    Args:
        transport: transport of the socket.
        context: context with the server's certificate.
        feed: receives data, decrypted if it came over TLS.
        on_tls: called once if the client starts TLS.
        on_failure: called with the reason if the handshake fails.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        context: ssl.SSLContext,
        *,
        feed: Callable[[bytes], None],
        on_tls: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._transport = transport
        self._context = context
        self._feed = feed
        self._on_tls = on_tls
        self._on_failure = on_failure
        self._is_plain = False
        self._tls: ssl.SSLObject | None = None
        self._is_established = False
        self._is_closed = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()

    def received(self, data: bytes) -> None:
        """Process data from the socket."""
        if self._tls is None and not self._is_plain:
            self._is_plain = not data.startswith(HANDSHAKE)
            if not self._is_plain:
                self._tls = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
                self._on_tls()
        if self._tls is None:
            self._feed(data)
        elif not self._is_closed:
            self._incoming.write(data)
            self._decrypt(self._tls)

    def _decrypt(self, tls: ssl.SSLObject) -> None:
        try:
            if not self._is_established:
                tls.do_handshake()
                self._is_established = True
            while not (self._is_closed or self._transport.is_closing()):
                data = tls.read(_CHUNK)
                if not data:
                    # The client has closed its side.
                    self.close()
                    return
                self._feed(data)
        except ssl.SSLWantReadError:
            self._send()
        except ssl.SSLError as error:
            if not self._is_established:
                self._on_failure(_handshake_failure(error))
            # The alert says why, such as an unknown authority.
            self._send()
            self._transport.close()

    def _send(self) -> None:
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())

    def write(self, data: Any) -> None:
        if self._tls is None:
            self._transport.write(data)
        elif data and not self._is_closed:
            try:
                self._tls.write(data)
            except ssl.SSLError:
                # The client negotiates TLS again, which no HTTP client does.
                self._transport.abort()
            self._send()

    def _end_tls(self) -> None:
        """Tell a TLS client that nothing follows. What it still sends is not decrypted."""
        if self._tls is None or self._is_closed:
            return
        self._is_closed = True
        if self._is_established:
            # The client has usually not closed its side yet.
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
        self._send()

    def close(self) -> None:
        if not self._transport.is_closing():
            self._end_tls()
            self._transport.close()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def write_eof(self) -> None:
        self._end_tls()
        self._transport.write_eof()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
