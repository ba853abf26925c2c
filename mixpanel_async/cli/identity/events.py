"""Events of raw exports, read from files or standard input."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Final, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from mixpanel_async import ValidationError

from ..importing.inputs import InputError, InputFile, UnknownInputError, find_inputs
from ..importing.option_values import Format
from ..importing.record_source import Position, RecordSource, UnreadableRow
from ..importing.source_factory import ReadOptions, open_source
from .reading import take_rows

# Few rows at a time stay in the caches of the processor.
_ROWS_AT_ONCE: Final = 200
_MAX_SHOWN: Final = 5

AddEvent = Callable[[Mapping[str, Any]], object]


class ExportFiles:
    """Files of raw exports: NDJSON or a JSON array, plain or compressed with gzip, zstd or zip.

    Args:
        names: files and glob patterns; `-` is standard input.

    Raises:
        InputError: if a file does not exist, cannot be read or has another format.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if not names:
            raise InputError("give the files of an export, or - for standard input")
        self._inputs, _ = find_inputs(names)
        self.unreadable = 0
        """Number of lines and records that are no events."""
        self.problems: list[str] = []
        """The first of them, each as one line without content."""
        self.paths = frozenset(os.path.realpath(one.name) for one in self._inputs if one.identity is not None)
        """Absolute paths of the files."""
        for one in self._inputs:
            # Each file is opened once before the first is read, which can take minutes. A stream can be opened once.
            if one.identity is not None:
                _open(one).close()

    def feed(self, *receivers: AddEvent, quiet: bool = False) -> None:
        """Pass each event to the receivers, in the order of the files. A receiver may refuse one as no event.

        Args:
            receivers: functions that take an event; they raise `ValidationError` for one that is malformed.
            quiet: show no progress.

        Raises:
            InputError: if a file cannot be opened.
            DamagedError: if the rest of a file cannot be read. The message names the file.
        """
        with _progress(quiet=quiet) as progress, _without_collections():
            total = sum(one.size or 0 for one in self._inputs) or None
            task = progress.add_task("Reading", total=total)
            done = 0
            for one in self._inputs:
                for read in self._feed_file(one, receivers):
                    progress.update(task, completed=done + read)
                done += one.size or 0

    def _feed_file(self, one: InputFile, receivers: Sequence[AddEvent]) -> Iterator[int]:
        """Pass the events of a file to the receivers. Yield the number of bytes read so far, now and then."""
        add = receivers[0] if len(receivers) == 1 else _to_all(receivers)
        with closing(_open(one)) as source:
            while not source.is_exhausted:
                for number, row in cast("list[tuple[int, Any]]", take_rows(source, one, _ROWS_AT_ONCE)):
                    if type(row) is UnreadableRow:
                        self._note(one, number, row.problem)
                        continue
                    try:
                        add(row)
                    except ValidationError as error:
                        self._note(one, number, f"is no event: {error}")
                yield source.bytes_read()

    def _note(self, one: InputFile, number: int, problem: str) -> None:
        self.unreadable += 1
        if len(self.problems) < _MAX_SHOWN:
            self.problems.append(f"{one.name}:{number} {problem}")


def _to_all(receivers: Sequence[AddEvent]) -> AddEvent:
    def add(event: Mapping[str, Any]) -> None:
        for receive in receivers:
            receive(event)

    return add


@contextmanager
def _without_collections() -> Iterator[None]:
    """Do not collect garbage in the block. Parsed events have no cycles, and a collection would visit all ids."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _open(one: InputFile) -> RecordSource:
    try:
        source = open_source(one, ReadOptions(), Position())
    except UnknownInputError:
        raise InputError(f"{one.name} is no raw export: identity commands read one JSON object per line") from None
    if source.format not in {Format.NDJSON, Format.JSON}:
        source.close()
        raise InputError(
            f"{one.name} is {source.format.value}: identity commands read raw exports, one JSON object per line"
        )
    return source


def _progress(*, quiet: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        console=console,
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
