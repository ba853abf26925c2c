"""FastAPI app with accounts. Mixpanel sees each visitor as the same person before and after sign-in.

    pip install ".[fastapi]" uvicorn     # in a clone of the repository
    MIXPANEL_TOKEN=... MIXPANEL_ID_MERGE=simplified uvicorn --app-dir examples fastapi_app:app
    curl -c jar -b jar localhost:8000/                                              # an anonymous page view
    curl -c jar -b jar localhost:8000/signup -H 'Content-Type: application/json' -d '{"email": "maya@example.com"}'
    curl -c jar -b jar -X POST localhost:8000/logout

Tracking is queued: it costs the handler microseconds and cannot fail the request. `sign_in` joins the visitor to the
user. In an Original or Legacy project it waits at most two seconds for Mixpanel. After that the identity event waits
in the queue, in order with the visitor's events, and the sign-up continues.
"""

from __future__ import annotations

import os
import secrets
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, HTTPException, Response
from pydantic import BaseModel

from mixpanel_async import AsyncMixpanel, BoundMixpanel
from mixpanel_async.integrations.fastapi import MixpanelIntegration

# Replaces a database: the id of each account by its email address, and the account of each session.
accounts: dict[str, str] = {}
sessions: dict[str, str] = {}


def make_client() -> AsyncMixpanel:
    return AsyncMixpanel.from_env({"MIXPANEL_ID_MERGE": "simplified", **os.environ})


async def current_user(session: Annotated[str, Cookie()] = "") -> str | None:
    return sessions.get(session)


mixpanel = MixpanelIntegration(make_client, user_id=current_user)
app = FastAPI(lifespan=mixpanel.lifespan)
app.add_middleware(mixpanel.middleware)
Mixpanel = Annotated[BoundMixpanel, Depends(mixpanel.bound)]


class Account(BaseModel):
    """Body of the sign-up and login forms. A real app also has a password."""

    email: str


def start_session(user_id: str, response: Response) -> dict[str, str]:
    session = secrets.token_urlsafe()
    sessions[session] = user_id
    response.set_cookie("session", session, httponly=True, samesite="lax")
    return {"account": user_id}


@app.get("/")
async def home(mp: Mixpanel) -> dict[str, str]:
    await mp.track("Page viewed", {"page": "/"})
    return {"hello": mp.user_id or "visitor"}


@app.post("/signup", status_code=201)
async def sign_up(form: Account, mp: Mixpanel, response: Response) -> dict[str, str]:
    if form.email in accounts:
        raise HTTPException(409, "this account already exists")
    # An email address can change, and Mixpanel cannot rename a user.
    user_id = accounts[form.email] = f"user-{len(accounts) + 1}"
    await mp.sign_in(user_id, "Signed up", {"plan": "free"}, is_new=True)
    await mp.people_set({"$email": form.email})
    return start_session(user_id, response)


@app.post("/login")
async def log_in(form: Account, mp: Mixpanel, response: Response) -> dict[str, str]:
    if form.email not in accounts:
        raise HTTPException(403, "unknown account")
    await mp.sign_in(accounts[form.email])
    return start_session(accounts[form.email], response)


@app.post("/logout", status_code=204)
async def log_out(mp: Mixpanel, response: Response, session: Annotated[str, Cookie()] = "") -> None:
    await mp.track("Signed out")
    mp.sign_out()
    sessions.pop(session, None)
    response.delete_cookie("session")
