"""What the columns of a file mean: names, constants and types, as the options of the command give them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import orjson

from mixpanel_async import ValidationError

from .times import Clock

Record = dict[str, Any]


class ImportKind(str, Enum):
    """What the records of a file are."""

    EVENTS = "events"
    PEOPLE = "people"
    GROUPS = "groups"


class Operation(str, Enum):
    """What is done with the properties of a profile."""

    SET = "set"
    SET_ONCE = "set_once"
    ADD = "add"
    APPEND = "append"
    UNION = "union"
    REMOVE = "remove"
    UNSET = "unset"
    DELETE = "delete"


class InsertIds(str, Enum):
    """What an `$insert_id` is made from where the file has none."""

    CONTENT = "content"
    LINE = "line"


class ColumnType(str, Enum):
    """What the text of a column is read as."""

    TEXT = "text"
    NUMBER = "number"
    BOOLEAN = "boolean"
    TIME = "time"
    JSON = "json"


EVENT_FIELDS: Final[Mapping[str, str]] = {"insert_id": "$insert_id", "user_id": "$user_id", "device_id": "$device_id"}
PROFILE_FIELDS: Final[Mapping[str, str]] = {
    "distinct_id": "$distinct_id",
    "group_key": "$group_key",
    "group_id": "$group_id",
    "time": "$time",
    "ip": "$ip",
}
"""Short names of fields, and their names on the wire; others are their own."""

_TEXT_FIELDS: Final = frozenset(
    {"event", "distinct_id", *EVENT_FIELDS.values(), "$distinct_id", "$group_key", "$group_id"}
)
_NUMBER: Final = re.compile(r"-?(?:0|[1-9]\d{0,17})(?:\.\d+)?(?:[eE][+-]?\d{1,3})?")
_BOOLEANS: Final = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMapping:
    """How a record of a file becomes a record for Mixpanel.

    Args:
        kind: what the records are.
        columns: by the name of a field or property, the column that it is taken from. `a.b` is the `b` within `a`.
        constants: fields and properties that every record gets.
        dropped: columns that are left out.
        types: by column, what its values are read as.
        infer: read text that looks like a number or a boolean as one.
        clock: reads times.
        operation: for profiles whose records name none.
        insert_ids: what an `$insert_id` is made from where there is none.
    """

    kind: ImportKind = ImportKind.EVENTS
    columns: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    types: Mapping[str, ColumnType] = field(default_factory=dict)
    infer: bool = False
    clock: Clock = field(default_factory=Clock)
    operation: Operation = Operation.SET
    insert_ids: InsertIds = InsertIds.CONTENT
    unused: set[str] = field(init=False)
    """Of `columns`, those that no record had so far."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "unused", {*self.columns})

    @property
    def fields(self) -> Mapping[str, str]:
        return EVENT_FIELDS if self.kind is ImportKind.EVENTS else PROFILE_FIELDS

    @property
    def is_bare(self) -> bool:
        """Whether records are taken as they are."""
        return not (self.columns or self.constants or self.dropped or self.types or self.infer)

    def applied(self, record: Record) -> Record:
        """A copy of a flat record with its columns read, renamed and completed.

        Raises:
            ValidationError: naming the column that cannot be read as its type.
        """
        flat = {name: value for name, value in record.items() if name not in self.dropped}
        for column, kind in self.types.items():
            if column in flat and flat[column] is not None:
                flat[column] = _CASTS[kind](flat[column], column, self.clock)
        if self.infer:
            self._guess(flat)
        taken = [(name, *_found(flat, column)) for name, column in self.columns.items()]
        for name, column, is_there, _ in taken:
            # A column that is mapped leaves its own name, unless that is the one it is mapped to.
            if is_there and name != column:
                flat.pop(column, None)
            if is_there and name in self.unused:
                self.unused.remove(name)
        flat.update({self.fields.get(name, name): value for name, _, is_there, value in taken if is_there})
        flat.update(self.constants)
        return flat

    def missed(self, record: Record, path: str) -> str | None:
        """The `NAME=COLUMN` by which a field of a flat record should have come, if that is why it is not there.

        Args:
            record: as `applied` gets it.
            path: of the field, as a `ValidationError` has it.
        """
        wanted = path.removeprefix("properties.")
        flat = {name: value for name, value in record.items() if name not in self.dropped}
        for name, column in self.columns.items():
            wire = self.fields.get(name, name)
            if wanted in {name, wire} and not ({name, wire} & flat.keys() or _found(flat, column)[1]):
                return f"{name}={column}"
        return None

    def idle(self) -> list[str]:
        """The `NAME=COLUMN` mappings that found nothing in any record so far."""
        return [f"{name}={column}" for name, column in self.columns.items() if name in self.unused]

    def _guess(self, flat: Record) -> None:
        text = {self.columns.get(name, name) for name in (*self.fields, *_TEXT_FIELDS, "time")}
        for name, value in flat.items():
            if type(value) is str and name not in text and name not in self.types:
                flat[name] = _guessed(value)


