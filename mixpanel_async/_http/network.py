"""TCP and TLS streams: name lookups in daemon threads, happy eyeballs, small requests in one write, unread bytes.

asyncio resolves names in its default executor, whose threads `asyncio.run` and the interpreter wait for at exit: a name
server that does not answer would hold the process until the resolver gives up.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import chain, zip_longest
from typing import Any, Final, NamedTuple

import anyio
import anyio.abc
import httpcore
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from .._runtime.threads import start_daemon_thread, wait_for
from .progress import Progress
from .reasons import describe

# RFC 8305, section 5, "Connection Attempt Delay": seconds before the next address is tried as well.
_ATTEMPT_DELAY: Final = 0.25
# A larger body is written separately: joining it to the head would cost more than it saves.
_MAX_JOINED_BYTES: Final = 256 * 1024
# Largest read of asyncio. A smaller one would leave bytes in a buffer that cannot be seen.
_MAX_READ: Final = 256 * 1024
_RECORD_HEADER: Final = 5
_EXTRA_INFO: Final[Mapping[str, Any]] = {
    "socket": SocketAttribute.raw_socket,
    "client_addr": SocketAttribute.local_address,
    "server_addr": SocketAttribute.remote_address,
}
_DISCONNECTED: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError)
_CLOSED_EARLY: Final = "the connection was closed"


class _Socket(anyio.abc.ByteStream):
    """TCP connection that tells whether bytes wait in it."""

    def __init__(self, inner: anyio.abc.SocketStream) -> None:
        self._inner = inner
        self._socket: socket.socket = inner.extra_attributes[SocketAttribute.raw_socket]()
        self._descriptor = self._socket.fileno()
        self._poll: Any = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)

    @property
    def is_readable(self) -> bool:
        """Whether bytes or the end of the connection wait in the socket."""
        if self._socket.fileno() != self._descriptor:
            return True
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return bool(select.select([self._descriptor], [], [], 0)[0])

    async def receive(self, max_bytes: int = _MAX_READ) -> bytes:
        return await self._inner.receive(max(max_bytes, _MAX_READ))

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._inner.extra_attributes


class _Records(anyio.abc.ByteStream):
    """Stream below TLS that follows the records of the server: `ssl` does not tell of one that is incomplete."""

    def __init__(self, inner: anyio.abc.ByteStream) -> None:
        self._inner = inner
        self._left = 0
        self._header = b""

    @property
    def is_within_record(self) -> bool:
        """Whether a record has arrived in part."""
        return bool(self._left or self._header)

    async def receive(self, max_bytes: int = _MAX_READ) -> bytes:
        data = await self._inner.receive(max_bytes)
        at = 0
        while at < len(data):
            if self._left:
                taken = min(self._left, len(data) - at)
                self._left -= taken
            else:
                taken = min(_RECORD_HEADER - len(self._header), len(data) - at)
                self._header += data[at : at + taken]
                if len(self._header) == _RECORD_HEADER:
                    self._left = int.from_bytes(self._header[3:], "big")
                    self._header = b""
            at += taken
        return data

    async def send(self, item: bytes) -> None:
        await self._inner.send(item)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def aclose(self) -> None:
        await self._inner.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._inner.extra_attributes


class _Tls(NamedTuple):
    """TLS over a stream.

    Args:
        session: encrypts.
        records: stream of encrypted bytes.
        below: what carries the encrypted bytes.
    """

    session: ssl.SSLObject
    records: _Records
    below: _Stream


class _Stream(httpcore.AsyncNetworkStream):
    """Network stream that joins the head of a request and a small body into one write, made by the next read.

    httpcore writes head and body separately, which costs one more system call, packet and turn of the event loop. The
    timeouts of reads and writes are ignored: the deadline of the attempt covers both.

    Args:
        stream: `connection`, or TLS over it.
        connection: the TCP connection.
        network: notes what happens.
        tls: the TLS session; None without TLS.
    """

    def __init__(
        self,
        stream: anyio.abc.ByteStream,
        connection: _Socket,
        network: NetworkBackend,
        tls: _Tls | None = None,
    ) -> None:
        self._stream = stream
        self._connection = connection
        self._network = network
        self._unwritten = b""
        self._tls = tls
        network.note_stream(self)

    @property
    def has_unread(self) -> bool:
        """Whether bytes have arrived from the server that no response has taken. Do not call it during a read."""
        if self._tls is None:
            return self._connection.is_readable
        if self._tls.records.is_within_record:
            return True
        try:
            # Also the end of the TLS session counts.
            self._tls.session.read(1)
        except ssl.SSLWantReadError:
            return self._tls.below.has_unread
        except ssl.SSLError:
            pass
        return True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        if self._unwritten:
            # As in httpcore: a server may have answered before it closed the connection.
            with contextlib.suppress(httpcore.WriteError):
                await self._flush()
        try:
            data = await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except (*_DISCONNECTED, OSError) as error:
            raise httpcore.ReadError(describe(error, _CLOSED_EARLY)) from error
        self._network.progress.note_received(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        if len(self._unwritten) + len(buffer) <= _MAX_JOINED_BYTES:
            self._unwritten += buffer
            return
        if self._unwritten:
            await self._flush()
        await self._send(buffer)

    async def _flush(self) -> None:
        data, self._unwritten = self._unwritten, b""
        await self._send(data)

    async def _send(self, data: bytes) -> None:
        progress = self._network.progress
        if not progress.is_read and len(data) <= _MAX_JOINED_BYTES:
            progress.note_phase("waiting for the proxy")
        elif not progress.is_sent:
            if progress.is_new_connection and self._tls is None and self._connection.is_readable:
                raise httpcore.ConnectError("the server closed the connection before the request, or spoke first")
            progress.note_sent()
        try:
            await self._stream.send(data)
        except (*_DISCONNECTED, OSError) as error:
            raise httpcore.WriteError(describe(error, _CLOSED_EARLY)) from error

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        self._network.progress.note_phase("in the TLS handshake")
        records = _Records(self._stream)
        try:
            with anyio.fail_after(timeout):
                stream = await TLSStream.wrap(
                    records,
                    ssl_context=ssl_context,
                    hostname=server_hostname,
                    standard_compatible=False,
                    server_side=False,
                )
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except (*_DISCONNECTED, anyio.EndOfStream, OSError, ValueError) as error:
            raise httpcore.ConnectError(describe(error, _CLOSED_EARLY)) from error
        tls = _Tls(stream.extra_attributes[TLSAttribute.ssl_object](), records, self)
        return _Stream(stream, self._connection, self._network, tls)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self._connection.is_readable
        if info == "ssl_object":
            return None if self._tls is None else self._tls.session
        attribute = _EXTRA_INFO.get(info)
        return None if attribute is None else self._connection.extra_attributes[attribute]()


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Opens the TCP connections of one `Connection` and notes what happens during the current attempt.

    Args:
        lookups: name lookups in progress, by host and port. Each has one thread, no matter how many connections wait
            for it or how often they give up.
    """

    def __init__(self, lookups: dict[tuple[str, int], Future[list[str]]]) -> None:
        self._lookups = lookups
        self._connection: _Socket | None = None
        self._stream: _Stream | None = None
        self.progress = Progress()
        """Progress of the current attempt."""

    def begin_attempt(self, progress: Progress) -> None:
        """Note everything in this object from now on."""
        self.progress = progress

    def note_stream(self, stream: _Stream) -> None:
        """Note the innermost stream of the connection."""
        self._stream = stream

    @property
    def is_clean(self) -> bool:
        """Whether one complete response has arrived in this attempt, and nothing after it."""
        return self.progress.has_ended_exactly and self._stream is not None and not self._stream.has_unread

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002  never set
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002  never set
    ) -> httpcore.AsyncNetworkStream:
        self.progress.note_connecting()
        try:
            with anyio.fail_after(timeout):
                if _is_address(host):
                    addresses = [host]
                else:
                    self.progress.note_phase("looking up the name")
                    addresses = await self._resolve(host, port)
                self.progress.note_phase("connecting")
                stream = await _connect_to_any(addresses, port)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except (UnicodeError, OverflowError) as error:
            # The resolver refuses the name of a proxy, for example one with a label of more than 63 characters.
            raise httpcore.ConnectError(f"the host name is invalid ({type(error).__name__})") from None
        except (*_DISCONNECTED, OSError) as error:
            raise httpcore.ConnectError(describe(error, "the name has no address")) from None
        self._connection = connection = _Socket(stream)
        return _Stream(connection, connection, self)

    async def aclose(self) -> None:
        """Close the TCP connection, which httpcore forgets if it is cancelled while it opens a tunnel."""
        if self._connection is not None:
            await self._connection.aclose()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def _resolve(self, host: str, port: int) -> list[str]:
        key = host, port
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = start_daemon_thread(partial(_look_up, host, port), "mixpanel resolver")
            lookup.add_done_callback(lambda _: self._lookups.pop(key, None))
        return await wait_for(lookup)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _look_up(host: str, port: int) -> list[str]:
    """Return the addresses of a host in the order of the system, with IPv4 and IPv6 alternating."""
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        families.setdefault(family, []).append(str(address[0]))
    return [address for address in chain.from_iterable(zip_longest(*families.values())) if address is not None]


async def _connect_to_any(addresses: list[str], port: int) -> anyio.abc.SocketStream:
    """Try the addresses in order, each a little later than the one before, and keep the first connection."""
    if len(addresses) == 1:
        return await anyio.connect_tcp(addresses[0], port)
    streams: list[anyio.abc.SocketStream] = []
    errors: list[Exception] = []

    async def attempt(address: str, failed: anyio.Event) -> None:
        try:
            stream = await anyio.connect_tcp(address, port)
        except (OSError, *_DISCONNECTED) as error:
            errors.append(error)
            failed.set()
        else:
            streams.append(stream)
            tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for address in addresses:
            failed = anyio.Event()
            tasks.start_soon(attempt, address, failed)
            with anyio.move_on_after(_ATTEMPT_DELAY):
                await failed.wait()
    for unused in streams[1:]:
        await unused.aclose()
    if streams:
        return streams[0]
    raise errors[0] if errors else OSError
