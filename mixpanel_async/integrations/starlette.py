"""Starlette integration.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=lambda request: request.session.get("user"))
app = Starlette(routes=routes, lifespan=mixpanel.lifespan, middleware=[Middleware(mixpanel.middleware)])

async def home(request: Request) -> Response:
    mp = await mixpanel.bound(request)
    await mp.track("Page viewed")
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

try:
    from starlette.requests import HTTPConnection
    from starlette.routing import Mount
    from starlette.types import Scope
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "starlette":
        raise
    raise ImportError(
        'the Starlette integration needs an extra: run pip install ".[starlette]" in a clone of the repository',
        name=error.name,
    ) from error

from mixpanel_async import BoundMixpanel

from ._base import current_mixpanel
from ._visitors import CookiePolicy
from .asgi import ScopeIntegration

__all__ = ["CookiePolicy", "MixpanelIntegration", "current_mixpanel"]


class MixpanelIntegration(ScopeIntegration[HTTPConnection]):
    """One Mixpanel client for an app; each request uses it bound to its visitor.

    Connect it with `lifespan`, `middleware`, and `bound` in the handlers. The first response to a request that used
    `bound` sets the cookie with the visitor's anonymous id.

    Example:
        ```python
        from starlette.applications import Starlette
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse
        from starlette.routing import Route

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.starlette import MixpanelIntegration

        mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN", id_merge="simplified"))


        async def home(request: Request) -> PlainTextResponse:
            mp = await mixpanel.bound(request)
            await mp.track("Page viewed", {"page": "/"})
            return PlainTextResponse("hello")


        app = Starlette(routes=[Route("/", home)], lifespan=mixpanel.lifespan)
        app.add_middleware(mixpanel.middleware)
        ```

    Args:
        client: function that creates the client at each start of the app; by default from the environment. Or a client,
            which the lifespan starts and closes, and which serves one start only. The client needs `id_merge`.
        user_id: plain or `async` function from the request to the id of the signed-in user, or None. An int or UUID is
            sent as text. Called once per request, at the first use of `bound`, after the middleware of the app has
            run. If it raises, or returns anything else, the request is tracked without a user and a warning is logged.
        consent: plain or `async` function from the request to whether its visitor may be tracked. Without consent, the
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

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:  # noqa: ARG002  signature of a lifespan
        """Lifespan of the app. In an existing lifespan, use `async with mixpanel.lifespan(app): yield`.

        Args:
            app: the app, which Starlette passes.

        Raises:
            ConfigurationError: if the client has no `id_merge`.
            ClientClosedError: if the client passed to the constructor has been closed.
        """
        async with self._open():
            yield

    async def bound(self, request: HTTPConnection) -> BoundMixpanel:
        """Return the client bound to the request's visitor and user. All calls in one request return the same client.

        In a WebSocket the client is bound to visitor and user, but cannot set a cookie.

        Args:
            request: the request or WebSocket.

        Raises:
            RuntimeError: if the app lacks the middleware.
        """
        return await self._bind(request.scope)

    def _request(self, scope: Scope) -> HTTPConnection:
        return HTTPConnection(scope)

    def _matches_route(self, scope: Scope) -> bool:
        return "endpoint" in scope

    def _route(self, scope: Scope) -> str:
        return _route_path(scope)


def _route_path(scope: Scope) -> str:
    """Return the path declared by the route, without parameter values; for a mount, the mount's own path."""
    root, route = str(scope.get("root_path", "")), scope.get("route")
    template = getattr(route, "path", None)
    if not isinstance(template, str) or isinstance(route, Mount):
        return root
    path = scope["path"].removeprefix(root)
    regex = getattr(route, "path_regex", None)
    if regex is None or regex.match(path):
        return root + template
    # A FastAPI route does not include its router's prefix, so take the prefix from the path of the request.
    prefix = path.split("/")[: -template.count("/")]
    names = {str(value): name for name, value in scope.get("path_params", {}).items()}
    return root + "/".join(f"{{{names[part]}}}" if part in names else part for part in prefix) + template
