"""Stored form of records: without the project token, which is a credential; and the persons whom a record names."""

from __future__ import annotations

from typing import Any, Final

from .records import payload_of

# Valid JSON contains no raw control character.
_TOKEN_MARK: Final = b"\x01"
# Event properties that identify a person, in addition to `$distinct_ids` of a merge.
_PERSON_PROPERTIES: Final = (
    "distinct_id",
    "$user_id",
    "$device_id",
    "$identified_id",
    "$anon_id",
    "$anon_distinct_id",
    "alias",
)
DEVICE_PREFIX: Final = "$device:"
"""Prefix of the distinct id that belongs to a `$device_id`."""


def hide_token(body: bytes, token: bytes) -> bytes:
    """Return the bytes to store, with the encoded token replaced by a marker."""
    return body.replace(token, _TOKEN_MARK)


def show_token(body: bytes, token: bytes) -> bytes:
    """Return the bytes to send, with the encoded token put back."""
    return body.replace(_TOKEN_MARK, token)


def stored_payload(body: bytes) -> dict[str, Any] | None:
    """Return the payload of a stored record, without the token; None if it is unreadable."""
    try:
        return payload_of(show_token(body, b'"***"'))
    except (ValueError, AttributeError, TypeError):
        return None


def persons_of(payload: dict[str, Any]) -> set[str]:
    """Return the ids that a payload names: of a profile update, an event or an identity event."""
    properties = payload.get("properties")
    if not isinstance(properties, dict):
        own = payload.get("$distinct_id")
        return {own} if isinstance(own, str) else set()
    found = {value for name in _PERSON_PROPERTIES if isinstance(value := properties.get(name), str)}
    if isinstance(device := properties.get("$device_id"), str):
        found.add(DEVICE_PREFIX + device)
    merged = properties.get("$distinct_ids")
    if isinstance(merged, list):
        found.update(one for one in merged if isinstance(one, str))
    return found
