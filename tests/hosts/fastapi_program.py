"""FastAPI app whose plain views track with a client that nothing starts, unless an integration runs it."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from mixpanel_async import AsyncMixpanel, IdMerge
from mixpanel_async.integrations.asgi import MixpanelIntegration

logging.basicConfig(level=logging.WARNING)
client = AsyncMixpanel("token", api_host=os.environ["MIXPANEL"], id_merge=IdMerge.SIMPLIFIED)
mixpanel = MixpanelIntegration(client)
RUN = os.environ["RUN"]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with client:
        yield


application = FastAPI(lifespan=lifespan if RUN == "lifespan" else None)
app = mixpanel.wrap(application) if RUN == "wrap" else application


@application.get("/plain/{number}")
def plain(number: int) -> None:
    client.track_nowait("user", "Event", {"number": number})
