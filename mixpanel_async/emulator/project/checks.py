"""Validation of events, record by record.

Pure. Cheap checks come first, and a valid record costs one pass over its properties.

Sources: https://docs.mixpanel.com/reference/import-events, /reference/track-event and
/docs/data-structure/property-reference (read 2026-08-21). Mixpanel's documents contain two of the messages, and its
importer three more. The others imitate their format. Do not parse them.

Decisions where Mixpanel's documents are silent
    - `time` is in milliseconds from 1e11 on (the year 5138 in seconds, 1973 in milliseconds), otherwise in seconds. It
      must be a number. Text made of digits is refused.
    - `/import` refuses a time more than an hour in the future, and replaces a nearer future time with the current time.
      `/track` replaces both, as its page says. Less than a millisecond ahead does not count as future.
    - "Fewer than 255" applies to properties, keys and list items. Lists and objects both count as one level of depth.
    - Text is truncated at 255 characters (the documents also say bytes), also in lists and objects, names included, but
      not in `distinct_id`, the other ids, `token` and `$insert_id`.
    - 1 MB is 1,048,576 bytes of the properties as compact JSON. The 8 KB limit of lists and objects, the number of
      event names, hot shards and retention are not enforced.
    - The limits on properties, the forbidden ids and the format of `$insert_id` apply to `/import` only.
    - Only `strict=1` requires an `$insert_id`: the official Node SDK imports without `strict` and sends none.
    - Identity calls need no `time`, no `$insert_id`, and no `distinct_id` unless the call uses it as one of its ids. If
      present, these are checked. The ids in the call's own properties are not compared with the forbidden list.
    - `$user_id` and `$device_id` are compared with the forbidden list in a Simplified project only.
    - Keys of a record other than `event` and `properties` are not stored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import orjson

from mixpanel_async.identity.calls import FORBIDDEN_IDS, VERBS

MAX_PROPERTIES: Final = 254
MAX_DEPTH: Final = 3
MAX_TEXT: Final = 255
MAX_EVENT_BYTES: Final = 1_048_576

# orjson writes at most 254 levels. What is stored must also fit into a response, which puts it into lists and objects.
_ENCLOSING_LEVELS: Final = 8
_EARLIEST_MS: Final = 365 * 86_400_000
_HOUR_MS: Final = 3_600_000
_TRACK_WINDOW_MS: Final = 5 * 86_400_000
_MILLISECONDS_FROM: Final = 1e11
_INSERT_ID: Final = re.compile(r"[A-Za-z0-9-]{1,36}")
_NEVER_TRUNCATED: Final = frozenset(
    {
        "distinct_id", "$insert_id", "token", "$device_id", "$user_id", "$identified_id", "$anon_id",
        "$anon_distinct_id", "alias",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Problem:
    """Reason why a record is refused: path of the field, and a message."""

    field: str
    message: str


def epoch_ms(time: float) -> int:
    """Return a Mixpanel time, given in seconds or milliseconds, as whole milliseconds."""
    return round(time if abs(time) >= _MILLISECONDS_FROM else time * 1000)


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a JSON number of at most 64 bits. A boolean is not a number."""
    if type(value) is int:
        return -(2**63) <= value < 2**64
    return type(value) is float and math.isfinite(value)


def encode_properties(properties: object) -> bytes | Problem:
    """Return compact JSON of properties to be stored, or the reason why they cannot be stored."""
    enclosed = properties
    for _ in range(_ENCLOSING_LEVELS):
        enclosed = [enclosed]
    try:
        payload = orjson.dumps(enclosed)
    except orjson.JSONEncodeError:
        path = _find_invalid_text(properties)
        if path is None:
            return Problem("properties", "'properties' is invalid: nested too deeply, or a number out of range")
        return Problem(path, f"{path} is invalid: string should be valid utf8")
    if len(payload) > MAX_EVENT_BYTES + 2 * _ENCLOSING_LEVELS:
        return Problem("", f"record exceeds max size of {MAX_EVENT_BYTES} bytes")
    # The result of orjson 3.13 keeps its 4 KiB working buffer alive. A slice does not.
    return payload[_ENCLOSING_LEVELS:-_ENCLOSING_LEVELS]


