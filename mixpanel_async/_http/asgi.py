"""In-process transport: requests from an HTTP client to an ASGI application, without a socket."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx

AsgiApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]


class _AsgiTransport(httpx.AsyncBaseTransport):
    """Transport to an ASGI application. An application that raises an error has dropped the connection."""

    def __init__(self, app: AsgiApp) -> None:
        self._inner = httpx.ASGITransport(app=app)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await self._inner.handle_async_request(request)
        except Exception as error:
            raise httpx.RemoteProtocolError("the connection was dropped without a response") from error


def asgi_client(app: AsgiApp) -> httpx.AsyncClient:
    """Return an HTTP client whose requests are answered by this ASGI application."""
    return httpx.AsyncClient(transport=_AsgiTransport(app))
