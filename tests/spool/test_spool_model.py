"""Queue, journal and database against a model: records come, are sent, lost and evicted in any order, while the disk
fails, fills up, is found damaged, and the process dies."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from spool_bench import DAMAGE, IO_ERROR, LOCKED, NO_ROOM, Bench, fast_folder, record, spooled

from mixpanel_async._delivery.lanes import Batch, FlushBarrier
from mixpanel_async._model.config import BatchPolicy, Overflow
from mixpanel_async._model.errors import FailedRecord, QueueFullError
from mixpanel_async._model.outcomes import ConfigurationRefused, Delivered, Outcome, PartialFailure, Retry, SplitBatch
from mixpanel_async._model.records import DropReason, RecordKind
from mixpanel_async._spool.messages import CommitGroup

KINDS = [RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.IMPORTS]
AGAIN = Retry(message="not now", applied=False, status=503)
UNKNOWN = Retry(message="no answer", applied=True)
ASTRAY = ConfigurationRefused(status=401, message="who are you")
INVALID = SplitBatch(reason=DropReason.REJECTED, status=400, message="something is wrong")
PRUNED = PartialFailure(
    failed=(FailedRecord(index=0, field="properties.x", message="is odd"),), status=400, message="one failed"
)


class Crash(BaseException):
    """The process dies here."""


@dataclass(eq=False)
class Known:
    """What the model knows of a record."""

    item: bytes
    kind: RecordKind
    number: int
    once: bool
    group: CommitGroup | None
    life: int
    sent_in: list[int] = field(default_factory=list)
    """The lives in which it was sent."""
    may_be_applied: bool = False
    delivered: int = 0

    @property
    def is_promised(self) -> bool:
        """Whether somebody was told that it is on disk."""
        return self.group is not None and self.group.is_done and self.group.error is None

    @property
    def is_refused(self) -> bool:
        return self.group is not None and self.group.is_done and self.group.error is not None


class SpoolModel(RuleBasedStateMachine):
    """Every record ends in one place, whatever the disk does, and what was promised outlives the process."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=fast_folder())
        self.life = 0
        self.bench: Bench | None = None

    def teardown(self) -> None:
        try:
            if self.bench is not None:
                self.drain()
        finally:
            if self.bench is not None:
                self.bench.abandon()
            self.folder.cleanup()

    @initialize(
        policy=st.builds(
            BatchPolicy,
            max_events=st.integers(1, 6),
            max_bytes=st.sampled_from([60, 300, 2_000_000]),
            linger=st.just(0.0),
            max_pending_events=st.sampled_from([2, 4, 8, 1_000]),
            max_pending_bytes=st.sampled_from([300, 1_000, 100_000]),
            max_in_flight=st.integers(1, 3),
            at_least_once=st.booleans(),
        ),
        overflow=st.sampled_from([Overflow.DROP_NEWEST, Overflow.DROP_OLDEST, Overflow.RAISE]),
        max_records=st.none() | st.integers(1, 20),
    )
    def begin(self, policy: BatchPolicy, overflow: Overflow, max_records: int | None) -> None:
        self.policy, self.overflow, self.max_records = policy, overflow, max_records
        self.path = Path(self.folder.name) / "0" / "spool.db"
        self.known: dict[int, Known] = {}
        self.flying: list[Batch] = []
        self.barriers: list[FlushBarrier] = []
        self.now = 1_000.0
        self.has_reopened = False
        self.earlier: Counter[bytes] = Counter()
        """Records that were lost, and said to be, in lives that are over."""
        self.start()

    def start(self) -> None:
        self.bench = Bench(
            self.path,
            batching=self.policy,
            overflow=self.overflow,
            max_records=self.max_records,
            now=self.now,
        )
        self.now += 100.0
        self.flying, self.barriers = [], []
        self.last_sent: dict[RecordKind, int] = {}

    @property
    def b(self) -> Bench:
        assert self.bench is not None
        return self.bench

    # What happens

    @rule(
        kind=st.sampled_from(KINDS),
        awaited=st.booleans(),
        once=st.booleans(),
        size=st.sampled_from([0, 0, 0, 30, 200]),
        times=st.integers(1, 8),
    )
    def offer(self, kind: RecordKind, *, awaited: bool, once: bool, size: int, times: int) -> None:
        for _ in range(times):
            number = len(self.known)
            once = once and kind is RecordKind.PEOPLE
            item = record(number, size, once=once)
            before = self.b.heard.lost[bytes(item)]
            try:
                group = self.b.offer(item, kind, awaited=awaited)
            except QueueFullError:
                assert self.overflow is Overflow.RAISE
                return
            assert not before
            self.known[number] = Known(item, kind, number, once, group, self.life)

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.turn()

    def turn(self) -> None:
        was = self.b.session._database
        inode = was.inode if was is not None else None
        self.b.step()
        now = self.b.session._database
        self.has_reopened |= now is not None and inode is not None and now.inode != inode

    @rule(times=st.integers(1, 4))
    def send(self, times: int) -> None:
        for _ in range(times):
            batch = self.b.take()
            if batch is None:
                return
            self.check_lease(batch)
            group = self.b.mark(batch)
            if group is not None:
                self.turn()
                if group.error is not None or not group.marks_written or not group.is_done:
                    self.b.settle(batch, AGAIN)
                    continue
            batch.is_request_begun = True
            for known in self.of(batch):
                known.sent_in.append(self.life)
                known.may_be_applied = known.once and not self.policy.at_least_once
            self.flying.append(batch)

    def of(self, batch: Batch) -> list[Known]:
        return [self.known[orjson.loads(memoryview(item))["n"]] for item in batch.items]

    def check_lease(self, batch: Batch) -> None:
        found = self.of(batch)
        assert found
        on_disk = (
            set(self.b.rows().values()) if not self.b.session.is_open or self.b.session._damaged_inode == 0 else None
        )
        for known in found:
            assert not known.is_refused, "sent although it was refused"
            assert not known.may_be_applied, "sent twice although it may have been applied"
            assert self.b.heard.lost[bytes(known.item)] == 0, "sent although it was given up"
            assert known.delivered == 0 or known.life < self.life or self.has_reopened, "sent again"
            if on_disk is not None and not self.has_reopened:
                assert spooled(known.item) in on_disk, "sent before it was on disk"
        if batch.lane.kind is RecordKind.PEOPLE and batch.attempts == 1 and not self.has_reopened and self.life == 0:
            assert [known.number for known in found] == sorted(known.number for known in found)
            assert found[0].number > self.last_sent.get(RecordKind.PEOPLE, -1), "out of order"
            self.last_sent[RecordKind.PEOPLE] = found[-1].number

    @precondition(lambda self: self.flying)
    @rule(
        data=st.data(),
        outcome=st.sampled_from([Delivered(), Delivered(), Delivered(), AGAIN, UNKNOWN, ASTRAY, INVALID, PRUNED]),
    )
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        batch = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        self.land(batch, outcome)

    def land(self, batch: Batch, outcome: Outcome) -> None:
        for at, known in enumerate(self.of(batch)):
            if isinstance(outcome, Delivered) or (isinstance(outcome, PartialFailure) and at):
                known.delivered += 1
            # Mixpanel says that it was not applied.
            elif outcome in {AGAIN, ASTRAY}:
                known.may_be_applied = False
        self.b.settle(batch, outcome)

    @rule()
    def loop_ends(self) -> None:
        """The event loop is gone, and with it those who held leases."""
        self.flying.clear()
        self.b.queue.reclaim()

    @rule()
    def flush(self) -> None:
        self.barriers.append(self.b.queue.barrier())

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.b.now += seconds
        self.now = max(self.now, self.b.now)

    @precondition(lambda self: self.b.session.is_open)
    @rule(error=st.sampled_from([IO_ERROR, NO_ROOM, LOCKED]), after=st.integers(0, 8), turns=st.integers(1, 3))
    def disk_fails(self, error: Exception, after: int, turns: int) -> None:
        self.b.fail(error, after)
        for _ in range(turns):
            self.turn()
        self.b.heal()

    @precondition(lambda self: self.b.session.is_open)
    @rule(after=st.integers(0, 8))
    def damage(self, after: int) -> None:
        self.b.fail(DAMAGE, after)
        self.turn()
        self.b.heal()

    @precondition(lambda self: self.b.session.is_open)
    @rule(after=st.integers(0, 12))
    def crash(self, after: int) -> None:
        """The process dies in the middle of a transaction, if one is made."""
        self.b.fail(Crash(), after)  # type: ignore[arg-type]
        with contextlib.suppress(Crash):
            self.turn()
        self.die()

    @rule()
    def die(self) -> None:
        self.b.heal()
        # Nobody learns any more whether what is under way arrives.
        self.life += 1
        self.earlier.update(self.b.heard.lost)
        for known in self.known.values():
            if not known.is_promised and known.life < self.life:
                known.group = None
        folder = Path(self.folder.name) / str(self.life)
        if self.path.parent.exists():
            self.path = self.b.crash(folder)
        else:
            self.b.abandon()
            self.path = folder / "spool.db"
        self.start()

    @rule()
    def restart(self) -> None:
        """The client is closed, and another one takes its place."""
        for batch in self.flying:
            self.land(batch, AGAIN)
        self.turn()
        self.b.close()
        self.b.check()
        assert self.b.buffer.unwritten == 0
        self.life += 1
        self.earlier.update(self.b.heard.lost)
        self.start()

    @invariant()
    def law(self) -> None:
        if self.bench is not None:
            self.b.check()
            heard, stats = self.b.heard, self.b.queue.stats()
            counted = stats.failed + stats.dropped + stats.uncertain
            told = sum(heard.reasons.values())
            # What was dropped unread is told once it has been read.
            assert told <= counted
            for barrier in self.barriers:
                assert barrier.pending >= 0

    # The end

    def drain(self) -> None:
        """With a sound disk and a sound server everything comes to its end."""
        b = self.b
        b.heal()
        for _ in range(400):
            for batch in [*self.flying]:
                self.land(batch, Delivered())
            self.flying.clear()
            b.now += 400.0
            self.turn()
            self.send(10)
            if not b.queue.pending and not self.flying and not b.journal._has_more():
                break
        self.turn()
        b.check()
        stats = b.queue.stats()
        assert stats.pending == 0, "something never comes to its end"
        assert b.buffer.bytes_being_freed == 0
        assert b.rows() == {}, "rows are left of what has ended"
        for barrier in self.barriers:
            assert barrier.pending == 0, "a flush waits for ever"
        told = sum(b.heard.reasons.values())
        assert told == stats.failed + stats.dropped + stats.uncertain
        lost = self.earlier + b.heard.lost
        for known in self.known.values():
            copies = known.delivered
            if known.is_refused:
                assert copies == 0, "delivered although it was refused"
                continue
            is_lost = lost[bytes(known.item)] > 0
            if known.life == self.life or known.is_promised:
                assert copies or is_lost or known.may_be_applied or b.heard.bare, "gone without a word"
            if known.once and not self.policy.at_least_once:
                assert copies <= 1, "applied twice"
        b.close()
        assert [file.name for file in self.path.parent.iterdir() if "-owner-" in file.name] == []


QUICK = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)


@pytest.fixture(autouse=True)
def silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of lines say nothing that the assertions do not."""
    monkeypatch.setattr(logging.getLogger("mixpanel_async"), "disabled", True)


def test_whatever_happens_every_record_ends_in_one_place() -> None:
    run_state_machine_as_test(SpoolModel, settings=QUICK)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_whatever_happens_every_record_ends_in_one_place_at_length() -> None:
    run_state_machine_as_test(SpoolModel, settings=settings(QUICK, max_examples=5_000, derandomize=False))
