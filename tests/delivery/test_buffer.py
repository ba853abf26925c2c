"""Rules of the buffer and the queue. The tests pass the time as plain numbers."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

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
    SignalCounter,
    body,
    failure,
    lost,
    pruned,
    records,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._client.factory import max_in_flight
from mixpanel_async._delivery.batch import Batch
from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._delivery.callbacks import Callbacks
from mixpanel_async._delivery.lanes import IDLE, Lane, WaitUntil
from mixpanel_async._delivery.offers import OfferResult
from mixpanel_async._delivery.queue import Queue
from mixpanel_async._delivery.staging import StagingBuffer
from mixpanel_async._encoding.batch_body import sizes_of
from mixpanel_async._encoding.clock import Moment
from mixpanel_async._model.config import BatchPolicy, Overflow, RetryPolicy
from mixpanel_async._model.credentials import Secret
from mixpanel_async._model.errors import ClientClosedError, QueueFullError
from mixpanel_async._model.outcomes import ConfigurationRefused, Delivered, Outcome, SplitBatch
from mixpanel_async._model.records import DropReason, Loss, NonIdempotentRecord, RecordKind
from mixpanel_async._model.stats import FlushResult

FOREVER = 3600.0


def make(retry: RetryPolicy = RetryPolicy(), /, **policy: Any) -> tuple[Buffer, Lane]:  # noqa: B008  it is frozen
    """Return a buffer and its lane for events. By default only a full batch is sent without a flush."""
    buffer = Buffer(BatchPolicy(**{"linger": FOREVER, **policy}), retry)
    return buffer, buffer.lane(RecordKind.EVENTS)


def offer_all(buffer: Buffer, lane: Lane, items: Iterable[bytes], now: float = 0.0) -> None:
    for item in items:
        assert buffer.offer(lane, item, now) is not OfferResult.FULL


def lease(buffer: Buffer, now: float = 0.0) -> Batch:
    step = buffer.poll(now)
    assert isinstance(step, Batch)
    return step


def lease_all(buffer: Buffer, now: float = 0.0) -> list[Batch]:
    batches = []
    while isinstance(step := buffer.poll(now), Batch):
        batches.append(step)
    return batches


def waits_until(buffer: Buffer, now: float) -> float:
    step = buffer.poll(now)
    assert isinstance(step, WaitUntil)
    return step.at


def counts(buffer: Buffer) -> tuple[int, int, int, int, int, int]:
    """Return the numbers of accepted, delivered, failed, dropped, uncertain and pending records."""
    return (
        buffer.accounting.accepted,
        buffer.accounting.delivered,
        buffer.accounting.failed,
        buffer.accounting.dropped,
        buffer.accounting.uncertain,
        buffer.accounting.pending,
    )


def serve(
    buffer: Buffer, answer: Callable[[Batch], Outcome], *, now: float = 0.0, most: int = 10_000
) -> tuple[list[list[bytes]], list[Loss]]:
    """Settle every request until nothing may be sent now. Return the requests and the losses."""
    requests: list[list[bytes]] = []
    losses: list[Loss] = []
    while isinstance(batch := buffer.poll(now), Batch):
        requests.append(list(batch.items))
        assert len(requests) <= most, "the requests do not end"
        losses += buffer.settle(batch, answer(batch), now)
    return requests, losses


# Batching


def test_single_record_is_sent_after_linger() -> None:
    buffer, lane = make(linger=1.0)
    buffer.offer(lane, b"one", 10.0)
    assert waits_until(buffer, 10.0) == 11.0
    assert waits_until(buffer, 10.999) == 11.0
    assert lease(buffer, 11.0).items == [b"one"]


def test_linger_starts_with_the_first_record_of_a_batch() -> None:
    buffer, lane = make(linger=1.0)
    offer_all(buffer, lane, [b"one"], 10.0)
    offer_all(buffer, lane, [b"two"], 10.9)
    assert waits_until(buffer, 10.9) == 11.0
    assert lease(buffer, 11.0).items == [b"one", b"two"]
    offer_all(buffer, lane, [b"three"], 11.0)
    assert waits_until(buffer, 11.0) == 12.0


def test_record_is_sent_immediately_without_linger() -> None:
    buffer, lane = make(linger=0.0)
    buffer.offer(lane, b"one", 5.0)
    assert lease(buffer, 5.0).items == [b"one"]


def test_batch_is_sent_when_full_by_count() -> None:
    buffer, lane = make(max_events=3)
    items = records(7)
    offer_all(buffer, lane, items)
    assert [batch.items for batch in lease_all(buffer)] == [items[:3], items[3:6]]
    assert waits_until(buffer, 0.0) == FOREVER


def test_every_record_is_sent_immediately_with_max_events_1() -> None:
    buffer, lane = make(max_events=1)
    assert buffer.offer(lane, b"one", 0.0) is OfferResult.WAKE_SENDER
    assert lease(buffer).items == [b"one"]


def test_batch_is_sent_when_the_next_record_exceeds_its_bytes() -> None:
    items = records(3, size=10)
    buffer, lane = make(max_bytes=30)
    offer_all(buffer, lane, items)
    assert lease(buffer).items == items[:2]
    assert waits_until(buffer, 0.0) == FOREVER


def test_body_of_exactly_max_bytes_is_one_request() -> None:
    items = records(3, size=10)
    buffer, lane = make(max_bytes=body(items), max_events=3)
    offer_all(buffer, lane, items)
    assert lease(buffer).items == items


def test_body_over_max_bytes_becomes_two_requests() -> None:
    items = records(3, size=10)
    buffer, lane = make(max_bytes=body(items) - 1)
    offer_all(buffer, lane, items)
    assert lease(buffer).items == items[:2]


def test_batch_size_equals_body_size() -> None:
    buffer, lane = make(max_events=4)
    items = records(4)
    offer_all(buffer, lane, items)
    batch = lease(buffer)
    assert batch.size == body(items)
    assert batch.subset((0,)).size == body(items[:1])


def test_record_larger_than_max_bytes_is_sent_alone() -> None:
    buffer, lane = make(max_bytes=20)
    items = [b"small", b"L" * 100, b"next"]
    offer_all(buffer, lane, items)
    assert [batch.items for batch in lease_all(buffer)] == [[b"small"], [b"L" * 100]]
    assert waits_until(buffer, 0.0) == FOREVER


def test_empty_buffer_is_idle() -> None:
    buffer, lane = make()
    assert buffer.poll(0.0) is IDLE
    offer_all(buffer, lane, [b"one"])
    buffer.barrier()
    lease(buffer)
    assert buffer.poll(0.0) is IDLE


def test_sender_is_woken_by_the_first_record_and_by_a_full_batch_only() -> None:
    buffer, lane = make(max_events=3)
    verdicts = [buffer.offer(lane, item, 0.0) for item in records(4)]
    assert verdicts == [OfferResult.WAKE_SENDER, OfferResult.ACCEPTED, OfferResult.WAKE_SENDER, OfferResult.WAKE_SENDER]


def test_sender_is_woken_by_a_batch_that_is_full_by_bytes() -> None:
    buffer, lane = make(max_bytes=30)
    verdicts = [buffer.offer(lane, item, 0.0) for item in records(3, size=10)]
    assert verdicts == [OfferResult.WAKE_SENDER, OfferResult.ACCEPTED, OfferResult.WAKE_SENDER]


# Bounds


def test_queue_full_by_count_rejects_a_record() -> None:
    buffer, lane = make(max_pending_events=2)
    offer_all(buffer, lane, records(2))
    assert buffer.is_full(0)
    assert buffer.offer(lane, b"three", 0.0) is OfferResult.FULL
    assert counts(buffer) == (2, 0, 0, 0, 0, 2)


def test_queue_full_by_bytes_rejects_large_and_accepts_small_records() -> None:
    buffer, lane = make(max_pending_bytes=20)
    offer_all(buffer, lane, [b"x" * 15])
    assert buffer.is_full(6)
    assert buffer.offer(lane, b"y" * 6, 0.0) is OfferResult.FULL
    assert not buffer.is_full(5)
    assert buffer.offer(lane, b"z" * 5, 0.0) is not OfferResult.FULL
    assert buffer.accounting.pending_bytes == 20


@pytest.mark.parametrize("bound", [{"max_pending_events": 2}, {"max_pending_bytes": 16}], ids=["count", "bytes"])
def test_records_in_flight_stay_charged_until_settled(bound: dict[str, int]) -> None:
    buffer, lane = make(max_events=2, **bound)
    offer_all(buffer, lane, records(2))
    batch = lease(buffer)
    assert buffer.offer(lane, b"01234567", 0.0) is OfferResult.FULL
    buffer.settle(batch, Delivered(), 0.0)
    assert (buffer.accounting.pending, buffer.accounting.pending_bytes) == (0, 0)
    assert buffer.offer(lane, b"01234567", 0.0) is not OfferResult.FULL


def test_queue_full_by_count_does_not_linger() -> None:
    buffer, lane = make(max_pending_events=3)
    people = buffer.lane(RecordKind.PEOPLE)
    offer_all(buffer, people, [b"p"])
    offer_all(buffer, lane, [b"one"])
    assert waits_until(buffer, 0.0) == FOREVER
    assert buffer.offer(lane, b"two", 0.0) is OfferResult.WAKE_SENDER
    assert sorted([*batch.items] for batch in lease_all(buffer)) == [[b"one", b"two"], [b"p"]]


def test_queue_of_one_record_does_not_linger() -> None:
    buffer, lane = make(max_pending_events=1)
    assert buffer.offer(lane, b"one", 0.0) is OfferResult.WAKE_SENDER
    assert lease(buffer).items == [b"one"]


def test_queue_full_by_bytes_does_not_linger() -> None:
    buffer, lane = make(max_pending_bytes=10)
    offer_all(buffer, lane, [b"sixteen"])
    assert waits_until(buffer, 0.0) == FOREVER
    assert buffer.offer(lane, b"four", 0.0) is OfferResult.FULL
    assert lease(buffer).items == [b"sixteen"]


def test_queue_does_not_linger_after_eviction() -> None:
    buffer, lane = make(max_pending_bytes=10)
    offer_all(buffer, lane, [b"aaaa", b"bbbb"])
    assert buffer.offer(lane, b"cccc", 0.0) is OfferResult.FULL
    assert lost(buffer.evict(4)) == {b"aaaa": DropReason.QUEUE_FULL}
    buffer.offer(lane, b"cccc", 0.0)
    assert lease(buffer).items == [b"bbbb", b"cccc"]


def test_queue_lingers_again_once_it_has_room() -> None:
    buffer, lane = make(max_pending_events=2)
    offer_all(buffer, lane, records(2))
    buffer.settle(lease(buffer), Delivered(), 0.0)
    offer_all(buffer, lane, [b"one"])
    assert waits_until(buffer, 0.0) == FOREVER


# Lanes


def test_events_are_sent_in_parallel_up_to_max_in_flight() -> None:
    buffer, lane = make(max_events=1, max_in_flight=3)
    offer_all(buffer, lane, records(5))
    batches = lease_all(buffer)
    assert len(batches) == buffer.in_flight == 3
    buffer.settle(batches[0], Delivered(), 0.0)
    assert len(lease_all(buffer)) == 1


@pytest.mark.parametrize("secret", [None, Secret("s")])
def test_imports_do_not_use_the_request_slots_of_events(secret: Secret | None) -> None:
    buffer, events = make(max_events=1, max_in_flight=2)
    offer_all(buffer, events, records(3))
    offer_all(buffer, buffer.lane(RecordKind.IMPORTS, secret), records(3))
    assert Counter(batch.lane.kind for batch in lease_all(buffer)) == {RecordKind.EVENTS: 2, RecordKind.IMPORTS: 2}


@pytest.mark.parametrize("kind", ORDERED)
def test_profile_updates_are_sent_one_request_at_a_time_in_order(kind: RecordKind) -> None:
    buffer, _ = make(max_events=2, max_in_flight=4)
    items = records(6)
    offer_all(buffer, buffer.lane(kind), items)
    first = lease(buffer)
    assert buffer.poll(0.0) is IDLE
    buffer.settle(first, AGAIN, 0.0, 0.0)
    requests, _losses = serve(buffer, lambda _: Delivered())
    assert requests == [items[:2], items[2:4], items[4:]]


def test_paused_lane_does_not_block_another_lane() -> None:
    buffer, events = make(max_events=1)
    people = buffer.lane(RecordKind.PEOPLE)
    offer_all(buffer, events, [b"event"])
    buffer.settle(lease(buffer), AGAIN, 0.0, 100.0)
    offer_all(buffer, people, [b"person"])
    assert lease(buffer).items == [b"person"]
    assert waits_until(buffer, 0.0) == 100.0


def test_wait_ends_with_the_first_lane_that_may_send() -> None:
    buffer, events = make(max_events=1, linger=50.0)
    people, groups = buffer.lane(RecordKind.PEOPLE), buffer.lane(RecordKind.GROUPS)
    for lane, delay in ((events, 30.0), (people, 10.0), (groups, 20.0)):
        offer_all(buffer, lane, [b"x"])
        buffer.settle(lease(buffer), AGAIN, 0.0, delay)
    assert waits_until(buffer, 0.0) == 10.0


def test_lingering_batch_in_a_paused_lane_waits_for_both_times() -> None:
    buffer, lane = make(RetryPolicy(attempts=1), linger=5.0)
    offer_all(buffer, lane, [b"lost"])
    buffer.settle(lease(buffer, 5.0), AGAIN, 5.0, 2.0)
    offer_all(buffer, lane, [b"next"], 6.0)
    assert waits_until(buffer, 6.0) == 11.0
    buffer.settle(lease(buffer, 11.0), AGAIN, 11.0, 30.0)
    offer_all(buffer, lane, [b"last"], 12.0)
    assert waits_until(buffer, 12.0) == 41.0
    assert lease(buffer, 41.0).items == [b"last"]


def test_busy_lane_does_not_starve_the_others() -> None:
    buffer, events = make(max_events=1, max_in_flight=100)
    people, groups = buffer.lane(RecordKind.PEOPLE), buffer.lane(RecordKind.GROUPS)
    offer_all(buffer, events, records(50))
    offer_all(buffer, people, records(1))
    offer_all(buffer, groups, records(1))
    first_three = [lease(buffer).lane for _ in range(3)]
    assert set(first_three) == {events, people, groups}


def test_awaited_events_do_not_use_the_slots_of_queued_events() -> None:
    buffer, lane = make(max_events=1, max_in_flight=2)
    for item in records(5):
        assert buffer.lease_single(lane, item, 0.0)
    offer_all(buffer, lane, records(2, start=5))
    assert len(lease_all(buffer)) == 2


def test_imports_with_different_secrets_share_the_import_slots() -> None:
    """`max_in_flight` limits the requests for events, and separately those for imports."""
    buffer, _ = make(max_events=1, max_in_flight=2)
    for number in range(10):
        offer_all(buffer, buffer.lane(RecordKind.IMPORTS, Secret(str(number))), records(3))
    assert len(lease_all(buffer)) == 2


def test_imports_with_many_secrets_do_not_block_other_kinds() -> None:
    """A failure of one kind does not delay another: each of these requests may hang until its timeout."""
    buffer, events = make(max_events=1, max_in_flight=2)
    for number in range(10):
        offer_all(buffer, buffer.lane(RecordKind.IMPORTS, Secret(str(number))), records(3))
    lease_all(buffer)
    for lane in (events, buffer.lane(RecordKind.PEOPLE), buffer.lane(RecordKind.GROUPS)):
        offer_all(buffer, lane, records(1))
        assert lease(buffer).lane is lane


def test_only_equal_secrets_share_a_lane() -> None:
    buffer, _ = make()
    one = buffer.lane(RecordKind.IMPORTS, Secret("one"))
    assert buffer.lane(RecordKind.IMPORTS, Secret("one")) is one
    assert buffer.lane(RecordKind.IMPORTS, Secret("two")) is not one
    assert buffer.lane(RecordKind.IMPORTS) is not one


def test_lanes_of_unused_secrets_are_removed() -> None:
    buffer, events = make(max_events=1)
    for number in range(300):
        offer_all(buffer, buffer.lane(RecordKind.IMPORTS, Secret(str(number))), records(1))
        buffer.settle(lease(buffer), Delivered(), 0.0)
    assert len(buffer.lanes) < 100
    assert buffer.lane(RecordKind.EVENTS) is events


def test_lane_in_use_is_not_removed() -> None:
    buffer, _ = make(max_events=2)
    used = {}
    for name in ("flying", "alone", "waiting"):
        lane = used[name] = buffer.lane(RecordKind.IMPORTS, Secret(name))
        offer_all(buffer, lane, [b"w"] if name == "waiting" else records(2))
    assert {lease(buffer).lane, lease(buffer).lane} == {used["flying"], used["alone"]}
    for number in range(300):
        buffer.lane(RecordKind.IMPORTS, Secret(str(number)))
    for name, lane in used.items():
        assert buffer.lane(RecordKind.IMPORTS, Secret(name)) is lane


def test_record_for_a_removed_lane_is_not_lost() -> None:
    """A caller may keep a lane while it waits for room, and other secrets are used in the meantime."""
    buffer, _ = make(max_events=1)
    held = buffer.lane(RecordKind.IMPORTS, Secret("one"))
    buffer.lane(RecordKind.IMPORTS, Secret("two"))
    offer_all(buffer, held, [b"record"])
    batch = lease(buffer)
    assert ([*batch.items], batch.lane.secret) == ([b"record"], Secret("one"))


def test_paused_lane_is_not_removed() -> None:
    buffer, _ = make(RetryPolicy(attempts=1), max_events=1)
    offer_all(buffer, buffer.lane(RecordKind.IMPORTS, Secret("one")), [b"lost"])
    buffer.settle(lease(buffer), AGAIN, 0.0, 300.0)
    assert buffer.poll(0.0) is IDLE
    for number in range(300):
        buffer.lane(RecordKind.IMPORTS, Secret(str(number)))
    offer_all(buffer, buffer.lane(RecordKind.IMPORTS, Secret("one")), [b"next"])
    assert waits_until(buffer, 0.0) == 300.0


# Outcomes


def test_delivered_records_are_counted_and_released() -> None:
    buffer, lane = make(max_events=3)
    offer_all(buffer, lane, records(3))
    assert buffer.settle(lease(buffer), Delivered(), 0.0) == []
    assert counts(buffer) == (3, 3, 0, 0, 0, 0)
    assert (buffer.accounting.pending_bytes, buffer.in_flight, buffer.accounting.losses) == (0, 0, {})


def test_partial_failure_fails_the_named_records_and_delivers_the_others() -> None:
    buffer, lane = make(max_events=5)
    items = records(5)
    offer_all(buffer, lane, items)
    (loss,) = buffer.settle(lease(buffer), pruned(1, 4), 0.0)
    assert (loss.kind, loss.reason) == (RecordKind.EVENTS, DropReason.REJECTED)
    assert list(loss.items) == [items[1], items[4]]
    assert loss.details == (failure(1), failure(4))
    assert counts(buffer) == (5, 3, 2, 0, 0, 0)
    assert buffer.accounting.losses == {DropReason.REJECTED: 2}
    assert buffer.poll(1e9) is IDLE


def test_refused_records_are_counted_as_failed() -> None:
    buffer, lane = make(max_events=2)
    offer_all(buffer, lane, records(2))
    (loss,) = buffer.settle(lease(buffer), REFUSED, 0.0)
    assert (loss.reason, loss.message, len(loss.items)) == (DropReason.REJECTED, "no", 2)
    assert counts(buffer) == (2, 0, 2, 0, 0, 0)


def test_refused_configuration_keeps_records_and_probes_after_the_pause() -> None:
    buffer, lane = make(RetryPolicy(attempts=1, total_timeout=1.0), max_events=2)
    items = records(4)
    offer_all(buffer, lane, items)
    first, second = lease_all(buffer)
    for batch in (second, first):
        assert buffer.settle(batch, CONFIGURATION_REFUSED, 0.0, 60.0) == []
    assert counts(buffer) == (4, 0, 0, 0, 0, 4)
    assert waits_until(buffer, 0.0) == 60.0
    assert [batch.items for batch in lease_all(buffer, 60.0)] == [items[:2]]


def test_retried_batch_keeps_its_records_and_goes_first() -> None:
    buffer, lane = make(max_events=2)
    items = records(4)
    offer_all(buffer, lane, items)
    buffer.settle(lease(buffer), AGAIN, 0.0, 3.0)
    assert waits_until(buffer, 0.0) == 3.0
    again = lease(buffer, 3.0)
    assert ([*again.items], again.attempts) == (items[:2], 2)


def test_failing_lane_sends_one_probe_at_a_time() -> None:
    buffer, lane = make(max_events=1, max_in_flight=3)
    offer_all(buffer, lane, records(6))
    for batch in lease_all(buffer):
        buffer.settle(batch, AGAIN, 0.0, 1.0)
    (probe,) = lease_all(buffer, 1.0)
    buffer.settle(probe, AGAIN, 1.0, 2.0)
    (probe,) = lease_all(buffer, 3.0)
    buffer.settle(probe, Delivered(), 3.0)
    assert len(lease_all(buffer, 3.0)) == 3


@pytest.mark.parametrize("outcome", [Delivered(), pruned(0), REFUSED, TOO_LARGE, INVALID])
def test_conclusive_response_ends_the_failure_of_a_lane(outcome: Outcome) -> None:
    buffer, lane = make(max_events=2, max_in_flight=3)
    offer_all(buffer, lane, records(10))
    buffer.settle(lease(buffer), AGAIN, 0.0, 1.0)
    buffer.settle(lease(buffer, 1.0), outcome, 1.0)
    assert len(lease_all(buffer, 1.0)) == 3


def test_parallel_failed_requests_count_as_one_failure() -> None:
    buffer, lane = make(max_events=1, max_in_flight=4)
    offer_all(buffer, lane, records(4))
    for batch in lease_all(buffer):
        buffer.settle(batch, AGAIN, 0.0, 1.0)
    probe = lease(buffer, 1.0)
    assert probe.failure_epoch == 1
    buffer.settle(probe, AGAIN, 1.0, 1.0)
    assert lease(buffer, 2.0).failure_epoch == 2


def test_retry_after_is_kept_when_another_request_succeeds() -> None:
    buffer, lane = make(max_events=1, max_in_flight=2)
    offer_all(buffer, lane, records(3))
    limited, fine = lease_all(buffer)
    buffer.settle(limited, AGAIN._replace(retry_after=300.0), 0.0, 300.0)
    buffer.settle(fine, Delivered(), 1.0)
    assert waits_until(buffer, 1.0) == 300.0
    buffer.shorten_backoff(2.0)
    assert waits_until(buffer, 1.0) == 300.0


def test_success_ends_a_backoff() -> None:
    buffer, lane = make(max_events=1, max_in_flight=2)
    offer_all(buffer, lane, records(3))
    failed, fine = lease_all(buffer)
    buffer.settle(failed, AGAIN, 0.0, 60.0)
    buffer.settle(fine, Delivered(), 1.0)
    assert len(lease_all(buffer, 1.0)) == 2


def test_flush_shortens_a_backoff_to_the_probe_interval() -> None:
    buffer, lane = make(max_events=1)
    offer_all(buffer, lane, records(1))
    buffer.settle(lease(buffer), AGAIN, 10.0, 60.0)
    assert waits_until(buffer, 10.0) == 70.0
    buffer.shorten_backoff(2.0)
    assert waits_until(buffer, 10.0) == 12.0


def test_refused_credentials_are_probed_once_early() -> None:
    buffer, lane = make(max_events=1)
    offer_all(buffer, lane, records(1))
    for now, expected in ((0.0, 2.0), (2.0, 62.0)):
        buffer.settle(lease(buffer, now), ConfigurationRefused(status=401, message=""), now, 60.0)
        buffer.shorten_backoff(0.0)
        assert waits_until(buffer, now) == expected


def test_refused_credentials_do_not_shorten_retry_after() -> None:
    buffer, lane = make(max_events=1, max_in_flight=3)
    offer_all(buffer, lane, records(3))
    limited, refused, fine = lease_all(buffer)
    buffer.settle(limited, AGAIN._replace(retry_after=300.0), 0.0, 300.0)
    buffer.settle(refused, CONFIGURATION_REFUSED, 1.0, 60.0)
    buffer.shorten_backoff(0.0)
    buffer.settle(fine, Delivered(), 2.0)
    assert waits_until(buffer, 2.0) == 300.0


def test_short_pause_does_not_shorten_a_long_one() -> None:
    buffer, lane = make(max_events=1, max_in_flight=2)
    offer_all(buffer, lane, records(2))
    first, second = lease_all(buffer)
    buffer.settle(first, AGAIN, 0.0, 300.0)
    buffer.settle(second, AGAIN, 1.0, 2.0)
    assert waits_until(buffer, 3.0) == 300.0


def test_batch_is_dropped_after_its_last_attempt() -> None:
    buffer, lane = make(RetryPolicy(attempts=3), max_events=2)
    items = records(2)
    offer_all(buffer, lane, items)
    assert buffer.settle(lease(buffer), AGAIN, 0.0) == []
    assert buffer.settle(lease(buffer), AGAIN, 0.0) == []
    (loss,) = buffer.settle(lease(buffer), AGAIN, 0.0)
    assert (loss.reason, loss.message) == (DropReason.EXHAUSTED, "not now")
    assert counts(buffer) == (2, 0, 2, 0, 0, 0)


def test_batch_is_retried_without_end_by_default() -> None:
    buffer, lane = make(max_events=1)
    offer_all(buffer, lane, records(1))
    for _ in range(200):
        assert buffer.settle(lease(buffer), AGAIN, 0.0) == []
    assert buffer.accounting.pending == 1


def test_batch_is_dropped_if_the_next_attempt_exceeds_the_total_timeout() -> None:
    buffer, lane = make(RetryPolicy(total_timeout=10.0), max_events=1)
    offer_all(buffer, lane, [b"one"])
    assert buffer.settle(lease(buffer, 100.0), AGAIN, 101.0, 9.0) == []
    assert lost(buffer.settle(lease(buffer, 110.0), AGAIN, 110.0, 0.001)) == {b"one": DropReason.EXHAUSTED}


def test_total_timeout_starts_with_the_first_attempt() -> None:
    buffer, lane = make(RetryPolicy(total_timeout=10.0), linger=50.0)
    offer_all(buffer, lane, [b"one"], 0.0)
    assert buffer.settle(lease(buffer, 50.0), AGAIN, 55.0, 4.0) == []


def test_batch_is_dropped_if_its_lane_pauses_beyond_the_total_timeout() -> None:
    buffer, lane = make(RetryPolicy(total_timeout=10.0), max_events=1, max_in_flight=2)
    offer_all(buffer, lane, [b"one", b"two"])
    limited, other = lease_all(buffer)
    assert lost(buffer.settle(limited, AGAIN, 0.0, 60.0)) == {b"one": DropReason.EXHAUSTED}
    assert lost(buffer.settle(other, AGAIN, 0.0, 1.0)) == {b"two": DropReason.EXHAUSTED}


@pytest.mark.parametrize("at_least_once", [False, True])
def test_non_idempotent_record_is_resent_only_if_it_was_not_applied(*, at_least_once: bool) -> None:
    buffer, _ = make(max_events=3, at_least_once=at_least_once)
    items = [b"set", NonIdempotentRecord(b"add"), b"union"]
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), items)
    assert buffer.settle(lease(buffer), AGAIN, 0.0) == []
    again = lease(buffer)
    assert again.items == items
    losses = buffer.settle(again, UNKNOWN, 0.0)
    if at_least_once:
        assert losses == []
        assert lease(buffer).items == items
    else:
        assert lost(losses) == {b"add": DropReason.UNCERTAIN}
        assert losses[0].message == "no answer"
        assert lease(buffer).items == [b"set", b"union"]
        assert counts(buffer) == (3, 0, 0, 0, 1, 2)


def test_batch_of_uncertain_records_only_is_not_retried() -> None:
    buffer, _ = make(max_events=2)
    offer_all(buffer, buffer.lane(RecordKind.GROUPS), [NonIdempotentRecord(b"one"), NonIdempotentRecord(b"two")])
    assert len(lost(buffer.settle(lease(buffer), UNKNOWN, 0.0))) == 2
    assert buffer.poll(1e9) is IDLE
    assert counts(buffer) == (2, 0, 0, 0, 2, 0)


def test_uncertain_records_are_not_also_counted_as_exhausted() -> None:
    buffer, _ = make(RetryPolicy(attempts=1), max_events=2)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [NonIdempotentRecord(b"add"), b"set"])
    losses = buffer.settle(lease(buffer), UNKNOWN, 0.0)
    assert lost(losses) == {b"add": DropReason.UNCERTAIN, b"set": DropReason.EXHAUSTED}
    assert counts(buffer) == (2, 0, 1, 0, 1, 0)


# Splitting


def test_413_halves_the_batch_and_keeps_the_order() -> None:
    buffer, _ = make(max_events=5)
    items = records(5)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), items)
    assert buffer.settle(lease(buffer), TOO_LARGE, 0.0) == []
    first = lease(buffer)
    buffer.settle(first, Delivered(), 0.0)
    second = lease(buffer)
    assert ([*first.items], [*second.items]) == (items[:3], items[3:])


def test_413_for_a_single_record_drops_it() -> None:
    buffer, lane = make(max_events=1)
    offer_all(buffer, lane, [b"big"])
    (loss,) = buffer.settle(lease(buffer), TOO_LARGE, 0.0)
    assert (loss.reason, loss.message) == (DropReason.TOO_LARGE, "too large")
    assert counts(buffer) == (1, 0, 1, 0, 0, 0)
    assert buffer.poll(1e9) is IDLE


def test_413_reduces_the_size_limit_of_the_lane() -> None:
    buffer, lane = make(max_events=100, max_in_flight=100)
    offer_all(buffer, lane, records(100, size=2_000))
    refused = lease(buffer)
    buffer.settle(refused, TOO_LARGE, 0.0)
    offer_all(buffer, lane, records(500, size=2_000, start=100))
    halves, batches = [lease(buffer), lease(buffer)], lease_all(buffer)
    assert [len(batch.items) for batch in halves] == [50, 50]
    assert len(batches) > 8
    assert max(body(batch.items) for batch in batches) <= body(refused.items) // 2 + 1
    assert max(len(batch.items) for batch in batches) >= 49, "batches are smaller than necessary"


def test_413_for_a_huge_record_keeps_a_minimum_size_limit() -> None:
    buffer, lane = make(max_events=100)
    offer_all(buffer, lane, [b"x" * 100, b"y"])
    buffer.barrier()
    serve(buffer, lambda batch: TOO_LARGE if b"x" * 100 in batch.items else Delivered())
    offer_all(buffer, lane, records(100, size=600))
    assert len(lease(buffer).items) == 100


def test_413_does_not_change_the_size_limit_of_other_lanes() -> None:
    buffer, events = make(max_events=100)
    people = buffer.lane(RecordKind.PEOPLE)
    for lane in (events, people):
        offer_all(buffer, lane, records(100))
        buffer.settle(lease(buffer), TOO_LARGE if lane is events else Delivered(), 0.0)
        serve(buffer, lambda _: Delivered())
    offer_all(buffer, people, records(100))
    assert len(lease(buffer).items) == 100


def test_repeated_413_never_leads_to_empty_requests() -> None:
    buffer, lane = make(max_events=8, linger=0.0)
    offer_all(buffer, lane, records(8))
    requests, losses = serve(buffer, lambda _: TOO_LARGE)
    assert all(requests)
    assert len(lost(losses)) == 8


def test_size_limit_of_a_lane_expires() -> None:
    """A misconfigured proxy must not cause small requests for the rest of the process."""
    buffer, lane = make(max_events=50, linger=0.0)
    offer_all(buffer, lane, records(50, size=20_000), 100.0)
    serve(buffer, lambda _: TOO_LARGE, now=100.0)
    sizes = []
    for now in (200.0, 3_600.0, 3_800.0, 3_900.0):
        offer_all(buffer, lane, records(50, size=20_000), now)
        requests, _ = serve(buffer, lambda _: Delivered(), now=now)
        sizes.append(max(map(len, requests)))
    assert sizes == [3, 3, 3, 50]


@given(count=st.integers(1, 300), data=st.data(), split=st.sampled_from([TOO_LARGE, INVALID]))
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_bisection_isolates_one_invalid_record_in_few_requests(
    count: int, data: st.DataObject, split: SplitBatch
) -> None:
    buffer, lane = make(max_events=count)
    items = records(count)
    poison = items[data.draw(st.integers(0, count - 1))]
    offer_all(buffer, lane, items)
    requests, losses = serve(buffer, lambda batch: split if poison in batch.items else Delivered())
    assert lost(losses) == {poison: split.reason}
    assert counts(buffer) == (count, count - 1, 1, 0, 0, 0)
    assert len(requests) <= 2 * math.ceil(math.log2(count)) + 1


def test_rejected_profile_batch_may_have_been_applied_in_part() -> None:
    buffer, _ = make(max_events=4)
    items = [b"set", NonIdempotentRecord(b"add"), b"union", b"unset"]
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), items)
    losses = buffer.settle(lease(buffer), INVALID, 0.0)
    assert lost(losses) == {b"add": DropReason.UNCERTAIN}
    requests, losses = serve(buffer, lambda batch: INVALID if b"unset" in batch.items else Delivered())
    assert requests[0] == [b"set", b"union"]
    assert lost(losses) == {b"unset": DropReason.REJECTED}
    assert counts(buffer) == (4, 2, 1, 0, 1, 0)


def test_profile_batch_rejected_with_status_200_was_not_applied() -> None:
    """In Mixpanel's specification of /engage and /groups, 0 means that no record was valid."""
    buffer, _ = make(max_events=2)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [b"set", NonIdempotentRecord(b"add")])
    requests, losses = serve(buffer, lambda batch: NONE_ACCEPTED if b"set" in batch.items else Delivered())
    assert requests[1:] == [[b"set"], [b"add"]]
    assert lost(losses) == {b"set": DropReason.REJECTED}


