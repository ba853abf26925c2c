"""How the demo looks: headings, calls, claims and tables that fit 80 columns, on any background and without colours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Expectation:
    """Something that the demo says, what it should be, and what the server holds."""

    text: str
    expected: object
    found: object

    @property
    def kept(self) -> bool:
        return self.expected == self.found


class DemoOutput:
    """Prints the story as it goes, and remembers every claim."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._claims: list[Expectation] = []
        self._reach: Callable[..., None] | None = None

    def open(self, url: str) -> None:
        self._console.print("[bold]mixpanel-async demo[/]")
        self._console.print(f"A local Mixpanel listens on {url}. Nothing leaves this machine.")

    def chapter(self, title: str, *calls: str) -> None:
        """A heading, and the calls that an app would make."""
        self._console.print(f"\n[bold]{escape(title)}[/]")
        for call in calls:
            self._console.print(f"    {escape(call)}")

    def claim(self, text: str, *, expected: object, found: object) -> None:
        """Show a statement together with whether it is true."""
        claim = Expectation(text, expected, found)
        self._claims.append(claim)
        mark = "[green]ok[/]    " if claim.kept else "[bold red]FAILED[/]"
        self._console.print(f"  {mark}  {escape(text)}")

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[None]:
        """A bar below the story, on terminals only."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            task = progress.add_task(title, total=total)
            self._reach = partial(progress.update, task)
            try:
                yield
            finally:
                self._reach = None

    def reach(self, completed: int) -> None:
        """Move the bar to a count, if there is a bar."""
        if self._reach is not None:
            self._reach(completed=completed)

    def note(self, text: str) -> None:
        self._console.print(f"  {escape(text)}")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0) -> None:
        """A table; its last `numbers` columns hold numbers."""
        table = Table(box=box.ROUNDED, show_lines=not numbers)
        for position, column in enumerate(columns):
            right = position >= len(columns) - numbers
            table.add_column(column, justify="right" if right else "left", no_wrap=right, overflow="fold")
        for row in rows:
            table.add_row(*map(escape, row))
        self._console.print(f"\n[bold]{escape(title)}[/]")
        self._console.print(table)

    def failure(self, details: Mapping[str, object]) -> None:
        """What an app learns from an exception."""
        for name, value in details.items():
            self._console.print(f"    {name:9} {escape(str(value))}")

    def verdict(self) -> bool:
        """The last lines: what failed, if anything did, and the count."""
        failed = [claim for claim in self._claims if not claim.kept]
        for claim in failed:
            self._console.print(f"\n[bold red]FAILED[/] {escape(claim.text)}")
            self._console.print(f"  expected: {escape(str(claim.expected))}")
            self._console.print(f"  found:    {escape(str(claim.found))}")
        kept = len(self._claims) - len(failed)
        style = "bold red" if failed else "bold green"
        self._console.print(f"\n[{style}]{kept} of {len(self._claims)} expectations hold.[/]")
        return not failed
