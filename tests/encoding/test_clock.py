"""The model of the clock: which responses it uses, when it is sure, and its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixpanel_async._encoding.clock import (
    MAX_CORRECTION,
    ClockNotice,
    ClockState,
    Moment,
    ServerClock,
    fresh_date,
    parse_date,
)

START = 1_790_000_000.0
DAY = 86_400.0
PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)


class World:
    """True time, a local clock with an error, and a model that is fed with exchanges."""

    def __init__(self, error: float = 0.0) -> None:
        self.model = ServerClock()
        self.true = START
        self.error = error
        self.asleep = 0.0
        self.notices: list[ClockState] = []

    def now(self) -> Moment:
        return Moment(self.true + self.error, self.true - START - self.asleep + 1_000.0)

    def exchange(
        self,
        pause: float = 2.0,
        *,
        server_error: float = 0.0,
        before: float = 0.05,
        after: float = 0.05,
        date: str | None = None,
        suspended: float = 0.0,
    ) -> ClockNotice | None:
        """Wait, make a request, and feed the model with the response."""
        self.true += pause
        sent = self.now()
        self.model.note(sent)
        self.true += before
        header = formatdate(self.true + server_error, usegmt=True) if date is None else date
        self.true += after + suspended
        self.asleep += suspended
        notice = self.model.observe(header, sent, self.now())
        if notice is not None:
            self.notices.append(notice.state)
        return notice

    def event_error(self) -> float:
        """Seconds by which the time of an event that happens now would be wrong."""
        now = self.now()
        return now.wall - self.model.correction.at(now) - self.true


def repeat(world: World, times: int, **options: Any) -> World:
    for _ in range(times):
        world.exchange(**options)
    return world


# Header


@pytest.mark.parametrize(
    "date",
    [
        None,
        "",
        "yesterday",
        "0",
        "Mon, 21 Sep 2026 14:13:20",
        "Mon, 21 Sep 2026 14:13:20 CET",
        "Mon, 21 Sep 2026 14:13:20 +00",
        "Mon, 99 Sep 2026 14:13:20 GMT",
        "Mon, 21 Xyz 2026 14:13:20 GMT",
        "Mon, 21 Sep 2026 99:99:99 GMT",
        "aaaaaaaaaaaaaaaaaaaaaaaaa GMT",
        "\u0661" * 25 + " GMT",
        "x" * 10_000,
    ],
)
def test_invalid_date_teaches_nothing(date: str | None) -> None:
    assert parse_date(date) is None
    world = World(error=7_200.0)
    for _ in range(30):
        assert world.model.observe(date, world.now(), world.now()) is None
        world.true += 1.0
    assert world.model.correction.ahead == 0.0


@given(st.text(max_size=29))
@PROPERTY
def test_parsing_a_date_never_raises(text: str) -> None:
    parse_date(text)
    parse_date(text[:25].ljust(25) + " GMT")


@given(st.integers(0, 4_102_444_800))
@PROPERTY
def test_dates_are_parsed_to_the_second(seconds: int) -> None:
    assert parse_date(formatdate(seconds, usegmt=True)) == seconds


@pytest.mark.parametrize(
    ("headers", "is_used"),
    [
        ({b"date": "D"}, True),
        ({b"date": "D", b"age": "0"}, True),
        ({b"date": "D", b"age": "3600"}, False),
        ({b"date": "D", b"age": "soon"}, False),
        ({b"date": "D", b"warning": '110 - "Response is Stale"'}, False),
        ({}, False),
    ],
)
def test_date_of_a_cached_response_is_not_used(headers: dict[bytes, str], is_used: bool) -> None:
    assert (fresh_date(headers) == "D") is is_used


# Certainty


@pytest.mark.parametrize("side", [1, -1], ids=["ahead", "behind"])
@pytest.mark.parametrize("seconds", [10.0, 120.0, 7_200.0, 2 * DAY, 10 * DAY, 13.9 * DAY])
def test_constant_error_is_corrected(seconds: float, side: int) -> None:
    world = World(error=side * seconds)
    repeat(world, 3)
    assert world.event_error() == pytest.approx(side * seconds)
    repeat(world, 1)
    assert abs(world.event_error()) <= 1.5
    repeat(world, 1_000)
    assert abs(world.event_error()) <= 1.5
    assert world.notices == [ClockState.CORRECTED]


@pytest.mark.parametrize("error", [-400.0 * DAY, -30 * DAY, -14.1 * DAY, 14.1 * DAY, 30 * DAY, 400 * DAY])
def test_error_beyond_the_bound_is_reported_once_and_not_corrected(error: float) -> None:
    world = repeat(World(error), 100)
    assert world.model.correction.ahead == 0.0
    assert world.notices == [ClockState.BEYOND_CORRECTION]
    # Such a server is no evidence against a record either.
    assert world.model.earliest_now(world.now(), since=None) is None


def test_burst_of_responses_is_no_proof_of_a_running_server_clock() -> None:
    world = repeat(World(error=7_200.0), 1_000, pause=0.0, before=0.001, after=0.001)
    assert world.model.correction.ahead == 0.0
    repeat(world, 20, pause=0.2)
    assert abs(world.event_error()) <= 1.5


@pytest.mark.parametrize("error", [0.0, 7_200.0, -3 * DAY])
@pytest.mark.parametrize("age", [0.0, 60.0, 7_200.0, 10 * DAY, START])
@pytest.mark.parametrize("pause", [0.05, 1.0, 30.0, 3_600.0])
def test_date_that_stands_still_is_never_used(error: float, age: float, pause: float) -> None:
    world = World(error)
    date = formatdate(START - age, usegmt=True)
    for _ in range(300):
        world.exchange(pause, date=date)
        assert world.model.correction.ahead == 0.0
    assert world.notices in ([], [ClockState.CONTRADICTION])


@pytest.mark.parametrize("error", [0.0, 7_200.0])
@pytest.mark.parametrize("difference", [60.0, -7_200.0, 2 * DAY])
def test_servers_that_disagree_are_reported_once(error: float, difference: float) -> None:
    world = World(error)
    for _ in range(1_000):
        world.exchange(5.0)
        world.exchange(5.0, server_error=difference)
        assert world.model.correction.ahead == 0.0
    assert world.notices == [ClockState.CONTRADICTION]


def test_contradiction_ends_after_twenty_responses_and_ten_minutes_of_agreement() -> None:
    world = repeat(World(error=7_200.0), 10)
    world.exchange(server_error=-7_200.0)
    assert world.model.correction.ahead == 0.0
    repeat(world, 100, pause=5.0)
    assert world.model.correction.ahead == 0.0
    repeat(world, 20, pause=5.0)
    assert abs(world.event_error()) <= 1.5
    assert world.notices == [ClockState.CORRECTED]


def test_few_responses_do_not_end_a_contradiction() -> None:
    world = repeat(World(error=7_200.0), 10)
    world.exchange(server_error=-7_200.0)
    # This one contradicts the last again.
    repeat(world, 19, pause=300.0)
    assert world.model.correction.ahead == 0.0
    repeat(world, 1, pause=300.0)
    assert abs(world.event_error()) <= 1.5


def test_frozen_local_clocks_are_not_corrected() -> None:
    """Time stands still in a test that freezes it."""
    model, frozen = ServerClock(), Moment(START - 3 * DAY, 50.0)
    for second in range(100):
        model.observe(formatdate(START + second / 2, usegmt=True), frozen, frozen)
        assert model.correction.ahead == 0.0


# Requests whose duration is uncertain


def test_slow_responses_widen_the_estimate() -> None:
    for before, after in ((8.0, 0.0), (0.0, 8.0), (4.0, 4.0)):
        right = repeat(World(), 50, before=before, after=after)
        assert right.model.correction.ahead == 0.0
        wrong = repeat(World(error=600.0), 50, before=before, after=after)
        assert abs(wrong.event_error()) <= 6.0


def test_very_slow_responses_are_ignored() -> None:
    assert repeat(World(error=600.0), 50, after=11.0).model.correction.ahead == 0.0


def test_suspension_during_requests_changes_nothing() -> None:
    world = World()
    for _ in range(50):
        world.exchange(suspended=3_600.0)
        assert world.model.correction.ahead == 0.0
    assert world.notices == []


def test_clock_set_during_a_request_changes_nothing() -> None:
    world = World()
    for step in (3_600.0, -3_600.0) * 20:
        sent = world.now()
        world.error += step
        world.model.observe(formatdate(world.true, usegmt=True), sent, world.now())
        world.true += 5.0
        assert world.model.correction.ahead == 0.0
    assert world.notices == []


def test_request_during_which_the_clock_was_set_is_no_contradiction() -> None:
    world = repeat(World(), 10)
    sent = world.now()
    world.error = -7_200.0
    world.model.observe(formatdate(world.true, usegmt=True), sent, world.now())
    repeat(world, 4)
    assert abs(world.event_error()) <= 2.5
    assert world.notices == [ClockState.CORRECTED]


# Clock that is set


def test_correction_ends_at_once_when_the_clock_is_set_right() -> None:
    world = repeat(World(error=7_200.0), 10)
    world.true += 3_600.0
    world.error = 0.0
    # No response has shown it yet.
    assert world.event_error() == 0.0
    repeat(world, 10)
    assert world.event_error() == 0.0


@pytest.mark.parametrize("asleep", [0.0, 1_800.0])
@pytest.mark.parametrize("step", [-60.0, -7_200.0, -10 * DAY])
def test_clock_that_is_set_back_is_corrected_at_once(step: float, asleep: float) -> None:
    """A suspension hides a part of the step, so the correction never goes too far."""
    world = repeat(World(), 10)
    world.true += asleep + 20.0
    world.asleep += asleep
    world.error = step
    assert min(step + asleep, 0.0) - 2.5 <= step - world.event_error() <= 0.0
    world.model.note(world.now())
    assert min(step + asleep, 0.0) - 2.5 <= step - world.event_error() <= 0.0
    if not asleep:
        assert abs(world.event_error()) <= 2.5
    repeat(world, 10)
    assert abs(world.event_error()) <= 2.5
    assert world.notices == [ClockState.CORRECTED]


@pytest.mark.parametrize("asleep", [0.0, 1.0, 3_600.0, 10 * DAY])
def test_correction_of_a_fast_clock_ends_when_it_is_set_right_after_a_suspension(asleep: float) -> None:
    world = repeat(World(error=7_200.0), 10)
    world.true += asleep
    world.asleep += asleep
    world.error = 0.0
    assert world.event_error() == 0.0
    world.model.note(world.now())
    assert world.event_error() == 0.0


def test_correction_pauses_after_a_suspension() -> None:
    world = repeat(World(error=7_200.0), 10)
    world.true += 3_600.0
    world.asleep += 3_600.0
    assert world.event_error() == pytest.approx(7_200.0)
    repeat(world, 4)
    assert abs(world.event_error()) <= 1.5
    # The same episode.
    assert world.notices == [ClockState.CORRECTED]


def test_second_episode_is_reported_again() -> None:
    world = World()
    for _ in range(3):
        world.error = -600.0
        repeat(world, 20)
        world.error = 0.0
        repeat(world, 20)
    assert world.notices == [ClockState.CORRECTED] * 3


def test_slow_drift_is_followed() -> None:
    world = World(error=60.0)
    for _ in range(3_000):
        world.exchange(30.0)
        world.error += 30.0 * 1e-4
        assert world.model.correction.ahead == 0.0 or abs(world.event_error()) <= 3.0
        assert (world.model.correction.ahead == 0.0) is (world.true < START + 120.0)
    assert world.notices == [ClockState.CORRECTED]


# Age of records


def test_server_time_decides_the_age_once_it_is_known() -> None:
    for error in (0.0, -10 * DAY, 10 * DAY):
        world = repeat(World(error), 10)
        world.error += 5 * DAY
        world.true += DAY
        now = world.model.earliest_now(world.now(), since=None)
        assert now is not None
        assert world.true - 5.0 <= now <= world.true + 0.1


def test_suspension_does_not_make_the_known_time_too_late() -> None:
    world = repeat(World(), 10)
    world.true += DAY
    world.asleep += DAY
    now = world.model.earliest_now(world.now(), since=None)
    assert now is not None
    assert now <= world.true


def test_contradiction_ends_the_knowledge_of_the_server_time() -> None:
    world = repeat(World(), 10)
    world.exchange(server_error=6 * DAY)
    assert world.model.earliest_now(world.now(), since=None) is None
    world.exchange()
    assert world.model.earliest_now(world.now(), since=None) == pytest.approx(world.true, abs=3.0)


@pytest.mark.parametrize("step", [-10 * DAY, -60.0, 0.0, 60.0, 10 * DAY])
@pytest.mark.parametrize("is_before_the_record", [True, False])
def test_step_of_the_clock_does_not_add_to_the_age(step: float, is_before_the_record: bool) -> None:
    world = World()
    world.model.note(world.now())
    world.true += 10.0
    if is_before_the_record:
        world.error += step
    accepted = world.now()
    world.true += 10.0
    world.model.note(world.now())
    if not is_before_the_record:
        world.error += step
    world.true += 100.0
    now = world.model.earliest_now(world.now(), since=accepted.monotonic)
    assert now is not None
    assert now - accepted.wall <= 110.0 + 1e-6


def test_waiting_adds_to_the_age() -> None:
    world = World()
    accepted = world.now()
    world.model.note(accepted)
    world.true += 6 * DAY
    now = world.model.earliest_now(world.now(), since=accepted.monotonic)
    assert now == pytest.approx(accepted.wall + 6 * DAY)
    assert world.model.earliest_now(world.now(), since=None) is None


# Properties

SECONDS = st.floats(0.0, 100.0)
EXCHANGES = st.lists(st.tuples(SECONDS, st.floats(0.0, 20.0), st.floats(0.0, 20.0), st.floats(-1.0, 1.0)), max_size=60)


@given(EXCHANGES, st.lists(st.floats(0.0, 7_200.0), max_size=60))
@PROPERTY
def test_right_clock_is_never_changed(
    exchanges: Sequence[tuple[float, float, float, float]], suspensions: list[float]
) -> None:
    """Servers are right within a second; the process may be suspended in any request."""
    world = World()
    for at, (pause, before, after, server_error) in enumerate(exchanges):
        suspended = suspensions[at] if at < len(suspensions) and at % 3 == 0 else 0.0
        world.exchange(pause, before=before, after=after, server_error=server_error, suspended=suspended)
        assert world.model.correction.ahead == 0.0
        assert world.event_error() == 0.0
    assert world.notices == []


@given(
    st.floats(-13.9 * DAY, 13.9 * DAY),
    st.lists(
        st.tuples(st.floats(1.4, 100.0), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(-1.0, 1.0)),
        min_size=5,
        max_size=60,
    ),
)
@PROPERTY
def test_constant_error_is_corrected_within_seconds(
    error: float, exchanges: Sequence[tuple[float, float, float, float]]
) -> None:
    assume(exchanges)
    world = World(error)
    for count, (pause, before, after, server_error) in enumerate(exchanges, start=1):
        world.exchange(pause, before=before, after=after, server_error=server_error)
        # Five responses at a distance of at least 1.4 s: four, and 4 s of the server's time with an error of 1 s.
        if count >= 5 and world.true - START >= 8.0:
            assert abs(world.event_error()) <= 10.0
    assert ClockState.CONTRADICTION not in world.notices


ANY_DATE: st.SearchStrategy[Callable[[float], float]] = st.one_of(
    st.floats(-400 * DAY, 400 * DAY).map(lambda error: lambda true: true + error),
    st.floats(0.0, 2 * START).map(lambda fixed: lambda _: fixed),
    st.sampled_from([lambda true: true, lambda true: true + 7_200.0]),
)


@given(
    st.floats(-400 * DAY, 400 * DAY),
    st.lists(st.tuples(st.sampled_from([0.1, 5.0, 700.0]), ANY_DATE, st.sampled_from([0.0, 0.0, 9e4])), max_size=80),
)
@PROPERTY
def test_correction_is_bounded_in_every_case(
    error: float, exchanges: list[tuple[float, Callable[[float], float], float]]
) -> None:
    world = World(error)
    for pause, server, step in exchanges:
        world.error += step
        world.exchange(pause, date=formatdate(server(world.true + pause), usegmt=True))
        assert abs(world.model.correction.ahead) <= MAX_CORRECTION
        change = world.error - world.event_error()
        assert abs(change) <= MAX_CORRECTION + 1e-5
        assert abs(change) < 1e-5 or abs(change) >= 5.0