def test_rejected_batch_keeps_all_records_under_at_least_once() -> None:
    buffer, _ = make(max_events=2, at_least_once=True)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [b"set", NonIdempotentRecord(b"add")])
    requests, losses = serve(buffer, lambda batch: INVALID if len(batch.items) > 1 else Delivered())
    assert requests[1:] == [[b"set"], [b"add"]]
    assert losses == []


def test_batch_rejected_with_413_was_not_applied() -> None:
    buffer, _ = make(max_events=2)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [NonIdempotentRecord(b"one"), NonIdempotentRecord(b"two")])
    requests, losses = serve(buffer, lambda batch: TOO_LARGE if len(batch.items) > 1 else Delivered())
    assert (requests[1:], losses) == ([[b"one"], [b"two"]], [])


# Eviction, abandoning, awaited records


def test_eviction_drops_the_oldest_record_of_all_lanes() -> None:
    buffer, events = make(max_pending_events=4)
    people = buffer.lane(RecordKind.PEOPLE)
    offer_all(buffer, people, [b"first"], 1.0)
    offer_all(buffer, events, [b"second", b"third"], 2.0)
    offer_all(buffer, people, [b"fourth"], 3.0)
    assert lost(buffer.evict(1)) == {b"first": DropReason.QUEUE_FULL}
    assert counts(buffer) == (4, 0, 0, 1, 0, 3)
    assert buffer.offer(events, b"fifth", 4.0) is not OfferResult.FULL