def check_shape(event: Any) -> Problem | None:
    """Check that a record is an object with a name and properties."""
    if type(event) is not dict:
        return Problem("", "record must be a JSON object")
    name, properties = event.get("event"), event.get("properties")
    if type(name) is not str or not name or name.isspace():
        return Problem("event", "'event' must not be missing or blank")
    if not _is_valid_text(name):
        return Problem("event", "'event' is invalid: string should be valid utf8")
    if type(properties) is not dict:
        return Problem("properties", "'properties' is invalid: must be an object")
    return None


def check_import(event: Any, now_ms: int, *, simplified: bool, strict: bool) -> Problem | None:
    """Check one record of `/import`, and rewrite near future times and long text as Mixpanel does.

    Args:
        event: the parsed record. Changed in place.
        now_ms: current time in milliseconds since the epoch.
        simplified: whether the project uses Simplified ID Merge, where the `distinct_id` is optional.
        strict: whether the request has `strict=1`, which requires an `$insert_id`.
    """
    problem = check_shape(event)
    if problem is not None:
        return problem
    properties: dict[str, Any] = event["properties"]
    verb = event["event"] in VERBS
    problem = (
        _time_problem(properties, now_ms, required=not verb)
        or _distinct_id_problem(properties, verb=verb, simplified=simplified)
        or _insert_id_problem(properties, required=strict and not verb)
    )
    if problem is not None:
        return problem
    if len(properties) > MAX_PROPERTIES:
        return Problem("properties", f"'properties' is invalid: must have at most {MAX_PROPERTIES} keys")
    for key, value in properties.items():
        kind = type(value)
        if (kind is list or kind is dict) and not _is_flat(value):
            problem = _nested_problem(f"properties.{valid_text(key)}", value, 1)
            if problem is not None:
                return problem
    _truncate_event(event)
    return None


def check_track(event: Any, now_ms: int) -> Problem | None:
    """Check one record of `/track`, and rewrite times and long text as Mixpanel does. `time` defaults to now."""
    problem = check_shape(event)
    if problem is not None:
        return problem
    properties: dict[str, Any] = event["properties"]
    time = properties.get("time")
    if time is None:
        properties["time"] = now_ms / 1000
    elif not is_number(time):
        return invalid_property("time", "must be specified as seconds since epoch")
    elif epoch_ms(time) > now_ms:
        properties["time"] = _now_in_unit_of(time, now_ms)
    if type(properties.get("distinct_id")) in {bool, dict, list}:
        return invalid_property("distinct_id", "must be a string")
    _truncate_event(event)
    return None


def too_old_for_track(properties: Mapping[str, Any], now_ms: int) -> bool:
    """Return whether an event is older than the five days that `/track` accepts."""
    return epoch_ms(properties["time"]) < now_ms - _TRACK_WINDOW_MS


def is_ignored(properties: Mapping[str, Any]) -> bool:
    """Return whether `$ignore` asks Mixpanel to drop the event: `true` or any non-empty text."""
    value = properties.get("$ignore")
    return value is True or (type(value) is str and bool(value))


def invalid_property(name: str, reason: str) -> Problem:
    """Return a problem with one property, in the format of Mixpanel's messages."""
    return Problem(f"properties.{name}", f"'properties.{name}' is invalid: {reason}")


def _now_in_unit_of(time: float, now_ms: int) -> float:
    return now_ms if time >= _MILLISECONDS_FROM else now_ms / 1000


def _time_problem(properties: dict[str, Any], now_ms: int, *, required: bool) -> Problem | None:
    time = properties.get("time")
    if time is None:
        return invalid_property("time", "must not be missing") if required else None
    if not is_number(time):
        return invalid_property("time", "must be specified as seconds since epoch")
    ms = epoch_ms(time)
    if ms < _EARLIEST_MS:
        return invalid_property("time", "must not be before 1971-01-01")
    if ms > now_ms:
        if ms > now_ms + _HOUR_MS:
            return invalid_property("time", "must not be in the future")
        properties["time"] = _now_in_unit_of(time, now_ms)
    return None


def _distinct_id_problem(properties: dict[str, Any], *, verb: bool, simplified: bool) -> Problem | None:
    names = ("distinct_id", "$user_id", "$device_id") if simplified else ("distinct_id",)
    present = False
    for name in names:
        value = properties.get(name)
        if value is None:
            continue
        present = True
        if type(value) is str:
            if len(value) <= 36 and value.lower() in FORBIDDEN_IDS:
                return invalid_property(name, "is not an allowed value")
        elif type(value) not in {int, float}:
            return invalid_property(name, "must be a string")
        elif str(value) in FORBIDDEN_IDS:
            return invalid_property(name, "is not an allowed value")
    return None if present or verb else invalid_property("distinct_id", "must not be missing")


