"""Moves bytes: a request to a reply, or to the words for why there is none. The only file that knows httpx."""

from __future__ import annotations

import ssl
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx

from ._records import NoReply, Reply, Request

HttpClient = httpx.AsyncClient
AsgiApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]

MAX_REPLY_BYTES: Final = 1024 * 1024
_CLOSE_TIMEOUT: Final = 1.0
# httpx gives up on a phase a little before the attempt as a whole is cut off: its own time-outs leave the pool whole,
# a cancellation while it connects may not (encode/httpcore#1099).
_PHASE_SHARE: Final = 0.95
_NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class _Pool:
    """An httpx client and the number of requests in it, so that a retired one is closed after its last."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.users = 0
        self.retired = False


class Transport:
    """One connection pool.

    Args:
        origin: scheme, host, port and path prefix, as `parse_origin` gives them.
        timeout: seconds for one attempt, from the wait for a connection to the last byte of the answer.
        http_client: a client of the user's, which stays the user's to close; None makes one.
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
        self._pool = None if http_client is None else _Pool(http_client)
        self._building: anyio.Lock | None = None

    async def open(self) -> None:
        """Make the pool ready, off the event loop: the trust store alone takes tens of milliseconds to read."""
        if self._building is None:
            self._building = anyio.Lock()
        async with self._building:
            if self._pool is None:
                # With a limiter of its own: an application that keeps all its threads busy must not stop delivery.
                own = anyio.CapacityLimiter(1)
                self._pool = _Pool(await anyio.to_thread.run_sync(self._make_client, limiter=own))

    def _make_client(self) -> httpx.AsyncClient:
        if self._tls is None:
            # Without TLS no trust store is needed; a context that trusts nobody keeps that honest.
            plain = self._origin.startswith("http://")
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if plain else httpx.create_ssl_context()
        return httpx.AsyncClient(
            verify=self._tls,
            timeout=httpx.Timeout(self._timeout * _PHASE_SHARE),
            limits=httpx.Limits(max_connections=self._max_connections, max_keepalive_connections=self._max_connections),
            follow_redirects=False,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def forget(self) -> None:
        """Drop the pool without closing it: its event loop is gone, and its sockets with it."""
        self._building = None
        if self._theirs is None:
            self._pool = None

    async def send(self, request: Request, *, timeout: float | None = None) -> Reply | NoReply:
        """One attempt.

        Args:
            request: what to post.
            timeout: seconds for this attempt, if fewer than usual.

        Returns:
            The reply, whatever its status, or why there is none. Nothing is raised.
        """
        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        deadline = anyio.current_time() + limit
        try:
            with anyio.move_on_after(limit) as scope:
                await self.open()
        except Exception as error:  # noqa: BLE001  a proxy or trust store of the environment may be unusable
            return NoReply(sent=False, message=f"no connection pool could be made ({type(error).__name__})")
        pool = self._pool
        if scope.cancelled_caught or pool is None:
            return NoReply(sent=False, message="no connection pool could be made in time")
        if pool.client.is_closed:
            return NoReply(sent=False, message="the HTTP client is closed")
        pool.users += 1
        try:
            return await self._attempt(pool, request, max(0.001, deadline - anyio.current_time()))
        finally:
            pool.users -= 1
            if pool.retired and not pool.users:
                with anyio.CancelScope(shield=True):
                    await _close(pool.client)

    async def _attempt(self, pool: _Pool, request: Request, limit: float) -> Reply | NoReply:
        connected = _Connected()
        try:
            with anyio.move_on_after(limit):
                return await self._exchange(pool.client, request, limit, connected)
        except _NOT_SENT as error:
            if isinstance(error, httpx.PoolTimeout):
                self._retire(pool)
            return NoReply(sent=False, message=f"no connection to {self._host} ({_words(error)})")
        except httpx.ProtocolError:
            # Its text repeats what the server sent, which may repeat what it was sent.
            words = "the connection ended early, or what came back was not HTTP"
            return NoReply(sent=True, message=words, stale=connected.is_stale)
        except httpx.NetworkError as error:
            return NoReply(sent=True, message=_words(error), stale=connected.is_stale)
        except (httpx.HTTPError, httpx.StreamError) as error:
            return NoReply(sent=True, message=_words(error))
        except Exception as error:  # noqa: BLE001  a transport of the user's may raise anything
            return NoReply(sent=True, message=f"the HTTP client failed ({type(error).__name__})")
        self._retire(pool)
        return NoReply(sent=True, message=f"no complete answer within {limit:g} s")

    async def _exchange(
        self, client: httpx.AsyncClient, request: Request, limit: float, connected: _Connected
    ) -> Reply | NoReply:
        # A compressed answer is not asked for: httpx would unfold it before its size can be looked at.
        headers = {**request.headers, "Accept-Encoding": "identity"}
        outgoing = client.build_request(
            "POST",
            self._origin + request.path,
            headers=headers,
            content=request.body,
            timeout=httpx.Timeout(limit * _PHASE_SHARE),
        )
        outgoing.extensions = {**outgoing.extensions, "trace": connected.note}
        response = await client.send(outgoing, stream=True, follow_redirects=False)
        try:
            if response.is_stream_consumed:
                # A transport of the user's, such as a mock, may hand over a response that is complete.
                return _reply(response, response.content)
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_REPLY_BYTES:
                    return NoReply(sent=True, message=f"the answer is larger than {MAX_REPLY_BYTES} bytes")
            return _reply(response, _decoded(bytes(body), response.headers.get("Content-Encoding", "")))
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSE_TIMEOUT):
                await response.aclose()

    def _retire(self, pool: _Pool) -> None:
        """Replace a pool that may have lost connections for good; requests under way in it still end."""
        if self._theirs is None and self._pool is pool:
            pool.retired = True
            self._pool = None

    async def aclose(self) -> None:
        """Close the pool, if it is ours."""
        pool, self._pool = self._pool, None
        if pool is not None and self._theirs is None:
            await _close(pool.client)


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


async def _close(client: httpx.AsyncClient) -> None:
    with anyio.move_on_after(_CLOSE_TIMEOUT):
        await client.aclose()


def _reply(response: httpx.Response, body: bytes) -> Reply:
    return Reply(
        status=response.status_code,
        body=body,
        retry_after=response.headers.get("Retry-After"),
        date=response.headers.get("Date"),
    )


def _decoded(body: bytes, encoding: str) -> bytes:
    """The body of a proxy that compresses what it was asked not to, within the limit; empty if it cannot be read."""
    if encoding.lower() not in {"gzip", "deflate"}:
        return body
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(body, MAX_REPLY_BYTES)
    except zlib.error:
        return b""


def _words(error: Exception) -> str:
    text = str(error)[:160]
    text = "".join(char if char.isprintable() else " " for char in text)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _InProcess(httpx.AsyncBaseTransport):
    """An ASGI application as a server; one that raises has dropped the connection."""

    def __init__(self, app: AsgiApp) -> None:
        self._inner = httpx.ASGITransport(app=app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._inner.handle_async_request(request)
        except Exception as error:
            raise httpx.RemoteProtocolError("the connection was dropped without an answer") from error


def in_process(app: AsgiApp) -> httpx.AsyncClient:
    """An HTTP client whose every request is answered by this ASGI application, without a socket."""
    return httpx.AsyncClient(transport=_InProcess(app))
