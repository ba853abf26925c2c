"""Mapping from file columns to fields and properties: names, constants and types."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from mixpanel_async import ValidationError

from .number_format import NumberFormat, fitting_marks
from .option_values import ColumnType, ImportKind, InsertIds, Operation
from .project_time import ProjectClock
from .spread import Inner, Record, Spreader
from .text_types import infer
from .time_parsing import TimeParser

# Short names of fields, and their names on the wire. Fields that are not listed have the same name in both.
_EVENT_FIELDS: Final[Mapping[str, str]] = {"insert_id": "$insert_id", "user_id": "$user_id", "device_id": "$device_id"}
_PROFILE_FIELDS: Final[Mapping[str, str]] = {
    "distinct_id": "$distinct_id",
    "group_key": "$group_key",
    "group_id": "$group_id",
    "time": "$time",
    "ip": "$ip",
}

TEXT_FIELDS: Final = frozenset(
    {"event", "distinct_id", *_EVENT_FIELDS.values(), "$distinct_id", "$group_key", "$group_id"}
)
"""Fields whose value is always text."""

_BOOLEANS: Final = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def wire_names(kind: ImportKind) -> Mapping[str, str]:
    """Return the wire names of fields by short name."""
    return _EVENT_FIELDS if kind is ImportKind.EVENTS else _PROFILE_FIELDS


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMapping:
    """Conversion of flat file records to fields and properties.

    Args:
        kind: kind of the records.
        columns: source column by name of the field or property. `a.b` is the key `b` inside `a`.
        own_columns: as `columns`, but the first of several columns that has a value. They may be missing, and objects
            that were spread do not count.
        own_dropped: as `dropped`, but objects that were spread keep their keys.
        constants: fields and properties that every record gets.
        dropped: columns that are ignored.
        spreader: spreads nested columns; None without any.
        types: type by column.
        infer: convert text that looks like a number or a boolean.
        numbers: format of numbers in text.
        time_parser: parses times.
        project_clock: converts numeric times of events from project time; None leaves them as they are.
        operation: operation for profile records that do not name one.
        insert_ids: source of a generated `$insert_id`.
        cuts_deep_values: leave out objects and lists of events that are nested too deep for an import.
    """

    kind: ImportKind = ImportKind.EVENTS
    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    own_columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    own_dropped: frozenset[str] = frozenset()
    spreader: Spreader | None = None
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    infer: bool = False
    numbers: NumberFormat = field(default_factory=NumberFormat)
    time_parser: TimeParser = field(default_factory=TimeParser)
    project_clock: ProjectClock | None = None
    operation: Operation = Operation.SET
    insert_ids: InsertIds = InsertIds.CONTENT
    cuts_deep_values: bool = False
    unmatched_names: set[str] = field(init=False)
    """Names in `columns` whose column no record had so far."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unmatched_names", {*self.columns})

    @property
    def wire_names(self) -> Mapping[str, str]:
        return wire_names(self.kind)

    @property
    def is_identity(self) -> bool:
        """Whether the mapping leaves records unchanged."""
        return not (self.columns or self.constants or self.dropped or self.types or self.infer or self.own_columns)

    def apply(self, record: Record, inner: Inner = ()) -> Record:
        """Return a copy of a flat record with columns converted and renamed and constants added.

        A key of an object that was spread becomes a property of that name. If the record has another value of that
        name after the mapping, the property is called `column.key`.

        Args:
            record: the record's own columns.
            inner: objects that were spread, see `SpreadRecord`. The options apply to them if the record itself does not
                have the column.

        Raises:
            ValidationError: naming the column that cannot be converted to its type.
        """
        if inner or self.own_columns:
            return self._apply_to_levels(record, inner)
        # The usual case by itself, because the general one takes 30 % longer.
        flat = {name: value for name, value in record.items() if name not in self.dropped}
        if self.unmatched_names:
            self._note_matches([flat])
        for column, column_type in self.types.items():
            if column in flat and flat[column] is not None:
                flat[column] = _CONVERTERS[column_type](flat[column], column, self)
        if self.infer:
            self._infer_types(flat)
        lookups = [(name, column, *_look_up(flat, column)) for name, column in self.columns.items()]
        for name, column, is_found, _ in lookups:
            # A mapped column does not keep its own name, unless it is mapped to that name.
            if is_found and name != column:
                flat.pop(column, None)
            if is_found and name in self.unmatched_names:
                self.unmatched_names.remove(name)
        names = self.wire_names
        flat.update({names.get(name, name): value for name, _, is_found, value in lookups if is_found})
        flat.update(self.constants)
        return flat

    def _apply_to_levels(self, record: Record, inner: Inner) -> Record:
        """Apply the mapping to a record with a preset or with objects that were spread."""
        flat = {name: value for name, value in record.items() if name not in self.dropped}
        levels = [flat, *({k: v for k, v in one.items() if k in record or k not in self.dropped} for _, one in inner)]
        if self.unmatched_names:
            self._note_matches(levels)
        self._convert_types(levels)
        own = {**flat} if self.own_columns else flat
        lookups = [(name, column, *_look_up_in(levels, column)) for name, column in self.columns.items()]
        for name, column, level, _ in lookups:
            if level is not None and name != column:
                level.pop(column, None)
            if level is not None and name in self.unmatched_names:
                self.unmatched_names.remove(name)
        names = self.wire_names
        fields = {names.get(name, name): value for name, _, level, value in lookups if level is not None}
        if self.own_columns:
            self._apply_own_columns(flat, own, fields)
        flat.update(fields)
        for (path, _), values in zip(inner, levels[1:], strict=True):
            _merge(flat, path, values)
        flat.update(self.constants)
        return flat

    def _note_matches(self, levels: Sequence[Record]) -> None:
        """Note which columns a record has, before a conversion of one of them may fail."""
        found = [name for name in self.unmatched_names if _look_up_in(levels, self.columns[name])[0] is not None]
        self.unmatched_names.difference_update(found)

    def _convert_types(self, levels: Sequence[Record]) -> None:
        for column, column_type in self.types.items():
            level = next((one for one in levels if column in one), None)
            if level is not None and level[column] is not None:
                level[column] = _CONVERTERS[column_type](level[column], column, self)
        if self.infer:
            for level in levels:
                self._infer_types(level)

    def _apply_own_columns(self, flat: Record, own: Record, fields: Record) -> None:
        """Apply `own_columns` and `own_dropped`.

        Args:
            flat: columns that are not mapped yet.
            own: the record's own columns.
            fields: mapped fields and properties.
        """
        names = self.wire_names
        for column in self.own_dropped:
            flat.pop(column, None)
        for name, columns in self.own_columns.items():
            for column in columns:
                flat.pop(column, None)
                value = own[column] if column in own else _look_up_path(own, column)
                if value is not None and value != "":
                    fields.setdefault(names.get(name, name), value)
                    break

    def unmatched_by(self, record: Record, path: str) -> str | None:
        """Return the `NAME=COLUMN` mapping that should have set a missing field, if the record lacks its column.

        Args:
            record: a flat record, as passed to `apply`.
            path: path of the field, as in `ValidationError`.
        """
        wanted = path.removeprefix("properties.")
        flat = {name: value for name, value in record.items() if name not in self.dropped}
        for name, column in self.columns.items():
            wire_name = self.wire_names.get(name, name)
            is_set = {name, wire_name} & flat.keys() or _look_up(flat, column)[0]
            if wanted in {name, wire_name} and not is_set:
                return f"{name}={column}"
        return None

    def unmatched(self) -> list[str]:
        """Return the `NAME=COLUMN` mappings whose column no record had so far."""
        return [f"{name}={column}" for name, column in self.columns.items() if name in self.unmatched_names]

    def leaves_as_text(self, column: str, column_type: ColumnType) -> bool:
        """Return whether text of a type becomes a property as text, because no option says otherwise.

        Args:
            column: column of the file.
            column_type: type that its text looks like.
        """
        fields = {*self.wire_names, *self.wire_names.values(), *TEXT_FIELDS, "time"}
        is_inferred = self.infer and column_type in {ColumnType.NUMBER, ColumnType.BOOLEAN}
        is_field = column in fields or any(column == one and name in fields for name, one in self.columns.items())
        by_preset = column in self.own_dropped or any(column in columns for columns in self.own_columns.values())
        return not (is_inferred or is_field or by_preset or column in self.types or column in self.dropped)

    def _infer_types(self, flat: Record) -> None:
        text_columns = {self.columns.get(name, name) for name in (*self.wire_names, *TEXT_FIELDS, "time")}
        for name, value in flat.items():
            if type(value) is str and name not in text_columns and name not in self.types:
                flat[name] = infer(value, self.numbers)


