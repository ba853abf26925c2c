"""A record of a file to the arguments of the client's call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import Any, Final

import orjson

from mixpanel_async import ValidationError

from .column_mapping import ColumnMapping, ImportKind, InsertIds, Operation, Record
from .source import Unreadable

Event = tuple[str | None, str, Record, str | None, str | None, float | datetime, str]
"""Distinct id, name, properties, user id, device id, time, insert id."""

# What Mixpanel puts into the events that it exports, and the token of the project that they came from. Source: its
# pages on default and on reserved properties, read 2026-08-21.
_NOT_THEIRS: Final = (
    "token",
    "$import",
    "$mp_api_endpoint",
    "$mp_api_timestamp_ms",
    "$mp_event_size",
    "mp_processing_time_ms",
)
_BESIDE: Final = frozenset(
    {
        "$distinct_id",
        "$group_key",
        "$group_id",
        "$time",
        "$ip",
        "$ignore_time",
        "$ignore_alias",
        "$latitude",
        "$longitude",
    }
)
# As Python's `surrogateescape` reads a byte that it cannot decode.
_ODD_BYTE: Final = re.compile("[\udc80-\udcff]")
_OPERATIONS: Final = frozenset(f"${one.value}" for one in Operation)


def event_of(shape: ColumnMapping) -> Callable[[object, object], Event]:
    """The function that reads an event. It gets a record, and what tells its line from all others.

    It takes Mixpanel's own form, `{"event": ..., "properties": {...}}`, as its raw export has it, and flat records, in
    which what is no field is a property. It raises `ValidationError`.
    """
    is_bare = shape.is_bare
    read_time, passes_numbers = shape.clock.read, shape.clock.passes_numbers
    by_line = shape.insert_ids is InsertIds.LINE

    def read(record: object, place: object) -> Event:
        if type(record) is not dict:
            raise no_object(record)
        properties = record.get("properties")
        if is_bare and type(properties) is dict and len(record) == 2:
            properties = properties.copy()
            name = record.get("event")
        else:
            properties = _flat(record, shape)
            name = properties.pop("event", None)
        for key in _NOT_THEIRS:
            if key in properties:
                del properties[key]
        distinct_id = _as_text(properties.pop("distinct_id", None))
        user_id = device_id = None
        if "$user_id" in properties or "$device_id" in properties:
            user_id, device_id = _settled_ids(properties)
        time = properties.pop("time", None)
        if not (passes_numbers and (type(time) is int or type(time) is float)):
            time = read_time(time, "time")
        insert_id = properties.pop("$insert_id", None)
        if insert_id is None or insert_id == "":
            content = (name, distinct_id, time, properties)
            insert_id = _digest((place, content) if by_line else content)
        # The types are for the client to check.
        return distinct_id, name, properties, user_id, device_id, time, _as_text(insert_id)  # type: ignore[return-value]

    return read


def no_object(record: object) -> ValidationError:
    """What is said of a row that holds no record."""
    return ValidationError("", record.problem if isinstance(record, Unreadable) else "is no JSON object")


def _settled_ids(properties: Record) -> tuple[Any, Any]:
    for key in ("$user_id", "$device_id"):
        if key in properties:
            properties[key] = _as_text(properties[key])
    return properties.get("$user_id"), properties.get("$device_id")


def update_of(shape: ColumnMapping) -> Callable[[object], Record]:
    """The function that reads an update of a profile.

    It takes Mixpanel's own form, with an operation such as `$set`; that of its profile export, with `$properties`; and
    flat records, in which what is no field is a property. Without a `$time` of its own an update leaves `$last_seen`
    alone. It raises `ValidationError`.
    """

    def read(record: object) -> Record:
        if type(record) is not dict:
            raise no_object(record)
        if not _OPERATIONS.isdisjoint(record):
            message = {key: value for key, value in record.items() if key != "$token"}
            message.update({key: value for key, value in shape.constants.items() if key in _BESIDE})
        else:
            message = _gathered(record, shape)
        for key in ("$distinct_id", "$group_id"):
            if key in message:
                message[key] = _as_text(message[key])
        if shape.kind is ImportKind.GROUPS:
            message.setdefault("$group_key", None)
            message.pop("$distinct_id", None)
        elif "$time" not in message:
            # Nobody was seen just now because a file is imported; mixpanel-utils does the same.
            message.setdefault("$ignore_time", True)
        if "$time" in message and type(message["$time"]) not in {int, float}:
            when = shape.clock.read(message["$time"], "$time")
            message["$time"] = when.timestamp() if isinstance(when, datetime) else when
        return message

    return read


def explained(error: ValidationError, record: object, shape: ColumnMapping) -> ValidationError:
    """What is said of a record: the mapping that found nothing, if that is what is wrong."""
    if type(record) is not dict:
        return error
    if "lone surrogate" in error.problem and _has_odd_bytes(record):
        return ValidationError(error.path, "is not in the encoding of the file; for CSV, --encoding names another")
    if shape.kind is ImportKind.EVENTS and "event" not in record and _is_update(record):
        kind = "groups" if "$group_key" in record else "people"
        return ValidationError("", f"looks like an update of a profile, for which there is --kind {kind}")
    if not shape.columns:
        return error
    mapping = shape.missed(_event(record) if shape.kind is ImportKind.EVENTS else _profile(record), error.path)
    return error if mapping is None else ValidationError(error.path, f"is missing, as --map {mapping} finds nothing")


def _has_odd_bytes(record: Record) -> bool:
    """Whether a flat record has text with bytes in it that could not be read."""
    return any(_ODD_BYTE.search(text) for pair in record.items() for text in pair if type(text) is str)


def _is_update(record: Record) -> bool:
    return "$properties" in record or not _OPERATIONS.isdisjoint(record)


def _event(record: Record) -> Record:
    """An event with everything side by side."""
    properties = record.get("properties")
    if type(properties) is not dict:
        return record
    beside = {key: value for key, value in record.items() if key != "properties"}
    return {**beside, **properties, **({"event": record["event"]} if "event" in record else {})}


def _profile(record: Record) -> Record:
    """The same of an exported profile."""
    exported = record.get("$properties")
    if type(exported) is not dict:
        return record
    return {**exported, **{key: value for key, value in record.items() if key != "$properties"}}


def _flat(record: Record, shape: ColumnMapping) -> Record:
    flat = shape.applied(_event(record))
    if "$insert_id" not in flat and "insert_id" in flat:
        flat["$insert_id"] = flat.pop("insert_id")
    return flat


def _gathered(record: Record, shape: ColumnMapping) -> Record:
    """A flat record as an update with the operation of the options."""
    flat = shape.applied(_profile(record))
    flat.pop("$token", None)
    for short, wire in shape.fields.items():
        if short in {"distinct_id", "group_key", "group_id"} and short in flat:
            flat.setdefault(wire, flat.pop(short))
    beside = {key: flat.pop(key) for key in [*flat] if key in _BESIDE}
    operation: Mapping[Operation, Any] = {Operation.UNSET: [*flat], Operation.DELETE: ""}
    return {**beside, f"${shape.operation.value}": operation.get(shape.operation, flat)}


def _as_text(value: Any) -> Any:
    """An id that a file has as a number, as an app that sends `str(user.id)` writes it."""
    return str(value) if type(value) is int else value


def _digest(content: object) -> str:
    return blake2b(_packed(content), digest_size=16).hexdigest()


def _packed(content: object) -> bytes:
    """The same bytes for the same content, whatever the order of its keys."""
    try:
        return orjson.dumps(content, default=repr, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # The client will refuse it: a lone surrogate, or a number of more than 64 bits.
        return repr(content).encode(errors="backslashreplace")


def key_of(message: Mapping[str, Any]) -> str | int:
    """What tells a message that the client gives back from the others under way."""
    properties = message.get("properties")
    if isinstance(properties, dict):
        return str(properties.get("$insert_id"))
    stable = {key: value for key, value in message.items() if key not in {"$time", "$token"}}
    return hash(_packed(stable))
