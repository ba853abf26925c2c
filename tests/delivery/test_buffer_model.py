"""Model test of the buffer: records are offered, sent, settled, evicted and abandoned in any order."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from buffer_samples import (
    AGAIN,
    CONFIGURATION_REFUSED,
    INVALID,
    NONE_ACCEPTED,
    ORDERED,
    REFUSED,
    TOO_LARGE,
    UNKNOWN,
    body,
    lost,
    pruned,
)
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mixpanel_async._delivery.batch import Batch, FlushBarrier
from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._delivery.lanes import Idle, WaitUntil
from mixpanel_async._delivery.offers import OfferResult
from mixpanel_async._model.config import BatchPolicy, RetryPolicy
from mixpanel_async._model.credentials import Secret
from mixpanel_async._model.outcomes import ConfigurationRefused, Delivered, Outcome, Retry, SplitBatch
from mixpanel_async._model.records import DROPPED, DropReason, NonIdempotentRecord, RecordKind
from mixpanel_async._model.stats import FlushResult

LANES: dict[str, tuple[RecordKind, Secret | None]] = {
    "events": (RecordKind.EVENTS, None),
    "people": (RecordKind.PEOPLE, None),
    "groups": (RecordKind.GROUPS, None),
    "imports of one": (RecordKind.IMPORTS, Secret("one")),
    "imports of two": (RecordKind.IMPORTS, Secret("two")),
}
WAITING, FLYING, DELIVERED = "waiting", "flying", "delivered"
FAILED, LOST, UNSURE = "failed", "dropped", "uncertain"


@dataclass(eq=False)
class Row:
    """Record of the model."""

    item: bytes
    lane: str
    number: int
    accepted: float
    place: str = WAITING
    tries: int = 0
    first_try: float | None = None
    is_due: bool = False
    was_sent_once: bool = False

    @property
    def once(self) -> bool:
        return isinstance(self.item, NonIdempotentRecord)


@dataclass(eq=False)
class Track:
    """Lane of the model."""

    kind: RecordKind
    open: list[Row] = field(default_factory=list)
    flying: int = 0
    alone: int = 0
    paused_until: float = 0.0
    held_until: float = 0.0
    failed_at: float = 0.0
    failures: int = 0
    passed_over: int = 0

    @property
    def ordered(self) -> bool:
        return self.kind in ORDERED

    def load(self) -> int:
        """Number of leases."""
        return self.flying + self.alone


@dataclass(eq=False)
class Flight:
    """Request in flight, with the failures of its lane when it began."""

    batch: Batch
    rows: list[Row]
    track: Track
    failures: int

    def fail(self, now: float, delay: float) -> None:
        """Pause the lane after an outcome that asks for another attempt."""
        track = self.track
        track.failures = max(track.failures, self.failures + 1)
        track.failed_at = now
        track.paused_until = max(track.paused_until, now + delay)


def place_for(reason: DropReason) -> str:
    if reason in DROPPED:
        return LOST
    return UNSURE if reason is DropReason.UNCERTAIN else FAILED


class BufferModel(RuleBasedStateMachine):
    """Offers, sends, settles, evicts and abandons records in any order. Each record must end in one place.

    The model keeps a flat list of records and does not know how the buffer groups them. It checks which records a lease
    may hold, and the time by which the lease must be given.
    """

    @initialize(
        policy=st.builds(
            BatchPolicy,
            max_events=st.integers(1, 6),
            max_bytes=st.integers(1, 150),
            linger=st.sampled_from([0.0, 1.0, 2.0, 20.0]),
            max_pending_events=st.integers(1, 25),
            max_pending_bytes=st.integers(60, 600),
            max_in_flight=st.integers(1, 3),
            at_least_once=st.booleans(),
        ),
        retry=st.builds(
            RetryPolicy,
            attempts=st.none() | st.integers(1, 4),
            total_timeout=st.none() | st.sampled_from([1.0, 4.0, 10.0]),
        ),
    )
    def begin(self, policy: BatchPolicy, retry: RetryPolicy) -> None:
        self.policy, self.retry = policy, retry
        self.buffer = Buffer(policy, retry)
        self.now = 1000.0
        self.rows: list[Row] = []
        self.by_item: dict[bytes, Row] = {}
        self.tracks = {name: Track(kind) for name, (kind, _) in LANES.items()}
        self.held = {name: self.buffer.lane(*key) for name, key in LANES.items()}
        self.flying: list[Flight] = []
        self.alone: list[tuple[Batch, Row]] = []
        self.barriers: list[tuple[FlushBarrier, list[Row]]] = []
        self.forgotten: list[tuple[FlushBarrier, FlushResult]] = []
        self.reasons: Counter[DropReason] = Counter()
        self.discarded = 0
        self.is_crowded = False
        # Only before the first 413 and the first eviction does the model know whether a batch is sent too early.
        self.knows_all = True
        self.asleep_until: float | None = None

    # Expectations

    def at(self, *places: str, lane: str | None = None) -> list[Row]:
        return [row for row in self.rows if row.place in places and (lane is None or row.lane == lane)]

    @property
    def pending(self) -> list[Row]:
        return self.at(WAITING, FLYING)

    def in_use(self) -> set[str]:
        return {row.lane for row in self.pending}

    def limit(self, track: Track) -> int:
        return 1 if track.ordered or track.failures else self.policy.max_in_flight

    def is_busy(self, track: Track) -> bool:
        """Return whether the import slots are in use, which the lanes of all project secrets share."""
        flying = sum(other.flying for other in self.tracks.values() if other.kind is RecordKind.IMPORTS)
        return track.kind is RecordKind.IMPORTS and flying >= self.policy.max_in_flight

    def needed_by(self, name: str) -> float | None:
        """Return the latest time at which a lane must send, or None if it need not or cannot."""
        track = self.tracks[name]
        waiting = self.at(WAITING, lane=name)
        if not waiting or track.load() >= self.limit(track) or self.is_busy(track):
            return None
        if self.is_crowded or any(row.is_due for row in waiting):
            return max(self.now, track.paused_until)
        return max(min(row.accepted for row in waiting) + self.policy.linger, track.paused_until)

    def needs(self) -> dict[str, float]:
        return {name: at for name in LANES if (at := self.needed_by(name)) is not None}

    def fits(self, size: int) -> bool:
        held = sum(len(row.item) for row in self.pending)
        return len(self.pending) < self.policy.max_pending_events and held + size <= self.policy.max_pending_bytes

    def end(self, row: Row, reason: DropReason | None) -> None:
        row.place = DELIVERED if reason is None else place_for(reason)
        if reason is not None:
            self.reasons[reason] += 1
        self.is_crowded = False
        self.close([row])

    def close(self, rows: Iterable[Row]) -> None:
        """Note that these records are in a closed batch."""
        for row in rows:
            track = self.tracks[row.lane]
            track.open = [other for other in track.open if other is not row]

    def wake(self) -> None:
        self.asleep_until = None

    # Rules

    @rule(
        name=st.sampled_from(sorted(LANES)),
        size=st.integers(6, 70),
        once=st.booleans(),
        held=st.booleans(),
        times=st.integers(1, 4),
    )
    def offer(self, name: str, size: int, *, once: bool, held: bool, times: int) -> None:
        for _ in range(times):
            item: bytes = b"%06d" % len(self.rows) + b"." * (size - 6)
            lane = self.held[name] if held else self.buffer.lane(*LANES[name])
            item = NonIdempotentRecord(item) if once else item
            fits = self.fits(size)
            assert self.buffer.is_full(size) is not fits
            verdict = self.buffer.offer(lane, item, self.now)
            assert (verdict is OfferResult.FULL) is not fits
            if verdict is not OfferResult.ACCEPTED:
                self.wake()
            if not fits:
                self.is_crowded = True
                return
            self.accept(Row(item, name, len(self.rows), self.now))

    def accept(self, row: Row) -> None:
        self.rows.append(row)
        self.by_item[row.item] = row
        track = self.tracks[row.lane]
        if body(other.item for other in [*track.open, row]) > self.policy.max_bytes:
            for other in track.open:
                other.is_due = True
            track.open = []
        track.open.append(row)
        if len(track.open) >= self.policy.max_events:
            for other in track.open:
                other.is_due = True
            track.open = []
        if len(self.pending) >= self.policy.max_pending_events:
            self.is_crowded = True

    @rule(dt=st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0]))
    def pass_time(self, dt: float) -> None:
        self.now += dt

    @rule(times=st.integers(1, 6))
    def poll(self, times: int) -> None:
        self.wake()
        for _ in range(times):
            needs = self.needs()
            step = self.buffer.poll(self.now)
            if not isinstance(step, Batch):
                self.check_wait(step, needs)
                return
            self.check_lease(step, needs)

    def check_wait(self, step: WaitUntil | Idle, needs: dict[str, float]) -> None:
        until = step.at if isinstance(step, WaitUntil) else math.inf
        assert until > self.now, "the wait has already ended"
        assert until <= min(needs.values(), default=math.inf), "the wait is too long"
        self.asleep_until = until

    def check_lease(self, batch: Batch, needs: dict[str, float]) -> None:
        name = next(name for name, key in LANES.items() if key == (batch.lane.kind, batch.lane.secret))
        track = self.tracks[name]
        rows = [self.by_item[item] for item in batch.items]
        assert rows, "the batch is empty"
        assert all(row.place == WAITING and row.lane == name for row in rows)
        assert len({row.number for row in rows}) == len(rows)
        assert [row.number for row in rows] == sorted(row.number for row in rows)
        assert len(rows) <= self.policy.max_events
        assert len(rows) == 1 or body(batch.items) <= self.policy.max_bytes
        assert track.paused_until <= self.now, "the lane is paused"
        assert track.flying < self.limit(track), "too many requests in flight"
        assert not self.is_busy(track), "too many imports in flight"
        if track.ordered:
            assert rows == self.at(WAITING, lane=name)[: len(rows)], "records are out of order"
        assert not any(row.was_sent_once for row in rows), "resent a record that may have been applied"
        assert {(row.tries + 1) for row in rows} == {batch.attempts}
        if self.knows_all and not self.is_crowded and not any(row.is_due for row in rows):
            assert rows[0].accepted + self.policy.linger <= self.now, "sent before linger ended"
        self.check_turn(name, needs)
        for row in rows:
            row.place = FLYING
            if row.first_try is None:
                row.first_try = self.now
            row.tries += 1
        self.close(rows)
        track.flying += 1
        self.flying.append(Flight(batch, rows, track, track.failures))

    def check_turn(self, name: str, needs: dict[str, float]) -> None:
        for other, track in self.tracks.items():
            must = other != name and other in needs and needs[other] <= self.now
            track.passed_over = track.passed_over + 1 if must else 0
            assert track.passed_over < len(LANES), "a lane is starved"

    @rule()
    def sleep(self) -> None:
        """Wait as long as `poll` says. Afterwards there is a batch to send."""
        self.poll(100)
        if self.asleep_until is not None and self.asleep_until < math.inf:
            self.now = self.asleep_until
            needs = self.needs()
            step = self.buffer.poll(self.now)
            assert isinstance(step, Batch), "there is no batch after the wait"
            self.check_lease(step, needs)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        flight = self.take_flight(data)
        self.settle(flight, Delivered(), dict.fromkeys(flight.rows))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def fail_partially(self, data: st.DataObject) -> None:
        flight = self.take_flight(data)
        indexes = data.draw(st.sets(st.integers(0, len(flight.rows) - 1), min_size=1))
        ends = {row: DropReason.REJECTED if at in indexes else None for at, row in enumerate(flight.rows)}
        self.settle(flight, pruned(*sorted(indexes)), ends)

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        flight = self.take_flight(data)
        self.settle(flight, REFUSED, dict.fromkeys(flight.rows, DropReason.REJECTED))

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), outcome=st.sampled_from([TOO_LARGE, INVALID, NONE_ACCEPTED]))
    def split(self, data: st.DataObject, outcome: SplitBatch) -> None:
        flight = self.take_flight(data)
        ends: dict[Row, DropReason | None] = {}
        if len(flight.rows) > 1:
            # The response asks to halve the batch, so it is not a failed attempt.
            for row in flight.rows:
                row.tries -= 1
        if len(flight.rows) == 1:
            ends[flight.rows[0]] = outcome.reason
        elif outcome is TOO_LARGE:
            self.knows_all = False
        elif outcome is INVALID and not self.policy.at_least_once:
            ends = {row: DropReason.UNCERTAIN for row in flight.rows if row.once}
        self.settle(flight, outcome, ends)

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        applied=st.booleans(),
        asked=st.booleans(),
        delay=st.sampled_from([0.0, 0.5, 1.0, 4.0, 60.0]),
    )
    def retry_later(self, data: st.DataObject, *, applied: bool, asked: bool, delay: float) -> None:
        flight = self.take_flight(data)
        track = flight.track
        flight.fail(self.now, delay)
        if asked:
            track.held_until = max(track.held_until, self.now + delay)
        ends: dict[Row, DropReason | None] = {}
        for row in flight.rows:
            if row.once and applied and not self.policy.at_least_once:
                ends[row] = DropReason.UNCERTAIN
                row.was_sent_once = True
            elif self.is_over(row, track):
                ends[row] = DropReason.EXHAUSTED
        outcome = (UNKNOWN if applied else AGAIN)._replace(retry_after=delay if asked else None)
        self.settle(flight, outcome, ends, delay)

    def is_over(self, row: Row, track: Track) -> bool:
        attempts, total = self.retry.attempts, self.retry.total_timeout
        if attempts is not None and row.tries >= attempts:
            return True
        assert row.first_try is not None
        return total is not None and track.paused_until > row.first_try + total

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), delay=st.sampled_from([0.5, 60.0]))
    def refuse_configuration(self, data: st.DataObject, delay: float) -> None:
        flight = self.take_flight(data)
        track = flight.track
        flight.fail(self.now, delay)
        track.held_until = max(track.held_until, self.now + (delay if track.failures > 1 else min(delay, 2.0)))
        self.settle(flight, CONFIGURATION_REFUSED, {}, delay)

    def take_flight(self, data: st.DataObject) -> Flight:
        return self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))

    def settle(self, flight: Flight, outcome: Outcome, ends: dict[Row, DropReason | None], delay: float = 0.0) -> None:
        """End a request. `ends` has the records that ended with it, and their reason. The others are queued again."""
        flight.track.flying -= 1
        if not isinstance(outcome, (Retry, ConfigurationRefused)):
            self.recover(flight.track)
        losses = self.buffer.settle(flight.batch, outcome, self.now, delay)
        assert lost(losses) == {row.item: reason for row, reason in ends.items() if reason is not None}
        assert all(loss.kind is flight.batch.lane.kind for loss in losses)
        assert self.buffer.settle(flight.batch, Delivered(), self.now) == [], "a second settlement must be ignored"
        for row in flight.rows:
            if row in ends:
                self.end(row, ends[row])
            else:
                row.place, row.is_due = WAITING, True
        self.wake()

    def recover(self, track: Track) -> None:
        """End the failure of a lane. A pause that Mixpanel asked for stays."""
        track.failures = 0
        track.paused_until = track.held_until

    @precondition(lambda self: {name for name, track in self.tracks.items() if track.failures} <= self.in_use())
    @rule(spacing=st.sampled_from([0.0, 0.5, 2.0]))
    def shorten_backoff(self, spacing: float) -> None:
        """Shorten the backoff of every failing lane. For a lane without records the buffer may skip this."""
        self.buffer.shorten_backoff(spacing)
        for track in self.tracks.values():
            if track.failures:
                sooner = max(track.held_until, track.failed_at + spacing)
                track.paused_until = min(track.paused_until, sooner)
        self.wake()

    @rule(size=st.integers(6, 70))
    def lease_single(self, size: int) -> None:
        name = "events"
        item = b"%06d" % len(self.rows) + b"!" * (size - 6)
        fits = self.fits(size)
        batch = self.buffer.lease_single(self.buffer.lane(*LANES[name]), item, self.now)
        assert (batch is not None) is fits
        if batch is not None:
            row = Row(item, name, len(self.rows), self.now, place=FLYING)
            self.rows.append(row)
            self.by_item[item] = row
            self.tracks[name].alone += 1
            self.alone.append((batch, row))

    @precondition(lambda self: self.alone)
    @rule(data=st.data(), reason=st.none() | st.sampled_from([DropReason.UNAUTHORIZED, DropReason.CLOSED]))
    def settle_single(self, data: st.DataObject, reason: DropReason | None) -> None:
        batch, row = self.alone.pop(data.draw(st.integers(0, len(self.alone) - 1)))
        losses = self.buffer.settle_single(batch, reason)
        assert self.buffer.settle_single(batch, None) == [], "a second settlement must be ignored"
        assert lost(losses) == ({} if reason is None else {row.item: reason})
        self.tracks[row.lane].alone -= 1
        if reason is None:
            self.recover(self.tracks[row.lane])
        self.end(row, reason)
        self.wake()

    @precondition(lambda self: any(map(Track.load, self.tracks.values())))
    @precondition(lambda self: max(map(Track.load, self.tracks.values())) == 1)
    @rule(begun=st.lists(st.booleans(), min_size=5, max_size=5))
    def reclaim_leases(self, begun: list[bool]) -> None:
        """Lose all lease holders, some of them during a request."""
        ends: dict[bytes, DropReason] = {}
        held = [(flight.batch, flight.rows) for flight in self.flying] + [(batch, [row]) for batch, row in self.alone]
        for at, (batch, rows) in enumerate(held):
            batch.is_request_begun = begun[at]
            for row in rows:
                row.place, row.is_due = WAITING, True
                if batch.is_request_begun and row.once and not self.policy.at_least_once:
                    ends[row.item] = DropReason.UNCERTAIN
                    row.was_sent_once = True
        losses = self.buffer.reclaim()
        assert lost(losses) == ends
        for item, reason in ends.items():
            self.end(self.by_item[item], reason)
        for track in self.tracks.values():
            track.flying = track.alone = 0
        self.flying, self.alone = [], []
        for batch, _ in held:
            assert self.buffer.settle(batch, REFUSED, self.now) == [], "a late settlement must be ignored"
            assert self.buffer.settle_single(batch, DropReason.CLOSED) == []
        self.wake()

    @rule(name=st.sampled_from(sorted(LANES)), count=st.integers(1, 3))
    def discard(self, name: str, count: int) -> None:
        self.buffer.discard(self.buffer.lane(*LANES[name]), [b"x"] * count, DropReason.BEFORE_SEND)
        self.discarded += count
        self.reasons[DropReason.BEFORE_SEND] += count

    @precondition(lambda self: self.at(WAITING))
    @rule(size=st.integers(1, 100))
    def evict(self, size: int) -> None:
        for loss in self.buffer.evict(size):
            assert loss.reason is DropReason.QUEUE_FULL
            for item in loss.items:
                row = self.by_item[item]
                assert row.place == WAITING
                assert not self.fits(size), "evicted more than the new record needs"
                if self.tracks[row.lane].ordered:
                    assert row is self.at(WAITING, lane=row.lane)[0]
                self.end(row, DropReason.QUEUE_FULL)
                self.knows_all = False
        self.wake()

    @rule()
    def flush(self) -> None:
        barrier = self.buffer.barrier()
        self.barriers.append((barrier, self.pending))
        for row in self.at(WAITING):
            row.is_due = True
        for track in self.tracks.values():
            track.open = []
        self.wake()

    @precondition(lambda self: self.barriers)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """End a flush before its records are settled."""
        barrier, _ = self.barriers.pop(data.draw(st.integers(0, len(self.barriers) - 1)))
        self.buffer.forget(barrier)
        self.forgotten.append((barrier, barrier.result()))

    @precondition(lambda self: len(self.rows) > 20)
    @rule()
    def abandon(self) -> None:
        waiting = self.at(WAITING)
        losses = self.buffer.abandon(DropReason.CLOSED)
        assert lost(losses) == {row.item: DropReason.CLOSED for row in waiting}
        for row in waiting:
            self.end(row, DropReason.CLOSED)

    # Invariants

    @invariant()
    def every_record_is_in_one_place(self) -> None:
        buffer = self.buffer
        there = Counter(row.place for row in self.rows)
        assert buffer.accounting.accepted == len(self.rows) + self.discarded
        assert buffer.accounting.delivered == there[DELIVERED]
        assert buffer.accounting.failed == there[FAILED]
        assert buffer.accounting.dropped == there[LOST] + self.discarded
        assert buffer.accounting.uncertain == there[UNSURE]
        assert buffer.accounting.pending == there[WAITING] + there[FLYING]
        assert buffer.accounting.pending_bytes == sum(len(row.item) for row in self.pending)
        assert buffer.in_flight == len(self.flying) + len(self.alone)
        assert buffer.accounting.losses == self.reasons

    @invariant()
    def the_bounds_hold(self) -> None:
        assert self.buffer.accounting.pending <= self.policy.max_pending_events
        assert self.buffer.accounting.pending_bytes <= self.policy.max_pending_bytes

    @invariant()
    def each_barrier_counts_its_own(self) -> None:
        for barrier, rows in self.barriers:
            there = Counter(row.place for row in rows)
            assert barrier.pending == there[WAITING] + there[FLYING]
            assert barrier.delivered == there[DELIVERED]
            assert barrier.result().failed == there[FAILED] + there[LOST] + there[UNSURE]
        for barrier, result in self.forgotten:
            assert barrier.result() == result

    @invariant()
    def sender_does_not_sleep_while_there_is_work(self) -> None:
        """A sleeping sender is late only if a signal has woken it since."""
        if self.asleep_until is None or self.now >= self.asleep_until:
            return
        assert min(self.needs().values(), default=math.inf) > self.now

    def teardown(self) -> None:
        """Once Mixpanel accepts every request, no record is left."""
        # After a failure, a second one would hide the first.
        if sys.exc_info()[0] is not None or not hasattr(self, "buffer"):
            return
        for batch, row in self.alone:
            self.buffer.settle_single(batch, None)
            row.place = DELIVERED
        for flight in self.flying:
            self.buffer.settle(flight.batch, Delivered(), self.now)
        for _ in range(1000):
            step = self.buffer.poll(self.now)
            if isinstance(step, Idle):
                break
            if isinstance(step, WaitUntil):
                self.now = step.at
            else:
                self.buffer.settle(step, Delivered(), self.now)
        assert (self.buffer.accounting.pending, self.buffer.accounting.pending_bytes, self.buffer.in_flight) == (
            0,
            0,
            0,
        )


# Shrinking a failure takes longer than finding it.
TestBufferModel = pytest.mark.timeout(300)(BufferModel.TestCase)
TestBufferModel.settings = settings(
    max_examples=250,
    stateful_step_count=80,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate, Phase.shrink],
)
