"""Producer that is killed: prints the number of each call that has returned. Arguments: URL of Redis, seed."""

from __future__ import annotations

import asyncio
import sys
from itertools import count

from mixpanel_async import AsyncMixpanel
from mixpanel_async.outbox import RedisOutbox


async def main(url: str, producer: str) -> None:
    numbers = count()
    async with AsyncMixpanel("token", outbox=RedisOutbox(url, confirm=True)) as mp:

        async def call() -> None:
            while True:
                number = next(numbers)
                await mp.people_increment(f"user-{number % 20}", {f"{producer}": number})
                sys.stdout.write(f"{producer} {number}\n")
                sys.stdout.flush()

        await asyncio.gather(*(call() for _ in range(20)))


asyncio.run(main(*sys.argv[1:]))
