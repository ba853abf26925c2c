"""Fake flags server with configurable responses, and a client connected to it."""

from __future__ import annotations

import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx

from mixpanel_async import AsyncMixpanel
from mixpanel_async.flags import LocalFlags

TOKEN = "token-of-the-project"
Say = bytes | int | Exception | httpx.Response | Callable[[httpx.Request], Awaitable[httpx.Response]]

ON: list[dict[str, Any]] = [{"key": "on", "value": True, "is_control": False, "split": 1.0}]
CT: list[dict[str, Any]] = [
    {"key": "control", "value": "c", "is_control": True, "split": 0.5},
    {"key": "treatment", "value": "t", "is_control": False, "split": 0.5},
]


def flag(key: str, ruleset: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """Return a flag definition; without a ruleset it is on for all users."""
    wanted = {"variants": ON, "rollout": [{"rollout_percentage": 1.0}]} if ruleset is None else ruleset
    return {
        "id": "f", "name": "n", "key": key, "status": "enabled", "project_id": 1, "workspace_id": 2,
        "context": "distinct_id", "ruleset": wanted, **fields,
    }  # fmt: skip


def definitions(*flags: Any) -> bytes:
    return json.dumps({"flags": flags}).encode()


class Server:
    """Answer `/flags` and `/flags/definitions` with the response in `says`, and accept all events.

    `says` is a body, a status code, a response, an async handler, or an exception for a connection failure.
    """

    def __init__(self, says: Say = b'{"flags": []}') -> None:
        self.says = says
        self.requests: list[httpx.Request] = []
        self.events: list[dict[str, Any]] = []
        self.client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.startswith("/flags"):
            body = request.content
            self.events += json.loads(gzip.decompress(body) if "Content-Encoding" in request.headers else body)
            return httpx.Response(200, json={"status": 1})
        self.requests.append(request)
        says = self.says
        if isinstance(says, Exception):
            raise says
        if isinstance(says, int):
            return httpx.Response(says, json={"error": "no", "status": "error"})
        if isinstance(says, httpx.Response):
            return httpx.Response(says.status_code, headers=says.headers, content=says.content)
        return httpx.Response(200, content=says) if isinstance(says, bytes) else await says(request)

    async def asked(self, more: int = 1) -> None:
        """Wait for more requests, and for one further request, which proves that the last response was processed."""
        target = len(self.requests) + more + 1
        await until(lambda: len(self.requests) >= target)


async def until(is_so: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    with anyio.fail_after(10):
        while not is_so():  # noqa: ASYNC110  the condition has no event
            await anyio.sleep(0.001)


@asynccontextmanager
async def local(
    server: Server, flags: Sequence[dict[str, Any]] | None = None, poll_interval: float | None = 0.01, **options: Any
) -> AsyncIterator[AsyncMixpanel]:
    """Yield a client with local flags that has fetched its definitions."""
    if flags is not None:
        server.says = definitions(*flags)
    chosen = options.pop("local_flags", None) or LocalFlags(poll_interval=poll_interval)
    async with AsyncMixpanel(TOKEN, http_client=server.client, local_flags=chosen, **options) as mp:
        assert await mp.local_flags.wait_ready(5)
        yield mp
