"""Process of `mixpanel-async demo --redis`: one host that hands its records over, and prints how many.

Environment: `MIXPANEL_OUTBOX`, the URL of Redis. Argument: a JSON object with the parameters of `produce`.
"""

from __future__ import annotations

import json
import os
import sys

import anyio

from mixpanel_async import AsyncMixpanel, Stats
from mixpanel_async.outbox import RedisOutbox


async def produce(*, url: str, queue: str, token: str, host: str, events: int, steps: int, people: int) -> Stats:
    """Track events, and update each person once in each step; a step takes 0.1 s.

    Args:
        url: URL of Redis.
        queue: name of the queue.
        token: project token.
        host: name of this producer, which is part of all ids.
        events: number of events.
        steps: number of steps.
        people: number of people.

    Returns:
        Statistics of the client, which is closed.
    """
    async with AsyncMixpanel(token, outbox=RedisOutbox(url, name=queue), shutdown_timeout=30.0) as mp:
        for step in range(steps):
            for number in range(events * step // steps, events * (step + 1) // steps):
                await mp.track(f"{host}-visitor-{number % people}", "Page viewed", {"number": f"{host}-{number}"})
            for one in range(people):
                person = f"{host}-visitor-{one}"
                await mp.people_set(person, {"step": step})
                await mp.people_increment(person, {"visits": 1})
                await mp.people_append(person, {"steps": step})
            await anyio.sleep(0.1)
    return mp.stats()


def main() -> None:
    """Run the process."""
    stats = anyio.run(lambda: produce(url=os.environ["MIXPANEL_OUTBOX"], **json.loads(sys.argv[1])))
    print(json.dumps({"accepted": stats.accepted, "handed_over": stats.delivered}))
