"""`BatchBody` is the sequence of its records, and its body is the same with and without incremental compression."""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Sequence

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async import BatchPolicy, RetryPolicy
from mixpanel_async._delivery.batch import Batch
from mixpanel_async._delivery.buffer import Buffer
from mixpanel_async._delivery.offers import OfferResult
from mixpanel_async._encoding.batch_body import BatchBody, sizes_of
from mixpanel_async._encoding.requests import fastest_compressor, zlib_compressor
from mixpanel_async._model.outcomes import Delivered
from mixpanel_async._model.records import NonIdempotentRecord, Record, RecordKind

RECORDS = st.integers(0, 20_000).map(lambda size: b'"%b"' % (b"x" * size))
STEPS = st.lists(
    st.one_of(
        RECORDS,
        st.lists(st.integers(0, 20_000), min_size=1, max_size=5),
        st.just("first"),
        st.just("compress"),
    ),
    max_size=30,
)


def check(body: BatchBody, expected: Sequence[bytes]) -> None:
    assert [*body] == [*expected]
    assert len(body) == len(expected)
    assert body.body() == b"[%b]" % b",".join(expected)
    if expected:
        assert len(body.body()) == body.size
        assert orjson.loads(body.body()) == [orjson.loads(one) for one in expected]


@pytest.mark.parametrize(
    "new_compressor", [None, zlib_compressor, fastest_compressor()[0]], ids=["plain", "zlib", "best"]
)
@given(steps=STEPS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_batch_body_is_the_sequence_of_its_records(
    new_compressor: Callable[[], object] | None, steps: list[object]
) -> None:
    body, expected = BatchBody((), new_compressor), []  # type: ignore[arg-type]
    for step in steps:
        if isinstance(step, bytes):
            body.append(step)
            expected.append(step)
        elif isinstance(step, list):
            before = body.size
            events = [b'{"event":"%b"}' % (b"x" * size) for size in step]
            body.extend(events, sizes_of(events))
            assert body.size == before + sum(map(len, events)) + len(events)
            expected.extend(events)
        elif step == "first" and expected:
            assert body.pop_first() == expected.pop(0)
        elif step == "compress" and expected:
            for _ in ("once", "again"):
                assert zlib.decompress(body.compressed(zlib_compressor), 47) == body.body()
        check(body, expected)


def test_single_records_are_joined_and_compressed_incrementally() -> None:
    body = BatchBody((), zlib_compressor)
    records = [b'"%05d%b"' % (number, b"x" * 400) for number in range(200)]
    for record in records:
        body.append(record)
    assert body.is_compressed
    check(body, records)


@pytest.mark.parametrize("is_joined", [False, True])
def test_records_keep_their_type(is_joined: bool) -> None:
    kinds = [bytes, NonIdempotentRecord, Record]
    records = [kinds[number % 3](b"%d" % number * 400) for number in range(200)]
    body = BatchBody()
    if is_joined:
        body.extend(records, sizes_of(records))
    else:
        for record in records:
            body.append(record)
    assert [*body] == records
    assert [*map(type, body)] == [*map(type, records)]


def test_only_the_open_batch_keeps_a_compressor() -> None:
    alive: weakref.WeakSet[Recorder] = weakref.WeakSet()

    class Recorder:
        def __init__(self) -> None:
            alive.add(self)
            self._compressor = zlib_compressor()

        def compress(self, data: bytes, /) -> bytes:
            return self._compressor.compress(data)

        def flush(self) -> bytes:
            return self._compressor.flush()

    buffer = Buffer(BatchPolicy(linger=3600.0, max_events=10), RetryPolicy(), None, Recorder)
    lane = buffer.lane(RecordKind.EVENTS)
    for _ in range(50):
        assert buffer.offer(lane, b"0", 0.0) is not OfferResult.FULL
        left = 12
        while left:
            events = [b'{"event":1}'] * left
            sizes = buffer.fitting_sizes(lane, sizes_of(events))
            events = events[: len(sizes)]
            assert buffer.extend(lane, events, sizes, sum(sizes), 0.0) is not OfferResult.FULL
            left -= len(events)
        assert len(alive) <= 1
    while isinstance(batch := buffer.poll(0.0), Batch):
        assert zlib.decompress(batch.items.compressed(zlib_compressor), 47) == batch.items.body()
        buffer.settle(batch, Delivered(), 0.0)
    assert buffer.accounting.delivered == buffer.accounting.accepted - buffer.accounting.pending >= 500
