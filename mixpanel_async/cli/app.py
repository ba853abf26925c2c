"""Typer application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
from .demo.command import demo
from .emulator import emulator
from .examples import epilog
from .identity.command import identity
from .importing.command import import_
from .queue import queue
from .spool import spool
from .worker import worker

app = typer.Typer(
    name="mixpanel-async",
    no_args_is_help=True,
    context_settings={"max_content_width": 100},
    epilog=epilog(""),
    pretty_exceptions_enable=False,
    # The plain form shortens no name of an option or variable in a narrow terminal. The Markdown form does.
    rich_markup_mode=None,
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
    """Tools for the async Mixpanel client.

    `--install-completion` lets your shell complete commands and options with the tab key, in new terminals.
    """


app.command(epilog=epilog("demo"), short_help="Show what the client does, against a local emulator.")(demo)
app.command(epilog=epilog("emulator"), short_help="Run a local Mixpanel server with a live page.")(emulator)
app.command("import", epilog=epilog("import"), short_help="Import files of events, profiles or groups.")(import_)
app.add_typer(identity, name="identity", short_help="Find and join ids of one person.")
app.add_typer(queue, name="queue", short_help="Inspect and repair a queue in Redis or Valkey.")
app.command(epilog=epilog("worker"), short_help="Deliver the records of an outbox to Mixpanel.")(worker)
app.add_typer(spool, name="spool", short_help="Inspect and repair a spool file.")
