"""Group `mixpanel-async identity`: registers its commands."""

from __future__ import annotations

from typing import Final

import typer

from .audit import audit
from .simulate import simulate

identity: Final = typer.Typer(
    help="Find out what is wrong with the ids of a project.\n\n"
    "Exit status: 0 success; 1 a file is damaged or a request failed; 2 invalid command line or unusable file; 3 more "
    "findings than --fail-on allows.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
identity.command()(audit)
identity.command()(simulate)
