"""Batches: records of one lane that share a request, and what waits for them: flushes and other batches."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from .._encoding.batch_body import BatchBody, Compressor
from .._encoding.identity_records import is_identity
from .._model.credentials import Secret
from .._model.errors import FailedRecord
from .._model.records import DropReason, RecordKind
from .._model.stats import FlushResult

if TYPE_CHECKING:
    from .lanes import Lane


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

    def correct(self, pending: int) -> None:
        """Set how many records wait. Fewer than before are lost ones."""
        if pending < self.pending:
            self.settle(self.pending - pending, DropReason.UNCERTAIN)
        self.pending = pending

    def result(self, last_error: str | None = None) -> FlushResult:
        """Return the counts so far, with the last error of the client if records wait or were dropped by closing."""
        error = last_error if self.pending or DropReason.CLOSED.value in self.losses else None
        return FlushResult(self.delivered, sum(self.losses.values()), self.pending, dict(self.losses), error)


class Confirmation(FlushBarrier):
    """Records of one batch whose callers wait until an outbox has them."""

    __slots__ = ("_when_settled", "waiter")

    def __init__(self) -> None:
        super().__init__()
        self.waiter: Any = None
        """Set by the waiting side; opaque to the batch."""
        self._when_settled: list[Callable[[], None]] = []

    def when_settled(self, callback: Callable[[], None]) -> None:
        """Call a function once no record waits any more."""
        self._when_settled.append(callback)

    def set_waiter(self, waiter: object) -> None:
        """Let later callers share this waiter."""
        self.waiter = waiter

    def settle(self, count: int, reason: DropReason | None = None) -> None:
        """Count records as delivered or lost, and wake the callers after the last one."""
        super().settle(count, reason)
        if not self.pending:
            for callback in self._when_settled:
                callback()


Barriers = list[tuple[FlushBarrier, int]]
"""Barriers, each with the number of leading records that it waits for."""


class IdentityTurn:
    """Turn of the queued identity records that began in one batch. Records of other lanes wait for it."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting = 0

    @property
    def is_over(self) -> bool:
        """Whether every record is delivered or lost."""
        return self._waiting <= 0

    def add(self) -> None:
        """Add one record."""
        self._waiting += 1

    def end(self, count: int) -> None:
        """Note that this number of records are delivered or lost."""
        self._waiting -= count

    def correct(self, waiting: int) -> None:
        """Set how many records wait."""
        self._waiting = waiting


