"""Litestar app with the ASGI integration. Quart, Falcon and plain ASGI apps work the same way.

    pip install . litestar uvicorn     # in a clone of the repository
    MIXPANEL_TOKEN=... MIXPANEL_ID_MERGE=simplified uvicorn --app-dir examples asgi_app:app
    curl -c jar -b jar localhost:8000/                                      # an anonymous page view
    curl -c jar -b jar -X POST "localhost:8000/signin?email=maya@example.com"
    curl -c jar -b jar -X POST localhost:8000/logout

`wrap` adds the middleware and a lifespan: the client starts with the app, and the end of the server delivers.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import Any

from litestar import Litestar, Request, Response, get, post

from mixpanel_async import AsyncMixpanel
from mixpanel_async.integrations.asgi import MixpanelIntegration

# Replaces a database: the account of each session.
sessions: dict[str, str] = {}


def make_client() -> AsyncMixpanel:
    return AsyncMixpanel.from_env({"MIXPANEL_ID_MERGE": "simplified", **os.environ})


def current_user(scope: Mapping[str, Any]) -> str | None:
    cookies = SimpleCookie(b";".join(value for name, value in scope["headers"] if name == b"cookie").decode("latin-1"))
    return sessions.get(cookies["session"].value) if "session" in cookies else None


mixpanel = MixpanelIntegration(make_client, user_id=current_user, track_requests="Request")


@get("/")
async def home(request: Request[Any, Any, Any]) -> dict[str, str]:
    mp = await mixpanel.bound(request.scope)
    await mp.track("Page viewed", {"page": "/"})
    return {"hello": mp.user_id or "visitor"}


@post("/signin")
async def sign_in(request: Request[Any, Any, Any], email: str) -> Response[dict[str, str]]:
    mp = await mixpanel.bound(request.scope)
    await mp.sign_in(email)
    session = secrets.token_urlsafe()
    sessions[session] = email
    response = Response({"account": email})
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return response


@post("/logout", status_code=204)
async def log_out(request: Request[Any, Any, Any]) -> None:
    mp = await mixpanel.bound(request.scope)
    await mp.track("Signed out")
    mp.sign_out()
    sessions.pop(request.cookies.get("session", ""), None)


app = mixpanel.wrap(Litestar([home, sign_in, log_out]))
