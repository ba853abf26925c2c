"""Random ids: their form, and that no thread or forked child repeats one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._delivery.staging import StagingBuffer
from mixpanel_async._encoding.clock import Correction, Moment
from mixpanel_async._encoding.validation import check_id, check_insert_id
from mixpanel_async._runtime.environment import real_environment
from mixpanel_async._runtime.ids import IdSource


def test_id_is_32_hexadecimal_digits_and_valid() -> None:
    new_id = IdSource()
    for _ in range(2000):
        one = new_id()
        assert re.fullmatch(r"[0-9a-f]{32}", one)
        check_insert_id(one, "$insert_id")
        check_id(one, "distinct_id")


def test_million_ids_are_distinct() -> None:
    new_id = IdSource()
    assert len({new_id() for _ in range(1_000_000)}) == 1_000_000


def test_two_sources_share_no_id() -> None:
    first, second = IdSource(), IdSource()
    assert not {first() for _ in range(5000)} & {second() for _ in range(5000)}


def test_digits_are_uniformly_random() -> None:
    new_id = IdSource()
    digits = "".join(new_id() for _ in range(5000))
    for digit in "0123456789abcdef":
        assert 9_000 < digits.count(digit) < 11_000


def test_threads_never_receive_the_same_id() -> None:
    new_id = IdSource()
    drawn: list[list[str]] = [[] for _ in range(8)]
    start = threading.Barrier(8)

    def work(into: list[str]) -> None:
        start.wait()
        into.extend(new_id() for _ in range(20_000))

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

new_id = IdSource()
mine = [new_id() for _ in range(10)]
readers = []
for child in range(4):
    reader, writer = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writer, "w") as out:
            out.write(" ".join(new_id() for _ in range(700)) + " ")
            out.flush()
            grandchild = os.fork()
            out.write(" ".join(new_id() for _ in range(700)) + " ")
            out.flush()
            if grandchild:
                os.waitpid(grandchild, 0)
        os._exit(0)
    os.close(writer)
    readers.append(os.fdopen(reader))
mine += [new_id() for _ in range(700)]
theirs = [one for reader in readers for one in reader.read().split()]
print(len(mine), len(theirs), len({*mine, *theirs}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_child_never_repeats_ids_of_its_parent() -> None:
    """Fork in a separate process, because forking a process with threads is unsafe."""
    done = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.split() == ["710", "8400", "9110"]


def test_each_environment_has_a_separate_random_generator() -> None:
    first, second = real_environment(), real_environment()
    assert [first.random() for _ in range(5)] != [second.random() for _ in range(5)]
    assert all(0.0 <= first.random() < 1.0 for _ in range(1000))
    assert first.new_id is not second.new_id
    assert first.monotonic() <= first.monotonic()
    assert first.wall_time() > 1_700_000_000


def stamped(staging: StagingBuffer, now: float, count: int) -> list[str]:
    """Return the ids of events at one time, composed as `track` does."""
    found = []
    for _ in range(count):
        stamp = next(staging.stamps, b"") if staging.millisecond_start <= now < staging.millisecond_end else b""
        stamp = stamp or staging.start_millisecond(now, IdSource()())
        found.append(orjson.loads(b'{"time":' + stamp + b'"}')["$insert_id"])
    return found


def test_events_of_one_millisecond_have_distinct_ids() -> None:
    staging = StagingBuffer(lambda: None)
    ids = [one for now in (1.0, 1.0004, 1.002, 1.0) for one in stamped(staging, now, 700)]
    assert len({*ids}) == 2_800
    assert all(re.fullmatch(r"[0-9a-f]{32}", one) for one in ids)


def test_forked_child_uses_another_id_prefix_than_its_parent() -> None:
    staging = StagingBuffer(lambda: None)
    ours = stamped(staging, 1.0, 3)
    staging.reset_after_fork()
    theirs = stamped(staging, 1.0, 3)
    assert not {one[:28] for one in ours} & {one[:28] for one in theirs}


@given(now=st.floats(0, 4e9), ahead=st.sampled_from([0.0, 0.25, 86_400.0]))
@settings(deadline=None, derandomize=True, database=None)
def test_event_time_is_the_current_millisecond(now: float, ahead: float) -> None:
    staging = StagingBuffer(lambda: None)
    environment = replace(real_environment(), monotonic=lambda: 0.0)
    staging.use_environment(environment)
    staging.clock.correction = Correction(ahead, Moment(now + 1_000 + ahead, 0.0))
    stamp = orjson.loads(b'{"time":' + staging.start_millisecond(now + 1_000 + ahead, "00") + b'"}')["time"]
    assert abs(stamp - (now + 1_000) * 1000) <= 1.001
    assert staging.millisecond_start <= now + 1_000 + ahead + 1e-6
    assert now + 1_000 + ahead < staging.millisecond_end + 1e-6
