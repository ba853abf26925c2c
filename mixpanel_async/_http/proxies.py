"""Proxies of the environment, as httpx reads them."""

from __future__ import annotations

import ipaddress
from urllib.request import getproxies

import httpx


def environment_proxies() -> dict[str, httpx.Proxy | None]:
    """Return the proxy for each URL pattern of httpx; None means a direct connection.

    Reads `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, and on Windows and macOS the system settings. httpx
    ignores them in a client that is given transports, and its own function for this is not public (httpx 0.28.1).

    Raises:
        ValueError: if a proxy has a scheme other than http, https, socks5 and socks5h.
        httpx.InvalidURL: if the URL of a proxy cannot be parsed.
    """
    settings = getproxies()
    bypassed = [host.strip() for host in settings.get("no", "").split(",")]
    if "*" in bypassed:
        return {}
    proxies: dict[str, httpx.Proxy | None] = {}
    for scheme in ("http", "https", "all"):
        if url := settings.get(scheme):
            proxies[f"{scheme}://"] = httpx.Proxy(url if "://" in url else f"http://{url}")
    for host in filter(None, bypassed):
        proxies[_bypass_pattern(host)] = None
    return proxies


def _bypass_pattern(host: str) -> str:
    """Return the URL pattern for an entry of `NO_PROXY`: an address, `localhost`, a domain or a pattern."""
    if "://" in host:
        return host
    if host.lower() == "localhost":
        return f"all://{host}"
    try:
        address = ipaddress.ip_address(host.partition("/")[0])
    except ValueError:
        # A domain includes its subdomains; `.example.com` means the subdomains alone.
        return f"all://*{host}"
    return f"all://[{host}]" if address.version == 6 else f"all://{host}"
