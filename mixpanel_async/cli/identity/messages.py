"""Exit statuses and messages on standard error of identity commands."""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import typer

from ..importing.progress import print_line
from .events import ExportFiles

STOPPED: Final = 1
"""A file is damaged, or a request failed."""
USAGE: Final = 2
"""The command line is invalid, or a file cannot be used."""
FOUND: Final = 3
"""There are more findings than are allowed."""


def show_unreadable(exports: ExportFiles) -> None:
    """Print to standard error how many lines are no events, and the first of them."""
    for problem in exports.problems:
        print_line(problem, sys.stderr)
    if exports.unreadable:
        print_line(f"{exports.unreadable:,} lines are no events and were left out", sys.stderr)


def fail(command: str, message: str, status: int) -> NoReturn:
    """Print an error and exit.

    Args:
        command: name of the command in the group.
        message: what is wrong and what to do.
        status: exit status.
    """
    print_line(f"mixpanel-async identity {command}: {message}", sys.stderr)
    raise typer.Exit(status)
