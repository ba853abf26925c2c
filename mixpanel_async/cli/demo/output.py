"""Console output of the demo: headings, calls, expectations and tables. Fits 80 columns and works without colors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

_NEXT_STEPS: Final = (
    ("mixpanel-async demo --serve", "see the data of the demo in a browser"),
    ("mixpanel-async emulator --port 8080", "run a local Mixpanel for your own app"),
    ("examples/quick_start.py", "a first program, and how to run it"),
    ("docs/tutorial.md", "from the first event to a tested app"),
    ("docs/guides/identity.md", "when to call identify, alias and merge"),
    ("docs/guides/migration.md", "move from the official SDK"),
)


@dataclass(frozen=True, slots=True)
class Expectation:
    """One checked statement of the demo.

    Args:
        text: the statement, as printed.
        expected: the expected value.
        actual: the value that the emulator or the client reports.
    """

    text: str
    expected: object
    actual: object

    @property
    def holds(self) -> bool:
        return self.expected == self.actual


class DemoOutput:
    """Prints the demo and records every expectation.

    Args:
        console: receives the output.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._expectations: list[Expectation] = []
        self._set_progress: Callable[..., None] | None = None

    def print_introduction(self, url: str) -> None:
        self._console.print("[bold]mixpanel-async demo[/]")
        self._console.print(f"A local Mixpanel emulator is listening on {url}.")
        self._console.print("No data leaves this machine.")

    def print_step(self, title: str, *calls: str) -> None:
        """Print a heading and the calls that an app would make."""
        self._console.print(f"\n[bold]{escape(title)}[/]")
        for call in calls:
            self._console.print(f"    {escape(call)}")

    def expect(self, text: str, *, expected: object, actual: object) -> None:
        """Record an expectation and print whether it holds."""
        expectation = Expectation(text, expected, actual)
        self._expectations.append(expectation)
        label = "[green]ok[/]    " if expectation.holds else "[bold red]FAILED[/]"
        self._console.print(f"  {label}  {escape(text)}")

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[None]:
        """Show a progress bar for the length of the block, on terminals only."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(title, total=total)
            self._set_progress = partial(progress.update, task)
            try:
                yield
            finally:
                self._set_progress = None

    def update_progress(self, completed: int) -> None:
        """Move the progress bar, if one is shown."""
        if self._set_progress is not None:
            self._set_progress(completed=completed)

    def print_note(self, text: str) -> None:
        self._console.print(f"  {escape(text)}")

    def print_table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numeric_columns: int = 0
    ) -> None:
        """Print a table whose last `numeric_columns` columns are right-aligned."""
        table = Table(box=box.ROUNDED, show_lines=not numeric_columns)
        for position, column in enumerate(columns):
            is_numeric = position >= len(columns) - numeric_columns
            table.add_column(column, justify="right" if is_numeric else "left", no_wrap=is_numeric, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(f"\n[bold]{escape(title)}[/]")
        self._console.print(table)

    def print_details(self, details: Mapping[str, object]) -> None:
        """Print named values, one per line."""
        for name, value in details.items():
            self._console.print(f"    {name:9} {escape(str(value))}")

    def print_result(self) -> bool:
        """Print every failed expectation and the number that hold. Return whether all hold."""
        failed = [expectation for expectation in self._expectations if not expectation.holds]
        for expectation in failed:
            self._console.print(f"\n[bold red]FAILED[/] {escape(expectation.text)}")
            self._console.print(f"  expected: {escape(str(expectation.expected))}")
            self._console.print(f"  actual:   {escape(str(expectation.actual))}")
        holding = len(self._expectations) - len(failed)
        style = "bold red" if failed else "bold green"
        self._console.print(f"\n[{style}]{holding} of {len(self._expectations)} expectations hold.[/]")
        return not failed

    def print_next_steps(self) -> None:
        """Print commands to run and pages to read after the demo."""
        self._console.print("\n[bold]Next steps[/]")
        for step, text in _NEXT_STEPS:
            self._console.print(f"  {escape(step):36} {escape(text)}")

    def print_address(self, url: str) -> None:
        """Print where the emulator keeps the data of the demo."""
        self._console.print(f"\nThe data of the demo is at {url} until Ctrl-C.")
        self._console.file.flush()
