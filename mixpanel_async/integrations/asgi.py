"""ASGI integration, for any ASGI app or framework.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=lambda scope: scope["session"].get("user"))
app = mixpanel.wrap(app)

async def app(scope, receive, send):
    mp = await mixpanel.bound(scope)
    await mp.track("Page viewed")

The Starlette and FastAPI integrations build on `ScopeIntegration`.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property, partial
from typing import Any, Final, TypeVar, cast

from mixpanel_async import AsyncMixpanel, BoundMixpanel, ConfigurationError, MixpanelException

from ._base import (
    CURRENT_REQUEST,
    SIGN_IN_TIMEOUT,
    BaseIntegration,
    GetUserId,
    HasConsent,
    MakeClient,
    RequestState,
    current_mixpanel,
)
from ._lifespan import ASGIApp, LifespanApp, Message, Receive, Scope, Send
from ._tracking_proxy import TrackingProxy
from ._visitors import CookiePolicy, RequestInfo

__all__ = ["CookiePolicy", "MixpanelIntegration", "TrackingProxy", "current_mixpanel"]

R = TypeVar("R")

_COOKIE: Final = CookiePolicy()
# Seconds to deliver after a request if the server runs no lifespan.
_DELIVERY_TIMEOUT: Final = 3.0
_FIELDS: Final = {
    b"cookie": "cookie",
    b"x-forwarded-for": "forwarded_for",
    b"x-forwarded-proto": "forwarded_proto",
    b"host": "host",
    b"x-forwarded-host": "forwarded_host",
    b"user-agent": "user_agent",
    b"referer": "referrer",
}
"""Fields of `RequestInfo` by header."""


class ScopeIntegration(BaseIntegration[R]):
    """Part of the integrations that ASGI frameworks share: the middleware and the bound client of a scope."""

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """ASGI middleware: `app.add_middleware(mixpanel.middleware)`. Its position does not matter.

        Args:
            app: the ASGI app.
        """
        return _Middleware(self, app)

    async def handle(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for one HTTP request and add the visitor's cookies to its response.

        Args:
            app: the ASGI app.
            scope: scope of the request.
            receive: receives the messages of the server.
            send: sends messages to the server.
        """
        state = scope[self._key] = RequestState()
        status = 500
        started = time.perf_counter()

        async def send_with_cookies(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if state.session is None and self._is_tracked(scope):
                    await self._bind(scope)
                message = self._with_cookies(state, message)
            await send(message)

        token = CURRENT_REQUEST.set(state)
        try:
            await app(scope, receive, send_with_cookies)
            self._warn_if_cookie_not_sent(state)
        finally:
            CURRENT_REQUEST.reset(token)
            if self._event_name is not None and self._is_tracked(scope):
                path = partial(self._route, scope)
                self._track_request(state, path, method=scope["method"], status=status, started=started)

    @abstractmethod
    def _request(self, scope: Scope) -> R:
        """Return the request that the app's hooks take."""

    @abstractmethod
    def _matches_route(self, scope: Scope) -> bool:
        """Return whether the request matches a route of the app."""

    @abstractmethod
    def _route(self, scope: Scope) -> str:
        """Return the path declared by the route of the request."""

    async def _bind(self, scope: Scope, user_id: object = None) -> BoundMixpanel:
        state: RequestState | None = scope.get(self._key)
        if state is None:
            if scope["type"] == "lifespan":
                raise RuntimeError("a lifespan has no visitor; use the client of the integration")
            if scope["type"] == "http":
                raise RuntimeError(
                    "the app lacks the Mixpanel middleware; add it with app.add_middleware(mixpanel.middleware)"
                )
            state = scope[self._key] = RequestState()
        if state.session is not None:
            return state.session.bound
        session = await self._start_session(scope, request_info, self._request, user_id)
        # A concurrent call in the same request may have stored its session first.
        return state.keep(session).bound

    @cached_property
    def _key(self) -> str:
        # Per integration: a mounted app may have another integration, for another project.
        return f"mixpanel_async.{id(self)}"

    def _is_tracked(self, scope: Scope) -> bool:
        return self._event_name is not None and self._matches_route(scope)

    def _with_cookies(self, state: RequestState, message: Message) -> Message:
        """Return the start message of a response with the visitor's cookies."""
        session = state.session
        if session is None or not session.begin_response():
            return message
        headers = list(message.get("headers", ()))
        for name, value in self._response_headers(session, partial(_cache_control, headers)):
            headers.append((name.lower().encode(), value.encode("latin-1")))
        return {**message, "headers": headers}


class MixpanelIntegration(ScopeIntegration[Scope]):
    """One Mixpanel client for an ASGI app; each request uses it bound to its visitor.

    Connect it with `wrap`, and use `bound` in the handlers. The first response to a request that used `bound` sets the
    cookie with the visitor's anonymous id.

    The app always starts. If the client cannot be created or started, the error is logged and calls do nothing.

    Example:
        ```python
        from typing import Any

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.asgi import MixpanelIntegration

        mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN", id_merge="simplified"))


        async def home(scope: dict[str, Any], receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                mp = await mixpanel.bound(scope)
                await mp.track("Page viewed", {"page": scope["path"]})
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"hello"})


        app = mixpanel.wrap(home)
        ```

    Args:
        client: function that creates the client at each start of the app; by default from the environment. Or a client,
            which serves one start only. The client needs `id_merge`.
        user_id: plain or `async` function from the scope of the request to the id of the signed-in user, or None.
            An int or UUID is sent as text. Called once per request, at the first use of `bound`, so that it sees what
            the app's middleware has added. If it raises, or returns anything else, the request is tracked without a
            user and a warning is logged.
        consent: plain or `async` function from the scope to whether its visitor may be tracked. Without consent, the
            bound client does nothing, no cookie is set, and existing cookies are deleted. None tracks every visitor.
            If it raises, or returns anything but a bool, nothing is tracked either, but existing cookies stay.
        cookie: settings of the cookie that stores the anonymous id.
        trusted_proxies: number of proxies in front of the app that each append to `X-Forwarded-For`, 0 to 100; or
            their networks, such as `["10.0.0.0/8"]`. With 0, the default, forwarding headers are ignored.
        geolocate: whether to pass the visitor's IP address to Mixpanel, which stores the location, not the address.
        track_requests: name of an event to track for each request that matches a route; None tracks no requests. Its
            properties are `method`, `path` (of the route, without the values of its parameters), `status` and
            `duration` in seconds.
        sign_in_timeout: seconds that `sign_in` waits for Mixpanel, 0.001 to 60. After that, or if Mixpanel does not
            accept the identity call, `sign_in` queues its event and returns: an outage delays the event, but does not
            fail the request. None waits as long as the client's `identity_retry` allows, and raises.
        route: function from the scope to the path of the route, for `track_requests`; None means that the request is
            not tracked. Called after the app. The default is the path template that Litestar adds to the scope.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        user_id: GetUserId[Scope] | None = None,
        consent: HasConsent[Scope] | None = None,
        cookie: CookiePolicy = _COOKIE,
        trusted_proxies: int | Sequence[str] = 0,
        geolocate: bool = True,
        track_requests: str | None = None,
        sign_in_timeout: float | None = SIGN_IN_TIMEOUT,
        route: Callable[[Scope], str | None] | None = None,
    ) -> None:
        super().__init__(
            client,
            user_id=user_id,
            consent=consent,
            cookie=cookie,
            trusted_proxies=trusted_proxies,
            geolocate=geolocate,
            track_requests=track_requests,
            sign_in_timeout=sign_in_timeout,
        )
        if route is not None and not callable(route):
            raise ConfigurationError(f"route must be callable or None, not {type(route).__name__}")
        self._find_route = _path_template if route is None else route

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Add the middleware and the lifespan to an app: `app = mixpanel.wrap(app)`.

        The client opens before the lifespan of the app and closes after it. An app without a lifespan, such as
        Django, needs nothing else. Wrap the outermost app, so that the server runs its lifespan.

        If the server runs no lifespan, the client opens at the first request, and each request ends with a delivery.

        Args:
            app: the ASGI app.

        Returns:
            An ASGI app.
        """
        return LifespanApp(self.middleware(app), self)

    async def bound(self, scope: Mapping[str, object]) -> BoundMixpanel:
        """Return the client bound to the request's visitor and user. All calls in one request return the same client.

        In a WebSocket the client is bound to visitor and user, but cannot set a cookie.

        Args:
            scope: the ASGI scope of the request, such as `request.scope` in Quart and Litestar.

        Raises:
            RuntimeError: if the app is not wrapped.
        """
        return await self._bind(cast("Scope", scope))

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the client while the app runs, for apps that call this from a lifespan of their own.

        An error is logged, and the app runs without tracking.
        """
        async with self._open_or_disable():
            yield

    def open_late(self) -> None:
        """Open the client at the first request, if the server has run no lifespan. `wrap` calls this."""
        self._make_or_disable()

    async def deliver(self) -> None:
        """Deliver the waiting records after a request, if the server runs no lifespan. `wrap` calls this."""
        # The app may have closed the client, which has then delivered.
        with suppress(MixpanelException):
            await self.client.flush(_DELIVERY_TIMEOUT)

    def _request(self, scope: Scope) -> Scope:
        return scope

    def _matches_route(self, scope: Scope) -> bool:
        try:
            return bool(self._find_route(scope))
        except Exception as error:  # noqa: BLE001  the app's function may raise anything
            self._warn("request_not_tracked", "request not tracked: route raised %s", type(error).__name__)
            return False

    def _route(self, scope: Scope) -> str:
        return self._find_route(scope) or ""


class _Middleware:
    """Middleware for HTTP requests; passes WebSocket and lifespan scopes through."""

    def __init__(self, integration: ScopeIntegration[Any], app: ASGIApp) -> None:
        self._integration = integration
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._integration.handle(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _cache_control(headers: Iterable[tuple[bytes, bytes]]) -> str:
    return b",".join(value for name, value in headers if name.lower() == b"cache-control").decode("latin-1")


def request_info(scope: Scope) -> RequestInfo:
    """Return the visitor-related parts of an ASGI request."""
    texts: dict[str, str] = {}
    for name, value in scope["headers"]:
        field = _FIELDS.get(name.lower())
        if field is not None:
            text = value.decode("latin-1")
            separator = ";" if field == "cookie" else ","
            texts[field] = f"{texts[field]}{separator}{text}" if field in texts else text
    peer = scope.get("client")
    return RequestInfo(peer=peer[0] if peer else None, scheme=scope.get("scheme", "http"), **texts)


def _path_template(scope: Scope) -> str | None:
    template = scope.get("path_template")
    return template if isinstance(template, str) and template else None
