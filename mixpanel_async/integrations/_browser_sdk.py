"""Cookies of Mixpanel's browser SDK: names, values and domain. Pure.

The SDK keeps its visitor in the cookie `mp_<token>_mixpanel`, as URL-encoded JSON with `distinct_id`, `$device_id` and,
after `identify`, `$user_id`. An anonymous `distinct_id` is `$device:` followed by the device id, or in older versions
the device id alone. Source: `mixpanel-persistence.js`, `utils.js` and `gdpr-utils.js` of mixpanel-browser 2.45.0 and
2.83.0.

Everything in these cookies is chosen by the sender. So `$user_id` never says who the visitor is: it only prevents that
a second user takes over the device of the first. An id of another form is ignored, because it could be a user's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final
from urllib.parse import quote, unquote

_PREFIX: Final = "$device:"
_ANY_CASE: Final = re.IGNORECASE | re.ASCII
# The forms of the SDK's ids: a UUID, and the five groups of hex digits of older versions. Not only zeros.
_DEVICE_ID: Final = re.compile(r"(?=[0-9a-f-]{9,100}\Z)(?=[0-]*[1-9a-f])[0-9a-f]+(?:-[0-9a-f]+){4}", _ANY_CASE)
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", _ANY_CASE)
_OPT_OUT: Final = "__mp_opt_in_out_"
_MAX_TOKENS: Final = 16
_CACHE_SIZE: Final = 512
# Browsers limit a cookie to 4,096 bytes.
_MAX_CHARACTERS: Final = 4_096
_MAX_USER_ID: Final = 1_024

# The SDK's rule for the domain of its cookie.
_HOST: Final = re.compile(r"([a-z0-9._-]{1,253})(?::[0-9]{1,5})?", re.ASCII)
_SHORT_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9-]*\.[a-z]+\Z", re.ASCII)
_DOMAIN: Final = re.compile(r"[a-z0-9][a-z0-9-]+\.[a-z.]{2,6}\Z", re.ASCII)
_LONGEST_COUNTRY: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class PageVisitor:
    """Visitor in the SDK's cookie.

    Args:
        device_id: device id without prefix; None if it has a form that is not shared.
        anonymous_id: `distinct_id` of the anonymous visitor; None after `identify`, which replaces it.
        user_id: user of the last `identify`; None for an anonymous visitor.
    """

    device_id: str | None
    anonymous_id: str | None = None
    user_id: str | None = None

    def server_id(self, known_id: str, *, is_simplified: bool) -> str | None:
        """Return the id to bind in the server as the device, so that server and page send the same ids.

        Args:
            known_id: anonymous id in the server's cookie, which remembers the prefix after `identify`.
            is_simplified: whether Mixpanel joins device ids. If not, the anonymous `distinct_id` must be the same.
        """
        device_id = self.device_id
        if device_id is None or is_simplified:
            return device_id
        if self.anonymous_id is not None:
            return self.anonymous_id
        if known_id.removeprefix(_PREFIX) == device_id:
            return known_id
        return f"{_PREFIX}{device_id}" if _UUID.fullmatch(device_id) else device_id


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCookies:
    """The SDK's cookies in one request.

    Args:
        name: name of the visitor's cookie.
        is_present: whether the request has it.
        visitor: the visitor in it; None if there is none, or if the SDK could not read it either.
        is_opted_out: whether the visitor has called `opt_out_tracking`, and the SDK stores that in a cookie.
    """

    name: str
    is_present: bool
    visitor: PageVisitor | None
    is_opted_out: bool


def read_page_cookies(token: str, header: str) -> PageCookies:
    """Return the cookies that the SDK has set for a project.

    Args:
        token: the project's token.
        header: `Cookie` header of the request.
    """
    none = _no_page_cookies(token)
    is_present, may_opt_out = none.name in header, _OPT_OUT in header
    if not (is_present or may_opt_out):
        return none
    value = cookie_value(header, none.name)
    return PageCookies(
        name=none.name,
        is_present=value is not None,
        visitor=parse_page_cookie(value) if value and len(value) <= _MAX_CHARACTERS else None,
        is_opted_out=may_opt_out and cookie_value(header, f"{_OPT_OUT}{token}") == "0",
    )


@lru_cache(_MAX_TOKENS)
def _no_page_cookies(token: str) -> PageCookies:
    return PageCookies(name=f"mp_{token}_mixpanel", is_present=False, visitor=None, is_opted_out=False)


def cookie_value(header: str, name: str) -> str | None:
    """Return the value of the first cookie with this name, as scripts in the page see it; None if there is none."""
    if name in header:
        for pair in header.split(";"):
            found, _, value = pair.partition("=")
            if found.strip() == name:
                return value.strip()
    return None


@lru_cache(_CACHE_SIZE)
def parse_page_cookie(value: str) -> PageVisitor | None:
    """Return the visitor in the value of the SDK's cookie; None if the SDK would not find one there either."""
    try:
        given: object = json.loads(unquote(value, errors="strict"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    distinct_id = given.get("distinct_id")
    if not distinct_id or not isinstance(distinct_id, (str, int)):
        return None
    distinct_id = str(distinct_id)[:_MAX_USER_ID]
    written = given.get("$device_id", distinct_id)
    device_id = written.removeprefix(_PREFIX) if isinstance(written, str) else ""
    if not _DEVICE_ID.fullmatch(device_id):
        return PageVisitor(device_id=None)
    if distinct_id.removeprefix(_PREFIX) == device_id:
        return PageVisitor(device_id=device_id, anonymous_id=distinct_id, user_id=_user_id(given))
    return PageVisitor(device_id=device_id, user_id=_user_id(given) or distinct_id)


def page_cookie_value(server_id: str, *, is_simplified: bool) -> str:
    """Return the value of the SDK's cookie for an anonymous visitor, as the SDK writes it after `reset`.

    Args:
        server_id: the id that the server binds as the device.
        is_simplified: whether Mixpanel joins device ids; see `PageVisitor.server_id`.
    """
    device_id = server_id.removeprefix(_PREFIX)
    distinct_id = f"{_PREFIX}{device_id}" if is_simplified else server_id
    text = json.dumps({"distinct_id": distinct_id, "$device_id": device_id}, separators=(",", ":"))
    return quote(text, safe="!'()*")


def page_cookie_domain(host: str) -> str | None:
    """Return the domain that the SDK chooses for its cookie; None if the cookie is for the host alone.

    The server must choose the same, because a second cookie of the same name would hide one of them.

    Args:
        host: `Host` header of the request, or the host in front of the proxies.
    """
    match = _HOST.fullmatch(host.lower())
    if match is None:
        return None
    name = match[1]
    top = name.rpartition(".")[2]
    is_generic = len(top) > _LONGEST_COUNTRY or top in {"com", "org"}
    found = (_SHORT_DOMAIN if is_generic else _DOMAIN).search(name)
    return None if found is None else found[0]


def _user_id(given: dict[str, Any]) -> str | None:
    value = given.get("$user_id")
    return str(value)[:_MAX_USER_ID] if value and isinstance(value, (str, int)) else None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
