"""Options of `mixpanel-async emulator` for https, and the lines that it prints about it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from . import require

if TYPE_CHECKING:
    from mixpanel_async.emulator import Server, Tls


def tls_options(
    *,
    is_on: bool,
    directory: str | None,
    cert_file: str | None,
    key_file: str | None,
    fail: Callable[[str], NoReturn],
) -> Tls | None:
    """Return the certificates that the options choose, or None for http only.

    Args:
        is_on: whether `--tls` is given.
        directory: value of `--tls-dir`.
        cert_file: value of `--tls-cert`.
        key_file: value of `--tls-key`.
        fail: ends the command with a message.
    """
    if (cert_file is None) != (key_file is None):
        fail("--tls-cert and --tls-key must be given together")
    if cert_file is None and not is_on:
        if directory is not None:
            fail("--tls-dir is the directory of --tls; add --tls")
        return None
    if cert_file is not None and directory is not None:
        fail("--tls-dir is the directory of --tls; it cannot be used with --tls-cert")
    if cert_file is None:
        require("tls", "platformdirs", "trustme")
    from mixpanel_async.emulator import Tls

    try:
        return Tls(directory=directory, cert_file=cert_file, key_file=key_file)
    except ValueError:
        fail("--tls-dir, --tls-cert and --tls-key must not be empty")


def tls_lines(server: Server) -> list[str]:
    """Return the https address of a running server, and the commands of a shell that make clients trust it."""
    if not server.has_tls:
        return []
    if server.ca_file is None:
        return [server.https_url]
    path = shlex.quote(str(server.ca_file))
    return [
        server.https_url,
        f"export NODE_EXTRA_CA_CERTS={path}  # Node.js",
        f"export SSL_CERT_FILE={path} REQUESTS_CA_BUNDLE={path}  # Python",
    ]
