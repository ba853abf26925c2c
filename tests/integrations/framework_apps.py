"""The same small app in each framework, for tests that apply to all integrations."""

# Annotations must be evaluated here: FastAPI reads them, and some refer to local variables.
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
import anyio.to_thread
import httpx
from aiohttp import web
from aiohttp.test_utils import TestServer
from fastapi import BackgroundTasks as FastApiTasks
from fastapi import Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse as FastApiResponse
from fastapi.responses import RedirectResponse as FastApiRedirect
from lifespans import lifespan_of
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from mixpanel_async import AsyncMixpanel, BoundMixpanel
from mixpanel_async.integrations import aiohttp, asgi, fastapi, starlette
from mixpanel_async.integrations.starlette import current_mixpanel

USER_HEADER = "X-User"
# `Cache-Control` of a response, what a new visitor gets, and whether a cookie comes with it.
CACHED = [
    ("public, max-age=60", "public, max-age=60", False),
    ("s-maxage=60", "s-maxage=60", False),
    ("max-age=60", "max-age=60, private", True),
    ("no-cache", "no-cache, private", True),
    ("private, max-age=60", "private, max-age=60", True),
    ("no-store", "no-store", True),
]


def user_of(request: Any) -> str | None:
    """Return the signed-in user, which tests pass in a header."""
    found: str | None = request.headers.get(USER_HEADER)
    return found


def user_dependency(request: Request) -> str | None:
    return user_of(request)


@dataclass
class Served:
    """A running app and a factory of HTTP clients for it."""

    browser: Callable[[], httpx.AsyncClient]
    mixpanel: Any


async def described(mp: BoundMixpanel, name: str = "Page viewed") -> dict[str, Any]:
    await mp.track(name)
    assert current_mixpanel() is mp
    return {"user": mp.user_id, "device": mp.device_id}


async def parts() -> AsyncIterator[bytes]:
    yield b"one,"
    await current_mixpanel().track("Stream begun")
    yield b"two"
    await current_mixpanel().track("Stream ended")


def background() -> None:
    current_mixpanel().track_nowait("Background done")


async def deep_task() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(described, current_mixpanel(), "Task done")


