"""Single HTTP/1.1 connections, with or without a proxy.

Only this module and `network.py`, which has the sockets, know httpcore.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from http.cookiejar import CookieJar
from typing import Any, Final

import httpcore
import httpx

from .network import NetworkBackend
from .progress import Progress
from .proxies import EnvironmentProxy, UnusableProxyError, environment_proxies

# Key in `request.extensions` under which the transport finds the connection that the pool has chosen.
_CONNECTION_KEY: Final = "mixpanel_async.connection"

_HTTPX_ERRORS: Final[dict[type[Exception], type[httpx.TransportError]]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.TimeoutException: httpx.TimeoutException,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.NetworkError: httpx.NetworkError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.ProtocolError: httpx.ProtocolError,
    httpcore.ProxyError: httpx.ProxyError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}
_SENDERS: Final = (httpcore.AsyncHTTPConnection, httpcore.AsyncConnectionPool)
_HTTPCORE_ERRORS: Final = tuple(_HTTPX_ERRORS)


def _to_httpx_error(error: Exception) -> httpx.TransportError:
    """Return the httpx error of the same name, as httpx's own transport raises it."""
    return next(_HTTPX_ERRORS[kind] for kind in type(error).__mro__ if kind in _HTTPX_ERRORS)(str(error))


class _ResponseStream(httpx.AsyncByteStream):
    """Body of a response, with the errors of httpx."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                yield chunk
        except _HTTPCORE_ERRORS as error:
            raise _to_httpx_error(error) from error

    async def aclose(self) -> None:
        await self._inner.aclose()


class Connection:
    """One connection, opened by its first request, for one request at a time.

    Args:
        client: sends the requests. Its transports call `handle`.
        network: opens the TCP connection.
        tls: trusted certificates.
        idle_timeout: seconds that the connection may stay idle.
    """

    def __init__(
        self, client: httpx.AsyncClient, network: NetworkBackend, tls: ssl.SSLContext, idle_timeout: float
    ) -> None:
        self._client = client
        self._network = network
        self._tls = tls
        self._limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=idle_timeout)
        self._direct: httpcore.AsyncHTTPConnection | None = None
        self._proxied: dict[EnvironmentProxy, httpcore.AsyncConnectionPool] = {}
        self._plain_transports: dict[EnvironmentProxy | None, httpx.AsyncHTTPTransport] = {}
        # Whether httpx's own transport has sent the last request.
        self._is_plain = False
        self.proxy_variable: str | None = None
        """Name of the variable whose proxy the last request went through; None for a direct connection."""

    @property
    def is_reusable(self) -> bool:
        """Whether the last response has ended and no byte followed it, which would be taken for the next response."""
        return self._is_plain or self._network.is_clean

    async def send(self, request: httpx.Request, progress: Progress) -> httpx.Response:
        """Send a request through httpx, whose instrumentation and hooks see it. The response is not read.

        Raises:
            httpx.TransportError: if there is no response.
        """
        self._network.begin_attempt(progress)
        self._is_plain = False
        self.proxy_variable = None
        request.extensions[_CONNECTION_KEY] = self
        # A tool may answer in place of httpx.
        progress.hand_over()
        return await self._client.send(request, stream=True, follow_redirects=False)

    async def handle(self, request: httpx.Request, proxy: EnvironmentProxy | None) -> httpx.Response:
        """Send a request over this connection.

        Raises:
            UnusableProxyError: if the proxy cannot be used.
            httpx.TransportError: if there is no response.
        """
        if proxy is not None:
            if proxy.proxy is None:
                raise UnusableProxyError(proxy.problem)
            self.proxy_variable = proxy.variable
        if _is_transport_patched():
            self._is_plain = True
            request.extensions["trace"] = self._network.progress.trace
            return await self._plain_transport(proxy).handle_async_request(request)
        if not _is_httpcore_patched():
            self._network.progress.take_over()
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        sent = httpcore.Request(
            request.method,
            url,
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            via = await self._direct_connection(url.origin) if proxy is None else self._proxy_pool(proxy)
            response = await via.handle_async_request(sent)
        except _HTTPCORE_ERRORS as error:
            raise _to_httpx_error(error) from error
        return httpx.Response(
            response.status,
            headers=response.headers,
            stream=_ResponseStream(response.stream),
            extensions=response.extensions,
        )

    async def aclose(self) -> None:
        """Close the connection."""
        if self._direct is not None:
            await self._direct.aclose()
        for pool in self._proxied.values():
            await pool.aclose()
        for transport in self._plain_transports.values():
            await transport.aclose()
        await self._network.aclose()

    async def _direct_connection(self, origin: httpcore.Origin) -> httpcore.AsyncHTTPConnection:
        """Return the connection without a proxy; replace it if it is closed, idle for too long or to another origin."""
        connection = self._direct
        if connection is not None and (
            connection.is_closed() or connection.has_expired() or not connection.can_handle_request(origin)
        ):
            self._direct = None
            await connection.aclose()
        if self._direct is None:
            self._direct = httpcore.AsyncHTTPConnection(
                origin,
                ssl_context=self._tls,
                keepalive_expiry=self._limits.keepalive_expiry,
                network_backend=self._network,
            )
        return self._direct

    def _proxy_pool(self, setting: EnvironmentProxy) -> httpcore.AsyncConnectionPool:
        pool = self._proxied.get(setting)
        if pool is None:
            assert setting.proxy is not None
            pool = self._proxied[setting] = self._new_proxy_pool(setting.proxy)
        return pool

    def _new_proxy_pool(self, proxy: httpx.Proxy) -> httpcore.AsyncConnectionPool:
        url = proxy.url
        options: dict[str, Any] = {
            "proxy_url": httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
            "proxy_auth": proxy.raw_auth,
            "ssl_context": self._tls,
            "max_connections": 1,
            "keepalive_expiry": self._limits.keepalive_expiry,
            "network_backend": self._network,
        }
        if url.scheme.startswith("socks"):
            return httpcore.AsyncSOCKSProxy(**options)
        if url.scheme == "https":
            # The default of httpcore reads further variables, and raises an error if it cannot use them.
            options["proxy_ssl_context"] = self._tls
        return httpcore.AsyncHTTPProxy(**options, proxy_headers=proxy.headers.raw)

    def _plain_transport(self, setting: EnvironmentProxy | None) -> httpx.AsyncHTTPTransport:
        transport = self._plain_transports.get(setting)
        if transport is None:
            proxy = None if setting is None else setting.proxy
            transport = self._plain_transports[setting] = httpx.AsyncHTTPTransport(
                verify=self._tls, trust_env=False, limits=self._limits, proxy=proxy
            )
        return transport


def _is_transport_patched() -> bool:
    """Return whether a tool has replaced the method by which httpx's own transport sends requests.

    OpenTelemetry's instrumentation wraps it and pytest-httpx replaces it (read 2026-11-29: versions 0.66b2 and 0.36.2).
    Requests then go through that method, so that the tool sees them. They lose what `NetworkBackend` adds.
    """
    return _is_patched(httpx.AsyncHTTPTransport.handle_async_request, "httpx.")


def _is_httpcore_patched() -> bool:
    """Return whether a tool, such as respx, answers in place of httpcore, so that `NetworkBackend` notes nothing."""
    return any(_is_patched(one.handle_async_request, "httpcore.") for one in _SENDERS)


def _is_patched(method: Callable[..., Any], package: str) -> bool:
    return hasattr(method, "__wrapped__") or not method.__module__.startswith(package)


class _ConnectionTransport(httpx.AsyncBaseTransport):
    """Passes each request to the connection that it was assigned to."""

    def __init__(self, proxy: EnvironmentProxy | None) -> None:
        self._proxy = proxy

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        connection: Connection = request.extensions[_CONNECTION_KEY]
        response = await connection.handle(request, self._proxy)
        if response.has_redirect_location:
            # Redirects are not followed, but httpx parses the address, and raises an error for the whole response if it
            # is invalid.
            del response.headers["Location"]
        return response


class _NoCookies(CookieJar):
    """Stores no cookies. Mixpanel needs none, and to look for them costs more than to parse the response."""

    def extract_cookies(self, response: object, request: object) -> None:
        pass


class ConnectionFactory:
    """Creates connections that use these proxies.

    Args:
        tls: trusted certificates.
        proxies: result of `environment_proxies`.
        warn: argument of `environment_proxies`.
        idle_timeout: seconds that a connection may stay idle.
    """

    def __init__(
        self,
        tls: ssl.SSLContext,
        proxies: Mapping[str, EnvironmentProxy | None],
        *,
        warn: Callable[[str], None],
        idle_timeout: float,
    ) -> None:
        self._tls = tls
        self._warn = warn
        self._idle_timeout = idle_timeout
        self._lookups: dict[tuple[str, int], Future[list[str]]] = {}
        self._has_unusable_proxy = False
        self._client = self._new_client(proxies)

    def _new_client(self, proxies: Mapping[str, EnvironmentProxy | None]) -> httpx.AsyncClient:
        self._has_unusable_proxy = any(one is not None and one.proxy is None for one in proxies.values())
        return httpx.AsyncClient(
            transport=_ConnectionTransport(None),
            mounts={pattern: _ConnectionTransport(proxy) for pattern, proxy in proxies.items()},
            cookies=_NoCookies(),
            trust_env=False,
        )

    def __call__(self) -> Connection:
        """Create a connection; it is opened by its first request."""
        if self._has_unusable_proxy:
            # The variable may have been corrected.
            self._client = self._new_client(environment_proxies(self._warn))
        return Connection(self._client, NetworkBackend(self._lookups), self._tls, self._idle_timeout)
