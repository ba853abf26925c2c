"""Moves bytes: a request to a reply, or to the words for why there is none. The only file that knows httpx."""

from __future__ import annotations

import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx

from .._model.outcomes import Request, Response, TransportFailure
from .._runtime.threads import run_in_worker
from .pool import Pool

if TYPE_CHECKING:
    from .connection import Connection

HttpClient = httpx.AsyncClient

MAX_RESPONSE_BYTES: Final = 1024 * 1024
_CLOSE_TIMEOUT: Final = 1.0
# httpx gives up on a phase a little before the attempt as a whole is cut off: its own time-outs leave a pool of the
# user's whole, a cancellation while it connects may not (encode/httpcore#1099).
_PHASE_SHARE: Final = 0.95
# Seconds that a connection may lie idle: httpx's own default.
_KEEP_ALIVE: Final = 5.0
_MAX_URLS: Final = 16
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
_CLOSED: Final = TransportFailure(sent=False, message="the HTTP client is closed")


class _RequestBody(httpx.AsyncByteStream):
    """A request's body in one piece. httpx has a generator for it, which an attempt that is cut off leaves open."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._body)


class _Once:
    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class Transport:
    """One connection pool.

    Each line of a pool of our own makes no second connection. With all of them in one httpx client, requests that begin
    in the same turn of the event loop are given the same connection, and all but one must ask again; and one that is
    cut off while it connects can leave the whole client unusable (encode/httpcore#1099).

    Args:
        origin: scheme, host, port and path prefix, as `parse_origin` gives them.
        timeout: seconds for one attempt, from the wait for a connection to the last byte of the answer.
        http_client: a client of the user's, which stays the user's to close; None makes a pool of our own.
        max_connections: sockets that a pool of our own may hold.
    """

    def __init__(
        self, origin: str, *, timeout: float, http_client: httpx.AsyncClient | None = None, max_connections: int
    ) -> None:
        self._origin = origin
        self._timeout = timeout
        self._host = origin.partition("://")[2]
        self._theirs = http_client
        self._max_connections = max_connections
        self._tls: ssl.SSLContext | None = None
        self._pool: Pool[Connection] | None = None
        self._building: anyio.Lock | None = None
        # To parse one costs more than to send a small body.
        self._urls: dict[str, httpx.URL] = {}
        self._own_headers = {
            "Host": httpx.URL(origin).netloc.decode(),
            # Unless the request asks for it, no compressed answer: those to a POST are small.
            "Accept-Encoding": "identity",
        }
        self._is_closed = False

    async def open(self) -> None:
        """Make the pool ready, off the event loop: the trust store alone takes tens of milliseconds to read."""
        if self._theirs is not None:
            return
        if self._building is None:
            self._building = anyio.Lock()
        async with self._building:
            if self._pool is None and not self._is_closed:
                # With a limiter of its own: an application that keeps all its threads busy must not stop delivery.
                own = anyio.CapacityLimiter(1)
                pool, first = await run_in_worker(self._make_pool, own)
                pool.add(first)
                self._pool = pool

    def _make_pool(self) -> tuple[Pool[Connection], Connection]:
        # It brings all of httpcore, and with it trio, which nobody shall wait for who only imports this.
        from .connection import connection_factory  # noqa: PLC0415

        if self._tls is None:
            # Without TLS no trust store is needed; a context that trusts nobody keeps that honest.
            plain = self._origin.startswith("http://")
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else httpx.create_ssl_context()
        make = connection_factory(self._tls, timeout=self._timeout * _PHASE_SHARE, keep=_KEEP_ALIVE)
        return Pool(make, max_size=self._max_connections, idle_timeout=_KEEP_ALIVE, clock=anyio.current_time), make()

    def abandon_pool(self) -> object:
        """Drop the pool without closing it: its event loop is gone, and its sockets with it.

        Returns:
            What was dropped.
        """
        self._building = None
        pool, self._pool = self._pool, None
        return pool

    async def send(self, request: Request, *, timeout: float | None = None) -> Response | TransportFailure:
        """One attempt.

        Args:
            request: what to send.
            timeout: seconds for this attempt, if fewer than usual.

        Returns:
            The reply, whatever its status, or why there is none. Nothing is raised.
        """
        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        if self._theirs is not None:
            if self._theirs.is_closed:
                return _CLOSED
            return await self._by_theirs(self._theirs, request, limit)
        deadline = anyio.current_time() + limit
        try:
            if self._pool is None:
                with anyio.move_on_after(limit):
                    await self.open()
            pool = self._pool
            if pool is None:
                return (
                    _CLOSED
                    if self._is_closed
                    else TransportFailure(sent=False, message="no connection pool could be made in time")
                )
            line = pool.try_acquire()
            if line is None:
                with anyio.CancelScope(deadline=deadline):
                    line = await pool.acquire()
        except Exception as error:  # noqa: BLE001  a proxy or trust store of the environment may be unusable
            return TransportFailure(sent=False, message=f"no connection pool could be made ({type(error).__name__})")
        if line is None:
            words = f"no connection to {self._host} was free within {limit:g} s"
            return _CLOSED if pool.is_closed else TransportFailure(sent=False, message=words)
        return await self._send_on(pool, line, request, max(0.001, deadline - anyio.current_time()))

    async def _by_theirs(
        self, client: httpx.AsyncClient, request: Request, limit: float
    ) -> Response | TransportFailure:
        connected = _Connected()

        def build(**parts: Any) -> httpx.Request:
            headers = {"Accept-Encoding": "identity", **request.headers}
            timeouts = dict.fromkeys(("connect", "read", "write", "pool"), limit * _PHASE_SHARE)
            extensions = {"timeout": timeouts, "trace": connected.note}
            outgoing = client.build_request(headers=headers, content=request.body, extensions=extensions, **parts)
            if request.body:
                outgoing.stream = _RequestBody(request.body)
            return outgoing

        send = partial(client.send, stream=True, follow_redirects=False)
        return await self._attempt(build, send, request, limit, lambda: connected.is_stale)

    async def _send_on(
        self, pool: Pool[Connection], line: Connection, request: Request, limit: float
    ) -> Response | TransportFailure:
        def build(**parts: Any) -> httpx.Request:
            headers = {**self._own_headers, **request.headers}
            if request.body:
                headers["Content-Length"] = str(len(request.body))
            # All else is cut off with the attempt, and the line with it; but this says that nothing was sent.
            extensions = {"timeout": {"connect": limit * _PHASE_SHARE}}
            return httpx.Request(headers=headers, stream=_RequestBody(request.body), extensions=extensions, **parts)

        line.begin()
        try:
            reply = await self._attempt(build, line.send, request, limit, lambda: line.is_stale)
        except BaseException as error:
            pool.discard(line)
            # A task that is thrown away must not wait any more.
            if not isinstance(error, GeneratorExit):
                await _close([line])
            raise
        if isinstance(reply, Response):
            left_over = pool.release(line)
        else:
            # It may be in the middle of something, or of the bug above.
            pool.discard(line)
            left_over = [line]
        if left_over:
            await _close(left_over)
        return reply

    async def _attempt(
        self,
        build: Callable[..., httpx.Request],
        send: Callable[[httpx.Request], Awaitable[httpx.Response]],
        request: Request,
        limit: float,
        is_stale: Callable[[], bool],
    ) -> Response | TransportFailure:
        most = MAX_RESPONSE_BYTES if request.max_response_bytes is None else request.max_response_bytes
        body = bytearray()
        try:
            with anyio.move_on_after(limit) as scope:
                return await _exchange(send, self._outgoing(build, request), most, body, scope)
        except _NOT_SENT as error:
            return TransportFailure(sent=False, message=f"no connection to {self._host} ({_describe(error)})")
        except httpx.ProtocolError:
            # Its text repeats what the server sent, which may repeat what it was sent.
            words = "the connection ended early, or what came back was not HTTP"
            return TransportFailure(sent=True, message=words, stale=is_stale())
        except httpx.NetworkError as error:
            return TransportFailure(sent=True, message=_describe(error), stale=is_stale())
        except (httpx.HTTPError, httpx.StreamError) as error:
            return TransportFailure(sent=True, message=_describe(error))
        except Exception as error:  # noqa: BLE001  a transport of the user's may raise anything
            return TransportFailure(sent=True, message=f"the HTTP client failed ({type(error).__name__})")
        return (
            _too_large(most)
            if len(body) > most
            else TransportFailure(sent=True, message=f"no complete answer within {limit:g} s")
        )

    def _outgoing(self, build: Callable[..., httpx.Request], request: Request) -> httpx.Request:
        url = None if request.query else self._urls.get(request.path)
        if url is None:
            url = httpx.URL(self._origin + request.path + ("?" + request.query if request.query else ""))
            if not request.query and len(self._urls) < _MAX_URLS:
                self._urls[request.path] = url
        outgoing = build(method=request.method, url=url)
        if request.query:
            outgoing.url = _RedactedUrl(outgoing.url)
        return outgoing

    async def aclose(self) -> None:
        """Close the pool, if it is ours, for good."""
        self._is_closed = True
        pool, self._pool = self._pool, None
        if pool is not None:
            await _close(pool.close())


async def _exchange(
    send: Callable[[httpx.Request], Awaitable[httpx.Response]],
    outgoing: httpx.Request,
    most: int,
    body: bytearray,
    scope: anyio.CancelScope,
) -> Response | TransportFailure:
    response = await send(outgoing)
    try:
        if response.is_stream_consumed:
            # A transport of the user's, such as a mock, may hand over a response that is complete.
            return _reply(_headers(response), response.content, response.status_code, most)
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > most:
                # Cancelled and not left: only so do the generators beneath it come to their end in time.
                scope.cancel()
        headers = _headers(response)
        whole = _decoded(bytes(body), headers.get(b"content-encoding", ""), most)
        return _reply(headers, whole, response.status_code, most)
    finally:
        if not response.is_closed:
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await response.aclose()


class _Connected:
    """What httpcore tells of a request: whether it used a connection that was there, and whether an answer began."""

    def __init__(self) -> None:
        self._is_new = self._is_sending = self._is_answered = False

    async def note(self, event: str, _: object) -> None:
        if event == "connection.connect_tcp.started":
            self._is_new = True
        elif event == "http11.send_request_headers.started":
            self._is_sending = True
        elif event == "http11.receive_response_headers.complete":
            self._is_answered = True

    @property
    def is_stale(self) -> bool:
        """Whether a connection that had been kept was gone when it was used."""
        return self._is_sending and not self._is_new and not self._is_answered


async def _close(lines: list[Connection]) -> None:
    """Close them, all at once and within a bound that no cancellation shortens."""
    with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        if len(lines) == 1:
            await lines[0].aclose()
            return
        async with anyio.create_task_group() as tasks:
            for line in lines:
                tasks.start_soon(line.aclose)


class _RedactedUrl(httpx.URL):
    """A URL that shows no query where it is written, as httpx writes every one to its log."""

    def __str__(self) -> str:
        return str(self.copy_with(query=None))

    def __repr__(self) -> str:
        return repr(self.copy_with(query=None))

    def __eq__(self, other: object) -> bool:
        return httpx.URL(self) == (httpx.URL(other) if isinstance(other, httpx.URL) else other)

    def __hash__(self) -> int:
        return hash(httpx.URL(self))


def _headers(response: httpx.Response) -> dict[bytes, str]:
    """By name in small letters. httpx looks through all of them for each that is asked for."""
    return {name.lower(): value.decode("latin-1") for name, value in response.headers.raw}


def _reply(headers: dict[bytes, str], body: bytes, status: int, most: int) -> Response | TransportFailure:
    if len(body) > most:
        return _too_large(most)
    return Response(
        status=status,
        body=body,
        retry_after=headers.get(b"retry-after"),
        date=headers.get(b"date"),
        etag=headers.get(b"etag"),
    )


def _too_large(most: int) -> TransportFailure:
    return TransportFailure(sent=True, message=f"the answer is larger than {most} bytes")


def _decoded(body: bytes, encoding: str, most: int) -> bytes:
    """The body of an answer that is compressed, asked for or not: a little beyond the limit at most, empty if it cannot
    be read."""
    if encoding.lower() not in {"gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, most + 1)
    except zlib.error:
        return b""


def _describe(error: Exception) -> str:
    text = str(error)
    cause: BaseException | None = error
    while not text and cause is not None:
        # On trio, a certificate that was not accepted is told by what the error was raised from alone.
        cause = cause.__cause__ or cause.__context__
        text = str(cause or "")
    text = text[:160]
    text = "".join(char if char.isprintable() else " " for char in text)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
