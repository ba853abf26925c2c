"""Pairs of ids to join, from CSV with or without a header, or from objects in NDJSON or JSON."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from ...importing.inputs import InputError, InputFile, UnknownInputError, open_input
from ...importing.option_values import Format
from ...importing.record_source import READ_ERRORS, UnreadableRow
from ..reading import read_rows


class PairKind(str, Enum):
    """Call by which the two ids of a pair are to be joined."""

    AUTO = "auto"
    """Whichever call joins them in this project."""
    ALIAS = "alias"
    """The first id is the original, the second one its new alias."""
    MERGE = "merge"
    IDENTIFY = "identify"
    """The first id is the user, the second one the anonymous id."""


_KIND_COLUMN: Final = "kind"
# Column names of each id, with the kind that the name implies.
_FIRST: Final[Mapping[str, PairKind | None]] = {
    "first": None,
    "original": PairKind.ALIAS,
    "distinct_id": PairKind.ALIAS,
    "distinct_id1": PairKind.MERGE,
    "identified_id": PairKind.IDENTIFY,
    "$identified_id": PairKind.IDENTIFY,
    "user_id": PairKind.IDENTIFY,
    "$user_id": PairKind.IDENTIFY,
}
_SECOND: Final[Mapping[str, PairKind | None]] = {
    "second": None,
    "alias": PairKind.ALIAS,
    "alias_id": PairKind.ALIAS,
    "distinct_id2": PairKind.MERGE,
    "anon_id": PairKind.IDENTIFY,
    "$anon_id": PairKind.IDENTIFY,
    "device_id": PairKind.IDENTIFY,
    "$device_id": PairKind.IDENTIFY,
}
_COLUMNS: Final = "first and second; original and alias_id; distinct_id1 and distinct_id2; identified_id and anon_id"
# A pair of such words is a header that is not known, rather than two ids: merging it could not be undone.
_WORD: Final = (
    r"(?:user|device|distinct|anon|anonymous|guest|visitor|customer|client|account|member|person|profile|e-?mail|mail|"
    r"old|new|from|to|source|target|primary|secondary|canonical|merged|alias|original|identified|known|unknown|mixpanel|"
    r"name|uuid|guid|key|ids?)"
)
_COLUMN_NAME: Final = re.compile(rf"\$?{_WORD}(?:[ _.-]?{_WORD})*_?[12ab]?", re.IGNORECASE)
_JSON_KINDS: Final = frozenset({Format.NDJSON, Format.JSON})


@dataclass(frozen=True, slots=True)
class Pair:
    """Two ids that belong to one person.

    Args:
        kind: call that joins them.
        first: the id that the call names first.
        second: the other id.
        source: file name and line, such as `pairs.csv:3`.
        problem: reason why the line holds no pair, or an empty string.
    """

    kind: PairKind
    first: str
    second: str
    source: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairOptions:
    """Options for reading a file of pairs.

    Args:
        kind: kind of the pairs that name none.
        delimiter: CSV delimiter; None for a comma, or a tab in a TSV file.
        columns: names of the columns or fields of the first and the second id; None for the known names.
    """

    kind: PairKind = PairKind.AUTO
    delimiter: str | None = None
    columns: tuple[str, str] | None = None


def read_pairs(input_file: InputFile, options: PairOptions) -> Iterator[Pair]:
    """Yield the pairs of a file in order. A line that holds no pair is yielded with its `problem`.

    Raises:
        InputError: if the file cannot be read, or its columns are not known.
    """
    try:
        opened = open_input(input_file, Format.AUTO, options.delimiter)
    except UnknownInputError:
        raise InputError(f"{input_file.name} is neither CSV nor NDJSON with pairs of ids") from None
    if opened.format is Format.PARQUET:
        opened.close()
        raise InputError(f"{input_file.name} is Parquet; save the pairs as CSV or NDJSON")
    if opened.format in _JSON_KINDS:
        opened.close()
        yield from _json_pairs(input_file, options)
        return
    delimiter = options.delimiter or ("\t" if opened.format is Format.TSV else ",")
    try:
        yield from _csv_pairs(opened.content, delimiter, Path(input_file.name).name, options)
    except (*READ_ERRORS, csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {input_file.name}: {error}") from None
    finally:
        opened.close()


def _json_pairs(input_file: InputFile, options: PairOptions) -> Iterator[Pair]:
    name = Path(input_file.name).name
    for line, row in read_rows([input_file]):
        yield _from_object(row, f"{name}:{line}", options)


def _from_object(row: object, source: str, options: PairOptions) -> Pair:
    if isinstance(row, UnreadableRow):
        return _problem(source, row.problem)
    if not isinstance(row, dict):
        return _problem(source, "is not an object")
    try:
        columns = _Columns([*row], options)
    except ValueError as error:
        return _problem(source, str(error))
    return columns.pair([*row.values()], source)


def _csv_pairs(content: io.BufferedReader, delimiter: str, name: str, options: PairOptions) -> Iterator[Pair]:
    text = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
    try:
        rows = csv.reader(text, delimiter=delimiter, strict=True)
        columns: _Columns | None = None
        for row in rows:
            if not any(row):
                continue
            source = f"{name}:{rows.line_num}"
            if columns is None:
                columns = _header(row, options)
                if columns is not None:
                    continue
                columns = _without_header(row, source, options)
            yield columns.pair(row, source)
    finally:
        # Closing the wrapper would close the stream, whose owner closes it.
        text.detach()


def _header(row: Sequence[str], options: PairOptions) -> _Columns | None:
    """Return the columns if the first row is a header, else None.

    Raises:
        InputError: if it is one with other columns.
    """
    names = [cell.strip() for cell in row]
    known = {_KIND_COLUMN, *_FIRST, *_SECOND} if options.columns is None else {*options.columns}
    if known.isdisjoint(name if options.columns else name.lower() for name in names):
        if options.columns is None:
            if all(map(_COLUMN_NAME.fullmatch, names)):
                raise InputError(
                    f"the first line looks like a header with other columns: {', '.join(map(repr, names))}; name them "
                    "with --columns, or, if these are ids, add the line first,second before it"
                )
            return None
        raise InputError(f"the header has no column {options.columns[0]!r}; it has {', '.join(map(repr, names))}")
    try:
        return _Columns(names, options)
    except ValueError as error:
        raise InputError(f"the header {error}") from None


def _without_header(row: Sequence[str], source: str, options: PairOptions) -> _Columns:
    """Return the columns of a table without a header: two ids, or the kind and two ids."""
    if len(row) == 2:
        return _Columns(["first", "second"], options)
    if len(row) == 3 and row[0].strip().lower() in {kind.value for kind in PairKind}:
        return _Columns([_KIND_COLUMN, "first", "second"], options)
    raise InputError(
        f"{source} is neither a header nor a pair; give two ids, or kind and two ids, or a header with the columns "
        f"{_COLUMNS}; or name the columns with --columns FIRST,SECOND"
    )


class _Columns:
    """Positions of the two ids and the kind in a row.

    Raises:
        ValueError: if the names do not say which ids to join. The message begins with a verb.
    """

    def __init__(self, names: Sequence[str], options: PairOptions) -> None:
        first: Mapping[str, PairKind | None] = _FIRST
        second: Mapping[str, PairKind | None] = _SECOND
        if options.columns is not None:
            first, second = {options.columns[0]: None}, {options.columns[1]: None}
        else:
            names = [name.lower() for name in names]
        firsts = [at for at, name in enumerate(names) if name in first]
        seconds = [at for at, name in enumerate(names) if name in second]
        if len(firsts) != 1 or len(seconds) != 1:
            expected = _COLUMNS if options.columns is None else " and ".join(options.columns)
            raise ValueError(f"must have the columns {expected}, each once")
        self._first, self._second = firsts[0], seconds[0]
        implied, other = first[names[self._first]], second[names[self._second]]
        if implied is not other:
            raise ValueError(f"mixes columns of two kinds of call: {names[self._first]} and {names[self._second]}")
        self._kind_at = names.index(_KIND_COLUMN) if _KIND_COLUMN in names else None
        self._default = implied or options.kind
        self._width = len(names)

    def pair(self, row: Sequence[object], source: str) -> Pair:
        if len(row) != self._width:
            return _problem(source, f"has the wrong number of cells: {len(row)}, not {self._width}")
        kind: PairKind = self._default
        given = "" if self._kind_at is None else row[self._kind_at]
        if given:
            text = str(given).strip().lower()
            if text not in {one.value for one in PairKind}:
                return _problem(source, f"has the kind {text[:40]!r}; use alias, merge, identify or auto")
            kind = PairKind(text)
        first, second = _as_text(row[self._first]), _as_text(row[self._second])
        if first is None or second is None:
            return _problem(source, "has an id that is neither a text nor a whole number")
        return Pair(kind, first, second, source)


def _as_text(value: object) -> str | None:
    """Return an id as text. Mixpanel takes a number as its text."""
    if isinstance(value, str):
        return value
    return str(value) if type(value) is int else None


def _problem(source: str, problem: str) -> Pair:
    return Pair(PairKind.AUTO, "", "", source, problem)
