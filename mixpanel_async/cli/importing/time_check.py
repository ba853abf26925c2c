"""Check of the options for times against the records, before anything is sent.

A wrong time zone cannot be corrected later: events that are sent again with another time are other events. So an option
that has no effect, and numeric times that are not in UTC, stop the import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mixpanel_async import ValidationError

from .arrival_order import ArrivalOrder
from .inputs import DamagedError, InputError, InputFile
from .option_values import ImportKind
from .project_time import ARRIVAL_FIELD, ObservedClock, OffsetEvidence
from .record_conversion import event_converter, time_reader, update_converter
from .record_source import Position, Row
from .source_factory import ReadOptions, open_source
from .spread import spread_rows

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping

AUTO: Final = "auto"

_CHUNK_RECORDS: Final = 500
# A file without `$mp_api_timestamp_ms` in its first records is not read to its end.
_HEAD_RECORDS: Final = 2_000


class TimeCheck:
    """Check of the times in some files.

    Args:
        mapping: maps their columns to fields and properties.
        read_options: options for reading them.
        timezone: value of `--timezone`.
        project_timezone: value of `--project-timezone`.
        report: shows a line.
        order: counts events of raw exports that are not in order of arrival; None to leave that out.
    """

    def __init__(
        self,
        mapping: ColumnMapping,
        read_options: ReadOptions,
        *,
        timezone: str | None,
        project_timezone: str | None,
        report: Callable[[str], None],
        order: ArrivalOrder | None = None,
    ) -> None:
        self._mapping = mapping
        self._read_options = read_options
        self._timezone = timezone
        self._project_timezone = project_timezone
        self._report = report
        self._order = order
        # With UTC the caller says that numeric times are right as they are.
        self._compares = mapping.kind is ImportKind.EVENTS and (project_timezone or "").upper() not in {"UTC", "Z"}
        self._read_time = time_reader(mapping, all_times=project_timezone is not None)

    def run(self, inputs: Sequence[InputFile]) -> ColumnMapping:
        """Check the files that can be read twice. Return the mapping with the clock of `--project-timezone auto`.

        Raises:
            InputError: if numeric times are not in UTC after the conversion, or an option has no effect.
        """
        evidence: dict[str, OffsetEvidence] = {}
        for input_file in inputs:
            if input_file.identity is not None:
                found = self._compare(input_file)
                if found is not None:
                    evidence[input_file.content_id] = found
            elif self._project_timezone == AUTO:
                raise InputError(
                    f"{input_file.name} can be read only once, so --project-timezone auto cannot be used: name the "
                    "time zone, or save the content to a file first"
                )
        self._check_timezone(inputs)
        return replace(self._mapping, project_clock=ObservedClock(evidence)) if evidence else self._mapping

    def check_stream(self) -> Callable[[Sequence[Row]], None]:
        """Return a function that checks the next records of a stream before they are sent.

        It raises `DamagedError` if numeric times are not in UTC after the conversion.
        """
        evidence = OffsetEvidence()

        def check(rows: Sequence[Row]) -> None:
            if self._compares and self._add(evidence, rows, "") and (problem := self._problem(evidence)) is not None:
                raise DamagedError(problem)

        return check

    def _compare(self, input_file: InputFile) -> OffsetEvidence | None:
        """Compare the times of a file with `$mp_api_timestamp_ms`. Return what was seen if `auto` needs it."""
        if not self._compares:
            return None
        evidence = OffsetEvidence()
        is_auto = self._project_timezone == AUTO
        read = numbers = 0
        for rows in _read(input_file, self._read_options):
            read += len(rows)
            if self._order is not None:
                _note_order(self._order, rows)
            numbers += self._add(evidence, rows, input_file.content_id)
            is_needed = is_auto or evidence.records or (self._project_timezone is not None and not numbers)
            if read >= _HEAD_RECORDS and not is_needed:
                break
            if read - len(rows) < _HEAD_RECORDS <= read:
                self._report(f"comparing the times of {input_file.name} with {ARRIVAL_FIELD}")
        if read and not numbers and self._project_timezone is not None:
            raise InputError(
                f"{input_file.name}: --project-timezone has no effect, because no time is a number; leave it out, or "
                "use --timezone for times without a time zone"
            )
        if not is_auto or not read:
            problem = self._problem(evidence)
            if problem is not None:
                raise InputError(f"{input_file.name}: {problem}")
            return None
        if not evidence.offsets():
            raise InputError(
                f"{input_file.name}: --project-timezone auto found no offset, because too few records have "
                f"{ARRIVAL_FIELD} and arrived shortly after their time; name the project's time zone instead"
            )
        self._report(f"{input_file.name}: numeric times are {evidence.describe()} from UTC, and are converted")
        return evidence

    def _add(self, evidence: OffsetEvidence, rows: Sequence[Row], content_id: str) -> int:
        """Compare some records. Return how many numeric times they have."""
        numbers = 0
        for _, row in spread_rows(rows, self._mapping.spreader):
            time, arrival = self._read_time(row, content_id)
            if time is not None:
                numbers += 1
                if arrival is not None:
                    evidence.add(time, arrival)
        return numbers

    def _problem(self, evidence: OffsetEvidence) -> str | None:
        """Return what is wrong with times, or None if they agree with UTC."""
        if not any(evidence.offsets()):
            return None
        if self._project_timezone is not None:
            # Late arrivals look like an offset to the west.
            is_late = min(evidence.offsets()) < 0
            advice = f"; if the events arrived that late, use --drop '{ARRIVAL_FIELD}'" if is_late else ""
            return (
                f"numeric times converted with --project-timezone {self._project_timezone} still differ from "
                f"{ARRIVAL_FIELD}, which is in UTC: by {evidence.describe()}. Set --project-timezone to the project's "
                f"time zone, or to auto to use the offsets seen{advice}"
            )
        return (
            f"numeric times differ from {ARRIVAL_FIELD}, which is in UTC: by {evidence.describe()}. They seem to be in "
            "the project's time zone. Set --project-timezone to that zone, to auto to use the offsets seen, or to UTC "
            "to import the numbers as they are"
        )

    def _check_timezone(self, inputs: Sequence[InputFile]) -> None:
        """Check that `--timezone` applies to a time. It is not known beforehand for streams.

        Raises:
            InputError: if it applies to none.
        """
        if self._timezone is None or any(input_file.identity is None for input_file in inputs):
            return
        mapping, converted = self._mapping, 0
        is_event = mapping.kind is ImportKind.EVENTS
        convert_event, convert_update = event_converter(mapping), update_converter(mapping)
        for input_file in inputs:
            for rows in _read(input_file, self._read_options):
                for line, row in spread_rows(rows, mapping.spreader):
                    with suppress(ValidationError):
                        convert_event(row, (input_file.content_id, line)) if is_event else convert_update(row)
                        converted += 1
                if mapping.time_parser.is_zone_used:
                    return
        if converted:
            raise InputError(unused_timezone(self._timezone, mapping.kind))


def _note_order(order: ArrivalOrder, rows: Sequence[Row]) -> None:
    """Take the order of events in Mixpanel's own form into account."""
    for _, row in rows:
        if type(row) is dict and type(properties := row.get("properties")) is dict:
            ids = properties.get("$user_id"), properties.get("$device_id")
            order.add(row, row.get("event"), *ids, properties.get("time"))


def unused_timezone(timezone: str, kind: ImportKind) -> str:
    """Return the message for a `--timezone` that applies to no time."""
    numbers = "; for numbers in project time, use --project-timezone" if kind is ImportKind.EVENTS else ""
    return f"--timezone {timezone} has no effect, because every time is a number or has a time zone{numbers}"


def _read(input_file: InputFile, read_options: ReadOptions) -> Iterator[list[Row]]:
    """Read a file up to its end or to damage, which the import reports later."""
    source = open_source(input_file, read_options, Position())
    try:
        while not source.is_exhausted:
            yield source.take(_CHUNK_RECORDS)
    except DamagedError:
        return
    finally:
        source.close()
