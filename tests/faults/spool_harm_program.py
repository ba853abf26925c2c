"""Client that tracks until it is killed: `python spool_harm_program.py URL PATH RECEIPTS COUNT SIZE`.

Tracks `COUNT` events, or endlessly if it is 0. Each line on standard input then asks for one more event. Writes a
receipt for each event whose call has returned.
"""

from __future__ import annotations

import asyncio
import os
import sys
from itertools import count

from mixpanel_async import AsyncMixpanel, SpoolError, SqliteSpool

TASKS = 20


async def main(url: str, path: str, receipts: str, limit: int, size: int) -> None:
    numbers = count()
    file = os.open(receipts, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    mp = AsyncMixpanel("token", api_host=url, spool=SqliteSpool(path, fsync=False))

    async def track(number: int) -> None:
        try:
            await mp.track("user", "E", {"x": "." * size}, insert_id=f"event-{number}")
        except SpoolError:
            # Was not accepted, so there is no receipt.
            return
        os.write(file, b"%d\n" % number)

    async def work() -> None:
        while not limit or (number := next(numbers)) < limit:
            await track(number if limit else next(numbers))
            if not limit:
                # All accepted records stay in memory as well.
                await asyncio.sleep(0.005)

    await asyncio.gather(*(work() for _ in range(TASKS)))
    for line in iter(sys.stdin.readline, ""):
        assert line
        await track(next(numbers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
