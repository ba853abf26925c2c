"""Certificates of the emulator. The only module that uses trustme and platformdirs.

A certificate authority is made on first use and kept in a directory of the user. Each start of a server issues a new
certificate. The alternative is a certificate and a key from files.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import ssl
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final

LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "::1")
"""Names and addresses that are in every certificate."""
HOST_NAME: Final = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
"""Host name in lower case, without a final dot."""

AUTHORITY_FILE: Final = "authority.pem"
"""Certificate and key in one file, so that two processes never combine halves of two authorities."""

# Apple's systems refuse certificates that are valid for more than 825 days.
_CERTIFICATE_DAYS: Final = 397
# A client must trust the authority for as long as a certificate is valid.
_RENEWAL_SECONDS: Final = (_CERTIFICATE_DAYS + 1) * 86_400.0
_MAX_PEM_BYTES: Final = 1024 * 1024
_CERTIFICATE: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\s*", re.DOTALL)


class TlsError(ValueError):
    """A certificate, a key or their directory cannot be used. The message names the file and says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates of a server: from an authority that the emulator makes, or from files.

        with emulator.serve(tls=Tls(directory="certificates")) as server:
            print(server.https_url, server.ca_file)

    Args:
        directory: directory of the certificate authority. It is created with mode 0700. An existing directory must
            belong to the user, and others must not be able to write to it. None uses `mixpanel-async/tls` in the user's
            data directory: `$XDG_DATA_HOME`, by default `~/.local/share`, on Linux; `~/Library/Application Support` on
            macOS; `%LOCALAPPDATA%` on Windows.
        cert_file: certificate in PEM format, followed by intermediate certificates if there are any. None uses the
            authority.
        key_file: private key of `cert_file` in PEM format, without passphrase.

    Raises:
        ValueError: if only one of `cert_file` and `key_file` is given, or `directory` together with them.
    """

    directory: str | os.PathLike[str] | None = None
    cert_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("directory", "cert_file", "key_file"):
            value = getattr(self, name)
            if value is not None and not os.fspath(value).strip():
                raise ValueError(f"{name} must not be empty")
        if (self.cert_file is None) != (self.key_file is None):
            missing = "key_file" if self.key_file is None else "cert_file"
            raise ValueError(f"cert_file and key_file must be given together; {missing} is missing")
        if self.cert_file is not None and self.directory is not None:
            raise ValueError("directory is for the emulator's own authority; it cannot be used with cert_file")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerCertificate:
    """Certificate of a running server.

    Args:
        context: context for connections of clients.
        ca_file: certificate of the authority, which clients must trust; None for a certificate from files.
    """

    context: ssl.SSLContext
    ca_file: Path | None


def server_certificate(tls: Tls, names: Iterable[str]) -> ServerCertificate:
    """Return the certificate for a server, issued by the authority or read from files.

    Args:
        tls: where certificates come from.
        names: names and IP addresses of the server besides `LOCAL_NAMES`.

    Raises:
        TlsError: if a file or directory cannot be used, or a name cannot be in a certificate.
        ImportError: if the extra `tls` is needed and not installed.
    """
    if tls.cert_file is not None and tls.key_file is not None:
        context = _server_context()
        _load_files(context, Path(tls.cert_file), Path(tls.key_file))
        return ServerCertificate(context=context, ca_file=None)
    return _issue(tls, [*dict.fromkeys([*LOCAL_NAMES, *map(_checked_name, names)])])


def _issue(tls: Tls, names: Iterable[str]) -> ServerCertificate:
    try:
        import platformdirs  # noqa: PLC0415  an extra
        import trustme  # noqa: PLC0415  an extra
    except ModuleNotFoundError as error:
        raise ImportError(
            'TLS of the emulator needs an extra: run pip install ".[tls]" in a clone of the repository', name=error.name
        ) from error

    default = platformdirs.user_data_path("mixpanel-async", appauthor=False) / "tls"
    directory = (default if tls.directory is None else Path(tls.directory)).absolute()

    def new_authority() -> bytes:
        authority = trustme.CA(
            organization_name="mixpanel-async emulator", organization_unit_name=f"Test CA {os.urandom(4).hex()}"
        )
        return authority.cert_pem.bytes() + authority.private_key_pem.bytes()

    with _reported(directory):
        _prepare_directory(directory)
        pem = _authority(directory, new_authority, time.time())
        certificate = pem[: _certificate_length(pem, directory / AUTHORITY_FILE)]
        ca_file = directory / "ca.pem"
        _write_private(ca_file, certificate)
    try:
        authority = trustme.CA.from_pem(certificate, pem[len(certificate) :])
    except (TypeError, ValueError):
        raise _damaged(directory / AUTHORITY_FILE) from None
    # Clients compare with the clock of the machine, and not with that of the emulator.
    today = datetime.now(timezone.utc)
    try:
        leaf = authority.issue_cert(
            *names,
            common_name="mixpanel-async emulator",
            not_before=today - timedelta(days=1),
            not_after=today + timedelta(days=_CERTIFICATE_DAYS),
        )
    except ValueError as error:
        # Such as two hyphens at the third place, which are reserved for encoded names.
        raise TlsError(f"a name of the server cannot be in a certificate: {error}") from None
    context = _server_context()
    with _reported(directory):
        leaf.configure_cert(context)
    return ServerCertificate(context=context, ca_file=ca_file)


def _authority(directory: Path, create: Callable[[], bytes], now: float) -> bytes:
    """Return certificate and key of the authority. Create it on first use, and replace it before it expires."""
    path = directory / AUTHORITY_FILE
    try:
        pem = _read_private(path)
    except FileNotFoundError:
        # Another process may create it at the same time. The first one wins.
        with contextlib.suppress(FileExistsError):
            _write_private(path, create(), replace=False)
        pem = _read_private(path)
    if _expiry(pem[: _certificate_length(pem, path)], path) > now + _RENEWAL_SECONDS:
        return pem
    _write_private(path, create())
    return _read_private(path)


def _certificate_length(pem: bytes, path: Path) -> int:
    match = _CERTIFICATE.match(pem)
    if match is None:
        raise _damaged(path)
    return match.end()


def _expiry(certificate: bytes, path: Path) -> float:
    """Return the time in seconds since the epoch until which a certificate is valid."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=certificate.decode("ascii"))
        (parsed,) = context.get_ca_certs()
    except (ssl.SSLError, ValueError):
        raise _damaged(path) from None
    return ssl.cert_time_to_seconds(str(parsed["notAfter"]))