def test_eviction_drops_only_as_many_records_as_needed() -> None:
    buffer, lane = make(max_pending_bytes=100)
    items = [b"%02d" % number * 10 for number in range(5)]
    offer_all(buffer, lane, items)
    assert list(lost(buffer.evict(30))) == items[:2]
    assert buffer.evict(30) == []


def test_eviction_empties_the_oldest_batch_before_the_next() -> None:
    buffer, lane = make(max_events=2, max_pending_events=6)
    items = records(6)
    offer_all(buffer, lane, items)
    dropped = []
    for number in range(6, 10):
        dropped += list(lost(buffer.evict(1)))
        offer_all(buffer, lane, records(1, start=number))
    assert dropped == items[:4]
    assert lease(buffer).items == items[4:]


def test_eviction_keeps_records_in_flight() -> None:
    buffer, lane = make(max_events=2, max_pending_events=3)
    items = records(3)
    offer_all(buffer, lane, items)
    flying = lease(buffer)
    assert list(lost(buffer.evict(1))) == items[2:]
    buffer.settle(flying, Delivered(), 0.0)
    assert counts(buffer) == (3, 2, 0, 1, 0, 0)


def test_batch_emptied_by_eviction_is_never_sent() -> None:
    buffer, lane = make(max_events=2, max_pending_events=2)
    offer_all(buffer, lane, records(2))
    buffer.evict(1)
    offer_all(buffer, lane, records(1, start=2))
    buffer.evict(1)
    buffer.evict(1)
    assert [batch.items for batch in lease_all(buffer, 1e9)] == [records(1, start=2)]


