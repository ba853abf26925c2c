"""Model-based test of queue, writer and database.

Records are offered, sent, lost and evicted in any order while the disk fails, fills up or is damaged and the process
dies.
"""

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
from spool_harness import DAMAGE, DISK_FULL, IO_ERROR, LOCKED, SpoolHarness, fast_folder, record, spooled

from mixpanel_async._delivery.batch import Batch, FlushBarrier
from mixpanel_async._model.config import BatchPolicy, Overflow
from mixpanel_async._model.errors import FailedRecord, QueueFullError
from mixpanel_async._model.outcomes import ConfigurationRefused, Delivered, Outcome, PartialFailure, Retry, SplitBatch
from mixpanel_async._model.records import DropReason, RecordKind
from mixpanel_async._spool.messages import CommitGroup

KINDS = [RecordKind.EVENTS, RecordKind.PEOPLE, RecordKind.IMPORTS]
AGAIN = Retry(message="not now", applied=False, status=503)
UNKNOWN = Retry(message="no answer", applied=True)
UNAUTHORIZED = ConfigurationRefused(status=401, message="wrong credentials")
INVALID = SplitBatch(reason=DropReason.REJECTED, status=400, message="something is wrong")
PARTIAL = PartialFailure(
    failed=(FailedRecord(index=0, field="properties.x", message="is odd"),), status=400, message="one failed"
)


class Crash(BaseException):
    """Simulated death of the process."""


@dataclass(eq=False)
class ModelRecord:
    """State of one record in the model."""

    item: bytes
    kind: RecordKind
    number: int
    once: bool
    group: CommitGroup | None
    process_number: int
    sent_in: list[int] = field(default_factory=list)
    """Processes in which it was sent."""
    may_be_applied: bool = False
    delivered: int = 0

    @property
    def is_promised(self) -> bool:
        """Whether a caller has seen that it is on disk."""
        return self.group is not None and self.group.is_done and self.group.error is None

    @property
    def is_refused(self) -> bool:
        return self.group is not None and self.group.is_done and self.group.error is not None


