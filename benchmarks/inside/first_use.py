"""First-use section: blocking of the event loop by the first call and the first request."""

from __future__ import annotations

import asyncio
import logging

from ..event import NAME, TOKEN, distinct_id, properties
from .loops import Watch, run


def measure(origin: str, *, started: bool) -> dict[str, float]:
    """Return the longest times the loop was blocked, in seconds of CPU time of its thread.

    Args:
        origin: origin of the server; an `https://` server may refuse the request.
        started: whether to call `start()` before the first call.
    """
    # A refused request is expected; do not log it.
    logging.disable()
    watch = Watch()
    return run(_measured(watch, origin, started=started), watch=watch)


async def _measured(watch: Watch, origin: str, *, started: bool) -> dict[str, float]:
    from mixpanel_async import AsyncMixpanel, BatchPolicy

    policy = BatchPolicy(linger=0.0)
    client = AsyncMixpanel(TOKEN, api_host=origin, batching=policy, shutdown_timeout=0.2)
    await asyncio.sleep(0.01)
    watch.begin()
    if started:
        await client.start()
        await asyncio.sleep(0.01)
    start, _ = watch.held()
    watch.begin()
    await client.track(distinct_id(0), NAME, properties(0))
    call, _ = watch.held()
    stats = client.stats()
    while not (stats.delivered or stats.last_error):
        await asyncio.sleep(0.001)
        stats = client.stats()
    request, _ = watch.held()
    await client.aclose()
    return {"start": start, "call": call, "request": request}
