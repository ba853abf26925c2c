"""Tracking of rejected records: their origin, their reason and their entry in the rejects file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final

from mixpanel_async import DropReason, LostRecord, ValidationError

from .file_import import FileImport
from .record_conversion import explain_error, record_key
from .record_source import UnreadableRow
from .spread import original_row

if TYPE_CHECKING:
    from .column_mapping import ColumnMapping

UNREADABLE: Final = "unreadable"
INVALID: Final = "invalid"
UNCERTAIN: Final = "uncertain"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MAX_REASONS: Final = 1_000
_MAX_FIRST_REJECTS: Final = 5
# The client reports these when it is closed or an awaited call ends. The next run resends the records.
_RESENT_LATER: Final = frozenset({DropReason.CLOSED, DropReason.EXHAUSTED, DropReason.UNAUTHORIZED})

RecordOrigins = dict[str | int, tuple[FileImport, int]]
"""File and line by record key."""


class RejectTracker:
    """Tracker of records that this program or Mixpanel rejects.

    It remembers the origin of each record in flight, because the client reports a lost record by its message only.

    Args:
        mapping: maps the columns of the files to fields and properties.
    """

    def __init__(self, mapping: ColumnMapping) -> None:
        self._mapping = mapping
        self.reason_counts: Counter[str] = Counter()
        self.first_rejects: list[tuple[str, str]] = []
        """Position (file and line) and reason of the first rejected records."""
        self.in_flight: RecordOrigins = {}
        """Origins of the records that were handed to the client since the last commit began."""
        self._committing: list[RecordOrigins] = []

    def begin_commit(self) -> RecordOrigins:
        """Start an empty `in_flight`. Return the previous one, which is kept until `end_commit`."""
        origins, self.in_flight = self.in_flight, {}
        self._committing.append(origins)
        return origins

    def end_commit(self, origins: RecordOrigins) -> None:
        """Forget the origins of records that are settled."""
        self._committing = [older for older in self._committing if older is not origins]

    def add_invalid(self, file: FileImport, line: int, row: object, error: ValidationError) -> None:
        """Record a row that this program rejects.

        Raises:
            OSError: if the rejects file cannot be written.
        """
        if isinstance(row, UnreadableRow):
            self._add(file, line, UNREADABLE, "", error.problem, row.text)
        else:
            error = explain_error(error, row, self._mapping)
            self._add(file, line, INVALID, error.path, error.problem, original_row(row))

    def add_uncertain(self, file: FileImport, line: int, row: object) -> None:
        """Record an update that may have been applied and is not resent.

        Raises:
            OSError: if the rejects file cannot be written.
        """
        self._add(
            file, line, UNCERTAIN, "", "may have been applied before the import was interrupted", original_row(row)
        )

    def add_losses(self, records: list[LostRecord], reason: DropReason, fallback: FileImport) -> None:
        """Record records that the client could not deliver.

        Args:
            records: the records, as passed to `on_drop`.
            reason: the reason, as passed to `on_drop`.
            fallback: file that a record of unknown origin is counted for.

        Raises:
            OSError: if the rejects file cannot be written.
        """
        if reason in _RESENT_LATER:
            return
        for record in records:
            file, line = self._find_origin(record) or (fallback, None)
            file.add_loss(line, uncertain=reason is DropReason.UNCERTAIN)
            problem = record.message or "rejected by Mixpanel"
            payload = record.payload if self._mapping.project_clock is None else _with_text_time(record.payload)
            self._add(file, line, reason.value, record.field, problem, payload)

    def _find_origin(self, record: LostRecord) -> tuple[FileImport, int] | None:
        if record.payload is None:
            return None
        key = record_key(record.payload)
        return next((origins[key] for origins in (self.in_flight, *reversed(self._committing)) if key in origins), None)

    def _add(self, file: FileImport, line: int | None, reason: str, field: str, problem: str, record: object) -> None:
        text = f"{field}: {problem}" if field else problem
        is_counted = text in self.reason_counts or len(self.reason_counts) < _MAX_REASONS
        if len(self.first_rejects) < _MAX_FIRST_REJECTS:
            self.first_rejects.append((f"{file.name}:{line}", text))
        self.reason_counts[text if is_counted else "other reasons"] += 1
        file.add_recorded(uncertain=reason == UNCERTAIN)
        file.rejects.add(file.input.path, line, reason, problem, record, field)


def _with_text_time(message: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return an event with its time as text in UTC, so that a later import does not convert it from project time again.

    Args:
        message: an event as the client sends it, with a time in milliseconds.
    """
    if message is None:
        return None
    properties = message.get("properties")
    if not isinstance(properties, dict) or not isinstance(properties.get("time"), int):
        return message
    moment = _EPOCH + timedelta(milliseconds=properties["time"])
    return {**message, "properties": {**properties, "time": moment.isoformat(timespec="milliseconds")}}
