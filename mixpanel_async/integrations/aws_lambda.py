"""AWS Lambda integration.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env)

@mixpanel.handler
def handler(event: dict[str, str], context: object) -> None:
    mixpanel.blocking.track(event["user"], "Order placed")
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any, Final, TypeVar, overload

from mixpanel_async import AsyncMixpanel, BlockingMixpanel

from ._base import MakeClient
from ._worker import WorkerClient, check_flush_timeout

E = TypeVar("E")
C = TypeVar("C")
R = TypeVar("R")

__all__ = ["MixpanelIntegration"]

# Part of the remaining time of an invocation that a delivery may take.
_PART_OF_REMAINING_TIME: Final = 0.5


class MixpanelIntegration:
    """One Mixpanel client for an execution environment of AWS Lambda, which delivers before each handler returns.

    Create it when the module of the handler is imported: the client then starts in the init phase. It runs in a
    background thread and keeps its connections over all invocations. Lambda freezes the environment between them, so
    whatever an invocation has tracked is delivered before its handler returns or raises. What could not be delivered in
    time waits for the next invocation, and is logged.

    Example:
        ```python
        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.aws_lambda import MixpanelIntegration

        mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN"), flush_timeout=1.0)


        @mixpanel.handler
        async def handler(event: dict[str, str], context: object) -> None:
            await mixpanel.client.track(event["user"], "Order placed")


        handler({"user": "user-1"}, None)  # as Lambda does
        mixpanel.blocking.close()  # in a program; Lambda keeps the client
        ```

    Args:
        client: function that creates the client; by default from the environment. Or a client.
        flush_timeout: seconds to deliver at the end of an invocation, 0.001 to 900. It takes at most half of the time
            that the invocation has left.

    Raises:
        ConfigurationError: if an option is invalid, or the client cannot be created.
    """

    def __init__(
        self, client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env, *, flush_timeout: float = 1.0
    ) -> None:
        check_flush_timeout("flush_timeout", flush_timeout)
        self._flush_timeout = flush_timeout
        self._worker = WorkerClient(client, "an invocation")
        _ = self._worker.blocking

    @property
    def blocking(self) -> BlockingMixpanel:
        """The client with blocking methods, for plain handlers."""
        return self._worker.blocking

    @property
    def client(self) -> AsyncMixpanel:
        """The client with coroutine methods, for coroutine handlers."""
        return self._worker.blocking.client

    @contextmanager
    def using(self, client: AsyncMixpanel) -> Iterator[None]:
        """Replace the client inside a `with` block, for tests. The caller closes the replacement.

        Args:
            client: the replacement.
        """
        with self._worker.using(client):
            yield

    @overload
    def handler(self, function: Callable[[E, C], Coroutine[Any, Any, R]]) -> Callable[[E, C], R]: ...

    @overload
    def handler(self, function: Callable[[E, C], R]) -> Callable[[E, C], R]: ...

    def handler(self, function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Decorate a handler. What it tracks is delivered before it returns or raises.

        A coroutine handler runs in the event loop of the client, which stays the same over all invocations, so that
        other clients that it uses keep their connections as well.

        Example:
            ```python
            from mixpanel_async import AsyncMixpanel
            from mixpanel_async.integrations.aws_lambda import MixpanelIntegration

            mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN"), flush_timeout=1.0)


            @mixpanel.handler
            async def handler(event: dict[str, str], context: object) -> None:
                await mixpanel.client.track(event["user"], "Order placed")


            handler({"user": "user-1"}, None)  # as Lambda does
            mixpanel.blocking.close()  # in a program; Lambda keeps the client
            ```

        Args:
            function: plain function or coroutine function of event and context.

        Returns:
            A plain function, as Lambda calls it. A failed delivery does not change its result.
        """
        if iscoroutinefunction(function):

            async def invoke(event: object, context: object) -> object:
                try:
                    return await function(event, context)
                finally:
                    await self._flush_in_loop(self._budget(context))

            @wraps(function)
            def run(event: object, context: object) -> object:
                return self._worker.blocking.run(invoke, event, context)

            return run

        @wraps(function)
        def call(event: object, context: object) -> object:
            try:
                return function(event, context)
            finally:
                self._worker.flush(self._budget(context))

        return call

    def _budget(self, context: Any) -> float:
        """Return the seconds that a delivery may take."""
        try:
            left = float(context.get_remaining_time_in_millis()) / 1000.0
        except Exception:  # noqa: BLE001  a test may pass any object as context
            return self._flush_timeout
        return max(0.0, min(self._flush_timeout, left * _PART_OF_REMAINING_TIME))

    async def _flush_in_loop(self, timeout: float) -> None:
        try:
            self._worker.log.flushed(await self._worker.client.flush(timeout))
        except Exception as error:  # noqa: BLE001  analytics must not fail an invocation
            self._worker.log.failed(error)
