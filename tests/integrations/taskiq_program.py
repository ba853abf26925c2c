"""taskiq worker of test_taskiq.py: `python -m taskiq worker taskiq_program:broker`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from taskiq import AsyncBroker, BrokerMessage, TaskiqDepends

from mixpanel_async import AsyncMixpanel, BatchPolicy
from mixpanel_async.integrations.taskiq import MixpanelMiddleware, current_mixpanel

TASKS = 12
MIXPANEL: AsyncMixpanel = TaskiqDepends(current_mixpanel)


class ListBroker(AsyncBroker):
    """Broker whose queue has 12 tasks when the worker starts."""

    async def kick(self, message: BrokerMessage) -> None:
        raise NotImplementedError

    async def listen(self) -> AsyncGenerator[bytes, None]:
        for number in range(TASKS):
            task = work if number % 2 else work_async
            yield self.formatter.dumps(task.kicker()._prepare_message(number)).message
        await asyncio.Event().wait()


def make_client() -> AsyncMixpanel:
    # Nothing is delivered unless something flushes or closes the client.
    return AsyncMixpanel.from_env(batching=BatchPolicy(linger=3600.0))


broker = ListBroker().with_middlewares(MixpanelMiddleware(make_client))


@broker.task
async def work_async(number: int, mp: AsyncMixpanel = MIXPANEL) -> None:
    await mp.track("user", "Worked", {"number": number})
    await mp.people_increment("user", {"tasks": 1})
    print("worked", flush=True)


@broker.task
def work(number: int, mp: AsyncMixpanel = MIXPANEL) -> None:
    """A plain task runs in a thread."""
    mp.track_nowait("user", "Worked", {"number": number})
    asyncio.run(mp.people_increment("user", {"tasks": 1}))
    print("worked", flush=True)
