"""Group commit: when a commit waits for further records."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mixpanel_async._spool.pacing import CommitPacer


def commit(pacer: CommitPacer, *counts: int) -> None:
    for records in counts:
        pacer.begin_commit(records)


def test_single_caller_waits_only_for_rare_probes() -> None:
    pacer = CommitPacer()
    waits = []
    for number in range(20_000):
        if pacer.wanted > 1:
            waits.append(number)
        pacer.begin_commit(1)
    assert waits[0] == 64
    assert len(waits) == 9
    assert all(second - first > 64 for first, second in pairwise(waits))


def test_probe_that_finds_company_makes_the_next_commits_wait() -> None:
    pacer = CommitPacer()
    commit(pacer, *[1] * 64)
    assert pacer.wanted == 2
    commit(pacer, 4)
    assert pacer.wanted == 4
    # A smaller group now and then changes nothing.
    commit(pacer, 3, 4, 3)
    assert pacer.wanted == 4


def test_commits_stop_waiting_once_the_other_callers_have_stopped() -> None:
    pacer = CommitPacer()
    commit(pacer, 200)
    alone = 0
    while pacer.wanted > 1:
        commit(pacer, 1)
        alone += 1
    # With 2 ms each.
    assert alone < 100


@given(st.lists(st.integers(1, 20_000)))
def test_wanted_number_is_never_above_the_largest_group(counts: list[int]) -> None:
    pacer = CommitPacer()
    for records in counts:
        pacer.begin_commit(records)
        assert 1 <= pacer.wanted <= max(2, *counts, 2)