def test_eviction_updates_the_size_of_the_batch() -> None:
    buffer, lane = make(max_pending_events=3, max_bytes=body(records(3)) + 2)
    offer_all(buffer, lane, records(3))
    buffer.evict(1)
    offer_all(buffer, lane, records(1, start=3))
    assert lease(buffer).items == records(3, start=1)


def test_no_record_is_evicted_for_one_that_can_never_fit() -> None:
    buffer, lane = make(max_pending_bytes=100)
    offer_all(buffer, lane, records(5))
    assert buffer.evict(101) == []
    assert buffer.accounting.pending == 5


def test_no_record_is_evicted_if_records_in_flight_leave_no_room() -> None:
    buffer, lane = make(max_events=2, max_pending_bytes=40)
    offer_all(buffer, lane, records(3))
    lease(buffer)
    assert buffer.evict(25) == []
    assert buffer.accounting.pending == 3
    assert list(lost(buffer.evict(24))) == records(1, start=2), "the third record must make enough room"


def test_abandon_drops_waiting_records_and_keeps_leases() -> None:
    buffer, lane = make(max_events=2)
    items = records(5)
    offer_all(buffer, lane, items)
    flying = lease(buffer)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [b"person"])
    assert lost(buffer.abandon(DropReason.CLOSED)) == dict.fromkeys([*items[2:], b"person"], DropReason.CLOSED)
    assert counts(buffer) == (6, 0, 0, 4, 0, 2)
    buffer.settle(flying, Delivered(), 0.0)
    assert counts(buffer) == (6, 2, 0, 4, 0, 0)
    assert buffer.poll(1e9) is IDLE