def _insert_id_problem(properties: dict[str, Any], *, required: bool) -> Problem | None:
    value = properties.get("$insert_id")
    if value is None:
        return invalid_property("$insert_id", "must not be missing") if required else None
    if type(value) is not str or not _INSERT_ID.fullmatch(value):
        return invalid_property("$insert_id", "must be 1 to 36 characters of A-Z, a-z, 0-9 and -")
    if value.lower() in FORBIDDEN_IDS:
        return invalid_property("$insert_id", "is not an allowed value")
    return None


def _is_flat(value: dict[str, Any] | list[Any]) -> bool:
    """Return whether a list or object is short and not nested. This common case needs no path for error messages."""
    kinds = set(map(type, value.values() if type(value) is dict else value))
    return len(value) <= MAX_PROPERTIES and dict not in kinds and list not in kinds


def _nested_problem(path: str, value: Any, depth: int) -> Problem | None:
    if depth > MAX_DEPTH:
        return Problem(path, f"'{path}' is invalid: nested more than {MAX_DEPTH} levels deep")
    if len(value) > MAX_PROPERTIES:
        return Problem(path, f"'{path}' is invalid: must have at most {MAX_PROPERTIES} items")
    items = value.items() if type(value) is dict else enumerate(value)
    for key, item in items:
        if type(item) in {dict, list}:
            problem = _nested_problem(f"{path}.{valid_text(str(key))}", item, depth + 1)
            if problem is not None:
                return problem
    return None


def _truncate_event(event: dict[str, Any]) -> None:
    """Truncate long text in place. A typical event has none, and is only scanned."""
    if len(event["event"]) > MAX_TEXT:
        event["event"] = event["event"][:MAX_TEXT]
    properties = event["properties"]
    for key, value in properties.items():
        kind = type(value)
        if kind is str:
            if len(value) > MAX_TEXT and key not in _NEVER_TRUNCATED:
                break
        elif (kind is list or kind is dict) and _has_long_text(value, 1):
            break
        if len(key) > MAX_TEXT:
            break
    else:
        return
    event["properties"] = {
        key[:MAX_TEXT]: value if key in _NEVER_TRUNCATED or key == "$distinct_ids" else truncate_text(value, 1)
        for key, value in properties.items()
    }


def _has_long_text(value: dict[str, Any] | list[Any], depth: int) -> bool:
    """Return whether `truncate_text` would change a list or object at this depth, counted from 1."""
    if depth > MAX_DEPTH:
        return False
    items: Iterable[Any] = value
    if type(value) is dict:
        if any(len(key) > MAX_TEXT for key in value):
            return True
        items = value.values()
    for item in items:
        kind = type(item)
        if kind is str:
            if len(item) > MAX_TEXT:
                return True
        elif (kind is list or kind is dict) and _has_long_text(item, depth + 1):
            return True
    return False


def truncate_text(value: Any, depth: int) -> Any:
    """Return a JSON value at this depth, counted from 1, with long text truncated, names included."""
    if type(value) is str:
        return value[:MAX_TEXT]
    # Deeper levels than Mixpanel allows are not changed. They occur on `/track` only, and hostile input may be nested
    # too deeply to recurse.
    if depth > MAX_DEPTH:
        return value
    if type(value) is list:
        return [truncate_text(item, depth + 1) for item in value]
    if type(value) is dict:
        return {key[:MAX_TEXT]: truncate_text(item, depth + 1) for key, item in value.items()}
    return value


def _find_invalid_text(value: object) -> str | None:
    """Return the path of a text that is not valid UTF-8, or None. Does not recurse, because input may be hostile."""
    pending: list[tuple[str, object]] = [("properties", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, str):
            if not _is_valid_text(item):
                return path
        elif isinstance(item, dict):
            for key, inner in item.items():
                if not _is_valid_text(key):
                    return path
                pending.append((f"{path}.{key}", inner))
        elif isinstance(item, list):
            pending.extend((f"{path}.{index}", inner) for index, inner in enumerate(item))
    return None


def valid_text(value: str) -> str:
    """Return text without the surrogates that stand for invalid UTF-8, so that it can be part of a response."""
    return value if _is_valid_text(value) else value.encode("utf-8", "replace").decode()


def _is_valid_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
