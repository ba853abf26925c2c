"""An answer on its way to the client, with whatever a planned failure does to it there.

Plain ASGI, so that a failure is the same over a socket and in-process: where a connection is to break, an error comes
out of the application, which the server turns into a broken connection and an in-process client sees as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, final

import anyio

from .faults import ConnectionDroppedError, PlannedDelivery

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@final
class DeliveredResponse:
    """The ASGI application that sends one answer.

    Args:
        delivery: what to send, and how.
    """

    def __init__(self, delivery: PlannedDelivery) -> None:
        self._delivery = delivery

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send it.

        Raises:
            ConnectionDroppedError: if the connection is to be closed now.
        """
        delivery = self._delivery
        if delivery.seconds > 0:
            await anyio.sleep(delivery.seconds)
        answer = delivery.answer
        if answer is None:
            if delivery.hang:
                await _departure(receive)
            raise ConnectionDroppedError
        headers = [(b"content-length", b"%d" % len(answer.body)), (b"content-type", answer.media_type.encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers.items()]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        parts = delivery.parts()
        for left, (seconds, part) in zip(range(len(parts) - 1, -1, -1), parts, strict=True):
            if seconds > 0:
                await anyio.sleep(seconds)
            await send({"type": "http.response.body", "body": part, "more_body": left > 0 or delivery.cut})
        if delivery.cut:
            raise ConnectionDroppedError


async def _departure(receive: Receive) -> None:
    """Wait until the client has left; in-process, until it gives the request up."""
    while (await receive())["type"] != "http.disconnect":
        pass
