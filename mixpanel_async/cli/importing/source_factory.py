"""Choice of the record source for a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .csv_source import CsvSource
from .inputs import DamagedError, InputError, InputFile, open_input
from .json_source import JsonSource, NdjsonSource
from .option_values import Format
from .parquet_source import ParquetSource
from .record_source import READ_ERRORS, Position, RecordSource, Row

StreamCheck = Callable[[Sequence[str], Sequence[Row]], None]
"""Check of the next records of a stream, given the columns that it lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options for reading files.

    Args:
        format: format of all files; `Format.AUTO` detects it per file.
        delimiter: CSV delimiter; None for a comma, or a tab for TSV.
        encoding: CSV encoding.
        check_stream: called with the name of a file that can be read only once. Returns a function that is called with
            its columns and the next records. It raises `DamagedError` to stop reading before them.
    """

    format: Format = Format.AUTO
    delimiter: str | None = None
    encoding: str = "utf-8"
    check_stream: Callable[[str], StreamCheck] | None = None


class _CheckedSource:
    """Source whose records are checked before they are returned."""

    def __init__(self, source: RecordSource, check: StreamCheck) -> None:
        self._source = source
        self._check = check

    def take(self, limit: int) -> list[Row]:
        rows = self._source.take(limit)
        self._check(self._source.columns, rows)
        return rows

    @property
    def is_exhausted(self) -> bool:
        return self._source.is_exhausted

    @property
    def position(self) -> Position:
        return self._source.position

    @property
    def format(self) -> Format:
        return self._source.format

    @property
    def columns(self) -> Sequence[str]:
        return self._source.columns

    def bytes_read(self) -> int:
        return self._source.bytes_read()

    def close(self) -> None:
        self._source.close()


def open_source(input_file: InputFile, options: ReadOptions, start: Position) -> RecordSource:
    """Open a file at a position.

    Raises:
        InputError: if it cannot be opened, or its format cannot be detected or read.
    """
    source = _open(input_file, options, start)
    if input_file.identity is not None or options.check_stream is None:
        return source
    return _CheckedSource(source, options.check_stream(input_file.name))


def _open(input_file: InputFile, options: ReadOptions, start: Position) -> RecordSource:
    opened = open_input(input_file, options.format, options.delimiter)
    try:
        if opened.format is Format.PARQUET:
            opened.close()
            return ParquetSource(input_file.name, start)
        if opened.format in {Format.CSV, Format.TSV}:
            delimiter = options.delimiter or ("\t" if opened.format is Format.TSV else ",")
            return CsvSource(opened.content, start, opened, delimiter, options.encoding)
        source_type = JsonSource if opened.format is Format.JSON else NdjsonSource
        return source_type(opened.content, start, opened)
    except READ_ERRORS as error:
        opened.close()
        raise InputError(f"cannot read {input_file.name}: {error}") from None
    except (InputError, DamagedError) as error:
        opened.close()
        raise InputError(f"{input_file.name}: {error}") from None
