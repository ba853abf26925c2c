"""FastAPI app with Mixpanel's browser SDK in its page. Page and server see each visitor as the same person.

    pip install ".[fastapi]" uvicorn     # in a clone of the repository
    npm install mixpanel-browser
    MIXPANEL_TOKEN=... MIXPANEL_ID_MERGE=simplified SDK=node_modules/mixpanel-browser/dist \\
        uvicorn --app-dir examples frontend_app:app

The server writes the visitor's id into the SDK's cookie with the first page. The page sends its events to `/mp`, and
the app forwards them to Mixpanel.
"""

from __future__ import annotations

import json
import os
import secrets
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from mixpanel_async import AsyncMixpanel, BoundMixpanel
from mixpanel_async.integrations.asgi import TrackingProxy
from mixpanel_async.integrations.fastapi import CookiePolicy, MixpanelIntegration

# Replaces a database: accounts, and the account of each session.
accounts: set[str] = set()
sessions: dict[str, str] = {}

PAGE = """<!doctype html>
<title>Shop</title>
<script src="/static/mixpanel.umd.js"></script>
<script>
  const user = %(user)s;
  mixpanel.init(%(token)s, {api_host: "/mp"});
  if (user) mixpanel.identify(user);
  mixpanel.track("Page viewed");
</script>
<p>Hello %(name)s</p>
<form method="post" action="/login/maya"><button>Log in as maya</button></form>
<form method="post" action="/login/noah"><button>Log in as noah</button></form>
<form method="post" action="/logout"><button>Log out</button></form>
"""


def make_client() -> AsyncMixpanel:
    return AsyncMixpanel.from_env({"MIXPANEL_ID_MERGE": "simplified", **os.environ})


async def current_user(session: Annotated[str, Cookie()] = "") -> str | None:
    return sessions.get(session)


mixpanel = MixpanelIntegration(make_client, user_id=current_user, cookie=CookiePolicy(browser_sdk=True))
app = FastAPI(lifespan=mixpanel.lifespan)
app.add_middleware(mixpanel.middleware)
app.add_middleware(TrackingProxy, path="/mp")
app.mount("/static", StaticFiles(directory=os.environ.get("SDK", "."), check_dir=False))
Mixpanel = Annotated[BoundMixpanel, Depends(mixpanel.bound)]


def as_script(value: object) -> str:
    """Return a value as JSON that cannot end a script element."""
    return json.dumps(value).replace("<", "\\u003c")


@app.get("/", response_class=HTMLResponse)
async def home(mp: Mixpanel) -> str:
    await mp.track("Page served")
    token = mixpanel.client.token
    return PAGE % {"user": as_script(mp.user_id), "token": as_script(token), "name": mp.user_id or "visitor"}


@app.post("/login/{name}")
async def log_in(name: str, mp: Mixpanel) -> RedirectResponse:
    if name not in {"maya", "noah"}:
        return RedirectResponse("/", 303)
    await mp.sign_in(name, is_new=name not in accounts)
    accounts.add(name)
    session = secrets.token_urlsafe()
    sessions[session] = name
    response = RedirectResponse("/", 303)
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return response


@app.post("/logout")
async def log_out(mp: Mixpanel, session: Annotated[str, Cookie()] = "") -> RedirectResponse:
    # The new id reaches the page by its cookie. A page that keeps running calls `mixpanel.reset()` instead.
    mp.sign_out()
    sessions.pop(session, None)
    response = RedirectResponse("/", 303)
    response.delete_cookie("session")
    return response
