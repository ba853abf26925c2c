"""Event properties from request headers. Pure functions that accept arbitrary input.

Property names and meanings: https://docs.mixpanel.com/docs/data-structure/property-reference/default-properties
and https://docs.mixpanel.com/docs/best-practices/server-side-best-practices, read 2026-08-21.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

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
