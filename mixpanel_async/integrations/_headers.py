"""Event properties and client address from request headers. Pure functions that accept arbitrary input.

Property names and meanings: https://docs.mixpanel.com/docs/data-structure/property-reference/default-properties
and https://docs.mixpanel.com/docs/best-practices/server-side-best-practices, read 2026-08-21.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final
from urllib.parse import urlsplit

from mixpanel_async import ConfigurationError

Address = IPv4Address | IPv6Address

_MAX_PROXIES: Final = 100
# Mixpanel truncates longer strings.
_MAX_CHARACTERS: Final = 255

# The first marker found wins. Most browsers also claim to be Chrome or Safari, so specific markers come first.
_BROWSERS: Final = (
    ("Opera Mini/", "Opera Mini"),
    ("OPR/", "Opera"),
    ("BB10", "BlackBerry"),
    ("BlackBerry", "BlackBerry"),
    ("IEMobile/", "Internet Explorer Mobile"),
    ("SamsungBrowser/", "Samsung Internet"),
    ("Edg/", "Microsoft Edge"),
    ("EdgA/", "Microsoft Edge"),
    ("EdgiOS/", "Microsoft Edge"),
    ("Edge/", "Microsoft Edge"),
    ("FBAV/", "Facebook Mobile"),
    ("Whale/", "Whale Browser"),
    ("CriOS/", "Chrome iOS"),
    ("UCBrowser/", "UC Browser"),
    ("FxiOS/", "Firefox iOS"),
    ("Chrome/", "Chrome"),
    ("Firefox/", "Firefox"),
    ("Konqueror/", "Konqueror"),
    ("MSIE ", "Internet Explorer"),
    ("Trident/", "Internet Explorer"),
)
_SYSTEMS: Final = (
    ("Windows Phone", "Windows Phone"),
    ("Windows", "Windows"),
    ("iPhone", "iOS"),
    ("iPad", "iOS"),
    ("iPod", "iOS"),
    ("Android", "Android"),
    ("BB10", "BlackBerry"),
    ("BlackBerry", "BlackBerry"),
    ("Macintosh", "Mac OS X"),
    ("CrOS", "Chrome OS"),
    ("Linux", "Linux"),
)
_DEVICES: Final = (
    ("Windows Phone", "Windows Phone"),
    ("iPad", "iPad"),
    ("iPod", "iPod Touch"),
    ("iPhone", "iPhone"),
    ("BB10", "BlackBerry"),
    ("BlackBerry", "BlackBerry"),
    ("Android", "Android"),
)
_VERSION: Final = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6})?", re.ASCII)
_EXPLORER: Final = re.compile(r"(?:MSIE |rv:)([0-9]{1,3}(?:\.[0-9]{1,3})?)", re.ASCII)


def user_agent_properties(user_agent: str) -> dict[str, Any]:
    """Return the detected `$browser`, `$browser_version`, `$os` and `$device`, with the values Mixpanel uses.

    Args:
        user_agent: the `User-Agent` header, or an empty string.
    """
    marker, browser = _first(_BROWSERS, user_agent)
    if not browser and "Safari/" in user_agent:
        marker, browser = "Version/", "Mobile Safari" if "Mobile/" in user_agent else "Safari"
        if "Android" in user_agent:
            browser = "Android Mobile"
    found = {
        "$browser": browser,
        "$browser_version": _version(user_agent, marker),
        "$os": _first(_SYSTEMS, user_agent)[1],
        "$device": _first(_DEVICES, user_agent)[1],
    }
    return {name: value for name, value in found.items() if value}


def _first(table: Sequence[tuple[str, str]], text: str) -> tuple[str, str]:
    for marker, name in table:
        if marker in text:
            return marker, name
    return "", ""


def _version(user_agent: str, marker: str) -> float | None:
    if marker in {"MSIE ", "Trident/"}:
        found = _EXPLORER.search(user_agent)
        text = found[1] if found else ""
    else:
        match = _VERSION.match(user_agent, user_agent.find(marker) + len(marker)) if marker in user_agent else None
        text = match[0] if match and marker.endswith("/") else ""
    if not text:
        return None
    number = float(text)
    return int(number) if number.is_integer() else number


def referrer_properties(referrer: str) -> dict[str, str]:
    """Return `$referrer` and `$referring_domain` of an HTTP(S) referrer.

    Query and fragment are removed because they may contain secrets: tokens, search terms, email addresses.

    Args:
        referrer: the `Referer` header, or an empty string.

    Returns:
        Both properties; empty if the header is not an HTTP(S) URL.
    """
    try:
        url = urlsplit(referrer)
        host = url.hostname
        port = url.port
    except ValueError:
        return {}
    if url.scheme not in {"http", "https"} or not host:
        return {}
    domain = _sendable(host)
    authority = f"[{domain}]" if ":" in domain else domain
    netloc = authority if port is None else f"{authority}:{port}"
    return {"$referrer": _sendable(f"{url.scheme}://{netloc}{url.path}"), "$referring_domain": domain}


def _sendable(text: str) -> str:
    """Replace lone surrogates, which servers create from bytes that are not UTF-8, and truncate to Mixpanel's limit."""
    return text.encode("utf-8", "replace").decode()[:_MAX_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Proxies:
    """Trusted proxies in front of the app.

    `X-Forwarded-For` is read from the right, where the nearest proxy appends its peer. Values forged by the sender end
    up to the left of the values added by proxies.

    Args:
        trusted: number of proxies, 0 to 100; or their networks, such as `["10.0.0.0/8"]`.

    Raises:
        ConfigurationError: if `trusted` is out of bounds or not a valid network.
    """

    count: int
    networks: tuple[IPv4Network | IPv6Network, ...]

    def __init__(self, trusted: int | Sequence[str]) -> None:
        count = 0
        networks: tuple[IPv4Network | IPv6Network, ...] = ()
        if isinstance(trusted, (str, bool)):
            raise ConfigurationError(
                f"trusted_proxies must be a number of proxies or a list of networks, not {trusted!r}"
            )
        if isinstance(trusted, int):
            if not 0 <= trusted <= _MAX_PROXIES:
                raise ConfigurationError(f"trusted_proxies must be between 0 and {_MAX_PROXIES}, not {trusted}")
            count = trusted
        else:
            try:
                networks = tuple(ip_network(network) for network in trusted)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"trusted_proxies must be a number of proxies or a list of networks: {error}"
                ) from None
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "networks", networks)

    def is_trusted(self, hop: Address | None) -> bool:
        """Return whether an address belongs to a proxy. None means a Unix socket, which is trusted."""
        return hop is None or any(hop.version == one.version and hop in one for one in self.networks)

    def is_proxied_by(self, peer: str | None) -> bool:
        """Return whether the peer is a trusted proxy, so that its forwarding headers count."""
        return self.count > 0 or (bool(self.networks) and self.is_trusted(parse_address(peer)))

    def client_ip(self, peer: str | None, forwarded_for: str) -> str | None:
        """Return the IP address of the client.

        Args:
            peer: address of the connection's peer; None for a Unix socket.
            forwarded_for: `X-Forwarded-For` headers, joined by commas.

        Returns:
            The address; None if it is unknown.
        """
        hop = parse_address(peer)
        hops = forwarded_for.split(",") if forwarded_for else []
        if self.count:
            hop = parse_address([*hops, peer][max(0, len(hops) - self.count)])
        elif self.networks:
            while hops and self.is_trusted(hop):
                hop = parse_address(hops.pop())
                if hop is None:
                    break
        return None if hop is None else str(hop)


def parse_address(text: str | None) -> Address | None:
    """Parse an IP address in the forms proxies write: with a port, in brackets, in quotes. None if it is invalid."""
    if not text:
        return None
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
