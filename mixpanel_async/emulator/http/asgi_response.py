"""ASGI applications that send one response, with the effects of a planned fault.

Plain ASGI, so that a fault behaves the same on a socket and in-process. To break a connection, the application raises
an error. The server then closes the connection, and an in-process client receives the error itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, final

import anyio

from ..project.export import EventExport
from ..project.responses import EmulatorResponse
from .faults import ConnectionDroppedError, PlannedResponse
from .reads import reads

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

REASON: Final = "mixpanel_async.reason"
"""Key of the scope for the reason why a request failed, which `RequestWatch` logs."""

_GZIP: Final = zlib.MAX_WBITS | 16


@final
class AsgiResponse:
    """ASGI application that sends one response.

    Args:
        planned: the response and its delivery.
    """

    def __init__(self, planned: PlannedResponse) -> None:
        self._planned = planned

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, and set `REASON`.

        Raises:
            ConnectionDroppedError: if the connection is to be closed now.
        """
        planned = self._planned
        if planned.seconds > 0:
            await anyio.sleep(planned.seconds)
        response = planned.response
        if response is None:
            if planned.hang:
                await _wait_for_disconnect(receive)
            raise ConnectionDroppedError
        scope[REASON] = response.reason
        headers = [(b"content-length", b"%d" % len(response.body)), (b"content-type", response.media_type.encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in response.headers.items()]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        for seconds, chunk, has_more in planned.chunks():
            if seconds > 0:
                await anyio.sleep(seconds)
            await send({"type": "http.response.body", "body": chunk, "more_body": has_more})
        if planned.cut:
            raise ConnectionDroppedError


def unplanned(response: EmulatorResponse) -> AsgiResponse:
    """Return the application that sends a response without a planned fault."""
    return AsgiResponse(PlannedResponse(response=response))


@final
class ExportResponse:
    """ASGI application that streams an export, without holding all of its text in memory.

    Args:
        export: the events to send.
    """

    def __init__(self, export: EventExport) -> None:
        self._export = export

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the export as one event per line, until the client disconnects."""
        async with anyio.create_task_group() as tasks:

            async def send_all() -> None:
                async with reads().exports:
                    await self._send_export(send)
                tasks.cancel_scope.cancel()

            tasks.start_soon(send_all)
            await _wait_for_disconnect(receive)
            tasks.cancel_scope.cancel()

    async def _send_export(self, send: Send) -> None:
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        if self._export.compress:
            headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        compressor = zlib.compressobj(1, wbits=_GZIP) if self._export.compress else None
        chunks = self._export.chunks()

        def next_body() -> bytes | None:
            chunk = next(chunks, None)
            return chunk if chunk is None or compressor is None else compressor.compress(chunk)

        while (body := await reads().run(next_body)) is not None:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"" if compressor is None else compressor.flush()})


async def _wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client has disconnected or, in-process, has cancelled the request."""
    while (await receive())["type"] != "http.disconnect":
        pass
