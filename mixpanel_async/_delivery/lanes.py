"""The parts of the buffer: lanes of batches, what a flush waits for, and what was lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence

from .._encoding.batch_body import BatchBody, Compressor
from .._model.credentials import Secret
from .._model.records import RecordKind
from .._model.stats import FlushResult
from .._spool.messages import LANE_CODES, SEQUENCE_BITS, Eviction


class FlushBarrier:
    """What a flush waits for: the records that had been accepted when it began."""

    __slots__ = ("delivered", "losses", "pending")

    def __init__(self) -> None:
        self.pending = self.delivered = 0
        self.losses: dict[str, int] = {}

    def result(self) -> FlushResult:
        return FlushResult(self.delivered, sum(self.losses.values()), self.pending, dict(self.losses))


class Batch:
    """Records of one lane that travel together.

    `size` is that of the request's body: the records, the commas between them and the brackets. `marks` says of each
    barrier how many of the records, from the first on, it waits for. `begun` says whether a request for it was made.
    With a spool, `ids` names the row of each record.
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
        new_compressor: Callable[[], Compressor] | None = None,
    ) -> None:
        self.lane = lane
        self.items = BatchBody(items, new_compressor)
        self.ids: list[int] = [] if ids is None else ids
        self.size = 1 + sum(map(len, items)) + len(items)
        self.opened = opened
        self.is_due = False
        # Read from a spool, where it may have lain for long.
        self.is_from_disk = False
        self.attempts = 0
        self.is_request_begun = False
        self.first_try: float | None = None
        self.failure_epoch = 0
        self.barriers: list[tuple[FlushBarrier, int]] = []

    @property
    def payload(self) -> int:
        """Size of the records themselves."""
        return self.size - 1 - len(self.items)

    def extend(self, records: bytes, count: int) -> None:
        """Add usual events, so many of them that are `together`."""
        self.size += self.items.extend(records, count)

    def subset(self, positions: Collection[int]) -> Batch:
        """Some of its records, in their order, as a batch of their own with the same past."""
        items = [item for at, item in enumerate(self.items) if at in positions]
        twin = Batch(self.lane, items, self.opened, [row for at, row in enumerate(self.ids) if at in positions])
        twin.attempts, twin.first_try, twin.failure_epoch = self.attempts, self.first_try, self.failure_epoch
        twin.is_due, twin.is_from_disk = self.is_due, self.is_from_disk
        for barrier, covered in self.barriers:
            if part := sum(1 for at in positions if at < covered):
                twin.barriers.append((barrier, part))
        return twin

    def partition(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """The records at these positions, and the others."""
        return self.subset(positions), self.subset(set(range(len(self.items))).difference(positions))

    def pop_first(self) -> Batch:
        """Its first record, taken out of it."""
        item = self.items.pop_first()
        first = Batch(self.lane, [item], self.opened, [self.ids.pop(0)] if self.ids else [])
        first.barriers = [(barrier, 1) for barrier, _ in self.barriers]
        self.size -= len(item) + 1
        self.barriers = [(barrier, covered - 1) for barrier, covered in self.barriers if covered > 1]
        return first


class Lane:
    """Records that go to one endpoint with one authentication.

    With a spool, those for which memory has no room wait on disk alone (`on_disk`), behind all that is in memory.

    A lane in trouble (`failures` in a row) sends one probe at a time, and none before `paused_until`. Somebody who
    waits may cut that pause short, but not before `held_until`.
    """

    __slots__ = (
        "code",
        "disk_barriers",
        "disk_from",
        "failed_at",
        "failures",
        "is_loading",
        "kind",
        "last_id",
        "leased",
        "limit",
        "max_bytes",
        "on_disk",
        "on_disk_bytes",
        "open",
        "paused_until",
        "pending_eviction",
        "ready",
        "retry_after_until",
        "secret",
        "single_requests",
        "size_limit_seen_at",
        "unwritten",
        "unwritten_from",
        "written_to",
    )

    def __init__(self, kind: RecordKind, secret: Secret | None, limit: int, max_bytes: int) -> None:
        self.kind = kind
        self.code = LANE_CODES[kind, secret is not None]
        self.secret = secret
        self.limit = limit
        self.max_bytes = max_bytes
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        # In the order of their leases, in which they go back if the event loop ends.
        self.leased: dict[Batch, None] = {}
        # Records that somebody waits for travel beside the queue and take no place of a batch.
        self.single_requests: dict[Batch, None] = {}
        # When a 413 last made `max_bytes` smaller.
        self.size_limit_seen_at = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.paused_until = 0.0
        self.retry_after_until = 0.0
        self.forget_rows()

    def forget_rows(self) -> None:
        """Begin anew with a spool: no row has been given out, none waits."""
        # A row's number, as far as it is this client's own: the lane, then a sequence.
        self.last_id = self.code << SEQUENCE_BITS
        # The last of these rows that has been committed.
        self.written_to = self.last_id
        # Of the records on disk alone: how many, how large, and the first row of them that is this client's own.
        self.on_disk = self.on_disk_bytes = self.disk_from = 0
        # How many of them, the last ones, are still on their way there, and the first row that ever was.
        self.unwritten = self.unwritten_from = 0
        self.is_loading = False
        # Dropped while rows were on their way into memory, to be thrown away as they arrive.
        self.pending_eviction: Eviction | None = None
        # How many of them, from the first on, each barrier waits for.
        self.disk_barriers: list[tuple[FlushBarrier, int]] = []

    def is_written(self, row: int) -> bool:
        """Whether the row of a record in memory has been committed. Those of other clients have."""
        return not self.written_to < row < (self.code + 1) << SEQUENCE_BITS

    def fail(self, failure_epoch: int, now: float, delay: float) -> None:
        """Pause after a failed request, which began when `episode` had failed before it in a row."""
        # Requests that were in flight together fail together: they are one failure of the lane, not several.
        self.failures = max(self.failures, failure_epoch + 1)
        self.failed_at = now
        self.paused_until = max(self.paused_until, now + delay)

    def recover(self) -> None:
        """Note that a request was answered in good order."""
        self.failures = 0
        self.paused_until = self.retry_after_until

    def shorten_backoff(self, spacing: float) -> None:
        """Cut a pause of our own short: to `spacing` seconds after the last failure."""
        if self.failures:
            self.paused_until = min(self.paused_until, max(self.retry_after_until, self.failed_at + spacing))

    def close_open(self) -> None:
        if self.open is not None:
            self.open.items.finish()
            self.ready.append(self.open)
            self.open = None

    def replace(self, batch: Batch, other: Batch) -> None:
        """Exchange a batch that waits for another one, or for nothing if that is empty."""
        if self.open is batch:
            self.open = other if other.items else None
        elif other.items:
            self.ready[self.ready.index(batch)] = other
        else:
            self.ready.remove(batch)

    def batches(self) -> Iterable[Batch]:
        yield from self.leased
        yield from self.single_requests
        yield from self.ready
        if self.open is not None:
            yield self.open
