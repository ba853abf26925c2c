"""HTTP transport: send one request and return its response or a failure."""

from __future__ import annotations

import contextlib
import logging
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx

from .._encoding.clock import fresh_date
from .._model.errors import ConfigurationError
from .._model.outcomes import Request, Response, TransportFailure
from .._runtime.event_loop import EventLoop
from .._runtime.log_events import log_event
from .._runtime.threads import run_in_worker
from .pool import Pool
from .progress import Progress
from .proxies import UnusableProxyError, environment_proxies
from .reasons import describe_with_class, seconds

if TYPE_CHECKING:
    import ssl

    from .connection import Connection


HttpClient = httpx.AsyncClient
"""HTTP client of httpx."""

MAX_RESPONSE_BYTES: Final = 1024 * 1024
_CLOSE_TIMEOUT: Final = 1.0
# Fraction of an attempt's time that httpx may spend on one phase. Its time-outs leave the pool of a user's client
# intact, while cancelling it during a connect may not (encode/httpcore#1099).
_PHASE_SHARE: Final = 0.95
# Seconds that a connection may stay idle; the default of httpx.
_IDLE_TIMEOUT: Final = 5.0
_MAX_CACHED_URLS: Final = 16
# A `ProxyError` ends the opening of a tunnel: the request itself was not sent. An `InvalidURL` has no host.
_NOT_SENT: Final = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
_MOVED: Final = TransportFailure(sent=False, message="another event loop has taken over the client")
_CLOSED: Final = TransportFailure(sent=False, message="the HTTP client is closed")

_Send = Callable[[httpx.Request], Awaitable[httpx.Response]]


