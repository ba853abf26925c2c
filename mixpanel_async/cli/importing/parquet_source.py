"""Rows of a Parquet file. The only file that knows pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from .csv_source import check_unique
from .inputs import DamagedError, InputError
from .source import Position, Row

# What is turned into Python objects at once: so many rows, or fewer of so many bytes.
_MOST_ROWS: Final = 2_000
_BATCH_BYTES: Final = 1024 * 1024
_BUFFER: Final = 1024 * 1024


class ParquetSource:
    """A Parquet file, read row group by row group.

    Args:
        name: of the file.
        start: the row to begin with.

    Raises:
        InputError: if pyarrow is missing, or the file is none that it can read.
    """

    def __init__(self, name: str, start: Position) -> None:
        if find_spec("pyarrow") is None:
            raise InputError('it is Parquet, which needs pyarrow: pip install "mixpanel-async[cli,parquet]"')
        import pyarrow as pa
        from pyarrow import parquet

        self._fault = pa.ArrowException
        self._arrow = pa
        self._size: int = Path(name).stat().st_size
        try:
            self._file = parquet.ParquetFile(name, buffer_size=_BUFFER, pre_buffer=False)
        except (self._fault, OSError, ValueError) as error:
            raise InputError(f"it cannot be read as Parquet: {_words(error)}") from None
        check_unique(self._file.schema_arrow.names)
        metadata = self._file.metadata
        self._total: int = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        self._batch = max(1, min(_MOST_ROWS, _BATCH_BYTES * self._total // max(1, size)))
        self._row = start.offset
        self.is_over = False
        self._batches = self._read(start.offset)
        self._rows: Iterator[dict[str, Any]] = iter(())

    @property
    def position(self) -> Position:
        return Position(self._row, self._row)

    def done(self) -> int:
        return self._size * self._row // max(1, self._total)

    def close(self) -> None:
        self._batches.close()
        self._file.close()

    def take(self, most: int) -> list[Row]:
        rows: list[Row] = []
        try:
            while len(rows) < min(most, self._batch):
                row = next(self._rows, None)
                if row is None:
                    batch = next(self._batches, None)
                    if batch is None:
                        self.is_over = True
                        break
                    self._rows = iter(batch)
                    continue
                self._row += 1
                # A null is a property that is not there.
                rows.append((self._row, {name: value for name, value in row.items() if value is not None}))
        except (self._fault, OSError, ValueError) as error:
            if not rows:
                raise DamagedError(f"after row {self._row}: {_words(error)}") from None
        return rows

    def _read(self, skip: int) -> Any:
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
        for batch in self._file.iter_batches(batch_size=self._batch, row_groups=groups, use_threads=False):
            rest = batch.slice(skip) if skip else batch
            skip = max(0, skip - len(batch))
            if len(rest):
                yield self._coarse(rest).to_pylist()

    def _coarse(self, batch: Any) -> Any:
        """Times in nanoseconds as microseconds, the finest that Python has; Mixpanel keeps milliseconds."""
        types = self._arrow.types
        for at, field in enumerate(batch.schema):
            if types.is_timestamp(field.type) and field.type.unit == "ns":
                coarse = self._arrow.timestamp("us", field.type.tz)
                batch = batch.set_column(at, field.name, batch.column(at).cast(coarse, safe=False))
        return batch


def _words(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
