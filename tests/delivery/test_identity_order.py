"""Order of queued identity records: the buffer delivers them between the records accepted before and after them."""

from __future__ import annotations

from dataclasses import dataclass, field

from buffer_samples import AGAIN, CONFIGURATION_REFUSED, INVALID, REFUSED, TOO_LARGE, UNKNOWN, pruned
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._delivery.lanes import Batch, Idle, OfferResult, WaitUntil
from mixpanel_async._model.config import BatchPolicy, RetryPolicy
from mixpanel_async._model.outcomes import Delivered, Outcome
from mixpanel_async._model.records import DropReason, IdentityRecord, NonIdempotentRecord, RecordKind

EVENTS, PEOPLE, IMPORTS, VERB = "events", "people", "imports", "verb"
KINDS = {EVENTS: RecordKind.EVENTS, PEOPLE: RecordKind.PEOPLE, IMPORTS: RecordKind.IMPORTS, VERB: RecordKind.EVENTS}
OUTCOMES: list[Outcome] = [
    Delivered(),
    Delivered(),
    AGAIN,
    UNKNOWN,
    TOO_LARGE,
    INVALID,
    REFUSED,
    CONFIGURATION_REFUSED,
    pruned(0),
]
actions = st.lists(
    st.one_of(
        st.sampled_from([EVENTS, EVENTS, PEOPLE, IMPORTS, VERB]),
        st.just("poll"),
        st.tuples(st.integers(0, 3), st.sampled_from(range(len(OUTCOMES)))),
        st.sampled_from(["wait", "reclaim", "evict", "flush"]),
    ),
    max_size=60,
)


def record(kind: str, number: int) -> bytes:
    if kind != VERB:
        item = b'{"number":%06d}' % number
        return NonIdempotentRecord(item) if kind == PEOPLE else item
    starts = (
        b'{"event":"$identify","properties":{"$identified_id":',
        b'{"event":"$merge","properties":{"$distinct_ids":',
    )
    return IdentityRecord(starts[number % 2] + b"%06d}}" % number)


@dataclass
class Run:
    """A buffer, and the order in which its records were sent and settled."""

    buffer: Buffer
    now: float = 0.0
    kinds: dict[bytes, str] = field(default_factory=dict)
    waiting: dict[bytes, int] = field(default_factory=dict)
    flying: list[Batch] = field(default_factory=list)

    def offer(self, kind: str) -> None:
        item = record(kind, len(self.kinds))
        self.kinds[item] = kind
        if self.buffer.offer(self.buffer.lane(KINDS[kind]), item, self.now) is not OfferResult.FULL:
            self.waiting[item] = len(self.kinds)

    def lease(self, batch: Batch) -> None:
        """Check that a request may begin now."""
        self.flying.append(batch)
        batch.begin_request()
        verbs = {item: at for item, at in self.waiting.items() if self.kinds[item] == VERB}
        for item in batch.items:
            at = self.waiting[item]
            earlier_verbs = [verb for verb, place in verbs.items() if place < at]
            assert not earlier_verbs, "sent before an earlier identity record was settled"
            if self.kinds[item] == VERB:
                assert [*batch.items] == [item], "an identity record has a request of its own"
                assert batch.kind is (RecordKind.IMPORTS if b"$merge" in item else RecordKind.IDENTITY)
                earlier = [one for one, place in self.waiting.items() if place < at and self.kinds[one] == EVENTS]
                assert not earlier, "sent before earlier events were settled"

    def forget(self, items: list[bytes]) -> None:
        for item in items:
            self.waiting.pop(item, None)

    def settle(self, batch: Batch, outcome: Outcome) -> None:
        self.flying.remove(batch)
        items = [*batch.items]
        losses = self.buffer.settle(batch, outcome, self.now, 1.0)
        left = {item for lane in self.buffer.lanes.values() for one in lane.batches() for item in one.items}
        for loss in losses:
            verbs = [self.kinds[item] == VERB for item in loss.items]
            assert (loss.kind is RecordKind.IDENTITY) is any(verbs)
        self.forget([item for item in items if item not in left])

    def step(self) -> Batch | WaitUntil | Idle:
        step = self.buffer.poll(self.now)
        if isinstance(step, Batch):
            self.lease(step)
        return step

    def act(self, action: object) -> None:
        if isinstance(action, tuple):
            if self.flying:
                self.settle(self.flying[action[0] % len(self.flying)], OUTCOMES[action[1]])
        elif action == "poll":
            self.step()
        elif action == "wait":
            self.now += 2.0
        elif action == "flush":
            self.buffer.barrier()
        elif action == "reclaim":
            self.flying.clear()
            for loss in self.buffer.reclaim():
                self.forget([*loss.items])
        elif action == "evict":
            for loss in self.buffer.evict(40):
                assert loss.reason is DropReason.QUEUE_FULL
                self.forget([*loss.items])
        else:
            self.offer(str(action))


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    actions=actions,
    max_events=st.integers(1, 4),
    max_in_flight=st.integers(1, 4),
    attempts=st.none() | st.integers(1, 3),
    room=st.sampled_from([6, 100]),
)
def test_identity_records_keep_their_place(
    actions: list[object], max_events: int, max_in_flight: int, attempts: int | None, room: int
) -> None:
    """Whatever requests end in, no record overtakes an identity record, and none is left over."""
    policy = BatchPolicy(max_events=max_events, max_in_flight=max_in_flight, linger=1.0, max_pending_events=room)
    run = Run(Buffer(policy, RetryPolicy(attempts=attempts)))
    for action in actions:
        run.act(action)
    while run.flying:
        run.settle(run.flying[0], Delivered())
    for _ in range(1000):
        step = run.step()
        if isinstance(step, Batch):
            run.settle(step, Delivered())
        elif isinstance(step, WaitUntil):
            run.now = step.at
        else:
            break
    counts = run.buffer.accounting
    assert (counts.pending, run.waiting) == (0, {})
    assert counts.accepted == counts.delivered + counts.failed + counts.dropped + counts.uncertain
    verbs = sum(kind == VERB for kind in run.kinds.values())
    assert counts.identity.delivered + counts.identity.lost <= verbs


def test_requests_overlap_again_after_an_identity_record() -> None:
    buffer = Buffer(BatchPolicy(max_events=1, max_in_flight=4), RetryPolicy())
    lane = buffer.lane(RecordKind.EVENTS)
    for item in (b"1", b"2", record(VERB, 0), b"3", b"4"):
        buffer.offer(lane, item, 0.0)

    def lease_all() -> list[Batch]:
        return [*iter(lambda: one if isinstance(one := buffer.poll(0.0), Batch) else None, None)]

    before = lease_all()
    assert [[*batch.items] for batch in before] == [[b"1"], [b"2"]]
    for batch in before:
        buffer.settle(batch, Delivered(), 0.0)
    (verb,) = lease_all()
    buffer.settle(verb, Delivered(), 0.0)
    assert len(lease_all()) == 2
