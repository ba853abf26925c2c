"""Visitor of a request: anonymous id in a cookie, and the cookies of the response. Pure.

The visitor cookie contains only a UUID of version 4, so that other services of the app can read it. Signing in adds a
second cookie with the suffix `_user`. It contains a digest of anonymous id and user id, so that it does not show the
user id. With it the integration neither joins the same ids twice nor joins two users who share a browser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from mixpanel_async import AsyncMixpanel, BoundMixpanel, Checker, ConfigurationError, ValidationError

from ._headers import referrer_properties, user_agent_properties

if TYPE_CHECKING:
    from ._proxies import Proxies

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}", re.ASCII)
_DOMAIN_OR_PATH: Final = re.compile(r"[!-:<-~]{1,255}", re.ASCII)
# Only the spelling that the client generates: Mixpanel would treat another spelling as another id.
_UUID4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
# Parsed headers are cached, because the same values repeat. Only a prefix of a header is parsed.
_CACHE_SIZE: Final = 512
_MAX_CHARACTERS: Final = 1_024
_MAX_AGE: Final = 400 * 86_400.0
_SHARED_CACHE: Final = re.compile(r"(?:^|[,\s])(?:public|s-maxage)(?:[=,\s]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CookiePolicy:
    """Settings of the cookie that stores the anonymous id. The cookie is always `HttpOnly` and `SameSite=Lax`.

    Args:
        name: name of the cookie. The cookie for the signed-in user has this name with the suffix `_user`.
        max_age: lifetime in seconds from the first visit; 1 to 34,560,000 (400 days, the limit of browsers).
        domain: domain whose subdomains share the cookie, such as `shop.example`; None restricts it to the host.
        path: path prefix for which browsers send the cookie.
        secure: True always sets `Secure`, False never, None sets it for requests over https.

    Raises:
        ConfigurationError: if a value is out of bounds, or the name has a prefix (`__Secure-`, `__Host-`) whose
            conditions are not met.
    """

    name: str = "mp_visitor"
    max_age: float = 365 * 86_400.0
    domain: str | None = None
    path: str = "/"
    secure: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"name must be 1 to 100 characters that are valid in a cookie name, not {self.name!r}"
            )
        is_number = isinstance(self.max_age, (int, float)) and not isinstance(self.max_age, bool)
        if not is_number or not math.isfinite(self.max_age) or not 1 <= self.max_age <= _MAX_AGE:
            raise ConfigurationError(f"max_age must be between 1 and {_MAX_AGE:.0f} seconds, not {self.max_age!r}")
        for name, value in (("domain", self.domain), ("path", self.path)):
            if value is not None and not (isinstance(value, str) and _DOMAIN_OR_PATH.fullmatch(value)):
                raise ConfigurationError(f"{name} must be a valid cookie {name}, not {value!r}")
        if not self.path.startswith("/"):
            raise ConfigurationError(f"path must begin with a slash: {self.path!r}")
        if self.name.startswith(("__Secure-", "__Host-")) and not self.secure:
            raise ConfigurationError(
                f"a cookie name with the prefix __Secure- or __Host- needs secure=True: {self.name!r}"
            )
        if self.name.startswith("__Host-") and (self.domain is not None or self.path != "/"):
            raise ConfigurationError(
                f'a cookie name with the prefix __Host- needs path="/" and domain=None: {self.name!r}'
            )

    @property
    def link_name(self) -> str:
        """Name of the cookie for the signed-in user."""
        return f"{self.name}_user"

    def header(self, name: str, value: str | None, *, is_https: bool) -> str:
        """Return the value of a `Set-Cookie` header. The value None deletes the cookie."""
        parts = [f"{name}={value or ''}", f"Path={self.path}", f"Max-Age={0 if value is None else int(self.max_age)}"]
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        if self.secure or (self.secure is None and is_https):
            parts.append("Secure")
        return "; ".join([*parts, "HttpOnly", "SameSite=Lax"])


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """Visitor-related parts of a request. Missing headers are empty; repeated headers are joined by commas."""

    cookies: Mapping[str, str]
    peer: str | None
    scheme: str
    forwarded_for: str
    forwarded_proto: str
    user_agent: str
    referrer: str


_NO_INFO: Final = RequestInfo(
    cookies={}, peer=None, scheme="", forwarded_for="", forwarded_proto="", user_agent="", referrer=""
)


class VisitorSession:
    """Visitor of one request, and the changes to the visitor's cookies.

    Args:
        bound: client bound to the visitor.
        policy: cookie settings.
        info: the request.
        is_https: whether the browser uses https.
    """

    __slots__ = ("_is_https", "_known", "_policy", "_received", "bound")

    def __init__(self, bound: BoundMixpanel, policy: CookiePolicy, info: RequestInfo, *, is_https: bool) -> None:
        self.bound = bound
        self._policy = policy
        self._is_https = is_https
        # A client that does not delete expired cookies sends them empty.
        self._received = (info.cookies.get(policy.name) or None, info.cookies.get(policy.link_name) or None)
        self._known = self._received

    def cookies(self, cache_control: str) -> list[str]:
        """Return the `Set-Cookie` headers for a response that begins now.

        Args:
            cache_control: `Cache-Control` header of the response. A response that shared caches may store gets no
                cookies, so that an id does not reach other visitors.
        """
        self._known = self._current
        return [] if _SHARED_CACHE.search(cache_control) else list(self._changes())

    def _changes(self) -> Iterator[str]:
        names = (self._policy.name, self._policy.link_name)
        for name, received, current in zip(names, self._received, self._current, strict=True):
            if current != received:
                yield self._policy.header(name, current, is_https=self._is_https)

    @property
    def _current(self) -> tuple[str | None, str | None]:
        return self.bound.device_id, self.bound.link

    def cookie_not_sent(self) -> bool:
        """Return whether the cookie values changed after the response began."""
        return self._known != self._current


class VisitorSessions:
    """Factory of visitor sessions.

    Args:
        cookie: settings of the cookie that stores the anonymous id.
        proxies: trusted proxies.
        geolocate: whether to pass the visitor's IP address to Mixpanel, which stores the location, not the address.
        sign_in_timeout: as in `AsyncMixpanel.bind`.

    Raises:
        ConfigurationError: if `cookie` is not a CookiePolicy.
    """

    def __init__(
        self, cookie: CookiePolicy, proxies: Proxies, *, geolocate: bool, sign_in_timeout: float | None
    ) -> None:
        if not isinstance(cookie, CookiePolicy):
            raise ConfigurationError(f"cookie must be a CookiePolicy, not {type(cookie).__name__}")
        self._cookie = cookie
        self._proxies = proxies
        self._geolocate = geolocate
        self._sign_in_timeout = sign_in_timeout
        self._silent = AsyncMixpanel("none", enabled=False).bind()
        self._user_agent = lru_cache(_CACHE_SIZE)(user_agent_properties)
        self._referrer = lru_cache(_CACHE_SIZE)(referrer_properties)

    def with_consent(self, client: AsyncMixpanel, info: RequestInfo, user_id: str | None) -> VisitorSession:
        """Return the session of a visitor who may be tracked."""
        device_id = info.cookies.get(self._cookie.name, "")
        is_valid = _UUID4.fullmatch(device_id) is not None
        ip = self._proxies.client_ip(info.peer, info.forwarded_for) if self._geolocate else None
        properties: dict[str, Any] = {
            **self._user_agent(info.user_agent[:_MAX_CHARACTERS]),
            **self._referrer(info.referrer[:_MAX_CHARACTERS]),
        }
        bound = client.bind(
            user_id=user_id,
            device_id=device_id if is_valid else client.new_device_id(),
            ip=ip,
            properties=properties,
            link=(info.cookies.get(self._cookie.link_name) or None) if is_valid else None,
            sign_in_timeout=self._sign_in_timeout,
        )
        return self._session(bound, info)

    def without_consent(self, info: RequestInfo) -> VisitorSession:
        """Return the session of a visitor without consent: nothing is sent, and existing cookies are deleted."""
        return self._session(self._silent.silenced(), info)

    def untracked(self) -> VisitorSession:
        """Return the session of a request that cannot be tracked: nothing is sent, and existing cookies stay."""
        return VisitorSession(self._silent.silenced(), self._cookie, _NO_INFO, is_https=False)

    def _session(self, bound: BoundMixpanel, info: RequestInfo) -> VisitorSession:
        is_https = info.scheme in {"https", "wss"}
        if not is_https and info.forwarded_proto and self._proxies.is_proxied_by(info.peer):
            is_https = info.forwarded_proto.rpartition(",")[2].strip().lower() == "https"
        return VisitorSession(bound, self._cookie, info, is_https=is_https)


def user_id_text(value: object) -> str | None:
    """Return the id that an app's function returned for the user, as text. None and an empty string mean no user.

    Raises:
        ValidationError: if it is neither text, a whole number, nor a UUID, or if Mixpanel rejects it.
    """
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        # Not `str` for a number: a subclass, such as an IntEnum, may have another text.
        value = str(value) if isinstance(value, UUID) else int.__repr__(value)
    if value is None or (isinstance(value, str) and not value):
        return None
    if not isinstance(value, str):
        raise ValidationError("user_id", f"must be a string, an int, a UUID or None, not {type(value).__name__}")
    _check_user_id(value)
    return value


@lru_cache(_CACHE_SIZE)
def _check_user_id(user_id: str) -> None:
    Checker().event(user_id, "Any", user_id=user_id)
