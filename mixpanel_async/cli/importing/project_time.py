"""Numeric times in the project's time zone: conversion to UTC, and how to recognise them.

In raw exports of projects made before 2023, `time` is the local time of the project, counted in seconds as if it were
UTC. `$mp_api_timestamp_ms`, where present, is the true time at which Mixpanel received the event. The difference of the
two, less a short latency, is the project's offset. Pure: no I/O, no clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone, tzinfo
from math import isfinite
from typing import Final, Protocol

ARRIVAL_FIELD: Final = "$mp_api_timestamp_ms"

# As in the client: numbers from here on are milliseconds.
_MILLISECONDS_FROM: Final = 100_000_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_QUARTER: Final = 900
# Offsets of time zones, in quarters of an hour: from -12:00 to +14:00, and none between -1:00 and +1:00 except 0.
_QUARTERS: Final = frozenset({*range(-48, -3), 0, *range(4, 57)})
# An event of an online client arrives this many seconds after its time, or before it if the client's clock is ahead.
_MAX_LATENCY: Final = 120
_MAX_AHEAD: Final = 60
# Shares of the records below which an offset is a coincidence, such as an event of a phone that was offline.
_MIN_RECORDS, _MIN_SHARE = 3, 0.1
_MIN_DAY_RECORDS, _MIN_DAY_SHARE = 10, 0.2
_DAY: Final = 86_400
_HOUR: Final = 3_600
# Times out of this range are not compared, which bounds the number of days: 1971 to 2100.
_FIRST_TIME, _LAST_TIME = 31_536_000, 4_102_444_800


def to_number(value: object) -> float | None:
    """Return a finite number or numeric text as a number, or None for anything else."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return value if isfinite(value) else None
    except OverflowError:
        # An integer that does not fit into a float.
        return None


class ProjectClock(Protocol):
    """Conversion of numeric times from project time."""

    def to_utc(self, time: float, arrival: float | None, content_id: str) -> float:
        """Convert a time to UTC. The unit stays the same.

        Args:
            time: local time in seconds or milliseconds.
            arrival: time at which Mixpanel received the event, in milliseconds in UTC; None if unknown.
            content_id: identifier of the file's content.
        """


class ZoneClock:
    """Clock of a project in a known time zone.

    In the hour that occurs twice when clocks go back, the arrival decides, and without a fitting arrival the time is
    taken as the first of the two (daylight saving time). A time in the hour that clocks skip is taken as if they were
    not changed.

    Args:
        zone: the project's time zone.
    """

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone

    def to_utc(self, time: float, arrival: float | None, content_id: str) -> float:  # noqa: ARG002
        seconds = to_seconds(time)
        try:
            local = (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=self._zone)
            first, second = _offset(local), _offset(local.replace(fold=1))
        except (OverflowError, ValueError):
            # The client rejects a time that is out of range.
            return time
        is_ambiguous = first > second
        is_second = is_ambiguous and arrival is not None and _is_fitting(seconds - second - arrival / 1000)
        return _subtract(time, second if is_second else first)


