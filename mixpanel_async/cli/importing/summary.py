"""Summary of an import: the final output lines and the exit status."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .file_import import FileImport

if TYPE_CHECKING:
    from .dry_run_report import DryRunReport

DONE: Final = 0
STOPPED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3
INTERRUPTED: Final = 130

_SINGULAR: Final = {"events": "event", "people": "person", "groups": "group"}
_MAX_REASONS: Final = 10
_MISSING_TIME: Final = "time: is missing"
_RESUME: Final = "Rerun the command to resume."


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """Result of an import or a dry run.

    Args:
        files: all files, including those that were complete before.
        noun: plural noun for the records, the value of an `ImportKind`.
        is_dry_run: whether records were only checked.
        reason_counts: number of rejected records by reason.
        first_rejects: position and reason of the first rejected records. They are listed one by one and left out of
            the counts by reason.
        report: report of a dry run; None if it is not shown. It has the reasons, so they are not repeated.
        delivered: number of records that Mixpanel accepted in this run; None for a dry run.
        failure: error that stopped the import, or None.
        advice: fix that is needed before rerunning the command, or an empty string.
        suggest_time_mapping: whether `--map time=COLUMN` could help if all records lack a time.
        unmatched_options: options whose column no record had.
        unused_option: message about another option that had no effect, or None.
        order_warning: warning about the order of the events, or None.
        signal_status: exit status after a signal, or None.
    """

    files: Sequence[FileImport]
    noun: str
    is_dry_run: bool
    reason_counts: Counter[str]
    first_rejects: Sequence[tuple[str, str]] = ()
    report: DryRunReport | None = None
    unmatched_options: Sequence[str] = ()
    unused_option: str | None = None
    order_warning: str | None = None
    delivered: int | None = None
    failure: str | None = None
    advice: str = ""
    suggest_time_mapping: bool = False
    signal_status: int | None = None

    @property
    def is_complete(self) -> bool:
        return all(file.is_complete for file in self.files)

    @property
    def status(self) -> int:
        if self.failure is not None:
            return STOPPED
        if self.signal_status is not None and not self.is_complete:
            return self.signal_status
        if not self.is_complete:
            return STOPPED
        return INCOMPLETE if any(file.settled.not_imported for file in self.files) else DONE

    def lines(self) -> list[str]:
        """Return the lines to print."""
        earlier_imported = sum(file.earlier.imported for file in self.files)
        earlier_rejected = sum(file.earlier.not_imported for file in self.files)
        rejected = sum(file.earlier.rejected + file.recorded.rejected for file in self.files)
        uncertain = sum(file.earlier.uncertain + file.recorded.uncertain for file in self.files)
        imported = sum(file.settled.imported for file in self.files)
        if self.delivered is not None:
            # A run that was stopped may not have committed every record that Mixpanel accepted.
            imported = earlier_imported + self.delivered
        noun = _SINGULAR[self.noun] if imported == 1 else self.noun
        text = f"{imported:,} {noun} {'valid' if self.is_dry_run else 'imported'}, {rejected:,} rejected"
        if uncertain:
            text += f", {uncertain:,} uncertain: may have been applied, not sent again"
        if earlier_rejected:
            text += f" ({earlier_imported:,} imported and {earlier_rejected:,} rejected before)"
        elif earlier_imported:
            text += f" ({earlier_imported:,} imported before)"
        lines = [text, *self._reason_lines()] if self.report is None else [*self.report.lines(), text]
        if self.suggest_time_mapping and imported == earlier_imported and self.reason_counts[_MISSING_TIME]:
            lines.append('The time is read from the column "time". Use --map time=COLUMN to read it from another.')
        if any(file.submitted.read > file.earlier.read for file in self.files):
            lines += [f"{option}: no record has this column" for option in self.unmatched_options]
            lines += [] if self.unused_option is None else [self.unused_option]
        lines += [] if self.order_warning is None else [self.order_warning]
        paths = dict.fromkeys(file.rejects.path for file in self.files if file.rejects.path and file.not_imported)
        lines += [f"rejected records: {path}" for path in paths]
        lines += [f"{file.name}: {file.damage}" for file in self.files if file.damage is not None]
        if self.failure is not None:
            lines.append(f"stopped: {self.failure}")
        return lines if self.is_dry_run or self.is_complete else [*lines, *self._resume_lines()]

    def as_json(self) -> str:
        """Return the result of a dry run as one JSON object."""
        assert self.report is not None
        counts = {
            "valid": sum(file.settled.imported for file in self.files),
            "rejected": sum(file.recorded.rejected for file in self.files),
            "status": self.status,
            "warnings": [] if self.order_warning is None else [self.order_warning],
            "damaged": {file.name: file.damage for file in self.files if file.damage is not None},
        }
        # Unlike orjson, this accepts names with bytes that could not be decoded.
        return json.dumps({**counts, **self.report.as_dict()})

    def _reason_lines(self) -> list[str]:
        others = self.reason_counts - Counter(reason for _, reason in self.first_rejects)
        lines = [f"{position}: {reason}" for position, reason in self.first_rejects]
        if lines and others:
            lines.append(f"and {others.total():,} more:")
        return lines + [f"{count:>10,}  {reason}" for reason, count in others.most_common(_MAX_REASONS)]

    def _resume_lines(self) -> list[str]:
        remaining = [file for file in self.files if not file.is_complete and file.damage is None]
        lines = []
        if any(file.store is not None for file in remaining):
            lines.append(f"{self.advice}, then rerun the command to resume." if self.advice else _RESUME)
        not_resumable = [file.name for file in remaining if file.store is None]
        if not_resumable:
            names = ", ".join("standard input" if name == "-" else name for name in not_resumable)
            lines.append(f"{names} cannot be resumed: there is no checkpoint. Events that are resent count once.")
        return lines
