"""Mixpanel origin: validate a region or `api_host` and build the base URL of every request."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from .errors import raise_configuration_error, show_text

# https://docs.mixpanel.com/reference/overview, read 2026-08-21.
REGION_ORIGINS: Final[Mapping[str, str]] = {
    "us": "https://api.mixpanel.com",
    "eu": "https://api-eu.mixpanel.com",
    "in": "https://api-in.mixpanel.com",
}

# Compiled when needed, because few users pass a host.
_LABEL: Final = r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"

_PATH: Final = r"(?:/[A-Za-z0-9._~-]+)*"

_AUTHORITY: Final = r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_host(host: str) -> None:
    if host.startswith("["):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise_configuration_error("api_host is not a valid IPv6 address")
        return
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(re.fullmatch(_LABEL, label) for label in labels):
        raise_configuration_error("api_host is not a valid host name")
    if labels[-1].isdigit() or labels[-1].lower().startswith("0x"):
        try:
            ipaddress.IPv4Address(host)
        except ValueError:
            raise_configuration_error("api_host is not a valid IPv4 address")


def parse_origin(region: str, api_host: str | None, *, allow_http: bool = False) -> str:
    """Return the origin of every request: scheme, host, port and an optional path prefix.

    The value must match a narrow grammar, so that no user name, query, fragment or similar-looking character can send
    credentials to another host.

    Args:
        region: `us`, `eu` or `in`, in upper or lower case; used when `api_host` is None.
        api_host: a host without scheme, as in the official SDK, or an origin with `https://`; `http://` only for a
            loopback address, unless `allow_http` is set.
        allow_http: accept `http://` for any host, such as an emulator in another container.

    Raises:
        ConfigurationError: if either is invalid. The message does not repeat `api_host`, which may hold a password.
    """
    region_origin = REGION_ORIGINS.get(region.strip().lower()) if isinstance(region, str) else None
    if region_origin is None:
        raise_configuration_error(
            f"region must be one of {', '.join(map(repr, REGION_ORIGINS))}, not {show_text(region)}"
        )
    if api_host is None:
        return region_origin
    if not isinstance(api_host, str):
        raise_configuration_error(f"api_host must be a string, not {type(api_host).__name__}")
    scheme, separator, rest = api_host.partition("://")
    if not separator:
        scheme, rest = "https", api_host
    elif scheme not in {"http", "https"}:
        raise_configuration_error("api_host must start with https:// or http://, or be a host without a scheme")
    authority, slash, path = rest.partition("/")
    prefix = (slash + path).rstrip("/") if path else ""
    match = re.fullmatch(_AUTHORITY, authority)
    if match is None or not re.fullmatch(_PATH, prefix) or any(part in {".", ".."} for part in prefix.split("/")):
        raise_configuration_error(
            "api_host must be a host or an origin, without user name, query, fragment, space or control character"
        )
    if prefix.rpartition("/")[2] in {"track", "import", "engage", "groups"}:
        raise_configuration_error("api_host must not end with an endpoint such as /track, which the client adds")
    host, port = match["host"].lower(), match["port"]
    _check_host(host)
    if port is not None and not 1 <= int(port) <= 65535:
        raise_configuration_error(f"api_host must have a port between 1 and 65535, not {int(port)}")
    if scheme == "http" and not allow_http and not _is_loopback(host):
        raise_configuration_error(
            "api_host must use https:// unless it is a loopback address; pass allow_http=True, or set "
            "MIXPANEL_ALLOW_HTTP=1 for from_env(), to allow http://"
        )
    return f"{scheme}://{host}{'' if port is None else f':{int(port)}'}{prefix}"
