"""Producer of a storm: `python outbox_producer_program.py JSON`. It ends when its standard input does.

It prints `ready` once it runs, and at the end what it has handed over.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from typing import Any, Final

from mixpanel_async import AsyncMixpanel, BatchPolicy
from mixpanel_async.outbox import RedisOutbox

TURN: Final = 0.05
PEOPLE: Final = 40


async def produce(given: dict[str, Any]) -> dict[str, Any]:
    number, finals, made = given["number"], dict[str, int](), [0, 0, 0]
    loop = asyncio.get_running_loop()
    is_over = loop.run_in_executor(None, sys.stdin.read)
    outbox = RedisOutbox(given["url"], **given["options"])
    async with AsyncMixpanel(
        given["token"], outbox=outbox, batching=BatchPolicy(linger=0.25, max_events=500), shutdown_timeout=40
    ) as mp:
        say("ready")
        began = time.monotonic()
        while not is_over.done():
            due = [rate * (time.monotonic() - began) for rate in given["rates"]]
            while made[0] < due[0]:
                mp.track_nowait(f"user-{made[0] % 500}", "Storm", {"number": f"{number}-{made[0]}"})
                made[0] += 1
            while made[1] < due[1]:
                person = f"set-{number}-{made[1] % PEOPLE}"
                finals[person] = made[1]
                await mp.people_set(person, {"value": made[1]})
                made[1] += 1
            while made[2] < due[2]:
                await mp.people_increment(f"count-{number}-{made[2] % PEOPLE}", {f"add-{number}-{made[2]}": 1})
                made[2] += 1
            await asyncio.sleep(TURN)
    stats = mp.stats()
    return {
        "number": number, "events": made[0], "sets": made[1], "adds": made[2], "finals": finals,
        "accepted": stats.accepted, "delivered": stats.delivered, "losses": dict(stats.losses),
    }  # fmt: skip


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    given = json.loads(sys.argv[1])
    say(json.dumps(asyncio.run(produce({**given, "token": os.environ["MIXPANEL_TOKEN"]}))))


if __name__ == "__main__":
    main()
