"""Events of identity tests, in the form of a raw export."""

from __future__ import annotations

import uuid
from typing import Any

Event = dict[str, Any]

START = 1_700_000_000


def visitor(number: int) -> str:
    """Return an anonymous id."""
    return str(uuid.UUID(int=number + (1 << 100), version=4))


def track(distinct_id: str, **properties: Any) -> Event:
    return {"event": "Viewed", "properties": {"distinct_id": distinct_id, **named(properties)}}


def device(device_id: str, user: str = "", **properties: Any) -> Event:
    """Return an event of a device, with a user after log-in, as Simplified projects get them."""
    ids = {"$device_id": device_id, **({"$user_id": user} if user else {})}
    return track(user or f"$device:{device_id}", **{name[1:]: value for name, value in ids.items()}, **properties)


def identify(user: str, anonymous: str) -> Event:
    ids = {"distinct_id": user, "$identified_id": user, "$anon_id": anonymous}
    return {"event": "$identify", "properties": ids}


def alias(distinct_id: str, new: str) -> Event:
    return {"event": "$create_alias", "properties": {"distinct_id": distinct_id, "alias": new}}


def merge(first: str, second: str) -> Event:
    return {"event": "$merge", "properties": {"$distinct_ids": [first, second]}}


def named(properties: dict[str, Any]) -> Event:
    """Return properties with the dollar sign, which Python names cannot have."""
    return {f"${name}": value for name, value in properties.items()}


def dated(events: list[Event]) -> list[Event]:
    """Return the events with a second between each, as `time` and as time of arrival."""
    return [
        {
            "event": one["event"],
            "properties": {
                "time": START + second,
                "mp_processing_time_ms": (START + second) * 1000,
                **({"$import": True} if one["event"] == "$merge" else {}),
                **one["properties"],
            },
        }
        for second, one in enumerate(events)
    ]
