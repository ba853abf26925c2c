"""The Typer application that gathers the commands, one module each."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .demo.command import demo
from .emulator import emulator
from .importing.command import import_
from .spool import spool

app = typer.Typer(
    name="mixpanel-async",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _tell_version(is_wanted: bool) -> None:  # noqa: FBT001  as Typer calls it
    if is_wanted:
        typer.echo(f"mixpanel-async {__version__}")
        raise typer.Exit


@app.callback()
def commands(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit.")
    ] = False,
) -> None:
    """Tools around the async Mixpanel client."""


app.command()(demo)
app.command()(emulator)
app.command("import")(import_)
app.add_typer(spool, name="spool")
