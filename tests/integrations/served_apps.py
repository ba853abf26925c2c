"""ASGI apps of other frameworks, for tests under real servers."""

from __future__ import annotations

import os
from typing import Any

from quart import Quart, request

from mixpanel_async import AsyncMixpanel, ConfigurationError, IdMerge
from mixpanel_async.integrations.asgi import MixpanelIntegration


def make_client() -> AsyncMixpanel:
    if "UNUSABLE" in os.environ:
        raise ConfigurationError("the client cannot be made")
    return AsyncMixpanel.from_env(id_merge=IdMerge.SIMPLIFIED)


mixpanel = MixpanelIntegration(make_client)


async def without_lifespan(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise ValueError("only HTTP")
    await (await mixpanel.bound(scope)).track("Page viewed")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


plain = mixpanel.wrap(without_lifespan)


async def page() -> str:
    await (await mixpanel.bound(request.scope)).track("Page viewed")
    return ""


quart = Quart(__name__)
quart.add_url_rule("/", view_func=page)
quart_app = mixpanel.wrap(quart)
