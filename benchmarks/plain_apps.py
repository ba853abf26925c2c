"""The example apps without Mixpanel, as baseline."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from fastapi import Cookie, Depends, FastAPI

sessions: dict[str, str] = {}


async def current_user(session: Annotated[str, Cookie()] = "") -> str | None:
    return sessions.get(session)


fastapi_app = FastAPI()


@fastapi_app.get("/")
async def home(user: Annotated[str | None, Depends(current_user)]) -> dict[str, str]:
    return {"hello": user or "visitor"}


async def aiohttp_home(request: web.Request) -> web.Response:
    user = sessions.get(request.cookies.get("session", ""))
    return web.json_response({"hello": user or "visitor"})


def aiohttp_app() -> web.Application:
    app = web.Application()
    app.router.add_get("/", aiohttp_home)
    return app
