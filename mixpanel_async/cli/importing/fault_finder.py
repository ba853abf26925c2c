"""All faults of a record, and the option that fixes each. Pure: no I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from mixpanel_async import ValidationError

from .option_values import ImportKind
from .record_conversion import explain_error, flatten
from .spread import SpreadRecord

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping
    from .record_conversion import RowId

RowCheck = Callable[[object, "RowId"], object]
"""Checks a record. Raises `ValidationError`."""

_MAX_FAULTS: Final = 20
_MAX_GROUPS: Final = 1_000
_INDEX: Final = re.compile(r"\[\d+\]")
# A valid value for each field, so that the check goes on to the next fault.
_PLACEHOLDERS: Final[Mapping[str, object]] = {
    "event": "x",
    "distinct_id": "x",
    "time": datetime(2020, 1, 1, tzinfo=timezone.utc),
    "$insert_id": "x",
    "$user_id": "x",
    "$device_id": "x",
    "$distinct_id": "x",
    "$group_key": "x",
    "$group_id": "x",
    "$time": datetime(2020, 1, 1, tzinfo=timezone.utc),
}
_FIELD_PATHS: Final = {
    "insert_id": "$insert_id",
    "user_id": "$user_id",
    "device_id": "$device_id",
    "event_name": "event",
}
# Columns that usually hold a field.
_LIKELY_COLUMNS: Final[Mapping[str, re.Pattern[str]]] = {
    "event": re.compile(r"(event.?)?(name|type|event|action)", re.IGNORECASE),
    "distinct_id": re.compile(
        r".*(user|customer|account|visitor|anonymous|distinct|person).*id|uid|user|e?mail", re.IGNORECASE
    ),
    "time": re.compile(r".*(time|date|timestamp).*|ts|.*_at|when", re.IGNORECASE),
}


class FaultFinder:
    """Finds every fault of a record, where a check finds one.

    Args:
        mapping: maps the columns of the record to fields and properties.
        create_check: returns the check for a mapping.
    """

    def __init__(self, mapping: ColumnMapping, create_check: Callable[[ColumnMapping], RowCheck]) -> None:
        self._mapping = mapping
        self._create_check = create_check

    def find(self, row: object, row_id: RowId, first: ValidationError) -> list[ValidationError]:
        """Return the faults of a record, at most 20.

        Args:
            row: the record.
            row_id: identifies its line.
            first: the error of the check.
        """
        mapping, found = self._mapping, [first]
        names = _names(row, mapping)
        while len(found) < _MAX_FAULTS:
            repaired = _repair(mapping, found[-1].path, names)
            if repaired is None:
                break
            mapping = repaired
            try:
                self._create_check(mapping)(row, row_id)
                break
            except ValidationError as error:
                found.append(error)
        return [explain_error(error, row, self._mapping) for error in found]


def _names(row: object, mapping: ColumnMapping) -> set[str]:
    columns = row.merged() if isinstance(row, SpreadRecord) else row
    flat = flatten(columns, mapping.kind) if isinstance(columns, dict) else {}
    return {*flat, *mapping.columns, *mapping.own_columns}


def _repair(mapping: ColumnMapping, path: str, names: set[str]) -> ColumnMapping | None:
    """Return a mapping that avoids a fault, or None if it is not one of a single value or was avoided before."""
    if path in mapping.types:
        return replace(mapping, types={name: one for name, one in mapping.types.items() if name != path})
    name = path.removeprefix("properties.")
    if path == "" or name == "":
        return None
    name = _FIELD_PATHS.get(name, name)
    while name not in names and name not in _PLACEHOLDERS:
        shorter = name[: max(name.rfind("."), name.rfind("["), 0)]
        if not shorter:
            break
        name = shorter
    if name in mapping.constants:
        return None
    return replace(mapping, constants={**mapping.constants, name: _PLACEHOLDERS.get(name, 0)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Records with the same fault.

    Args:
        count: number of records.
        field: path of the value; empty for the whole record.
        problem: what is wrong.
        example: file and line of the first one.
        fix: the option that fixes it, or an empty string.
    """

    count: int
    field: str
    problem: str
    example: str
    fix: str


class FaultGroups:
    """Faults by field and problem.

    Args:
        mapping: maps the columns of the records to fields and properties.
    """

    def __init__(self, mapping: ColumnMapping) -> None:
        self._mapping = mapping
        self._counts: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def add(self, errors: Iterable[ValidationError], position: str) -> None:
        """Count the faults of a record at a position."""
        for key in {(_INDEX.sub("[]", error.path), error.problem): None for error in errors}:
            if key in self._counts or len(self._counts) < _MAX_GROUPS:
                self._counts[key] += 1
                self._examples.setdefault(key, position)

    def faults(self, columns: Sequence[str]) -> list[Fault]:
        """Return the groups, the most frequent first.

        Args:
            columns: columns of the files, for the options that fix a missing field.
        """
        return [
            Fault(
                count=count,
                field=field,
                problem=problem,
                example=self._examples[field, problem],
                fix=_fix(field, problem, columns, self._mapping),
            )
            for (field, problem), count in self._counts.most_common()
        ]


def _fix(field: str, problem: str, columns: Sequence[str], mapping: ColumnMapping) -> str:
    """Return the option that fixes a fault, or an empty string."""
    name = field.removeprefix("properties.").removeprefix("$")
    if "--" in problem:
        return ""
    if "levels deep" in problem:
        return "--nesting text"
    if "is missing" in problem or "NoneType" in problem or "blank" in problem:
        likely, own = _LIKELY_COLUMNS.get(name), {name, f"${name}"}
        found = [column for column in columns if likely is not None and likely.fullmatch(column) and column not in own]
        if not found and not own.isdisjoint(columns):
            # The field is read from this column already, and some records lack it.
            return ""
        constant = f", or --set {name}=VALUE" if name in {"event", "group_key"} else ""
        is_field = name in {*_LIKELY_COLUMNS, "group_key", "group_id"}
        return f"--map {name}={found[0] if found else 'COLUMN'}{constant}" if is_field else ""
    if field in {"time", "$time"}:
        return "--time-format FORMAT, or --map time=COLUMN"
    if field in mapping.types:
        return f"--type {field}=text"
    if name in {"event", "distinct_id"} and "string" in problem:
        return f"--type {mapping.columns.get(name, name)}=text"
    is_property = mapping.kind is ImportKind.EVENTS and field.startswith("properties.")
    return f"--drop {_column(name, mapping)}" if is_property else ""


def _column(name: str, mapping: ColumnMapping) -> str:
    root: Any = re.split(r"[.\[]", name)[0]
    return str(mapping.columns.get(root, root))
