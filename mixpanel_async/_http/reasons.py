"""Short texts that name the cause of a failed request. They contain no URL, credential or payload."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from typing import Final

from .._encoding.masking import mask_urls, one_line

_MAX_SHOWN: Final = 160
_MAX_CAUSES: Final = 8


def describe(error: BaseException, default: str = "") -> str:
    """Return the cause of an error: the reason of the system or of TLS if there is one, else the text of the error.

    Args:
        error: the error. Its causes are searched, because libraries hide the reason there.
        default: text for an error without one.
    """
    causes = [*_causes(error)]
    for cause in causes:
        if text := _reason_of_system(cause):
            return text
    if isinstance(error, ImportError) and error.name:
        return f"the package {error.name} cannot be imported"
    # The texts of timeouts and cancellations are internal to anyio.
    if isinstance(error, OSError) or not (text := str(error)):
        return default
    return one_line(mask_urls(text), _MAX_SHOWN)


def describe_with_class(error: Exception) -> str:
    """Return the class and the cause of an error."""
    text = describe(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def seconds(value: float) -> str:
    """Return a time limit for people: a deadline leaves 1.99965 s of 2 s."""
    rounded = round(value, 1) if value >= 1 else float(f"{value:.1g}")
    return f"{rounded:g} s"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and the errors that led to it."""
    found: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if found is None:
            return
        yield found
        several = getattr(found, "exceptions", ())
        # Also a suppressed context: the pool of httpcore raises every error again `from None`.
        found = several[0] if several else found.__cause__ or found.__context__


def _reason_of_system(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        # OpenSSL's reason, such as a host that the certificate does not name.
        return one_line(f"certificate verify failed: {error.verify_message.rstrip('.')}", _MAX_SHOWN)
    if isinstance(error, ssl.SSLEOFError) or getattr(error, "reason", "") == "UNEXPECTED_EOF_WHILE_READING":
        return "the TLS connection was closed"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or 'protocol error').replace('_', ' ').lower()}"
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return ""
