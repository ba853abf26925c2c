"""Celery worker that tracks what its tasks do.

    pip install ".[celery]" "celery[redis]"     # in a clone of the repository
    MIXPANEL_TOKEN=... celery --app celery_app worker             # in the folder `examples`
    python -c "import celery_app, time; celery_app.pay.delay('user-1', 9.5, time.time())"

Tasks are plain functions and track in microseconds. Each process of the worker has one client. It delivers in
batches in the background, and when the process ends.

- `pay` passes the task's id as `insert_id`, and the time at which the task was sent: the event of a task that the queue
  delivers twice is counted once.
- `sign_up` waits for Mixpanel. The task is retried if the ids could not be linked.
- `sync_contacts` runs an event loop, with the same client.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from celery import Celery

from mixpanel_async import MixpanelException
from mixpanel_async.integrations.celery import MixpanelIntegration

app = Celery("shop", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))
app.conf.update(task_acks_late=True, broker_connection_retry_on_startup=True)
# The client is created in the worker, from the variables MIXPANEL_TOKEN and so on.
mixpanel = MixpanelIntegration()


@app.task(bind=True)
def pay(self: Any, user_id: str, amount: float, paid_at: float) -> None:
    mixpanel.blocking.track(user_id, "Paid", {"amount": amount}, time=paid_at, insert_id=self.request.id)
    mixpanel.blocking.people_increment(user_id, {"payments": 1})


@app.task(autoretry_for=(MixpanelException,), retry_backoff=True)
def sign_up(user_id: str, visitor_id: str) -> None:
    mixpanel.blocking.alias(user_id, visitor_id)
    mixpanel.blocking.track(user_id, "Signed up")


@app.task
def sync_contacts(user_ids: list[str]) -> None:
    async def sync(user_id: str) -> None:
        await asyncio.sleep(0.01)  # for example a request to another service
        await mixpanel.client.track(user_id, "Contacts synced")

    async def main() -> None:
        await asyncio.gather(*(sync(user_id) for user_id in user_ids))

    asyncio.run(main())
