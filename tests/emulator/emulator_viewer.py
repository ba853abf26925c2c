"""In-process viewer of the live stream, for tests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio

from mixpanel_async.emulator import Emulator


@dataclass
class Message:
    """Server-sent event."""

    kind: str
    data: Any
    id: int | None = None


class Viewer:
    """Connection to `/_emulator/stream`."""

    def __init__(self, emulator: Emulator, last_id: str | None) -> None:
        headers = [(b"host", b"127.0.0.1")]
        if last_id is not None:
            headers.append((b"last-event-id", last_id.encode()))
        self._scope = {
            "type": "http",
            "method": "GET",
            "path": "/_emulator/stream",
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": headers,
        }
        self._app: Any = emulator.app
        self._chunks, self._arrived = anyio.create_memory_object_stream[bytes](10_000)
        self._left = anyio.Event()
        self.gate = anyio.Event()
        """While this is not set, the viewer accepts no data."""
        self.gate.set()
        self.status = 0
        self._text = b""

    async def run(self) -> None:
        async def receive() -> dict[str, Any]:
            await self._left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                return
            await self.gate.wait()
            await self._chunks.send(message["body"])

        with self._chunks:
            await self._app(self._scope, receive, send)

    def leave(self) -> None:
        self._left.set()

    async def message(self) -> Message:
        """Return the next message. Skip comments and settings."""
        while "event" not in (fields := await self._block()):
            pass
        number = int(fields["id"]) if "id" in fields else None
        return Message(fields["event"], json.loads(fields["data"]), number)

    async def comment(self) -> str:
        """Return the next comment. Fail if a message comes first."""
        fields = await self._block()
        assert "event" not in fields
        return fields[""]

    async def _block(self) -> dict[str, str]:
        while b"\n\n" not in self._text:
            self._text += await self._arrived.receive()
        block, _, self._text = self._text.partition(b"\n\n")
        return dict(line.split(": ", 1) for line in block.decode().split("\n"))

    async def batch(self) -> Any:
        message = await self.message()
        assert message.kind == "batch", message
        return message.data

    async def until(self, done: Callable[[list[Any]], bool]) -> list[Any]:
        """Return batches until a condition on them holds."""
        batches: list[Any] = []
        while not done(batches):
            batches.append(await self.batch())
        return batches

    async def body(self) -> bytes:
        """Return the complete body of a response that is not a stream."""
        return b"".join([chunk async for chunk in self._arrived])

    def close(self) -> None:
        self._arrived.close()


@asynccontextmanager
async def viewing(emulator: Emulator, last_id: str | int | None = None) -> AsyncIterator[Viewer]:
    viewer = Viewer(emulator, None if last_id is None else str(last_id))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(viewer.run)
        try:
            yield viewer
        finally:
            viewer.leave()
            viewer.gate.set()
            viewer.close()
            tasks.cancel_scope.cancel()
