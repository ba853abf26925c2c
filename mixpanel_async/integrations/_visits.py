"""Who is behind a request: the anonymous id in a cookie, and what the browser is to be told of it. Pure.

The visitor's cookie holds a UUID of version 4 and nothing else, so that other services of the app can read it. A second
one, named the same with `_user` behind, appears when somebody signs in. It says, in a form that only fits this visitor
and tells no user id, whose browser this is, so that nobody is joined twice and no two people are taken for one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from mixpanel_async import AsyncMixpanel, BoundMixpanel, ConfigurationError, ValidationError

from ._headers import Proxies, agent_properties, referrer_properties

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_PLACE: Final = re.compile(r"[!-:<-~]{1,255}", re.ASCII)
# As they are made here; another spelling of an id would be another id.
_UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
# Headers that are seen again and again are read once; no more of one than this counts.
_REMEMBERED: Final = 512
_MOST_CHARACTERS: Final = 1_024
_LONGEST: Final = 400 * 86_400.0
_FOR_MANY: Final = re.compile(r"(?:^|[,\s])(?:public|s-maxage)(?:[=,\s]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CookiePolicy:
    """The cookie that the anonymous id is kept in. It is always `HttpOnly` and `SameSite=Lax`.

    Args:
        name: its name; the one that remembers who signed in has `_user` behind it.
        max_age: seconds from the first visit until it ends; 1 to 34,560,000 (400 days, the most that browsers keep).
        domain: for subdomains to share it, such as `shop.example`; None keeps it to the one host.
        path: where on the host it is sent.
        secure: True: over https only; False: always; None: `Secure` if the visitor came by https.

    Raises:
        ConfigurationError: if a value is out of bounds, or the name has a prefix whose conditions are not met.
    """

    name: str = "mp_visitor"
    max_age: float = 365 * 86_400.0
    domain: str | None = None
    path: str = "/"
    secure: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError("name must be 1 to 100 characters that a cookie's name may have")
        is_number = isinstance(self.max_age, (int, float)) and not isinstance(self.max_age, bool)
        if not is_number or not math.isfinite(self.max_age) or not 1 <= self.max_age <= _LONGEST:
            raise ConfigurationError(f"max_age must be between 1 and {_LONGEST:.0f} seconds")
        for name, value in (("domain", self.domain), ("path", self.path)):
            if value is not None and not (isinstance(value, str) and _PLACE.fullmatch(value)):
                raise ConfigurationError(f"{name} must be text that a cookie's {name} may have")
        if not self.path.startswith("/"):
            raise ConfigurationError("path must begin with a slash")
        if self.name.startswith(("__Secure-", "__Host-")) and not self.secure:
            raise ConfigurationError("a name that begins with __Secure- or __Host- needs secure=True")
        if self.name.startswith("__Host-") and (self.domain is not None or self.path != "/"):
            raise ConfigurationError('a name that begins with __Host- needs path="/" and no domain')

    @property
    def link_name(self) -> str:
        return f"{self.name}_user"

    def header(self, name: str, value: str | None, *, is_https: bool) -> str:
        """A `Set-Cookie` header. None as value takes the cookie back."""
        parts = [f"{name}={value or ''}", f"Path={self.path}", f"Max-Age={0 if value is None else int(self.max_age)}"]
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        if self.secure or (self.secure is None and is_https):
            parts.append("Secure")
        return "; ".join([*parts, "HttpOnly", "SameSite=Lax"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """What a request says of its visitor. Headers that are missing are empty; repeated ones are joined by commas."""

    cookies: Mapping[str, str]
    peer: str | None
    scheme: str
    forwarded_for: str
    forwarded_proto: str
    user_agent: str
    referrer: str


class VisitorSession:
    """One request's visitor.

    Args:
        bound: the client, bound to the visitor.
        policy: of the cookies.
        facts: of the request.
        is_https: whether the visitor came by https.
    """

    __slots__ = ("_is_https", "_policy", "_sent", "_told", "bound")

    def __init__(self, bound: BoundMixpanel, policy: CookiePolicy, facts: RequestInfo, *, is_https: bool) -> None:
        self.bound = bound
        self._policy = policy
        self._is_https = is_https
        self._sent = (facts.cookies.get(policy.name), facts.cookies.get(policy.link_name))
        self._told = self._sent

    def cookies(self, cache_control: str) -> list[str]:
        """The `Set-Cookie` headers for a response that begins now.

        Args:
            cache_control: of the response. One that caches may hand to others must not carry anybody's id.
        """
        self._told = self._kept
        return [] if _FOR_MANY.search(cache_control) else list(self._changes())

    def _changes(self) -> Iterator[str]:
        names = (self._policy.name, self._policy.link_name)
        for name, sent, kept in zip(names, self._sent, self._kept, strict=True):
            if kept != sent:
                yield self._policy.header(name, kept, is_https=self._is_https)

    @property
    def _kept(self) -> tuple[str | None, str | None]:
        return self.bound.device_id, self.bound.link

    def cookie_not_sent(self) -> bool:
        """Whether the browser does not know by now what it should."""
        return self._told != self._kept


class VisitorSessions:
    """Makes visits of requests.

    Args:
        cookie: where the anonymous id is kept.
        proxies: whose word is taken.
        geolocate: pass the visitor's address to Mixpanel, which keeps the place and not the address.

    Raises:
        ConfigurationError: if `cookie` is something else.
    """

    def __init__(self, cookie: CookiePolicy, proxies: Proxies, *, geolocate: bool) -> None:
        if not isinstance(cookie, CookiePolicy):
            raise ConfigurationError(f"cookie must be a CookiePolicy, not {type(cookie).__name__}")
        self._cookie = cookie
        self._proxies = proxies
        self._geolocate = geolocate
        self._agent = lru_cache(_REMEMBERED)(agent_properties)
        self._referrer = lru_cache(_REMEMBERED)(referrer_properties)

    def with_consent(self, client: AsyncMixpanel, facts: RequestInfo, user_id: str | None) -> VisitorSession:
        """The visit of somebody who may be tracked.

        Raises:
            ValidationError: if the user's id is no text.
        """
        if user_id is not None and not isinstance(user_id, str):
            raise ValidationError("user_id", f"must be a string or None, not {type(user_id).__name__}")
        device_id = facts.cookies.get(self._cookie.name, "")
        is_known = _UUID4.fullmatch(device_id) is not None
        ip = self._proxies.client_ip(facts.peer, facts.forwarded_for) if self._geolocate else None
        properties: dict[str, Any] = {
            **self._agent(facts.user_agent[:_MOST_CHARACTERS]),
            **self._referrer(facts.referrer[:_MOST_CHARACTERS]),
        }
        bound = client.bind(
            user_id=user_id or None,
            device_id=device_id if is_known else client.new_device_id(),
            ip=ip,
            properties=properties,
            link=facts.cookies.get(self._cookie.link_name) if is_known else None,
        )
        return self._visit(bound, facts)

    def without_consent(self, client: AsyncMixpanel, facts: RequestInfo) -> VisitorSession:
        """The visit of somebody who may not: nothing is sent, no id is made, and what was kept is taken back."""
        return self._visit(client.bind().silenced(), facts)

    def _visit(self, bound: BoundMixpanel, facts: RequestInfo) -> VisitorSession:
        is_https = facts.scheme in {"https", "wss"}
        if not is_https and facts.forwarded_proto and self._proxies.speak_for(facts.peer):
            is_https = facts.forwarded_proto.rpartition(",")[2].strip().lower() == "https"
        return VisitorSession(bound, self._cookie, facts, is_https=is_https)
