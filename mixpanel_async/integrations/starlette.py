"""Mixpanel in a Starlette app.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=lambda request: request.session.get("user"))
app = Starlette(routes=routes, lifespan=mixpanel.lifespan, middleware=[Middleware(mixpanel.middleware)])

async def home(request: Request) -> Response:
    mp = await mixpanel.bound(request)
    await mp.track("Page viewed")
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

try:
    from starlette.requests import HTTPConnection
    from starlette.routing import Mount
    from starlette.types import ASGIApp, Message, Receive, Scope, Send
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "starlette":
        raise
    raise ImportError('Starlette needs an extra: pip install "mixpanel-async[starlette]"', name=error.name) from error

from mixpanel_async import BoundMixpanel

from ._base import CURRENT, BaseIntegration, RequestState, current_mixpanel
from ._visits import CookiePolicy, RequestInfo

__all__ = ["CookiePolicy", "MixpanelIntegration", "current_mixpanel"]


class MixpanelIntegration(BaseIntegration[HTTPConnection]):
    """One Mixpanel client for an app, seen by each request through its own visitor.

    Three things connect it: `lifespan`, `middleware`, and `bound` in the handlers. A browser gets the cookie with its
    anonymous id with the first response to a request that asked for `bound`.

    Args:
        client: makes the client, each time the app starts; by default from the environment. Or a client, which the
            lifespan starts and closes, and which serves one start only. Either must know the project's `id_merge`.
        user_id: given the request, the id of the user who is signed in, or None; a plain or an `async` function. Called
            once in a request that asks for `bound`, after the middleware of the app has run.
        consent: given the request, whether its visitor may be tracked; plain or `async`. If not, the bound client does
            nothing, no cookie is set, and those that the browser has are taken back. None: everybody may be.
        cookie: where the anonymous id is kept.
        trusted_proxies: how many proxies there are in front of the app, each of which adds to `X-Forwarded-For`, 0 to
            100; or the networks that they are in, such as `["10.0.0.0/8"]`. With 0, the default, no such header is
            believed.
        geolocate: pass the visitor's address to Mixpanel, which keeps the place and not the address.
        track_requests: the name of an event to track for each request that a route was found for, or None. Its
            properties are `method`, `path` (of the route, without its parameters' values), `status` and `duration` in
            seconds.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002  what a lifespan is given
        """The app's lifespan, or a part of it: `async with mixpanel.lifespan(app): yield`.

        Raises:
            ConfigurationError: if the client does not know the project's `id_merge`.
            ClientClosedError: if a client that was given, and not made, has been closed.
        """
        async with self._open():
            yield

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """The ASGI middleware: `app.add_middleware(mixpanel.middleware)`. Where it stands does not matter."""
        return _Middleware(self, app)

    async def bound(self, request: HTTPConnection) -> BoundMixpanel:
        """The client bound to the request's visitor and user; the same for each call in a request.

        In a WebSocket it knows visitor and user, but cannot give the visitor a cookie.

        Raises:
            RuntimeError: if the app has not started, or lacks the middleware.
            ValidationError: if `user_id` gave something else than text or None.
        """
        return await self._bound(request)

    async def _bound(self, request: HTTPConnection, user_id: str | None = None) -> BoundMixpanel:
        exchange: RequestState | None = request.scope.get(self._key)
        if exchange is None:
            if request.scope["type"] == "http":
                raise RuntimeError("the app lacks the middleware: app.add_middleware(mixpanel.middleware)")
            exchange = request.scope[self._key] = RequestState()
        if exchange.visit is None:
            visit = await self._visit(request, _facts(request), user_id)
            # Whoever asked at the same time gets the same.
            exchange.visit = exchange.visit or visit
        return exchange.visit.bound

    @property
    def _key(self) -> str:
        # Of its own: a mounted app may have another integration, with another project.
        return f"mixpanel_async.{id(self)}"

    async def handle(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app answer one HTTP request."""
        exchange = scope[self._key] = RequestState()
        started = time.perf_counter()

        async def send_with_cookies(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message = await self._begun(exchange, scope, message)
            await send(message)

        token = CURRENT.set(exchange)
        try:
            await app(scope, receive, send_with_cookies)
            self._check_told(exchange)
        finally:
            CURRENT.reset(token)
            if self._event_name is not None and "endpoint" in scope:
                duration = time.perf_counter() - started
                self._track_request(exchange, method=scope["method"], path=_path(scope), duration=duration)

    async def _begun(self, exchange: RequestState, scope: Scope, message: Message) -> Message:
        if self._event_name is not None and exchange.visit is None and "endpoint" in scope:
            try:
                await self._bound(HTTPConnection(scope))
            except Exception as error:  # noqa: BLE001  the app's own functions; a response is under way
                self._warn("a request was not tracked: %s", type(error).__name__)
        if exchange.visit is None:
            return message
        headers = list(message.get("headers", ()))
        cache_control = b",".join(value for name, value in headers if name.lower() == b"cache-control")
        cookies = exchange.visit.cookies(cache_control.decode("latin-1"))
        return {**message, "headers": [*headers, *((b"set-cookie", cookie.encode("latin-1")) for cookie in cookies)]}


class _Middleware:
    """Sets the cookies on the responses of HTTP requests; everything else passes untouched."""

    def __init__(self, integration: MixpanelIntegration, app: ASGIApp) -> None:
        self._integration = integration
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._integration.handle(self._app, scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _facts(request: HTTPConnection) -> RequestInfo:
    headers = request.headers
    return RequestInfo(
        cookies=request.cookies,
        peer=request.client.host if request.client else None,
        scheme=request.scope.get("scheme", "http"),
        forwarded_for=",".join(headers.getlist("x-forwarded-for")),
        forwarded_proto=headers.get("x-forwarded-proto", ""),
        user_agent=headers.get("user-agent", ""),
        referrer=headers.get("referer", ""),
    )


def _path(scope: Scope) -> str:
    """The path as the routes declare it, without the values of its parameters; of a mount, where it stands."""
    root, route = str(scope.get("root_path", "")), scope.get("route")
    template = getattr(route, "path", None)
    if not isinstance(template, str) or isinstance(route, Mount):
        return root
    path = scope["path"].removeprefix(root)
    regex = getattr(route, "path_regex", None)
    if regex is None or regex.match(path):
        return root + template
    # FastAPI's routers do not tell a route their prefix: it is what stands before the route's own part.
    prefix = path.split("/")[: -template.count("/")]
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    return root + "/".join(f"{{{names[part]}}}" if part in names else part for part in prefix) + template
