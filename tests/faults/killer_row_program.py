"""Client whose process dies while it sends certain records: `python killer_row_program.py fill|drain JSON`."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import os
import signal
import sys
from typing import Any

import httpx

from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, ServiceAccountCredentials, SqliteSpool

KILLER = "killer"


def die(manner: str) -> None:
    if manner == "exit":
        os._exit(9)
    os.kill(os.getpid(), getattr(signal, manner))


def has_killer(request: httpx.Request) -> bool:
    body = request.content
    return KILLER.encode() in (gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)


def http_client(given: dict[str, Any]) -> httpx.AsyncClient:
    """Return a client with a hook that ends the process, before the request or after the response."""

    async def on_request(request: httpx.Request) -> None:
        if given["moment"] == "request" and has_killer(request):
            die(given["manner"])

    async def on_response(response: httpx.Response) -> None:
        if given["moment"] == "response" and has_killer(response.request):
            die(given["manner"])

    hooks: dict[str, list[Any]] = {"request": [on_request], "response": [on_response]}
    return httpx.AsyncClient(event_hooks=hooks if given["manner"] else None)


def new_client(given: dict[str, Any], **more: Any) -> AsyncMixpanel:
    options: dict[str, Any] = {
        "api_host": given["url"],
        "credentials": ServiceAccountCredentials("user", "secret", "1"),
        "spool": SqliteSpool(given["path"], fsync=False, timeout=10.0),
        "batching": BatchPolicy(linger=0.01, max_events=given["max_events"]),
        "retry": RetryPolicy(initial=0.02, maximum=0.1),
        **more,
    }
    return AsyncMixpanel("emulator-token", **options)


async def fill(given: dict[str, Any]) -> None:
    """Track records of all kinds and end without sending them."""
    mp = new_client(given, batching=BatchPolicy(linger=3600.0))
    for number in range(given["records"]):
        name = KILLER if number in given["killers"] else "sound"
        match given["kind"]:
            case "events":
                await mp.track("user", "Event", {"name": name, "n": number})
            case "imports":
                await mp.import_data(None, "user", "Event", 1_700_000_000.0, {"name": name, "n": number})
            case "people":
                await mp.people_set(f"user-{number}", {"name": name, "n": number})
            case "groups":
                await mp.group_set("company", f"company-{number}", {"name": name, "n": number})
    os._exit(0)


async def drain(given: dict[str, Any]) -> None:
    """Deliver what waits, and close."""
    async with http_client(given) as http:
        mp = new_client(given, http_client=http)
        await mp.start()
        sys.stdout.write("started\n")
        sys.stdout.flush()
        while mp.stats().pending:
            await mp.flush(1.0)
        await mp.aclose()
    sys.stdout.write(json.dumps(dataclasses.asdict(mp.stats())) + "\n")


if __name__ == "__main__":
    asyncio.run({"fill": fill, "drain": drain}[sys.argv[1]](json.loads(sys.argv[2])))