def test_discarded_records_are_counted_as_accepted_and_dropped() -> None:
    buffer, lane = make()
    loss = buffer.discard(lane, records(2), DropReason.BEFORE_SEND)
    assert (loss.kind, loss.reason, loss.items) == (RecordKind.EVENTS, DropReason.BEFORE_SEND, records(2))
    assert counts(buffer) == (2, 0, 0, 2, 0, 0)
    assert buffer.accounting.losses == {DropReason.BEFORE_SEND: 2}


def test_awaited_record_is_charged_until_settled() -> None:
    buffer, lane = make(max_pending_events=1)
    batch = buffer.lease_single(lane, b"alone", 0.0)
    assert batch is not None
    assert (buffer.in_flight, buffer.accounting.pending, buffer.accounting.pending_bytes) == (1, 1, 5)
    assert buffer.lease_single(lane, b"more", 0.0) is None
    assert buffer.settle_single(batch, None) == []
    assert counts(buffer) == (1, 1, 0, 0, 0, 0)
    assert (buffer.in_flight, buffer.accounting.pending_bytes) == (0, 0)


def test_delivered_awaited_record_ends_the_failure_of_its_lane() -> None:
    buffer, lane = make(max_events=1, max_in_flight=2)
    offer_all(buffer, lane, records(2))
    buffer.settle(lease(buffer), AGAIN, 0.0, 60.0)
    for reason in (DropReason.EXHAUSTED, None):
        assert waits_until(buffer, 0.0) == 60.0
        alone = buffer.lease_single(lane, b"alone", 0.0)
        assert alone is not None
        buffer.settle_single(alone, reason)
    assert len(lease_all(buffer)) == 2


