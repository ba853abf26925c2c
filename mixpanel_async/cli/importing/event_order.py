"""Order of identity events among other events.

The result of an identity event depends on those before it, and in Legacy projects on the events before it too. Events
are sent in concurrent requests, which may arrive in any order. Therefore, all records before the first identity event
of a chunk are settled before the rest of the chunk is sent, in one request, and it is settled before the next chunk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Final

# They go to `/import` like other events: `/track` ignores events that are more than five days old, and does not accept
# `$merge`. A tuple, because an invalid name may not be hashable.
IDENTITY_EVENTS: Final = ("$identify", "$create_alias", "$merge")
"""Names of events that join ids."""

# Less than the client's linger time: records that are handed over within this time share a request.
_SHARED_SECONDS: Final = 0.1


class OrderGuard:
    """Order of the records of one chunk.

    Args:
        settle: waits until all records that were handed to the client are settled.
        is_settled: whether there are none when the chunk begins.
    """

    def __init__(self, settle: Callable[[], Awaitable[None]], *, is_settled: bool) -> None:
        self._settle = settle
        self._settled_at = monotonic() if is_settled else float("-inf")
        self.is_strict = False
        """Whether the chunk has an identity event so far."""

    async def before_record(self) -> None:
        """Wait until the next record can be handed over: an identity event, or a record after one."""
        self.is_strict = True
        if monotonic() - self._settled_at > _SHARED_SECONDS:
            await self._settle()
            self._settled_at = monotonic()
