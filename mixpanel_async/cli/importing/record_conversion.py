"""Conversion of file records to the arguments of client calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import orjson

from mixpanel_async import ValidationError, limit_depth

from .event_order import IDENTITY_EVENTS
from .option_values import ImportKind, InsertIds, Operation
from .project_time import ARRIVAL_FIELD, to_number
from .record_source import UnreadableRow
from .spread import Record, SpreadFault, SpreadRecord

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping

EventArguments = tuple[str | None, str, Record, str | None, str | None, float | datetime | None, str]
"""Distinct id, name, properties, user id, device id, time (None: now), insert id."""
RowId = tuple[str, int]
"""Identifier of the file's content, and the line."""

# Added by Mixpanel to exported events whose `distinct_id` it has replaced by another id of the same person.
_SENT_ID: Final = "$distinct_id_before_identity"
# Properties that Mixpanel adds to exported events, and the token of the source project. Source: Mixpanel's pages on
# default and reserved properties, read 2026-08-21.
_EXPORT_ONLY_PROPERTIES: Final = (
    "token",
    "$import",
    "$mp_api_endpoint",
    ARRIVAL_FIELD,
    "$mp_event_size",
    "mp_processing_time_ms",
)
# Values of a boolean column, also of a CSV file.
_TRUE: Final = (True, "true", "True", "1")
# Keys of a profile update that are siblings of its operation.
_UPDATE_FIELDS: Final = frozenset(
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
# Python's `surrogateescape` decodes an invalid byte to one of these.
_INVALID_BYTE: Final = re.compile("[\udc80-\udcff]")
_OPERATIONS: Final = frozenset(f"${operation.value}" for operation in Operation)


def event_converter(mapping: ColumnMapping) -> Callable[[object, RowId], EventArguments]:
    """Return a function that converts an event record. Its second argument identifies the record's line.

    It accepts Mixpanel's own form, `{"event": ..., "properties": {...}}`, as in a raw export, and flat records, where
    every key that is not a field is a property. It raises `ValidationError` for anything else.
    """
    is_identity = mapping.is_identity
    convert_time = _time_converter(mapping)
    is_time_converted = mapping.project_clock is not None or not mapping.time_parser.passes_numbers
    make_insert_id = _INSERT_ID_MAKERS[mapping.insert_ids]

    def convert(record: object, row_id: RowId) -> EventArguments:
        if type(record) is dict and is_identity and len(record) == 2 and type(record.get("properties")) is dict:
            properties = record["properties"].copy()
            name = record.get("event")
        else:
            properties = _flat_event(record, mapping)
            name = properties.pop("event", None)
        distinct_id = _id_to_text(properties.pop("distinct_id", None))
        if name in IDENTITY_EVENTS:
            distinct_id = _complete_identity_event(name, distinct_id, properties)
        user_id = device_id = None
        if "$user_id" in properties or "$device_id" in properties:
            user_id, device_id = _convert_ids(properties)
        time = properties.pop("time", None)
        if is_time_converted or not (type(time) is int or type(time) is float):
            time = convert_time(name, time, properties, row_id[0])
        for key in _EXPORT_ONLY_PROPERTIES:
            if key in properties:
                del properties[key]
        insert_id = properties.pop("$insert_id", None)
        if insert_id is None or insert_id == "":
            origin = (*row_id, *record.trail) if isinstance(record, SpreadRecord) else row_id
            insert_id = make_insert_id(origin, (name, distinct_id, time, properties))
        # The client checks the types.
        return distinct_id, name, properties, user_id, device_id, time, _id_to_text(insert_id)  # type: ignore[return-value]

    return _cutting(convert) if mapping.cuts_deep_values else convert


def _cutting(convert: Callable[[object, RowId], EventArguments]) -> Callable[[object, RowId], EventArguments]:
    """Return a converter that leaves out what is nested too deep. It does not change a generated insert id."""

    def convert_and_cut(record: object, row_id: RowId) -> EventArguments:
        distinct_id, name, properties, *others = convert(record, row_id)
        return distinct_id, name, limit_depth(properties, "cut"), *others  # type: ignore[return-value]

    return convert_and_cut


def _time_converter(mapping: ColumnMapping) -> Callable[[object, object, Record, str], float | datetime | None]:
    """Return a function that converts the time of an event, given the name, the time, the properties and the file."""
    parse, clock = mapping.time_parser.parse, mapping.project_clock

    def convert(name: object, time: object, properties: Record, content_id: str) -> float | datetime | None:
        if time is None and name in IDENTITY_EVENTS:
            # Files that are made for a merge have none, and the effect does not depend on it.
            return None
        parsed = parse(time, "time")
        if clock is None or isinstance(parsed, datetime):
            return parsed
        return clock.to_utc(parsed, _arrival(properties), content_id)

    return convert


def _complete_identity_event(name: str, distinct_id: Any, properties: dict[str, Any]) -> Any:
    """Add what an identity event lacks to its properties, in place. Return the `distinct_id`.

    Ids that are integers become text. `$identify` of browser and mobile SDKs, with `distinct_id` and
    `$anon_distinct_id`, gets the documented `$identified_id` and `$anon_id` too.

    Args:
        name: one of `IDENTITY_EVENTS`.
        distinct_id: the `distinct_id`, or None.
        properties: the other properties.

    Raises:
        ValidationError: if an id that the event joins is missing.
    """
    if name == "$merge":
        ids = properties.get("$distinct_ids")
        if not isinstance(ids, list) or len(ids) != 2:
            raise ValidationError("properties.$distinct_ids", "must be a list of two ids")
        properties["$distinct_ids"] = [_required_text("properties.$distinct_ids", one) for one in ids]
        # The event belongs to no user.
        return "" if distinct_id is None else distinct_id
    sent_id = properties.get(_SENT_ID) or distinct_id
    if name == "$create_alias":
        properties["alias"] = _required_text("properties.alias", properties.get("alias"))
        return sent_id
    if "$anon_distinct_id" in properties and "$identified_id" not in properties and "$anon_id" not in properties:
        properties["$anon_distinct_id"] = properties["$anon_id"] = _required_text(
            "properties.$anon_distinct_id", properties["$anon_distinct_id"]
        )
        properties["$identified_id"] = _required_text("distinct_id", sent_id)
    else:
        for key in ("$identified_id", "$anon_id"):
            properties[key] = _required_text(f"properties.{key}", properties.get(key))
    return properties["$identified_id"] if distinct_id is None else distinct_id


def _required_text(path: str, value: Any) -> str:
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise ValidationError(path, "is missing" if value is None else "must be a string")
    if not value.strip():
        raise ValidationError(path, "must not be blank")
    return value


def time_reader(
    mapping: ColumnMapping, *, all_times: bool
) -> Callable[[object, str], tuple[float | None, float | None]]:
    """Return a function that reads the time of an event record and its arrival, as `event_converter` would.

    The second argument of the function is the identifier of the file's content. The first result is the converted time;
    None if the time is not a number. The second result is the value of `$mp_api_timestamp_ms`; None if there is none,
    or if the event was imported, so that it arrived much later than its time.

    Args:
        mapping: maps the columns of the file to fields and properties.
        all_times: read also the times of events without `$mp_api_timestamp_ms`, which takes longer.
    """
    is_identity, clock = mapping.is_identity, mapping.project_clock
    all_times = all_times or ARRIVAL_FIELD in mapping.columns

    def read(record: object, content_id: str) -> tuple[float | None, float | None]:
        columns = record.merged() if isinstance(record, SpreadRecord) else record
        if type(columns) is not dict:
            return None, None
        properties = columns.get("properties")
        if not all_times and ARRIVAL_FIELD not in (properties if type(properties) is dict else columns):
            return None, None
        try:
            if type(record) is not dict or not (is_identity and type(properties) is dict and len(record) == 2):
                properties = _flat_event(record, mapping)
            assert properties is not None
            time = mapping.time_parser.parse(properties.get("time"), "time")
        except ValidationError:
            return None, None
        arrival = _arrival(properties)
        if isinstance(time, datetime):
            return None, arrival
        return (time if clock is None else clock.to_utc(time, arrival, content_id)), arrival

    return read


def _arrival(properties: Mapping[str, Any]) -> float | None:
    """Return the time at which Mixpanel received an exported event of an online client, in milliseconds, or None."""
    is_imported = properties.get("$import") in _TRUE
    return None if is_imported else to_number(properties.get(ARRIVAL_FIELD))


def _apply(record: object, mapping: ColumnMapping, flatten: Callable[[Record], Record]) -> Record:
    """Return the columns of a record at one level, after the mapping.

    Raises:
        ValidationError: if it is not a record, or a column cannot be converted.
    """
    if isinstance(record, SpreadRecord):
        return mapping.apply(flatten(record.own), record.inner)
    if type(record) is dict:
        return mapping.apply(flatten(record))
    if isinstance(record, SpreadFault):
        raise ValidationError(record.path, record.problem)
    raise ValidationError("", record.problem if isinstance(record, UnreadableRow) else "is not a JSON object")


def _convert_ids(properties: Record) -> tuple[Any, Any]:
    for key in ("$user_id", "$device_id"):
        if key in properties:
            properties[key] = _id_to_text(properties[key])
    return properties.get("$user_id"), properties.get("$device_id")


def update_converter(mapping: ColumnMapping) -> Callable[[object], Record]:
    """Return a function that converts a profile record to a profile update.

    It accepts Mixpanel's own form, with an operation such as `$set`; the form of Mixpanel's profile export, with
    `$properties`; and flat records, where every key that is not a field is a property. An update without `$time` does
    not change `$last_seen`. It raises `ValidationError` for anything else.
    """

    def convert(record: object) -> Record:
        if type(record) is dict and is_update(record):
            message = {key: value for key, value in record.items() if key != "$token"}
            message.update({key: value for key, value in mapping.constants.items() if key in _UPDATE_FIELDS})
        else:
            message = _flat_update(record, mapping)
        for key in ("$distinct_id", "$group_id"):
            if key in message:
                message[key] = _id_to_text(message[key])
        if mapping.kind is ImportKind.GROUPS:
            message.setdefault("$group_key", None)
            message.pop("$distinct_id", None)
        elif "$time" not in message:
            # An import is not user activity; mixpanel-utils does the same.
            message.setdefault("$ignore_time", True)
        if "$time" in message and type(message["$time"]) not in {int, float}:
            time = mapping.time_parser.parse(message["$time"], "$time")
            message["$time"] = time.timestamp() if isinstance(time, datetime) else time
        return message

    return convert


def explain_error(error: ValidationError, record: object, mapping: ColumnMapping) -> ValidationError:
    """Return a more specific error if the options are the likely cause, else the same error."""
    if isinstance(record, SpreadRecord):
        record = record.merged()
    if type(record) is not dict:
        return error
    if "lone surrogate" in error.problem and _has_invalid_bytes(record):
        return ValidationError(error.path, "is not valid in the file's encoding; for CSV, set --encoding")
    if mapping.kind is ImportKind.EVENTS and "event" not in record and ("$properties" in record or is_update(record)):
        kind = "groups" if "$group_key" in record else "people"
        return ValidationError("", f"looks like a profile update; use --kind {kind}")
    if not mapping.columns:
        return error
    flat = flatten(record, mapping.kind)
    unmatched = mapping.unmatched_by(flat, error.path)
    if unmatched is None:
        return error
    return ValidationError(error.path, f"is missing: this record has no column for --map {unmatched}")


def _has_invalid_bytes(record: Record) -> bool:
    """Return whether a flat record has text with bytes that could not be decoded."""
    return any(_INVALID_BYTE.search(text) for pair in record.items() for text in pair if type(text) is str)


def is_update(record: Record) -> bool:
    """Return whether a record has the form of a profile update, with an operation such as `$set`."""
    return not _OPERATIONS.isdisjoint(record)


def flatten(record: Record, kind: ImportKind) -> Record:
    """Return a record with its properties and other keys at one level, if it has the form of Mixpanel's export."""
    return _flatten_event(record) if kind is ImportKind.EVENTS else _flatten_profile(record)


def _flatten_event(record: Record) -> Record:
    """Return an event with its properties and other keys at one level."""
    properties = record.get("properties")
    if type(properties) is not dict:
        return record
    siblings = {key: value for key, value in record.items() if key != "properties"}
    return {**siblings, **properties, **({"event": record["event"]} if "event" in record else {})}


def _flatten_profile(record: Record) -> Record:
    """Return an exported profile with its properties and other keys at one level."""
    exported = record.get("$properties")
    if type(exported) is not dict:
        return record
    return {**exported, **{key: value for key, value in record.items() if key != "$properties"}}


def _flat_event(record: object, mapping: ColumnMapping) -> Record:
    flat = _apply(record, mapping, _flatten_event)
    if "$insert_id" not in flat and "insert_id" in flat:
        flat["$insert_id"] = flat.pop("insert_id")
    return flat


def _flat_update(record: object, mapping: ColumnMapping) -> Record:
    """Return a flat record as an update with the operation of the options."""
    flat = _apply(record, mapping, _flatten_profile)
    flat.pop("$token", None)
    for short_name, wire_name in mapping.wire_names.items():
        if short_name in {"distinct_id", "group_key", "group_id"} and short_name in flat:
            flat.setdefault(wire_name, flat.pop(short_name))
    fields = {key: flat.pop(key) for key in [*flat] if key in _UPDATE_FIELDS}
    operands: Mapping[Operation, Any] = {Operation.UNSET: [*flat], Operation.DELETE: ""}
    return {**fields, f"${mapping.operation.value}": operands.get(mapping.operation, flat)}


def _id_to_text(value: Any) -> Any:
    """Convert an integer id to text, so that it equals the id of an app that sends `str(user.id)`."""
    return str(value) if type(value) is int else value


def _digest(content: object) -> str:
    return blake2b(_canonical_bytes(content), digest_size=16).hexdigest()


_INSERT_ID_MAKERS: Final[Mapping[InsertIds, Callable[[object, object], str]]] = {
    InsertIds.CONTENT: lambda _, content: _digest(content),
    InsertIds.LINE: lambda origin, content: _digest((origin, content)),
}


def _canonical_bytes(content: object) -> bytes:
    """Return the same bytes for equal content, independent of key order."""
    try:
        return orjson.dumps(content, default=repr, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # A lone surrogate or an integer over 64 bits. The client rejects the record later.
        return repr(content).encode(errors="backslashreplace")


def record_key(message: Mapping[str, Any]) -> str | int:
    """Return a key that identifies a message among those in flight, also after the client hands it back."""
    properties = message.get("properties")
    if isinstance(properties, dict):
        return str(properties.get("$insert_id"))
    stable = {key: value for key, value in message.items() if key not in {"$time", "$token"}}
    return hash(_canonical_bytes(stable))
