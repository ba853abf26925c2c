"""How an import shows how far it is: a bar on a terminal, else a line now and then. Never in the way of the import."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from .concurrency import Meter

_LINE_EVERY: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What there is to show.

    Args:
        records: imported, or found good in a dry run; also by earlier imports.
        before: by those alone, which say nothing of the speed of this one.
        rejected: not imported.
        done: bytes of the files that are read.
        total: bytes of all files; None if that cannot be known.
        note: what it waits for, or an empty string.
    """

    records: int
    before: int = 0
    rejected: int
    done: int
    total: int | None
    note: str = ""

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0


class Display(Protocol):
    def show(self, figures: Figures, *, last: bool = False) -> None:
        """Show how far it is."""

    def say(self, text: str) -> None:
        """Say something that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


def display(verb: str, *, quiet: bool, clock: Callable[[], float] = monotonic) -> Display:
    """What fits the standard error stream.

    Args:
        verb: what is done with the records, such as `imported`.
        quiet: show nothing but what is said.
        clock: monotonic seconds.
    """
    console = Console(stderr=True, highlight=False)
    if console.is_terminal and not quiet:
        return _Bar(console, verb, clock)
    return _LineDisplay(verb, quiet=quiet, clock=clock)


class _Rates:
    """Words for rate and time left."""

    def __init__(self, verb: str, clock: Callable[[], float]) -> None:
        self._verb = verb
        self._clock = clock
        self._meter = Meter(clock())

    def words(self, figures: Figures, *, last: bool = False) -> tuple[str, str]:
        """What was done, and the rate with the time left."""
        now, count = self._clock(), figures.records - figures.before
        rate = self._meter.rate(now, count)
        left = self._meter.left(now, figures.share)
        speed = f"{self._meter.mean(now, count) if last else rate:,.0f}/s"
        if left is not None and figures.total and not last:
            speed += f", {_duration(left)} left"
        return f"{figures.records:,} {self._verb}, {figures.rejected:,} rejected", speed


class _Bar:
    def __init__(self, console: Console, verb: str, clock: Callable[[], float]) -> None:
        self._rates = _Rates(verb, clock)
        columns: list[Any] = [
            BarColumn(bar_width=20),
            TextColumn("{task.fields[percent]}"),
            TextColumn("{task.fields[words]}"),
        ]
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=None, percent="", words="")
        self._progress.start()

    def show(self, figures: Figures, *, last: bool = False) -> None:
        words = ", ".join(self._rates.words(figures, last=last))
        if figures.note:
            words += f"\n{figures.note}"
        self._progress.update(
            self._task,
            total=figures.total,
            completed=min(figures.done, figures.total or figures.done),
            percent=f"{figures.share:.0%}" if figures.total else "",
            words=escape(words),
        )
        # A terminal that is gone must not end an import.
        with suppress(OSError, ValueError):
            self._progress.refresh()

    def say(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._progress.console.print(escape(text))

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._progress.stop()


class _LineDisplay:
    def __init__(self, verb: str, *, quiet: bool, clock: Callable[[], float]) -> None:
        self._rates = _Rates(verb, clock)
        self._clock = clock
        self._next = clock() + _LINE_EVERY
        self._is_quiet = quiet
        self._said = ""

    def show(self, figures: Figures, *, last: bool = False) -> None:
        if self._is_quiet:
            return
        words = self._rates.words(figures, last=last)
        if last or self._clock() >= self._next or (figures.note and figures.note != self._said):
            self._next = self._clock() + _LINE_EVERY
            self._said = figures.note
            share = f"{figures.share:.0%}, " if figures.total else ""
            self.say(share + ", ".join(words) + (f" ({figures.note})" if figures.note else ""))

    def say(self, text: str) -> None:
        tell(text, sys.stderr)

    def close(self) -> None:
        return


def tell(text: str, stream: Any) -> None:
    """Print a line. A reader that has gone away must not end an import."""
    try:
        print(text, file=stream, flush=True)
    except (BrokenPipeError, OSError, ValueError):
        return


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
