"""`mixpanel-async emulator`: a local Mixpanel for any client, with a live page."""

from __future__ import annotations

import signal
import sys
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from mixpanel_async import IdMerge

from . import require

if TYPE_CHECKING:
    from mixpanel_async.emulator import Emulator

# On Windows a signal is not noticed while waiting without an end.
_LOOK_UP: Final[float | None] = 0.5 if sys.platform == "win32" else None


def emulator(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen at; 0 takes a free one.")] = 0,
    id_merge: Annotated[
        IdMerge, typer.Option(help="How the project joins ids into people.", case_sensitive=False)
    ] = IdMerge.SIMPLIFIED,
    token: Annotated[str | None, typer.Option(help="The project's token; others are ignored in silence.")] = None,
    secret: Annotated[str | None, typer.Option(help="The project's secret, for /import and the export.")] = None,
    service_account: Annotated[
        str | None, typer.Option(metavar="USER:SECRET:PROJECT", help="A service account and its project id.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    allow_remote: Annotated[  # noqa: FBT002  an option of a command
        bool, typer.Option("--allow-remote", help="Listen at an address that other machines reach.")
    ] = False,
    data_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory to keep data in over a restart; without it, in memory."),
    ] = None,
    flags: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Feature flags, as /flags/definitions has them; read again when it changes."),
    ] = None,
    cluster_limit: Annotated[int, typer.Option(min=2, help="Ids of one person at most (Original ID Merge).")] = 500,
) -> None:
    """Run a local Mixpanel that takes what any official SDK sends, until it is stopped with Ctrl-C or SIGTERM.

    The first line of the output is its address. Open it in a browser to watch; /_emulator/ says what there is as JSON.
    """
    stops = _stop_signals()
    require("demo", "starlette", "uvicorn")
    from mixpanel_async.emulator import Emulator

    if data_dir is not None and not data_dir.strip():
        _fail("the data directory has no name")
    if flags is not None:
        _check_flags(flags)
    try:
        project = Emulator(
            id_merge,
            token=token,
            secret=secret,
            service_account=_account(service_account),
            cluster_limit=cluster_limit,
            data_dir=data_dir,
            flags=() if flags is None else flags,
        )
    except (OSError, ValueError) as error:
        _fail(f"cannot use the data directory: {error}" if data_dir is not None else str(error))
    with project:
        _serve(project, host, port, allow_remote=allow_remote, stops=stops)


def _serve(project: Emulator, host: str, port: int, *, allow_remote: bool, stops: SimpleQueue[int]) -> None:
    try:
        server = project.serve(host, port, allow_remote=allow_remote)
    except ValueError:
        _fail(
            f"{host} is not a loopback address; other machines could reach the emulator: add --allow-remote to allow it"
        )
    try:
        server.start()
    except OSError as error:
        _fail(f"cannot listen at {host} port {port}: {error.strerror or error}")
    try:
        if allow_remote:
            print("warning: other machines may reach this emulator, and nothing protects it from them", file=sys.stderr)
        print(server.url, flush=True)
        _wait(stops)
    finally:
        server.close()


def _check_flags(file: str) -> None:
    from mixpanel_async.emulator import Emulator

    try:
        Emulator(flags=file)
    except OSError as error:
        _fail(f"cannot read the file of flags: {error.strerror or error}")
    except ValueError as error:
        _fail(f"cannot use the file of flags: {error}")


def _stop_signals() -> SimpleQueue[int]:
    """The signals that end the program, as they come.

    A `SimpleQueue` is the one thing that may be written to by a handler while the same thread waits for it.
    """
    stops: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: stops.put(number))
    return stops


def _wait(stops: SimpleQueue[int]) -> None:
    while True:
        try:
            stops.get(timeout=_LOOK_UP)
        except Empty:
            continue
        return


def _account(text: str | None) -> tuple[str, str, str] | None:
    """A service account as given on the command line; the secret may hold colons."""
    if text is None:
        return None
    user, _, rest = text.partition(":")
    secret, _, project_id = rest.rpartition(":")
    if not (user and secret and project_id):
        _fail("--service-account must be USER:SECRET:PROJECT")
    return user, secret, project_id


def _fail(words: str) -> NoReturn:
    print(f"mixpanel-async emulator: {words}", file=sys.stderr)
    raise typer.Exit(1)
