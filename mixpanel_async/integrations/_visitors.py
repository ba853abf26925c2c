"""Visitor of a request: anonymous id in a cookie, and the cookies of the response. Pure.

The visitor cookie contains only an anonymous id, so that other services of the app can read it: a UUID of version 4, or
the id of the browser SDK, whose own cookie has precedence (`_browser_sdk.py`). Signing in adds a second cookie with the
suffix `_user`. It contains a digest of anonymous id and user id, so that it does not show the user id. With it the
integration neither joins the same ids twice nor joins two users who share a browser.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

from mixpanel_async import AsyncMixpanel, BoundMixpanel, Checker, ConfigurationError, IdMerge, ValidationError

from ._browser_sdk import (
    PageCookies,
    cookie_value,
    page_cookie_domain,
    page_cookie_value,
    read_page_cookies,
)
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
_PREFIX: Final = "$device:"
_MAX_AGE: Final = 400 * 86_400.0
_SHARED_CACHE: Final = re.compile(r"(?:^|[,\s])(?:public|s-maxage)(?:[=,\s]|$)", re.IGNORECASE)
_NO_SHARED_CACHE: Final = re.compile(r"(?:^|[,\s])(?:private|no-store)(?:[,\s]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CookiePolicy:
    """Settings of the cookie that stores the anonymous id. The cookie is always `HttpOnly` and `SameSite=Lax`.

    If a page uses Mixpanel's browser SDK with cookies, its default, the visitor in the SDK's cookie has precedence, so
    that page and server send the same anonymous id. If the id of the visitor changes in the server, as in `sign_out`,
    an existing cookie of the SDK is replaced, which has the effect of the SDK's `reset()`.

    Args:
        name: name of the cookie. The cookie for the signed-in user has this name with the suffix `_user`.
        max_age: lifetime in seconds from the first visit; 1 to 34,560,000 (400 days, the limit of browsers).
        domain: domain whose subdomains share the cookie, such as `shop.example`; None restricts it to the host.
        path: path prefix for which browsers send the cookie.
        secure: True always sets `Secure`, False never, None sets it for requests over https.
        browser_sdk: whether to write the SDK's cookie if a request has none, so that page and server agree from the
            first page on. Scripts can read it; `name`, `domain` and `path` do not apply to it, and `Secure` is set only
            with `secure=True`, which needs `secure_cookie: true` in the SDK.
        browser_sdk_domain: domain of the SDK's cookie. "auto" chooses as the SDK does by default; None restricts the
            cookie to the host, for pages with `cross_subdomain_cookie: false`; else the SDK's `cookie_domain`.

    Raises:
        ConfigurationError: if a value is out of bounds, or the name has a prefix (`__Secure-`, `__Host-`) whose
            conditions are not met.
    """

    name: str = "mp_visitor"
    max_age: float = 365 * 86_400.0
    domain: str | None = None
    path: str = "/"
    secure: bool | None = None
    browser_sdk: bool = False
    browser_sdk_domain: str | None = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"name must be 1 to 100 characters that are valid in a cookie name, not {self.name!r}"
            )
        is_number = isinstance(self.max_age, (int, float)) and not isinstance(self.max_age, bool)
        if not is_number or not math.isfinite(self.max_age) or not 1 <= self.max_age <= _MAX_AGE:
            raise ConfigurationError(f"max_age must be between 1 and {_MAX_AGE:.0f} seconds, not {self.max_age!r}")
        for name, kind in (("domain", "domain"), ("browser_sdk_domain", "domain"), ("path", "path")):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and _DOMAIN_OR_PATH.fullmatch(value)):
                raise ConfigurationError(f"{name} must be a valid cookie {kind}, not {value!r}")
        if not isinstance(self.browser_sdk, bool):
            raise ConfigurationError(f"browser_sdk must be True or False, not {self.browser_sdk!r}")
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
        """Return the value of a `Set-Cookie` header. The value None deletes the cookie.

        Args:
            name: name of the cookie.
            value: value of the cookie; None deletes it.
            is_https: whether the request came over https, for `Secure`.
        """
        parts = [f"{name}={value or ''}", f"Path={self.path}", f"Max-Age={0 if value is None else int(self.max_age)}"]
        if self.domain is not None:
            parts.append(f"Domain={self.domain}")
        if self.secure or (self.secure is None and is_https):
            parts.append("Secure")
        return "; ".join([*parts, "HttpOnly", "SameSite=Lax"])

    def page_header(self, name: str, value: str | None, *, host: str) -> str:
        """Return the value of a `Set-Cookie` header for the SDK's cookie. The value None deletes it.

        Args:
            name: name of the cookie.
            value: value of the cookie; None deletes it.
            host: host of the request, from which the domain is chosen.
        """
        parts = [f"{name}={value or ''}", "Path=/", f"Max-Age={0 if value is None else int(self.max_age)}"]
        domain = page_cookie_domain(host) if self.browser_sdk_domain == "auto" else self.browser_sdk_domain
        if domain is not None:
            parts.append(f"Domain={domain}")
        if self.secure:
            parts.append("Secure")
        return "; ".join([*parts, "SameSite=Lax"])


class RequestInfo(NamedTuple):
    """Visitor-related parts of a request. Missing headers are empty.

    Repeated headers are joined by commas, `Cookie` by semicolons.
    """

    peer: str | None
    scheme: str
    cookie: str = ""
    forwarded_for: str = ""
    forwarded_proto: str = ""
    host: str = ""
    forwarded_host: str = ""
    user_agent: str = ""
    referrer: str = ""


class _Client(NamedTuple):
    """Client of the app, with what all its requests share.

    Args:
        client: the client.
        token: its token.
        is_simplified: whether the project joins device ids.
        bind: binds the client to the properties of the headers, which many requests share.
    """

    client: AsyncMixpanel
    token: str
    is_simplified: bool
    bind: Callable[[str, str], BoundMixpanel]


_Cookies = tuple[str | None, str | None]
"""Values of the visitor's cookie and of the one for the signed-in user; None for one that is not set."""


