"""Model of this machine's clock: whether it is right, according to the `Date` headers of Mixpanel's responses.

A response says that the server's clock showed `Date` at some moment between sending and receiving. So the seconds by
which the local clock is ahead are between `sent - Date - 1` and `received - Date`, since the header has whole seconds.
Each response gives such an interval, and the truth is in the intersection of all. The model acts only when several
responses agree, and keeps these rules:

| situation | effect |
| --- | --- |
| no `Date`, invalid `Date`, response from a cache, response that is not Mixpanel's | ignored |
| more than 10 s between sending and receiving | ignored |
| wall clock and monotonic clock disagree about that time: the clock was set, or the machine was suspended | ignored |
| the two clocks have moved against each other since the last response | start again without a correction; see below |
| 4 responses over 4 s of server time agree that the clock is wrong by 5 s to 14 days | correction |
| they agree that it is wrong by more | no correction |
| empty intersection: a `Date` that stands still, or servers that disagree | no correction until 20 agree for 10 min |

When the wall clock gains on the monotonic clock, it was set, or the machine was suspended: nothing is known until
the next responses. When it falls back below the server's time, it was set back at least so far, and the correction
begins at once, which matters when the server cannot be reached.

A `Date` from a cache does not advance, so it contradicts itself within 4 s. A clock in front of Mixpanel that is wrong
and runs, such as that of a proxy that replaces each `Date`, cannot be recognised; the correction has a limit because
of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from enum import Enum
from math import inf
from typing import Final, NamedTuple

MAX_CORRECTION: Final = 14 * 86_400.0
"""Maximum number of seconds by which an event's time is corrected."""
MIN_DIFFERENCE: Final = 5.0
"""Seconds by which the local clock must be wrong for a correction."""
MIN_ANSWERS: Final = 4
"""Number of consistent responses for a correction."""
_MIN_ADVANCE: Final = 4.0
_MAX_ROUND_TRIP: Final = 10.0
_ANSWERS_AFTER_CONTRADICTION: Final = 20
_SECONDS_AFTER_CONTRADICTION: Final = 600.0
# One contradiction may be a response that was late. A warning needs more.
_CONTRADICTIONS_TO_REPORT: Final = 3
# Servers of one service may differ by this much, and some compute the header once a second.
_SERVER_ERROR: Final = 1.0
_RESOLUTION: Final = 1.0
# Relative error of a quartz clock without synchronization, with reserve.
_DRIFT: Final = 2e-4
# Seconds by which the two local clocks may move against each other at once: a leap second, or a pause between reads.
_JUMP: Final = 1.0
_MAX_BASES: Final = 32
# Length of a date such as `Mon, 21 Sep 2026 14:13:20 GMT`, the format that HTTP requires.
_DATE_LENGTH: Final = 29


class Moment(NamedTuple):
    """One moment on both local clocks.

    Args:
        wall: seconds since 1970.
        monotonic: seconds since an arbitrary start. May stand still while the machine is suspended.
    """

    wall: float
    monotonic: float

    @property
    def base(self) -> float:
        """Wall clock at the zero of the monotonic clock. It is constant until the clock is set."""
        return self.wall - self.monotonic


class Correction(NamedTuple):
    """Correction of the local clock.

    Args:
        ahead: seconds that the local clock is ahead of Mixpanel's; 0 for no correction, negative if it is behind.
        measured: last moment when it was known to be so; `UNKNOWN` if it never was.
    """

    ahead: float
    measured: Moment

    def at(self, now: Moment) -> float:
        """Return the seconds to subtract from the wall clock.

        If the clock was set since the measurement, 0, unless it was set back below Mixpanel's time.
        """
        if not _is_jump(self.measured, now):
            return self.ahead
        # A suspension only adds to this, so the clock is behind by at least as much.
        ahead = self.ahead + now.base - self.measured.base
        return ahead if -MAX_CORRECTION <= ahead < -MIN_DIFFERENCE else 0.0


UNKNOWN: Final = Moment(-inf, 0.0)
NO_CORRECTION: Final = Correction(0.0, UNKNOWN)


def read_moment(wall_time: Callable[[], float], monotonic: Callable[[], float]) -> Moment:
    """Read the two clocks."""
    # The monotonic clock first: if the process is stopped between the two, the wall clock must not seem to be set back.
    now = monotonic()
    return Moment(wall_time(), now)


class ClockState(Enum):
    """State of the local clock that operators should know."""

    CORRECTED = "corrected"
    """It is wrong, and the times of events are corrected."""
    BEYOND_CORRECTION = "beyond_correction"
    """It is wrong by more than `MAX_CORRECTION`, and nothing is corrected."""
    CONTRADICTION = "contradiction"
    """The responses contradict each other, and nothing is corrected."""


class ClockNotice(NamedTuple):
    """Report of a new episode.

    Args:
        state: of the local clock.
        ahead: seconds that it is ahead of Mixpanel's.
    """

    state: ClockState
    ahead: float


def fresh_date(headers: Mapping[bytes, str]) -> str | None:
    """Return the `Date` header of a response, or None if another header shows that it comes from a cache.

    Args:
        headers: values by lower-case name.
    """
    is_cached = headers.get(b"age", "0").strip() != "0" or b"warning" in headers
    return None if is_cached else headers.get(b"date")


def parse_date(date: str | None) -> float | None:
    """Return the seconds since 1970 of a `Date` header, or None if it is absent or invalid."""
    if date is None or len(date) != _DATE_LENGTH or not date.endswith(" GMT"):
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


