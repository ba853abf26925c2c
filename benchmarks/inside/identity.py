"""Identity section: awaited calls, and the same request sent by httpx alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from ..event import TOKEN
from ..sink import ask
from .loops import run

Call = Callable[[int], Awaitable[object]]


def measure(subject: str, origin: str, calls: int, concurrency: int) -> dict[str, float]:
    """Return seconds of CPU and of wall time. The warm-up and its connections are not counted."""
    return run(_measured(subject, origin, calls, concurrency))


async def _measured(subject: str, origin: str, calls: int, concurrency: int) -> dict[str, float]:
    async with (_bare if subject == "bare" else _client)(origin) as call:

        async def caller(first: int, last: int) -> None:
            for number in range(first, last, concurrency):
                await call(number)

        async def all_callers(last: int) -> None:
            await asyncio.gather(*(caller(first, last) for first in range(concurrency)))

        await all_callers(3 * concurrency)
        ask(origin, "/take")
        cpu, wall = time.process_time(), time.perf_counter()
        await all_callers(calls)
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


@asynccontextmanager
async def _client(origin: str) -> AsyncIterator[Call]:
    from mixpanel_async import AsyncMixpanel

    async with AsyncMixpanel(TOKEN, api_host=origin) as client:
        yield lambda number: client.alias(f"alias-{number:06d}", "user-0001")


@asynccontextmanager
async def _bare(origin: str) -> AsyncIterator[Call]:
    import httpx

    headers = {"Content-Type": "application/json", "Accept": "application/json"}

    async with httpx.AsyncClient() as client:

        async def call(number: int) -> None:
            body = (
                f'[{{"event":"$create_alias","properties":{{"token":"{TOKEN}","distinct_id":"user-0001",'
                f'"alias":"alias-{number:06d}","$insert_id":"{number:032x}","time":1700000000000,'
                '"mp_lib":"python-async","$lib_version":"0.1.0"}}]'
            )
            reply = await client.post(f"{origin}/track?verbose=1&ip=0", content=body.encode(), headers=headers)
            if reply.json()["status"] != 1:
                raise RuntimeError("the sink rejected a call")

        yield call
