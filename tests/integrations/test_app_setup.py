"""Setup of the integrations in apps: lifespans, middlewares, mounts, WebSockets, and setup errors."""

# Annotations must be evaluated here: FastAPI reads them, and some refer to local variables.
import json
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer
from fastapi import APIRouter, Depends, FastAPI, Request
from framework_apps import USER_HEADER, aiohttp_app, fastapi_app, user_dependency
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from mixpanel_async import AsyncMixpanel, BoundMixpanel, ClientClosedError, ConfigurationError, IdMerge
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations import aiohttp, fastapi, starlette
from mixpanel_async.testing import assert_tracked

VISITOR = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def make(emulator: Emulator) -> Callable[[], AsyncMixpanel]:
    return lambda: emulator.client(id_merge=IdMerge.SIMPLIFIED)


def browser_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")


@pytest.mark.anyio
async def test_lifespan_nests_in_the_lifespan_of_the_app(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    order = []
    mixpanel = starlette.MixpanelIntegration(make)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with mixpanel.lifespan(app):
            order.append("up")
            yield {"of": "the app"}
            # Events tracked during shutdown are delivered.
            await mixpanel.client.track("app", "Went down")
            order.append("down")

    app = Starlette(lifespan=lifespan)
    async with app.router.lifespan_context(app) as state:
        assert state == {"of": "the app"}
    assert order == ["up", "down"]
    assert_tracked(emulator, "Went down")


@pytest.mark.anyio
async def test_signal_handlers_of_the_process_are_unchanged(make: Callable[[], AsyncMixpanel]) -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]

    before = handlers()
    mixpanel = starlette.MixpanelIntegration(make)
    async with mixpanel.lifespan():
        await mixpanel.client.track("app", "Started")
        assert handlers() == before
    assert handlers() == before


