"""TCP proxy in front of a Redis server that loses answers, or keeps a command back until its client has given up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mixpanel_async.outbox.redis_connection import digest_of


class RedisProxy:
    """Proxy whose faults concern the next command that contains a script.

    Args:
        port: port of the server.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._cut: bytes | None = None
        self._held: bytes | None = None
        self._release = asyncio.Event()
        self._is_held = asyncio.Event()
        self._done = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""

    def cut(self, script: str) -> None:
        """Carry out the next command with this script, and close its connection without the answer."""
        self._cut = digest_of(script).encode()

    def cut_command(self, name: str) -> None:
        """Do the same with the next command of this name."""
        self._cut = name.encode()

    def hold(self, script: str) -> None:
        """Keep the next command with this script back until `release`."""
        self._held = digest_of(script).encode()
        for event in (self._is_held, self._release, self._done):
            event.clear()

    async def held(self) -> None:
        """Wait until the command has come."""
        await self._is_held.wait()

    async def release(self) -> None:
        """Pass the command that was kept back to the server, and wait for its answer."""
        self._release.set()
        await self._done.wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(_forward(server_reader, writer))
        try:
            while data := await reader.read(2**20):
                if self._cut is not None and self._cut in data:
                    self._cut = None
                    answers.cancel()
                    server_writer.write(data)
                    await asyncio.wait([answers])
                    await server_reader.read(1)
                    return
                is_held = self._held is not None and self._held in data
                if is_held:
                    self._held = None
                    self._is_held.set()
                    await self._release.wait()
                    answers.cancel()
                    await asyncio.wait([answers])
                server_writer.write(data)
                if is_held:
                    writer.write(await server_reader.read(2**20))
                    self._done.set()
                    answers = asyncio.create_task(_forward(server_reader, writer))
        except (ConnectionError, asyncio.CancelledError):
            return
        finally:
            answers.cancel()
            self._tasks.discard(task)
            server_writer.close()
            writer.close()

    async def aclose(self) -> None:
        """End all connections."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(2**20):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[RedisProxy]:
    """Run a proxy in front of the server at this port."""
    proxy = RedisProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.aclose()
        await server.wait_closed()
