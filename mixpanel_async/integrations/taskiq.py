"""taskiq integration.

broker = ListQueueBroker("redis://localhost").with_middlewares(MixpanelMiddleware(AsyncMixpanel.from_env))

@broker.task
async def charge(user_id: str, mp: AsyncMixpanel = TaskiqDepends(current_mixpanel)) -> None:
    await mp.track(user_id, "Charged")
"""

from __future__ import annotations

from typing import Annotated, Any

try:
    from taskiq import Context, TaskiqDepends, TaskiqMessage, TaskiqMiddleware, TaskiqResult
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "taskiq":
        raise
    raise ImportError(
        'the taskiq integration needs an extra: run pip install ".[taskiq]" in a clone of the repository',
        name=error.name,
    ) from error

from mixpanel_async import AsyncMixpanel

from ._base import MakeClient
from ._worker import FlushLog, check_client, check_flush_timeout

__all__ = ["MixpanelMiddleware", "current_mixpanel"]


class MixpanelMiddleware(TaskiqMiddleware):
    """One Mixpanel client for each process of a taskiq worker, which delivers before the process ends.

    The client starts with the worker, and with the first task of an `InMemoryBroker`. Records are delivered in batches
    in the background. The shutdown of the broker delivers what waits, for at most the `shutdown_timeout` of the client.

    Processes that only send tasks create no client.

    Example:
        ```python
        import asyncio

        from taskiq import InMemoryBroker, TaskiqDepends

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.taskiq import MixpanelMiddleware, current_mixpanel

        middleware = MixpanelMiddleware(lambda: AsyncMixpanel("PROJECT_TOKEN"))
        broker = InMemoryBroker(await_inplace=True).with_middlewares(middleware)


        @broker.task
        async def charge(user_id: str, mp: AsyncMixpanel = TaskiqDepends(current_mixpanel)) -> None:
            await mp.track(user_id, "Paid", {"amount": 9.5})


        async def main() -> None:
            await broker.startup()
            await charge.kiq("user-1")
            await broker.shutdown()


        asyncio.run(main())
        ```

    Args:
        client: function that creates the client of a process; by default from the environment. Or a client, which
            serves one start of the broker.
        task_flush_timeout: seconds to deliver after each task, 0.001 to 900. None (default) does not wait.

    Raises:
        ConfigurationError: if an option is invalid.
    """

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        task_flush_timeout: float | None = None,
    ) -> None:
        super().__init__()
        check_client(client)
        if task_flush_timeout is not None:
            check_flush_timeout("task_flush_timeout", task_flush_timeout)
        self._make = client
        self._client: AsyncMixpanel | None = None
        self._task_flush_timeout = task_flush_timeout
        self._log = FlushLog("a task")

    @property
    def client(self) -> AsyncMixpanel:
        """The client of this process. It is created at its first use.

        Raises:
            ConfigurationError: if the client cannot be created.
        """
        if self._client is None:
            self._client = self._make if isinstance(self._make, AsyncMixpanel) else self._make()
        return self._client

    async def startup(self) -> None:
        """Start the client in a worker. taskiq calls it."""
        if self.broker.is_worker_process:
            await self.client.start()

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:  # noqa: ARG002  taskiq's signature
        """Deliver after a task, if `task_flush_timeout` is set. taskiq calls it.

        Args:
            message: message of the task.
            result: result of the task.
        """
        timeout = self._task_flush_timeout
        if timeout is None or self._client is None:
            return
        try:
            self._log.flushed(await self._client.flush(timeout))
        except Exception as error:  # noqa: BLE001  analytics must not fail a task
            self._log.failed(error)

    async def shutdown(self) -> None:
        """Deliver what waits and close the client. taskiq calls it."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def current_mixpanel(context: Annotated[Context, TaskiqDepends()]) -> AsyncMixpanel:
    """Return the client of the worker. Use it as a dependency: `TaskiqDepends(current_mixpanel)`.

    Args:
        context: context of the task.

    Raises:
        LookupError: if the broker has no `MixpanelMiddleware`.
        ConfigurationError: if the client cannot be created.
    """
    for middleware in context.broker.middlewares:
        if isinstance(middleware, MixpanelMiddleware):
            return middleware.client
    raise LookupError("the broker has no Mixpanel client; add one with broker.with_middlewares(MixpanelMiddleware())")
