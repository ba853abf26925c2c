"""Command-line interface: the `mixpanel-async` command.

`main` is the console entry point. `app.py` registers the commands: one module per command, and the sub-packages `demo`
and `importing` for the larger ones. Start reading at `app.py`.

Modules here import only public names of `mixpanel_async`, plus Typer and Rich. This `__init__` imports nothing but the
standard library, so that a missing optional dependency is reported in one line.
"""

from __future__ import annotations

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
        print(f'{" and ".join(missing)} not installed: pip install "mixpanel-async[{extra}]"', file=sys.stderr)
        raise SystemExit(2)


def main() -> None:
    """Run the command line: the console entry point."""
    require("demo" if sys.argv[1:2] in (["demo"], ["emulator"]) else "cli", "typer", "rich")
    from .app import app

    app()
