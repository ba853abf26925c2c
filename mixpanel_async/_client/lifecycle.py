"""Methods that start, flush and close the client."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Final

from .._model.errors import ValidationError
from .._model.stats import FlushResult
from .base import ClientBase

if TYPE_CHECKING:
    from typing_extensions import Self

_MAX_FLUSH_TIMEOUT: Final = 1e9


class LifecycleMethods(ClientBase):
    """Methods of the client that start, flush and close it."""

    async def start(self) -> None:
        """Bind the client to the running event loop, start its tasks and create the connection pool in a thread.

        Calling it is optional: the first call on the client does the same. A client that runs in another event loop
        stays there. `aclose()` may run in another task or event loop. A proxy or certificate variable that cannot be
        used raises no error here; the requests that need it report it.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                mp = AsyncMixpanel("PROJECT_TOKEN")
                await mp.start()
                try:
                    await mp.track("user-1", "Report sent")
                finally:
                    result = await mp.aclose()
                print(f"{result.delivered} delivered, {result.pending} not")


            asyncio.run(main())
            ```

        Raises:
            ClientClosedError: if the client is closed.
            ConfigurationError: if the options of the outbox do not fit its queue, its server or the event loop.
        """
        await self._sender.open()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> FlushResult:
        """Stop accepting records, deliver the accepted ones, and close the connection pool unless it is `http_client`.

        It takes at most `shutdown_timeout` seconds, and up to two more to stop the remaining tasks and finish
        callbacks; up to four more with a spool whose disk does not respond. It may be called again, also after a
        cancelled call: it then waits for the same result.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                mp = AsyncMixpanel("PROJECT_TOKEN")
                await mp.start()
                try:
                    await mp.track("user-1", "Report sent")
                finally:
                    result = await mp.aclose()
                print(f"{result.delivered} delivered, {result.pending} not")


            asyncio.run(main())
            ```

        Returns:
            Counts of the records that were waiting, by outcome.
        """
        return await self._closer.aclose(self._options.shutdown_timeout)

    async def flush(self, timeout: float | None = None) -> FlushResult:
        """Send all records accepted so far without waiting for full batches, and wait for their outcomes.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.track("user-1", "Report sent")
                    result = await mp.flush(timeout=5.0)
                    if result.pending:
                        print("still waiting:", result.pending, result.last_error)


            asyncio.run(main())
            ```

        Args:
            timeout: seconds, at least 0. With None (default), the call waits as long as records are being delivered,
                and ends after `shutdown_timeout` seconds without progress. During the call, failed batches are retried
                every `RetryPolicy.initial` seconds. If no retry is allowed before the timeout, because of `Retry-After`
                or an exhausted retry budget, the call yields once to other tasks and returns.

        Returns:
            Counts of the records that were waiting at the start of the call, by outcome. `pending` records stay queued.
            Earlier outcomes are in `stats()`. Losses have been reported to `on_drop`, unless that takes over a second.

        Raises:
            ValidationError: if `timeout` is negative or not a number.
        """
        if timeout is None:
            return await self._closer.flush(None)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ValidationError("timeout", "must be a number of seconds, at least 0, or None")
        return await self._closer.flush(float(min(timeout, _MAX_FLUSH_TIMEOUT)))

    @property
    def enabled(self) -> bool:
        """Whether the client sends anything; False after `enabled=False`."""
        return self._options.enabled
