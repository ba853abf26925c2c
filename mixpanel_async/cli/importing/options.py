"""Typed options of an import, parsed from the command line."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone, tzinfo
from typing import Any, Final

import orjson

from .arrival_order import ArrivalOrder
from .checkpoint import fingerprint
from .column_check import ColumnCheck, GivenColumns
from .column_mapping import TEXT_FIELDS, ColumnMapping, wire_names
from .limits import ImportLimits
from .number_format import NumberFormat
from .option_values import ColumnType, Format, ImportKind, InsertIds, Nesting, Operation, PresetName
from .paths import ImportPaths
from .presets import PRESETS
from .project import ProjectOptions
from .project_time import ProjectClock, ZoneClock
from .source_factory import ReadOptions
from .spread import Spreader
from .time_check import AUTO, TimeCheck
from .time_parsing import TimeParser, parse_zone

# Options that checkpoints of earlier versions do not have, and their default.
_LATER_OPTIONS: Final[Mapping[str, object]] = {
    "project_timezone": None,
    "nesting": Nesting.TEXT,
    "spread": (),
    "preset": None,
    "decimal": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnOptions:
    """Options that affect the records sent, as given on the command line. A checkpoint is valid for one set of them."""

    kind: ImportKind
    format: Format
    map: Sequence[str]
    set: Sequence[str]
    drop: Sequence[str]
    type: Sequence[str]
    spread: Sequence[str]
    preset: PresetName | None
    infer_types: bool
    decimal: str | None
    time_format: str
    timezone: str | None
    project_timezone: str | None
    operation: Operation
    insert_ids: InsertIds
    nesting: Nesting
    delimiter: str | None
    encoding: str

    def read_options(self) -> ReadOptions:
        """Return the options for reading files.

        Raises:
            ValueError: if the delimiter or the encoding cannot be used.
        """
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"--delimiter must be one character, not {self.delimiter!r}")
        try:
            extends_ascii = codecs.encode("\n", self.encoding) == b"\n"
        except (LookupError, TypeError, ValueError):
            extends_ascii = False
        if not extends_ascii:
            raise ValueError(
                f"--encoding must be one that extends ASCII, such as utf-8 or cp1252, not {self.encoding!r}"
            )
        return ReadOptions(format=self.format, delimiter=self.delimiter, encoding=self.encoding)

    def column_mapping(self) -> ColumnMapping:
        """Return the mapping from columns to fields and properties.

        Raises:
            ValueError: naming the malformed option.
        """
        if self.kind is not ImportKind.EVENTS and self.nesting is not Nesting.TEXT:
            raise ValueError("--nesting applies to events only; profile updates are sent as they are")
        preset = None if self.preset is None else PRESETS[self.preset]
        if self.kind is not ImportKind.EVENTS and preset is not None:
            raise ValueError("--preset applies to events only; for profiles, use --map and --spread")
        zone = _parse_zone(self.timezone, "--timezone")
        if zone is None and preset is not None:
            zone = timezone.utc
        try:
            time_parser = TimeParser(self.time_format, zone)
        except ValueError as error:
            raise ValueError(f"--time-format: {error}") from None
        types = {**({} if preset is None else preset.types), **_parse_column_types(self.type)}
        spread = [*(() if preset is None else preset.spread), *self.spread]
        return ColumnMapping(
            kind=self.kind,
            columns=_parse_pairs(self.map, "--map", "NAME=COLUMN"),
            constants=_parse_constants(self.set, self.kind),
            dropped=frozenset(self.drop),
            own_columns={} if preset is None else preset.columns,
            own_dropped=frozenset() if preset is None else preset.dropped,
            spreader=None if not spread else Spreader(spread),
            types=types,
            infer=self.infer_types,
            numbers=self._number_format(types),
            time_parser=time_parser,
            project_clock=self._project_clock(),
            operation=self.operation,
            insert_ids=self.insert_ids,
            cuts_deep_values=self.nesting is Nesting.CUT,
        )

    def _number_format(self, types: Mapping[str, ColumnType]) -> NumberFormat:
        """Return the format of numbers in text."""
        try:
            numbers = NumberFormat(self.decimal)
        except ValueError as error:
            raise ValueError(f"--decimal {error}") from None
        if self.decimal is not None and not self.infer_types and ColumnType.NUMBER not in types.values():
            raise ValueError("--decimal needs --type COLUMN=number or --infer-types, which convert text to numbers")
        return numbers

    def _project_clock(self) -> ProjectClock | None:
        """Return the clock of the project's time zone; for `auto`, `TimeCheck` makes it later."""
        if self.project_timezone is None:
            return None
        if self.kind is not ImportKind.EVENTS:
            raise ValueError("--project-timezone applies to events only")
        if self.project_timezone == AUTO:
            return None
        zone = _parse_zone(self.project_timezone, "--project-timezone")
        return None if zone in {None, timezone.utc} else ZoneClock(zone)

    def time_check(
        self,
        mapping: ColumnMapping,
        read_options: ReadOptions,
        report: Callable[[str], None],
        order: ArrivalOrder | None,
    ) -> TimeCheck:
        """Return the check of the options for times.

        Args:
            mapping: result of `column_mapping`.
            read_options: result of `read_options`.
            report: shows a line.
            order: counts events that are not in order of arrival; None to leave that out.
        """
        return TimeCheck(
            mapping,
            read_options,
            timezone=self.timezone,
            project_timezone=self.project_timezone,
            report=report,
            order=order,
        )

    def column_check(self, mapping: ColumnMapping, read_options: ReadOptions) -> ColumnCheck:
        """Return the check of the options for columns.

        Args:
            mapping: result of `column_mapping`.
            read_options: result of `read_options`.
        """
        words: list[str] = []
        for option, value, default in (
            ("--kind", self.kind.value, ImportKind.EVENTS.value),
            ("--format", self.format.value, Format.AUTO.value),
            ("--delimiter", self.delimiter, None),
            ("--encoding", self.encoding, "utf-8"),
        ):
            words += [] if value is None or value == default else [option, value]
        for option, values in (("--map", self.map), ("--set", self.set), ("--drop", self.drop), ("--type", self.type)):
            words += [word for value in values for word in (option, value)]
        given = GivenColumns(
            map={text: text.partition("=")[2] for text in self.map},
            drop=self.drop,
            type={text: text.partition("=")[0] for text in self.type},
            spread=self.spread,
            preset=self.preset,
            words=words,
        )
        return ColumnCheck(mapping, read_options, given)

    def fingerprints(self) -> dict[str, str]:
        """Return a fingerprint of each option by option name, for the checkpoint.

        Fingerprints are stored instead of values because the values may be personal data.
        """
        texts = {name: repr(getattr(self, name)) for name in self.__slots__}
        for name, default in _LATER_OPTIONS.items():
            if getattr(self, name) == default:
                del texts[name]
        # Existing checkpoints contain the fingerprint of this text.
        texts["kind"] = f"<Kind.{self.kind.name}: {self.kind.value!r}>"
        return {name.replace("_", "-"): fingerprint(text) for name, text in texts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """All options of one import command.

    Args:
        files: file names and patterns.
        columns: how records are read and converted.
        project: destination and credentials.
        limits: concurrency and time limits.
        paths: locations of checkpoints and rejected records.
        is_dry_run: check all records without sending any.
        quiet: do not show progress, nor the report of a dry run.
        as_json: print the result of a dry run as JSON.
    """

    files: Sequence[str]
    columns: ColumnOptions
    project: ProjectOptions
    limits: ImportLimits
    paths: ImportPaths
    is_dry_run: bool
    quiet: bool
    as_json: bool


def _parse_zone(name: str | None, option: str) -> tzinfo | None:
    """Return the time zone of an option, or None without one.

    Raises:
        ValueError: naming the option.
    """
    try:
        return None if name is None else parse_zone(name)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _parse_pairs(texts: Iterable[str], option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """Parse values such as `NAME=VALUE`.

    Raises:
        ValueError: if a value has no name or no `=`, or a name occurs twice.
    """
    pairs: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise ValueError(f"{option} must have the form {form}, not {text!r}")
        if name in pairs:
            raise ValueError(f"{option} is given twice for {name}")
        pairs[name] = value
    return pairs


def _parse_constants(texts: Iterable[str], kind: ImportKind) -> dict[str, Any]:
    """Parse values of `--set`: text for fields; for properties JSON if it is valid JSON, else text.

    Raises:
        ValueError: as `_parse_pairs` does.
    """
    fields = wire_names(kind)
    constants: dict[str, Any] = {}
    for name, text in _parse_pairs(texts, "--set").items():
        wire_name = fields.get(name, name)
        constants[wire_name] = text if wire_name in TEXT_FIELDS else _json_or_text(text)
    return constants


def _parse_column_types(texts: Iterable[str]) -> dict[str, ColumnType]:
    """Parse values of `--type`.

    Raises:
        ValueError: as `_parse_pairs` does, or for an unknown type.
    """
    known = {column_type.value: column_type for column_type in ColumnType}
    types = {}
    for column, name in _parse_pairs(texts, "--type", "COLUMN=TYPE").items():
        if name not in known:
            raise ValueError(f"--type {column} must be one of {', '.join(known)}, not {name!r}")
        types[column] = known[name]
    return types


def _json_or_text(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return text
