"""Celery integration.

app = Celery("shop", broker="redis://localhost")
mixpanel = MixpanelIntegration(AsyncMixpanel.from_env)

@app.task
def charge(user_id: str) -> None:
    mixpanel.blocking.track(user_id, "Charged")
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

try:
    from celery import signals
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "celery":
        raise
    raise ImportError(
        'the Celery integration needs an extra: run pip install ".[celery]" in a clone of the repository',
        name=error.name,
    ) from error

from mixpanel_async import AsyncMixpanel, BlockingMixpanel

from ._base import MakeClient
from ._worker import WorkerClient, check_flush_timeout

__all__ = ["MixpanelIntegration", "current_mixpanel"]

_log = logging.getLogger("mixpanel_async")
_CURRENT_WORKER: Final[ContextVar[WorkerClient]] = ContextVar("mixpanel_async.integrations.worker")


class MixpanelIntegration:
    """One Mixpanel client for each process of a Celery worker, which delivers before the process ends.

    Create it in the module of the Celery app. It connects to the signals of Celery: a child of the pool `prefork`
    starts the client when it starts, a worker of the pools `threads` and `solo` at the first task that uses it. Records
    are delivered in batches in the background. The warm shutdown of the worker, and the end of a child that has reached
    `worker_max_tasks_per_child`, deliver what waits, for at most the `shutdown_timeout` of the client.

    Processes that only send tasks create no client.

    Example:
        ```python
        from celery import Celery

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.celery import MixpanelIntegration

        app = Celery("shop", broker="redis://queue:6379/0")
        mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN"))


        @app.task
        def charge(user_id: str, amount: float) -> None:
            mixpanel.blocking.track(user_id, "Paid", {"amount": amount})
        ```

    Args:
        client: function that creates the client of a process; by default from the environment. Or a client.
        task_flush_timeout: seconds to deliver after each task, before the worker acknowledges it if `acks_late` is set;
            0.001 to 900. None (default) does not wait.

    Raises:
        ConfigurationError: if an option is invalid.
    """

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        task_flush_timeout: float | None = None,
    ) -> None:
        if task_flush_timeout is not None:
            check_flush_timeout("task_flush_timeout", task_flush_timeout)
        self._worker = WorkerClient(client)
        self._task_flush_timeout = task_flush_timeout
        for signal, receiver in (
            (signals.worker_init, self._worker_began),
            (signals.worker_process_init, self._process_began),
            (signals.task_prerun, self._task_began),
            (signals.task_postrun, self._task_ended),
            (signals.worker_process_shutdown, self._process_ended),
            (signals.worker_shutdown, self._process_ended),
        ):
            # By default, Celery drops a receiver that nothing else refers to.
            signal.connect(receiver, weak=False)

    @property
    def blocking(self) -> BlockingMixpanel:
        """The client of this process with blocking methods, for tasks.

        Raises:
            ConfigurationError: if the client cannot be created.
        """
        return self._worker.blocking

    @property
    def client(self) -> AsyncMixpanel:
        """The client of this process with coroutine methods, for tasks that run an event loop.

        Raises:
            ConfigurationError: if the client cannot be created.
        """
        return self._worker.blocking.client

    @contextmanager
    def using(self, client: AsyncMixpanel) -> Iterator[None]:
        """Replace the client inside a `with` block, for tests with `task_always_eager`. The caller closes it.

        Args:
            client: the replacement.
        """
        with self._worker.using(client):
            yield

    # Signals of Celery. A receiver takes any keyword argument.

    def _worker_began(self, sender: Any = None, **_arguments: object) -> None:
        if "eventlet" in str(getattr(sender, "pool_cls", "")):
            _log.error(
                "the Celery pool eventlet is not supported: events may be lost; use prefork, threads, solo or gevent",
                extra={"mixpanel": {"event": "pool_not_supported"}},
            )
        # Celery logs the error of a client that cannot be created. Children of the pool `prefork` inherit the client.
        self._worker.create()

    def _process_began(self, **_arguments: object) -> None:
        self._worker.start_in_fork()

    def _task_began(self, **_arguments: object) -> None:
        _CURRENT_WORKER.set(self._worker)

    def _task_ended(self, **_arguments: object) -> None:
        if self._task_flush_timeout is not None:
            self._worker.flush(self._task_flush_timeout)

    def _process_ended(self, **_arguments: object) -> None:
        self._worker.close()


def current_mixpanel() -> BlockingMixpanel:
    """Return the client of the worker that runs the current task, for tasks that cannot import the integration.

    Example:
        ```python
        from celery import shared_task

        from mixpanel_async.integrations.celery import current_mixpanel


        @shared_task
        def charge(user_id: str, amount: float) -> None:
            current_mixpanel().track(user_id, "Paid", {"amount": amount})
        ```

    Raises:
        LookupError: outside a task.
        ConfigurationError: if the client cannot be created.
    """
    worker = _CURRENT_WORKER.get(None)
    if worker is None:
        raise LookupError(
            "no Celery task with a Mixpanel client is running; create a MixpanelIntegration in the module of the app, "
            "and call current_mixpanel() in tasks only"
        )
    return worker.blocking