class VisitorSession:
    """Visitor of one request, and the changes to the visitor's cookies.

    Args:
        bound: client bound to the visitor.
        policy: cookie settings.
        received: values of the two cookies in the request.
        is_https: returns whether the browser uses https.
        page: cookie of the browser SDK; None if it is not used.
        has_replaced: the request has a visitor cookie whose value is not an anonymous id.

    Attributes:
        bound: client bound to the visitor.
        has_replaced: the visitor has a new id instead of the value of the cookie.
    """

    __slots__ = ("_is_https", "_known", "_page", "_policy", "_received", "bound", "has_replaced")

    def __init__(
        self,
        bound: BoundMixpanel,
        policy: CookiePolicy,
        received: _Cookies,
        is_https: Callable[[], bool],
        page: _PageCookie | None = None,
        *,
        has_replaced: bool = False,
    ) -> None:
        self.bound = bound
        self.has_replaced = has_replaced
        self._policy = policy
        self._is_https = is_https
        self._page = page
        self._known = self._received = received

    def begin_response(self) -> bool:
        """Note that the response begins now. Return whether it may need `headers`; most responses do not."""
        self._known = known = self.bound.device_id, self.bound.link
        return self._page is not None or known != self._received

    def headers(self, read_cache_control: Callable[[], str]) -> list[tuple[str, str]]:
        """Return the headers to add to a response that begins now: `Set-Cookie` and `Cache-Control`.

        An id must not reach other visitors. So a response for shared caches gets no cookies, and one with cookies
        becomes private: shared caches may store others too, with their cookies (RFC 9111, 3 and 7.3).

        Args:
            read_cache_control: returns the `Cache-Control` header of the response.
        """
        headers = [("Set-Cookie", cookie) for cookie in self._changes()]
        cache_control = read_cache_control() if headers else ""
        if _SHARED_CACHE.search(cache_control):
            return []
        if headers and not _NO_SHARED_CACHE.search(cache_control):
            headers.append(("Cache-Control", "private"))
        return headers

    def _changes(self) -> Iterator[str]:
        names = (self._policy.name, self._policy.link_name)
        for name, received, current in zip(names, self._received, self._known, strict=True):
            if current != received:
                yield self._policy.header(name, current, is_https=self._is_https())
        if self._page is not None:
            yield from self._page.changes(self._policy, self.bound.device_id)

    def cookie_not_sent(self) -> bool:
        """Return whether the cookie values changed after the response began."""
        return self._known != (self.bound.device_id, self.bound.link)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PageCookie:
    """Cookie of the browser SDK in one request.

    Args:
        found: the SDK's cookies.
        received: the id in it that the server has bound; None if it has none.
        is_simplified: whether the project joins device ids.
        host: host of the page.
    """

    found: PageCookies
    received: str | None
    is_simplified: bool
    host: str

    def changes(self, policy: CookiePolicy, device_id: str | None) -> Iterator[str]:
        """Return the `Set-Cookie` header that makes the page use the id of the server, if it does not yet."""
        name, visitor = self.found.name, self.found.visitor
        if device_id is None:
            # No consent. A cookie that the server does not write is the page's business.
            if policy.browser_sdk and self.found.is_present:
                yield policy.page_header(name, None, host=self.host)
        elif self.received != device_id if visitor is not None and visitor.device_id else self._is_missing(policy):
            value = page_cookie_value(device_id, is_simplified=self.is_simplified)
            yield policy.page_header(name, value, host=self.host)

    def _is_missing(self, policy: CookiePolicy) -> bool:
        # A visitor with an id that cannot be shared stays: the page has chosen it.
        return policy.browser_sdk and self.found.visitor is None and _NAME.fullmatch(self.found.name) is not None


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
        self._name, self._link_name = cookie.name, cookie.link_name
        self._proxies = proxies
        self._geolocate = geolocate
        self._sign_in_timeout = sign_in_timeout
        self._silent = AsyncMixpanel("none", enabled=False).bind()
        self._user_agent = lru_cache(_CACHE_SIZE)(user_agent_properties)
        self._referrer = lru_cache(_CACHE_SIZE)(referrer_properties)
        self._shared: _Client | None = None

    def with_consent(self, client: AsyncMixpanel, info: RequestInfo, user_id: str | None) -> VisitorSession:
        """Return the session of a visitor who may be tracked, unless the visitor has opted out in the page."""
        shared_client = self._shared
        if shared_client is None or shared_client.client is not client:
            shared_client = self._shared = self._share(client)
        _, token, is_simplified, bind = shared_client
        found = read_page_cookies(token, info.cookie)
        if found.is_opted_out:
            return self.without_consent(client, info)
        visitor = found.visitor
        received = self._received(info.cookie)
        known = received[0] or ""
        shared = None if visitor is None else visitor.server_id(known, is_simplified=is_simplified)
        own = shared or _valid_id(known, is_simplified=is_simplified)
        device_id = own or client.new_device_id()
        is_same_device = own == known or device_id.removeprefix(_PREFIX) == known.removeprefix(_PREFIX)
        ip = self._proxies.client_ip(info.peer, info.forwarded_for) if self._geolocate else None
        bound = bind(info.user_agent[:_MAX_CHARACTERS], info.referrer[:_MAX_CHARACTERS]).bind(
            user_id=user_id,
            device_id=device_id,
            ip=ip,
            link=received[1] if is_same_device else None,
            last_user_id=None if visitor is None else visitor.user_id,
        )
        page = self._page(client, info, found, shared)
        has_replaced = own is None and known != ""
        is_https = partial(self._is_https, info)
        return VisitorSession(bound, self._cookie, received, is_https, page, has_replaced=has_replaced)

    def without_consent(self, client: AsyncMixpanel, info: RequestInfo) -> VisitorSession:
        """Return the session of a visitor without consent: nothing is sent, and existing cookies are deleted."""
        page = self._page(client, info, read_page_cookies(client.token, info.cookie), None)
        silenced = self._silent.silenced()
        return VisitorSession(silenced, self._cookie, self._received(info.cookie), partial(self._is_https, info), page)

    def untracked(self) -> VisitorSession:
        """Return the session of a request that cannot be tracked: nothing is sent, and existing cookies stay."""
        return VisitorSession(self._silent.silenced(), self._cookie, (None, None), lambda: False)

    def _received(self, header: str) -> _Cookies:
        # A browser that does not delete expired cookies sends them empty.
        return cookie_value(header, self._name) or None, cookie_value(header, self._link_name) or None

    def _share(self, client: AsyncMixpanel) -> _Client:
        is_simplified = client.id_merge is IdMerge.SIMPLIFIED
        return _Client(client, client.token, is_simplified, lru_cache(_CACHE_SIZE)(partial(self._bind, client)))

    def _bind(self, client: AsyncMixpanel, user_agent: str, referrer: str) -> BoundMixpanel:
        properties = {**self._user_agent(user_agent), **self._referrer(referrer)}
        return client.bind(properties=properties, sign_in_timeout=self._sign_in_timeout)

    def _is_https(self, info: RequestInfo) -> bool:
        if info.scheme in {"https", "wss"}:
            return True
        is_proxied = info.forwarded_proto and self._proxies.is_proxied_by(info.peer)
        return bool(is_proxied) and info.forwarded_proto.rpartition(",")[2].strip().lower() == "https"

    def _page(
        self, client: AsyncMixpanel, info: RequestInfo, found: PageCookies, shared: str | None
    ) -> _PageCookie | None:
        if not ((found.is_present or self._cookie.browser_sdk) and client.enabled):
            return None
        is_proxied = info.forwarded_host and self._proxies.is_proxied_by(info.peer)
        forwarded = info.forwarded_host.rpartition(",")[2].strip() if is_proxied else ""
        return _PageCookie(
            found=found,
            received=shared,
            is_simplified=client.id_merge is IdMerge.SIMPLIFIED,
            host=forwarded or info.host,
        )


def _valid_id(text: str, *, is_simplified: bool) -> str | None:
    """Return the anonymous id in the visitor cookie, as the project needs it; None if it is not valid."""
    device_id = text.removeprefix(_PREFIX)
    if not _UUID4.fullmatch(device_id):
        return None
    return device_id if is_simplified else text


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
