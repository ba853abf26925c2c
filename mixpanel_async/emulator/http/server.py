"""Server of the emulator. The only module that uses uvicorn and its parser, h11.

uvicorn's HTTP protocol runs on an event loop in a separate thread, so that tests can use asyncio, trio or no event
loop. uvicorn's `Server` is not used, because it polls, installs signal handlers and writes logs. This server stops
without delay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from email.utils import formatdate
from functools import lru_cache, partial
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast, final

import anyio
import anyio.to_thread
import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..project.responses import error_response
from .connections import Connections, GuardedTransport
from .faults import ConnectionDroppedError
from .guard import SECURITY_HEADERS, is_loopback
from .tls import HOST_NAME, ServerCertificate, Tls, server_certificate
from .tls_transport import HANDSHAKE, TlsTransport

_KEEP_ALIVE: Final = 75
_BACKLOG: Final = 512
_HEAD_SECONDS: Final = 30.0
_SWEEP_SECONDS: Final = 1.0
_MAX_CONNECTIONS: Final = 4096
# A body of at most this size is read after an early response, so that the connection can be used again.
_MAX_SKIPPED_BYTES: Final = 64 * 1024
_MAX_NAME: Final = 253
# Addresses that mean all addresses, and one of this machine for each.
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  compared, not bound
_MAX_DATE: Final = 253_402_300_799.0
_HTTPS_REFUSED: Final = "the client uses https; start the emulator with --tls, or tls=True in Python"
_CLOSE_HEADER: Final = (b"connection", b"close")
_LOOP_STEPS_TO_ACCEPT: Final = 3

ASGIApp = Callable[[Any, Any, Any], Any]


@final
class Server:
    """Server of an emulator. Use it in `with` or `async with`, or call `start` and `close`.

    Args:
        app: the ASGI application.
        host: address to listen on. Must be a loopback address unless `allow_remote` is set.
        port: port to listen on, 0 to 65535; 0 picks a free port.
        allow_remote: allow an address that other machines can reach. The emulator has no protection against them.
        allow_hosts: names of the server besides its address, such as `emulator.test`. Requests may name them as `Host`,
            and the certificate has them.
        tls: certificates for https, which is served on the same port as http; None serves http only.
        now: clock that returns seconds since the epoch, for the header `Date`.
        on_unread: called with the status of the response, or None, and the reason if a request cannot be read.

    Raises:
        ValueError: if the host is not a loopback address and `allow_remote` is not set, or a name of `allow_hosts` is
            not a host name.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        allow_remote: bool,
        allow_hosts: Iterable[str] = (),
        tls: Tls | None = None,
        now: Callable[[], float] = time.time,
        on_unread: Callable[[int | None, str], None] | None = None,
    ) -> None:
        if not allow_remote and not is_loopback(host):
            raise ValueError(f"host must be a loopback address unless allow_remote=True, not {host!r}")
        self._names = tuple(name.lower() for name in allow_hosts)
        for name in self._names:
            if len(name) > _MAX_NAME or HOST_NAME.fullmatch(name) is None:
                raise ValueError(f"allow_hosts must be host names such as 'emulator' or 'mixpanel.test', not {name!r}")
        self._tls = tls
        self._certificate: ServerCertificate | None = None
        self._app = app
        self._host = host
        self._allow_remote = allow_remote
        self._port = port
        self._now = now
        self._on_unread = on_unread or (lambda _status, _reason: None)
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._connections: set[Any] = set()

    @property
    def url(self) -> str:
        """URL of the server, such as `http://127.0.0.1:49152`. It is a loopback address if all addresses are served.

        Raises:
            RuntimeError: if the server is not running.
        """
        host, port = self._address()
        host = _WILDCARDS.get(host, host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def has_tls(self) -> bool:
        """Whether the server is made with TLS."""
        return self._tls is not None

    @property
    def https_url(self) -> str:
        """URL of the server for TLS, such as `https://localhost:49152`.

        Raises:
            RuntimeError: if the server is not running, or has no TLS.
        """
        host, port = self._address()
        if self._certificate is None:
            raise RuntimeError("the server has no TLS; pass tls=True to serve()")
        # Some clients do not look for IP addresses in a certificate.
        if host == "127.0.0.1" or host in _WILDCARDS:
            return f"https://localhost:{port}"
        return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"

    @property
    def ca_file(self) -> Path | None:
        """Certificate of the authority that clients must trust; None without TLS or with `cert_file`."""
        return None if self._certificate is None else self._certificate.ca_file

    def _address(self) -> tuple[str, int]:
        if self._socket is None:
            raise RuntimeError("the server is not running; use it in `with` or call start()")
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Start the server. Return once it accepts connections.

        Raises:
            RuntimeError: if the server is already running.
            OSError: if the address is not available.
            TlsError: if a certificate, a key or the directory of the authority cannot be used.
            ImportError: if the extra `tls` is needed and not installed.
        """
        if self._thread is not None:
            raise RuntimeError("the server is already running")
        if self._tls is not None:
            own = [] if self._host in _WILDCARDS else [self._host.lower()]
            self._certificate = server_certificate(self._tls, [*own, *self._names])
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=_BACKLOG)
        started: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(self._socket, started), name="mixpanel-emulator", daemon=True
        )
        self._thread.start()
        try:
            started.result()
        except BaseException:
            self._thread = None
            self._socket.close()
            self._socket = None
            raise

    def close(self) -> None:
        """Stop the server and close every connection. Does nothing if the server is not running."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        self._socket = None

    def cut_connections(self) -> None:
        """Abort every open connection, idle or not, and keep listening.

        A client that reuses connections finds them dead at their next use, as after a restart of the server.

        Raises:
            RuntimeError: if the server is not running.
        """
        loop = self._loop
        if self._thread is None or loop is None:
            raise RuntimeError("the server is not running")
        cut: Future[None] = Future()

        def abort_all() -> None:
            self._abort_connections()
            cut.set_result(None)

        loop.call_soon_threadsafe(abort_all)
        cut.result()

    def _abort_connections(self) -> None:
        for connection in list(self._connections):
            cast("_EmulatorProtocol", connection).transport.abort()

    def _run(self, listener: socket.socket, started: Future[None]) -> None:
        try:
            asyncio.run(self._serve(listener, started))
        except BaseException as error:
            if started.done():
                raise
            # Passed on to the thread that waits in `start`.
            started.set_exception(error)

    async def _serve(self, listener: socket.socket, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        config = Config(
            self._dispatch,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            log_level=None,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
        )
        state = ServerState()
        self._connections = state.connections
        log = _error_log()
        bound = {"host": self._host.lower(), "remote": self._allow_remote, "names": frozenset(self._names)}
        secure = None if self._certificate is None else self._certificate.context
        limits = Connections(self._loop, max_connections=_max_connections(), idle_seconds=_KEEP_ALIVE)
        server = await self._loop.create_server(
            lambda: _EmulatorProtocol(config, state, log, bound, limits, self._date_headers, self._on_unread, secure),
            sock=listener,
        )
        started.set_result(None)
        try:
            while not self._stop.is_set():
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), _SWEEP_SECONDS)
                limits.sweep()
        finally:
            # asyncio would leave a connection open that is being accepted while the server closes.
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(listener)
            for _ in range(_LOOP_STEPS_TO_ACCEPT):
                await asyncio.sleep(0)
            server.close()
            self._abort_connections()

    def _date_headers(self) -> list[tuple[bytes, bytes]]:
        now = self._now()
        return [(b"date", _http_date(int(now)))] if 0 <= now <= _MAX_DATE else []

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        length = 0

        async def send_with_headers(message: Any) -> None:
            nonlocal length
            if message["type"] == "http.response.start":
                headers = [*self._date_headers(), *message.get("headers", ())]
                if scope["state"]["must_close"]() and _CLOSE_HEADER not in headers:
                    headers.append(_CLOSE_HEADER)
                message = {**message, "headers": headers}
                length = next((int(value) for name, value in headers if name == b"content-length"), 0)
            else:
                length -= len(message.get("body", b""))
            scope["state"]["set_unsent"](length)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ConnectionDroppedError:
            scope["state"]["abort"]()
            # If the application returns without a response, uvicorn sends one, unless the client has disconnected.
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            # The server is closing and has aborted the connection. uvicorn would log the cancellation as an error.
            return

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Server:
        await anyio.to_thread.run_sync(self.start)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self.close)


