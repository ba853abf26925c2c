"""Paced section: a steady stream of events on a loop with a 1 ms heartbeat."""

from __future__ import annotations

import asyncio
from typing import Final

from ..event import NAME, distinct_id, properties
from ..subjects import SUBJECTS, without_isal
from .loops import Watch, run

_BEAT: Final = 0.001


def measure(subject: str, origin: str, rate: int, seconds: float, *, speedups: bool) -> dict[str, float]:
    """Return the maximum delay of the heartbeat, and the longest block of the loop in CPU time."""
    if not speedups:
        without_isal()
    watch = Watch()
    return run(_measured(watch, subject, origin, rate, seconds), watch=watch)


async def _measured(watch: Watch, name: str, origin: str, rate: int, seconds: float) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    latest = 0.0
    handle: asyncio.TimerHandle

    def beat(due: float) -> None:
        nonlocal latest, handle
        late = loop.time() - due
        latest = max(latest, late)
        due += _BEAT * (1 + late // _BEAT)
        handle = loop.call_at(due, beat, due)

    events = int(rate * seconds)
    async with SUBJECTS[name](origin, events) as subject:
        await asyncio.sleep(10 * _BEAT)
        watch.begin()
        began = loop.time()
        handle = loop.call_at(began + _BEAT, beat, began + _BEAT)
        done = 0
        while done < events:
            await asyncio.sleep(_BEAT)
            due = min(events, int((loop.time() - began) * rate))
            for number in range(done, due):
                await subject.track(distinct_id(number), NAME, properties(number))
            done = due
        await subject.close()
        held, _ = watch.held()
        handle.cancel()
    return {"late": latest, "held": held}
