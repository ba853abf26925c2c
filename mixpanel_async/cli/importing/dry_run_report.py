"""Report of a dry run: what the files are, what becomes of their columns, and what is wrong. Pure: no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any, Final

import orjson

from mixpanel_async import limit_depth

from .number_format import MARKS, NumberFormat, fitting_marks, looks_like_thousands
from .option_values import ColumnType, Format, ImportKind, Nesting
from .presets import PRESETS, recognise
from .record_conversion import EventArguments, flatten
from .spread import Record, SpreadRecord
from .text_types import guess_type

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping
    from .fault_finder import FaultGroups

SAMPLE_RECORDS: Final = 1_000
"""Number of records of each file whose values are looked at."""

_MAX_COLUMNS: Final = 1_000
_MAX_LISTED: Final = 30
_MAX_SAMPLE_CHARACTERS: Final = 2_000
_TYPE_NAMES: Final = {str: "text", bool: "boolean", int: "number", float: "number", dict: "object", list: "list"}
_GROUPED: Final = "read with decimals; if the point separates thousands: --decimal ,"
_FORMAT_NAMES: Final = {
    Format.NDJSON: "NDJSON, one JSON object per line",
    Format.JSON: "JSON",
    Format.CSV: "CSV",
    Format.TSV: "TSV",
    Format.PARQUET: "Parquet",
}


@dataclass(slots=True)
class _Values:
    """Values of a column.

    Args:
        types: number of values by type.
        guesses: number of texts by the type that they look like.
        is_grouped: whether all texts are numbers whose points may separate thousands.
        marks: decimal marks with which all texts are numbers.
        needs_mark: whether a text is a number only with one of them.
    """

    types: Counter[str] = field(default_factory=Counter)
    guesses: Counter[ColumnType | None] = field(default_factory=Counter)
    is_grouped: bool = True
    marks: list[str] = field(default_factory=lambda: [*MARKS])
    needs_mark: bool = False

    def add(self, value: object) -> None:
        kind = "time" if isinstance(value, date) else _TYPE_NAMES.get(type(value), type(value).__name__)
        self.types[kind] += 1
        if isinstance(value, str):
            self.guesses[guess_type(value)] += 1
            self.is_grouped = self.is_grouped and looks_like_thousands(value)
            if self.marks:
                fitting = fitting_marks(value)
                self.marks = [mark for mark in self.marks if mark in fitting]
                self.needs_mark = self.needs_mark or NumberFormat().parse(value) is None

    def looks_like(self) -> ColumnType | None:
        """Return the type that all texts look like, or None."""
        return next(iter(self.guesses)) if len(self.guesses) == 1 else None


class DryRunReport:
    """Report of a dry run.

    Args:
        mapping: maps the columns of the files to fields and properties.
        faults: receives the faults of all records.
        nesting: what is sent of deep values.
    """

    def __init__(self, mapping: ColumnMapping, faults: FaultGroups, nesting: Nesting) -> None:
        self._mapping = mapping
        self._nesting = nesting
        self._files: list[dict[str, Any]] = []
        self._columns: dict[str, None] = {}
        self._values: dict[str, _Values] = {}
        self._sample: Record | None = None
        self._mark = mapping.numbers.mark
        self.faults = faults

    def add_file(self, name: str, format: Format, columns: Sequence[str]) -> None:
        """Add a file with the columns that it lists."""
        self._files.append({"name": name, "format": format.value, "looks_like": None})
        self._columns.update(dict.fromkeys(columns))

    def add_row(self, row: object) -> None:
        """Add the columns of one of the first records of the last file."""
        columns = row.merged() if isinstance(row, SpreadRecord) else row
        if not isinstance(columns, dict) or len(self._columns) >= _MAX_COLUMNS:
            return
        source = row.row if isinstance(row, SpreadRecord) else columns
        if self._files[-1]["looks_like"] is None and self._mapping.kind is ImportKind.EVENTS:
            preset = recognise({*source, *self._columns})
            is_raw = source.keys() == {"event", "properties"}
            source_name = "Mixpanel, raw" if is_raw else PRESETS[preset].source if preset is not None else None
            self._files[-1]["looks_like"] = source_name
        flat = flatten(columns, self._mapping.kind)
        self._columns.update(dict.fromkeys(flat))
        for name, value in flat.items():
            if value is not None:
                self._values.setdefault(name, _Values()).add(value)

    def add_event(self, arguments: EventArguments) -> None:
        """Add one of the first events, after the conversion."""
        if self._sample is None:
            distinct_id, name, properties, user_id, device_id, time, insert_id = arguments
            fields = {"time": time, "distinct_id": distinct_id, "$insert_id": insert_id}
            ids = {"$user_id": user_id, "$device_id": device_id}
            given = {key: value for key, value in {**fields, **ids}.items() if value is not None}
            if self._nesting is Nesting.TEXT:
                properties = limit_depth(properties, "text")
            self._sample = {"event": name, "properties": {**given, **properties}}

    def add_update(self, message: Record) -> None:
        """Add one of the first profile updates, after the conversion."""
        if self._sample is None:
            self._sample = message

    def as_dict(self) -> dict[str, Any]:
        """Return the report for `--json`."""
        columns = []
        for name, values in self._values.items():
            guess = values.looks_like()
            if guess is not None and not self._mapping.leaves_as_text(name, guess):
                guess = None
            option = None if guess is None else _option(name, guess)
            if guess is None and values.guesses and values.needs_mark and self._can_be_number(name, values):
                guess = ColumnType.NUMBER
                marks = " or ".join(f"--decimal {mark}" for mark in values.marks)
                option = f"{_option(name, guess)} {marks}"
            is_number = self._mapping.types.get(name, guess) is ColumnType.NUMBER
            columns.append(
                {
                    "name": name,
                    "types": dict(values.types),
                    "looks_like": None if guess is None else guess.value,
                    "option": option,
                    "note": _GROUPED if is_number and values.guesses and values.is_grouped and not self._mark else None,
                }
            )
        return {
            "files": self._files,
            "mapping": self._mapping_lines(),
            "sample": None if self._sample is None else orjson.loads(_encode(self._sample)),
            "columns": columns,
            "faults": [
                {"count": one.count, "field": one.field, "problem": one.problem, "first": one.example, "fix": one.fix}
                for one in self.faults.faults([*self._columns])
            ],
        }

    def _can_be_number(self, name: str, values: _Values) -> bool:
        """Return whether the texts of a column are numbers with a decimal mark that no option names."""
        return bool(values.marks) and self._mark is None and self._mapping.leaves_as_text(name, ColumnType.NUMBER)

    def _mapping_lines(self) -> list[str]:
        mapping, names = self._mapping, self._mapping.wire_names
        lines = {names.get(name, name): f"from {column}" for name, column in mapping.columns.items()}
        for name, columns in mapping.own_columns.items():
            found = [column for column in columns if column.split(".")[0] in self._columns]
            if found:
                lines.setdefault(names.get(name, name), f"from {', else '.join(found)}")
        lines.update((name, "the value of --set") for name in mapping.constants)
        dropped = [name for name in self._columns if name in mapping.dropped or name in mapping.own_dropped]
        spread = [] if mapping.spreader is None else [f"{path}: spread" for path in mapping.spreader.paths]
        return [
            *(f"{name}: {text}" for name, text in lines.items()),
            *spread,
            *([f"decimal mark of numbers: {self._mark}"] if self._mark else []),
            *([f"left out: {', '.join(dropped)}"] if dropped else []),
        ]

    def lines(self) -> list[str]:
        """Return the lines to print."""
        report = self.as_dict()
        lines = []
        for file in report["files"][:_MAX_LISTED]:
            origin = f"; looks like an export of {file['looks_like']}" if file["looks_like"] else ""
            lines.append(f"{file['name']}: {_FORMAT_NAMES[Format(file['format'])]}{origin}")
        lines += _more(report["files"])
        lines += [f"  {line}" for line in report["mapping"]]
        if report["sample"] is not None:
            sample = orjson.dumps(report["sample"]).decode()
            ending = "..." if len(sample) > _MAX_SAMPLE_CHARACTERS else ""
            lines += ["first record, as it would be sent:", f"  {sample[:_MAX_SAMPLE_CHARACTERS]}{ending}"]
        # Columns that need attention come first.
        columns = sorted(report["columns"], key=lambda one: one["option"] is None and one["note"] is None)
        if columns:
            lines.append(f"columns in the first {SAMPLE_RECORDS:,} records of each file:")
        for column in columns[:_MAX_LISTED]:
            types = ", ".join(f"{count:,} {name}" for name, count in column["types"].items())
            guess = f"; looks like {column['looks_like']}: {column['option']}" if column["option"] else ""
            guess += f"; {column['note']}" if column["note"] else ""
            lines.append(f"  {column['name']}: {types}{guess}")
        lines += _more(columns)
        if report["faults"]:
            lines.append("faults of rejected records:")
        for fault in report["faults"][:_MAX_LISTED]:
            where = f"{fault['field']}: " if fault["field"] else ""
            fix = f"; use {fault['fix']}" if fault["fix"] else ""
            lines.append(f"  {fault['count']:,} x {where}{fault['problem']} (first in {fault['first']}){fix}")
        return [*map(_printable, lines + _more(report["faults"]))]


def _option(column: str, guess: ColumnType) -> str:
    return f"--spread {column}" if guess is ColumnType.JSON else f"--type {column}={guess.value}"


def _printable(text: str) -> str:
    """Replace characters that a terminal would obey or cannot show."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _more(values: Sequence[object]) -> list[str]:
    return [f"  and {len(values) - _MAX_LISTED:,} more"] if len(values) > _MAX_LISTED else []


def _encode(value: object) -> bytes:
    def encode_other(other: object) -> str:
        if isinstance(other, datetime):
            return other.astimezone(timezone.utc).isoformat()
        return str(other)

    try:
        return orjson.dumps(
            value, default=encode_other, option=orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_NON_STR_KEYS
        )
    except TypeError:
        # A lone surrogate or a very large integer.
        return orjson.dumps(repr(value).encode(errors="replace").decode())
