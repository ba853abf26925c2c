"""Cross-origin access of web pages to the endpoints that Mixpanel's browser SDK uses.

A page on another port is another origin, so its browser hides the responses unless they have these headers:

    Access-Control-Allow-Origin       the origin of the page, if it is allowed; never `*`, which browsers refuse for
                                      requests with credentials, such as those of the browser SDK
    Access-Control-Allow-Credentials  true, if the origin is allowed
    Vary                              Origin, on every response of these endpoints

`OPTIONS` is answered with status 200 without reaching the application: it takes no planned fault, and is not in
`Emulator.requests`. For an allowed origin, the response has the methods, the headers and the lifetime of the
permission, and `Access-Control-Allow-Private-Network` if the browser asks for it, as Chromium before version 142 does
when a public site calls this machine.

Decisions where Mixpanel's documents are silent
    - Mixpanel responds to every origin. The emulator responds to pages of this machine and to configured origins, so
      that other sites cannot read the feature flags.
    - Every header that an official SDK sends is allowed on every endpoint. In 2023, Mixpanel refused
      `Content-Type: application/json` from pages on `/track`
      (https://github.com/mixpanel/mixpanel-js/issues/364). The browser SDK sends forms.
    - Permissions last 10 minutes.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from ..project.responses import TEXT, EmulatorResponse
from .asgi_response import AsgiResponse, Receive, Scope, Send
from .faults import PlannedResponse
from .guard import is_loopback

ANY_ORIGIN: Final = "*"

_ENDPOINTS: Final = frozenset({"track", "import", "engage", "groups", "flags", "settings", "decide", "record"})
# Mobile frameworks and browser extensions have their own schemes.
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]{0,31})://(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_FOREIGN_ORIGIN: Final = "the page's origin is not allowed; add it with --allow-origin, or allow_origins in Python"
_VARY: Final = (b"vary", b"Origin")
_PERMISSIONS: Final = {
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, traceparent, X-Requested-With",
    "Access-Control-Max-Age": "600",
}

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class CrossOriginAccess:
    """ASGI middleware that lets pages of allowed origins read the responses of the browser SDK's endpoints.

    Pages of this machine are always allowed: `http` or `https` on a loopback name or address, on any port.

    Args:
        app: the application.
        allowed: further origins, from `parse_origins`.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _is_for_browsers(scope["path"]):
            await self._app(scope, receive, send)
            return
        origins = [value for name, value in scope["headers"] if name == b"origin"]
        allowed = len(origins) == 1 and self._allows(origins[0].decode("latin-1"))
        headers = [_VARY]
        if allowed:
            headers += [(b"access-control-allow-origin", origins[0]), (b"access-control-allow-credentials", b"true")]

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        app = _preflight_response(scope, allowed=allowed) if scope["method"] == "OPTIONS" else self._app
        await app(scope, receive, send_with_headers)

    def _allows(self, origin: str) -> bool:
        if ANY_ORIGIN in self._allowed:
            return True
        match = _ORIGIN.fullmatch(origin.lower())
        if match is None:
            return False
        return (match[1] in _DEFAULT_PORTS and is_loopback(match[2].strip("[]"))) or _normalize(match) in self._allowed


def parse_origins(origins: Iterable[str]) -> frozenset[str]:
    """Return origins in the form in which browsers send them.

    Args:
        origins: origins, such as `https://app.example.com`, or `*` for every origin.

    Raises:
        ValueError: if an origin is malformed.
    """
    if isinstance(origins, str):
        raise ValueError(f"allow_origins must be a list of origins, not the text {origins!r}")  # noqa: TRY004
    return frozenset(map(_parse_origin, origins))


def _preflight_response(scope: Scope, *, allowed: bool) -> AsgiResponse:
    permissions = dict(_PERMISSIONS) if allowed else {}
    if allowed and any(name == b"access-control-request-private-network" for name, _ in scope["headers"]):
        permissions["Access-Control-Allow-Private-Network"] = "true"
    reason = "" if allowed else _FOREIGN_ORIGIN
    response = EmulatorResponse(status=200, body=b"", media_type=TEXT, headers=permissions, reason=reason)
    return AsgiResponse(PlannedResponse(response=response))


def _is_for_browsers(path: str) -> bool:
    """Return whether a path is an endpoint of the browser SDK, or is below one."""
    return path[1:].partition("/")[0] in _ENDPOINTS


def _parse_origin(text: str) -> str:
    """Return an origin in the form in which browsers send it, or `*`.

    Raises:
        ValueError: if the text is neither.
    """
    if text == ANY_ORIGIN:
        return text
    match = _ORIGIN.fullmatch(text.lower())
    if match is None or int(match[3] or 0) > 65_535:
        raise ValueError(
            "an allowed origin is a scheme and a host, with a port if it is not the usual one, and without a path, such"
            f" as https://app.example.com or http://192.168.1.20:5173; or * for every origin; not {text!r}"
        )
    return _normalize(match)


def _normalize(match: re.Match[str]) -> str:
    """Return an origin without the default port of its scheme, which browsers leave out."""
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in {None, _DEFAULT_PORTS.get(scheme)} else f"{scheme}://{host}:{port}"
