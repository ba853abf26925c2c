"""When an event happened: as Mixpanel has it, and as far as its endpoints take it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from math import isfinite
from typing import Final

import orjson

from .._model.errors import ValidationError

_FIRST_MS: Final = 31_536_000_000
_AHEAD_MS: Final = 3_600_000
_TRACK_WINDOW_MS: Final = 5 * 86_400_000
# Below the first are seconds, below the second milliseconds; both spans reach past any time that can be sent.
_SECONDS_END: Final = 100_000_000_000
_MILLISECONDS_END: Final = 100_000_000_000_000


def event_time(value: object, path: str, *, now: float, recent: bool) -> int:
    """A time as Mixpanel's schema has it: whole milliseconds since 1970.

    Args:
        value: seconds or milliseconds since 1970, told apart at 1e11, or a `datetime` with a time zone.
        path: where it is, for errors.
        now: wall clock in seconds.
        recent: the event goes to `/track`, which takes the last five days only.

    Raises:
        ValidationError: if it is of another type, naive, before 1971, over an hour ahead, or too old for `/track`.
    """
    if isinstance(value, datetime):
        if value.tzinfo is None or value.utcoffset() is None:
            raise ValidationError(path, "must have a time zone; a naive datetime could be any of 26 hours")
        ms = round(value.timestamp() * 1000)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if isinstance(value, float) and not isfinite(value):
            raise ValidationError(path, "must be a finite number")
        if abs(value) >= _MILLISECONDS_END:
            raise ValidationError(path, "must be in seconds or milliseconds; this looks like a smaller unit")
        ms = round(value * 1000) if abs(value) < _SECONDS_END else round(value)
    else:
        raise ValidationError(path, f"must be a number or a datetime with a time zone, not {type(value).__name__}")
    now_ms = now * 1000
    if ms < _FIRST_MS:
        raise ValidationError(path, "must not be before 1971-01-01")
    if ms > now_ms + _AHEAD_MS:
        raise ValidationError(path, "must not be more than one hour in the future")
    if recent and ms < now_ms - _TRACK_WINDOW_MS:
        raise ValidationError(
            path, "is more than five days ago, which /track ignores; use import_data, or give the client credentials"
        )
    return ms


def expired_positions(items: Sequence[bytes], *, now: float) -> frozenset[int]:
    """Positions of the events that `/track` ignores by now, after a long outage.

    Args:
        items: encoded events.
        now: wall clock in seconds.
    """
    oldest = now * 1000 - _TRACK_WINDOW_MS
    times = (orjson.loads(memoryview(item))["properties"]["time"] for item in items)
    return frozenset(at for at, time in enumerate(times) if time < oldest)
