"""Lines: connections by name, resolved in threads that nobody waits for, used sparingly. Only this file knows httpcore.

asyncio resolves names in its default executor, whose threads `asyncio.run` and the interpreter wait for at the end: a
name server that does not answer would hold the process for as long as the system's resolver tries.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from itertools import chain, zip_longest
from typing import Any, Final

import anyio
import httpcore
import httpx

from .._runtime.threads import start_daemon_thread, wait_for

# RFC 8305, section 5: how long one address has for itself before the next is tried as well.
_HEAD_START: Final = 0.25
# A larger body goes by itself: to join it to its head would cost more than it saves.
_MOST_HELD: Final = 256 * 1024


class _Stream(httpcore.AsyncNetworkStream):
    """A connection that sends the head of a request and a small body as one: with the first read that follows.

    httpcore writes them one by one, which costs a call of the system, a packet and a turn of the event loop more.
    """

    def __init__(self, inner: httpcore.AsyncNetworkStream, network: NetworkBackend) -> None:
        self._inner = inner
        self._network = network
        self._held = b""
        self._socket: socket.socket | None = inner.get_extra_info("socket")
        self._descriptor = -1 if self._socket is None else self._socket.fileno()
        self._watch: Any = None
        if self._descriptor >= 0 and hasattr(select, "poll"):
            self._watch = select.poll()
            self._watch.register(self._descriptor, select.POLLIN)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._held:
            # As httpcore has it: a server may have answered before it closed the connection.
            with contextlib.suppress(httpcore.WriteError):
                await self._flush(timeout)
        data = await self._inner.read(max_bytes, timeout)
        self._network.has_received = self._network.has_received or bool(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if len(self._held) + len(buffer) <= _MOST_HELD:
            self._held += buffer
            return
        await self._flush(timeout)
        await self._inner.write(buffer, timeout)

    async def _flush(self, timeout: float | None) -> None:
        held, self._held = self._held, b""
        await self._inner.write(held, timeout)

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        await self._flush(timeout)
        return _Stream(await self._inner.start_tls(ssl_context, server_hostname, timeout), self._network)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self._watch is not None and self._socket is not None:
            # Asked twice a request, and anyio collects all it knows of a connection for each answer.
            return self._socket.fileno() != self._descriptor or bool(self._watch.poll(0))
        return self._inner.get_extra_info(info)


class NetworkBackend(httpcore.AsyncNetworkBackend):
    """Connects as httpcore does, but for where names are resolved, and remembers what happened.

    Args:
        lookups: names that are being resolved: one thread each, however many connections wait for it and however often
            they give up.
    """

    def __init__(self, lookups: dict[tuple[str, int], Future[list[str]]]) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._lookups = lookups
        self.has_connected = self.has_received = False

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.has_connected = True
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
                addresses = await self._addresses(host, port)
                return _Stream(await _first_to_answer(connect, addresses), self)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from None

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)

    async def _addresses(self, host: str, port: int) -> list[str]:
        key = host, port
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = start_daemon_thread(partial(_resolve, host, port), "mixpanel resolver")
            lookup.add_done_callback(lambda _: self._lookups.pop(key, None))
        return await wait_for(lookup)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, those of its two families by turns and in the system's order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families: dict[int, list[str]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, []).append(str(address[0]))
    return [one for one in chain.from_iterable(zip_longest(*families.values())) if one is not None]


async def _first_to_answer(connect: Any, addresses: list[str]) -> httpcore.AsyncNetworkStream:
    """Try one address after the other, each with a head start, and keep the first that answers."""
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
            with anyio.move_on_after(_HEAD_START):
                await failed.wait()
    for late in streams[1:]:
        await late.aclose()
    if streams:
        return streams[0]
    raise errors[0] if errors else OSError("the name has no address")


class Connection:
    """A connection that is made when it is needed and serves one request at a time, through httpx.

    Args:
        network: connects.
        send: makes a request.
        aclose: closes the connection.
    """

    __slots__ = ("_network", "aclose", "send")

    def __init__(
        self,
        network: NetworkBackend,
        send: Callable[[httpx.Request], Awaitable[httpx.Response]],
        aclose: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        self._network = network
        self.send = send
        self.aclose = aclose

    def begin(self) -> None:
        """Forget what happened to earlier requests."""
        self._network.has_connected = self._network.has_received = False

    @property
    def is_stale(self) -> bool:
        """Whether the connection that was kept from an earlier request has served this one, and brought nothing."""
        return not (self._network.has_connected or self._network.has_received)


def connection_factory(tls: ssl.SSLContext, *, timeout: float, keep: float) -> Callable[[], Connection]:
    """What makes lines to wherever requests go, by way of the proxies that the environment names now.

    Args:
        tls: what is trusted.
        timeout: seconds for each phase of a request.
        keep: seconds that a connection may lie idle.
    """
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=keep)
    lookups: dict[tuple[str, int], Future[list[str]]] = {}

    def make() -> Connection:
        network = NetworkBackend(lookups)
        client = httpx.AsyncClient(
            verify=tls,
            timeout=httpx.Timeout(timeout),
            limits=limits,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )
        for transport in (client._transport, *client._mounts.values()):
            _connect_through(network, transport)
        if not hasattr(client, "_transport_for_url"):
            return Connection(network, partial(client.send, stream=True, follow_redirects=False), client.aclose)
        # The client knows which proxy serves which host, and tools for tests take its place there. What else it does
        # with a request is a third of what that costs, and of no use here.
        send = lambda request: client._transport_for_url(request.url).handle_async_request(request)  # noqa: E731
        return Connection(network, send, client.aclose)

    return make


def _connect_through(network: NetworkBackend, transport: object) -> None:
    """Have a transport of our own connect through this network.

    httpx has no public way to a part that httpcore lets its users choose.
    """
    pool: Any = getattr(transport, "_pool", None)
    if hasattr(pool, "_network_backend"):
        pool._network_backend = network
