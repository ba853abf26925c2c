"""Event time: conversion to Mixpanel's format, and the range that its endpoints accept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, Final

import orjson

from .._model.errors import ValidationError
from .validation import check_insert_id, type_name

_MIN_MS: Final = 31_536_000_000
_MAX_AHEAD_MS: Final = 3_600_000
_TRACK_WINDOW_MS: Final = 5 * 86_400_000
# Error of the clock that decides whether an event is too old: monotonic clocks drift by seconds a day.
_CLOCK_ERROR_MS: Final = 300_000
# Numbers below the first limit are seconds, below the second milliseconds. Both ranges contain every valid time.
_SECONDS_END: Final = 100_000_000_000
_MILLISECONDS_END: Final = 100_000_000_000_000
_HEX_ID_LENGTH: Final = 32


def event_time(value: object, path: str, *, now: float, recent: bool) -> int:
    """Convert a time to whole milliseconds since 1970, the format of Mixpanel's schema.

    Args:
        value: seconds or milliseconds since 1970 (numbers from 1e11 on are milliseconds), or an aware `datetime`.
        path: property path for errors.
        now: wall clock in seconds.
        recent: the event goes to `/track`, which accepts only the last five days.

    Raises:
        ValidationError: if the value has another type, is a naive `datetime`, is before 1971, is more than one hour in
            the future, or is too old for `/track`.
    """
    if type(value) is float or (isinstance(value, (int, float)) and not isinstance(value, bool)):
        size = abs(value)
        if not size < _MILLISECONDS_END:
            if isinstance(value, float) and not isfinite(value):
                raise ValidationError(path, "must be a finite number")
            raise ValidationError(
                path, "must be in seconds or milliseconds; this looks like microseconds or nanoseconds"
            )
        ms = round(value * 1000) if size < _SECONDS_END else round(value)
    elif isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise ValidationError(
                path, "must have a time zone; pass an aware datetime, such as datetime.now(timezone.utc)"
            )
        ms = round(value.timestamp() * 1000)
    else:
        raise ValidationError(path, f"must be a number or a datetime with a time zone, not {type_name(value)}")
    now_ms = now * 1000
    if ms < _MIN_MS:
        raise ValidationError(path, "must not be before 1971-01-01")
    if ms > now_ms + _MAX_AHEAD_MS:
        raise ValidationError(path, "must not be more than one hour in the future")
    if recent and ms < now_ms - _TRACK_WINDOW_MS:
        raise ValidationError(
            path, "is more than five days ago, which /track ignores; use import_data, or give the client credentials"
        )
    return ms


def time_fragment(now_ms: int) -> bytes:
    """Return the `time` of a record up to its `$insert_id`.

    Args:
        now_ms: milliseconds since 1970.
    """
    return b'%d,"$insert_id":"' % now_ms


def restamp(stamp: bytes, time: object, insert_id: object, *, recent: bool) -> bytes:
    """Return a stamp with the time or the `$insert_id` of the caller.

    Args:
        stamp: `time_fragment` of the current time, followed by an `$insert_id`.
        time: as in `event_time`; None to keep the current one.
        insert_id: the id; None to keep that of the stamp.
        recent: as in `event_time`.

    Raises:
        ValidationError, TypeError, UnicodeEncodeError: if one of them is not valid.
    """
    now, _, made_id = stamp.partition(b',"$insert_id":"')
    ms = int(now) if time is None else event_time(time, "", now=int(now) / 1000, recent=recent)
    if insert_id is not None:
        if type(insert_id) is not str:
            raise TypeError
        made_id = insert_id.encode()
        # Every hexadecimal id of a UUID, of which none is a placeholder.
        if len(made_id) != _HEX_ID_LENGTH or not made_id.isalnum():
            check_insert_id(insert_id, "")
    return b'%d,"$insert_id":"%b' % (ms, made_id)


def stamp_time(stamp: bytes) -> float:
    """Return the time of a stamp in seconds since 1970."""
    return int(stamp.partition(b",")[0]) / 1000


def payload_time(payload: Mapping[str, Any]) -> float | None:
    """Return the time of an event or a profile update in seconds since 1970, or None if it has none."""
    properties = payload.get("properties")
    value, unit = (properties.get("time"), 1000) if isinstance(properties, dict) else (payload.get("$time"), 1)
    return value / unit if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def record_time(item: bytes) -> float | None:
    """Return the time of an encoded record, as `payload_time` does."""
    return payload_time(orjson.loads(memoryview(item)))


def expired_positions(items: Sequence[bytes], *, now: float) -> frozenset[int]:
    """Return the positions of events that have become too old for `/track`, for example during an outage.

    Args:
        items: encoded events, and identity records, which have no time and never become too old.
        now: seconds since 1970, not too late; see `ServerClock.earliest_now`.
    """
    oldest = now * 1000 - _TRACK_WINDOW_MS - _CLOCK_ERROR_MS
    times = (orjson.loads(memoryview(item))["properties"].get("time", oldest) for item in items)
    return frozenset(at for at, time in enumerate(times) if time < oldest)
