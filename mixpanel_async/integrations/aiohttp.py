"""aiohttp server integration.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=current_user)
mixpanel.setup(app)

async def home(request: web.Request) -> web.Response:
    await request[MIXPANEL].track("Page viewed")
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

try:
    from aiohttp import hdrs, web
    from aiohttp.typedefs import Handler, Middleware
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "aiohttp":
        raise
    raise ImportError(
        'the aiohttp integration needs an extra: run pip install ".[aiohttp]" in a clone of the repository',
        name=error.name,
    ) from error

from mixpanel_async import BoundMixpanel

from ._base import CURRENT_REQUEST, BaseIntegration, RequestState, current_mixpanel
from ._visitors import CookiePolicy, RequestInfo

__all__ = ["MIXPANEL", "CookiePolicy", "MixpanelIntegration", "current_mixpanel"]

MIXPANEL: Final = web.RequestKey("mixpanel_async", BoundMixpanel)
"""Key of the client bound to the request's visitor and user: `request[MIXPANEL]`."""
# At module level: aiohttp cannot create a key in a thread whose call stack has no module.
_STATES: Final = web.RequestKey("mixpanel_async_states", dict[int, RequestState])


class MixpanelIntegration(BaseIntegration[web.Request]):
    """One Mixpanel client for an app; each request uses it bound to its visitor.

    Connect it with `setup`. Every request that matches a route, also in sub-apps, then has `request[MIXPANEL]`, and its
    response sets the cookie with the visitor's anonymous id.

    Example:
        ```python
        from aiohttp import web

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.aiohttp import MIXPANEL, MixpanelIntegration

        mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN", id_merge="simplified"))


        async def home(request: web.Request) -> web.Response:
            await request[MIXPANEL].track("Page viewed", {"page": "/"})
            return web.Response(text="hello")


        app = web.Application()
        app.router.add_get("/", home)
        mixpanel.setup(app)  # start it with web.run_app(app)
        ```

    Args:
        client: function that creates the client at each start of the app; by default from the environment. Or a client,
            which the app starts and closes, and which serves one start only. The client needs `id_merge`.
        user_id: plain or `async` function from the request to the id of the signed-in user, or None. An int or UUID is
            sent as text. Called once per request, after the middlewares added to the app before `setup`. If it raises,
            or returns anything else, the request is tracked without a user and a warning is logged.
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

    def setup(self, app: web.Application) -> None:
        """Add the cleanup context, the middleware and the response signal to the app.

        Call it after adding other middlewares. The client closes after cleanup contexts added later, so that these can
        still track.

        Args:
            app: an application that has not started.
        """
        app.cleanup_ctx.append(self.cleanup_context)
        app.middlewares.append(self._middleware())
        app.on_response_prepare.append(self._add_cookies)

    async def cleanup_context(self, app: web.Application) -> AsyncIterator[None]:  # noqa: ARG002  aiohttp's signature
        """Open the client while the app runs. `setup` adds this cleanup context.

        Args:
            app: the application.

        Raises:
            ConfigurationError: if the client has no `id_merge`.
            ClientClosedError: if the client passed to the constructor has been closed.
        """
        async with self._open():
            yield

    def _middleware(self) -> Middleware:
        @web.middleware
        async def mixpanel_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.match_info.http_exception is not None:
                return await handler(request)
            state = RequestState()
            # Per integration: a sub-app may have another integration, for another project.
            request.setdefault(_STATES, {})[id(self)] = state
            status = 500
            started = time.perf_counter()
            token = CURRENT_REQUEST.set(state)
            try:
                session = state.keep(await self._start_session(request, _request_info, _same))
                request[MIXPANEL] = session.bound
                response = await handler(request)
            except web.HTTPException as error:
                status = error.status
                raise
            else:
                status = response.status
                if response.prepared:
                    self._warn_if_cookie_not_sent(state)
                return response
            finally:
                CURRENT_REQUEST.reset(token)
                if self._event_name is not None:
                    path = partial(_route_path, request)
                    self._track_request(state, path, method=request.method, status=status, started=started)

        return mixpanel_middleware

    async def _add_cookies(self, request: web.Request, response: web.StreamResponse) -> None:
        state = request.get(_STATES, {}).get(id(self))
        if state is None or state.session is None or isinstance(response, web.WebSocketResponse):
            return
        if state.session.begin_response():
            for name, value in self._response_headers(state.session, partial(_cache_control, response)):
                response.headers.add(name, value)


def _cache_control(response: web.StreamResponse) -> str:
    return ",".join(response.headers.getall("Cache-Control", []))


def _request_info(request: web.Request) -> RequestInfo:
    headers = request.headers
    return RequestInfo(
        cookie=";".join(headers.getall(hdrs.COOKIE, ())),
        peer=request.remote,
        scheme=request.scheme,
        forwarded_for=",".join(headers.getall(hdrs.X_FORWARDED_FOR, ())),
        forwarded_proto=headers.get(hdrs.X_FORWARDED_PROTO, ""),
        host=headers.get(hdrs.HOST, ""),
        forwarded_host=headers.get(hdrs.X_FORWARDED_HOST, ""),
        user_agent=headers.get(hdrs.USER_AGENT, ""),
        referrer=headers.get(hdrs.REFERER, ""),
    )


def _same(request: web.Request) -> web.Request:
    return request


def _route_path(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
