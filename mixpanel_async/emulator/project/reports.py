"""Events and identity calls in the form of reports, computed from copies of the project's rows.

A copy of the rows is made under the lock of the project. The rest takes longer and needs no lock, because rows never
change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from mixpanel_async.identity.calls import as_id

from .change_set import EventRow, IdentityRow
from .checks import epoch_ms, is_number


def reported_events(rows: Iterable[tuple[EventRow, str]]) -> list[dict[str, Any]]:
    """Return the deduplicated events. A duplicate replaces the first copy.

    Args:
        rows: stored events, each with the id of the person it counts for now.
    """
    latest: dict[object, dict[str, Any]] = {}
    for number, (row, person) in enumerate(rows):
        properties, sent = read_event(row)
        properties["$distinct_id_before_identity"] = sent
        properties["distinct_id"] = person
        latest[_duplicate_key(row[0], sent, properties) or number] = {"event": row[0], "properties": properties}
    return list(latest.values())


def arrived_events(rows: Iterable[EventRow]) -> list[dict[str, Any]]:
    """Return all events, duplicates included, in order of arrival, under the id they counted under at arrival."""
    events = []
    for row in rows:
        properties, sent = read_event(row)
        if sent != row[1]:
            properties["$distinct_id_before_identity"] = sent
        properties["distinct_id"] = row[1]
        events.append({"event": row[0], "properties": properties})
    return events


def count_duplicates(rows: Iterable[EventRow]) -> int:
    """Return the number of stored events that duplicate another event."""
    keys: set[object] = set()
    duplicates = 0
    for row in rows:
        properties, sent = read_event(row)
        key = _duplicate_key(row[0], sent, properties)
        if key is not None:
            duplicates += key in keys
            keys.add(key)
    return duplicates


def identity_entries(rows: Iterable[IdentityRow]) -> list[dict[str, Any]]:
    """Return each identity call, and each device link in Simplified, with its result."""
    return [
        {
            "event": name,
            "properties": orjson.loads(payload),
            "outcome": result.outcome,
            "$failure_reason": result.failure_code,
            "$failure_description": result.description,
        }
        for name, payload, result in rows
    ]


def read_event(row: EventRow) -> tuple[dict[str, Any], str]:
    """Return the properties of an event and the id with which it was sent."""
    properties: dict[str, Any] = orjson.loads(row[2])
    return properties, as_id(properties.get("distinct_id")) or row[1]


def _duplicate_key(name: str, sent: str, properties: Mapping[str, Any]) -> tuple[str, int, str, str] | None:
    insert_id, time = properties.get("$insert_id"), properties.get("time")
    if type(insert_id) is not str or not insert_id or not is_number(time):
        return None
    return name, epoch_ms(time), sent, insert_id
