"""Mixpanel origin: validate a region or `api_host` and build the base URL of every request."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from .errors import raise_configuration_error

# https://docs.mixpanel.com/reference/overview, read 2026-08-21.
REGION_ORIGINS: Final[Mapping[str, str]] = {
    "us": "https://api.mixpanel.com",
    "eu": "https://api-eu.mixpanel.com",
    "in": "https://api-in.mixpanel.com",
}

# Compiled when a host is given, which few do.
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
    """The origin that every request goes to: scheme, host, port and an optional path prefix.

    The value is parsed against a narrow grammar instead of being pasted into a URL, so that no user-info, query,
    fragment or look-alike can send credentials elsewhere.

    Args:
        region: `us`, `eu` or `in`; used when `api_host` is None.
        api_host: a bare host, as the official SDK takes it, or an origin with `https://`; `http://` only for a
            loopback address, unless `allow_http` is set.
        allow_http: take `http://` for any host, such as an emulator in a neighbouring container.

    Raises:
        ConfigurationError: if either is malformed. The message never repeats the value.
    """
    if not isinstance(region, str) or region not in REGION_ORIGINS:
        raise_configuration_error(f"region must be one of {', '.join(map(repr, REGION_ORIGINS))}")
    if api_host is None:
        return REGION_ORIGINS[region]
    if not isinstance(api_host, str):
        raise_configuration_error(f"api_host must be a string, not {type(api_host).__name__}")
    scheme, separator, rest = api_host.partition("://")
    if not separator:
        scheme, rest = "https", api_host
    elif scheme not in {"http", "https"}:
        raise_configuration_error("api_host must start with https:// or http://, or be a bare host")
    authority, slash, path = rest.partition("/")
    prefix = (slash + path).rstrip("/") if path else ""
    match = re.fullmatch(_AUTHORITY, authority)
    if match is None or not re.fullmatch(_PATH, prefix) or any(part in {".", ".."} for part in prefix.split("/")):
        raise_configuration_error(
            "api_host must be a host or an origin: no user, query, fragment, space or control character"
        )
    if prefix.rpartition("/")[2] in {"track", "import", "engage", "groups"}:
        raise_configuration_error("api_host must not name an endpoint: the client adds it")
    host, port = match["host"].lower(), match["port"]
    _check_host(host)
    if port is not None and not 1 <= int(port) <= 65535:
        raise_configuration_error("api_host has a port out of range")
    if scheme == "http" and not allow_http and not _is_loopback(host):
        raise_configuration_error(
            "api_host must use https:// unless it is a loopback address; allow_http=True lifts this"
        )
    return f"{scheme}://{host}{'' if port is None else f':{int(port)}'}{prefix}"
