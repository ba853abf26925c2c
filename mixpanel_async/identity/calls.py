"""Identity calls: their names, their ids, and the ids that Mixpanel ignores. Pure.

Sources: Mixpanel's pages on identity management, `$identify`, `$create_alias` and `$merge`
(https://docs.mixpanel.com/docs/tracking-methods/id-management, read 2026-08-21). Observed in 2026-11: `$identify` of
the browser and mobile SDKs, with `distinct_id` and `$anon_distinct_id` instead of `$identified_id` and `$anon_id`, and
the form of the anonymous ids that a real project joined.

Decisions where Mixpanel's documents are silent
    - The form of an anonymous id: five groups of hexadecimal digits joined by dashes, in either letter case, with or
      without the prefix `$device:`. In Original and Legacy, the ids with and without the prefix are two ids.
    - An `$identify` in both spellings uses the documented one if it is complete, else that of the SDKs. Numbers count
      as text; other types and empty ids count as absent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

IDENTIFY: Final = "$identify"
"""Name of the event of `identify`."""
CREATE_ALIAS: Final = "$create_alias"
"""Name of the event of `alias`."""
MERGE: Final = "$merge"
"""Name of the event of `merge`."""
VERBS: Final = frozenset({IDENTIFY, CREATE_ALIAS, MERGE})
"""Names of the events that are identity calls."""

DEVICE_PREFIX: Final = "$device:"
"""Prefix of the id of a device in Simplified."""
DEVICE_LINK: Final = "$device"
"""Name of the links between devices and users, which events make in Simplified, in place of the name of a call."""

# https://docs.mixpanel.com/reference/import-events, read 2026-08-21.
FORBIDDEN_IDS: Final = frozenset(
    {
        "00000000-0000-0000-0000-000000000000", "anon", "anonymous", "nil", "none", "null", "n/a", "na", "undefined",
        "unknown", "<nil>", "0", "-1", "true", "false", "[]", "{}", "lmy47d",
    }
)  # fmt: skip
"""Ids that Mixpanel refuses, in lower case. The comparison ignores letter case."""
_MAX_FORBIDDEN: Final = 36

_ANONYMOUS_ID: Final = re.compile(r"(?:\$device:)?[0-9A-Fa-f]+(?:-[0-9A-Fa-f]+){4}")
_DOCUMENTED: Final = ("$identified_id", "$anon_id")
_OF_SDKS: Final = ("distinct_id", "$anon_distinct_id")


def as_id(value: object) -> str:
    """Return an id as text, as Mixpanel does. Numbers become text; other types count as absent (an empty string).

    Args:
        value: a value of any type.
    """
    if type(value) is str:
        return value
    return str(value) if type(value) in {int, float} else ""


def is_anonymous(text: str) -> bool:
    """Return whether Mixpanel joins this as the anonymous id of `$identify`, such as a UUID.

    Args:
        text: an id.
    """
    return _ANONYMOUS_ID.fullmatch(text) is not None


def is_forbidden(text: str) -> bool:
    """Return whether Mixpanel refuses this as an id, such as `undefined` or `null`. Letter case is ignored.

    Args:
        text: an id.
    """
    return len(text) <= _MAX_FORBIDDEN and text.lower() in FORBIDDEN_IDS


def verb_ids(verb: str, properties: Mapping[str, Any]) -> tuple[str, str] | str:
    """Return the two ids of an identity call, or the name of the property that is missing or malformed.

    Args:
        verb: `$identify`, `$create_alias` or `$merge`.
        properties: properties of the call, as sent.
    """
    if verb == MERGE:
        pair = properties.get("$distinct_ids")
        if type(pair) is not list or len(pair) != 2 or not all(as_id(item) for item in pair):
            return "$distinct_ids"
        return as_id(pair[0]), as_id(pair[1])
    if verb == CREATE_ALIAS:
        return _pair(properties, "distinct_id", "alias")
    documented, of_sdks = _pair(properties, *_DOCUMENTED), _pair(properties, *_OF_SDKS)
    if isinstance(documented, str) and not isinstance(of_sdks, str):
        return of_sdks
    if "$anon_distinct_id" in properties and properties.keys().isdisjoint(_DOCUMENTED):
        return of_sdks
    return documented


def _pair(properties: Mapping[str, Any], *names: str) -> tuple[str, str] | str:
    """Return the ids in two properties, or the name of the first one that has none."""
    first, second = (as_id(properties.get(name)) for name in names)
    if not first:
        return names[0]
    return (first, second) if second else names[1]


def id_problem(name: str, value: object) -> str:
    """Return the problem of a property that `verb_ids` has returned.

    Args:
        name: name of the property.
        value: its value.
    """
    if value is None:
        return "must not be missing"
    if name == "$distinct_ids":
        return "must be a list of two ids"
    return "must not be empty" if value == "" else "must be a string"


def sent_properties(properties: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the properties of an exported event with the `distinct_id` as sent.

    An export shows events under the person they count for now, and the id as sent in `$distinct_id_before_identity`.
    """
    before = properties.get("$distinct_id_before_identity")
    return properties if before is None else {**properties, "distinct_id": before}


def device_and_user(properties: Mapping[str, Any]) -> tuple[str, str]:
    """Return the `$device_id`, without prefix, and the `$user_id` of an event as Simplified ID Merge sees them.

    Forbidden and absent ids are empty strings. A `$user_id` with the prefix `$device:` names a device. The
    `distinct_id` is not read.
    """
    device, user = _linkable_id(properties.get("$device_id")), _linkable_id(properties.get("$user_id"))
    device = device.removeprefix(DEVICE_PREFIX)
    if user.startswith(DEVICE_PREFIX):
        device, user = device or user.removeprefix(DEVICE_PREFIX), ""
    return device, user


def linked_person(properties: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the id that `$device_id` and `$user_id` give an event in Simplified ID Merge, and the device it links.

    The id is empty if the event has neither, so that its `distinct_id` counts. The device has the prefix `$device:`,
    and is None if the event links none.
    """
    if "$device_id" not in properties and "$user_id" not in properties:
        return "", None
    device, user = device_and_user(properties)
    if user:
        return user, DEVICE_PREFIX + device if device else None
    return DEVICE_PREFIX + device if device else "", None


def _linkable_id(value: object) -> str:
    """Return an id that can be linked; an empty string for a forbidden one."""
    text = as_id(value)
    return "" if is_forbidden(text) else text
