"""Progress display of an import: a bar on a terminal, otherwise a line every ten seconds. Output errors are ignored."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

_LINE_INTERVAL: Final = 10.0
_RATE_WINDOW: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """Progress at one moment.

    Args:
        records: records imported (in a dry run: valid), including earlier runs.
        earlier_records: records imported by earlier runs. They do not count towards the rate.
        rejected: records not imported.
        bytes_read: bytes read of all files.
        bytes_total: size of all files; None if unknown.
        note: reason for waiting, or an empty string.
    """

    records: int
    earlier_records: int = 0
    rejected: int
    bytes_read: int
    bytes_total: int | None
    note: str = ""

    @property
    def fraction(self) -> float:
        """Fraction read, from 0 to 1."""
        return min(1.0, self.bytes_read / self.bytes_total) if self.bytes_total else 0.0


class Display(Protocol):
    """Display of progress and messages."""

    def show(self, progress: ImportProgress, *, last: bool = False) -> None:
        """Show the progress."""

    def print(self, text: str) -> None:
        """Print a message that stays visible."""

    def close(self) -> None:
        """Restore the terminal."""


def create_display(verb: str, *, quiet: bool, clock: Callable[[], float] = monotonic) -> Display:
    """Return a display that fits standard error.

    Args:
        verb: participle for the records, such as `imported`.
        quiet: show messages but no progress.
        clock: returns monotonic seconds.
    """
    console = Console(stderr=True, highlight=False)
    if console.is_terminal and not quiet:
        return _BarDisplay(console, verb, clock)
    return _LineDisplay(verb, quiet=quiet, clock=clock)


class RateMeter:
    """Rate and remaining time, computed from counts. Callers pass the current time.

    Args:
        now: start time, in monotonic seconds.
    """

    def __init__(self, now: float) -> None:
        self._start = now
        self._first_fraction: float | None = None
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def rate(self, now: float, count: int) -> float:
        """Return records per second over the last ten seconds."""
        self._samples.append((now, count))
        while now - self._samples[0][0] > _RATE_WINDOW and len(self._samples) > 2:
            self._samples.popleft()
        then, earlier_count = self._samples[0]
        return (count - earlier_count) / (now - then) if now > then else 0.0

    def mean_rate(self, now: float, count: int) -> float:
        """Return records per second since the start."""
        return count / (now - self._start) if now > self._start else 0.0

    def remaining(self, now: float, fraction: float) -> float | None:
        """Return the estimated seconds until the end, or None if there is no estimate yet.

        Args:
            now: monotonic seconds.
            fraction: fraction done, from 0 to 1. The fraction of the first call counts as done by earlier runs.
        """
        if self._first_fraction is None and fraction:
            self._first_fraction = fraction if now - self._start < 1.0 else 0.0
        done = fraction - (self._first_fraction or 0.0)
        if done <= 0 or now <= self._start:
            return None
        return (now - self._start) * (1 - fraction) / done


class _ProgressText:
    """Formatter of counts, rate and remaining time."""

    def __init__(self, verb: str, clock: Callable[[], float]) -> None:
        self._verb = verb
        self._clock = clock
        self._meter = RateMeter(clock())

    def format(self, progress: ImportProgress, *, last: bool = False) -> str:
        now, count = self._clock(), progress.records - progress.earlier_records
        rate = self._meter.rate(now, count)
        remaining = self._meter.remaining(now, progress.fraction)
        speed = f"{self._meter.mean_rate(now, count) if last else rate:,.0f}/s"
        if remaining is not None and progress.bytes_total and not last:
            speed += f", {_format_duration(remaining)} left"
        return f"{progress.records:,} {self._verb}, {progress.rejected:,} rejected, {speed}"


class _BarDisplay:
    def __init__(self, console: Console, verb: str, clock: Callable[[], float]) -> None:
        self._text = _ProgressText(verb, clock)
        columns: list[Any] = [
            BarColumn(bar_width=20),
            TextColumn("{task.fields[percent]}"),
            TextColumn("{task.fields[text]}"),
        ]
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=None, percent="", text="")
        self._progress.start()

    def show(self, progress: ImportProgress, *, last: bool = False) -> None:
        text = self._text.format(progress, last=last)
        if progress.note:
            text += f"\n{progress.note}"
        self._progress.update(
            self._task,
            total=progress.bytes_total,
            completed=min(progress.bytes_read, progress.bytes_total or progress.bytes_read),
            percent=f"{progress.fraction:.0%}" if progress.bytes_total else "",
            text=escape(text),
        )
        # A closed terminal must not end the import.
        with suppress(OSError, ValueError):
            self._progress.refresh()

    def print(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._progress.console.print(escape(text))

    def close(self) -> None:
        with suppress(OSError, ValueError):
            self._progress.stop()


class _LineDisplay:
    def __init__(self, verb: str, *, quiet: bool, clock: Callable[[], float]) -> None:
        self._text = _ProgressText(verb, clock)
        self._clock = clock
        self._next_line_at = clock() + _LINE_INTERVAL
        self._is_quiet = quiet
        self._last_note = ""

    def show(self, progress: ImportProgress, *, last: bool = False) -> None:
        if self._is_quiet:
            return
        text = self._text.format(progress, last=last)
        is_new_note = progress.note and progress.note != self._last_note
        if last or self._clock() >= self._next_line_at or is_new_note:
            self._next_line_at = self._clock() + _LINE_INTERVAL
            self._last_note = progress.note
            percent = f"{progress.fraction:.0%}, " if progress.bytes_total else ""
            self.print(percent + text + (f" ({progress.note})" if progress.note else ""))

    def print(self, text: str) -> None:
        print_line(text, sys.stderr)

    def close(self) -> None:
        return


def print_line(text: str, stream: Any) -> None:
    """Print a line. A closed stream must not end the import."""
    try:
        print(text, file=stream, flush=True)
    except (BrokenPipeError, OSError, ValueError):
        return


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