def _found(flat: Record, column: str) -> tuple[str, bool, Any]:
    if column in flat:
        return column, True, flat[column]
    value: Any = flat
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return column, False, None
        value = value[part]
    return column, True, value


def _guessed(text: str) -> Any:
    if _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def _number(value: Any, column: str, clock: Clock) -> Any:  # noqa: ARG001
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    text = str(value).strip()
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise ValidationError(column, "is no number") from None


def _boolean(value: Any, column: str, clock: Clock) -> Any:  # noqa: ARG001
    if isinstance(value, bool):
        return value
    result = _BOOLEANS.get(str(value).strip().lower())
    if result is None:
        raise ValidationError(column, "is neither true nor false")
    return result


def _time(value: Any, column: str, clock: Clock) -> Any:
    return clock.read(value, column)


def _json(value: Any, column: str, clock: Clock) -> Any:  # noqa: ARG001
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except ValueError:
        raise ValidationError(column, "is no valid JSON") from None


def _plain_text(value: Any, column: str, clock: Clock) -> Any:  # noqa: ARG001
    return value if isinstance(value, str) else str(value)


_CASTS: Final[Mapping[ColumnType, Callable[[Any, str, Clock], Any]]] = {
    ColumnType.TEXT: _plain_text,
    ColumnType.NUMBER: _number,
    ColumnType.BOOLEAN: _boolean,
    ColumnType.TIME: _time,
    ColumnType.JSON: _json,
}


def pairs(texts: Iterable[str], option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """Arguments of a form such as `NAME=VALUE`.

    Raises:
        ValueError: if one has no name or no `=`, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ValueError(f"{option} must have the form {form}")
        if name in found:
            raise ValueError(f"{option} names {name} twice")
        found[name] = value
    return found


def constants(texts: Iterable[str], kind: ImportKind) -> dict[str, Any]:
    """Values of `--set`: text for fields; for properties JSON if it is valid JSON, else text.

    Raises:
        ValueError: as `pairs` does.
    """
    fields = EVENT_FIELDS if kind is ImportKind.EVENTS else PROFILE_FIELDS
    result: dict[str, Any] = {}
    for name, text in pairs(texts, "--set").items():
        wire = fields.get(name, name)
        result[wire] = text if wire in _TEXT_FIELDS else _json_or_text(text)
    return result


def column_types(texts: Iterable[str]) -> dict[str, ColumnType]:
    """Values of `--type`.

    Raises:
        ValueError: as `pairs` does, or for a type that is unknown.
    """
    known = {kind.value: kind for kind in ColumnType}
    result = {}
    for column, name in pairs(texts, "--type", "COLUMN=TYPE").items():
        if name not in known:
            raise ValueError(f"--type {column} must be one of {', '.join(known)}")
        result[column] = known[name]
    return result


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return text
