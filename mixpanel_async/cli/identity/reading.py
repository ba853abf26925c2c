"""Reading of all records of files, such as raw exports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final

from ..importing.inputs import DamagedError, InputError, InputFile, UnknownInputError
from ..importing.record_source import Position, RecordSource, Row
from ..importing.source_factory import ReadOptions, open_source

_ROWS_AT_ONCE: Final = 2_000


def read_rows(inputs: Iterable[InputFile]) -> Iterator[Row]:
    """Yield the number of the line and the content of each record of files, in order.

    Raises:
        InputError: if a file cannot be opened.
        DamagedError: if the rest of a file cannot be read. The message names the file.
    """
    for input_file in inputs:
        with closing(_open(input_file)) as source:
            while not source.is_exhausted:
                yield from take_rows(source, input_file, _ROWS_AT_ONCE)


def take_rows(source: RecordSource, input_file: InputFile, count: int) -> list[Row]:
    """Return the next rows of an open file, at most `count`.

    Raises:
        DamagedError: if the rest of the file cannot be read. The message names the file.
    """
    try:
        return source.take(count)
    except DamagedError as error:
        raise DamagedError(f"{input_file.name} is {error}") from None


def check_readable(inputs: Iterable[InputFile]) -> None:
    """Open each file once, before the first is read, which can take minutes. Streams can be opened only once.

    Raises:
        InputError: if a file cannot be opened.
    """
    for one in inputs:
        if one.identity is not None:
            _open(one).close()


def _open(input_file: InputFile) -> RecordSource:
    try:
        return open_source(input_file, ReadOptions(), Position())
    except UnknownInputError:
        raise InputError(f"{input_file.name} is neither NDJSON nor CSV with a header") from None
