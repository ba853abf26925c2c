"""Data of the buffer: results, flush barriers, batches, lanes and counters. Only their own methods change them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from enum import Enum
from math import inf
from typing import Final, NamedTuple

from .._encoding.batch_body import BatchBody, Compressor
from .._model.config import BatchPolicy
from .._model.credentials import Secret
from .._model.errors import FailedRecord
from .._model.records import DROPPED, DropReason, Loss, RecordKind
from .._model.stats import FlushResult, Stats
from .._spool.messages import LANE_CODES


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

    def result(self) -> FlushResult:
        """Return the counts so far."""
        return FlushResult(self.delivered, sum(self.losses.values()), self.pending, dict(self.losses))


Barriers = list[tuple[FlushBarrier, int]]
"""Barriers, each with the number of leading records that it waits for."""


class Batch:
    """Records of one lane that are sent in one request.

    Args:
        lane: endpoint and authentication.
        items: encoded records.
        opened: monotonic seconds at which the first record came.
        ids: spool row of each record; empty without a spool.
        new_compressor: creates the gzip stream of a body that is compressed as it grows; None disables this.
        origin: batch that these records were taken from. Its attempts and flags are copied.
        barriers: flushes that wait for the first records of the batch.
        is_from_disk: the records were read from a spool, where they may have waited for a long time.

    Attributes:
        size: bytes of the request body: records, commas between them and brackets.
        is_due: a flush waits for it, so the linger time does not apply.
        is_request_begun: a request was made, so the records may have been applied.
        failure_epoch: failures in a row of the lane when the current request began.
    """

    __slots__ = (
        "attempts",
        "barriers",
        "failure_epoch",
        "first_try",
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
        first = Batch(self.lane, [item], self.opened, ids, barriers=[(barrier, 1) for barrier, _ in self.barriers])
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


class Accounting:
    """Counters and bounds: accepted == delivered + failed + dropped + uncertain + pending, at every moment.

    Args:
        policy: bounds in memory.
    """

    __slots__ = (
        "_max_bytes",
        "_max_records",
        "accepted",
        "delivered",
        "dropped",
        "failed",
        "losses",
        "pending",
        "pending_bytes",
        "recovered",
        "uncertain",
    )

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_records = policy.max_pending_events
        self._max_bytes = policy.max_pending_bytes
        self.reset()

    def reset(self) -> None:
        """Set every counter to zero."""
        self.accepted = self.delivered = self.failed = self.dropped = self.uncertain = self.recovered = 0
        self.pending = self.pending_bytes = 0
        self.losses: dict[DropReason, int] = {}

    def is_full(self, size: int) -> bool:
        """Return whether a record of this size does not fit in memory."""
        return self.pending >= self._max_records or self.pending_bytes + size > self._max_bytes

    def could_fit(self, size: int) -> bool:
        """Return whether a record of this size fits in an empty queue."""
        return size <= self._max_bytes

    def spare_bytes(self, min_record_bytes: int) -> int:
        """Return how many bytes of records fit, if none is smaller than `min_record_bytes`."""
        return min((self._max_records - self.pending) * min_record_bytes, self._max_bytes - self.pending_bytes)

    def accept_if_room(self, count: int, size: int) -> bool:
        """Count records as accepted if they fit in memory. Return whether they did."""
        if self.pending + count > self._max_records or self.pending_bytes + size > self._max_bytes:
            return False
        self.accept(count, size)
        return True

    def accept(self, count: int, size: int) -> None:
        """Count records as accepted and pending."""
        self.accepted += count
        self.pending += count
        self.pending_bytes += size

    def recover(self, count: int, size: int) -> None:
        """Count records of another client that were found in the spool."""
        self.recovered += count
        self.accept(count, size)

    def retract(self, count: int, size: int) -> None:
        """Undo `accept` for records that could not be written to the spool."""
        self.accepted -= count
        self.release(count, size)

    def release(self, count: int, size: int) -> None:
        """Remove records from the pending ones."""
        self.pending -= count
        self.pending_bytes -= size

    def correct_bytes(self, difference: int) -> None:
        """Correct an estimated size of pending records."""
        self.pending_bytes += difference

    def discard(self, lane: Lane, items: list[bytes], reason: DropReason) -> Loss:
        """Count records as accepted and lost at once: they never entered the queue."""
        self.accepted += len(items)
        self.count_loss(reason, len(items))
        return Loss(kind=lane.kind, reason=reason, items=items)

    def deliver(self, batch: Batch) -> None:
        """Count a batch as delivered."""
        self.release(len(batch.items), batch.payload)
        self.delivered += len(batch.items)
        for barrier, covered in batch.barriers:
            barrier.settle(covered)

    def record_loss(
        self, batch: Batch, reason: DropReason, *, details: Sequence[FailedRecord] = (), message: str = ""
    ) -> Loss:
        """Count a batch that ended without delivery."""
        self.release(len(batch.items), batch.payload)
        self.count_loss(reason, len(batch.items))
        for barrier, covered in batch.barriers:
            barrier.settle(covered, reason)
        return Loss(kind=batch.lane.kind, reason=reason, items=batch.items, details=details, message=message)

    def count_loss(self, reason: DropReason, count: int) -> None:
        """Count records as dropped, uncertain or failed, depending on the reason."""
        if reason in DROPPED:
            self.dropped += count
        elif reason is DropReason.UNCERTAIN:
            self.uncertain += count
        else:
            self.failed += count
        self.losses[reason] = self.losses.get(reason, 0) + count

    def stats(
        self,
        waiting: Sequence[bytes],
        *,
        requests: int,
        retries: int,
        last_error: str | None,
        on_disk: int,
        in_flight: int,
    ) -> Stats:
        """Return a snapshot.

        Args:
            waiting: accepted records that have not entered the buffer yet.
            requests: requests made.
            retries: requests that repeated an earlier one.
            last_error: message of the last failed request.
            on_disk: records that are only in the spool.
            in_flight: leased batches.
        """
        return Stats(
            accepted=self.accepted + len(waiting),
            delivered=self.delivered,
            failed=self.failed,
            dropped=self.dropped,
            uncertain=self.uncertain,
            pending=self.pending + len(waiting),
            pending_bytes=self.pending_bytes + sum(map(len, waiting)),
            on_disk=on_disk,
            recovered=self.recovered,
            in_flight=in_flight,
            requests=requests,
            retries=retries,
            losses={reason.value: count for reason, count in self.losses.items()},
            last_error=last_error,
        )
