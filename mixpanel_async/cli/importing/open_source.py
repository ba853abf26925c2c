"""The source that fits a file."""

from __future__ import annotations

from dataclasses import dataclass

from .csv_source import CsvSource
from .inputs import Format, Input, InputError, opened
from .json_source import JsonSource, NdjsonSource
from .parquet_source import ParquetSource
from .source import FAULTS, Position, Source


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How files are read.

    Args:
        format: of all files, or `Format.AUTO`.
        delimiter: of CSV; None for a comma, or a tab in TSV.
        encoding: of CSV.
    """

    format: Format = Format.AUTO
    delimiter: str | None = None
    encoding: str = "utf-8"


def source(one: Input, reading: Reading, start: Position) -> Source:
    """A file, opened at a position.

    Raises:
        InputError: if it cannot be opened or understood.
    """
    file = opened(one, reading.format)
    try:
        if file.format is Format.PARQUET:
            file.close()
            return ParquetSource(one.name, start)
        if file.format in {Format.CSV, Format.TSV}:
            delimiter = reading.delimiter or ("\t" if file.format is Format.TSV else ",")
            return CsvSource(file.content, start, file, delimiter, reading.encoding)
        kind = JsonSource if file.format is Format.JSON else NdjsonSource
        return kind(file.content, start, file)
    except FAULTS as error:
        file.close()
        raise InputError(f"cannot read {one.name}: {error}") from None
    except InputError as error:
        file.close()
        raise InputError(f"{one.name}: {error}") from None