@pytest.mark.anyio
async def test_app_can_start_again(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    mixpanel = starlette.MixpanelIntegration(make)
    app = Starlette(lifespan=mixpanel.lifespan)
    for _ in range(2):
        async with app.router.lifespan_context(app):
            await mixpanel.client.track("app", "Started")
    assert len(emulator.events("Started")) == 2


@pytest.mark.anyio
async def test_client_object_works_before_and_during_one_start(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    client = make()
    mixpanel = starlette.MixpanelIntegration(client)
    assert mixpanel.client is client
    async with mixpanel.lifespan():
        await mixpanel.client.track("app", "Started")
    assert_tracked(emulator, "Started")
    with pytest.raises(ClientClosedError):
        async with mixpanel.lifespan():
            pass


@pytest.mark.anyio
async def test_app_that_fails_at_startup_or_later_delivers_its_events(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    mixpanel = starlette.MixpanelIntegration(make)

    async def run() -> None:
        async with mixpanel.lifespan():
            await mixpanel.client.track("app", "Began")
            raise RuntimeError("of the app's own")

    with pytest.raises(RuntimeError, match="of the app's own"):
        await run()
    assert_tracked(emulator, "Began")


@pytest.mark.anyio
@pytest.mark.parametrize("position", range(4))
async def test_position_of_the_middleware_does_not_matter(
    position: int, make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    mixpanel = starlette.MixpanelIntegration(
        make, user_id=lambda connection: connection.session.get("user"), track_requests="Request"
    )

    async def page(request: Request) -> Response:
        request.session["user"] = "maya"
        mp = await mixpanel.bound(request)
        await mp.track("Page viewed")
        return PlainTextResponse("x" * 2_000)

    async def pass_on(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    stack = [
        Middleware(SessionMiddleware, secret_key="secret"),
        Middleware(GZipMiddleware),
        Middleware(BaseHTTPMiddleware, dispatch=pass_on),
    ]
    stack.insert(position, Middleware(mixpanel.middleware))
    app = Starlette(routes=[Route("/", page)], lifespan=mixpanel.lifespan, middleware=stack)
    async with app.router.lifespan_context(app), browser_of(app) as browser:
        response = await browser.get("/")
        assert response.headers["content-encoding"] == "gzip"
        assert {"session", "mp_visitor"} == set(browser.cookies)
    for name in ("Page viewed", "Request"):
        assert_tracked(emulator, name, distinct_id="maya", properties={"$device_id": browser.cookies["mp_visitor"]})


@pytest.mark.anyio
async def test_mounted_app_can_use_another_project(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    other = Emulator()
    outer = starlette.MixpanelIntegration(make)
    inner = starlette.MixpanelIntegration(
        lambda: other.client(id_merge=IdMerge.SIMPLIFIED), cookie=starlette.CookiePolicy(name="inner")
    )

    async def page(request: Request) -> Response:
        for integration in (outer, inner):
            mp = await integration.bound(request)
            await mp.track("Page viewed")
        return Response()

    mounted = Starlette(routes=[Route("/page", page)], middleware=[Middleware(inner.middleware)])

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with outer.lifespan(app), inner.lifespan(app):
            yield

    app = Starlette(routes=[Mount("/in", mounted)], lifespan=lifespan, middleware=[Middleware(outer.middleware)])
    async with app.router.lifespan_context(app), browser_of(app) as browser:
        await browser.get("/in/page")
        assert set(browser.cookies) == {"mp_visitor", "inner"}
    for project, name in ((emulator, "mp_visitor"), (other, "inner")):
        assert_tracked(project, "Page viewed", distinct_id=f"$device:{browser.cookies[name]}")


@pytest.mark.asyncio
async def test_aiohttp_sub_app_can_use_another_project(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    other = Emulator()

    async def page(request: web.Request) -> web.Response:
        await request[aiohttp.MIXPANEL].track("Page viewed")
        return web.Response()

    app, sub = web.Application(), web.Application()
    aiohttp.MixpanelIntegration(make).setup(app)
    inner = aiohttp.CookiePolicy(name="inner")
    aiohttp.MixpanelIntegration(lambda: other.client(id_merge=IdMerge.SIMPLIFIED), cookie=inner).setup(sub)
    app.router.add_get("/page", page)
    sub.router.add_get("/page", page)
    app.add_subapp("/in", sub)
    async with TestServer(app) as server, httpx.AsyncClient(base_url=str(server.make_url("/"))) as browser:
        await browser.get("/page")
        await browser.get("/in/page")
        assert set(browser.cookies) == {"mp_visitor", "inner"}
    for project, name in ((emulator, "mp_visitor"), (other, "inner")):
        assert_tracked(project, "Page viewed", distinct_id=f"$device:{browser.cookies[name]}")


@pytest.mark.anyio
async def test_concurrent_calls_in_one_request_get_the_same_client(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    async def user(connection: HTTPConnection) -> None:
        await anyio.lowlevel.checkpoint()

    mixpanel = starlette.MixpanelIntegration(make, user_id=user)
    found = []

    async def page(request: Request) -> Response:
        async def ask() -> None:
            found.append(await mixpanel.bound(request))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        return Response()

    app = Starlette(routes=[Route("/", page)], lifespan=mixpanel.lifespan, middleware=[Middleware(mixpanel.middleware)])
    async with app.router.lifespan_context(app), browser_of(app) as browser:
        await browser.get("/")
    assert found[0] is found[1]


@pytest.mark.anyio
async def test_missing_middleware_raises(make: Callable[[], AsyncMixpanel]) -> None:
    mixpanel = starlette.MixpanelIntegration(make)

    async def page(request: Request) -> Response:
        await mixpanel.bound(request)
        return Response()

    app = Starlette(routes=[Route("/", page)], lifespan=mixpanel.lifespan)
    async with app.router.lifespan_context(app), browser_of(app) as browser:
        with pytest.raises(RuntimeError, match="lacks the Mixpanel middleware"):
            await browser.get("/")


@pytest.mark.anyio
async def test_missing_lifespan_is_logged_once(
    make: Callable[[], AsyncMixpanel], caplog: pytest.LogCaptureFixture
) -> None:
    mixpanel = starlette.MixpanelIntegration(make, track_requests="Request")

    async def page(request: Request) -> Response:
        await (await mixpanel.bound(request)).track("Page viewed")
        return Response()

    app = Starlette(routes=[Route("/", page)], middleware=[Middleware(mixpanel.middleware)])
    async with browser_of(app) as browser:
        for _ in range(2):
            assert (await browser.get("/")).status_code == 200
    (record,) = caplog.records
    assert "no open Mixpanel client" in record.message
    with pytest.raises(RuntimeError, match="creates the client at startup"):
        _ = mixpanel.client


async def talk(app: Any, headers: list[tuple[bytes, bytes]]) -> list[dict[str, Any]]:
    """Return all messages that an app sends over a WebSocket that the client only opens."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "scheme": "ws",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 40_000),
        "server": ("shop.example", 80),
        "subprotocols": [],
        "state": {},
    }
    await app(scope, receive, send)
    return sent


@pytest.mark.anyio
async def test_websocket_is_unchanged_and_has_a_visitor(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    mixpanel = fastapi.MixpanelIntegration(make, user_id=user_dependency_of_any, track_requests="Request")
    app = fastapi_app(mixpanel)
    async with app.router.lifespan_context(app):
        known = await talk(app, [(b"cookie", f"mp_visitor={VISITOR}".encode()), (b"x-user", b"maya")])
        unknown = await talk(app, [])
    assert [message["type"] for message in known] == ["websocket.accept", "websocket.send", "websocket.close"]
    assert json.loads(known[1]["text"]) == {"user": "maya", "device": VISITOR}
    assert json.loads(unknown[1]["text"])["device"] not in {VISITOR, None}
    assert known[0]["headers"] == unknown[0]["headers"] == []
    assert_tracked(emulator, "Socket opened", distinct_id="maya")
    assert emulator.events("Request") == []


def user_dependency_of_any(connection: HTTPConnection) -> str | None:
    return connection.headers.get(USER_HEADER)


@pytest.mark.asyncio
async def test_aiohttp_app_can_be_set_up_in_a_thread(make: Callable[[], AsyncMixpanel]) -> None:
    """aiohttp needs a module in the call stack to create a `RequestKey`, and a thread's stack has none."""
    apps = []
    thread = threading.Thread(target=lambda: apps.append(aiohttp_app(aiohttp.MixpanelIntegration(make))))
    thread.start()
    thread.join()
    async with TestServer(apps[0]) as server, ClientSession() as browser:
        assert "mp_visitor" in (await browser.get(server.make_url("/"))).cookies


@pytest.mark.asyncio
async def test_aiohttp_websocket_has_a_visitor_and_sets_no_cookie(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    async with TestServer(aiohttp_app(aiohttp.MixpanelIntegration(make))) as server, ClientSession() as browser:
        headers = {"Cookie": f"mp_visitor={VISITOR}"}
        async with browser.ws_connect(server.make_url("/ws"), headers=headers) as socket:
            assert await socket.receive_json() == {"user": None, "device": VISITOR}
        async with browser.ws_connect(server.make_url("/ws")) as socket:
            await socket.receive_json()
            assert "Set-Cookie" not in socket._response.headers
    assert_tracked(emulator, "Socket opened", distinct_id=f"$device:{VISITOR}")


@pytest.mark.anyio
async def test_fastapi_dependencies_of_one_request_share_the_client(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    mixpanel = fastapi.MixpanelIntegration(make, user_id=user_dependency, track_requests="Request")
    app = FastAPI(lifespan=mixpanel.lifespan, dependencies=[Depends(mixpanel.bound)])
    app.add_middleware(mixpanel.middleware)

    async def other(mp: Annotated[BoundMixpanel, Depends(mixpanel.bound, use_cache=False)]) -> BoundMixpanel:
        return mp

    @app.get("/")
    async def page(
        mp: Annotated[BoundMixpanel, Depends(mixpanel.bound)], same: Annotated[BoundMixpanel, Depends(other)]
    ) -> bool:
        return mp is same

    @app.get("/plain")
    async def plain() -> None: ...

    async with app.router.lifespan_context(app), browser_of(app) as browser:
        assert (await browser.get("/")).json() is True
        await browser.get("/plain", headers={USER_HEADER: "maya"})
    assert_tracked(emulator, "Request", distinct_id="maya", properties={"path": "/plain"})


@pytest.mark.anyio
async def test_path_of_a_tracked_request_has_no_parameter_values(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    mixpanel = fastapi.MixpanelIntegration(make, track_requests="Request")
    app, router, outer = (
        FastAPI(lifespan=mixpanel.lifespan),
        APIRouter(prefix="/items"),
        APIRouter(prefix="/v1/{tenant}"),
    )

    @router.get("/{item}/of/{owner}")
    async def page(item: str, owner: str) -> None: ...

    @app.get("/files/{path:path}")
    async def file(path: str) -> None: ...

    outer.include_router(router)
    app.include_router(outer, prefix="/api")
    app.mount("/static", Starlette(routes=[Route("/", lambda request: JSONResponse({}))]))
    app.add_middleware(mixpanel.middleware)
    async with app.router.lifespan_context(app), browser_of(app) as browser:
        for path in ("/api/v1/private/items/7/of/maya", "/files/private/deep.txt", "/static/private", "/private"):
            await browser.get(path)
    paths = [event["properties"]["path"] for event in emulator.events("Request")]
    assert paths == ["/api/v1/{tenant}/items/{item}/of/{owner}", "/files/{path:path}", "/static"]


@pytest.mark.anyio
async def test_failing_user_hook_does_not_fail_a_tracked_request(
    make: Callable[[], AsyncMixpanel], emulator: Emulator
) -> None:
    def broken(connection: Any) -> str:
        raise LookupError

    mixpanel = starlette.MixpanelIntegration(make, user_id=broken, track_requests="Request")
    app = Starlette(
        routes=[Route("/", lambda request: Response("fine"))],
        lifespan=mixpanel.lifespan,
        middleware=[Middleware(mixpanel.middleware)],
    )
    async with app.router.lifespan_context(app), browser_of(app) as browser:
        assert (await browser.get("/")).text == "fine"
    assert_tracked(emulator, "Request")


MISTAKES: list[dict[str, Any]] = [
    {"client": 7},
    {"client": None},
    {"consent": "no"},
    {"cookie": "mp_visitor"},
    {"trusted_proxies": -1},
    {"track_requests": ""},
    {"track_requests": True},
    {"sign_in_timeout": 0},
    {"sign_in_timeout": True},
    {"sign_in_timeout": "2"},
    {"sign_in_timeout": 61},
]


@pytest.mark.parametrize("options", MISTAKES, ids=str)
@pytest.mark.parametrize("module", [starlette, fastapi, aiohttp])
def test_invalid_options_are_rejected(module: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        module.MixpanelIntegration(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"name": ""},
        {"name": "a b"},
        {"name": "a;b"},
        {"name": "a" * 101},
        {"name": None},
        {"max_age": 0},
        {"max_age": 400 * 86_400 + 1},
        {"max_age": float("nan")},
        {"max_age": True},
        {"domain": "a; Secure"},
        {"domain": ""},
        {"path": "items"},
        {"path": "/a\r\nSet-Cookie: x"},
        {"name": "__Secure-mp"},
        {"name": "__Host-mp", "secure": True, "domain": "shop.example"},
        {"name": "__Host-mp", "secure": True, "path": "/items"},
    ],
    ids=str,
)
def test_invalid_cookie_settings_are_rejected(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        starlette.CookiePolicy(**options)


def test_cookie_prefixes_work_if_their_conditions_are_met() -> None:
    assert starlette.CookiePolicy(name="__Host-mp", secure=True).link_name == "__Host-mp_user"
    assert starlette.CookiePolicy(name="__Secure-mp", secure=True, domain="shop.example").max_age == 31_536_000


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("starlette", "starlette", "starlette"), ("fastapi", "fastapi", "fastapi"), ("aiohttp", "aiohttp", "aiohttp")],
)
def test_import_error_names_the_missing_extra(module: str, missing: str, extra: str, tmp_path: Path) -> None:
    program = f"import sys; sys.modules[{missing!r}] = None\nimport mixpanel_async.integrations.{module}"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=25, cwd=tmp_path)
    assert f'pip install ".[{extra}]"' in result.stderr.splitlines()[-1]


@pytest.mark.asyncio
async def test_aiohttp_request_without_a_route_has_no_client(make: Callable[[], AsyncMixpanel]) -> None:
    def user(request: web.Request) -> str:
        raise AssertionError("consent is not needed")

    app = aiohttp_app(aiohttp.MixpanelIntegration(make, user_id=user))
    async with TestClient(TestServer(app)) as browser:
        response = await browser.get("/nowhere")
        await response.read()
        assert response.status == 404
        assert "Set-Cookie" not in response.headers
