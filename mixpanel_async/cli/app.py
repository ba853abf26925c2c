"""The Typer application that gathers the commands, one module each."""

from __future__ import annotations

import typer

from .demo import demo
from .emulator import emulator
from .spool import spool

app = typer.Typer(
    name="mixpanel-async",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def commands() -> None:
    """Tools around the async Mixpanel client."""


app.command()(demo)
app.command()(emulator)
app.add_typer(spool, name="spool")
