"""Command-line interface: the `mixpanel-async` command.

`main` is the console entry point. `app.py` registers the commands: one module per command, and the sub-packages `demo`
and `importing` for the larger ones. Start reading at `app.py`.

Modules here import only public names of `mixpanel_async`, plus Typer and Rich. This `__init__` imports nothing but the
standard library, so that a missing optional dependency is reported in one line.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """Exit with a one-line error if an optional dependency is missing.

    Args:
        extra: name of the extra that installs the modules.
        modules: top-level modules that must be importable.

    Raises:
        SystemExit: with status 2 if a module is missing.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        print(
            f'{" and ".join(missing)} not installed: run pip install ".[{extra}]" in a clone of the repository',
            file=sys.stderr,
        )
        raise SystemExit(2)


def main() -> None:
    """Run the command line: the console entry point."""
    require("demo" if sys.argv[1:2] in (["demo"], ["emulator"]) else "cli", "typer", "rich")
    from .app import app

    try:
        app(prog_name="mixpanel-async")
    except BaseException as error:
        if not _is_closed_pipe(error):
            raise
        # What is still buffered would raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _is_closed_pipe(error: BaseException) -> bool:
    """Return whether a task ended because the reader of the output, such as `head`, has ended.

    Typer handles an error that comes without a group. Rich turns it into `SystemExit`.
    """
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return bool(members) and all(
        isinstance(one, (BrokenPipeError, SystemExit)) or _is_closed_pipe(one) for one in members
    )