class ObservedClock:
    """Clock that uses the offsets seen in each file.

    A record whose own difference is one of the offsets of its file has that offset. Any other record, such as one
    without `$mp_api_timestamp_ms` or one that arrived late, has the offset that is most frequent in its hour of local
    time, or in the last hour before it that has one, or else in the first hour.

    Args:
        files: what was seen in each file, by identifier of its content. Each has at least one offset.
    """

    def __init__(self, files: Mapping[str, OffsetEvidence]) -> None:
        self._offsets = {content_id: frozenset(evidence.offsets()) for content_id, evidence in files.items()}
        self._timelines = {content_id: evidence.timeline() for content_id, evidence in files.items()}

    def to_utc(self, time: float, arrival: float | None, content_id: str) -> float:
        seconds = to_seconds(time)
        offset = None if arrival is None else _offset_between(seconds, arrival)
        if offset is None or offset not in self._offsets[content_id]:
            hours, offsets = self._timelines[content_id]
            offset = offsets[max(0, bisect_right(hours, seconds // _HOUR) - 1)]
        return _subtract(time, offset)


class OffsetEvidence:
    """Differences between the numeric times of a file and true UTC."""

    def __init__(self) -> None:
        self.records = 0
        """Number of records that were compared."""
        self._counts: Counter[int] = Counter()
        self._days: dict[int, Counter[int | None]] = {}
        self._hours: dict[int, Counter[int]] = {}

    def add(self, time: float, arrival: float) -> None:
        """Compare a record.

        Args:
            time: time of the event, in seconds or milliseconds.
            arrival: value of `$mp_api_timestamp_ms`.
        """
        seconds = to_seconds(time)
        if not _FIRST_TIME <= seconds <= _LAST_TIME:
            return
        self.records += 1
        offset = _offset_between(seconds, arrival)
        # The entry of None counts all records of the day.
        day = self._days.setdefault(int(seconds // _DAY), Counter())
        day[None] += 1
        if offset is not None:
            day[offset] += 1
            self._counts[offset] += 1
            self._hours.setdefault(int(seconds // _HOUR), Counter())[offset] += 1

    def offsets(self) -> dict[int, int]:
        """Return the number of records by offset in seconds, without offsets that are coincidences.

        An offset counts if all records have it, or a tenth of them and at least three, or a fifth of the records of one
        day and at least ten. The last rule finds a change to daylight saving time, and a part of a file that is from
        another source.
        """
        found = {
            offset
            for offset, count in self._counts.items()
            if count == self.records or (count >= _MIN_RECORDS and count >= _MIN_SHARE * self.records)
        }
        for day in self._days.values():
            enough = max(_MIN_DAY_RECORDS, _MIN_DAY_SHARE * day[None])
            found.update(offset for offset, count in day.items() if offset is not None and count >= enough)
        return {offset: self._counts[offset] for offset in sorted(found)}

    def timeline(self) -> tuple[list[int], list[int]]:
        """Return hours of local time since 1970, in order, and the most frequent offset of each."""
        known = self.offsets()
        hours, offsets = [], []
        for hour, counts in sorted(self._hours.items()):
            usual = [(count, offset) for offset, count in counts.items() if offset in known]
            if usual:
                hours.append(hour)
                offsets.append(max(usual)[1])
        return hours, offsets

    def describe(self) -> str:
        """Return the offsets in words, such as `+09:00 in 1,154 of 1,164 records`."""
        parts = [f"{_offset_name(offset)} in {count:,}" for offset, count in self.offsets().items()]
        return f"{' and '.join(parts)} of {self.records:,} record{'s' if self.records > 1 else ''}"


def to_seconds(time: float) -> float:
    """Return a time in seconds, given one in seconds or milliseconds which the client distinguishes by their size."""
    return time / 1000 if abs(time) >= _MILLISECONDS_FROM else time


def _subtract(time: float, offset: int) -> float:
    return time - offset * (1000 if abs(time) >= _MILLISECONDS_FROM else 1)


def _offset(local: datetime) -> int:
    offset = local.utcoffset()
    assert offset is not None
    return round(offset.total_seconds())


def _is_fitting(difference: float) -> bool:
    """Return whether a time in UTC less its arrival, in seconds, is usual for an online client."""
    return -_MAX_LATENCY <= difference <= _MAX_AHEAD


def _offset_between(seconds: float, arrival: float) -> int | None:
    """Return the offset of a local time from UTC in seconds, or None if the difference is not one of a time zone."""
    difference = seconds - arrival / 1000
    if abs(difference) > _DAY:
        return None
    quarter = round((difference + (_MAX_LATENCY - _MAX_AHEAD) / 2) / _QUARTER)
    is_offset = quarter in _QUARTERS and _is_fitting(difference - quarter * _QUARTER)
    return quarter * _QUARTER if is_offset else None


def _offset_name(offset: int) -> str:
    minutes = abs(offset) // 60
    return f"{'-' if offset < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"
