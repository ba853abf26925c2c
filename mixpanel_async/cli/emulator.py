"""Command `mixpanel-async emulator`: a local Mixpanel server with a live page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from mixpanel_async import IdMerge

from . import require
from .emulator_tls import tls_lines, tls_options
from .stop_signals import capture_stop_signals, wait_for_signal

if TYPE_CHECKING:
    from mixpanel_async.emulator import Server


def emulator(
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 picks a free one.")] = 0,
    id_merge: Annotated[
        IdMerge, typer.Option(help="ID merge system of the project.", case_sensitive=False)
    ] = IdMerge.SIMPLIFIED,
    token: Annotated[
        str | None, typer.Option(help="Project token; requests with another token are silently ignored.")
    ] = None,
    secret: Annotated[str | None, typer.Option(help="Project secret, for /import and the export.")] = None,
    service_account: Annotated[
        str | None, typer.Option(metavar="USER:SECRET:PROJECT", help="Service account and its project id.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[  # noqa: FBT002  an option of a command
        bool, typer.Option("--allow-remote", help="Allow an address that other machines can reach.")
    ] = False,
    data_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory that keeps data across restarts; default: memory only."),
    ] = None,
    tls: Annotated[  # noqa: FBT002  an option of a command
        bool, typer.Option("--tls", help="Serve https too, on the same port, with a certificate of a local authority.")
    ] = False,
    tls_dir: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Directory of that authority; default: in the user's data directory."),
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Certificate for https in PEM format, instead of --tls.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Private key of --tls-cert.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name of this server, such as a compose service; repeatable."),
    ] = None,
    flags: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Feature flags in the format of /flags/definitions; reloaded on change."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Origin whose pages may read responses, as pages on localhost do, such as https://app.example.com; "
            "* for every origin. Can be repeated.",
        ),
    ] = None,
    cluster_limit: Annotated[
        int, typer.Option(min=2, help="Maximum number of ids per person (Original ID Merge).")
    ] = 500,
    quiet: Annotated[  # noqa: FBT002  an option of a command
        bool, typer.Option("--quiet", help="Print only the address: no hints and no line for each request.")
    ] = False,
) -> None:
    """Run a local Mixpanel server that accepts requests of every official SDK, until Ctrl-C or SIGTERM.

    The first line of standard output is the server's address. Open it in a browser for the live page, or read the list
    of JSON endpoints at /_emulator/. With TLS, the next lines are the https address, and the commands that make Node.js
    and Python trust it. A line for each request goes to standard error: time, status, endpoint, number of records,
    result and first reason.
    """
    stop_signals = capture_stop_signals()
    require("demo", "starlette", "uvicorn")
    from mixpanel_async.emulator import Emulator

    certificates = tls_options(is_on=tls, directory=tls_dir, cert_file=tls_cert, key_file=tls_key, fail=_fail)
    if data_dir is not None and not data_dir.strip():
        _fail("--data-dir must not be empty")
    if flags is not None:
        _check_flags(flags)
    _check_origins(allow_origin or ())
    is_first_start = data_dir is None or not Path(data_dir).exists()
    try:
        project = Emulator(
            id_merge,
            token=token,
            secret=secret,
            service_account=_parse_service_account(service_account),
            cluster_limit=cluster_limit,
            data_dir=data_dir,
            flags=() if flags is None else flags,
            allow_origins=allow_origin or (),
        )
    except (OSError, ValueError) as error:
        _fail(f"cannot use the data directory: {error}" if data_dir is not None else str(error))
    from .emulator_output import printing

    def output(server: Server) -> AbstractContextManager[object]:
        return nullcontext() if quiet else printing(project, server, is_first_start=is_first_start)

    with project:
        try:
            server = project.serve(
                host, port, allow_remote=allow_remote, allow_hosts=allow_host or (), tls=certificates or False
            )
        except ValueError as error:
            _fail(
                str(error)
                .replace("allow_hosts", "--allow-host")
                .replace("allow_remote=True", "--allow-remote is given")
            )
        _serve(server, host, port, allow_remote=allow_remote, stop_signals=stop_signals, output=output)


def _serve(
    server: Server,
    host: str,
    port: int,
    *,
    allow_remote: bool,
    stop_signals: SimpleQueue[int],
    output: Callable[[Server], AbstractContextManager[object]],
) -> None:
    from mixpanel_async.emulator import TlsError

    try:
        server.start()
    except TlsError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"cannot listen on {host} port {port}: {error.strerror or error}")
    try:
        if allow_remote:
            print("warning: other machines can reach this emulator, and it has no access control", file=sys.stderr)
        print("\n".join([server.url, *tls_lines(server)]), flush=True)
        with output(server):
            wait_for_signal(stop_signals)
    finally:
        server.close()


def _check_flags(file: str) -> None:
    from mixpanel_async.emulator import Emulator

    try:
        Emulator(flags=file)
    except OSError as error:
        _fail(f"cannot read the flags file {file}: {error.strerror or error}")
    except ValueError as error:
        _fail(f"invalid flags file {file}: {error}")


def _check_origins(origins: Sequence[str]) -> None:
    from mixpanel_async.emulator import Emulator

    try:
        Emulator(allow_origins=origins)
    except ValueError as error:
        _fail(f"invalid --allow-origin: {error}")


def _parse_service_account(text: str | None) -> tuple[str, str, str] | None:
    """Parse the value of --service-account. The secret may contain colons."""
    if text is None:
        return None
    user, _, rest = text.partition(":")
    secret, _, project_id = rest.rpartition(":")
    if not (user and secret and project_id):
        _fail("--service-account must be USER:SECRET:PROJECT")
    return user, secret, project_id


def _fail(message: str) -> NoReturn:
    print(f"mixpanel-async emulator: {message}", file=sys.stderr)
    raise typer.Exit(1)