def test_pool_size_covers_all_batches_in_flight() -> None:
    buffer, events = make(max_events=1, max_in_flight=3)
    secrets = [buffer.lane(RecordKind.IMPORTS, Secret(str(number))) for number in range(5)]
    for lane in (
        events,
        buffer.lane(RecordKind.PEOPLE),
        buffer.lane(RecordKind.GROUPS),
        buffer.lane(RecordKind.IMPORTS),
        *secrets,
    ):
        offer_all(buffer, lane, records(10))
    assert len(lease_all(buffer)) == max_in_flight(BatchPolicy(max_in_flight=3)) == 8


def test_failed_awaited_record_is_lost_for_the_given_reason() -> None:
    buffer, lane = make()
    batch = buffer.lease_single(lane, b"alone", 0.0)
    assert batch is not None
    (loss,) = buffer.settle_single(batch, DropReason.UNAUTHORIZED, message="wrong credentials")
    assert (loss.reason, list(loss.items), loss.message) == (DropReason.UNAUTHORIZED, [b"alone"], "wrong credentials")
    assert counts(buffer) == (1, 0, 1, 0, 0, 0)


# Late settlements and lost leases


def test_second_settlement_of_a_batch_is_ignored() -> None:
    buffer, lane = make(max_events=2)
    offer_all(buffer, lane, records(2))
    batch = lease(buffer)
    buffer.settle(batch, Delivered(), 0.0)
    for outcome in (REFUSED, AGAIN, CONFIGURATION_REFUSED, TOO_LARGE, Delivered()):
        assert buffer.settle(batch, outcome, 0.0) == []
    alone = buffer.lease_single(lane, b"alone", 0.0)
    assert alone is not None
    buffer.settle_single(alone, DropReason.CLOSED)
    assert buffer.settle_single(alone, None) == []
    assert counts(buffer) == (3, 2, 0, 1, 0, 0)


def test_leased_records_are_queued_again_after_reclaim() -> None:
    buffer, lane = make(max_events=2)
    items = records(2)
    offer_all(buffer, lane, items)
    batch = lease(buffer)
    alone = buffer.lease_single(lane, b"alone", 0.0)
    assert alone is not None
    assert buffer.reclaim() == []
    assert counts(buffer) == (3, 0, 0, 0, 0, 3)
    assert buffer.settle(batch, REFUSED, 0.0) == []
    assert buffer.settle_single(alone, DropReason.CLOSED) == []
    requests, _ = serve(buffer, lambda _: Delivered())
    assert sorted(requests) == sorted([items, [b"alone"]])
    assert counts(buffer) == (3, 3, 0, 0, 0, 0)


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("at_least_once", [True, False])
def test_reclaim_resends_non_idempotent_records_only_before_their_request(begun: bool, at_least_once: bool) -> None:
    buffer, _ = make(max_events=2, at_least_once=at_least_once)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [NonIdempotentRecord(b"add"), b"set"])
    lease(buffer).is_request_begun = begun
    expected = {b"add": DropReason.UNCERTAIN} if begun and not at_least_once else {}
    assert lost(buffer.reclaim()) == expected
    assert lease(buffer).items == ([b"set"] if expected else [b"add", b"set"])


def test_second_lease_of_a_batch_has_no_begun_request() -> None:
    buffer, _ = make(max_events=1)
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [NonIdempotentRecord(b"add")])
    batch = lease(buffer)
    batch.is_request_begun = True
    buffer.settle(batch, AGAIN, 0.0)
    lease(buffer)
    assert buffer.reclaim() == []
    assert buffer.accounting.pending == 1


def test_reclaimed_batches_keep_their_order() -> None:
    buffer, lane = make(max_events=1, max_in_flight=50)
    items = records(50)
    offer_all(buffer, lane, items)
    lease_all(buffer)
    buffer.reclaim()
    assert [batch.items for batch in lease_all(buffer)] == [[item] for item in items]


def test_forked_child_starts_with_an_empty_buffer() -> None:
    buffer, lane = make(max_events=2, max_pending_events=8)
    offer_all(buffer, lane, records(5))
    lease(buffer)
    buffer.lease_single(lane, b"alone", 0.0)
    buffer.discard(lane, records(1), DropReason.BEFORE_SEND)
    buffer.reset()
    assert counts(buffer) == (0, 0, 0, 0, 0, 0)
    assert (buffer.accounting.pending_bytes, buffer.in_flight, buffer.accounting.losses) == (0, 0, {})
    assert buffer.poll(1e9) is IDLE
    assert buffer.barrier().pending == 0
    offer_all(buffer, lane, [b"one", b"two"])
    assert (buffer.in_flight, buffer.barrier().pending) == (0, 2)
    assert lease(buffer).items == [b"one", b"two"]


# Barriers


def test_barrier_makes_all_batches_due() -> None:
    buffer, lane = make()
    offer_all(buffer, lane, records(2))
    offer_all(buffer, buffer.lane(RecordKind.PEOPLE), [b"person"])
    buffer.barrier()
    assert sorted(len(batch.items) for batch in lease_all(buffer)) == [1, 2]


def test_barrier_counts_only_earlier_records() -> None:
    buffer, lane = make(max_events=2)
    offer_all(buffer, lane, records(3))
    flying = lease(buffer)
    barrier = buffer.barrier()
    offer_all(buffer, lane, records(3, start=3))
    assert barrier.pending == 3
    buffer.settle(flying, pruned(0), 0.0)
    assert barrier.result() == FlushResult(delivered=1, failed=1, pending=1)
    serve(buffer, lambda _: Delivered())
    assert barrier.result() == FlushResult(delivered=2, failed=1, pending=0)


def test_barrier_counts_losses_by_reason() -> None:
    buffer, _ = make(max_events=2, max_pending_events=5)
    people = buffer.lane(RecordKind.PEOPLE)
    offer_all(buffer, people, [NonIdempotentRecord(b"add"), b"set", b"last"])
    barrier = buffer.barrier()
    buffer.settle(lease(buffer), UNKNOWN, 0.0)
    buffer.settle(lease(buffer), REFUSED, 0.0)
    buffer.abandon(DropReason.CLOSED)
    assert barrier.result() == FlushResult(delivered=0, failed=3, pending=0)
    assert barrier.result().losses == {"uncertain": 1, "rejected": 1, "closed": 1}


def test_barrier_follows_the_halves_of_a_batch() -> None:
    buffer, lane = make(max_events=4)
    offer_all(buffer, lane, records(4))
    first = buffer.barrier()
    buffer.settle(lease(buffer), TOO_LARGE, 0.0)
    second = buffer.barrier()
    serve(buffer, lambda batch: TOO_LARGE if records(1)[0] in batch.items else Delivered())
    for barrier in (first, second):
        assert barrier.result() == FlushResult(delivered=3, failed=1, pending=0)


def test_barrier_counts_evicted_and_awaited_records() -> None:
    buffer, lane = make(max_pending_events=3)
    offer_all(buffer, lane, records(2))
    alone = buffer.lease_single(lane, b"alone", 0.0)
    assert alone is not None
    barrier = buffer.barrier()
    assert barrier.pending == 3
    buffer.evict(1)
    buffer.settle_single(alone, None)
    assert barrier.result() == FlushResult(delivered=1, failed=1, pending=1)


def test_barrier_counts_only_the_earlier_records_of_a_batch() -> None:
    buffer, lane = make(max_events=10, max_in_flight=1)
    offer_all(buffer, lane, records(10))
    lease(buffer)
    offer_all(buffer, lane, records(3, start=10))
    barrier = buffer.barrier()
    offer_all(buffer, lane, records(3, start=13))
    late = buffer.barrier()
    assert (barrier.pending, late.pending) == (13, 16)
    (flying,) = lane.leased
    buffer.settle(flying, Delivered(), 0.0)
    batch = lease(buffer)
    assert len(batch.items) == 6
    buffer.settle(batch, pruned(0, 2, 5), 0.0)
    assert barrier.result() == FlushResult(delivered=11, failed=2, pending=0)
    assert late.result() == FlushResult(delivered=13, failed=3, pending=0)


