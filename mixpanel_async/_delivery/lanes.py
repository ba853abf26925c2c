"""Data of the buffer: results, flush barriers, batches and lanes. Only their own methods change them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum
from math import inf
from typing import Final, NamedTuple

from .._encoding.batch_body import BatchBody, Compressor
from .._model.config import BatchPolicy
from .._model.credentials import Secret
from .._model.records import DropReason, RecordKind
from .._model.stats import FlushResult
from .._spool.messages import LANE_CODES

_MAX_LANES: Final = 50


class OfferResult(Enum):
    """Result of an offered record."""

    ACCEPTED = "accepted"
    WAKE_SENDER = "wake_sender"
    """Accepted, and the sender has to look at the buffer."""
    FULL = "full"


class WaitUntil(NamedTuple):
    """Nothing can be sent before this moment of the monotonic clock."""

    at: float


class Idle:
    """Nothing can be sent until a record comes or a request ends."""


IDLE: Final = Idle()


class FlushBarrier:
    """Progress of one flush: counts the records that had been accepted when the flush began."""

    __slots__ = ("delivered", "losses", "pending")

    def __init__(self) -> None:
        self.pending = self.delivered = 0
        self.losses: dict[str, int] = {}

    def expect(self, count: int) -> None:
        """Wait for more records. A negative number removes records that were never accepted."""
        self.pending += count

    def settle(self, count: int, reason: DropReason | None = None) -> None:
        """Count records as delivered, or as lost if there is a reason."""
        self.pending -= count
        if reason is None:
            self.delivered += count
        else:
            self.losses[reason.value] = self.losses.get(reason.value, 0) + count

    def result(self, last_error: str | None = None) -> FlushResult:
        """Return the counts so far, with the last error of the client if records are still waiting."""
        error = last_error if self.pending else None
        return FlushResult(self.delivered, sum(self.losses.values()), self.pending, dict(self.losses), error)


Barriers = list[tuple[FlushBarrier, int]]
"""Barriers, each with the number of leading records that it waits for."""


class IdentityTurn:
    """Turn of one queued identity record, which records accepted after it wait for.

    Args:
        kind: selects the endpoint.
    """

    __slots__ = ("is_over", "kind")

    def __init__(self, kind: RecordKind) -> None:
        self.kind = kind
        self.is_over = False

    def end(self) -> None:
        """Note that the record is delivered or lost."""
        self.is_over = True


class Batch:
    """Records of one lane that are sent in one request.

    A batch with an identity record has no other record. It is sent while no other request of its lane is in flight.

    Args:
        lane: endpoint and authentication.
        items: encoded records.
        opened: monotonic seconds at which the first record came.
        ids: spool row of each record; empty without a spool.
        new_compressor: creates the gzip stream of a body that is compressed as it grows; None disables this.
        origin: batch that these records were taken from. Its attempts and flags are copied.
        barriers: flushes that wait for the first records of the batch.
        is_from_disk: the records were read from a spool, where they may have waited for a long time.
        identity: turn of the identity record, if the batch has one.
        after: turn that has to end first; None if no identity record of another lane was waiting.

    Attributes:
        size: bytes of the request body: records, commas between them and brackets.
        is_due: a flush waits for it, so the linger time does not apply.
        is_request_begun: a request was made, so the records may have been applied.
        failure_epoch: failures in a row of the lane when the current request began.
    """

    __slots__ = (
        "after",
        "attempts",
        "barriers",
        "failure_epoch",
        "first_try",
        "identity",
        "ids",
        "is_due",
        "is_from_disk",
        "is_request_begun",
        "items",
        "lane",
        "opened",
        "size",
    )

    def __init__(
        self,
        lane: Lane,
        items: Sequence[bytes],
        opened: float,
        ids: list[int] | None = None,
        *,
        new_compressor: Callable[[], Compressor] | None = None,
        origin: Batch | None = None,
        barriers: Barriers | None = None,
        is_from_disk: bool = False,
        identity: IdentityTurn | None = None,
        after: IdentityTurn | None = None,
    ) -> None:
        self.lane = lane
        self.items = BatchBody(items, new_compressor)
        self.ids: list[int] = [] if ids is None else ids
        self.size = 1 + sum(map(len, items)) + len(items)
        self.opened = opened
        self.is_due: bool = origin is not None and origin.is_due
        self.is_from_disk = is_from_disk
        self.attempts: int = 0 if origin is None else origin.attempts
        self.is_request_begun = False
        self.first_try: float | None = None if origin is None else origin.first_try
        self.failure_epoch: int = 0 if origin is None else origin.failure_epoch
        self.barriers: Barriers = [] if barriers is None else barriers
        self.identity: IdentityTurn | None = identity if origin is None else origin.identity
        self.after: IdentityTurn | None = after if origin is None else origin.after

    @property
    def kind(self) -> RecordKind:
        """Kind that selects the endpoint."""
        return self.lane.kind if self.identity is None else self.identity.kind

    @property
    def secret(self) -> Secret | None:
        """Project secret that signs the request."""
        return self.lane.secret if self.identity is None else self.lane.merge_secret

    @property
    def reported_kind(self) -> RecordKind:
        """Kind in reports."""
        return self.lane.kind if self.identity is None else RecordKind.IDENTITY

    def must_wait(self) -> bool:
        """Return whether other records have to be settled first, to keep the order of an identity record."""
        if self.after is not None and not self.after.is_over:
            return True
        leased = self.lane.leased
        return bool(leased) and (self.identity is not None or next(iter(leased)).identity is not None)

    def end_turn(self) -> None:
        """Note that the records of the batch are delivered or lost."""
        if self.identity is not None:
            self.identity.end()

    @property
    def payload(self) -> int:
        """Bytes of the records themselves."""
        return self.size - 1 - len(self.items)

    def append(self, item: bytes, opened: float) -> None:
        """Add one record that was accepted at this time."""
        self.items.append(item)
        self.size += len(item) + 1
        self.opened = min(self.opened, opened)

    def append_row(self, row: int, item: bytes) -> None:
        """Add one record that was read from a spool."""
        self.items.append(item)
        self.ids.append(row)
        self.size += len(item) + 1

    def extend(self, records: bytes, count: int, opened: float) -> None:
        """Add this number of joined records."""
        self.size += self.items.extend(records, count)
        self.opened = min(self.opened, opened)

    def subset(self, positions: Collection[int]) -> Batch:
        """Return a new batch of the records at these positions, in order, with the same history."""
        items = [item for at, item in enumerate(self.items) if at in positions]
        ids = [row for at, row in enumerate(self.ids) if at in positions]
        barriers = [
            (barrier, part)
            for barrier, covered in self.barriers
            if (part := sum(1 for at in positions if at < covered))
        ]
        return Batch(self.lane, items, self.opened, ids, origin=self, barriers=barriers, is_from_disk=self.is_from_disk)

    def partition(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """Return the records at these positions, and the others."""
        return self.subset(positions), self.subset(set(range(len(self.items))).difference(positions))

    def pop_first(self) -> Batch:
        """Remove the first record and return it as a batch."""
        item = self.items.pop_first()
        ids = [self.ids.pop(0)] if self.ids else []
        barriers = [(barrier, 1) for barrier, _ in self.barriers]
        first = Batch(self.lane, [item], self.opened, ids, origin=self, barriers=barriers)
        self.size -= len(item) + 1
        self.barriers = [(barrier, covered - 1) for barrier, covered in self.barriers if covered > 1]
        return first

    def add_barrier(self, barrier: FlushBarrier) -> None:
        """Make the batch due now, and have the barrier wait for its records."""
        self.is_due = True
        self.barriers.append((barrier, len(self.items)))
        barrier.expect(len(self.items))

    def remove_barrier(self, barrier: FlushBarrier) -> None:
        """Stop counting for this barrier."""
        self.barriers = [entry for entry in self.barriers if entry[0] is not barrier]

    def begin_attempt(self, now: float) -> None:
        """Count an attempt. Its request has not been made yet."""
        if self.first_try is None:
            self.first_try = now
        self.attempts += 1
        self.is_request_begun = False
        self.failure_epoch = self.lane.failures

    def begin_request(self) -> None:
        """Note that a request is made: from now on the records may have been applied."""
        self.is_request_begun = True

    def refund_attempt(self) -> None:
        """Uncount an attempt that the response asked to repeat in another form."""
        self.attempts -= 1

    def move_to(self, lane: Lane) -> None:
        """Change the lane, and append the batch to the batches that wait there."""
        self.lane = lane
        lane.ready.append(self)


class Lane:
    """Records for one endpoint with one authentication.

    After a failure the lane sends one probe at a time, and none before `paused_until`. A flush shortens that pause, but
    never below `retry_after_until`.

    Args:
        kind: endpoint.
        secret: project secret that signs the requests; None without one.
        limit: requests in flight at once.
        max_bytes: largest request body.
    """

    __slots__ = (
        "code",
        "failed_at",
        "failures",
        "kind",
        "leased",
        "limit",
        "max_bytes",
        "merge_secret",
        "open",
        "paused_until",
        "ready",
        "retry_after_until",
        "secret",
        "single_requests",
        "size_limit_seen_at",
    )

    def __init__(self, kind: RecordKind, secret: Secret | None, limit: int, max_bytes: int) -> None:
        self.kind = kind
        self.code = LANE_CODES[kind, secret is not None]
        self.secret = secret
        self.merge_secret: Secret | None = None
        self.limit = limit
        self.max_bytes = max_bytes
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        # In lease order, which is restored when the event loop ends.
        self.leased: dict[Batch, None] = {}
        # Records of awaited calls. They bypass the queue and do not count against `limit`.
        self.single_requests: dict[Batch, None] = {}
        # When a 413 response last reduced `max_bytes`.
        self.size_limit_seen_at = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.paused_until = 0.0
        self.retry_after_until = 0.0

    def clear(self) -> None:
        """Remove every batch."""
        self.open = None
        self.ready.clear()
        self.leased.clear()
        self.single_requests.clear()

    def use_secret(self, secret: Secret | None) -> None:
        """Sign requests with this project secret from now on."""
        self.secret = secret

    def use_merge_secret(self, secret: Secret) -> None:
        """Sign queued merges with this project secret from now on. A spool stores no secret."""
        self.merge_secret = secret

    def fail(self, failure_epoch: int, now: float, delay: float) -> None:
        """Pause after a failed request.

        Args:
            failure_epoch: failures in a row when the request began.
            now: monotonic seconds.
            delay: seconds to pause.
        """
        # Requests that were in flight together fail together: they count as one failure of the lane.
        self.failures = max(self.failures, failure_epoch + 1)
        self.failed_at = now
        self.paused_until = max(self.paused_until, now + delay)

    def hold_until(self, moment: float) -> None:
        """Set the time before which nothing may be sent, even if a flush waits."""
        self.retry_after_until = max(self.retry_after_until, moment)

    def recover(self) -> None:
        """Note that a request got a usable response."""
        self.failures = 0
        self.paused_until = self.retry_after_until

    def shorten_backoff(self, interval: float) -> None:
        """Reduce the pause to `interval` seconds after the last failure, unless Mixpanel asked for a longer one."""
        if self.failures:
            self.paused_until = min(self.paused_until, max(self.retry_after_until, self.failed_at + interval))

    def reduce_max_bytes(self, limit: int, now: float) -> None:
        """Remember that a larger request body was rejected."""
        self.max_bytes = min(self.max_bytes, limit)
        self.size_limit_seen_at = now

    def restore_max_bytes(self, limit: int) -> None:
        """Forget the size limit that a 413 response showed."""
        self.max_bytes = limit

    def open_batch(self, batch: Batch) -> None:
        """Set the batch that new records join."""
        self.open = batch

    def close_open(self) -> None:
        """Move the open batch to the batches that are ready to be sent."""
        if self.open is not None:
            self.open.items.finish()
            self.ready.append(self.open)
            self.open = None

    def due(self, linger: float) -> float:
        """Return when the first batch is to be sent: a full one at once, an open one after the linger time.

        A full batch of events that were tracked inside requests waits for other records, like an open one.
        """
        if self.ready and (self.ready[0].opened != inf or self.ready[0].attempts):
            return -inf
        opened = [batch.opened for batch in self.ready]
        return min([*opened, self.open.opened] if self.open else opened, default=inf) + linger

    @property
    def head(self) -> Batch | None:
        """The batch to be sent next."""
        return self.ready[0] if self.ready else self.open

    def lease(self, now: float) -> Batch:
        """Lease the first ready batch to a new request."""
        batch = self.ready.popleft()
        batch.begin_attempt(now)
        self.leased[batch] = None
        return batch

    def replace(self, batch: Batch, other: Batch) -> None:
        """Exchange a waiting batch for another, or remove it if the other is empty."""
        if self.open is batch:
            self.open = other if other.items else None
        elif other.items:
            self.ready[self.ready.index(batch)] = other
        else:
            self.ready.remove(batch)

    def batches(self) -> Iterable[Batch]:
        """Return every batch, oldest first."""
        yield from self.leased
        yield from self.single_requests
        yield from self.ready
        if self.open is not None:
            yield self.open


class LaneTable(dict[tuple[RecordKind, Secret | None], Lane]):
    """Every lane of a buffer, by kind and secret.

    Args:
        policy: requests in flight and size of batches.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        super().__init__()
        self._policy = policy

    def find(self, kind: RecordKind, key: Secret | None, secret: Secret | None, used: Collection[Lane]) -> Lane:
        """Return the lane of this kind and key, and sign its requests with `secret`. Create it at its first use.

        Args:
            kind: endpoint.
            key: secret that distinguishes the lane; None without one.
            secret: project secret that signs the requests from now on.
            used: lanes that hold records.
        """
        lane = self.get((kind, key))
        if lane is None:
            if len(self) > _MAX_LANES:
                # A process that serves many projects would otherwise collect lanes of unused secrets.
                for name, other in [*self.items()]:
                    if not (other.secret is None or other.failures or other in used):
                        del self[name]
            limit = self._policy.max_in_flight if kind in {RecordKind.EVENTS, RecordKind.IMPORTS} else 1
            lane = self[kind, key] = Lane(kind, secret, limit, self._policy.max_bytes)
        lane.use_secret(secret)
        return lane
