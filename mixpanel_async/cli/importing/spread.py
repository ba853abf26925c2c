"""Spreading of nested columns: an object gives properties, a list gives one record per element. Pure: no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import orjson

if TYPE_CHECKING:
    from .record_source import Row

MAX_ELEMENTS: Final = 10_000
"""Maximum number of records that one record of a file may be spread into."""
# As long as a line may be: only Parquet has longer values.
_MAX_TEXT: Final = 8 * 1024 * 1024

Record = dict[str, Any]
Inner = tuple[tuple[str, Record], ...]
"""Objects at the end of a path, with the path of each."""


class SpreadRecord:
    """Record of a file after spreading.

    Args:
        own: the record's own columns, including those of the list element that it was made from.
        inner: objects whose keys are properties, unless the record has a column of that name.
        trail: index in each list on the way; empty without a list.
        row: the record in the file.
        spreader: made this record.
    """

    __slots__ = ("_spreader", "inner", "own", "row", "trail")

    def __init__(self, own: Record, inner: Inner, trail: tuple[int, ...], row: Record, spreader: Spreader) -> None:
        self.own = own
        self.inner = inner
        self.trail = trail
        self.row = row
        self._spreader = spreader

    def original(self) -> Record:
        """Return the record in the file, with only this element of each list."""
        return self._spreader.isolate(self.row, self.trail) if self.trail else self.row

    def merged(self) -> Record:
        """Return all columns at one level."""
        merged: Record = {}
        for _, values in self.inner:
            merged.update(values)
        return {**merged, **self.own}


class SpreadFault:
    """Record of a file, or list element of one, that cannot be spread.

    Args:
        path: path of the value.
        problem: what is wrong with it.
        row: the record in the file, with only this element of the list.
    """

    __slots__ = ("path", "problem", "row")

    def __init__(self, path: str, problem: str, row: Record) -> None:
        self.path = path
        self.problem = problem
        self.row = row

    def original(self) -> Record:
        return self.row


_Error = tuple[str, str]
"""Path of a value, and what is wrong with it."""
_State = tuple[Record, Inner, tuple[int, ...], _Error | None]
"""Own columns, objects at the end of a path, indexes of list elements, and an error."""


class Spreader:
    """Spreads the columns named by `--spread`.

    In a list, and along a path, an inner value replaces an outer one of the same name. The object at the end of a path
    replaces nothing: `ColumnMapping` gives its key a longer name if the record has a column of that name.

    Args:
        paths: columns. In `a.b`, `a` is spread, then `b` in it or in each of its elements.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        self.found: set[str] = set()
        """Paths that a record had so far."""

    def records(self, row: object) -> Iterator[object]:
        """Spread a row of a file. A row without a record is returned unchanged, and an empty list gives no record."""
        if type(row) is not dict:
            yield row
            return
        container = self._container(row)
        columns = row if container is None else _flatten(row, container)
        states: Iterable[_State] = ((columns, (), (), None),)
        for path in self.paths:
            states = self._spread_all(states, path)
        for count, (own, inner, trail, error) in enumerate(states):
            if count >= MAX_ELEMENTS:
                # All elements before this one are already on their way.
                problem = f"has more than {MAX_ELEMENTS:,} nested records; split it"
                yield SpreadFault("", problem, self._isolate_from(row, trail))
                return
            if error is None:
                yield SpreadRecord(own, inner, trail, row, self)
            else:
                yield SpreadFault(*error, self.isolate(row, trail))

    def _container(self, row: Record) -> str | None:
        """Return the name of the object in which Mixpanel's exports have properties, if a path begins there."""
        for name in ("properties", "$properties"):
            inside = row.get(name)
            if type(inside) is dict and any(_is_in(inside, path) and not _is_in(row, path) for path in self.paths):
                return name
        return None

    def _spread_all(self, states: Iterable[_State], path: str) -> Iterator[_State]:
        for own, inner, trail, error in states:
            if error is not None:
                yield own, inner, trail, error
            else:
                for new_own, new_inner, new_trail, new_error in self._spread_found(own, inner, path):
                    yield new_own, new_inner, trail + new_trail, new_error

    def _spread_found(self, own: Record, inner: Inner, path: str) -> Iterator[_State]:
        """Spread a column of the record itself, or else of an object that was spread before."""
        first = path if path in own else path.partition(".")[0]
        if first not in own:
            for number, (name, values) in enumerate(inner):
                if path in values or path.partition(".")[0] in values:
                    for new_own, new_inner, trail, error in _spread(values, path, path, self.found):
                        rest = (*inner[:number], (name, new_own), *inner[number + 1 :])
                        yield own, rest + new_inner, trail, error
                    return
        for new_own, new_inner, trail, error in _spread(own, path, path, self.found):
            yield new_own, inner + new_inner, trail, error

    def isolate(self, row: Record, trail: tuple[int, ...]) -> Record:
        """Return a record of a file with only one element of each list.

        Args:
            row: the record.
            trail: index in each list.
        """
        return self._cut(row, [slice(index, index + 1) for index in trail])

    def _isolate_from(self, row: Record, trail: tuple[int, ...]) -> Record:
        return self._cut(row, [slice(index, None) for index in trail])

    def _cut(self, row: Record, slices: list[slice]) -> Record:
        container = self._container(row)
        for path in self.paths:
            if container is not None and not _is_in(row, path):
                row = {**row, container: _cut_lists(row[container], path, slices)}
            else:
                row = _cut_lists(row, path, slices)
        return row


