"""Lifespan of an ASGI app that opens and closes the client, also if the app does not support the lifespan protocol.

After the shutdown message a server may end the process at once: uvicorn raises the signal again with its default
action. Records must therefore be delivered before the last message of the lifespan is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Protocol, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
# Any: frameworks have types of their own for the three arguments.
ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

_log = logging.getLogger("mixpanel_async")
_STARTED: Final = "lifespan.startup.complete"
_STOPPED: Final = "lifespan.shutdown.complete"


class LifespanHost(Protocol):
    """Owner of the client that a `LifespanApp` opens and closes."""

    def opened(self) -> AbstractAsyncContextManager[None]:
        """Return a context that opens the client and delivers at its end. It must not raise."""

    def open_late(self) -> None:
        """Open the client, if it is not open, because a request came before any lifespan."""

    async def deliver(self) -> None:
        """Deliver the waiting records within a few seconds. It must not raise."""


class LifespanApp:
    """ASGI app that opens the client at startup and delivers at shutdown.

    An app that supports the lifespan protocol runs its own lifespan inside. For other apps this class answers the
    server.

    A server may run no lifespan at all, such as `uvicorn --lifespan off`. Then nothing runs at shutdown, except that
    the server waits for requests. So each request ends with a delivery, after its response has been sent. One request
    delivers for all that run at the same time.

    Args:
        app: the wrapped app.
        host: owner of the client.
    """

    def __init__(self, app: ASGIApp, host: LifespanHost) -> None:
        self._app = app
        self._host = host
        self._has_lifespan = False
        self._is_delivering = False
        self._must_deliver = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection or the lifespan."""
        if scope["type"] == "lifespan":
            self._has_lifespan = True
            await self._serve_lifespan(scope, receive, send)
        elif self._has_lifespan:
            await self._app(scope, receive, send)
        else:
            self._host.open_late()
            try:
                await self._app(scope, receive, send)
            finally:
                await self._deliver()

    async def _deliver(self) -> None:
        self._must_deliver = True
        if self._is_delivering:
            return
        self._is_delivering = True
        try:
            while self._must_deliver:
                self._must_deliver = False
                await self._host.deliver()
        finally:
            self._is_delivering = False

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as resources:
            await resources.enter_async_context(self._host.opened())
            dialog = _Dialog(receive, send, resources.aclose)
            error: Exception | None = None
            try:
                await self._app(scope, dialog.receive, dialog.send)
            except Exception as raised:  # noqa: BLE001  depends on the progress of the dialog; raised below
                error = raised
            if not dialog.is_started and not dialog.is_answered:
                # The specification says how an app without lifespan answers: it raises.
                text = "the app has no lifespan (%s); the integration answers the server"
                _log.debug(text, type(error).__name__, extra={"mixpanel": {"event": "lifespan_missing"}})
                error = None
            await dialog.finish()
            if error is not None:
                raise error


class _Dialog:
    """Messages between a server and the lifespan of an app.

    Args:
        receive: receives the messages of the server.
        send: sends messages to the server.
        close: called before the last message is sent.

    Attributes:
        is_started: whether the app has started.
        is_answered: whether the last message has been sent.
    """

    def __init__(self, receive: Receive, send: Send, close: Callable[[], Awaitable[None]]) -> None:
        self._receive = receive
        self._send = send
        self._close = close
        self._received = 0
        self.is_started = False
        self.is_answered = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._received += 1
        return message

    async def send(self, message: Message) -> None:
        if not message["type"].startswith("lifespan."):
            raise RuntimeError(f"the app sent {message['type']} to the lifespan")
        if message["type"] == _STARTED:
            self.is_started = True
        else:
            await self._close()
            self.is_answered = True
        await self._send(message)

    async def finish(self) -> None:
        """Exchange the messages that the app has left out."""
        if self.is_answered:
            return
        if not self._received:
            await self.receive()
        if not self.is_started:
            await self.send({"type": _STARTED})
        if self._received == 1:
            await self.receive()
        await self.send({"type": _STOPPED})