class Transport:
    """HTTP transport of one client: a bounded pool of single connections, or the `http_client` of the user.

    httpcore manages each connection separately. In one httpcore pool, requests that start in the same turn of the
    event loop are assigned the same connection and all but one must ask again, and a request that is cancelled while it
    connects can make the whole pool unusable (encode/httpcore#1099).

    Args:
        origin: scheme, host, port and path prefix, as returned by `parse_origin`.
        timeout: seconds for one attempt, from the wait for a connection to the last byte of the response.
        http_client: client of the user, who closes it; None creates a pool.
        max_connections: maximum number of sockets in the pool.
    """

    def __init__(
        self, origin: str, *, timeout: float, http_client: httpx.AsyncClient | None = None, max_connections: int
    ) -> None:
        self._origin = origin
        self._timeout = timeout
        self._host = origin.partition("://")[2]
        self._user_client = http_client
        self._max_connections = max_connections
        self._tls: ssl.SSLContext | None = None
        self._tls_variable: str | None = None
        self._warnings: set[str] = set()
        self._loop: EventLoop | None = None
        self._pool: Pool[Connection] | None = None
        self._opening: anyio.Lock | None = None
        # Parsing a URL costs more than sending a small body.
        self._urls: dict[str, httpx.URL] = {}
        self._default_headers = {
            "Host": httpx.URL(origin).netloc.decode(),
            # Responses to POST are small; a request that wants a compressed response asks for it.
            "Accept-Encoding": "identity",
        }
        self._is_closed = False

    def bind_loop(self, loop: EventLoop) -> None:
        """Serve only requests from this event loop from now on."""
        self._loop = loop

    @property
    def _is_elsewhere(self) -> bool:
        """Whether another event loop has taken over the pool from that of the caller."""
        return self._loop is not None and not self._loop.is_current()

    async def open(self) -> None:
        """Create the pool in a worker thread, because loading the trusted certificates takes tens of milliseconds.

        A failure is not raised: an application must start also if its environment is wrong. The next request tries
        again and reports it.
        """
        if self._user_client is None:
            with contextlib.suppress(Exception):
                await self._open()

    async def _open(self) -> None:
        if self._opening is None:
            self._opening = anyio.Lock()
        async with self._opening:
            if self._pool is None and not self._is_closed:
                # A separate limiter: an application that occupies all worker threads must not stop delivery.
                pool, connection = await run_in_worker(self._create_pool, "mixpanel pool", anyio.CapacityLimiter(1))
                pool.add(connection)
                if not self._is_elsewhere:
                    self._pool = pool

    def _create_pool(self) -> tuple[Pool[Connection], Connection]:
        # Imports httpcore, which imports trio, and ssl: too slow for `import mixpanel_async`.
        from .certificates import certificate_variable, no_certificates, trusted_certificates  # noqa: PLC0415
        from .connection import ConnectionFactory  # noqa: PLC0415

        proxies = environment_proxies(self._warn_once)
        if self._tls is None:
            schemes = [one.proxy.url.scheme for one in proxies.values() if one is not None and one.proxy is not None]
            if self._origin.startswith("http://") and "https" not in schemes:
                # Plain HTTP needs no certificates.
                self._tls = no_certificates()
            else:
                self._tls_variable = certificate_variable()
                self._tls = trusted_certificates(self._warn_once)
        create = ConnectionFactory(self._tls, proxies, warn=self._warn_once, idle_timeout=_IDLE_TIMEOUT)
        pool = Pool(create, max_size=self._max_connections, idle_timeout=_IDLE_TIMEOUT, clock=anyio.current_time)
        return pool, create()

    def _warn_once(self, text: str) -> None:
        if text not in self._warnings:
            self._warnings.add(text)
            log_event(logging.WARNING, "environment_ignored", text)

    def detach_pool(self) -> Callable[[], Awaitable[None]]:
        """Forget the pool without closing it, because its event loop has ended.

        Returns:
            A function that closes the pool in its event loop, and keeps it alive.
        """
        self._opening = None
        pool, self._pool = self._pool, None
        return partial(_close_pool, pool)

    async def close_pool(self) -> None:
        """Close the pool, as its event loop ends. Another event loop can open a new one."""
        await self.detach_pool()()

    async def send(
        self, request: Request, *, timeout: float | None = None, progress: Progress | None = None
    ) -> Response | TransportFailure:
        """Make one attempt to send a request.

        Args:
            request: the request.
            timeout: seconds for this attempt, if shorter than the timeout of the transport.
            progress: notes what happens, for a caller that may be cancelled.

        Returns:
            The response with any status, or the reason of the failure. No error is raised.
        """
        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        progress = progress or Progress()
        if self._user_client is not None:
            if self._user_client.is_closed:
                return _CLOSED
            return await self._send_by_user_client(self._user_client, request, limit, progress)
        if self._is_elsewhere:
            return _MOVED
        deadline = anyio.current_time() + limit
        try:
            if self._pool is None:
                with anyio.move_on_after(limit):
                    await self._open()
            pool = self._pool
            if pool is None:
                message = f"the connection pool was not ready within {seconds(limit)}"
                return _CLOSED if self._is_closed else TransportFailure(sent=False, message=message)
            connection = pool.try_acquire()
            if connection is None:
                with anyio.CancelScope(deadline=deadline):
                    connection = await pool.acquire()
        except ConfigurationError as error:
            return TransportFailure(sent=False, message=str(error))
        except Exception as error:  # noqa: BLE001  no threads, no memory or no file descriptors may be left
            message = f"the connection pool could not be created ({describe_with_class(error)})"
            return TransportFailure(sent=False, message=message)
        if connection is None:
            message = f"no connection to {self._host} was free within {seconds(limit)}"
            return _CLOSED if pool.is_closed else TransportFailure(sent=False, message=message)
        left = max(0.001, deadline - anyio.current_time())
        return await self._send_on(pool, connection, request, left, progress)

    async def _send_by_user_client(
        self, client: httpx.AsyncClient, request: Request, limit: float, progress: Progress
    ) -> Response | TransportFailure:
        def build(**parts: Any) -> httpx.Request:
            headers = {"Accept-Encoding": "identity", **request.headers}
            timeouts = dict.fromkeys(("connect", "read", "write", "pool"), limit * _PHASE_SHARE)
            extensions = {"timeout": timeouts, "trace": progress.trace}
            http_request = client.build_request(headers=headers, content=request.body, extensions=extensions, **parts)
            if request.body:
                http_request.stream = _RequestBody(request.body)
            progress.hand_over()
            return http_request

        send = partial(client.send, stream=True, follow_redirects=False)
        return await self._attempt(build, send, request, limit, progress, lambda _: "")

    async def _send_on(
        self, pool: Pool[Connection], connection: Connection, request: Request, limit: float, progress: Progress
    ) -> Response | TransportFailure:
        def build(**parts: Any) -> httpx.Request:
            headers = {**self._default_headers, **request.headers}
            if request.origin:
                headers["Host"] = parts["url"].netloc.decode()
            if request.body:
                headers["Content-Length"] = str(len(request.body))
            # The attempt's own deadline covers the other phases; a connect time-out shows that nothing was sent.
            extensions = {"timeout": {"connect": limit * _PHASE_SHARE}}
            body = _RequestBody(request.body, progress.note_read)
            return httpx.Request(headers=headers, stream=body, extensions=extensions, **parts)

        try:
            send = partial(connection.send, progress=progress)
            response = await self._attempt(build, send, request, limit, progress, partial(self._hint, connection))
        except BaseException as error:
            pool.discard(connection)
            # A coroutine that is being closed must not await.
            if not isinstance(error, GeneratorExit):
                await _close([connection])
            raise
        if isinstance(response, Response) and connection.is_reusable:
            unused = pool.release(connection)
        else:
            # A request may be half sent, bytes may follow the response, or the connection be affected by
            # encode/httpcore#1099.
            pool.discard(connection)
            unused = [connection]
        if unused:
            await _close(unused)
        return response

    async def _attempt(
        self,
        build: Callable[..., httpx.Request],
        send: _Send,
        request: Request,
        limit: float,
        progress: Progress,
        hint: Callable[[str], str],
    ) -> Response | TransportFailure:
        max_bytes = MAX_RESPONSE_BYTES if request.max_response_bytes is None else request.max_response_bytes
        body = bytearray()
        host = request.origin.partition("://")[2] or self._host
        try:
            with anyio.move_on_after(limit) as scope:
                return await _exchange(send, self._build(build, request), max_bytes, body, scope)
        except UnusableProxyError as error:
            return TransportFailure(sent=False, message=str(error))
        except Exception as error:  # noqa: BLE001  a transport of the user may raise any error
            return _failure(error, progress, host, limit, hint)
        return _too_large(max_bytes) if len(body) > max_bytes else _failure(None, progress, host, limit, hint)

    def _hint(self, connection: Connection, reason: str) -> str:
        """Return the variables that may be the cause, because no connection could be opened for this reason."""
        proxy = connection.proxy_variable
        text = "" if proxy is None else f"; proxy of {proxy}"
        if self._tls_variable is not None and "certificate" in reason.lower():
            text += f"; trusted certificates of {self._tls_variable}"
        return text

    def _build(self, build: Callable[..., httpx.Request], request: Request) -> httpx.Request:
        is_cached = not request.query and not request.origin
        url = self._urls.get(request.path) if is_cached else None
        if url is None:
            origin = request.origin or self._origin
            url = httpx.URL(origin + request.path + ("?" + request.query if request.query else ""))
            if is_cached and len(self._urls) < _MAX_CACHED_URLS:
                self._urls[request.path] = url
        http_request = build(method=request.method, url=url)
        if request.query:
            http_request.url = _RedactedUrl(http_request.url)
        return http_request

    async def aclose(self) -> None:
        """Close the pool; later requests fail. The client of a user stays open."""
        self._is_closed = True
        await self.close_pool()


