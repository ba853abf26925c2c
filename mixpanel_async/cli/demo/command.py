"""Command `mixpanel-async demo`: runs the scenario against an emulator in this process."""

from __future__ import annotations

import asyncio
import sys
import uuid
from typing import TYPE_CHECKING, Annotated, NoReturn

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
from ..stop_signals import capture_stop_signals, wait_for_signal
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
    serve: Annotated[  # noqa: FBT002  an option of a command
        bool, typer.Option("--serve", help="Keep the emulator with the data of the demo running, until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the emulator; 0 picks a free one.")] = 0,
) -> None:
    """Show track, alias, identify and merge with a local Mixpanel emulator, and check each result.

    Needs no account and no network. Exits with status 1 if a result differs from the expected one.

    With --serve, the emulator stays open at the end: a page in the browser shows the events, profiles and people.

    With --redis, processes on this machine hand records to a new queue in a Redis of yours, which is removed at the
    end. That takes half a minute.
    """
    require("demo", "starlette", "uvicorn")
    from mixpanel_async.emulator import Emulator

    console = Console(highlight=False)
    if redis is not None and (serve or port):
        _fail("--serve and --port cannot be combined with --redis")
    try:
        if redis is not None:
            all_hold = _run_with_redis(console, redis, events)
        else:
            all_hold = run_demo(Emulator(id_merge=IdMerge.ORIGINAL), console, events=events, port=port, is_served=serve)
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
        _fail(str(error).replace("the url of RedisOutbox", "--redis"))
    try:
        return run_many_hosts(console, outbox, events=events)
    except (MixpanelException, PartFailedError) as error:
        print(f"mixpanel-async demo: {error}", file=sys.stderr)
        return False


def _fail(message: str) -> NoReturn:
    print(f"mixpanel-async demo: {message}", file=sys.stderr)
    raise typer.Exit(2)


def run_demo(emulator: Emulator, console: Console, *, events: int, port: int = 0, is_served: bool = False) -> bool:
    """Run the whole scenario over a loopback socket.

    Args:
        emulator: an empty project with `IdMerge.ORIGINAL`.
        console: receives the output.
        events: number of events that the background worker tracks; at least 1.
        port: port of the emulator; 0 picks a free one.
        is_served: whether the emulator keeps running after the scenario, until SIGINT or SIGTERM.

    Returns:
        Whether every expectation holds.

    Raises:
        Exit: with status 2 if the port cannot be used.
    """
    output = DemoOutput(console)
    server = emulator.serve(port=port)
    try:
        server.start()
    except OSError as error:
        _fail(f"cannot listen on port {port}: {error.strerror or error}")
    try:
        anyio.run(_run_scenario, emulator, server.url, output, events)
        all_hold = output.print_result()
        output.print_next_steps()
        if is_served:
            stop_signals = capture_stop_signals()
            output.print_address(server.url)
            wait_for_signal(stop_signals)
    finally:
        server.close()
    return all_hold


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
