"""Access to the feature flags of the client, and its statistics, which include theirs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .._model.errors import raise_configuration_error
from .._model.stats import Stats
from .base import ClientBase

if TYPE_CHECKING:
    from ..flags.local import LocalFeatureFlagsProvider
    from ..flags.providers import Providers
    from ..flags.remote import RemoteFeatureFlagsProvider


class FlagAccess(ClientBase):
    """Feature flags and statistics of the client. The constructor of the client sets `_flags`."""

    _flags: Providers | None

    def stats(self) -> Stats:
        """Return a snapshot of the counters. Thread-safe.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN") as mp:
                    await mp.track("user-1", "Report sent")
                    stats = mp.stats()
                    print(stats.accepted, "accepted,", stats.delivered, "delivered,", stats.pending, "waiting")


            asyncio.run(main())
            ```

        Returns:
            Counters since the start of the client. They do not change later.
        """
        stats = self._queue.stats()
        return stats if self._flags is None else replace(stats, flags=self._flags.stats())

    @property
    def local_flags(self) -> LocalFeatureFlagsProvider:
        """Provider of feature flags that are evaluated in this process.

        Raises:
            ConfigurationError: if the client was created without `local_flags`.
        """
        provider = self._flags and self._flags.local
        return provider or raise_configuration_error(
            "the client has no local flags; create it with local_flags=LocalFlags()"
        )

    @property
    def remote_flags(self) -> RemoteFeatureFlagsProvider:
        """Provider of feature flags that Mixpanel evaluates.

        Raises:
            ConfigurationError: if the client was created without `remote_flags`.
        """
        provider = self._flags and self._flags.remote
        return provider or raise_configuration_error(
            "the client has no remote flags; create it with remote_flags=RemoteFlags()"
        )
