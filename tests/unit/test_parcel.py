"""A parcel is the sequence of its records, however they came, and its body the same, compressed as they came or not."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._parcel import Parcel
from mixpanel_async._wire.encode import best_packer, zlib_packer

RECORDS = st.integers(0, 20_000).map(lambda size: b'"%b"' % (b"x" * size))
STEPS = st.lists(
    st.one_of(
        RECORDS,
        st.lists(RECORDS, min_size=1, max_size=5),
        st.just("first"),
        st.just("compress"),
    ),
    max_size=30,
)


def check(parcel: Parcel, expected: Sequence[bytes]) -> None:
    assert [*parcel] == [*expected]
    assert len(parcel) == len(expected)
    assert parcel.body() == b"[%b]" % b",".join(expected)
    if expected:
        assert len(parcel.body()) == parcel.size
        assert orjson.loads(parcel.body()) == [orjson.loads(one) for one in expected]


@pytest.mark.parametrize("new_packer", [None, zlib_packer, best_packer()[0]], ids=["plain", "zlib", "best"])
@given(steps=STEPS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_it_is_the_sequence_of_its_records(new_packer: Callable[[], object] | None, steps: list[object]) -> None:
    parcel, expected = Parcel((), new_packer), []  # type: ignore[arg-type]
    for step in steps:
        if isinstance(step, bytes):
            parcel.append(step)
            expected.append(step)
        elif isinstance(step, list):
            before = parcel.size
            grown = parcel.pack(step)
            assert parcel.size == before + grown
            expected.extend(step)
        elif step == "first" and expected:
            assert parcel.pop_first() == expected.pop(0)
        elif step == "compress" and expected:
            for _ in ("once", "for another try"):
                assert zlib.decompress(parcel.compressed(zlib_packer), 47) == parcel.body()
        check(parcel, expected)


def test_single_records_are_joined_and_compressed_as_they_come() -> None:
    parcel = Parcel((), zlib_packer)
    records = [b'"%05d%b"' % (number, b"x" * 400) for number in range(200)]
    for record in records:
        parcel.append(record)
    assert parcel.is_packed
    check(parcel, records)


def test_without_a_packer_records_stay_the_objects_that_they_were() -> None:
    parcel, records = Parcel(), [b"%d" % number * 400 for number in range(200)]
    for record in records:
        parcel.append(record)
    assert all(one is other for one, other in zip(parcel, records, strict=True))