@pytest.mark.parametrize("evicted", range(6))
def test_barrier_follows_a_partly_evicted_batch(evicted: int) -> None:
    buffer, lane = make(max_pending_events=5)
    offer_all(buffer, lane, records(2))
    first = buffer.barrier()
    offer_all(buffer, lane, records(1, start=2))
    second = buffer.barrier()
    offer_all(buffer, lane, records(2, start=3))
    for number in range(evicted):
        buffer.evict(1)
        offer_all(buffer, lane, records(1, start=5 + number))
    serve(buffer, lambda _: Delivered())
    for barrier, covered in ((first, 2), (second, 3)):
        gone = min(evicted, covered)
        assert barrier.result() == FlushResult(delivered=covered - gone, failed=gone, pending=0)


def test_forgotten_barrier_is_removed_from_all_batches() -> None:
    buffer, lane = make()
    offer_all(buffer, lane, records(3))
    kept = buffer.barrier()
    for _ in range(1000):
        buffer.forget(buffer.barrier())
    assert [len(batch.barriers) for batch in lane.batches()] == [1]
    gone = buffer.barrier()
    buffer.forget(gone)
    serve(buffer, lambda _: Delivered())
    assert kept.result() == FlushResult(delivered=3, failed=0, pending=0)
    assert gone.result() == FlushResult(delivered=0, failed=0, pending=3)


def test_barrier_in_an_empty_buffer_is_done() -> None:
    buffer, _ = make()
    assert buffer.barrier().result() == FlushResult(0, 0, 0)


def test_next_try_is_the_first_time_a_waiting_batch_may_be_sent() -> None:
    buffer, events = make(max_events=1)
    people = buffer.lane(RecordKind.PEOPLE)
    assert buffer.next_try() == -math.inf
    offer_all(buffer, events, [b"event"])
    offer_all(buffer, people, [b"person"])
    first, second = lease_all(buffer)
    buffer.settle(first, AGAIN, 0.0, 30.0)
    assert buffer.next_try() == -math.inf, "a batch is in flight"
    buffer.settle(second, AGAIN, 0.0, 20.0)
    assert buffer.next_try() == 20.0


# The queue: lock, overflow policy and signals


def make_queue(overflow: Overflow, **policy: Any) -> tuple[Queue, Lane, SignalCounter]:
    buffer, lane = make(**policy)
    signals = SignalCounter()
    queue = Queue(buffer, overflow, Callbacks(None, None), lambda: 0.0, signals)
    return queue, lane, signals


def test_drop_newest_drops_the_last_record() -> None:
    queue, lane, _ = make_queue(Overflow.DROP_NEWEST, max_pending_events=2)
    assert all(queue.offer(lane, item) for item in records(3))
    stats = queue.stats()
    assert (stats.accepted, stats.dropped, stats.pending, stats.losses) == (3, 1, 2, {"queue_full": 1})
    batch = queue.poll()
    assert isinstance(batch, Batch)
    assert batch.items == records(2)


def test_drop_oldest_accepts_the_last_record() -> None:
    queue, lane, _ = make_queue(Overflow.DROP_OLDEST, max_pending_events=2)
    assert all(queue.offer(lane, item) for item in records(3))
    stats = queue.stats()
    assert (stats.accepted, stats.dropped, stats.pending, stats.losses) == (3, 1, 2, {"queue_full": 1})
    batch = queue.poll()
    assert isinstance(batch, Batch)
    assert batch.items == records(2, start=1)


def test_drop_oldest_drops_the_newest_if_the_others_are_in_flight() -> None:
    queue, lane, _ = make_queue(Overflow.DROP_OLDEST, max_pending_events=2, max_events=2)
    assert all(queue.offer(lane, item) for item in records(2))
    queue.poll()
    assert queue.offer(lane, b"third")
    stats = queue.stats()
    assert (stats.accepted, stats.dropped, stats.pending, stats.in_flight) == (3, 1, 2, 1)


def test_full_queue_returns_false_under_wait_and_raises_under_raise() -> None:
    queue, lane, _ = make_queue(Overflow.WAIT, max_pending_events=1)
    assert queue.offer(lane, b"one")
    assert not queue.offer(lane, b"two")
    assert queue.stats().accepted == 1
    queue, lane, _ = make_queue(Overflow.RAISE, max_pending_events=1)
    assert queue.offer(lane, b"one")
    with pytest.raises(QueueFullError, match="1 record in 3 bytes"):
        queue.offer(lane, b"two")
    assert queue.stats().accepted == 1


def test_record_that_can_never_fit_raises_under_wait() -> None:
    queue, lane, _ = make_queue(Overflow.WAIT, max_pending_bytes=10)
    with pytest.raises(QueueFullError):
        queue.offer(lane, b"eleven byte")
    assert queue.stats().accepted == 0
    assert queue.offer(lane, b"one")
    assert not queue.offer(lane, b"ten bytes!"), "the record fits once the other one is settled"


def test_every_loss_is_reported() -> None:
    """`on_drop` gets every record that ended without delivery, whichever method ended it."""
    signals = SignalCounter()
    buffer, lane = make(max_events=2, max_pending_events=4)
    hooks = Callbacks(lambda *_: None, None)
    queue = Queue(buffer, Overflow.DROP_OLDEST, hooks, lambda: 0.0, signals)
    seen = []

    def check() -> None:
        stats = queue.stats()
        seen.append((stats.failed + stats.dropped + stats.uncertain, hooks.undelivered(), signals.losses))

    for item in records(5):
        queue.offer(lane, item)
    check()
    queue.discard(lane, b"kept back", DropReason.BEFORE_SEND)
    check()
    batch = queue.poll()
    assert isinstance(batch, Batch)
    assert queue.settle(batch, REFUSED, 0.0) == 0
    check()
    queue.settle_single(queue.lease_single(lane, b"alone"), DropReason.REJECTED, "no")
    check()
    queue.offer(queue.lane(RecordKind.PEOPLE), NonIdempotentRecord(b"add"))
    queue.barrier()
    while isinstance(step := queue.poll(), Batch):
        step.is_request_begun = True
    queue.reclaim()
    check()
    assert queue.abandon() == 3
    check()
    assert [(lost_, told_) for lost_, told_, _ in seen] == [(n, n) for n in (1, 2, 3, 4, 5, 8)]
    assert [calls for _, _, calls in seen] == [1, 2, 3, 4, 5, 6]


def test_settle_returns_the_number_of_delivered_records() -> None:
    queue, lane, _ = make_queue(Overflow.RAISE, max_events=3)
    for item in records(6):
        queue.offer(lane, item)
    for outcome, delivered in ((Delivered(), 3), (pruned(0, 1), 1)):
        batch = queue.poll()
        assert isinstance(batch, Batch)
        assert queue.settle(batch, outcome, 0.0) == delivered


def test_awaited_record_without_room_raises_under_every_policy() -> None:
    for overflow in Overflow:
        queue, lane, _ = make_queue(overflow, max_pending_events=1)
        assert queue.offer(lane, b"one")
        with pytest.raises(QueueFullError):
            queue.lease_single(lane, b"two")
        assert queue.stats().accepted == 1


def test_stats_count_requests_and_show_the_last_error() -> None:
    queue, _, _ = make_queue(Overflow.RAISE)
    assert (queue.stats().requests, queue.stats().retries, queue.stats().last_error) == (0, 0, None)
    for again in (False, True, True):
        queue.requests.request_started(again=again, now=Moment(0.0, 0.0))
    queue.record_error("/track: HTTP 503")
    assert (queue.stats().requests, queue.stats().retries) == (3, 2)
    assert queue.stats().last_error == queue.requests.last_error == "/track: HTTP 503"


