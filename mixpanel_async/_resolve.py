"""Names to addresses, in a thread that nobody waits for. The only file that knows httpcore.

asyncio asks the system's resolver in its default thread pool, whose threads both `asyncio.run` and the interpreter wait
for at their end: a name server that does not answer would keep a process alive that has long closed its client.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterable
from typing import Any, Final

import anyio
import httpcore

from ._host import Host, current_host

# https://www.rfc-editor.org/rfc/rfc8305, section 5: the head start of each address over the next.
_HEAD_START: Final = 0.25


class _Lookup:
    """One question to the resolver."""

    def __init__(self, host: str, port: int, loop: Host) -> None:
        self.done = anyio.Event()
        self.addresses: list[str] = []
        self.error: OSError | None = None
        self.loop = loop
        threading.Thread(target=self._ask, args=(host, port), name="mixpanel resolver", daemon=True).start()

    def _ask(self, host: str, port: int) -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            self.addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        except OSError as error:
            self.error = error
        except UnicodeError:
            self.error = OSError("the name cannot be looked up")
        self.loop.call_soon(self.done.set)


class Backend(httpcore.AsyncNetworkBackend):
    """Connects as the backend within does, but for how it finds addresses.

    Args:
        inner: makes connections.
    """

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner
        # Tries that come while a question is open wait for its answer, so that there is one thread for a name.
        self._open: dict[tuple[str, int], _Lookup] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """See `httpcore.AsyncNetworkBackend`."""
        stream: httpcore.AsyncNetworkStream | None = None
        errors: list[Exception] = []

        async def connect(address: str, failed: anyio.Event) -> None:
            nonlocal stream
            try:
                made = await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                errors.append(error)
                failed.set()
                return
            if stream is None:
                stream = made
                tasks.cancel_scope.cancel()
            else:
                await made.aclose()

        try:
            with anyio.fail_after(timeout):
                addresses = await self._addresses(host, port)
                async with anyio.create_task_group() as tasks:
                    for address in addresses:
                        failed = anyio.Event()
                        tasks.start_soon(connect, address, failed)
                        with anyio.move_on_after(_HEAD_START):
                            await failed.wait()
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from None
        except BaseException:
            if stream is not None:
                with anyio.CancelScope(shield=True):
                    await stream.aclose()
            raise
        if stream is None:
            raise errors[0] if errors else httpcore.ConnectError("the name has no address")
        return stream

    async def _addresses(self, host: str, port: int) -> list[str]:
        try:
            ipaddress.ip_address(host)
        except ValueError:
            pass
        else:
            return [host]
        lookup = self._open.get((host, port))
        if lookup is None:
            loop = current_host()
            assert loop is not None
            lookup = self._open[host, port] = _Lookup(host, port, loop)
        await lookup.done.wait()
        self._open.pop((host, port), None)
        if lookup.error is not None:
            raise OSError(str(lookup.error))
        return lookup.addresses

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """See `httpcore.AsyncNetworkBackend`."""
        return await self._inner.connect_unix_socket(path, timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """See `httpcore.AsyncNetworkBackend`."""
        await self._inner.sleep(seconds)


def resolve_in_own_thread(transport: object) -> None:
    """Have an httpx transport look names up here. httpx offers no way to, so it is left as it is if it has changed."""
    pool = getattr(transport, "_pool", None)
    inner = getattr(pool, "_network_backend", None)
    if isinstance(inner, httpcore.AsyncNetworkBackend):
        pool._network_backend = Backend(inner)  # type: ignore[union-attr]
