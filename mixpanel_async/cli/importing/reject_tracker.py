"""What was not imported: where it came from, why, and that it is written down."""

from __future__ import annotations

from collections import Counter
from typing import Final

from mixpanel_async import DropReason, LostRecord, ValidationError

from .column_mapping import ColumnMapping
from .conversion import explained, key_of
from .file_import import FileImport
from .source import Unreadable

UNREADABLE: Final = "unreadable"
INVALID: Final = "invalid"
UNCERTAIN: Final = "uncertain"

_MOST_REASONS: Final = 1_000
_MOST_NAMED: Final = 5
# What the client gives back because it was closed, or because an awaited call ended: it is sent again.
_NOT_OVER: Final = frozenset({DropReason.CLOSED, DropReason.EXHAUSTED, DropReason.UNAUTHORIZED})

Places = dict[str | int, tuple[FileImport, int]]


class RejectTracker:
    """Notes records that are rejected, by this program or by Mixpanel.

    It remembers which line each record under way is from, as the client gives back what would have been sent.

    Args:
        shape: what the columns of the files mean.
    """

    def __init__(self, shape: ColumnMapping) -> None:
        self._shape = shape
        self.reasons: Counter[str] = Counter()
        self.first: list[tuple[str, str]] = []
        """The first that were rejected: file and line, and why."""
        self.under_way: Places = {}
        """By what tells records apart, where those come from that no commit waits for yet."""
        self._awaited: list[Places] = []

    def turn(self) -> Places:
        """Begin anew with what is under way, and keep what was until it is forgotten."""
        places, self.under_way = self.under_way, {}
        self._awaited.append(places)
        return places

    def forget(self, places: Places) -> None:
        """What was under way is settled."""
        self._awaited = [older for older in self._awaited if older is not places]

    def refuse(self, job: FileImport, line: int, row: object, error: ValidationError) -> None:
        """Note a record that is not sent.

        Raises:
            OSError: if it cannot be written down, here and below.
        """
        if isinstance(row, Unreadable):
            self._note(job, line, UNREADABLE, "", error.problem, row.text)
        else:
            error = explained(error, row, self._shape)
            self._note(job, line, INVALID, error.path, error.problem, row)

    def doubt(self, job: FileImport, line: int, row: object) -> None:
        """Note an update that may have been applied, and is not sent again."""
        self._note(job, line, UNCERTAIN, "", "may have been applied before the import was interrupted", row)

    def lose(self, records: list[LostRecord], reason: DropReason, otherwise: FileImport) -> None:
        """Note records that the client could not deliver.

        Args:
            records: as `on_drop` gets them.
            reason: as well.
            otherwise: the file that those are counted for of which it is not known any more.
        """
        if reason in _NOT_OVER:
            return
        for record in records:
            job, line = self._place(record) or (otherwise, None)
            job.lost(line, uncertain=reason is DropReason.UNCERTAIN)
            problem = record.message or "Mixpanel did not take it"
            self._note(job, line, reason.value, record.field, problem, record.payload)

    def _place(self, record: LostRecord) -> tuple[FileImport, int] | None:
        if record.payload is None:
            return None
        key = key_of(record.payload)
        return next((places[key] for places in (self.under_way, *reversed(self._awaited)) if key in places), None)

    def _note(self, job: FileImport, line: int | None, reason: str, field: str, problem: str, record: object) -> None:
        words = f"{field}: {problem}" if field else problem
        is_known = words in self.reasons or len(self.reasons) < _MOST_REASONS
        if len(self.first) < _MOST_NAMED:
            self.first.append((f"{job.name}:{line}", words))
        self.reasons[words if is_known else "other reasons"] += 1
        job.note(uncertain=reason == UNCERTAIN)
        job.rejects.add(job.input.path, line, reason, problem, record, field)
