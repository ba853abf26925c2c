"""Protection against web pages: only programs on this machine may use the emulator, not pages of other sites.

A browser lets any web page send requests to a loopback address. Three checks limit the damage: responses have no CORS
headers, except those that `cors` adds for allowed origins, so that other sites cannot read them; foreign host names
that resolve to this machine (DNS rebinding) are refused; and `/_emulator/` refuses requests with a foreign `Origin`,
even an allowed one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from ..project.responses import EmulatorResponse, error_response
from .asgi_response import AsgiResponse, Receive, Scope, Send
from .faults import PlannedResponse

CONTROL_PREFIX: Final = "/_emulator"
SECURITY_HEADERS: Final = ((b"x-emulated-by", b"mixpanel-async"), (b"x-content-type-options", b"nosniff"))
"""Headers of every response. They mark the emulator, and forbid browsers to interpret data as scripts."""

_FOREIGN_HOST: Final = "the Host header names another host; allow it with --allow-host, or allow_hosts in Python"
_FOREIGN_PAGE: Final = "pages of other origins cannot use /_emulator/"
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")
# Suffixes that cannot be registered, so that no public site can use them.
_LOCAL_SUFFIXES: Final = (".localhost", ".local", ".internal", ".home.arpa")

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """ASGI middleware that checks `Host` and `Origin`, and adds `SECURITY_HEADERS` to every response.

    The server passes its address in the state of the scope: `host`, further `names`, and `remote` if other machines are
    allowed. Without `remote`, only `names`, loopback names and loopback addresses are accepted as `Host`. In-process
    requests have no state and may name any host.

    Args:
        app: the protected application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *SECURITY_HEADERS]}
            await send(message)

        error = _access_error(scope)
        app = self._app if error is None else AsgiResponse(PlannedResponse(response=error))
        await app(scope, receive, send_with_headers)


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Return whether a name or address, without brackets, is this machine regardless of DNS."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _access_error(scope: Scope) -> EmulatorResponse | None:
    path = scope["path"].rstrip("/")
    hosts = _header_values(scope, b"host")
    if "state" not in scope:
        # The application is called in-process, which no web page can do.
        return None
    address = scope["state"]
    if not all(_is_allowed_host(host, address) for host in hosts):
        return error_response(path, 403, _FOREIGN_HOST)
    if (path + "/").startswith(CONTROL_PREFIX + "/"):
        origins = _header_values(scope, b"origin")
        own = {f"{scope.get('scheme', 'http')}://{host}".lower() for host in hosts}
        if not all(origin.lower() in own for origin in origins):
            return error_response(path, 403, _FOREIGN_PAGE)
    return None


def _header_values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1").strip() for key, value in scope["headers"] if key.lower() == name]


def _is_allowed_host(header: str, address: Any) -> bool:
    match = _HOST.fullmatch(header)
    if match is None:
        return False
    host = match[1].strip("[]").rstrip(".").lower()
    if is_loopback(host) or host in address.get("names", ()):
        return True
    return bool(address.get("remote")) and (host == address.get("host") or _is_local_network_host(host))


def _is_local_network_host(host: str) -> bool:
    """Return whether a host is an IP address or a name of the local network, and not a public site."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(_LOCAL_SUFFIXES)
    return True
