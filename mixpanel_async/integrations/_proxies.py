"""Address of the client behind trusted proxies. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from mixpanel_async import ConfigurationError

Address = IPv4Address | IPv6Address

_MAX_PROXIES: Final = 100
# Longer texts are no address. Parsed addresses are cached, because most visitors send several requests.
_MAX_ADDRESS: Final = 100
_CACHE_SIZE: Final = 1_000


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
        hops = forwarded_for.split(",") if forwarded_for else []
        if self.count:
            return _canonical([*hops, peer][max(0, len(hops) - self.count)])
        hop = peer
        if self.networks:
            while hops and self.is_trusted(parse_address(hop)):
                hop = hops.pop()
                if parse_address(hop) is None:
                    break
        return _canonical(hop)


def parse_address(text: str | None) -> Address | None:
    """Parse an IP address in the forms proxies write: with a port, in brackets, in quotes. None if it is invalid."""
    found = _parse(text) if text and len(text) <= _MAX_ADDRESS else None
    return None if found is None else found[0]


def _canonical(text: str | None) -> str | None:
    """Return the usual form of an IP address that `parse_address` accepts; None if it is invalid."""
    found = _parse(text) if text and len(text) <= _MAX_ADDRESS else None
    return None if found is None else found[1]


@lru_cache(_CACHE_SIZE)
def _parse(text: str) -> tuple[Address, str] | None:
    """Return an IP address and its usual form, which takes as long as parsing."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    return address, str(address)