def starlette_routes(bound: Callable[[Request], Awaitable[BoundMixpanel]]) -> list[Any]:  # noqa: C901  one per route
    async def page(request: Request) -> Response:
        return JSONResponse(await described(await bound(request)))

    async def sign_in(request: Request) -> Response:
        mp = await bound(request)
        await mp.sign_in(request.path_params["user"], is_new="new" in request.query_params)
        return JSONResponse({"device": mp.device_id})

    async def sign_in_and_leave(request: Request) -> Response:
        await (await bound(request)).sign_in(request.path_params["user"])
        return RedirectResponse("/", 303)

    async def sign_out(request: Request) -> Response:
        mp = await bound(request)
        mp.sign_out()
        return JSONResponse({"device": mp.device_id})

    async def fails(request: Request) -> Response:
        await (await bound(request)).track("About to fail")
        raise StarletteHTTPException(418)

    async def breaks(request: Request) -> Response:
        await (await bound(request)).track("About to break")
        raise RuntimeError("broken")

    async def stream(request: Request) -> Response:
        await bound(request)
        return StreamingResponse(parts())

    async def late(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"one"
            await (await bound(request)).track("Too late for a cookie")

        return StreamingResponse(body())

    async def cached(request: Request) -> Response:
        await described(await bound(request))
        return JSONResponse({}, headers={"Cache-Control": request.query_params["cache"]})

    async def with_background(request: Request) -> Response:
        await bound(request)
        return Response(background=BackgroundTask(background))

    async def with_task(request: Request) -> Response:
        await bound(request)
        await deep_task()
        await anyio.to_thread.run_sync(background)
        return Response()

    async def plain(request: Request) -> Response:
        return Response("untouched")

    return [
        Route("/", page),
        Route("/items/{item}", page),
        Route("/signin/{user}", sign_in),
        Route("/enter/{user}", sign_in_and_leave),
        Route("/signout", sign_out),
        Route("/fails", fails),
        Route("/breaks", breaks),
        Route("/stream", stream),
        Route("/late", late),
        Route("/cached", cached),
        Route("/background", with_background),
        Route("/task", with_task),
        Route("/plain", plain),
        Mount("/sub", routes=[Route("/items/{item}", page)]),
    ]


def starlette_app(mixpanel: starlette.MixpanelIntegration) -> Starlette:
    routes = starlette_routes(mixpanel.bound)
    return Starlette(routes=routes, lifespan=mixpanel.lifespan, middleware=[Middleware(mixpanel.middleware)])


def asgi_app(mixpanel: asgi.MixpanelIntegration) -> ASGIApp:
    """Return an app of a framework that the integration does not know."""

    async def bound(request: Request) -> BoundMixpanel:
        return await mixpanel.bound(request.scope)

    return mixpanel.wrap(Starlette(routes=starlette_routes(bound)))


def path_of_route(scope: Any) -> str | None:
    """Return what the app knows about the route of a request."""
    template = {"/sub/items/7": "/sub/items/{item}", "/items/private": "/items/{item}"}
    return template.get(scope["path"], scope["path"]) if "endpoint" in scope else None


def of_request(hook: Callable[[HTTPConnection], Any] | None) -> Callable[[Any], Any] | None:
    """Return a hook that takes a scope."""
    return None if hook is None else lambda scope: hook(HTTPConnection(scope))


def fastapi_app(mixpanel: fastapi.MixpanelIntegration) -> FastAPI:  # noqa: C901  one function per route
    app = FastAPI(lifespan=mixpanel.lifespan)
    app.add_middleware(mixpanel.middleware)
    bound = Depends(mixpanel.bound)

    async def page(mp: Annotated[BoundMixpanel, bound]) -> dict[str, Any]:
        return await described(mp)

    app.add_api_route("/", page)
    app.add_api_route("/items/{item}", page)

    async def sign_in(user: str, request: Request, mp: Annotated[BoundMixpanel, bound]) -> dict[str, Any]:
        await mp.sign_in(user, is_new="new" in request.query_params)
        return {"device": mp.device_id}

    app.add_api_route("/signin/{user}", sign_in)

    async def sign_in_and_leave(user: str, mp: Annotated[BoundMixpanel, bound]) -> Any:
        await mp.sign_in(user)
        return FastApiRedirect("/", 303)

    app.add_api_route("/enter/{user}", sign_in_and_leave)

    def sign_out(mp: Annotated[BoundMixpanel, bound]) -> Any:
        # Runs in a worker thread and returns a response object.
        mp.sign_out()
        return FastApiResponse({"device": mp.device_id})

    app.add_api_route("/signout", sign_out)

    async def fails(mp: Annotated[BoundMixpanel, bound]) -> None:
        await mp.track("About to fail")
        raise HTTPException(418)

    app.add_api_route("/fails", fails)

    async def breaks(mp: Annotated[BoundMixpanel, bound]) -> None:
        await mp.track("About to break")
        raise RuntimeError("broken")

    app.add_api_route("/breaks", breaks)

    async def stream(mp: Annotated[BoundMixpanel, bound]) -> Any:
        return StreamingResponse(parts())

    app.add_api_route("/stream", stream)

    async def cached(mp: Annotated[BoundMixpanel, bound], cache: str) -> Any:
        await described(mp)
        return FastApiResponse({}, headers={"Cache-Control": cache})

    app.add_api_route("/cached", cached)

    async def with_background(tasks: FastApiTasks, mp: Annotated[BoundMixpanel, bound]) -> None:
        tasks.add_task(background)

    app.add_api_route("/background", with_background)

    async def with_task(mp: Annotated[BoundMixpanel, bound]) -> None:
        await deep_task()
        await anyio.to_thread.run_sync(background)

    app.add_api_route("/task", with_task)

    async def plain() -> str:
        return "untouched"

    app.add_api_route("/plain", plain)
    sub = FastAPI()
    sub.add_api_route("/items/{item}", page)
    app.mount("/sub", sub)

    @app.websocket("/ws")
    async def socket(websocket: WebSocket, mp: Annotated[BoundMixpanel, bound]) -> None:
        await websocket.accept()
        await mp.track("Socket opened")
        await websocket.send_json({"user": mp.user_id, "device": mp.device_id})
        await websocket.close()

    return app


def aiohttp_app(mixpanel: aiohttp.MixpanelIntegration) -> web.Application:  # noqa: C901  one function per route
    async def page(request: web.Request) -> web.StreamResponse:
        return web.json_response(await described(request[aiohttp.MIXPANEL]))

    async def sign_in(request: web.Request) -> web.StreamResponse:
        mp = request[aiohttp.MIXPANEL]
        await mp.sign_in(request.match_info["user"], is_new="new" in request.query)
        return web.json_response({"device": mp.device_id})

    async def sign_in_and_leave(request: web.Request) -> web.StreamResponse:
        await request[aiohttp.MIXPANEL].sign_in(request.match_info["user"])
        raise web.HTTPSeeOther("/")

    async def sign_out(request: web.Request) -> web.StreamResponse:
        mp = request[aiohttp.MIXPANEL]
        mp.sign_out()
        return web.json_response({"device": mp.device_id})

    async def fails(request: web.Request) -> web.StreamResponse:
        await request[aiohttp.MIXPANEL].track("About to fail")
        raise web.HTTPNotAcceptable

    async def breaks(request: web.Request) -> web.StreamResponse:
        await request[aiohttp.MIXPANEL].track("About to break")
        raise RuntimeError("broken")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for part in parts():
            await response.write(part)
        return response

    async def late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await request[aiohttp.MIXPANEL].sign_in("maya")
        return response

    async def cached(request: web.Request) -> web.StreamResponse:
        await described(request[aiohttp.MIXPANEL])
        return web.json_response({}, headers={"Cache-Control": request.query["cache"]})

    async def with_task(request: web.Request) -> web.StreamResponse:
        await deep_task()
        await anyio.to_thread.run_sync(background)
        return web.Response()

    async def socket(request: web.Request) -> web.StreamResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        mp = request[aiohttp.MIXPANEL]
        await mp.track("Socket opened")
        await response.send_json({"user": mp.user_id, "device": mp.device_id})
        await response.close()
        return response

    app = web.Application()
    mixpanel.setup(app)
    app.add_routes(
        [
            web.get("/", page),
            web.get("/items/{item}", page),
            web.get("/signin/{user}", sign_in),
            web.get("/enter/{user}", sign_in_and_leave),
            web.get("/signout", sign_out),
            web.get("/fails", fails),
            web.get("/breaks", breaks),
            web.get("/stream", stream),
            web.get("/late", late),
            web.get("/cached", cached),
            web.get("/task", with_task),
            web.get("/ws", socket),
        ]
    )
    sub = web.Application()
    sub.router.add_get("/items/{item}", page)
    app.add_subapp("/sub", sub)
    return app


@asynccontextmanager
async def serving(
    framework: str, make: Callable[[], AsyncMixpanel], *, base_url: str = "http://shop.example", **options: Any
) -> AsyncIterator[Served]:
    """Serve the app of a framework inside a `with` block."""
    if framework == "aiohttp":
        integration = aiohttp.MixpanelIntegration(make, **{"user_id": user_of, **options})
        async with TestServer(aiohttp_app(integration)) as server:
            yield Served(lambda: httpx.AsyncClient(base_url=str(server.make_url("/"))), integration)
        return
    app: Any
    mixpanel: Any
    if framework == "asgi":
        options = {"user_id": user_of, "consent": None, "route": path_of_route, **options}
        hooks = {name: of_request(options[name]) for name in ("user_id", "consent")}
        in_asgi = asgi.MixpanelIntegration(make, **{**options, **hooks})
        app, mixpanel = asgi_app(in_asgi), in_asgi
    elif framework == "starlette":
        in_starlette = starlette.MixpanelIntegration(make, **{"user_id": user_of, **options})
        app, mixpanel = starlette_app(in_starlette), in_starlette
    else:
        in_fastapi = fastapi.MixpanelIntegration(make, **{"user_id": user_dependency, **options})
        app, mixpanel = fastapi_app(in_fastapi), in_fastapi

    def browser() -> httpx.AsyncClient:
        # The peer address is the client's address.
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 40_000))
        return httpx.AsyncClient(transport=transport, base_url=base_url)

    async with lifespan_of(app) if framework == "asgi" else app.router.lifespan_context(app):
        yield Served(browser, mixpanel)
