"""Single HTTP/1.1 connections: name lookups in daemon threads, happy eyeballs and small requests in one write.

The only module that knows httpcore. asyncio resolves names in its default executor, whose threads `asyncio.run` and the
interpreter wait for at exit: a name server that does not answer would hold the process until the resolver gives up.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from http.cookiejar import CookieJar
from itertools import chain, zip_longest
from typing import Any, Final

import anyio
import httpcore
import httpx

from .._runtime.threads import start_daemon_thread, wait_for
from .proxies import EnvironmentProxy, UnusableProxyError, environment_proxies

# RFC 8305, section 5, "Connection Attempt Delay": seconds before the next address is tried as well.
_ATTEMPT_DELAY: Final = 0.25
# A larger body is written separately: joining it to the head would cost more than it saves.
_MAX_JOINED_BYTES: Final = 256 * 1024
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
_HTTPCORE_ERRORS: Final = tuple(_HTTPX_ERRORS)


def _to_httpx_error(error: Exception) -> httpx.TransportError:
    """Return the httpx error of the same name, as httpx's own transport raises it."""
    return next(_HTTPX_ERRORS[kind] for kind in type(error).__mro__ if kind in _HTTPX_ERRORS)(str(error))


class _Stream(httpcore.AsyncNetworkStream):
    """Network stream that joins the head of a request and a small body into one write, made by the next read.

    httpcore writes head and body separately, which costs one more system call, packet and turn of the event loop.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream, network: NetworkBackend) -> None:
        self._inner = inner
        self._network = network
        self._unwritten = b""
        self._socket: socket.socket | None = inner.get_extra_info("socket")
        self._descriptor = -1 if self._socket is None else self._socket.fileno()
        self._poll: Any = None
        if self._descriptor >= 0 and hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(self._descriptor, select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unwritten:
            # As in httpcore: a server may have answered before it closed the connection.
            with contextlib.suppress(httpcore.WriteError):
                await self._flush(timeout)
        data = await self._inner.read(max_bytes, timeout)
        if data:
            self._network.note_received()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if len(self._unwritten) + len(buffer) <= _MAX_JOINED_BYTES:
            self._unwritten += buffer
            return
        await self._flush(timeout)
        await self._inner.write(buffer, timeout)

    async def _flush(self, timeout: float | None) -> None:
        data, self._unwritten = self._unwritten, b""
        self._network.note_written()
        await self._inner.write(data, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        await self._flush(timeout)
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout), self._network)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._poll is not None and self._socket is not None:
            # httpcore asks twice per request, and anyio collects every attribute of the stream for each answer.
            return self._socket.fileno() != self._descriptor or bool(self._poll.poll(0))
        return self._inner.get_extra_info(info)


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections for httpcore and records what happened during the current request.

    Args:
        lookups: name lookups in progress, by host and port. Each has one thread, no matter how many connections wait
            for it or how often they give up.
    """

    def __init__(self, lookups: dict[tuple[str, int], Future[list[str]]]) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._lookups = lookups
        self._has_connected = self._has_written = self._has_received = False

    def begin_request(self) -> None:
        """Forget what happened during earlier requests."""
        self._has_connected = self._has_written = self._has_received = False

    def note_written(self) -> None:
        self._has_written = True

    def note_received(self) -> None:
        self._has_received = True

    @property
    def is_stale(self) -> bool:
        """Whether the request was written to a connection kept from an earlier one and no byte came back."""
        return self._has_written and not self._has_connected and not self._has_received

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self._has_connected = True
        connect = partial(
            self._inner.connect_tcp,
            port=port,
            timeout=timeout,
            local_address=local_address,
            socket_options=socket_options,
        )
        if _is_address(host):
            return _Stream(await connect(host), self)
        try:
            with anyio.fail_after(timeout):
                addresses = await self._resolve(host, port)
                return _Stream(await _connect_to_any(connect, addresses), self)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from None
        except (UnicodeError, OverflowError) as error:
            # The resolver refuses the name of a proxy, for example one with a label of more than 63 characters.
            raise httpcore.ConnectError(f"the host name is invalid ({type(error).__name__})") from None

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


async def _connect_to_any(connect: Any, addresses: list[str]) -> httpcore.AsyncNetworkStream:
    """Try the addresses in order, each a little later than the one before, and keep the first connection."""
    streams: list[httpcore.AsyncNetworkStream] = []
    errors: list[Exception] = []

    async def attempt(address: str, failed: anyio.Event) -> None:
        try:
            stream = await connect(address)
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
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
    raise errors[0] if errors else OSError("the name has no address")


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
        self.proxy_variable: str | None = None
        """Name of the variable whose proxy the last request went through; None for a direct connection."""

    @property
    def is_stale(self) -> bool:
        """Whether the last request was written to a connection kept from an earlier one and no byte came back."""
        return self._network.is_stale

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Send a request through httpx, whose instrumentation and hooks see it. The response is not read.

        Raises:
            httpx.TransportError: if there is no response.
        """
        self._network.begin_request()
        self.proxy_variable = None
        request.extensions[_CONNECTION_KEY] = self
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
            return await self._plain_transport(proxy).handle_async_request(request)
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
    method = httpx.AsyncHTTPTransport.handle_async_request
    return hasattr(method, "__wrapped__") or not method.__module__.startswith("httpx.")


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
