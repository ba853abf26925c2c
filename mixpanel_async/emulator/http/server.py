"""The emulator on a socket; the only module that knows uvicorn and its parser, h11.

uvicorn's HTTP protocol runs on an event loop in a thread of the server's own, so that a test may be written for
asyncio, trio or no loop at all. uvicorn's `Server` is not used: it polls, installs signal handlers and writes to the
log, while this one stops as soon as it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from http import HTTPStatus
from types import TracebackType
from typing import Any, Final, cast, final

import anyio
import anyio.to_thread
import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ..project.responses import error_response
from .faults import ConnectionDroppedError
from .guard import SECURITY_HEADERS, is_loopback

_KEEP_ALIVE: Final = 75
_BACKLOG: Final = 512
_HEAD_SECONDS: Final = 30.0
_LOOP_STEPS_TO_ACCEPT: Final = 3

ASGIApp = Callable[[Any, Any, Any], Any]


@final
class Server:
    """A loopback address at which the emulator listens. Use it in `with` or `async with`, or call `start` and `close`.

    Args:
        app: the ASGI application.
        host: address to listen at; a loopback address, or any with `allow_remote`.
        port: port to listen at; 0 takes a free one.
        allow_remote: listen at an address that other machines reach. The emulator has no protection against them.

    Raises:
        ValueError: if the host is not a loopback address and `allow_remote` is not set.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, *, allow_remote: bool) -> None:
        if not allow_remote and not is_loopback(host):
            raise ValueError("the emulator listens at a loopback address only, unless allow_remote=True")
        self._app = app
        self._host = host
        self._allow_remote = allow_remote
        self._port = port
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._connections: set[Any] = set()

    @property
    def url(self) -> str:
        """Address for clients, such as `http://127.0.0.1:49152`.

        Raises:
            RuntimeError: if the server is not running.
        """
        if self._socket is None:
            raise RuntimeError("the server is not running")
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def start(self) -> None:
        """Listen. Returns once connections are taken.

        Raises:
            RuntimeError: if it is running already.
            OSError: if the address cannot be had.
        """
        if self._thread is not None:
            raise RuntimeError("the server is running already")
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
        """Stop listening and cut every connection. Does nothing if the server is not running."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        self._socket = None

    def cut_connections(self) -> None:
        """Break every connection that is open now, idle or not, and go on listening.

        A client that keeps connections finds them dead when it uses them next, as after a restart of the other side.

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
            # The thread that waits in `start` is the one to hear of it.
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
        bound = {"host": self._host.lower(), "remote": self._allow_remote}
        server = await self._loop.create_server(lambda: _EmulatorProtocol(config, state, log, bound), sock=listener)
        started.set_result(None)
        try:
            await self._stop.wait()
        finally:
            # A connection whose acceptance is under way when its server is closed would be left open by asyncio.
            with contextlib.suppress(NotImplementedError):
                self._loop.remove_reader(listener)
            for _ in range(_LOOP_STEPS_TO_ACCEPT):
                await asyncio.sleep(0)
            server.close()
            self._abort_connections()

    async def _dispatch(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except ConnectionDroppedError:
            scope["state"]["abort"]()
            # uvicorn answers for an application that did not, unless it has seen the connection go.
            while (await receive())["type"] != "http.disconnect":
                pass
        except asyncio.CancelledError:
            # The server is closing and has cut the connection; uvicorn would log the cancellation as an error.
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
    """uvicorn's protocol, silent, patient within limits, and with a way for the application to break the connection.

    Args:
        config: of uvicorn.
        server_state: shared by the connections.
        log: for failures of the emulator itself.
        bound: what the application is told of the address listened at.
    """

    def __init__(
        self, config: Config, server_state: ServerState, log: logging.Logger, address: Mapping[str, object]
    ) -> None:
        super().__init__(config, server_state, {})
        self.logger = log
        self.access_log = False
        self._address = address
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # asyncio does so itself only for sockets made with an explicit protocol; without it an answer takes 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.app_state = {"abort": transport.abort, **self._address}
        super().connection_made(transport)
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_head_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # The next request may have begun before the answer to this one was out.
        self._update_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _update_head_timer(self) -> None:
        # What is left over belongs to the head of a request that is not complete.
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._start_head_timer()
        else:
            self._cancel_head_timer()

    def _start_head_timer(self) -> None:
        """Give the head of a request so much time and no more, however many bytes of it come one by one."""
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._head_timed_out)

    def _head_timed_out(self) -> None:
        if self.conn.trailing_data[0]:
            self._send_error(408, "the request did not arrive in time")
        else:
            # A browser's connection in reserve takes an answer that it did not ask for amiss.
            self.transport.close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def send_400_response(self, msg: str) -> None:
        self._send_error(400, msg)

    def _send_error(self, status: int, words: str) -> None:
        """Answer what is no request in Mixpanel's form, if an answer can still be told from another, and hang up."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.abort()
            return
        answer = error_response("", status, words)
        headers = [(b"content-type", answer.media_type.encode()), (b"connection", b"close"), *SECURITY_HEADERS]
        headers.append((b"content-length", b"%d" % len(answer.body)))
        for event in (
            h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
            h11.Data(data=answer.body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _error_log() -> logging.Logger:
    """A logger for failures of the emulator itself; malformed requests are no news here.

    It stands outside the hierarchy by name, because setting a level on a shared logger would change it for everybody.
    """
    log = logging.Logger("mixpanel_async.emulator", logging.ERROR)  # noqa: LOG001  not to be shared, as said above
    log.parent = logging.getLogger("mixpanel_async")
    return log