async def _close_pool(pool: Pool[Connection] | None) -> None:
    if pool is not None and (connections := pool.close()):
        await _close(connections)


async def _close(connections: list[Connection]) -> None:
    """Close connections concurrently within a time that a cancellation does not shorten."""
    with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
        if len(connections) == 1:
            await connections[0].aclose()
            return
        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(connection.aclose)


# Request


class _RequestBody(httpx.AsyncByteStream):
    """Request body in one chunk. The stream of httpx is a generator, which an interrupted attempt leaves open."""

    def __init__(self, body: bytes, on_read: Callable[[], None] = lambda: None) -> None:
        self._body = body
        self._on_read = on_read

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._on_read()
        return _SingleChunk(self._body)


class _SingleChunk:
    def __init__(self, body: bytes) -> None:
        self._left = [body]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


class _RedactedUrl(httpx.URL):
    """URL that is shown without its query, because httpx logs the URL of every request."""

    def __str__(self) -> str:
        return str(self.copy_with(query=None))

    def __repr__(self) -> str:
        return repr(self.copy_with(query=None))

    def __eq__(self, other: object) -> bool:
        return httpx.URL(self) == (httpx.URL(other) if isinstance(other, httpx.URL) else other)

    def __hash__(self) -> int:
        return hash(httpx.URL(self))


