"""What an import came to, in words and as an exit status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .file_import import FileImport

DONE: Final = 0
STOPPED: Final = 1
USAGE: Final = 2
INCOMPLETE: Final = 3

_REASONS_SHOWN: Final = 10
_NO_TIME: Final = "time: is missing"
_AGAIN: Final = "Give the same command again to go on from here."


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of an import or of a dry run.

    Args:
        jobs: the files, those that were complete before included.
        noun: what the records are.
        is_dry: whether anything was to be sent.
        reasons: why records were rejected.
        named: where the first of them are, and why they were rejected; left out of the counts that are shown.
        delivered: records that Mixpanel took in this run; None of a dry run.
        failure: why it stopped, if an error stopped it.
        mend: what has to be mended before the command is of use again, if anything has to.
        can_map: whether the records are events whose time comes from the column of that name.
        unused: `NAME=COLUMN` mappings whose columns no record had.
        signal: exit status of a program that was interrupted, if it was.
    """

    jobs: Sequence[FileImport]
    noun: str
    is_dry: bool
    reasons: Counter[str]
    named: Sequence[tuple[str, str]] = ()
    unused: Sequence[str] = ()
    delivered: int | None = None
    failure: str | None = None
    mend: str = ""
    can_map: bool = False
    signal: int | None = None

    @property
    def is_complete(self) -> bool:
        return all(job.is_complete for job in self.jobs)

    @property
    def status(self) -> int:
        if self.failure is not None:
            return STOPPED
        if self.signal is not None and not self.is_complete:
            return self.signal
        if not self.is_complete:
            return STOPPED
        return INCOMPLETE if any(job.settled.refused for job in self.jobs) else DONE

    def lines(self) -> list[str]:
        """What is said at the end."""
        earlier = sum(job.before.imported for job in self.jobs)
        refused = sum(job.before.refused for job in self.jobs)
        rejected = sum(job.before.rejected + job.noted.rejected for job in self.jobs)
        uncertain = sum(job.before.uncertain + job.noted.uncertain for job in self.jobs)
        # What Mixpanel has taken, also where a run that was stopped could not wait to hear it of all before.
        imported = sum(job.settled.imported for job in self.jobs)
        if self.delivered is not None:
            imported = earlier + self.delivered
        text = f"{imported:,} {self.noun} {'are good' if self.is_dry else 'imported'}, {rejected:,} rejected"
        if uncertain:
            text += f", {uncertain:,} uncertain: they may have been applied and were not sent again"
        if refused:
            text += f" ({earlier:,} imported and {refused:,} rejected before)"
        elif earlier:
            text += f" ({earlier:,} imported before)"
        lines = [text, *self._reasons()]
        if self.can_map and imported == earlier and self.reasons[_NO_TIME]:
            lines.append("The time is taken from a column called time; --map time=COLUMN takes it from another.")
        if any(job.fed.read > job.before.read for job in self.jobs):
            lines += [f"--map {mapping}: found in no record" for mapping in self.unused]
        paths = dict.fromkeys(job.rejects.path for job in self.jobs if job.rejects.path and job.refused)
        lines += [f"rejected records: {path}" for path in paths]
        lines += [f"{job.name}: damaged {job.damage}" for job in self.jobs if job.damage is not None]
        if self.failure is not None:
            lines.append(f"stopped: {self.failure}")
        return lines if self.is_dry or self.is_complete else [*lines, *self._what_next()]

    def _reasons(self) -> list[str]:
        rest = self.reasons - Counter(words for _, words in self.named)
        lines = [f"{place}: {words}" for place, words in self.named]
        if lines and rest:
            lines.append(f"and {rest.total():,} more:")
        return lines + [f"{count:>10,}  {words}" for words, count in rest.most_common(_REASONS_SHOWN)]

    def _what_next(self) -> list[str]:
        left = [job for job in self.jobs if not job.is_complete and job.damage is None]
        lines = []
        if any(job.store is not None for job in left):
            lines.append(f"{self.mend}, then give the same command again to go on from here." if self.mend else _AGAIN)
        once = [job.name for job in left if job.store is None]
        if once:
            names = ", ".join("the standard input" if name == "-" else name for name in once)
            lines.append(f"{names} cannot be resumed: there is no checkpoint. Events that are sent again count once.")
        return lines
