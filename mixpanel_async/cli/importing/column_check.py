"""Check of the options for columns against the records, before anything is sent.

An option that matches no column is usually a typing error, and events cannot be taken back. So it stops the import. So
do files of other tools that need a preset, which is proposed and never applied silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from shlex import join
from typing import TYPE_CHECKING, Final

from .inputs import DamagedError, InputError, InputFile
from .option_values import ImportKind, PresetName
from .presets import PRESETS, recognise
from .record_conversion import flatten, is_update
from .record_source import Position, Row
from .source_factory import ReadOptions, StreamCheck, open_source
from .spread import Record, SpreadRecord, spread_rows

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping

_HEAD_RECORDS: Final = 100
_CHUNK_RECORDS: Final = 500
_MAX_NAMES: Final = 10_000
_MAX_NAMED: Final = 8
# Value of `mp_lib` in the rejected records of an import, which the same options import again.
_OWN_LIBRARY: Final = "python-async"
# Columns that exports of several tools use for the properties of an event.
_PROPERTY_COLUMNS: Final = ("properties", "event_properties")


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenColumns:
    """Options that name columns, as given on the command line.

    Args:
        map: columns by value of `--map`.
        drop: columns.
        type: columns by value of `--type`.
        spread: columns.
        preset: name of the preset, or None.
        words: all words of these options, to repeat them in a proposed command.
    """

    map: Mapping[str, str]
    drop: Sequence[str]
    type: Mapping[str, str]
    spread: Sequence[str]
    preset: PresetName | None
    words: Sequence[str]

    def by_option(self) -> dict[str, str]:
        """Return the column by option, without `--spread`."""
        options = {f"--map {text}": column for text, column in self.map.items()}
        options.update((f"--drop {column}", column) for column in self.drop)
        options.update((f"--type {text}", column) for text, column in self.type.items())
        return options

    def names(self, column: str) -> bool:
        """Return whether an option says what to do with a column."""
        return column in {
            *self.map.values(),
            *self.drop,
            *self.type.values(),
            *(one.split(".")[0] for one in self.spread),
        }


class ColumnCheck:
    """Check of the columns of some files.

    Args:
        mapping: maps their columns to fields and properties.
        read_options: options for reading them.
        given: options that name columns.
    """

    def __init__(self, mapping: ColumnMapping, read_options: ReadOptions, given: GivenColumns) -> None:
        self._mapping = mapping
        self._read_options = read_options
        self._given = given
        self._unmatched = given.by_option()
        self._names: dict[str, None] = {}
        # Names in headers: such a column may be empty in all records.
        self._listed: set[str] = set()
        self._has_rejects = False

    def run(self, inputs: Sequence[InputFile]) -> None:
        """Check the files that can be read twice.

        Raises:
            InputError: if an option matches no column, or a file needs a preset or `--spread`.
        """
        is_whole = True
        files = [input_file for input_file in inputs if input_file.identity is not None]
        records = 0
        for input_file in files:
            read = 0
            try:
                for columns, rows in self._read(input_file):
                    if read < _HEAD_RECORDS and (problem := self._foreign(input_file.name, columns, rows)):
                        raise InputError(f"{input_file.name}: {problem}")
                    self._match(columns, rows)
                    read += len(rows)
                    if not self._wanted() and read >= _HEAD_RECORDS:
                        break
            except DamagedError:
                # The import reports it later.
                is_whole = False
            records += read
        if is_whole and records and not self._has_rejects and len(files) == len(inputs):
            self._require_matches()

    def check_stream(self, name: str) -> StreamCheck:
        """Return a function that checks the records of a stream before they are sent.

        It raises `DamagedError` if the first records show that the stream needs a preset or `--spread`.
        """
        is_checked = False

        def check(columns: Sequence[str], rows: Sequence[Row]) -> None:
            nonlocal is_checked
            if rows and not is_checked:
                is_checked = True
                if problem := self._foreign(name, columns, rows):
                    raise DamagedError(problem)
            if self._wanted():
                self._match(columns, rows)

        return check

    def _read(self, input_file: InputFile) -> Iterator[tuple[Sequence[str], list[Row]]]:
        source = open_source(input_file, self._read_options, Position())
        try:
            limit = _HEAD_RECORDS
            while not source.is_exhausted:
                yield source.columns, source.take(limit)
                limit = _CHUNK_RECORDS
        finally:
            source.close()

    def _wanted(self) -> bool:
        return bool(self._unmatched or self._unmatched_paths())

    def _unmatched_paths(self) -> list[str]:
        spreader = self._mapping.spreader
        found = frozenset() if spreader is None else spreader.found | self._listed
        return [path for path in self._given.spread if path not in found]

    def _match(self, columns: Sequence[str], rows: Sequence[Row]) -> None:
        """Remove the options whose column is in some rows from those that match nothing yet."""
        self._add_names(columns)
        self._listed.update(columns)
        for _, row in spread_rows(rows, self._mapping.spreader):
            levels = _levels(row, self._mapping.kind)
            self._has_rejects = self._has_rejects or _is_converted(row)
            for level in levels:
                self._add_names(level)
            self._unmatched = {
                option: column
                for option, column in self._unmatched.items()
                if not (column in columns or any(_has(level, column) for level in levels))
            }

    def _add_names(self, names: Sequence[str] | Record) -> None:
        if len(self._names) < _MAX_NAMES:
            self._names.update(dict.fromkeys(names))

    def unmatched(self) -> dict[str, str]:
        """Return the column by option of the options that matched no column so far."""
        return {**{f"--spread {path}": path for path in self._unmatched_paths()}, **self._unmatched}

    def _require_matches(self) -> None:
        unmatched = self.unmatched()
        if unmatched:
            raise InputError("\n".join(f"{option}: {self._no_match(column)}" for option, column in unmatched.items()))

    def _no_match(self, column: str) -> str:
        by_lower = {name.lower(): name for name in self._names}
        last = column.rpartition(".")[2].lower()
        close = [
            *get_close_matches(column.lower(), by_lower, _MAX_NAMED),
            *get_close_matches(last, by_lower, _MAX_NAMED),
        ]
        if close:
            similar = _list([by_lower[name] for name in dict.fromkeys(close)])
            return f"no record has a column {column!r}; similar: {similar}"
        return f"no record has a column {column!r}; there are: {_list([*self._names])}"

    def _foreign(self, name: str, columns: Sequence[str], rows: Sequence[Row]) -> str | None:
        """Return what a file of another tool needs, or None if it can be imported as it is."""
        given, is_event = self._given, self._mapping.kind is ImportKind.EVENTS
        if given.preset is not None:
            return None
        records: list[Record] = [row for _, row in rows[:_HEAD_RECORDS] if type(row) is dict]
        names = {*columns, *(column for record in records for column in record)}
        flat = {*names, *(column for record in records for column in flatten(record, self._mapping.kind))}
        command = join(["mixpanel-async", "import", name, *given.words])
        if is_event and not (given.map or given.spread or {"event", "time"} <= flat):
            preset = recognise(names)
            if preset is not None:
                source, option = PRESETS[preset].source, f"--preset {preset.value}"
                return f"looks like an export of {source}; check what becomes of it: {command} {option} --dry-run"
        for column in _PROPERTY_COLUMNS:
            values = [record[column] for record in records if record.get(column)]
            if (
                values
                and not given.names(column)
                and _is_nested(values[0], is_object_read=is_event and column == "properties")
            ):
                return (
                    f"column {column!r} has several properties; use --spread {column} to make them properties of the "
                    f"{_NOUNS[self._mapping.kind]}, or --type {column}=text or {column}=json to keep one: "
                    f"{command} --spread {column} --dry-run"
                )
        return None


_NOUNS: Final = {ImportKind.EVENTS: "event", ImportKind.PEOPLE: "profile", ImportKind.GROUPS: "group"}


def _levels(row: object, kind: ImportKind) -> list[Record]:
    if isinstance(row, SpreadRecord):
        return [flatten(row.own, kind), *(values for _, values in row.inner)]
    return [flatten(row, kind), row] if isinstance(row, dict) else []


def _is_converted(row: object) -> bool:
    """Return whether a record is one that an import has converted, or an update, which the options do not apply to."""
    if isinstance(row, SpreadRecord):
        row = row.row
    if not isinstance(row, dict):
        return False
    properties = row.get("properties")
    return is_update(row) or (isinstance(properties, dict) and properties.get("mp_lib") == _OWN_LIBRARY)


def _has(level: Record, column: str) -> bool:
    value: object = level
    if column in level:
        return True
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _is_nested(value: object, *, is_object_read: bool) -> bool:
    """Return whether a value is an object, unless it is read anyway, or looks like JSON text of one."""
    if isinstance(value, str):
        return value.lstrip()[:1] == "{" and value.rstrip()[-1:] == "}"
    return isinstance(value, dict) and not is_object_read


def _list(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more:,} more" if more > 0 else "")
