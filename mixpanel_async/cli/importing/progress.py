"""Progress display of a command: a bar on a terminal, otherwise a line every ten seconds. Output errors are ignored."""

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

from ..visible import visible

_LINE_INTERVAL: Final = 10.0
_RATE_WINDOW: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkProgress:
    """Progress at one moment.

    Args:
        records: records imported (in a dry run: valid), including earlier runs.
        earlier_records: records imported by earlier runs. They do not count towards the rate.
        rejected: records not imported.
        done: part of `total` that is done, such as the bytes read of all files.
        total: amount of work, such as the size of all files in bytes; None if unknown.
        note: reason for waiting, or an empty string.
    """

    records: int
    earlier_records: int = 0
    rejected: int
    done: int
    total: int | None
    note: str = ""

    @property
    def fraction(self) -> float:
        """Fraction done, from 0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0


class Display(Protocol):
    """Display of progress and messages."""

    def show(self, progress: WorkProgress, *, last: bool = False) -> None:
        """Show the progress."""

    def print(self, text: str) -> None:
        """Print a message that stays visible."""

    def close(self) -> None:
        """Restore the terminal."""


def create_display(
    verb: str, failed: str = "rejected", *, quiet: bool, clock: Callable[[], float] = monotonic
) -> Display:
    """Return a display that fits standard error.

    Args:
        verb: participle for the records, such as `imported`.
        failed: participle for the others.
        quiet: show messages but no progress.
        clock: returns monotonic seconds.
    """
    console, text = Console(stderr=True, highlight=False), _ProgressText(verb, failed, clock)
    if console.is_terminal and not quiet:
        return _BarDisplay(console, text)
    return _LineDisplay(text, clock, quiet=quiet)


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

    def __init__(self, verb: str, failed: str, clock: Callable[[], float]) -> None:
        self._verb = verb
        self._failed = failed
        self._clock = clock
        self._meter = RateMeter(clock())

    def format(self, progress: WorkProgress, *, last: bool = False) -> str:
        now, count = self._clock(), progress.records - progress.earlier_records
        rate = self._meter.rate(now, count)
        remaining = self._meter.remaining(now, progress.fraction)
        speed = f"{self._meter.mean_rate(now, count) if last else rate:,.0f}/s"
        if remaining is not None and progress.total and not last:
            speed += f", {_format_duration(remaining)} left"
        return f"{progress.records:,} {self._verb}, {progress.rejected:,} {self._failed}, {speed}"


class _BarDisplay:
    def __init__(self, console: Console, text: _ProgressText) -> None:
        self._text = text
        columns: list[Any] = [
            BarColumn(bar_width=20),
            TextColumn("{task.fields[percent]}"),
            TextColumn("{task.fields[text]}"),
        ]
        self._progress = Progress(*columns, console=console, auto_refresh=False)
        self._task = self._progress.add_task("", total=None, percent="", text="")
        self._progress.start()

    def show(self, progress: WorkProgress, *, last: bool = False) -> None:
        text = self._text.format(progress, last=last)
        if progress.note:
            text += f"\n{progress.note}"
        self._progress.update(
            self._task,
            total=progress.total,
            completed=min(progress.done, progress.total or progress.done),
            percent=f"{progress.fraction:.0%}" if progress.total else "",
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
    def __init__(self, text: _ProgressText, clock: Callable[[], float], *, quiet: bool) -> None:
        self._text = text
        self._clock = clock
        self._next_line_at = clock() + _LINE_INTERVAL
        self._is_quiet = quiet
        self._last_note = ""

    def show(self, progress: WorkProgress, *, last: bool = False) -> None:
        if self._is_quiet:
            return
        text = self._text.format(progress, last=last)
        is_new_note = progress.note and progress.note != self._last_note
        if last or self._clock() >= self._next_line_at or is_new_note:
            self._next_line_at = self._clock() + _LINE_INTERVAL
            self._last_note = progress.note
            percent = f"{progress.fraction:.0%}, " if progress.total else ""
            self.print(percent + text + (f" ({progress.note})" if progress.note else ""))

    def print(self, text: str) -> None:
        print_line(text, sys.stderr)

    def close(self) -> None:
        return


def print_line(text: str, stream: Any) -> None:
    """Print a line. A closed stream must not end the import.

    Control characters are escaped: names of files and messages of servers may contain any. So are characters that the
    stream cannot encode.
    """
    line, encoding = visible(text, keep="\n\t"), getattr(stream, "encoding", None) or "utf-8"
    try:
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (BrokenPipeError, OSError, ValueError):
        return


def _format_duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
