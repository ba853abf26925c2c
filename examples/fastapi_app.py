"""A FastAPI app that tracks visitors by cookie and joins them to their account at sign-up.

    pip install "mixpanel-async[fastapi]" uvicorn
    MIXPANEL_TOKEN=... uvicorn --app-dir examples fastapi_app:app
    curl -c jar -b jar localhost:8000/                                      # an anonymous page view
    curl -c jar -b jar localhost:8000/signup --json '{"email": "maya@example.com"}'

Tracking is queued: it costs the handler microseconds and cannot fail the request. `alias` is awaited, since joining two
people cannot be undone and must not be lost: when Mixpanel cannot be reached, the app answers 503 and the visitor may
try again.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel

from mixpanel_async import AsyncMixpanel, MixpanelException


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """One client for the whole app; leaving delivers what is still queued."""
    async with AsyncMixpanel.from_env() as app.state.mixpanel:
        yield


def mixpanel(request: Request) -> AsyncMixpanel:
    client: AsyncMixpanel = request.app.state.mixpanel
    return client


Mixpanel = Annotated[AsyncMixpanel, Depends(mixpanel)]
Visitor = Annotated[str | None, Cookie()]

app = FastAPI(lifespan=lifespan)


class SignUp(BaseModel):
    """What the sign-up form sends."""

    email: str


@app.get("/")
async def home(mp: Mixpanel, response: Response, visitor: Visitor = None) -> dict[str, str]:
    if visitor is None:
        visitor = str(uuid.uuid4())
        response.set_cookie("visitor", visitor, httponly=True, samesite="lax")
    await mp.track(visitor, "Page viewed", {"page": "/"})
    return {"hello": "visitor"}


@app.post("/signup", status_code=201)
async def sign_up(form: SignUp, mp: Mixpanel, visitor: Visitor = None) -> dict[str, str]:
    if visitor is not None:
        try:
            await mp.alias(form.email, visitor)
        except MixpanelException as error:
            raise HTTPException(503, "sign-up is not possible right now, please try again") from error
    user = mp.bind(distinct_id=form.email)
    await user.track("Signed up", {"plan": "free"})
    await user.people_set({"$email": form.email})
    return {"account": form.email}
