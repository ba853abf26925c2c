"""Reading of all records of files, such as raw exports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Final

from ...importing.inputs import DamagedError, InputError, InputFile, UnknownInputError
from ...importing.record_source import Position, RecordSource, Row
from ...importing.source_factory import ReadOptions, open_source

_ROWS_AT_ONCE: Final = 2_000


def read_rows(inputs: Iterable[InputFile]) -> Iterator[Row]:
    """Yield the number of the line and the content of each record of files, in order.

    Raises:
        InputError: if a file cannot be read to its end.
    """
    for input_file in inputs:
        with closing(_open(input_file)) as source:
            while not source.is_exhausted:
                try:
                    rows = source.take(_ROWS_AT_ONCE)
                except DamagedError as error:
                    raise InputError(f"{input_file.name} is {error}") from None
                yield from rows


def _open(input_file: InputFile) -> RecordSource:
    try:
        return open_source(input_file, ReadOptions(), Position())
    except UnknownInputError:
        raise InputError(f"{input_file.name} is neither NDJSON nor CSV with a header") from None
