"""What a request's headers say of its sender. Pure, and safe with whatever a stranger may send.

Names and meaning of the properties: https://docs.mixpanel.com/docs/data-structure/property-reference/default-properties
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

_MOST_PROXIES: Final = 100
# Mixpanel cuts longer texts.
_MOST_CHARACTERS: Final = 255

# The first marker that is found decides, so that a browser comes before those that it claims to be.
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


def agent_properties(user_agent: str) -> dict[str, Any]:
    """`$browser`, `$browser_version`, `$os` and `$device`, as far as they can be told, by Mixpanel's own names.

    Args:
        user_agent: the header, or an empty string.
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
    """`$referrer` and `$referring_domain` of a page on the web.

    Query and fragment are left out, as they may hold what is secret: tokens, searches, addresses.

    Args:
        referrer: the `Referer` header, or an empty string.
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
    place = authority if port is None else f"{authority}:{port}"
    return {"$referrer": _sendable(f"{url.scheme}://{place}{url.path}"), "$referring_domain": domain}


def _sendable(text: str) -> str:
    """Without lone surrogates, which servers make of bytes that are no UTF-8, and no longer than Mixpanel keeps."""
    return text.encode("utf-8", "replace").decode()[:_MOST_CHARACTERS]


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies in front of the app, whose word on the sender of a request is taken.

    `X-Forwarded-For` is read from the right, where the nearest proxy wrote: what a sender puts there stands to the left
    of what the proxies know.

    Args:
        trusted: how many there are, 0 to 100; or the networks that they are in, such as `10.0.0.0/8`.

    Raises:
        ConfigurationError: if it is neither.
    """

    count: int
    networks: tuple[IPv4Network | IPv6Network, ...]

    def __init__(self, trusted: int | Sequence[str]) -> None:
        count = 0
        networks: tuple[IPv4Network | IPv6Network, ...] = ()
        if isinstance(trusted, (str, bool)):
            raise ConfigurationError("trusted_proxies must be a number of proxies, or a list of networks")
        if isinstance(trusted, int):
            if not 0 <= trusted <= _MOST_PROXIES:
                raise ConfigurationError(f"trusted_proxies must be between 0 and {_MOST_PROXIES}")
            count = trusted
        else:
            try:
                networks = tuple(ip_network(network) for network in trusted)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(f"trusted_proxies must be a number, or a list of networks: {error}") from None
        object.__setattr__(self, "count", count)
        object.__setattr__(self, "networks", networks)

    def is_trusted(self, hop: Address | None) -> bool:
        """Whether an address is that of a proxy. None, a peer on a Unix socket, is: the file system guards that."""
        return hop is None or any(hop.version == one.version and hop in one for one in self.networks)

    def speak_for(self, peer: str | None) -> bool:
        """Whether the peer may say something of the request's sender."""
        return self.count > 0 or (bool(self.networks) and self.is_trusted(parse_address(peer)))

    def client_ip(self, peer: str | None, forwarded_for: str) -> str | None:
        """The address of the sender.

        Args:
            peer: the address at the other end of the connection; None if it has none.
            forwarded_for: the `X-Forwarded-For` headers, joined by commas.

        Returns:
            The address; None if it cannot be told.
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
    """An IP address as proxies write it: with a port, in brackets, in quotes. None if it is none."""
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