@pytest.mark.parametrize("call", ["offer", "poll"])
def test_forked_child_starts_with_an_empty_queue(call: str) -> None:
    queue, lane, signals = make_queue(Overflow.DROP_NEWEST, max_pending_events=1)
    for item in records(2):
        queue.offer(lane, item)
    queue.requests.request_started(again=True, now=Moment(0.0, 0.0))
    queue.staging.fork_marker.expire()
    if call == "poll":
        assert queue.poll() is IDLE
    assert queue.offer(lane, b"child")
    stats = queue.stats()
    assert (stats.accepted, stats.dropped, stats.pending, stats.requests, stats.retries) == (1, 0, 1, 0, 0)
    assert signals.forks == 1


class ReentrantClock:
    """Clock that tracks an event when it is read, as a finalizer, signal handler or log handler may at any moment."""

    def __init__(self) -> None:
        self.act: Callable[[], object] | None = None

    def __call__(self) -> float:
        act, self.act = self.act, None
        if act is not None:
            act()
        return 0.0


def make_reentrant(overflow: Overflow, **policy: Any) -> tuple[Queue, Lane, SignalCounter, ReentrantClock]:
    buffer, lane = make(**policy)
    clock, signals = ReentrantClock(), SignalCounter()
    queue = Queue(buffer, overflow, Callbacks(None, None), clock, signals)
    return queue, lane, signals, clock


@pytest.mark.parametrize("overflow", list(Overflow))
def test_reentrant_record_is_counted(overflow: Overflow) -> None:
    queue, lane, signals, clock = make_reentrant(overflow, max_events=2)
    inside = []

    def track() -> None:
        assert queue.offer(lane, b"inner")
        inside.append(queue.stats())
        assert queue.pending == inside[0].pending

    clock.act = track
    assert queue.offer(lane, b"outer")
    assert (inside[0].accepted, inside[0].pending, inside[0].pending_bytes) == (1, 1, 5)
    assert (queue.stats().accepted, queue.pending) == (2, 2)
    assert signals.work > 0
    batch = queue.poll()
    assert isinstance(batch, Batch)
    assert sorted(batch.items) == [b"inner", b"outer"]


class InterruptedStaging(StagingBuffer):
    """Staging buffer that runs a function once, at the end of the first update of its limits."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(lambda: None)
        self._acts = [act]

    def update_limits(self, bytes_left: int, *, is_busy: bool) -> None:
        super().update_limits(bytes_left, is_busy=is_busy)
        if self._acts:
            self._acts.pop()()


@pytest.mark.parametrize("call", ["offer", "poll"])
def test_record_tracked_at_the_end_of_another_call_is_enqueued_immediately(call: str) -> None:
    queue, lane, signals, _ = make_reentrant(Overflow.DROP_NEWEST)
    queue.stage(lane)
    queue.staging = InterruptedStaging(lambda: queue.offer(lane, b"inner"))
    if call == "offer":
        assert queue.offer(lane, b"outer")
    else:
        assert queue.poll() is IDLE
    assert signals.work > 0
    assert lane.open is not None
    assert b"inner" in lane.open.items


def test_sender_is_woken_when_a_reentrant_record_fills_a_batch() -> None:
    queue, lane, signals, clock = make_reentrant(Overflow.DROP_NEWEST, max_events=3)
    assert queue.offer(lane, b"first")
    before = signals.work
    clock.act = lambda: queue.offer(lane, b"inner")
    assert queue.offer(lane, b"outer")
    assert signals.work > before
    assert isinstance(queue.poll(), Batch)


def test_sender_is_woken_by_a_record_tracked_during_poll() -> None:
    """`poll` found no batch before, so the sender would sleep without the signal."""
    queue, lane, signals, clock = make_reentrant(Overflow.DROP_NEWEST, max_events=1)
    clock.act = lambda: queue.offer(lane, b"inner")
    assert queue.poll() is IDLE
    assert signals.work > 0
    assert isinstance(queue.poll(), Batch)


def test_reentrant_record_without_room_is_dropped_and_counted() -> None:
    for overflow in Overflow:
        queue, lane, _, clock = make_reentrant(overflow, max_pending_events=1)
        clock.act = lambda queue=queue, lane=lane: queue.offer(lane, b"inner")
        assert queue.offer(lane, b"outer")
        stats = queue.stats()
        assert (stats.accepted, stats.dropped, stats.pending) == (2, 1, 1)


@pytest.mark.parametrize("overflow", list(Overflow))
def test_sender_is_woken_when_the_queue_is_full(overflow: Overflow) -> None:
    """A full queue does not linger, under every overflow policy."""
    queue, lane, signals = make_queue(overflow, max_pending_bytes=10)
    assert queue.offer(lane, b"sixteen")
    before = signals.work
    try:
        queue.offer(lane, b"four")
    except QueueFullError:
        assert overflow is Overflow.RAISE
    assert signals.work > before


def test_closed_queue_accepts_no_record() -> None:
    queue, lane, _ = make_queue(Overflow.DROP_NEWEST)
    queue.closed = True
    for call in (
        lambda: queue.offer(lane, b"x"),
        lambda: queue.lease_single(lane, b"x"),
        lambda: queue.discard(lane, b"x", DropReason.BEFORE_SEND),
    ):
        with pytest.raises(ClientClosedError):
            call()
    assert queue.stats().accepted == 0


def test_queue_loses_no_record_of_concurrent_threads() -> None:
    queue, lane, _ = make_queue(Overflow.DROP_OLDEST, max_pending_events=500, max_events=7)

    def work(start: int) -> None:
        for item in records(2000, start=start):
            queue.offer(lane, item)
            step = queue.poll()
            if isinstance(step, Batch):
                queue.settle(step, Delivered(), 0.0)

    threads = [threading.Thread(target=work, args=(number * 2000,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stats = queue.stats()
    assert stats.accepted == 8000
    assert stats.accepted == stats.delivered + stats.dropped + stats.pending


# Joined records


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=60),
    before=st.integers(1, 5),
    most=st.integers(2, 12),
    max_bytes=st.integers(100, 2_000),
    pending=st.integers(5, 80),
)
@settings(max_examples=200, deadline=None, derandomize=True, database=None)
def test_joined_records_are_enqueued_like_single_records(
    sizes: list[int], before: int, most: int, max_bytes: int, pending: int
) -> None:
    policy = {"max_events": most, "max_bytes": max_bytes, "max_pending_events": max(pending, most)}
    joined, lane = make(**policy)
    single, other = make(**policy)
    for buffer, target in ((joined, lane), (single, other)):
        offer_all(buffer, target, [b"first"] * min(before, most - 1))
    items = [b"x" * size for size in sizes]
    left = items
    while left:
        opened, held = lane.open, joined.accounting.pending
        part_sizes = joined.fitting_sizes(lane, sizes_of(left))
        part = left[: len(part_sizes)]
        closed = lane.open is not opened
        result = joined.extend(lane, part, part_sizes, sum(part_sizes), 0.0)
        if result is OfferResult.FULL:
            assert (joined.accounting.accepted, joined.accounting.pending) == (held, held)
            return
        assert (result is OfferResult.WAKE_SENDER) == (opened is None or closed or lane.open is not opened)
        left = left[len(part) :]
    assert OfferResult.FULL not in [single.offer(other, item, 0.0) for item in items]
    assert counts(joined) == counts(single)
    assert joined.accounting.pending_bytes == single.accounting.pending_bytes
    mine, theirs = lease_all(joined, FOREVER), lease_all(single, FOREVER)
    assert [item for batch in mine for item in batch.items] == [item for batch in theirs for item in batch.items]
    assert all(len(batch.items) <= most and batch.size == len(batch.items.body()) for batch in mine)
    assert [len(batch.items) for batch in mine] == [len(batch.items) for batch in theirs]


def test_staged_records_always_fit() -> None:
    least = 128
    for held in range(40):
        buffer, lane = make(max_events=50, max_pending_events=50, max_bytes=20_000)
        offer_all(buffer, lane, [b"x" * 300] * (held + 1))
        assert lane.open is not None
        room = buffer.accounting.spare_bytes(least)
        items = [b"x" * least] * (room // least)
        while items:
            sizes = buffer.fitting_sizes(lane, sizes_of(items))
            part = items[: len(sizes)]
            assert buffer.extend(lane, part, sizes, sum(sizes), 0.0) is not OfferResult.FULL
            items = items[len(part) :]
