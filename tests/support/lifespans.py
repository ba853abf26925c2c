"""The server's side of the ASGI lifespan protocol."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio


class LifespanFailed(Exception):
    """The app answered with a failure."""


@asynccontextmanager
async def lifespan_of(app: Any) -> AsyncIterator[list[str]]:
    """Run the lifespan of an app as a server does. Yields the types of the app's messages.

    Raises:
        LifespanFailed: if the app answers with a failure.
    """
    answers: list[str] = []
    to_app, for_app = anyio.create_memory_object_stream[dict[str, Any]](2)
    to_server, for_server = anyio.create_memory_object_stream[dict[str, Any]](2)

    async def send(message: dict[str, Any]) -> None:
        answers.append(message["type"])
        await to_server.send(message)

    async def exchange(phase: str) -> None:
        await to_app.send({"type": f"lifespan.{phase}"})
        message = await for_server.receive()
        if message["type"] != f"lifespan.{phase}.complete":
            raise LifespanFailed(message)

    async def serve() -> None:
        await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, for_app.receive, send)

    with to_app, for_app, to_server, for_server:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await exchange("startup")
            yield answers
            await exchange("shutdown")