class SpoolModel(RuleBasedStateMachine):
    """State machine: every record is settled once, and records on disk survive the process, whatever the disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=fast_folder())
        self.process_number = 0
        self._harness: SpoolHarness | None = None

    def teardown(self) -> None:
        try:
            if self._harness is not None:
                self.drain()
        finally:
            if self._harness is not None:
                self._harness.abandon()
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
        self.known: dict[int, ModelRecord] = {}
        self.in_flight: list[Batch] = []
        self.barriers: list[FlushBarrier] = []
        self.now = 1_000.0
        self.file_was_replaced = False
        self.lost_before: Counter[bytes] = Counter()
        """Records reported as lost by lost_before processes."""
        self.start()

    def start(self) -> None:
        self._harness = SpoolHarness(
            self.path,
            batching=self.policy,
            overflow=self.overflow,
            max_records=self.max_records,
            now=self.now,
        )
        self.now += 100.0
        self.in_flight, self.barriers = [], []
        self.last_sent: dict[RecordKind, int] = {}

    @property
    def harness(self) -> SpoolHarness:
        assert self._harness is not None
        return self._harness

    # Rules

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
            before = self.harness.recorder.lost[bytes(item)]
            try:
                group = self.harness.offer(item, kind, awaited=awaited)
            except QueueFullError:
                assert self.overflow is Overflow.RAISE
                return
            assert not before
            self.known[number] = ModelRecord(item, kind, number, once, group, self.process_number)

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.run_step()

    def run_step(self) -> None:
        was = self.harness.session._database
        inode = was.inode if was is not None else None
        self.harness.step()
        now = self.harness.session._database
        self.file_was_replaced |= now is not None and inode is not None and now.inode != inode

    @rule(times=st.integers(1, 4))
    def send(self, times: int) -> None:
        for _ in range(times):
            batch = self.harness.take()
            if batch is None:
                return
            self.check_lease(batch)
            group = self.harness.mark(batch)
            if group is not None:
                self.run_step()
                if group.error is not None or not group.marks_written or not group.is_done:
                    self.harness.settle(batch, AGAIN)
                    continue
            batch.is_request_begun = True
            for known in self.of(batch):
                known.sent_in.append(self.process_number)
                known.may_be_applied = known.once and not self.policy.at_least_once
            self.in_flight.append(batch)

    def of(self, batch: Batch) -> list[ModelRecord]:
        return [self.known[orjson.loads(memoryview(item))["n"]] for item in batch.items]

    def check_lease(self, batch: Batch) -> None:
        found = self.of(batch)
        assert found
        on_disk = (
            set(self.harness.rows().values())
            if not self.harness.session.is_open or self.harness.session._damaged_inode == 0
            else None
        )
        for known in found:
            assert not known.is_refused, "sent although its caller got an error"
            assert not known.may_be_applied, "sent twice although it may have been applied"
            assert self.harness.recorder.lost[bytes(known.item)] == 0, "sent although it was reported as lost"
            assert known.delivered == 0 or known.process_number < self.process_number or self.file_was_replaced, (
                "sent again"
            )
            if on_disk is not None and not self.file_was_replaced:
                assert spooled(known.item) in on_disk, "sent before it was on disk"
        if (
            batch.lane.kind is RecordKind.PEOPLE
            and batch.attempts == 1
            and not self.file_was_replaced
            and self.process_number == 0
        ):
            assert [known.number for known in found] == sorted(known.number for known in found)
            assert found[0].number > self.last_sent.get(RecordKind.PEOPLE, -1), "out of order"
            self.last_sent[RecordKind.PEOPLE] = found[-1].number

    @precondition(lambda self: self.in_flight)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(
            [Delivered(), Delivered(), Delivered(), AGAIN, UNKNOWN, UNAUTHORIZED, INVALID, PARTIAL]
        ),
    )
    def settle(self, data: st.DataObject, outcome: Outcome) -> None:
        batch = self.in_flight.pop(data.draw(st.integers(0, len(self.in_flight) - 1)))
        self.settle_batch(batch, outcome)

    def settle_batch(self, batch: Batch, outcome: Outcome) -> None:
        for at, known in enumerate(self.of(batch)):
            if isinstance(outcome, Delivered) or (isinstance(outcome, PartialFailure) and at):
                known.delivered += 1
            # These outcomes mean that the record was not applied.
            elif outcome in {AGAIN, UNAUTHORIZED}:
                known.may_be_applied = False
        self.harness.settle(batch, outcome)

    @rule()
    def loop_ends(self) -> None:
        """The event loop ends with batches in flight."""
        self.in_flight.clear()
        self.harness.queue.reclaim()

    @rule()
    def flush(self) -> None:
        self.barriers.append(self.harness.queue.barrier())

    @rule(seconds=st.sampled_from([1.0, 11.0]))
    def pass_time(self, seconds: float) -> None:
        self.harness.now += seconds
        self.now = max(self.now, self.harness.now)

    @precondition(lambda self: self.harness.session.is_open)
    @rule(error=st.sampled_from([IO_ERROR, DISK_FULL, LOCKED]), after=st.integers(0, 8), steps=st.integers(1, 3))
    def disk_fails(self, error: Exception, after: int, steps: int) -> None:
        self.harness.fail(error, after)
        for _ in range(steps):
            self.run_step()
        self.harness.heal()

    @precondition(lambda self: self.harness.session.is_open)
    @rule(after=st.integers(0, 8))
    def damage(self, after: int) -> None:
        self.harness.fail(DAMAGE, after)
        self.run_step()
        self.harness.heal()

    @precondition(lambda self: self.harness.session.is_open)
    @rule(after=st.integers(0, 12))
    def crash(self, after: int) -> None:
        """The process dies during a transaction, if there is one."""
        self.harness.fail(Crash(), after)  # type: ignore[arg-type]
        with contextlib.suppress(Crash):
            self.run_step()
        self.die()

    @rule()
    def die(self) -> None:
        self.harness.heal()
        # Outcomes of the requests in flight are lost.
        self.process_number += 1
        self.lost_before.update(self.harness.recorder.lost)
        for known in self.known.values():
            if not known.is_promised and known.process_number < self.process_number:
                known.group = None
        folder = Path(self.folder.name) / str(self.process_number)
        if self.path.parent.exists():
            self.path = self.harness.crash(folder)
        else:
            self.harness.abandon()
            self.path = folder / "spool.db"
        self.start()

    @rule()
    def restart(self) -> None:
        """The client is closed and another one starts."""
        for batch in self.in_flight:
            self.settle_batch(batch, AGAIN)
        self.run_step()
        self.harness.close()
        self.harness.check()
        assert self.harness.disk.unwritten == 0
        self.process_number += 1
        self.lost_before.update(self.harness.recorder.lost)
        self.start()

    @invariant()
    def conservation(self) -> None:
        if self._harness is not None:
            self.harness.check()
            recorder, stats = self.harness.recorder, self.harness.queue.stats()
            counted = stats.failed + stats.dropped + stats.uncertain
            reported = sum(recorder.reasons.values())
            # Records evicted on disk are reported later, once they have been read.
            assert reported <= counted
            for barrier in self.barriers:
                assert barrier.pending >= 0

    # Teardown

    def drain(self) -> None:
        """Check that every record is settled once disk and server work."""
        harness = self.harness
        harness.heal()
        for _ in range(400):
            for batch in [*self.in_flight]:
                self.settle_batch(batch, Delivered())
            self.in_flight.clear()
            harness.now += 400.0
            self.run_step()
            self.send(10)
            if not harness.queue.pending and not self.in_flight and not harness.writer._has_more():
                break
        self.run_step()
        harness.check()
        stats = harness.queue.stats()
        assert stats.pending == 0, "some records are never settled"
        assert harness.disk.bytes_being_freed == 0
        assert harness.rows() == {}, "rows of settled records were not deleted"
        for barrier in self.barriers:
            assert barrier.pending == 0, "a flush never returns"
        reported = sum(harness.recorder.reasons.values())
        assert reported == stats.failed + stats.dropped + stats.uncertain
        lost = self.lost_before + harness.recorder.lost
        for known in self.known.values():
            copies = known.delivered
            if known.is_refused:
                assert copies == 0, "delivered although its caller got an error"
                continue
            is_lost = lost[bytes(known.item)] > 0
            if known.process_number == self.process_number or known.is_promised:
                assert copies or is_lost or known.may_be_applied or harness.recorder.without_items, (
                    "lost without a report"
                )
            if known.once and not self.policy.at_least_once:
                assert copies <= 1, "applied twice"
        harness.close()
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
def disable_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable logging: thousands of log lines would slow down the model."""
    monkeypatch.setattr(logging.getLogger("mixpanel_async"), "disabled", True)


def test_every_record_is_settled_once() -> None:
    run_state_machine_as_test(SpoolModel, settings=QUICK)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_record_is_settled_once_in_5_000_runs() -> None:
    run_state_machine_as_test(SpoolModel, settings=settings(QUICK, max_examples=5_000, derandomize=False))
