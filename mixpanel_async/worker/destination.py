"""Destination of a worker: Mixpanel, once the outbox knows that a request with non-idempotent records begins.

A process that is killed cannot say whether its last request was applied. The outbox therefore notes an entry with such
records before their first request. Another worker that gets this entry does not send them: they are uncertain. A worker
that ends normally takes the note back if none of its requests with the entry can have been applied.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from .._delivery.batch import Batch
from .._delivery.claimed import ClaimedQueue
from .._delivery.destination import Destination
from .._http.progress import Progress
from .._model.config import RetryPolicy
from .._model.errors import OutboxError
from .._model.outcomes import ConfigurationRefused, Delivered, Expired, Outcome, Retry, SplitBatch
from .._model.records import DropReason
from ..outbox.protocol import BeginResult, EntryId, Inbox
from .claims import Claims
from .fence import Fence
from .pauses import Pauses

_TOO_MANY_REQUESTS: Final = 429
_GONE: Final = BeginResult.GONE
_UNCERTAIN: Final = "a worker that did not end normally had begun a request with this record"


class MarkingDestination:
    """Sends batches of claimed records to another destination.

    Args:
        inner: Mixpanel.
        inbox: the outbox.
        queue: holds the batches.
        claims: entries of the records.
        fence: whether requests may begin.
        retry: delays of retries.
        at_least_once: repeat records also if they may have been applied.
        pauses: takes the pauses that Mixpanel asks for.
    """

    def __init__(
        self,
        inner: Destination,
        inbox: Inbox,
        queue: ClaimedQueue,
        claims: Claims,
        fence: Fence,
        *,
        retry: RetryPolicy,
        at_least_once: bool,
        pauses: Pauses,
    ) -> None:
        self._inner = inner
        self._inbox = inbox
        self._queue = queue
        self._claims = claims
        self._fence = fence
        self._retry = retry
        self._at_least_once = at_least_once
        self._pauses = pauses

    def bind_loop(self) -> None:
        """Bind to the running event loop."""
        self._inner.bind_loop()

    def expired(self, batch: Batch) -> Expired | None:
        """Return the records that Mixpanel would refuse because of their age."""
        return self._inner.expired(batch)

    async def deliver(self, batch: Batch, progress: Progress) -> Outcome:
        """Send a batch, without records of erased persons and those that another worker sends or may have sent."""
        if erased := self._claims.erased(batch.ids, batch.items):
            self._queue.drop_erased(batch, erased)
            if not batch.items:
                return Delivered()
        once = {} if self._at_least_once else self._claims.once_only(batch.ids, batch.items)
        if once:
            try:
                await self._begin(batch, once)
            except OutboxError as error:
                return Retry(message=f"the outbox is not available: {error}", applied=False)
            if not batch.items:
                # Nothing is left to send.
                return Delivered()
        if not self._fence.is_open:
            return Retry(message="the outbox has not confirmed for too long that this worker is alive", applied=False)
        outcome = await self._request(
            batch, progress, self._claims.start_request(batch.ids, batch.items) if once else ()
        )
        if isinstance(outcome, Retry):
            self._share(batch, outcome)
        return outcome

    async def _request(self, batch: Batch, progress: Progress, marked: Collection[int]) -> Outcome:
        """Send the records, and note if the request was certainly not applied to those of the marked claims."""
        outcome: Outcome | None = None
        try:
            outcome = await self._inner.deliver(batch, progress)
        finally:
            # A cancelled request has no outcome.
            if _is_not_applied(outcome) if outcome is not None else not progress.may_be_sent:
                self._claims.not_applied(marked)
        return outcome

    async def _begin(self, batch: Batch, once: dict[EntryId, list[int]]) -> None:
        """Note the start of the request, and take the records out of the batch that must not be sent."""
        ids = [*once]
        self._claims.ask(ids)
        results = await self._inbox.begin(ids)
        lost = self._claims.lose_with([one for one, result in zip(ids, results, strict=True) if result is _GONE])
        gone = {at for entry in lost for at in self._claims.positions(batch.ids, entry)}
        uncertain: set[int] = set()
        for entry, result in zip(ids, results, strict=True):
            if entry not in lost and (result is BeginResult.BEGUN or not self._claims.begin(entry)):
                uncertain.update(once[entry])
        if gone or uncertain:
            self._queue.leave_out(batch, gone, uncertain, _UNCERTAIN)

    def _share(self, batch: Batch, outcome: Retry) -> None:
        """Let all workers pause if Mixpanel asked for it."""
        if outcome.retry_after is not None:
            self._pauses.add(batch.kind, outcome.retry_after)
        elif outcome.status == _TOO_MANY_REQUESTS:
            ceiling = self._retry.initial * 2.0 ** min(batch.failure_epoch, 16)
            self._pauses.add(batch.kind, min(ceiling, self._retry.maximum))


def _is_not_applied(outcome: Outcome) -> bool:
    """Return whether Mixpanel has certainly applied none of the records."""
    if isinstance(outcome, Retry):
        return not (outcome.applied or outcome.delivered)
    if isinstance(outcome, SplitBatch):
        return outcome.reason is DropReason.TOO_LARGE
    return isinstance(outcome, ConfigurationRefused)