class _EmulatorProtocol(H11Protocol):
    """uvicorn's HTTP protocol without access log, with limits for hostile clients and an abort function.

    Args:
        config: configuration of uvicorn.
        server_state: state shared by the connections.
        log: logger for errors of the emulator itself.
        address: address of the server, passed to the application in the state of the scope.
        limits: limits shared by the connections.
        date_headers: returns the `Date` header.
        on_unread: as in `Server`.
        secure: context of the server for TLS, or None.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        log: logging.Logger,
        address: Mapping[str, object],
        limits: Connections,
        date_headers: Callable[[], list[tuple[bytes, bytes]]],
        on_unread: Callable[[int | None, str], None],
        secure: ssl.SSLContext | None,
    ) -> None:
        super().__init__(config, server_state, {})
        self.logger = log
        self.access_log = False
        self._address = address
        self._limits = limits
        self._date_headers = date_headers
        self._on_unread = on_unread
        self._secure = secure
        self._guarded: GuardedTransport | None = None
        self._wire: TlsTransport | None = None
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio sets TCP_NODELAY only on sockets with an explicit protocol. Without it, a response takes 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._secure is not None:
            self._wire = TlsTransport(
                transport,
                self._secure,
                feed=self._receive,
                on_tls=self._note_tls,
                on_failure=partial(self._on_unread, None),
            )
        self._guarded = GuardedTransport(
            self._wire or transport,
            self._limits,
            self.loop,
            feed=self._parse,
            is_receiving=self._is_receiving,
            is_busy=lambda: self.cycle is not None and not self.cycle.response_complete,
        )
        self.app_state = {
            "abort": transport.abort,
            "must_close": self._must_close,
            "set_unsent": self._guarded.set_unsent,
            **self._address,
        }
        super().connection_made(self._guarded)
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        if self._wire is not None:
            self._wire.received(data)
        else:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        assert self._guarded is not None
        self._guarded.received(data)

    def _note_tls(self) -> None:
        self.scheme = "https"

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        self._update_head_timer()

    def on_response_complete(self) -> None:
        if self._guarded is not None:
            self._guarded.request_done()
        super().on_response_complete()
        # The next request may have started before this response was sent.
        self._update_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        if self._guarded is not None:
            self._guarded.lost()
        super().connection_lost(exc)

    def _is_receiving(self) -> bool:
        """Return whether the client has sent, or may still send, what the server has not processed."""
        return self.conn.their_state in {h11.SEND_BODY, h11.ERROR} or bool(self.conn.trailing_data[0])

    def _must_close(self) -> bool:
        """Return whether the rest of the request is too long to be read after the response."""
        if self.conn.their_state is not h11.SEND_BODY:
            return False
        length = next((value for name, value in self.headers if name == b"content-length"), None)
        return length is None or int(length) > _MAX_SKIPPED_BYTES

    def _update_head_timer(self) -> None:
        # Trailing data is the incomplete head of the next request.
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._start_head_timer()
        else:
            self._cancel_head_timer()

    def _start_head_timer(self) -> None:
        """Limit the time for the head of a request, however many chunks it comes in."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if self.conn.trailing_data[0]:
            self._send_error(408, "the request did not arrive in time")
        else:
            # An idle connection that a browser keeps in reserve does not expect a response.
            self.transport.close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        is_tls = self._wire is None and self.conn.trailing_data[0].startswith(HANDSHAKE)
        self._send_error(400, _HTTPS_REFUSED if is_tls else msg)

    def _send_error(self, status: int, words: str) -> None:
        """Answer a malformed request in Mixpanel's format, unless another response has started, and disconnect."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        self._on_unread(status, words)
        answer = error_response("", status, words)
        headers = [*self._date_headers(), (b"content-type", answer.media_type.encode()), _CLOSE_HEADER]
        headers += [*SECURITY_HEADERS, (b"content-length", b"%d" % len(answer.body))]
        for event in (
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
            h11.Data(data=answer.body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


@lru_cache(maxsize=4)
def _http_date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def _max_connections() -> int:
    """Return the maximum number of connections: half of the sockets that the system allows to this process."""
    if sys.platform == "win32":
        return _MAX_CONNECTIONS
    import resource  # noqa: PLC0415  not available on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(_MAX_CONNECTIONS, max(1, soft // 2))


def _error_log() -> logging.Logger:
    """Return a logger for errors of the emulator itself, which leaves out malformed requests.

    It is not registered by name, because a level set on a shared logger would affect all of its users.
    """
    log = logging.Logger("mixpanel_async.emulator", logging.ERROR)  # noqa: LOG001  private, see the docstring
    log.parent = logging.getLogger("mixpanel_async")
    return log
