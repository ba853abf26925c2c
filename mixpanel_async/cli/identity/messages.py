"""Exit statuses and messages on standard error of identity commands."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final, NoReturn

import typer

from ..importing.progress import print_line

if TYPE_CHECKING:
    from .events import ExportFiles
    from .profile_files import ProfileFiles

STOPPED: Final = 1
"""A file is damaged, or a request failed."""
USAGE: Final = 2
"""The command line is invalid, or a file cannot be used."""
FOUND: Final = 3
"""There are more findings than are allowed."""


def show_unreadable(files: ExportFiles | ProfileFiles, kind: str = "events") -> None:
    """Print to standard error how many lines are none of what the files should have, and the first of them.

    Args:
        files: files that were read.
        kind: what they should have, in the plural.
    """
    for problem in files.problems:
        print_line(problem, sys.stderr)
    if files.unreadable:
        print_line(f"{files.unreadable:,} lines are no {kind} and were left out", sys.stderr)


def report_line(line: str) -> None:
    """Print a line about the progress of requests to standard error."""
    print_line(line, sys.stderr)


def write_output(text: str, command: str) -> None:
    """Write a report to standard output. A reader that has ended, such as `head`, is no error.

    Args:
        text: the report, which may be styled for a terminal.
        command: name of the command in the group.

    Raises:
        typer.Exit: with status 1 if the report cannot be written, as on a full disk.
    """
    stream = sys.stdout
    # Without standard output, nothing reads the report.
    if stream is None:
        return
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # The buffered rest would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError as error:
        fail(command, f"the report cannot be written: {error.strerror or error}", STOPPED)


def fail(command: str, message: str, status: int) -> NoReturn:
    """Print an error and exit.

    Args:
        command: name of the command in the group.
        message: problem and remedy.
        status: exit status.
    """
    print_line(f"mixpanel-async identity {command}: {message}", sys.stderr)
    raise typer.Exit(status)
