"""aiohttp app with accounts. Mixpanel sees each visitor as the same person before and after sign-in.

    pip install ".[aiohttp]"     # in a clone of the repository
    MIXPANEL_TOKEN=... MIXPANEL_ID_MERGE=simplified python examples/aiohttp_app.py --port 8080
    curl -c jar -b jar localhost:8080/                                          # an anonymous page view
    curl -c jar -b jar localhost:8080/signup -d email=maya@example.com          # or /login
    curl -c jar -b jar -X POST localhost:8080/logout

`sign_in` joins the visitor to the user. In an Original or Legacy project it waits for Mixpanel for at most two seconds.
After that the identity event waits in the queue, in order with the visitor's events, and the sign-up continues.
"""

from __future__ import annotations

import argparse
import os
import secrets

from aiohttp import web

from mixpanel_async import AsyncMixpanel
from mixpanel_async.integrations.aiohttp import MIXPANEL, MixpanelIntegration

# Replaces a database: accounts, and the account of each session.
accounts: set[str] = set()
sessions: dict[str, str] = {}


def make_client() -> AsyncMixpanel:
    return AsyncMixpanel.from_env({"MIXPANEL_ID_MERGE": "simplified", **os.environ})


def current_user(request: web.Request) -> str | None:
    return sessions.get(request.cookies.get("session", ""))


async def home(request: web.Request) -> web.Response:
    mp = request[MIXPANEL]
    await mp.track("Page viewed", {"page": "/"})
    return web.json_response({"hello": mp.user_id or "visitor"})


async def sign_up(request: web.Request) -> web.Response:
    email = str((await request.post())["email"])
    if email in accounts:
        raise web.HTTPConflict(text="this account already exists")
    accounts.add(email)
    return await start_session(request, email, is_new=True)


async def log_in(request: web.Request) -> web.Response:
    email = str((await request.post())["email"])
    if email not in accounts:
        raise web.HTTPForbidden(text="unknown account")
    return await start_session(request, email, is_new=False)


async def start_session(request: web.Request, email: str, *, is_new: bool) -> web.Response:
    mp = request[MIXPANEL]
    await mp.sign_in(email, is_new=is_new)
    await mp.people_set({"$email": email})
    session = secrets.token_urlsafe()
    sessions[session] = email
    response = web.json_response({"account": email}, status=201 if is_new else 200)
    response.set_cookie("session", session, httponly=True, samesite="Lax")
    return response


async def log_out(request: web.Request) -> web.Response:
    mp = request[MIXPANEL]
    await mp.track("Signed out")
    mp.sign_out()
    sessions.pop(request.cookies.get("session", ""), None)
    response = web.Response(status=204)
    response.del_cookie("session")
    return response


def create_app() -> web.Application:
    app = web.Application()
    MixpanelIntegration(make_client, user_id=current_user).setup(app)
    app.router.add_get("/", home)
    app.router.add_post("/signup", sign_up)
    app.router.add_post("/login", log_in)
    app.router.add_post("/logout", log_out)
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    web.run_app(create_app(), host=options.host, port=options.port)
