"""Proxy on the app's own origin for Mixpanel's browser SDK: forwards its requests to Mixpanel or an emulator.

Only what the SDK needs is forwarded, in both directions. In particular no cookie, no credentials of the app and no page
address leave the app, and the response cannot be a page or a script of the app's origin.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Sequence
from itertools import count
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx
from anyio.lowlevel import RunVar

from mixpanel_async import AsyncMixpanel, ConfigurationError

from ._lifespan import ASGIApp, Message, Receive, Scope, Send
from ._proxies import Proxies

_PATH: Final = re.compile(
    r"/(?:track|engage|groups|record|flags|settings|decide)/?|/flags/[A-Za-z0-9_-]{1,64}/first-time-events", re.ASCII
)
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]{1,100}){1,10}", re.ASCII)
_METHODS: Final = frozenset({"GET", "POST"})
_REQUEST_HEADERS: Final = (
    b"accept", b"accept-encoding", b"accept-language", b"content-encoding", b"content-length", b"content-type",
    b"traceparent", b"user-agent",
)  # fmt: skip
_BODY_HEADERS: Final = frozenset({b"content-encoding", b"content-length", b"content-type"})
# Not `date`, which the server of the app adds.
_RESPONSE_HEADERS: Final = frozenset({b"cache-control", b"content-encoding", b"retry-after"})
# A response of another type, such as the script that Mixpanel sends for `callback=`, could run in the app's origin.
_CONTENT_TYPES: Final = frozenset({b"application/json", b"text/plain", b"image/gif"})
_MAX_RESPONSE_BYTES: Final = 1024 * 1024
_MAX_QUERY_BYTES: Final = 32 * 1024
_IDLE_CONNECTIONS: Final = 20
_NUMBERS: Final = count()
# Fraction of the time that httpx may spend on one phase: its own time-outs leave its pool intact.
_PHASE_SHARE: Final = 0.95

_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class TrackingProxy:
    """ASGI app that forwards the requests of Mixpanel's browser SDK from the app's own origin.

    The page then talks to the app alone: `mixpanel.init(token, {api_host: "/mp"})`. Use it as middleware, which closes
    its connections with the lifespan of the app:

        app.add_middleware(TrackingProxy, path="/mp")          # FastAPI, Starlette
        application = TrackingProxy(get_asgi_application())    # Django and any other ASGI app

    or mount it without an app: `app.mount("/mp", TrackingProxy())`. Call `aclose` at the end then.

    It forwards GET and POST to `/track`, `/engage`, `/groups`, `/record`, `/flags`, `/settings` and `/decide`. Cookies,
    credentials of the app, `Origin` and `Referer` are not forwarded. Mixpanel finds the location by the address in
    `X-Forwarded-For`, which is the client's. Scripts of the SDK are not served: deliver them with the app's files.

    Responses of its own: 400, 404, 405 and 414 to requests that the SDK does not make, 403 to pages of other sites, 413
    to bodies over the limit, 502 without a usable response, 503 over `max_requests`, and 504 after `timeout`.

    Args:
        app: app for all other requests; None answers them with 404.
        path: path prefix of the forwarded requests if there is an `app`.
        api_host: as in `AsyncMixpanel`; by default `MIXPANEL_API_HOST`, `MIXPANEL_REGION`, or the US host. With
            `MIXPANEL_DISABLED`, requests are answered and not forwarded.
        trusted_proxies: as in the integrations: number of proxies in front of the app, or their networks.
        timeout: seconds for one request, from its first to its last byte; 0.1 to 300.
        max_body_bytes: limit for one body; 1 to 104,857,600. Bodies are streamed.
        max_requests: number of requests in progress at the same time, in one process; 1 to 10,000.

    Raises:
        ConfigurationError: if a value is out of bounds, or the environment has no valid host.
    """

    def __init__(
        self,
        app: ASGIApp | None = None,
        *,
        path: str = "/mp",
        api_host: str | None = None,
        trusted_proxies: int | Sequence[str] = 0,
        timeout: float = 10.0,
        max_body_bytes: int = 10 * 1024 * 1024,
        max_requests: int = 64,
    ) -> None:
        if not isinstance(path, str) or not _PREFIX.fullmatch(path):
            raise ConfigurationError(f'path must be a path prefix such as "/mp", not {path!r}')
        _check_bounds("timeout", timeout, 0.1, 300.0)
        for name, value, largest in (
            ("max_body_bytes", max_body_bytes, 100 * 1024 * 1024),
            ("max_requests", max_requests, 10_000),
        ):
            if not isinstance(value, int):
                raise ConfigurationError(f"{name} must be an integer, not {value!r}")
            _check_bounds(name, value, 1, largest)
        # The client checks host and environment; the token is not used.
        options: dict[str, Any] = {} if api_host is None else {"api_host": api_host}
        client = AsyncMixpanel.from_env(token="proxy", **options)  # noqa: S106  no secret
        self._app = app
        self._prefix = "" if app is None else path
        self._origin = client.api_host if client.enabled else None
        self._proxies = Proxies(trusted_proxies)
        self._timeout = timeout
        self._max_body_bytes = max_body_bytes
        self._max_requests = max_requests
        # Connections belong to an event loop. Before anyio 4.8, variables with the same name share their value.
        name = f"mixpanel_async.integrations.tracking_proxy.{next(_NUMBERS)}"
        self._upstream: RunVar[_Upstream | None] = RunVar(name, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or the lifespan."""
        path = _relative_path(scope).removeprefix(self._prefix) if self._is_forwarded(scope) else None
        if path is not None:
            await _respond(send, scope["method"], await self._answer(scope, path, receive))
        elif self._app is not None:
            await self._app(scope, receive, self._closing(send) if scope["type"] == "lifespan" else send)
        elif scope["type"] == "http":
            await _respond(send, scope["method"], _error(404))
        elif scope["type"] == "websocket":
            # As frameworks do for an unknown path. An exception would be logged with each attempt.
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise RuntimeError(f"the proxy does not serve {scope['type']}")

    async def aclose(self) -> None:
        """Close the connections of this event loop. A later request opens new ones."""
        upstream, _ = self._upstream.get(), self._upstream.set(None)
        if upstream is not None:
            await upstream.aclose()

    def _closing(self, send: Send) -> Send:
        """Close before the server hears that the app has ended: it may cancel the lifespan then."""

        async def send_after_close(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                await self.aclose()
            await send(message)

        return send_after_close

    def _is_forwarded(self, scope: Scope) -> bool:
        return scope["type"] == "http" and _relative_path(scope).startswith(f"{self._prefix}/")

    async def _answer(self, scope: Scope, path: str, receive: Receive) -> _Answer:
        """Check the request, forward it, and return the response."""
        headers = _read_headers(scope)
        refusal = self._refusal(scope, path, headers)
        if refusal is not None:
            return _error(refusal)
        if self._origin is None:
            return 200, [(b"content-type", b"text/plain")], b"1"
        try:
            request = self._request(scope, path, headers, receive)
        except (httpx.InvalidURL, UnicodeError):
            return _error(400)
        upstream = self._upstream.get()
        if upstream is None:
            upstream = _Upstream(self._timeout * _PHASE_SHARE)
            self._upstream.set(upstream)
        if upstream.requests >= self._max_requests:
            return _error(503)
        with upstream, anyio.move_on_after(self._timeout):
            try:
                return await upstream.fetch(request)
            except _BodyTooLargeError:
                return _error(413)
            except _WrongLengthError:
                return _error(400)
            except httpx.TimeoutException:
                return _error(504)
            except (httpx.HTTPError, _UnusableError):
                return _error(502)
        return _error(504)

    def _refusal(self, scope: Scope, path: str, headers: dict[bytes, bytes]) -> int | None:
        """Return the status of a request that is not forwarded."""
        length = headers.get(b"content-length", b"0")
        is_number = length.isdigit()
        checks = (
            (404, not _PATH.fullmatch(path)),
            (405, scope["method"] not in _METHODS),
            (403, headers.get(b"sec-fetch-site") == b"cross-site"),
            (414, len(scope.get("query_string", b"")) > _MAX_QUERY_BYTES),
            (400, not is_number),
            (413, is_number and (len(length) > len(str(self._max_body_bytes)) or int(length) > self._max_body_bytes)),
        )
        return next((status for status, is_wrong in checks if is_wrong), None)

    def _request(self, scope: Scope, path: str, headers: dict[bytes, bytes], receive: Receive) -> httpx.Request:
        url = httpx.URL(f"{self._origin}{path}", query=scope.get("query_string") or None)
        given = [(b"host", url.netloc), *((name, headers[name]) for name in _REQUEST_HEADERS if name in headers)]
        credentials = headers.get(b"authorization", b"")
        if _is_token(credentials):
            given.append((b"authorization", credentials))
        peer = scope.get("client")
        forwarded = headers.get(b"x-forwarded-for", b"").decode("latin-1")
        address = self._proxies.client_ip(peer[0] if peer else None, forwarded)
        if address is not None:
            given += [(name, address.encode()) for name in (b"x-forwarded-for", b"x-real-ip")]
        has_body = scope["method"] == "POST"
        # A body in chunks has no declared length, whatever `Content-Length` says (RFC 9112, 6.3).
        length = None if b"transfer-encoding" in headers else headers.get(b"content-length")
        if not has_body:
            given = [(name, value) for name, value in given if name not in _BODY_HEADERS]
        elif length is None:
            given = [(name, value) for name, value in given if name != b"content-length"]
            given.append((b"transfer-encoding", b"chunked"))
        return _QuietRequest(
            scope["method"],
            url,
            headers=given,
            stream=_Body(receive, self._max_body_bytes, length) if has_body else httpx.ByteStream(b""),
            extensions={"timeout": httpx.Timeout(self._timeout * _PHASE_SHARE).as_dict()},
        )


class _Body(httpx.AsyncByteStream):
    """Body of a request, streamed. Not a generator, which would need to be closed if Mixpanel responds early."""

    def __init__(self, receive: Receive, max_bytes: int, length: bytes | None) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._length = None if length is None else int(length)
        self._size = 0
        self._has_more = True

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if not self._has_more:
            raise StopAsyncIteration
        message = await self._receive()
        if message["type"] != "http.request":
            raise _UnusableError
        chunk: bytes = message.get("body", b"")
        self._size += len(chunk)
        if self._size > self._max_bytes:
            raise _BodyTooLargeError
        self._has_more = message.get("more_body", False)
        if self._length is not None and (
            self._size > self._length or not (self._has_more or self._size == self._length)
        ):
            raise _WrongLengthError
        return chunk


class _QuietRequest(httpx.Request):
    """Request whose URL is shown without its query, which may have events: httpx logs the URL of each request."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.url = _QuietUrl(self.url)


class _QuietUrl(httpx.URL):
    def __str__(self) -> str:
        return super().__str__().partition("?")[0]


class _BodyTooLargeError(Exception):
    """The body of a request is larger than the limit."""


class _WrongLengthError(Exception):
    """The body of a request has another length than declared."""


class _UnusableError(Exception):
    """The client has gone, or the response cannot be forwarded."""


class _Upstream:
    """Connections to Mixpanel in one event loop, and the number of requests in progress."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._opening = anyio.Lock()
        self._client: httpx.AsyncClient | None = None
        self.requests = 0

    def __enter__(self) -> None:
        self.requests += 1

    def __exit__(self, *_: object) -> None:
        self.requests -= 1

    async def fetch(self, request: httpx.Request) -> _Answer:
        """Send a request and return the response, without what must not reach the page."""
        client = await self._open()
        response = await client.send(request, stream=True, auth=None, follow_redirects=False)
        try:
            return await _read_response(response)
        finally:
            # The connection must return to the pool, or be closed, also if the request was cancelled.
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _open(self) -> httpx.AsyncClient:
        async with self._opening:
            if self._client is None:
                # Loading the trusted certificates takes tens of milliseconds.
                self._client = await anyio.to_thread.run_sync(self._make, limiter=anyio.CapacityLimiter(1))
            return self._client

    def _make(self) -> httpx.AsyncClient:
        # No limit of connections: a request that is cancelled while it connects can block a bounded pool
        # (encode/httpcore#1099). The number of requests is limited instead.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=_IDLE_CONNECTIONS)
        return httpx.AsyncClient(limits=limits, timeout=self._timeout)


async def _read_response(response: httpx.Response) -> _Answer:
    if 300 <= response.status_code < 400:
        raise _UnusableError
    body = bytearray()
    # Cancelled instead of leaving the loop: only then are the generators of httpx closed in time.
    with anyio.CancelScope() as scope:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > _MAX_RESPONSE_BYTES:
                scope.cancel()
    if len(body) > _MAX_RESPONSE_BYTES:
        raise _UnusableError
    headers = [(name, value) for name, value in response.headers.raw if name.lower() in _RESPONSE_HEADERS]
    kind = response.headers.get("content-type", "").encode("latin-1", "replace")
    is_safe = kind.partition(b";")[0].strip().lower() in _CONTENT_TYPES
    return response.status_code, [*headers, (b"content-type", kind if is_safe else b"text/plain")], bytes(body)


async def _respond(send: Send, method: str, answer: _Answer) -> None:
    status, headers, body = answer
    headers = [*headers, (b"content-length", str(len(body)).encode()), (b"x-content-type-options", b"nosniff")]
    if status == 405:
        headers.append((b"allow", b"GET, POST"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def _error(status: int) -> _Answer:
    return status, [(b"content-type", b"text/plain"), (b"cache-control", b"no-store")], b"0"


def _read_headers(scope: Scope) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for written, value in scope["headers"]:
        name = written.lower()
        headers[name] = headers[name] + b"," + value if name in headers else value
    return headers


def _relative_path(scope: Scope) -> str:
    """Return the path below the place where the app is mounted. Servers and frameworks differ in what `path` has."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _is_token(credentials: bytes) -> bool:
    """Return whether an `Authorization` header has a token without a password, as the SDK sends it for flags.

    Any other is of the app: browsers send its credentials with each request to its origin.
    """
    scheme, _, encoded = credentials.partition(b" ")
    try:
        return scheme.lower() == b"basic" and b64decode(encoded, validate=True).partition(b":")[1:] == (b":", b"")
    except ValueError:
        return False


def _check_bounds(name: str, value: object, smallest: float, largest: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not smallest <= value <= largest:  # type: ignore[operator]
        raise ConfigurationError(f"{name} must be between {smallest:,} and {largest:,}, not {value!r}")