def _damaged(path: Path) -> TlsError:
    return TlsError(f"{path} is not a certificate authority of the emulator; delete it, and a new one is made")


def _prepare_directory(directory: Path) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(directory, directory.stat())


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Refuse what another user could replace. Windows has no such modes, and its data directory is private."""
    if sys.platform == "win32":
        return
    if found.st_uid != os.geteuid():
        raise TlsError(f"{path} belongs to another user (uid {found.st_uid}); choose another directory for TLS")
    if found.st_mode & 0o022:
        raise TlsError(
            f"other users can write to {path} (mode {stat.S_IMODE(found.st_mode):04o}); run chmod go-w on it"
        )


def _read_private(path: Path) -> bytes:
    # A symbolic link could lead to a file of another user.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        _check_owner(path, found)
        if sys.platform != "win32" and path.name == AUTHORITY_FILE and found.st_mode & 0o077:
            raise TlsError(
                f"other users can read the key in {path} (mode {stat.S_IMODE(found.st_mode):04o}); "
                "delete the file, and a new one is made"
            )
        return file.read(_MAX_PEM_BYTES)


def _write_private(path: Path, content: bytes, *, replace: bool = True) -> None:
    """Write a file with mode 0600 in one step.

    Raises:
        FileExistsError: if the file exists and must not be replaced.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
        if not replace:
            try:
                os.link(temporary, path)
            except FileExistsError:
                raise
            except OSError:
                # The file system has no hard links.
                replace = True
        if replace:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into a `TlsError` that names a file."""
    try:
        yield
    except OSError as error:
        # Errors of opened files have the number of the descriptor as their file name.
        name = error.filename if isinstance(error.filename, str) else path
        raise TlsError(f"cannot use {name}: {error.strerror or error}") from error


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load_files(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    def refuse_passphrase() -> str:
        raise TlsError(f"the key in {key_file} has a passphrase; use a key without one")

    for path in (cert_file, key_file):
        with _reported(path):
            path.open("rb").close()
    try:
        context.load_cert_chain(cert_file, key_file, refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsError(f"the key in {key_file} does not belong to the certificate in {cert_file}") from None
        raise TlsError(
            f"{cert_file} and {key_file} must hold a certificate and its private key in PEM format ({error.reason})"
        ) from None


def _checked_name(name: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(name))
    if len(name) > 253 or HOST_NAME.fullmatch(name) is None:
        raise TlsError(f"{name!r} cannot be in a certificate: it is neither a host name nor an IP address")
    return name