def spread_rows(rows: Sequence[Row], spreader: Spreader | None) -> Iterable[Row]:
    """Return rows with the same line numbers, after spreading if there is a spreader."""
    if spreader is None:
        return rows
    return ((line, record) for line, row in rows for record in spreader.records(row))


def original_row(row: object) -> object:
    """Return the row of the file that a row was made from by spreading, with only this element of each list."""
    return row.original() if isinstance(row, (SpreadRecord, SpreadFault)) else row


def _is_in(record: Record, path: str) -> bool:
    return _split(record, path)[0] in record


def _flatten(row: Record, container: str) -> Record:
    """Return the columns of a record and the keys of one of them at one level."""
    others = {name: value for name, value in row.items() if name != container}
    return {**others, **row[container], **({"event": row["event"]} if "event" in row else {})}


def _split(record: Record, path: str) -> tuple[str, str]:
    """Return the first column of a path and the rest. A column may have dots in its name."""
    if path in record:
        return path, ""
    column, _, rest = path.partition(".")
    return column, rest


def _spread(record: Record, path: str, full_path: str, found: set[str]) -> Iterator[_State]:
    """Spread the value at a path in a record.

    Args:
        record: a record or a nested object.
        path: the rest of the path.
        full_path: the whole path, for errors and names.
        found: receives the whole path if the record has it.
    """
    column, rest = _split(record, path)
    if column not in record:
        yield record, (), (), None
        return
    if not rest:
        found.add(full_path)
    others = {name: value for name, value in record.items() if name != column}
    where = full_path.removesuffix(f".{rest}") if rest else full_path
    value, problem = _decode(record[column])
    if problem is not None:
        yield record, (), (), (where, problem)
    elif type(value) is list:
        for index, element in enumerate(value):
            for own, inner, trail, error in _spread_element(element, rest, full_path, f"{where}[{index}]", found):
                yield _combine(others, own, inner), inner, (index, *trail), error
    elif type(value) is not dict:
        yield others, (), (), None
    elif rest:
        for own, inner, trail, error in _spread(value, rest, full_path, found):
            yield _combine(others, own, inner), inner, trail, error
    else:
        yield others, ((full_path, value),), (), None


def _spread_element(element: object, rest: str, full_path: str, where: str, found: set[str]) -> Iterator[_State]:
    value, problem = _decode(element)
    if type(value) is not dict:
        yield {}, (), (), (where, problem or "is not an object")
    elif rest:
        yield from _spread(value, rest, full_path, found)
    else:
        yield value, (), (), None


def _combine(outer: Record, own: Record, inner: Inner) -> Record:
    """Return the columns of a nested object with those of its surroundings that it does not have."""
    combined = {**outer, **own}
    for _, values in inner:
        for name in values:
            if name in outer and name not in own:
                del combined[name]
    return combined


def _decode(value: object) -> tuple[Any, str | None]:
    """Return the object or list that a value is or contains as JSON text, or None for an empty value.

    The second result is what is wrong with any other value.
    """
    if type(value) is str:
        if not value.strip():
            return None, None
        if len(value) > _MAX_TEXT:
            return None, f"is longer than {_MAX_TEXT:,} characters"
        try:
            value = orjson.loads(value)
        except ValueError:
            return None, "is not valid JSON; correct it, or leave out --spread to keep the text"
    if value is None or type(value) is dict:
        return value, None
    if type(value) is list:
        # Maps in Parquet are lists of pairs.
        is_map = bool(value) and all(type(pair) is tuple and len(pair) == 2 for pair in value)
        return ({str(name): one for name, one in value} if is_map else value), None
    return None, f"cannot be spread: it must be an object or a list, not {type(value).__name__}"


@lru_cache(maxsize=2)
def _decode_once(text: str) -> Any:
    """Decode text that each element of a list asks for if all of them are rejected."""
    return _decode(text)[0]


def _cut_lists(record: Record, path: str, slices: list[slice]) -> Record:
    """Return a record with a part of each list on a path. Used slices are removed from the list."""
    column, rest = _split(record, path)
    value = record.get(column)
    value = _decode_once(value) if type(value) is str else _decode(value)[0]
    if type(value) is list and slices:
        part = value[slices.pop(0)]
        if rest and len(part) == 1 and type(part[0]) is dict:
            part = [_cut_lists(part[0], rest, slices)]
        return {**record, column: part}
    if type(value) is dict and rest:
        return {**record, column: _cut_lists(value, rest, slices)}
    return record