class Batch:
    """Records of one lane that are sent in one request.

    A batch with an identity record is sent while no other request of its lane is in flight. It may also have
    events if both have the same endpoint and authentication. Mixpanel's browser SDK sends them like that, in order.

    Args:
        lane: endpoint and authentication.
        items: encoded records.
        opened: monotonic seconds at which the first record came.
        ids: spool row of each record; empty without a spool.
        new_compressor: creates the gzip stream of a body that is compressed as it grows; None disables this.
        origin: batch that these records were taken from. Its attempts and flags are copied.
        barriers: flushes that wait for the first records of the batch.
        is_from_disk: the records were read from a spool or an outbox, where they may have waited for a long time.
        route: kind that selects the endpoint of a batch of identity records; None for the endpoint of the lane.
        after: turn that has to end first; None if no identity record was waiting.
        identities: positions of the identity records, in order.

    Attributes:
        turn: turn of the identity records; None without any.
        suspicion: level of suspicion that these records have ended a process; 0 without. Suspects are sent alone.
        size: bytes of the request body: records, commas between them and brackets.
        is_due: a flush waits for it, or it has an identity record, so the linger time does not apply.
        is_request_begun: a request was made, so the records may have been applied.
        is_on_trial: its first request is noted on disk, because its records may have ended a process.
        failure_epoch: failures in a row of the lane when the current request began.
        confirmation: barrier of the calls that wait until an outbox has the records; None without such calls.
        sequence: number that tells an outbox whether it has these records already; None before they are put there.
        is_unanswered: an outbox was given the records and has not answered, so it may have them.
    """

    __slots__ = (
        "after",
        "attempts",
        "barriers",
        "confirmation",
        "failure_epoch",
        "first_try",
        "identities",
        "ids",
        "is_due",
        "is_from_disk",
        "is_on_trial",
        "is_request_begun",
        "is_unanswered",
        "items",
        "lane",
        "opened",
        "route",
        "sequence",
        "size",
        "suspicion",
        "turn",
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
        route: RecordKind | None = None,
        after: IdentityTurn | None = None,
        identities: Sequence[int] = (),
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
        self.is_on_trial: bool = origin is not None and origin.is_on_trial
        self.suspicion: int = 0 if origin is None else origin.suspicion
        self.first_try: float | None = None if origin is None else origin.first_try
        self.failure_epoch: int = 0 if origin is None else origin.failure_epoch
        self.barriers: Barriers = [] if barriers is None else barriers
        self.route: RecordKind | None = route if origin is None else origin.route
        self.after: IdentityTurn | None = after if origin is None else origin.after
        self.identities = [*identities]
        self.turn: IdentityTurn | None = origin.turn if origin is not None and identities else None
        self.sequence: int | None = None if origin is None else origin.sequence
        self.confirmation: Confirmation | None = None
        self.is_unanswered: bool = origin is not None and origin.is_unanswered

    @property
    def kind(self) -> RecordKind:
        """Kind that selects the endpoint."""
        return self.lane.kind if self.route is None else self.route

    @property
    def secret(self) -> Secret | None:
        """Project secret that signs the request."""
        return self.lane.secret if self.route is None else self.lane.merge_secret

    @property
    def reported_kind(self) -> RecordKind:
        """Kind in reports. A batch with records of both kinds counts as one of events."""
        return RecordKind.IDENTITY if 0 < len(self.identities) == len(self.items) else self.lane.kind

    def split_by_kind(self, details: Sequence[FailedRecord] = ()) -> list[tuple[Batch, Sequence[FailedRecord]]]:
        """Return batches of records that are reported with the same kind, with the messages about their records."""
        if len(self.identities) in {0, len(self.items)}:
            return [(self, details)]
        verbs = {*self.identities}
        named = [detail for at, detail in enumerate(details) if at in verbs]
        others = [detail for at, detail in enumerate(details) if at not in verbs]
        return [*zip(self.partition(verbs), (named, others), strict=True)]

    def must_wait(self) -> bool:
        """Return whether other records have to be settled first, to keep the order of an identity record."""
        if self.after is not None and not self.after.is_over:
            return True
        leased = self.lane.leased
        return bool(leased) and (self.turn is not None or next(iter(leased)).turn is not None)

    def begin_turn(self) -> IdentityTurn:
        """Count the record that was added last as an identity record, and return its turn."""
        self.turn = self.turn or IdentityTurn()
        self.turn.add()
        self.identities.append(len(self.items) - 1)
        return self.turn

    def end_turn(self) -> None:
        """Note that the records of the batch are delivered or lost."""
        if self.turn is not None:
            self.turn.end(len(self.identities))

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
        if is_identity(item):
            self.begin_turn()

    def extend(self, items: Sequence[bytes], sizes: array[int], size: int, opened: float) -> None:
        """Add records of these sizes and this sum."""
        self.items.extend(items, sizes)
        self.size += size + len(items)
        self.opened = min(self.opened, opened)

    def claim(
        self, items: Sequence[bytes], sizes: array[int], rows: Sequence[int], opened: float, *, is_old: bool
    ) -> None:
        """Add records of these sizes and rows that a worker has read from an outbox."""
        self.extend(items, sizes, sum(sizes), opened)
        self.ids.extend(rows)
        self.is_from_disk = self.is_from_disk or is_old

    def take_out(self, positions: Collection[int]) -> Batch:
        """Remove the records at these positions and return them as a batch."""
        taken, rest = self.partition(positions)
        self.items, self.ids, self.size = rest.items, rest.ids, rest.size
        self.barriers, self.identities, self.turn = rest.barriers, rest.identities, rest.turn
        return taken

    def subset(self, positions: Collection[int]) -> Batch:
        """Return a new batch of the records at these positions, in order, with the same history."""
        items = [item for at, item in enumerate(self.items) if at in positions]
        ids = [row for at, row in enumerate(self.ids) if at in positions]
        barriers = [
            (barrier, part)
            for barrier, covered in self.barriers
            if (part := sum(1 for at in positions if at < covered))
        ]
        verbs = {*self.identities}
        identities = [new for new, at in enumerate(sorted(positions)) if at in verbs] if verbs else ()
        return Batch(
            self.lane, items, self.opened, ids,
            origin=self, barriers=barriers, is_from_disk=self.is_from_disk, identities=identities,
        )  # fmt: skip

    def salvage(self, *, has_rows: bool = False) -> Batch:
        """Return a new batch of the same records, also if an error cut off a change of this one.

        Args:
            has_rows: records without a row in the spool are not completely accepted, and left out.
        """
        items = self.items.salvage()
        if self.ids or has_rows:
            items = items[: len(self.ids)]
        count = len(items)
        return Batch(
            self.lane, items, self.opened, self.ids[:count],
            origin=self, barriers=[(barrier, min(covered, count)) for barrier, covered in self.barriers],
            is_from_disk=self.is_from_disk, identities=[at for at in self.identities if at < count],
        )  # fmt: skip

    def partition(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """Return the records at these positions, and the others."""
        return self.subset(positions), self.subset(set(range(len(self.items))).difference(positions))

    def pop_first(self) -> Batch:
        """Remove the first record and return it as a batch."""
        item = self.items.pop_first()
        ids = [self.ids.pop(0)] if self.ids else []
        barriers = [(barrier, 1) for barrier, _ in self.barriers]
        identities = self.identities[:1] if 0 in self.identities[:1] else ()
        first = Batch(self.lane, [item], self.opened, ids, origin=self, barriers=barriers, identities=identities)
        self.size -= len(item) + 1
        self.identities = [at - 1 for at in self.identities[len(identities) :]]
        self.turn = self.turn if self.identities else None
        self.barriers = [(barrier, covered - 1) for barrier, covered in self.barriers if covered > 1]
        return first

    def make_due(self) -> None:
        """Let the batch be sent without its linger time."""
        self.is_due = True

    def add_barrier(self, barrier: FlushBarrier) -> None:
        """Make the batch due now, and have the barrier wait for its records."""
        self.is_due = True
        self.barriers.append((barrier, len(self.items)))
        barrier.expect(len(self.items))

    def confirm(self) -> Confirmation:
        """Return the barrier of the calls that wait for these records. It counts all records added so far."""
        covered = next((count for barrier, count in self.barriers if barrier is self.confirmation), 0)
        if self.confirmation is None or not covered:
            self.confirmation = Confirmation()
        else:
            self.remove_barrier(self.confirmation)
        self.barriers.append((self.confirmation, len(self.items)))
        self.confirmation.expect(len(self.items) - covered)
        return self.confirmation

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

    def begin_put(self, sequence: int) -> None:
        """Note that an outbox is given the records. They keep the sequence number of the first time."""
        self.sequence = sequence if self.sequence is None else self.sequence
        self.is_unanswered = True

    def end_put(self, *, is_answered: bool) -> None:
        """Note the end of a put. Without an answer, the outbox may have the records or not."""
        self.is_unanswered = not is_answered
        # Only now: until here, another put with the same number does no harm.
        self.is_request_begun = True

    def begin_trial(self, suspicion: int) -> None:
        """Have the first request noted on disk, and made alone if the records are suspects."""
        self.is_on_trial, self.suspicion = True, suspicion

    def end_trial(self) -> None:
        """Note that a request with these records has ended, and the process has not."""
        self.is_on_trial, self.suspicion = False, 0

    def refund_attempt(self) -> None:
        """Uncount an attempt that the response asked to repeat in another form."""
        self.attempts -= 1

    def move_to(self, lane: Lane) -> None:
        """Change the lane, and append the batch to the batches that wait there."""
        self.lane = lane
        lane.ready.append(self)
