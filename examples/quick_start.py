"""Track an event, join an anonymous visitor to the account, set a profile.

    MIXPANEL_TOKEN=... python examples/quick_start.py

Without an account, start the local emulator with `--id-merge original`, because the example calls `alias`, and set
MIXPANEL_API_HOST to its address, such as http://127.0.0.1:8080.
"""

from __future__ import annotations

import asyncio
import uuid

from mixpanel_async import AsyncMixpanel


async def main() -> None:
    visitor = str(uuid.uuid4())
    async with AsyncMixpanel.from_env() as mp:
        await mp.track(visitor, "Page viewed", {"page": "/pricing"})
        await mp.alias("maya@example.com", visitor)
        await mp.track("maya@example.com", "Signed up", {"plan": "free"})
        await mp.people_set("maya@example.com", {"$name": "Maya", "plan": "free"})
        result = await mp.flush()
    print(f"{result.delivered} records delivered, {result.failed} failed, {result.pending} still to be sent")


if __name__ == "__main__":
    asyncio.run(main())
