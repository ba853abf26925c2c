"""Reads and checks everything as an import would, and sends nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Final

from mixpanel_async import Checker, ValidationError

from .column_mapping import ColumnMapping, ImportKind
from .conversion import event_of, update_of
from .file_import import FileImport
from .inputs import DamagedError, InputError
from .open_source import Reading, source
from .progress import Display, Figures
from .reject_tracker import RejectTracker
from .source import Position, Source

# Few enough that they are gone before the garbage collector looks at them twice.
_CHUNK: Final = 100
_SHOW_EVERY: Final = 0.2


class DryRun:
    """One check of some files.

    Args:
        jobs: the files.
        reading: how files are read.
        shape: what their columns mean.
        checker: the client's own checks.
        display: shows how far it is.
    """

    def __init__(
        self, jobs: Sequence[FileImport], *, reading: Reading, shape: ColumnMapping, checker: Checker, display: Display
    ) -> None:
        self._jobs = jobs
        self._reading = reading
        self._display = display
        self._check = _event_check(shape, checker) if shape.kind is ImportKind.EVENTS else _update_check(shape, checker)
        self._shown_at = monotonic()
        self.journal = RejectTracker(shape)

    def run(self) -> None:
        """Check everything.

        Raises:
            OSError: if what was rejected cannot be written down.
        """
        for job in self._jobs:
            try:
                file = source(job.input, self._reading, Position())
            except InputError as error:
                job.damage = str(error)
                continue
            try:
                self._file(job, file)
            except DamagedError as error:
                job.damage = str(error)
            finally:
                file.close()
        self._show(last=True)

    def _file(self, job: FileImport, file: Source) -> None:
        check, mark = self._check, job.input.mark
        while not file.is_over:
            rows = file.take(_CHUNK)
            rejected = 0
            for line, row in rows:
                try:
                    check(row, (mark, line))
                except ValidationError as error:  # noqa: PERF203  one bad record must not hide the next
                    rejected += 1
                    self.journal.refuse(job, line, row, error)
            job.fed = job.settled = job.fed.plus(read=len(rows), rejected=rejected)
            job.done = file.done() if job.input.size is not None else 0
            if monotonic() - self._shown_at > _SHOW_EVERY:
                self._show()
        job.is_complete = True

    def _show(self, *, last: bool = False) -> None:
        self._shown_at = monotonic()
        sizes = [job.input.size for job in self._jobs]
        figures = Figures(
            records=sum(job.fed.imported for job in self._jobs),
            rejected=sum(job.refused for job in self._jobs),
            done=sum(job.done for job in self._jobs),
            total=None if None in sizes else sum(size or 0 for size in sizes),
        )
        self._display.show(figures, last=last)


def _event_check(shape: ColumnMapping, checker: Checker) -> Callable[[object, object], None]:
    read, check_event = event_of(shape), checker.event

    def check(row: object, place: object) -> None:
        distinct_id, name, properties, user_id, device_id, time, insert_id = read(row, place)
        check_event(distinct_id, name, properties, user_id=user_id, device_id=device_id, time=time, insert_id=insert_id)

    return check


def _update_check(shape: ColumnMapping, checker: Checker) -> Callable[[object, object], None]:
    read = update_of(shape)

    def check(row: object, place: object) -> None:  # noqa: ARG001
        checker.update(read(row))

    return check
