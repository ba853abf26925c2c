"""Warning about identity events in files whose events are not in order of arrival. Pure: no I/O.

Mixpanel joins ids in the order in which identity events arrive, and the first one wins. A raw export is not sorted, and
an import keeps the order of the file.
"""

from __future__ import annotations

from datetime import datetime
from math import inf
from typing import Final

from .event_order import IDENTITY_EVENTS
from .project_time import ARRIVAL_FIELD, to_number, to_seconds
from .spread import SpreadRecord

EARLY_WARNING: Final = (
    "Warning: the file has identity events, and its events are not in order of arrival. To sort the file first, "
    "interrupt the import with Ctrl-C. See docs/guides/importing.md, Sort an export."
)
"""Warning for a run that is sending already."""

# Added by Mixpanel to events of `/track` and `/import`. The first one is the time of the request.
_ARRIVAL_FIELDS: Final = (ARRIVAL_FIELD, "mp_processing_time_ms")


class ArrivalOrder:
    """Order of the events of a run, over all its files."""

    def __init__(self) -> None:
        self._events = self._late = 0
        self._identity_events = self._links = self._late_links = 0
        self._latest = self._latest_link = -inf

    def add(self, record: object, name: object, user_id: object, device_id: object, time: object) -> None:
        """Add the next event.

        Args:
            record: the record in the file, which may have a time of arrival.
            name: name of the event.
            user_id: value of `$user_id`, or None.
            device_id: value of `$device_id`, or None.
            time: converted time in seconds or milliseconds, or as a datetime; None if unknown.
        """
        self._events += 1
        position = _arrival(record)
        if position is None:
            position = _seconds(time)
        if position is None:
            position = self._latest
        if position < self._latest:
            self._late += 1
        else:
            self._latest = position
        # A tuple, because an invalid name may not be hashable.
        if name in IDENTITY_EVENTS:
            self._identity_events += 1
        if user_id and device_id:
            self._links += 1
            if position < self._latest_link:
                self._late_links += 1
            else:
                self._latest_link = position

    def warning(self) -> str | None:
        """Return the warning for the events so far, or None if their order cannot matter."""
        if not (self._identity_events and self._late) and not self._late_links:
            return None
        found = []
        if self._identity_events:
            found.append(f"{_counted(self._identity_events, 'identity event')}")
        if self._links:
            found.append(
                f"{_counted(self._links, 'event')} with $device_id and $user_id, which join the two in Simplified"
            )
        return (
            f"Warning: {self._late:,} of {_counted(self._events, 'event')} are not in order of arrival, and there are "
            f"{' and '.join(found)}. In this order a device may be joined to another user, which cannot be undone. "
            "Sort the events before the import: see docs/guides/importing.md, Sort an export."
        )


def _arrival(record: object) -> float | None:
    """Return the time of arrival of an exported event in seconds, or None without one."""
    columns = record.row if isinstance(record, SpreadRecord) else record
    if type(columns) is not dict:
        return None
    properties = columns.get("properties")
    fields = properties if type(properties) is dict else columns
    for name in _ARRIVAL_FIELDS:
        if name in fields and (arrival := to_number(fields[name])) is not None:
            return arrival / 1000
    return None


def _seconds(time: object) -> float | None:
    if isinstance(time, datetime):
        return time.timestamp()
    number = to_number(time)
    return None if number is None else to_seconds(number)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
