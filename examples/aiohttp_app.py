"""An aiohttp app whose client lives in a cleanup context: made at start-up, drained at shutdown.

    pip install "mixpanel-async[aiohttp]"
    MIXPANEL_TOKEN=... python examples/aiohttp_app.py
    curl -c jar -b jar localhost:8080/                               # an anonymous page view
    curl -c jar -b jar localhost:8080/signup -d email=maya@example.com

Here sign-up goes on when Mixpanel cannot be reached: the account matters more to this app than its analytics, so the
failure is logged with what is needed to call `alias` again later.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator

from aiohttp import web

from mixpanel_async import AsyncMixpanel, MixpanelException

MIXPANEL = web.AppKey("mixpanel", AsyncMixpanel)
logger = logging.getLogger(__name__)


async def mixpanel(app: web.Application) -> AsyncIterator[None]:
    async with AsyncMixpanel.from_env() as app[MIXPANEL]:
        yield


async def home(request: web.Request) -> web.Response:
    response = web.json_response({"hello": "visitor"})
    visitor = request.cookies.get("visitor")
    if visitor is None:
        visitor = str(uuid.uuid4())
        response.set_cookie("visitor", visitor, httponly=True, samesite="Lax")
    await request.app[MIXPANEL].track(visitor, "Page viewed", {"page": "/"})
    return response


async def sign_up(request: web.Request) -> web.Response:
    mp = request.app[MIXPANEL]
    email = str((await request.post())["email"])
    visitor = request.cookies.get("visitor")
    if visitor is not None:
        try:
            await mp.alias(email, visitor)
        except MixpanelException:
            logger.exception("to be repeated: alias of visitor %s", visitor)
    await mp.track(email, "Signed up", {"plan": "free"})
    return web.json_response({"account": email}, status=201)


def create_app() -> web.Application:
    app = web.Application()
    app.cleanup_ctx.append(mixpanel)
    app.router.add_get("/", home)
    app.router.add_post("/signup", sign_up)
    return app


if __name__ == "__main__":
    web.run_app(create_app())
