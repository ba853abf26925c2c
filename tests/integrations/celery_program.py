"""Celery app of test_celery.py. Its environment names the folder of its queue and the emulator."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

from celery import Celery

from mixpanel_async import AsyncMixpanel, BatchPolicy, SqliteSpool
from mixpanel_async.integrations.celery import MixpanelIntegration, current_mixpanel

FOLDER = Path(os.environ["CELERY_FOLDER"])
SPOOL = SqliteSpool(FOLDER / "spool.db") if "CELERY_SPOOL" in os.environ else None
CLOSE_TIMEOUT = float(os.environ.get("CELERY_CLOSE", "10"))


def make_client() -> AsyncMixpanel:
    # Nothing is delivered unless something flushes or closes the client.
    return AsyncMixpanel.from_env(batching=BatchPolicy(linger=3600.0), shutdown_timeout=CLOSE_TIMEOUT, spool=SPOOL)


app = Celery("shop", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "queue"),
        "data_folder_out": str(FOLDER / "queue"),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.02,
    },
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,
)
mixpanel = MixpanelIntegration(make_client, task_flush_timeout=5.0 if "CELERY_FLUSH" in os.environ else None)


@app.task
def work(number: int, processes: int) -> None:
    """Track an event, after this many processes have begun such a task."""
    (FOLDER / f"{os.getpid()}.pid").touch()
    while len(list(FOLDER.glob("*.pid"))) < processes:
        time.sleep(0.01)
    current_mixpanel().track("user", "Worked", {"number": number, "process": os.getpid()})
    mixpanel.blocking.people_increment("user", {"tasks": 1})


@app.task
def work_async(number: int, processes: int) -> None:
    """Do the same in an event loop."""

    async def track() -> None:
        await mixpanel.client.track("user", "Worked", {"number": number, "process": os.getpid()})
        await mixpanel.client.people_increment("user", {"tasks": 1})

    asyncio.run(track())


@app.task(soft_time_limit=1)
def exceed_soft_limit() -> None:
    mixpanel.blocking.track("user", "Began", {"end": "limit"})
    time.sleep(20.0)


@app.task
def die() -> None:
    mixpanel.blocking.track("user", "Began", {"end": "kill"})
    os.kill(os.getpid(), signal.SIGKILL)


@app.task
def fail() -> None:
    mixpanel.blocking.track("user", "Began", {"end": "error"})
    raise RuntimeError("of the task")


def send(task: Any, *args: object) -> None:
    task.apply_async(args)
