"""Dry run: reads and checks all records as an import would, without sending any."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Final

from mixpanel_async import Checker, ValidationError

from .arrival_order import ArrivalOrder
from .dry_run_report import SAMPLE_RECORDS, DryRunReport
from .fault_finder import FaultFinder
from .file_import import FileImport
from .inputs import DamagedError, InputError
from .option_values import ImportKind
from .progress import Display, WorkProgress
from .record_conversion import RowId, event_converter, update_converter
from .record_source import Position, RecordSource, Row
from .reject_tracker import RejectTracker
from .source_factory import ReadOptions, open_source
from .spread import spread_rows

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping

# Small chunks are freed before the garbage collector moves them to an older generation.
_CHUNK_RECORDS: Final = 100
_PROGRESS_INTERVAL: Final = 0.2


class DryRun:
    """Check of some files without sending.

    Args:
        files: the files.
        read_options: options for reading them.
        mapping: maps their columns to fields and properties.
        checker: applies the client's own checks.
        order: counts valid events that are not in order of arrival.
        report: receives what the records are and all their faults; None if it is not shown.
        display: shows progress.
    """

    def __init__(
        self,
        files: Sequence[FileImport],
        *,
        read_options: ReadOptions,
        mapping: ColumnMapping,
        checker: Checker,
        order: ArrivalOrder,
        report: DryRunReport | None,
        display: Display,
    ) -> None:
        self._files = files
        self._read_options = read_options
        self._display = display
        self._mapping, self._report = mapping, report
        is_event = mapping.kind is ImportKind.EVENTS
        create_check = _event_check if is_event else _update_check
        self._check = _event_check(mapping, checker, order) if is_event else create_check(mapping, checker)
        self._check_again = create_check(mapping, checker)
        self._finder = FaultFinder(mapping, lambda repaired: create_check(repaired, checker))
        self._spreader = mapping.spreader
        self._shown_at = monotonic()
        self.rejects = RejectTracker(mapping)

    def run(self) -> None:
        """Check all files.

        Raises:
            OSError: if a rejected record cannot be written to the rejects file.
        """
        for file in self._files:
            try:
                source = open_source(file.input, self._read_options, Position())
            except InputError as error:
                file.mark_damaged(str(error))
                continue
            try:
                self._check_file(file, source)
            except DamagedError as error:
                file.mark_damaged(str(error))
            finally:
                source.close()
        self._show_progress(last=True)

    def _check_file(self, file: FileImport, source: RecordSource) -> None:
        check, content_id, report = self._check, file.input.content_id, self._report
        if report is not None:
            report.add_file(file.name, source.format, source.columns)
        looked_at = 0
        while not source.is_exhausted:
            rows = source.take(_CHUNK_RECORDS)
            read = rejected = 0
            for line, row in spread_rows(rows, self._spreader):
                read += 1
                try:
                    check(row, (content_id, line))
                except ValidationError as error:
                    rejected += 1
                    self.rejects.add_invalid(file, line, row, error)
                    if report is not None:
                        faults = self._finder.find(row, (content_id, line), error)
                        report.faults.add(faults, f"{file.name}:{line}")
            if report is not None and looked_at < SAMPLE_RECORDS:
                looked_at += self._look_at(report, rows, content_id)
            file.add_checked(read=read, rejected=rejected)
            file.set_bytes_read(source.bytes_read() if file.input.size is not None else 0)
            if monotonic() - self._shown_at > _PROGRESS_INTERVAL:
                self._show_progress()
        file.mark_complete()

    def _look_at(self, report: DryRunReport, rows: Sequence[Row], content_id: str) -> int:
        """Add some records to the report. Return how many there are."""
        mapping, count = self._mapping, 0
        convert_event, convert_update = event_converter(mapping), update_converter(mapping)
        for line, row in spread_rows(rows, self._spreader):
            count += 1
            report.add_row(row)
            with suppress(ValidationError):
                self._check_again(row, (content_id, line))
                if mapping.kind is ImportKind.EVENTS:
                    report.add_event(convert_event(row, (content_id, line)))
                else:
                    report.add_update(convert_update(row))
        return count

    def _show_progress(self, *, last: bool = False) -> None:
        self._shown_at = monotonic()
        sizes = [file.input.size for file in self._files]
        progress = WorkProgress(
            records=sum(file.submitted.imported for file in self._files),
            rejected=sum(file.not_imported for file in self._files),
            done=sum(file.bytes_read for file in self._files),
            total=None if None in sizes else sum(size or 0 for size in sizes),
        )
        self._display.show(progress, last=last)


def _event_check(
    mapping: ColumnMapping, checker: Checker, order: ArrivalOrder | None = None
) -> Callable[[object, RowId], None]:
    convert, check_event = event_converter(mapping), checker.event

    def check(row: object, row_id: RowId) -> None:
        distinct_id, name, properties, user_id, device_id, time, insert_id = convert(row, row_id)
        check_event(distinct_id, name, properties, user_id=user_id, device_id=device_id, time=time, insert_id=insert_id)
        if order is not None:
            order.add(row, name, user_id, device_id, time)

    return check


def _update_check(mapping: ColumnMapping, checker: Checker) -> Callable[[object, RowId], None]:
    convert = update_converter(mapping)

    def check(row: object, row_id: RowId) -> None:  # noqa: ARG001
        checker.update(convert(row))

    return check
