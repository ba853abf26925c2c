"""`mixpanel-async demo`: the whole product at work, against a Mixpanel that runs in this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.console import Console

from mixpanel_async import AsyncMixpanel, Delivery, IdMerge, RetryPolicy, ServiceAccountCredentials

from .. import require
from .output import DemoOutput
from .scenario import DemoScenario

if TYPE_CHECKING:
    from mixpanel_async.emulator import Emulator


def demo(
    events: Annotated[int, typer.Option(min=1, max=200_000, help="Events that the background worker tracks.")] = 20_000,
) -> None:
    """Watch a visitor become a person: track, alias, identify and merge, checked against a local Mixpanel.

    Needs no account and no network. The exit status is 1 if anything came out differently than told.
    """
    require("demo", "starlette", "uvicorn")
    from mixpanel_async.emulator import Emulator

    console = Console(highlight=False)
    try:
        kept = perform(Emulator(id_merge=IdMerge.ORIGINAL), console, events=events)
    except (KeyboardInterrupt, asyncio.CancelledError):
        # On Python 3.10 anyio.run ends a Ctrl-C with the cancellation by which it stopped its main task.
        console.print("\nInterrupted.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if kept else 1)


def perform(emulator: Emulator, console: Console, *, events: int) -> bool:
    """Tell the story to its end on a loopback socket.

    Args:
        emulator: a project of kind `IdMerge.ORIGINAL` that holds no data yet.
        console: where it is shown.
        events: how many the background worker tracks; at least 1.

    Returns:
        Whether every claim held.
    """
    stage = DemoOutput(console)
    with emulator.serve() as server:
        anyio.run(_perform, emulator, server.url, stage, events)
    return stage.verdict()


async def _perform(emulator: Emulator, url: str, stage: DemoOutput, events: int) -> None:
    async def delivered(_: Delivery) -> None:
        stage.reach(mp.stats().delivered)

    stage.open(url)
    async with AsyncMixpanel(
        "demo-token",
        api_host=url,
        credentials=ServiceAccountCredentials("demo-account", "demo-secret", "1"),
        id_merge=IdMerge.ORIGINAL,
        identity_retry=RetryPolicy(attempts=3, initial=0.05, maximum=0.2, total_timeout=5.0),
        on_delivered=delivered,
        shutdown_timeout=3.0,
    ) as mp:
        await DemoScenario(mp, emulator, stage, events).tell()
