"""Mixpanel in an aiohttp server.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=current_user)
mixpanel.setup(app)

async def home(request: web.Request) -> web.Response:
    await request[MIXPANEL].track("Page viewed")
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Final

try:
    from aiohttp import web
    from aiohttp.typedefs import Handler, Middleware
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "aiohttp":
        raise
    raise ImportError('aiohttp needs an extra: pip install "mixpanel-async[aiohttp]"', name=error.name) from error

from mixpanel_async import BoundMixpanel

from ._base import CURRENT, BaseIntegration, RequestState, current_mixpanel
from ._visits import CookiePolicy, RequestInfo

__all__ = ["MIXPANEL", "CookiePolicy", "MixpanelIntegration", "current_mixpanel"]

MIXPANEL: Final = web.RequestKey("mixpanel_async", BoundMixpanel)
"""`request[MIXPANEL]` is the client bound to the request's visitor and user."""
_EXCHANGES: Final = web.RequestKey("mixpanel_async_exchanges", dict[int, RequestState])


class MixpanelIntegration(BaseIntegration[web.Request]):
    """One Mixpanel client for an app, seen by each request through its own visitor.

    `setup` connects it; then `request[MIXPANEL]` is there for every request that a route was found for, sub-apps
    included, and the browser gets the cookie with its anonymous id with the response.

    Args:
        client: makes the client, each time the app starts; by default from the environment. Or a client, which the app
            starts and closes, and which serves one start only. Either must know the project's `id_merge`.
        user_id: given the request, the id of the user who is signed in, or None; a plain or an `async` function. Called
            once a request, after the middlewares that were added to the app before `setup`.
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

    def setup(self, app: web.Application) -> None:
        """Give the app the client and its requests their visitors. Call it after other middlewares are added.

        The client closes after the cleanup contexts that are added later, so that those may still track.
        """
        app.cleanup_ctx.append(self.cleanup_context)
        app.middlewares.append(self._middleware())
        app.on_response_prepare.append(self._prepare)

    async def cleanup_context(self, app: web.Application) -> AsyncIterator[None]:  # noqa: ARG002  what it is given
        """The client for as long as the app runs; `setup` adds it.

        Raises:
            ConfigurationError: if the client does not know the project's `id_merge`.
            ClientClosedError: if a client that was given, and not made, has been closed.
        """
        async with self._open():
            yield

    def _middleware(self) -> Middleware:
        @web.middleware
        async def visited(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.match_info.http_exception is not None:
                return await handler(request)
            exchange = RequestState()
            # By integration: a sub-app may have another one, with another project.
            request.setdefault(_EXCHANGES, {})[id(self)] = exchange
            started = time.perf_counter()
            token = CURRENT.set(exchange)
            try:
                exchange.visit = await self._visit(request, _facts(request))
                request[MIXPANEL] = exchange.visit.bound
                response = await handler(request)
            except web.HTTPException as error:
                exchange.status = error.status
                raise
            else:
                exchange.status = response.status
                if response.prepared:
                    self._check_told(exchange)
                return response
            finally:
                CURRENT.reset(token)
                if self._event_name is not None:
                    duration = time.perf_counter() - started
                    self._track_request(exchange, method=request.method, path=_path(request), duration=duration)

        return visited

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        exchange = request.get(_EXCHANGES, {}).get(id(self))
        if exchange is None or exchange.visit is None or isinstance(response, web.WebSocketResponse):
            return
        for cookie in exchange.visit.cookies(",".join(response.headers.getall("Cache-Control", []))):
            response.headers.add("Set-Cookie", cookie)


def _facts(request: web.Request) -> RequestInfo:
    headers = request.headers
    return RequestInfo(
        cookies=request.cookies,
        peer=request.remote,
        scheme=request.scheme,
        forwarded_for=",".join(headers.getall("X-Forwarded-For", [])),
        forwarded_proto=headers.get("X-Forwarded-Proto", ""),
        user_agent=headers.get("User-Agent", ""),
        referrer=headers.get("Referer", ""),
    )


def _path(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "" if resource is None else resource.canonical
