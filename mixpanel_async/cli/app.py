"""Typer application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .demo.command import demo
from .emulator import emulator
from .identity.command import identity
from .importing.command import import_
from .queue import queue
from .spool import spool
from .worker import worker

app = typer.Typer(
    name="mixpanel-async",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # Fills the lines of a paragraph of a docstring, which the default breaks where the source does.
    rich_markup_mode="markdown",
)


def _print_version(is_requested: bool) -> None:  # noqa: FBT001  Typer passes it by position
    if is_requested:
        typer.echo(f"mixpanel-async {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Tools for the async Mixpanel client."""


app.command()(demo)
app.command()(emulator)
app.command("import")(import_)
app.add_typer(identity, name="identity")
app.add_typer(queue, name="queue")
app.command()(worker)
app.add_typer(spool, name="spool")
