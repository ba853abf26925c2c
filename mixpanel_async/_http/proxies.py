"""Proxies of the environment, as httpx reads them."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.request import getproxies

import httpx


class UnusableProxyError(httpx.UnsupportedProtocol):
    """The environment names a proxy that cannot be used. The text names the variable and never its value."""


@dataclass(frozen=True, slots=True, eq=False)
class EnvironmentProxy:
    """One proxy setting of the environment.

    Args:
        variable: name of the variable.
        proxy: the proxy; None if the setting cannot be used.
        problem: reason why it cannot be used.
    """

    variable: str
    proxy: httpx.Proxy | None
    problem: str = ""


def environment_proxies(warn: Callable[[str], None]) -> dict[str, EnvironmentProxy | None]:
    """Return the proxy for each URL pattern of httpx; None means a direct connection.

    Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, and on Windows and macOS the system settings. httpx
    ignores them in a client that is given transports, and its own function for this is not public (httpx 0.28.1).

    A setting that cannot be used is part of the result: only a request that needs this proxy fails. A direct connection
    instead could bypass a rule of the network.

    Args:
        warn: called with a text if an entry of `NO_PROXY` cannot be used, which is then ignored.
    """
    settings = getproxies()
    bypassed = [host.strip() for host in settings.get("no", "").split(",")]
    if "*" in bypassed:
        return {}
    proxies: dict[str, EnvironmentProxy | None] = {}
    for scheme in ("http", "https", "all"):
        if url := settings.get(scheme, "").strip():
            proxies[f"{scheme}://"] = _parse(_variable(scheme), url)
    for host in filter(None, bypassed):
        pattern = _bypass_pattern(host)
        try:
            httpx.URL(pattern)
        except Exception:  # noqa: BLE001  the entry may be any text
            warn(f"{_variable('no')} has an entry that is neither a host nor an address, which is ignored")
        else:
            proxies[pattern] = None
    return proxies


def _variable(scheme: str) -> str:
    """Return the name of the variable that sets this proxy. The lower-case one wins, as in `getproxies`."""
    name = f"{scheme}_proxy"
    names = sorted((one for one in os.environ if one.lower() == name), key=lambda one: one != name)
    return names[0] if names else f"the system's {scheme.upper()} proxy"


def _parse(variable: str, url: str) -> EnvironmentProxy:
    # Errors of the parser are not repeated: they may show a part of a password.
    try:
        proxy = httpx.Proxy(url if "://" in url else f"http://{url}")
    except Exception:  # noqa: BLE001  the variable may be any text
        return EnvironmentProxy(variable, None, f"{variable} is not the URL of a proxy, such as http://host:3128")
    port = proxy.url.port
    if not proxy.url.host or not (port is None or 1 <= port <= 65535):
        return EnvironmentProxy(variable, None, f"{variable} has no valid host and port, as in http://host:3128")
    if proxy.url.scheme.startswith("socks") and find_spec("socksio") is None:
        return EnvironmentProxy(
            variable, None, f"{variable} names a SOCKS proxy, which needs a package: pip install 'httpx[socks]'"
        )
    return EnvironmentProxy(variable, proxy)


def _bypass_pattern(host: str) -> str:
    """Return the URL pattern for an entry of `NO_PROXY`: an address, `localhost`, a domain or a pattern."""
    if "://" in host:
        return host
    if host.lower() == "localhost":
        return f"all://{host}"
    text = host.partition("/")[0]
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        # A domain includes its subdomains; `.example.com` means the subdomains alone.
        return f"all://*{host}"
    return f"all://[{address}]" if address.version == 6 else f"all://{host}"
