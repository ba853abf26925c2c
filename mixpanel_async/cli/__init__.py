"""The command `mixpanel-async`. Importing this package imports nothing beyond the standard library."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def require(extra: str, *modules: str) -> None:
    """End the program with one clear line if an optional dependency is missing.

    Args:
        extra: name of the extra that brings the modules.
        modules: top-level modules that must be importable.

    Raises:
        SystemExit: with status 2.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        print(f'{" and ".join(missing)} not installed: pip install "mixpanel-async[{extra}]"', file=sys.stderr)
        raise SystemExit(2)


def main() -> None:
    """The console entry point."""
    require("demo" if sys.argv[1:2] in (["demo"], ["emulator"]) else "cli", "typer", "rich")
    from .app import app

    app()
