"""Order of queued identity records: the buffer delivers them between the records accepted before and after them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from buffer_samples import AGAIN, CONFIGURATION_REFUSED, INVALID, REFUSED, TOO_LARGE, UNKNOWN, lost, pruned
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._delivery.batch import Batch
from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._delivery.disk_backlog import SpoolLimits
from mixpanel_async._delivery.lanes import Idle, WaitUntil
from mixpanel_async._delivery.offers import OfferResult
from mixpanel_async._encoding.timestamps import expired_positions
from mixpanel_async._model.config import BatchPolicy, RetryPolicy
from mixpanel_async._model.outcomes import Delivered, Expired, Outcome, PartialFailure
from mixpanel_async._model.records import DropReason, IdentityRecord, Loss, NonIdempotentRecord, RecordKind

EVENTS, PEOPLE, IMPORTS, VERB = "events", "people", "imports", "verb"
KINDS = {EVENTS: RecordKind.EVENTS, PEOPLE: RecordKind.PEOPLE, IMPORTS: RecordKind.IMPORTS, VERB: RecordKind.EVENTS}
OUTCOMES: list[Outcome] = [
    Delivered(),
    Delivered(),
    AGAIN,
    UNKNOWN,
    TOO_LARGE,
    TOO_LARGE,
    INVALID,
    INVALID,
    REFUSED,
    CONFIGURATION_REFUSED,
    pruned(0),
    pruned(1, 2),
]
EVERY_ACTION: tuple[Callable[[Random], object], ...] = (
    lambda random: random.choice([EVENTS, EVENTS, PEOPLE, IMPORTS, VERB]),
    lambda random: random.choice([EVENTS, EVENTS, PEOPLE, IMPORTS, VERB]),
    lambda random: random.choice(["poll", "flush and poll all"]),
    lambda random: (random.randint(0, 3), random.randrange(len(OUTCOMES))),
    lambda random: random.choice(["wait", "reclaim", "evict", "flush", "expire"]),
)
actions = st.lists(
    st.one_of(
        st.sampled_from([EVENTS, EVENTS, PEOPLE, IMPORTS, VERB]),
        st.sampled_from(["poll", "flush and poll all"]),
        st.tuples(st.integers(0, 3), st.sampled_from(range(len(OUTCOMES)))),
        st.sampled_from(["wait", "reclaim", "evict", "flush", "expire"]),
    ),
    min_size=10,
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
    mixes: bool = False
    now: float = 0.0
    kinds: dict[bytes, str] = field(default_factory=dict)
    waiting: dict[bytes, int] = field(default_factory=dict)
    flying: list[Batch] = field(default_factory=list)
    accepted_verbs: int = 0

    def offer(self, kind: str) -> None:
        item = record(kind, len(self.kinds))
        self.kinds[item] = kind
        if self.buffer.offer(self.buffer.lane(KINDS[kind]), item, self.now) is not OfferResult.FULL:
            self.waiting[item] = len(self.kinds)
            self.accepted_verbs += kind == VERB

    def lease(self, batch: Batch) -> None:
        """Check that a request may begin now."""
        self.flying.append(batch)
        batch.begin_request()
        items = [*batch.items]
        assert sorted(items, key=lambda item: self.waiting[item]) == items
        verbs = [item for item in items if self.kinds[item] == VERB]
        if verbs:
            assert len(batch.lane.leased) == 1, "a batch with an identity record is in flight alone"
            assert self.mixes or verbs == items
        for item in items:
            assert batch.kind is self.endpoint(item), "records of another endpoint share the request"
            for other, place in self.waiting.items():
                if place < self.waiting[item] and VERB in {self.kinds[other], self.kinds[item]}:
                    # Profile updates and imports of before an identity record may arrive after it.
                    assert other in items or self.kinds[other] in {PEOPLE, IMPORTS}, "overtook an earlier record"

    def endpoint(self, item: bytes) -> RecordKind:
        if self.kinds[item] != VERB:
            return KINDS[self.kinds[item]]
        if b"$merge" in item:
            return RecordKind.IMPORTS
        return RecordKind.EVENTS if self.mixes else RecordKind.IDENTITY

    def forget(self, items: list[bytes]) -> None:
        for item in items:
            self.waiting.pop(item, None)

    def settle(self, batch: Batch, outcome: Outcome) -> None:
        self.flying.remove(batch)
        items = [*batch.items]
        if isinstance(outcome, PartialFailure):
            failed = [one.index for one in outcome.failed if one.index < len(items)]
            outcome = pruned(*failed) if failed else Delivered()
        losses = self.buffer.settle(batch, outcome, self.now, 1.0)
        left = {item for lane in self.buffer.lanes.values() for one in lane.batches() for item in one.items}
        self.check_losses(losses)
        self.forget([item for item in items if item not in left])

    def check_losses(self, losses: list[Loss]) -> None:
        for loss in losses:
            for item in loss.items:
                expected = RecordKind.IDENTITY if self.kinds[item] == VERB else KINDS[self.kinds[item]]
                assert loss.kind is expected
            assert len(loss.details) in {0, len(loss.items)}

    def expire(self) -> None:
        """Lease a batch, and let its first event be too old to be sent."""
        batch = self.buffer.poll(self.now)
        if isinstance(batch, Batch):
            items = [*batch.items]
            old = [at for at, item in enumerate(items) if self.kinds[item] == EVENTS][:1]
            if old:
                losses = self.buffer.expire(batch, Expired(positions=frozenset(old), by_import=False))
                self.check_losses(losses)
                assert [item for loss in losses for item in loss.items] == [items[old[0]]]
                self.forget([items[old[0]]])
            else:
                self.lease(batch)

    def step(self) -> Batch | WaitUntil | Idle:
        step = self.buffer.poll(self.now)
        if isinstance(step, Batch):
            self.lease(step)
        return step

    def evict(self) -> None:
        losses = self.buffer.evict(40)
        self.check_losses(losses)
        for loss in losses:
            assert loss.reason is DropReason.QUEUE_FULL
            self.forget([*loss.items])

    def reclaim(self) -> None:
        self.flying.clear()
        for loss in self.buffer.reclaim():
            self.forget([*loss.items])

    def act(self, action: object) -> None:
        if isinstance(action, tuple):
            if self.flying:
                self.settle(self.flying[action[0] % len(self.flying)], OUTCOMES[action[1]])
        elif action == "wait":
            self.now += 2.0
        elif action == "flush":
            self.buffer.barrier()
        elif action == "flush and poll all":
            self.buffer.barrier()
            while isinstance(self.step(), Batch):
                pass
        elif action in KINDS:
            self.offer(str(action))
        else:
            {"poll": self.step, "expire": self.expire, "evict": self.evict, "reclaim": self.reclaim}[str(action)]()


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    actions=actions,
    max_events=st.integers(1, 8),
    max_in_flight=st.integers(1, 4),
    attempts=st.none() | st.integers(1, 3),
    room=st.sampled_from([6, 100]),
    mixes=st.booleans(),
)
def test_identity_records_keep_their_place(
    actions: list[object], max_events: int, max_in_flight: int, attempts: int | None, room: int, *, mixes: bool
) -> None:
    """Whatever requests end in, no record overtakes an identity record, and none is left over."""
    policy = BatchPolicy(max_events=max_events, max_in_flight=max_in_flight, linger=1.0, max_pending_events=room)
    check(Run(Buffer(policy, RetryPolicy(attempts=attempts), mixes_identity=mixes), mixes), actions)


def test_identity_records_keep_their_place_in_random_runs() -> None:
    """Long runs of uniformly random actions reach states that the shorter examples of hypothesis do not."""
    random = Random(1)
    for _ in range(800):
        policy = BatchPolicy(max_events=random.randint(1, 8), linger=1.0)
        run = Run(Buffer(policy, RetryPolicy(), mixes_identity=True), mixes=True)
        check(run, [random.choice(EVERY_ACTION)(random) for _ in range(random.randint(10, 60))])


def check(run: Run, actions: list[object]) -> None:
    """Act, deliver what is left, and check the counts."""
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
    assert counts.identity.delivered + counts.identity.lost == run.accepted_verbs


def leaser(buffer: Buffer) -> Callable[[], list[Batch]]:
    return lambda: [*iter(lambda: one if isinstance(one := buffer.poll(0.0), Batch) else None, None)]


def deliver_all(buffer: Buffer) -> list[list[bytes]]:
    """Return the records of each request."""
    requests = []
    while batches := leaser(buffer)():
        for batch in batches:
            requests.append([*batch.items])
            buffer.settle(batch, Delivered(), 0.0)
    return requests


def test_requests_overlap_again_after_an_identity_record() -> None:
    buffer = Buffer(BatchPolicy(max_events=1, max_in_flight=4), RetryPolicy())
    lane = buffer.lane(RecordKind.EVENTS)
    for item in (b"1", b"2", record(VERB, 0), b"3", b"4"):
        buffer.offer(lane, item, 0.0)

    lease_all = leaser(buffer)
    before = lease_all()
    assert [[*batch.items] for batch in before] == [[b"1"], [b"2"]]
    for batch in before:
        buffer.settle(batch, Delivered(), 0.0)
    (verb,) = lease_all()
    buffer.settle(verb, Delivered(), 0.0)
    assert len(lease_all()) == 2


@pytest.mark.parametrize("mixes", [True, False])
def test_records_behind_an_outage_share_requests(mixes: bool) -> None:
    """Records that were accepted while the first request was in flight need few requests."""
    buffer = Buffer(BatchPolicy(max_events=100), RetryPolicy(), mixes_identity=mixes)
    events, people = buffer.lane(RecordKind.EVENTS), buffer.lane(RecordKind.PEOPLE)
    buffer.offer(events, record(VERB, 0), 0.0)
    (first,) = leaser(buffer)()
    verbs = [record(VERB, number) for number in range(2, 62, 2)]
    for verb in verbs:
        buffer.offer(events, verb, 0.0)
        if mixes:
            buffer.offer(events, b"event after " + verb, 0.0)
            buffer.offer(people, b"update after " + verb, 0.0)
    buffer.settle(first, AGAIN, 0.0)
    buffer.barrier()
    requests = deliver_all(buffer)
    if mixes:
        expected = [item for verb in verbs for item in (verb, b"event after " + verb)]
        assert requests == [[record(VERB, 0)], expected, [b"update after " + verb for verb in verbs]]
    else:
        assert requests == [[record(VERB, 0)], verbs]


@pytest.mark.parametrize("mixes", [True, False])
def test_size_limits_hold_for_identity_records(mixes: bool) -> None:
    verbs = [record(VERB, number) for number in range(0, 20, 2)]
    small = BatchPolicy(max_events=2000, max_bytes=65_536)
    large = [verb[:-2] + b',"x":"' + b"x" * 20_000 + b'"}}' for verb in verbs]
    for policy, records, size in ((small, large, 3), (BatchPolicy(max_events=4), verbs, 4)):
        buffer = Buffer(policy, RetryPolicy(), mixes_identity=mixes)
        lane = buffer.lane(RecordKind.EVENTS)
        for item in records:
            buffer.offer(lane, IdentityRecord(item), 0.0)
        requests = deliver_all(buffer)
        assert [item for items in requests for item in items] == records
        assert [len(items) for items in requests][:2] == [size, size]


@pytest.mark.parametrize("bad", [0, 1, 4, 5, 7])
@pytest.mark.parametrize("is_named", [True, False])
def test_an_invalid_record_is_lost_alone(bad: int, is_named: bool) -> None:
    """An invalid identity record costs no event beside it, and an invalid event no identity record."""
    buffer = Buffer(BatchPolicy(), RetryPolicy(), mixes_identity=True)
    lane = buffer.lane(RecordKind.EVENTS)
    # Identity records at even positions.
    items = [record(EVENTS if at % 2 else VERB, at) for at in range(8)]
    for item in items:
        buffer.offer(lane, item, 0.0)
    gone: dict[bytes, DropReason] = {}
    delivered: list[bytes] = []
    while isinstance(batch := buffer.poll(0.0), Batch):
        sent = [*batch.items]
        outcome: Outcome = Delivered()
        if items[bad] in sent:
            outcome = pruned(sent.index(items[bad])) if is_named else INVALID
        losses = buffer.settle(batch, outcome, 0.0)
        gone |= lost(losses)
        for loss in losses:
            assert loss.kind is (RecordKind.EVENTS if bad % 2 else RecordKind.IDENTITY)
            sent = [item for item in sent if item not in lost(losses)]
        if losses or isinstance(outcome, Delivered):
            delivered += sent
    assert gone == {items[bad]: DropReason.REJECTED}
    assert sorted(delivered) == sorted(item for item in items if item != items[bad])
    assert (buffer.accounting.identity.delivered, buffer.accounting.identity.lost) == ((4, 0) if bad % 2 else (3, 1))


def test_updates_wait_for_an_identity_record_that_joins_a_batch_from_disk() -> None:
    buffer = Buffer(BatchPolicy(), RetryPolicy(), SpoolLimits(max_bytes=10_000_000, max_records=None))
    assert buffer.disk is not None
    events, people = buffer.lane(RecordKind.EVENTS), buffer.lane(RecordKind.PEOPLE)
    buffer.disk.take_over(events, 1, len(record(VERB, 0)))
    buffer.rows_loaded(events, [(1, record(VERB, 0))], 0.0, {})
    for lane, item in ((people, b"before"), (events, record(VERB, 2)), (people, b"after")):
        buffer.offer(lane, item, 0.0)
        buffer.disk.rows(lane).mark_written(buffer.disk.rows(lane).last_row)
    buffer.barrier()
    (verbs, before) = leaser(buffer)()
    assert ([*verbs.items], [*before.items]) == ([record(VERB, 0), record(VERB, 2)], [b"before"])
    buffer.settle(before, Delivered(), 0.0)
    assert leaser(buffer)() == []
    buffer.settle(verbs, Delivered(), 0.0)
    assert [[*batch.items] for batch in leaser(buffer)()] == [[b"after"]]


def test_only_identity_calls_count_as_identity_records() -> None:
    """A `before_send` hook can give an ordinary event the bytes of an identity record."""
    buffer = Buffer(BatchPolicy(), RetryPolicy(), mixes_identity=True)
    lane = buffer.lane(RecordKind.EVENTS)
    verb = record(VERB, 0)
    buffer.offer(lane, verb, 0.0)
    buffer.offer(lane, bytes(record(VERB, 2)), 0.0)
    (batch,) = leaser(buffer)()
    assert buffer.settle(batch, INVALID, 0.0) == []
    assert deliver_all(buffer) == [[verb], [bytes(record(VERB, 2))]]
    assert buffer.accounting.identity.delivered == 1


def test_halves_of_a_refused_batch_keep_the_order() -> None:
    buffer = Buffer(BatchPolicy(max_in_flight=4), RetryPolicy(), mixes_identity=True)
    lane, lease_all = buffer.lane(RecordKind.EVENTS), leaser(buffer)
    items = [record(VERB, 0), b"1", b"2", b"3", b"4", b"5", b"6"]
    for item in items:
        buffer.offer(lane, item, 0.0)
    (whole,) = lease_all()
    buffer.settle(whole, INVALID, 0.0)
    (first,) = lease_all()
    assert [*first.items] == items[:4]
    buffer.settle(first, INVALID, 0.0)
    (first,) = lease_all()
    assert [*first.items] == items[:2]
    buffer.settle(first, Delivered(), 0.0)
    # Without the identity record, requests overlap again.
    assert [[*batch.items] for batch in lease_all()] == [items[2:4], items[4:]]


def test_records_join_no_batch_that_was_sent() -> None:
    """They would inherit its attempts."""
    buffer = Buffer(BatchPolicy(), RetryPolicy(attempts=1))
    lane, lease_all = buffer.lane(RecordKind.EVENTS), leaser(buffer)
    buffer.offer(lane, record(VERB, 0), 0.0)
    (first,) = lease_all()
    buffer.settle(first, CONFIGURATION_REFUSED, 0.0)
    buffer.offer(lane, record(VERB, 2), 0.0)
    (first,) = lease_all()
    assert lost(buffer.settle(first, AGAIN, 0.0)) == {record(VERB, 0): DropReason.EXHAUSTED}
    assert deliver_all(buffer) == [[record(VERB, 2)]]


def test_identity_records_never_become_too_old() -> None:
    verb = b'{"event":"$identify","properties":{"$identified_id":"maya","$anon_id":"a","token":"t"}}'
    items = [verb, b'{"event":"a","properties":{"time":1000}}', verb]
    assert expired_positions(items, now=1e9) == {1}
