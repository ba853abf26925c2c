"""Typer commands that track: a plain one with `in_thread`, and an async one without a flush."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Annotated

import typer

from mixpanel_async import AsyncMixpanel

EVENTS = 5
command = typer.Typer(pretty_exceptions_enable=False)
Ending = Annotated[str, typer.Argument()]


def make_client() -> AsyncMixpanel:
    # Without an address, the client is disabled: the same program without tracking.
    return AsyncMixpanel(
        "token",
        api_host=os.environ["MIXPANEL"] or None,
        enabled=bool(os.environ["MIXPANEL"]),
        shutdown_timeout=1.0,
        loop_end_timeout=1.0,
    )


def end(ending: str) -> None:
    typer.echo("ready")
    sys.stdout.flush()
    if ending == "exception":
        raise ValueError("the command failed")
    if ending == "exit":
        raise typer.Exit(3)


@command.command()
def plain(ending: Ending) -> None:
    with make_client().in_thread() as mp:
        for number in range(EVENTS):
            mp.track("user", "Event", {"number": number})
        end(ending)
        if ending == "interrupt":
            time.sleep(30.0)


@command.command("async")
def run_async(ending: Ending) -> None:
    async def main() -> None:
        for number in range(EVENTS):
            await mp.track("user", "Event", {"number": number})
        end(ending)
        if ending == "interrupt":
            await asyncio.sleep(30.0)

    mp = make_client()
    asyncio.run(main())


@command.command()
def no_loop(ending: Ending) -> None:
    mp = make_client()
    for number in range(EVENTS):
        mp.track_nowait("user", "Event", {"number": number})
    end(ending)
    if ending == "interrupt":
        time.sleep(30.0)


if __name__ == "__main__":
    command()
