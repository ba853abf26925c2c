"""Command `mixpanel-async demo`: runs the scenario against an emulator in this process."""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import TYPE_CHECKING, Annotated

import anyio
import typer
from rich.console import Console

from mixpanel_async import (
    AsyncMixpanel,
    ConfigurationError,
    Delivery,
    IdMerge,
    MixpanelException,
    RetryPolicy,
    ServiceAccountCredentials,
)

from .. import require
from .output import DemoOutput
from .scenario import DemoScenario

if TYPE_CHECKING:
    from mixpanel_async.emulator import Emulator


def demo(
    events: Annotated[
        int, typer.Option(min=1, max=200_000, help="Number of events that the background worker tracks.")
    ] = 20_000,
    redis: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Show a queue in this Redis instead: two producers, two workers, one of which is killed.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Show track, alias, identify and merge with a local Mixpanel emulator, and check each result.

    Needs no account and no network. Exits with status 1 if a result differs from the expected one.

    With --redis, processes on this machine hand records to a new queue in a Redis of yours, which is removed at the
    end. That takes half a minute.
    """
    require("demo", "starlette", "uvicorn")
    from mixpanel_async.emulator import Emulator

    console = Console(highlight=False)
    try:
        if redis is not None:
            all_hold = _run_with_redis(console, redis, events)
        else:
            all_hold = run_demo(Emulator(id_merge=IdMerge.ORIGINAL), console, events=events)
    except (KeyboardInterrupt, asyncio.CancelledError):
        # On Python 3.10 anyio.run reports Ctrl-C as the cancellation of its main task.
        console.print("\nInterrupted.")
        raise typer.Exit(130) from None
    raise typer.Exit(0 if all_hold else 1)


def _run_with_redis(console: Console, url: str, events: int) -> bool:
    """Run the scenario with a queue in Redis. Errors do not show the URL, which may hold a password."""
    require("redis", "redis")
    from mixpanel_async.outbox import RedisOutbox

    from .many_hosts import PartFailedError, run_many_hosts

    try:
        outbox = RedisOutbox(url, name=f"mixpanel-demo-{uuid.uuid4().hex[:8]}")
    except ConfigurationError as error:
        print(f"mixpanel-async demo: {error}".replace("the url of RedisOutbox", "--redis"), file=sys.stderr)
        raise typer.Exit(2) from None
    try:
        return run_many_hosts(console, outbox, events=events)
    except (MixpanelException, PartFailedError) as error:
        print(f"mixpanel-async demo: {error}", file=sys.stderr)
        return False


def run_demo(emulator: Emulator, console: Console, *, events: int) -> bool:
    """Run the whole scenario over a loopback socket.

    Args:
        emulator: an empty project with `IdMerge.ORIGINAL`.
        console: receives the output.
        events: number of events that the background worker tracks; at least 1.

    Returns:
        Whether every expectation holds.
    """
    output = DemoOutput(console)
    with emulator.serve() as server:
        anyio.run(_run_scenario, emulator, server.url, output, events)
    return output.print_result()


async def _run_scenario(emulator: Emulator, url: str, output: DemoOutput, events: int) -> None:
    async def on_delivered(_: Delivery) -> None:
        output.update_progress(mp.stats().delivered)

    output.print_introduction(url)
    async with AsyncMixpanel(
        "demo-token",
        api_host=url,
        credentials=ServiceAccountCredentials("demo-account", "demo-secret", "1"),
        id_merge=IdMerge.ORIGINAL,
        identity_retry=RetryPolicy(attempts=3, initial=0.05, maximum=0.2, total_timeout=5.0),
        on_delivered=on_delivered,
        shutdown_timeout=3.0,
    ) as mp:
        await DemoScenario(mp, emulator, output, events).run()