class ServerClock:
    """Estimate of Mixpanel's clock relative to the local clocks. Fed with each request.

    Attributes:
        correction: of the times of later events.
    """

    def __init__(self) -> None:
        self.correction = NO_CORRECTION
        self._last: Moment | None = None
        # Base of the wall clock from each of these monotonic times on.
        self._bases: deque[tuple[float, float]] = deque(maxlen=_MAX_BASES)
        # Server time at the zero of the monotonic clock, if it is known. Never too late: a monotonic clock that stands
        # still while the machine is suspended makes it too early.
        self._server_base: float | None = None
        self._forget_answers()
        self._answers_needed, self._not_before = MIN_ANSWERS, -inf
        self._contradictions = 0
        self._reported: set[ClockState] = set()

    def _forget_answers(self) -> None:
        """Forget the responses, and with them the correction."""
        self._low, self._high = -inf, inf
        self._answers = 0
        self._first_date = 0.0
        self._updated = 0.0
        self.correction = NO_CORRECTION

    def note(self, now: Moment) -> None:
        """Compare the two local clocks. What was learned about the wall clock ends when it was set."""
        if self._last is None or _is_jump(self._last, now):
            ahead = self.correction.at(now)
            self._bases.append((now.monotonic, now.base))
            self._forget_answers()
            if ahead:
                self.correction = Correction(ahead, now)
        self._last = now

    def observe(self, date: str | None, sent: Moment, received: Moment) -> ClockNotice | None:
        """Learn from a response.

        Args:
            date: its `Date` header.
            sent: moment before the request was sent.
            received: moment after the response was complete.

        Returns:
            The report of an episode that begins with this response, if one does.
        """
        self.note(received)
        server = parse_date(date)
        round_trip = received.monotonic - sent.monotonic
        if server is None or not 0.0 <= round_trip <= _MAX_ROUND_TRIP or _is_jump(sent, received):
            return None
        low = sent.wall - server - _RESOLUTION - _SERVER_ERROR
        high = received.wall - server + _SERVER_ERROR
        drift = _DRIFT * max(0.0, received.monotonic - self._updated)
        is_contradiction = max(low, self._low - drift) > min(high, self._high + drift)
        if is_contradiction:
            self._forget_answers()
            self._server_base = None
            self._contradictions += 1
            self._answers_needed = _ANSWERS_AFTER_CONTRADICTION
            self._not_before = received.monotonic + _SECONDS_AFTER_CONTRADICTION
        if not self._answers:
            self._first_date = server
        self._answers += 1
        self._low, self._high = max(low, self._low - drift), min(high, self._high + drift)
        self._updated = received.monotonic
        return self._conclude(server, received)

    def _conclude(self, server: float, now: Moment) -> ClockNotice | None:
        is_right = self._low <= MIN_DIFFERENCE and self._high >= -MIN_DIFFERENCE
        if is_right:
            # Two independent clocks agree, so one response is enough.
            self._server_base = now.base - self._high
            self.correction = Correction(0.0, now)
        is_sure = self._answers >= self._answers_needed and server - self._first_date >= _MIN_ADVANCE
        if not is_sure or now.monotonic < self._not_before:
            if self._contradictions >= _CONTRADICTIONS_TO_REPORT:
                return self._report(ClockState.CONTRADICTION, 0.0)
            return None
        self._answers_needed, self._not_before, self._contradictions = MIN_ANSWERS, -inf, 0
        self._reported.discard(ClockState.CONTRADICTION)
        if is_right:
            self._reported.clear()
            return None
        ahead = (self._low + self._high) / 2
        if abs(ahead) > MAX_CORRECTION:
            self.correction = NO_CORRECTION
            return self._report(ClockState.BEYOND_CORRECTION, ahead)
        # Constant while it fits, so that the times of events stay even.
        if self.correction.ahead and self._low <= self.correction.ahead <= self._high:
            ahead = self.correction.ahead
        self.correction = Correction(ahead, now)
        self._server_base = now.base - self._high
        return self._report(ClockState.CORRECTED, ahead)

    def _report(self, state: ClockState, ahead: float) -> ClockNotice | None:
        if state in self._reported:
            return None
        self._reported.add(state)
        return ClockNotice(state, ahead)

    def earliest_now(self, now: Moment, *, since: float | None) -> float | None:
        """Return a wall clock time that is not too late, to decide whether a record is too old.

        It is Mixpanel's time if a response has shown it. Otherwise it is the local time, and if the clock was set while
        the record waited, the earlier of the old and the new one.

        Args:
            now: the current moment.
            since: monotonic seconds when the record was accepted; None if an earlier process may have accepted it.

        Returns:
            Seconds since 1970, or None if there is no such time: the local clock alone is no evidence against a record
            of another process.
        """
        self.note(now)
        if self._server_base is not None:
            return now.monotonic + self._server_base
        if since is None:
            return None
        bases = [base for at, base in self._bases if at > since]
        before = [base for at, base in self._bases if at <= since]
        return now.monotonic + min([now.base, *bases, *before[-1:]])


def _is_jump(before: Moment, after: Moment) -> bool:
    """Return whether the local clocks moved against each other: one was set, or the machine was suspended."""
    return abs(after.base - before.base) > _JUMP + _DRIFT * abs(after.monotonic - before.monotonic)
