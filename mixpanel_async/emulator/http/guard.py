"""Who may talk to the emulator: this machine's own programs, and no page of another site in its browser.

A web page cannot be kept from sending requests to a loopback address. What keeps it from reading the answers is that
there are no CORS headers, and that a host name of its own that it made to point here (DNS rebinding) is refused; what
keeps it from steering the emulator is its `Origin`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ..project.responses import EmulatorResponse, error_response
from .asgi_response import AsgiResponse, Receive, Scope, Send
from .faults import PlannedResponse

CONTROL_PREFIX: Final = "/_emulator"
SECURITY_HEADERS: Final = ((b"x-emulated-by", b"mixpanel-async"), (b"x-content-type-options", b"nosniff"))
"""Headers of every reply, so that nobody takes the emulator for Mixpanel, or data for a script."""


_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
# Names that nobody can register, so that no page of another site can be served under them.
_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal", ".home.arpa")

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application behind a check of `Host` and `Origin`, with every reply marked.

    The server tells of the address that it listens at in the scope's state: `host` and `remote`, whether other
    machines may come. Without that, only loopback names and addresses are taken. A client that calls the application
    in-process has no such state, and is free to name any host.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
            await send(message)

        refusal = _refusal(scope)
        app = self._app if refusal is None else AsgiResponse(PlannedResponse(response=refusal))
        await app(scope, receive, marked)


def is_loopback(host: str) -> bool:
    """Whether a name or an address, without brackets, means this very machine whatever a name server says."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refusal(scope: Scope) -> EmulatorResponse | None:
    path = scope["path"].rstrip("/")
    hosts = _header_values(scope, b"host")
    if "state" not in scope:
        # No server, but a client that calls the application itself: whatever host it thinks of, no page can do that.
        return None
    bound = scope["state"]
    if not all(_is_allowed_host(host, bound) for host in hosts):
        return error_response(path, 403, "this emulator does not answer for the host named in the request")
    if (path + "/").startswith(CONTROL_PREFIX + "/"):
        origins = _header_values(scope, b"origin")
        own = {f"{scope.get('scheme', 'http')}://{host}".lower() for host in hosts}
        if not all(origin.lower() in own for origin in origins):
            return error_response(path, 403, "pages of another origin may not use this")
    return None


def _header_values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _is_allowed_host(header: str, bound: Any) -> bool:
    match = _HOST.fullmatch(header)
    if match is None:
        return False
    host = match[1].strip("[]").rstrip(".").lower()
    if is_loopback(host):
        return True
    return bool(bound.get("remote")) and (host == bound.get("host") or _is_local_network_host(host))


def _is_local_network_host(host: str) -> bool:
    """Whether a name or an address belongs to no site of the public web: an address, or a name of the local network."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_SUFFIXES)
    return True