# Response


async def _exchange(
    send: _Send, request: httpx.Request, max_bytes: int, body: bytearray, scope: anyio.CancelScope
) -> Response | TransportFailure:
    """Send the request and read the response into `body`; cancel the scope once that exceeds `max_bytes`."""
    response = await send(request)
    try:
        if response.is_stream_consumed:
            # A transport of the user, such as a mock, may return a response that is complete.
            return _to_response(_headers(response), response.content, response.status_code, max_bytes)
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > max_bytes:
                # Cancel instead of leaving the loop: only then are the generators of httpx closed in time.
                scope.cancel()
        headers = _headers(response)
        content = _decompress(bytes(body), headers.get(b"content-encoding", ""), max_bytes)
        return _to_response(headers, content, response.status_code, max_bytes)
    finally:
        if not response.is_closed:
            with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await response.aclose()


def _headers(response: httpx.Response) -> dict[bytes, str]:
    """Return the headers by lower-case name. httpx searches all of them at each access."""
    return {name.lower(): value.decode("latin-1") for name, value in response.headers.raw}


def _to_response(headers: dict[bytes, str], body: bytes, status: int, max_bytes: int) -> Response | TransportFailure:
    if len(body) > max_bytes:
        return _too_large(max_bytes)
    return Response(
        status=status,
        body=body,
        retry_after=headers.get(b"retry-after"),
        date=fresh_date(headers),
        etag=headers.get(b"etag"),
    )


def _too_large(max_bytes: int) -> TransportFailure:
    return TransportFailure(sent=True, message=f"the response is larger than {max_bytes} bytes")


def _decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Decompress at most one byte more than `max_bytes`; return nothing if the body is invalid.

    A server may compress its response without being asked.
    """
    if encoding.lower() not in {"gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, max_bytes + 1)
    except zlib.error:
        return b""


# Failure


def _failure(
    error: Exception | None, progress: Progress, host: str, limit: float, hint: Callable[[str], str]
) -> TransportFailure:
    """Return the failure of an attempt that raised this error, or did not end in time if it is None."""
    # The classes count only where the connection is not observed: a transport of the user may have made two attempts.
    is_sent = progress.is_sent if isinstance(error, _NOT_SENT) else progress.may_be_sent
    is_late = error is None or isinstance(error, httpx.TimeoutException)
    if is_sent and is_late:
        return TransportFailure(sent=True, message=f"no complete response within {seconds(limit)}")
    if is_sent:
        assert error is not None
        is_stale = isinstance(error, (httpx.ProtocolError, httpx.NetworkError)) and progress.is_stale
        return TransportFailure(sent=True, message=_describe(error), stale=is_stale)
    if is_late:
        what = f"no connection to {host} within {seconds(limit)}"
        if isinstance(error, httpx.PoolTimeout):
            what = f"no connection to {host} was free within {seconds(limit)}"
        return TransportFailure(sent=False, message=what + _parentheses(progress.phase + hint("")))
    assert error is not None
    if not isinstance(error, (httpx.HTTPError, httpx.StreamError)):
        return TransportFailure(sent=False, message=_describe(error) + _parentheses(hint("")))
    reason = _describe(error)
    return TransportFailure(sent=False, message=f"no connection to {host}{_parentheses(reason + hint(reason))}")


def _parentheses(text: str) -> str:
    text = text.removeprefix("; ")
    return f" ({text})" if text else ""


def _describe(error: Exception) -> str:
    """Return the cause of a failure that is not a timeout."""
    if isinstance(error, httpx.ProxyError):
        # The rest of the text is the proxy's, which may repeat the request.
        status = str(error)[:3]
        if not status.isdecimal():
            return describe_with_class(error)
        return f"the proxy refused the tunnel with status {status}" + (
            ", so it wants other credentials" if status == "407" else ""
        )
    if isinstance(error, httpx.ProtocolError):
        # The error's text repeats what the server sent, which may repeat the request.
        return "the connection ended early, or the response was not HTTP"
    if isinstance(error, (httpx.HTTPError, httpx.StreamError)):
        return describe_with_class(error)
    return f"the HTTP client failed ({type(error).__name__})"
