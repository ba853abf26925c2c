"""FastAPI app for a server process, whose sign-up waits only a moment for Mixpanel."""

# Annotations must be evaluated here: FastAPI reads them.
from typing import Annotated

from fastapi import Depends, FastAPI

from mixpanel_async import AsyncMixpanel, BoundMixpanel
from mixpanel_async.integrations.fastapi import MixpanelIntegration


def make_client() -> AsyncMixpanel:
    return AsyncMixpanel.from_env(timeout=1.0)


def current_user() -> int:
    return 7


mixpanel = MixpanelIntegration(make_client, sign_in_timeout=0.3)
app = FastAPI(lifespan=mixpanel.lifespan)
app.add_middleware(mixpanel.middleware)
Mixpanel = Annotated[BoundMixpanel, Depends(mixpanel.bound)]


@app.get("/")
async def home(mp: Mixpanel) -> None:
    await mp.track("Page viewed")


@app.post("/signup")
async def sign_up(mp: Mixpanel) -> str | None:
    await mp.sign_in(str(current_user()), is_new=True)
    return mp.device_id