def _look_up(flat: Record, column: str) -> tuple[bool, Any]:
    """Return whether a record has a column, and its value. A dot in `column` separates nested keys."""
    if column in flat:
        return True, flat[column]
    value: Any = flat
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return False, None
        value = value[part]
    return True, value


def _look_up_path(record: Record, path: str) -> Any:
    """Return the value at a path such as `a.b`, or None. `a` may be a list of `identity_type` and `identity` pairs."""
    value: Any = record
    for part in path.split("."):
        if isinstance(value, list):
            pairs = [one for one in value if isinstance(one, dict) and one.get("identity_type") == part]
            value = pairs[0].get("identity") if pairs else None
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def _look_up_in(levels: Sequence[Record], column: str) -> tuple[Record | None, Any]:
    """Return the first level that has a column, or None, and the value."""
    for level in levels:
        is_found, value = _look_up(level, column)
        if is_found:
            return level, value
    return None, None


def _merge(flat: Record, path: str, values: Record) -> None:
    """Add the keys of an object that was spread, without replacing another value."""
    for key, value in values.items():
        if key not in flat:
            flat[key] = value
        elif flat[key] != value:
            flat[f"{path}.{key}"] = value


def _to_number(value: Any, column: str, mapping: ColumnMapping) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    numbers, text = mapping.numbers, str(value)
    number = numbers.parse(text)
    if number is None:
        marks = [mark for mark in fitting_marks(text) if mark != numbers.mark]
        options = " or ".join(f"--decimal {mark}" for mark in marks)
        raise ValidationError(column, "is not a number" + (f"; name its decimal mark with {options}" if marks else ""))
    return number


def _to_boolean(value: Any, column: str, mapping: ColumnMapping) -> Any:  # noqa: ARG001
    if isinstance(value, bool):
        return value
    result = _BOOLEANS.get(str(value).strip().lower())
    if result is None:
        raise ValidationError(column, "is not a boolean (true, false, yes, no, 1 or 0)")
    return result


def _to_time(value: Any, column: str, mapping: ColumnMapping) -> Any:
    return mapping.time_parser.parse(value, column)


def _to_json(value: Any, column: str, mapping: ColumnMapping) -> Any:  # noqa: ARG001
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except ValueError:
        raise ValidationError(column, "is not valid JSON") from None


def _to_text(value: Any, column: str, mapping: ColumnMapping) -> Any:  # noqa: ARG001
    return value if isinstance(value, str) else str(value)


_CONVERTERS: Final[Mapping[ColumnType, Callable[[Any, str, ColumnMapping], Any]]] = {
    ColumnType.TEXT: _to_text,
    ColumnType.NUMBER: _to_number,
    ColumnType.BOOLEAN: _to_boolean,
    ColumnType.TIME: _to_time,
    ColumnType.JSON: _to_json,
}
