"""Fresh ids: 32 hexadecimal digits, never twice, in no thread and no forked child."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._delivery.staging import StagingBuffer
from mixpanel_async._encoding.validation import check_id, check_insert_id
from mixpanel_async._runtime.clock import real_environment
from mixpanel_async._runtime.ids import IdSource


def test_an_id_is_32_hexadecimal_digits_that_mixpanel_takes() -> None:
    draw = IdSource()
    for _ in range(2000):
        one = draw()
        assert re.fullmatch(r"[0-9a-f]{32}", one)
        check_insert_id(one, "$insert_id")
        check_id(one, "distinct_id")


def test_a_million_ids_are_a_million_different_ones() -> None:
    draw = IdSource()
    assert len({draw() for _ in range(1_000_000)}) == 1_000_000


def test_two_sources_share_nothing() -> None:
    first, second = IdSource(), IdSource()
    assert not {first() for _ in range(5000)} & {second() for _ in range(5000)}


def test_ids_are_evenly_random() -> None:
    draw = IdSource()
    digits = "".join(draw() for _ in range(5000))
    for digit in "0123456789abcdef":
        assert 9_000 < digits.count(digit) < 11_000


def test_threads_never_draw_the_same_id() -> None:
    draw = IdSource()
    drawn: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def work(into: list[str]) -> None:
        start.wait()
        into.extend(draw() for _ in range(20_000))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(into,)) for into in drawn]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len({one for into in drawn for one in into}) == 160_000


FORKING = """
import os
from mixpanel_async._runtime.ids import IdSource

draw = IdSource()
mine = [draw() for _ in range(10)]
readers = []
for child in range(4):
    reader, writer = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writer, "w") as out:
            out.write(" ".join(draw() for _ in range(700)) + " ")
            out.flush()
            grandchild = os.fork()
            out.write(" ".join(draw() for _ in range(700)) + " ")
            out.flush()
            if grandchild:
                os.waitpid(grandchild, 0)
        os._exit(0)
    os.close(writer)
    readers.append(os.fdopen(reader))
mine += [draw() for _ in range(700)]
theirs = [one for reader in readers for one in reader.read().split()]
print(len(mine), len(theirs), len({*mine, *theirs}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_never_repeats_ids_of_its_parent() -> None:
    """Fork in a separate process: forking one with threads is unsafe."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.split() == ["710", "8400", "9110"]


def test_each_client_has_randomness_of_its_own() -> None:
    first, second = real_environment(), real_environment()
    assert [first.random() for _ in range(5)] != [second.random() for _ in range(5)]
    assert all(0.0 <= first.random() < 1.0 for _ in range(1000))
    assert first.new_id is not second.new_id
    assert first.monotonic() <= first.monotonic()
    assert first.wall_time() > 1_700_000_000


def stamped(stage: StagingBuffer, now: float, count: int) -> list[str]:
    """The ids of so many events at one moment, as `track` puts them together."""
    found = []
    for _ in range(count):
        end = next(stage.insert_id_endings, b"") if stage.millisecond_start <= now < stage.millisecond_end else b""
        if not end:
            end = stage.start_millisecond(now, IdSource()())
        found.append(orjson.loads(b'{"time":' + stage.timestamp_prefix + end + b'"b":0}')["$insert_id"])
    return found


def test_events_of_a_millisecond_differ_in_their_ids_however_many_there_are() -> None:
    stage = StagingBuffer()
    stage.records_left = 10_000
    ids = [one for now in (1.0, 1.0004, 1.002, 1.0) for one in stamped(stage, now, 700)]
    assert len({*ids}) == 2_800
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)


def test_a_forked_child_makes_no_id_of_its_parents_millisecond() -> None:
    stage = StagingBuffer()
    ours = stamped(stage, 1.0, 3)
    stage.reset_after_fork()
    theirs = stamped(stage, 1.0, 3)
    assert not {one[:28] for one in ours} & {one[:28] for one in theirs}


@given(now=st.floats(0, 4e9), ahead=st.sampled_from([0.0, 0.25, 86_400.0]))
@settings(deadline=None, derandomize=True, database=None)
def test_a_moment_is_the_millisecond_in_which_it_lies(now: float, ahead: float) -> None:
    stage = StagingBuffer()
    stage.clock_offset = ahead
    stamped(stage, now + 1_000 + ahead, 1)
    stamp = orjson.loads(b'{"time":' + stage.timestamp_prefix + b'"}')["time"]
    assert abs(stamp - (now + 1_000) * 1000) <= 1.001
    assert stage.millisecond_start <= now + 1_000 + ahead + 1e-6
    assert now + 1_000 + ahead < stage.millisecond_end + 1e-6
