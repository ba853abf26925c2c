"""Track an anonymous visitor, join them to their account at sign-up, set a profile.

    mixpanel-async emulator --port 8080                   # a local Mixpanel, in another terminal
    MIXPANEL_TOKEN=any MIXPANEL_API_HOST=http://127.0.0.1:8080 python examples/quick_start.py

With a project of yours, set MIXPANEL_TOKEN to its token and leave MIXPANEL_API_HOST out. MIXPANEL_ID_MERGE is the ID
merge system of the project: simplified (the default here, and of the emulator), original or legacy. `sign_in` makes the
calls that the system needs.
"""

from __future__ import annotations

import asyncio
import os

from mixpanel_async import AsyncMixpanel

SETTINGS = {"MIXPANEL_ID_MERGE": "simplified", **os.environ}


async def main() -> None:
    async with AsyncMixpanel.from_env(SETTINGS) as mp:
        visitor = mp.bind(device_id=mp.new_device_id())
        await visitor.track("Page viewed", {"page": "/pricing"})
        await visitor.sign_in("user-1", "Signed up", {"plan": "free"}, is_new=True)
        await visitor.people_set({"$name": "Maya", "plan": "free"})
        result = await mp.flush()
    print(f"{result.delivered} records delivered, {result.failed} failed, {result.pending} still to be sent")


if __name__ == "__main__":
    asyncio.run(main())
