"""Client of an import run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from mixpanel_async import AsyncMixpanel, BatchPolicy, Delivery, DropReason, LostRecord, Overflow, RetryPolicy

from .limits import BATCH_BYTES, BATCH_RECORDS, ImportLimits
from .option_values import Nesting

if TYPE_CHECKING:
    from .project import ProjectOptions

OnDrop = Callable[[list[LostRecord], DropReason], Awaitable[None]]
OnDelivered = Callable[[Delivery], Awaitable[None]]

_REQUEST_TIMEOUT: Final = 60.0


def create_client(
    project: ProjectOptions, limits: ImportLimits, nesting: Nesting, on_drop: OnDrop, on_delivered: OnDelivered
) -> AsyncMixpanel:
    """Create the client of an import.

    Args:
        project: destination and credentials.
        limits: concurrency and repetition of updates.
        nesting: policy for deeply nested values of events.
        on_drop: receives records that could not be delivered.
        on_delivered: receives every accepted batch.

    Raises:
        ConfigurationError: if the token or part of the service account is missing or invalid.
    """
    allowed = {"MIXPANEL_ALLOW_HTTP": "1"} if project.allow_http else {}
    return AsyncMixpanel.from_env(
        {**project.environ, **allowed},
        events_endpoint="import",
        nesting=nesting.of_client,
        overflow=Overflow.WAIT,
        batching=BatchPolicy(
            max_events=BATCH_RECORDS,
            max_bytes=BATCH_BYTES,
            linger=0.25,
            max_in_flight=limits.concurrency,
            # The importer bounds pending records itself; these bounds leave room for one more chunk.
            max_pending_events=(limits.concurrency + 2) * BATCH_RECORDS,
            max_pending_bytes=(limits.concurrency + 8) * BATCH_BYTES,
            wait_timeout=3_600.0,
            at_least_once=limits.at_least_once,
        ),
        retry=RetryPolicy(),
        identity_retry=RetryPolicy(attempts=1, total_timeout=_REQUEST_TIMEOUT),
        timeout=_REQUEST_TIMEOUT,
        # The importer flushes before it closes the client. Records still pending then must stay undelivered.
        shutdown_timeout=0.0,
        # Checkpoints replace the spool.
        spool=None,
        on_drop=on_drop,
        on_delivered=on_delivered,
    )
