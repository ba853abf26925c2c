"""Mixpanel in a FastAPI app.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=current_user)
app = FastAPI(lifespan=mixpanel.lifespan)
app.add_middleware(mixpanel.middleware)
Mixpanel = Annotated[BoundMixpanel, Depends(mixpanel.bound)]

@app.get("/")
async def home(mp: Mixpanel) -> None:
    await mp.track("Page viewed")
"""

# Annotations are real objects here: FastAPI reads those of the dependency, and one of them is made for each app.
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"fastapi", "starlette"}:
        raise
    raise ImportError('FastAPI needs an extra: pip install "mixpanel-async[fastapi]"', name=error.name) from error

from mixpanel_async import AsyncMixpanel, BoundMixpanel

from ._base import MakeClient, current_mixpanel
from ._visits import CookiePolicy
from .starlette import MixpanelIntegration as StarletteIntegration

__all__ = ["CookiePolicy", "MixpanelIntegration", "current_mixpanel"]

_COOKIE: Final = CookiePolicy()


class MixpanelIntegration(StarletteIntegration):
    """One Mixpanel client for an app, seen by each request through its own visitor.

    Three things connect it: `lifespan`, `middleware`, and `Depends(mixpanel.bound)` in the handlers. A browser gets the
    cookie with its anonymous id with the first response to a request that depends on `bound`.

    Args:
        client: as in `mixpanel_async.integrations.starlette`.
        user_id: a dependency that gives the id of the user who is signed in, or None: any function that FastAPI can
            call, with dependencies of its own.
        consent: given the request, whether its visitor may be tracked; plain or `async`. If not, the bound client does
            nothing, no cookie is set, and those that the browser has are taken back. None: everybody may be.
        cookie, trusted_proxies, geolocate: as in `mixpanel_async.integrations.starlette`.
        track_requests: likewise. The user is known in requests that depend on `bound`; with
            `FastAPI(dependencies=[Depends(mixpanel.bound)])` that is all of them.

    Attributes:
        bound: the dependency that gives the request's `BoundMixpanel`, the same wherever it is asked for.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    bound: Callable[..., Awaitable[BoundMixpanel]]  # type: ignore[assignment]

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        user_id: Callable[..., Any] | None = None,
        consent: Callable[[HTTPConnection], Awaitable[bool] | bool] | None = None,
        cookie: CookiePolicy = _COOKIE,
        trusted_proxies: int | Sequence[str] = 0,
        geolocate: bool = True,
        track_requests: str | None = None,
    ) -> None:
        super().__init__(
            client,
            consent=consent,
            cookie=cookie,
            trusted_proxies=trusted_proxies,
            geolocate=geolocate,
            track_requests=track_requests,
        )
        self.bound = self._dependency(user_id)

    def _dependency(self, user: Callable[..., Any] | None) -> Callable[..., Awaitable[BoundMixpanel]]:
        if user is None:
            return self._bound_to_visitor

        async def bound(connection: HTTPConnection, user_id: Annotated[Any, Depends(user)]) -> BoundMixpanel:
            return await self._bound(connection, user_id)

        return bound

    async def _bound_to_visitor(self, connection: HTTPConnection) -> BoundMixpanel:
        return await self._bound(connection)
