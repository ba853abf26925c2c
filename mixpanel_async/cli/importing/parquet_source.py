"""Parquet source. The only module that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from .csv_source import check_unique
from .inputs import DamagedError, InputError
from .option_values import Format
from .record_source import Position, Row

# Bounds of the rows that are converted to Python objects at a time.
_MAX_BATCH_ROWS: Final = 2_000
_MAX_BATCH_BYTES: Final = 1024 * 1024
_BUFFER_BYTES: Final = 1024 * 1024


class ParquetSource:
    """Source of the rows of a Parquet file, read by row group.

    Args:
        name: path of the file.
        start: position to start at.

    Raises:
        InputError: if pyarrow is not installed or cannot read the file.
    """

    format = Format.PARQUET

    def __init__(self, name: str, start: Position) -> None:
        if find_spec("pyarrow") is None:
            raise InputError(
                'Parquet files need an extra: run pip install ".[cli,parquet]" in a clone of the repository'
            )
        import pyarrow as pa
        from pyarrow import parquet

        self._arrow_error = pa.ArrowException
        self._arrow = pa
        self._size: int = Path(name).stat().st_size
        try:
            self._file = parquet.ParquetFile(name, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (self._arrow_error, OSError, ValueError) as error:
            raise InputError(f"cannot be read as Parquet: {_first_line(error)}") from None
        schema = self._file.schema_arrow
        check_unique(schema.names)
        self.columns: Sequence[str] = schema.names
        self._is_nested = any(pa.types.is_nested(column.type) for column in schema)
        metadata = self._file.metadata
        self._total: int = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        self._batch_rows = max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES * self._total // max(1, size)))
        self._row = start.offset
        self.is_exhausted = False
        self._batches = self._read_batches(start.offset)
        self._rows: Iterator[dict[str, Any]] = iter(())

    @property
    def position(self) -> Position:
        return Position(self._row, self._row)

    def bytes_read(self) -> int:
        return self._size * self._row // max(1, self._total)

    def close(self) -> None:
        self._batches.close()
        self._file.close()

    def take(self, limit: int) -> list[Row]:
        rows: list[Row] = []
        try:
            while len(rows) < min(limit, self._batch_rows):
                row = next(self._rows, None)
                if row is None:
                    batch = next(self._batches, None)
                    if batch is None:
                        self.is_exhausted = True
                        break
                    self._rows = iter(batch)
                    continue
                self._row += 1
                # A null means that the record does not have the property.
                rows.append((self._row, _without_nulls(row) if self._is_nested else _without_null_columns(row)))
        except (self._arrow_error, OSError, ValueError) as error:
            if not rows:
                raise DamagedError(f"damaged after row {self._row}: {_first_line(error)}") from None
        return rows

    def _read_batches(self, skip: int) -> Any:
        metadata = self._file.metadata
        groups: list[int] = []
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            if not groups and skip >= rows:
                skip -= rows
            else:
                groups.append(group)
        if not groups:
            return
        for batch in self._file.iter_batches(batch_size=self._batch_rows, row_groups=groups, use_threads=False):
            rest = batch.slice(skip) if skip else batch
            skip = max(0, skip - len(batch))
            if len(rest):
                yield self._without_nanoseconds(rest).to_pylist()

    def _without_nanoseconds(self, batch: Any) -> Any:
        """Convert nanoseconds to microseconds, the precision of Python; Mixpanel stores milliseconds."""
        types = self._arrow.types
        for column, field in enumerate(batch.schema):
            if types.is_timestamp(field.type) and field.type.unit == "ns":
                microseconds = self._arrow.timestamp("us", field.type.tz)
                batch = batch.set_column(column, field.name, batch.column(column).cast(microseconds, safe=False))
        return batch


def _without_null_columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}


def _without_nulls(value: Any) -> Any:
    """Return a value without the null fields of its objects: every object of a struct column has all fields."""
    if type(value) is dict:
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [*map(_without_nulls, value)] if type(value) is list else value


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
