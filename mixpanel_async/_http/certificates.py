"""Trusted certificates: those that the environment names, or else those of certifi."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from typing import Final

import certifi

from .._model.errors import raise_configuration_error
from .reasons import describe

# The first two are OpenSSL's, in the order of httpx; the others are those of requests, in its order.
CERTIFICATE_VARIABLES: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def certificate_variable() -> str | None:
    """Return the name of the variable that replaces the default certificates; None if none does."""
    return next((name for name in CERTIFICATE_VARIABLES if os.environ.get(name, "").strip()), None)


def no_certificates() -> ssl.SSLContext:
    """Return a context that trusts no certificate, with which an unexpected TLS connection fails."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def trusted_certificates(warn: Callable[[str], None]) -> ssl.SSLContext:
    """Return a context for TLS connections that checks certificates and names.

    It trusts only the certificates of the first variable of `CERTIFICATE_VARIABLES` that is set; without one, those of
    certifi. An unusable variable is not replaced by the default, because it may restrict whom the user trusts.

    Args:
        warn: called with a text if `SSLKEYLOGFILE` cannot be used, which is then ignored.

    Raises:
        ConfigurationError: naming the variable that cannot be used.
    """
    variable = certificate_variable()
    file, directory = (certifi.where(), None) if variable is None else _location(variable)
    with contextlib.suppress(OSError, ValueError):
        return ssl.create_default_context(cafile=file, capath=directory)
    # Try without `SSLKEYLOGFILE`, which only the standard library's function reads.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    name = variable or "the package certifi"
    try:
        context.load_verify_locations(file, directory)
    except ssl.SSLError:
        raise_configuration_error(f"{name} names a file without a valid certificate in PEM format")
    except (OSError, ValueError) as error:
        reason = describe(error) if isinstance(error, OSError) else type(error).__name__
        raise_configuration_error(f"{name} names a file that cannot be read ({reason})")
    warn("SSLKEYLOGFILE names a file that cannot be written, and is ignored")
    return context


def _location(variable: str) -> tuple[str | None, str | None]:
    """Return the file, or else the directories, of a variable. Messages name the variable and never its value."""
    path = os.environ[variable].strip()
    if variable != "SSL_CERT_DIR" and os.path.isfile(path):
        return path, None
    # A list of directories, as in OpenSSL, which looks into them during a handshake and ignores missing ones.
    if not any(map(os.path.isdir, path.split(os.pathsep))):
        kind = "directory" if variable == "SSL_CERT_DIR" else "file"
        raise_configuration_error(f"{variable} names a {kind} that does not exist")
    if variable == "SSL_CERT_FILE":
        raise_configuration_error("SSL_CERT_FILE names a directory; use SSL_CERT_DIR for it")
    return None, path
