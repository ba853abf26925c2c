"""The parts of the buffer: lanes of batches, what a flush waits for, and what was lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from ._credentials import Secret
from ._errors import FailedRecord
from ._records import DropReason, FlushResult, Kind


class Barrier:
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
    """

    __slots__ = ("attempts", "begun", "episode", "first_try", "is_due", "items", "lane", "marks", "opened", "size")

    def __init__(self, lane: Lane, items: list[bytes], opened: float) -> None:
        self.lane = lane
        self.items = items
        self.size = 1 + sum(map(len, items)) + len(items)
        self.opened = opened
        self.is_due = False
        self.attempts = 0
        self.begun = False
        self.first_try = 0.0
        self.episode = 0
        self.marks: list[tuple[Barrier, int]] = []

    @property
    def payload(self) -> int:
        """Size of the records themselves."""
        return self.size - 1 - len(self.items)

    def part(self, positions: Collection[int]) -> Batch:
        """Some of its records, in their order, as a batch of their own with the same past."""
        twin = Batch(self.lane, [item for at, item in enumerate(self.items) if at in positions], self.opened)
        twin.attempts, twin.first_try, twin.episode = self.attempts, self.first_try, self.episode
        for barrier, covered in self.marks:
            if part := sum(1 for at in positions if at < covered):
                twin.marks.append((barrier, part))
        return twin

    def divide(self, positions: Collection[int]) -> tuple[Batch, Batch]:
        """The records at these positions, and the others."""
        return self.part(positions), self.part(set(range(len(self.items))).difference(positions))

    def pop_first(self) -> Batch:
        """Its first record, taken out of it."""
        item = self.items.pop(0)
        first = Batch(self.lane, [item], self.opened)
        first.marks = [(barrier, 1) for barrier, _ in self.marks]
        self.size -= len(item) + 1
        self.marks = [(barrier, covered - 1) for barrier, covered in self.marks if covered > 1]
        return first


class Lane:
    """Records that go to one endpoint with one authentication.

    A lane in trouble (`failures` in a row) sends one probe at a time, and none before `paused_until`. Somebody who
    waits may cut that pause short, but not before `held_until`.
    """

    __slots__ = (
        "alone",
        "failed_at",
        "failures",
        "held_until",
        "kind",
        "learned",
        "leased",
        "limit",
        "max_bytes",
        "open",
        "paused_until",
        "ready",
        "secret",
    )

    def __init__(self, kind: Kind, secret: Secret | None, limit: int, max_bytes: int) -> None:
        self.kind = kind
        self.secret = secret
        self.limit = limit
        self.max_bytes = max_bytes
        self.open: Batch | None = None
        self.ready: deque[Batch] = deque()
        # In the order of their leases, in which they go back if the event loop ends.
        self.leased: dict[Batch, None] = {}
        # Records that somebody waits for travel beside the queue and take no place of a batch.
        self.alone: dict[Batch, None] = {}
        # When a 413 last made `max_bytes` smaller.
        self.learned = 0.0
        self.failures = 0
        self.failed_at = 0.0
        self.paused_until = 0.0
        self.held_until = 0.0

    def close_open(self) -> None:
        if self.open is not None:
            self.ready.append(self.open)
            self.open = None

    def batches(self) -> Iterable[Batch]:
        yield from self.leased
        yield from self.alone
        yield from self.ready
        if self.open is not None:
            yield self.open


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """Records of one kind that ended without delivery, for one reason.

    Args:
        kind: where they were to go.
        reason: why they did not.
        items: their bytes.
        details: what Mixpanel said of each, if it named them.
        message: what it said of the request.
        bare: further records, of which only the number was kept.
    """

    kind: Kind
    reason: DropReason
    items: Sequence[bytes]
    details: Sequence[FailedRecord] = ()
    message: str = ""
    bare: int = 0
