"""Backoff: full jitter below a doubling ceiling, with `Retry-After` as a lower bound."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from mixpanel_async._http.retry import PROBE_AFTER, backoff
from mixpanel_async._model.config import RetryPolicy

PROPERTY = settings(max_examples=500, deadline=None, derandomize=True, database=None)
DRAWS = st.floats(0.0, 1.0)
POLICIES = st.tuples(st.floats(0.0, 3600.0), st.floats(0.0, 3600.0)).map(
    lambda pair: RetryPolicy(initial=min(pair), maximum=max(pair))
)


@given(policy=POLICIES, failures=st.integers(1, 10**6), draw=DRAWS)
@PROPERTY
def test_delay_is_between_zero_and_the_ceiling(policy: RetryPolicy, failures: int, draw: float) -> None:
    wait = backoff(policy, failures, None, draw)
    ceiling = policy.maximum if failures > 60 else min(policy.maximum, policy.initial * 2 ** (failures - 1))
    assert 0.0 <= wait <= max(ceiling, 0.0)
    assert wait == draw * min(policy.maximum, policy.initial * 2.0 ** min(failures - 1, 60))


def test_ceiling_doubles_from_initial_to_maximum() -> None:
    policy = RetryPolicy(initial=2.0, maximum=60.0)
    assert [backoff(policy, failures, None, 1.0) for failures in range(1, 9)] == [2, 4, 8, 16, 32, 60, 60, 60]


def test_jitter_is_proportional_to_the_random_number() -> None:
    policy = RetryPolicy(initial=8.0, maximum=8.0)
    assert backoff(policy, 1, None, 0.0) == 0.0
    assert [backoff(policy, 1, None, draw) for draw in (0.25, 0.5, 0.75)] == [2.0, 4.0, 6.0]


def test_million_failures_do_not_overflow() -> None:
    assert backoff(RetryPolicy(), 10**6, None, 1.0) == 60.0
    assert backoff(RetryPolicy(initial=0.0), 10**6, None, 1.0) == 0.0


@given(policy=POLICIES, failures=st.integers(1, 200), asked=st.floats(0.0, 300.0), draw=DRAWS)
@PROPERTY
def test_delay_is_never_shorter_than_retry_after(policy: RetryPolicy, failures: int, asked: float, draw: float) -> None:
    wait = backoff(policy, failures, asked, draw)
    own = backoff(policy, failures, None, draw)
    assert wait >= asked
    assert wait >= own
    assert wait <= max(own, asked) + max(0.25 * asked, 1.0)


@given(policy=POLICIES, failures=st.integers(1, 200), asked=st.floats(1.0, 300.0), draw=st.floats(0.01, 1.0))
@PROPERTY
def test_retry_after_is_extended_by_jitter(policy: RetryPolicy, failures: int, asked: float, draw: float) -> None:
    """Clients that receive the same `Retry-After` must not return at the same moment."""
    assert backoff(policy, failures, asked, draw) > max(asked, backoff(policy, failures, None, draw))


def test_delays_of_many_clients_are_distinct() -> None:
    draw = random.Random(7).random
    for asked in (None, 0.0, 5.0, 300.0):
        for failures in (1, 5, 50):
            waits = [backoff(RetryPolicy(), failures, asked, draw()) for _ in range(200)]
            assert len(set(waits)) == 200


def test_same_retry_after_is_spread_over_a_quarter_of_the_delay() -> None:
    waits = [backoff(RetryPolicy(), 1, 60.0, number / 100) for number in range(101)]
    assert (waits[0], waits[-1]) == (60.0, 75.0)
    busiest = max(sum(start <= wait < start + 1 for wait in waits) for start in range(60, 75))
    assert busiest <= 3 * len(waits) / 15


def test_misconfigured_client_probes_once_a_minute() -> None:
    assert PROBE_AFTER == 60.0
