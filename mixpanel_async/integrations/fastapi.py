"""FastAPI integration.

mixpanel = MixpanelIntegration(AsyncMixpanel.from_env, user_id=current_user)
app = FastAPI(lifespan=mixpanel.lifespan)
app.add_middleware(mixpanel.middleware)
Mixpanel = Annotated[BoundMixpanel, Depends(mixpanel.bound)]

@app.get("/")
async def home(mp: Mixpanel) -> None:
    await mp.track("Page viewed")
"""

# Annotations must be evaluated here: FastAPI reads them, and `Depends(user)` refers to a local variable.
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Final

try:
    from fastapi import Depends
    from fastapi.requests import HTTPConnection
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"fastapi", "starlette"}:
        raise
    raise ImportError(
        'the FastAPI integration needs an extra: run pip install ".[fastapi]" in a clone of the repository',
        name=error.name,
    ) from error

from mixpanel_async import AsyncMixpanel, BoundMixpanel

from ._base import SIGN_IN_TIMEOUT, HasConsent, MakeClient, current_mixpanel
from ._visitors import CookiePolicy
from .starlette import MixpanelIntegration as StarletteIntegration

__all__ = ["CookiePolicy", "MixpanelIntegration", "current_mixpanel"]

_COOKIE: Final = CookiePolicy()


class MixpanelIntegration(StarletteIntegration):
    """One Mixpanel client for an app; each request uses it bound to its visitor.

    Connect it with `lifespan`, `middleware`, and `Depends(mixpanel.bound)` in the handlers. The first response to a
    request that depends on `bound` sets the cookie with the visitor's anonymous id.

    Example:
        ```python
        from typing import Annotated

        from fastapi import Depends, FastAPI

        from mixpanel_async import AsyncMixpanel, BoundMixpanel
        from mixpanel_async.integrations.fastapi import MixpanelIntegration

        mixpanel = MixpanelIntegration(lambda: AsyncMixpanel("PROJECT_TOKEN", id_merge="simplified"))
        app = FastAPI(lifespan=mixpanel.lifespan)
        app.add_middleware(mixpanel.middleware)


        @app.get("/")
        async def home(mp: Annotated[BoundMixpanel, Depends(mixpanel.bound)]) -> str:
            await mp.track("Page viewed", {"page": "/"})
            return "hello"
        ```

    Attributes:
        bound: dependency that returns the request's `BoundMixpanel`. All uses in one request return the same object.

    Args:
        client: as in `mixpanel_async.integrations.starlette`.
        user_id: dependency that returns the id of the signed-in user, or None: any function that FastAPI can call,
            including one with further dependencies. An int or UUID is sent as text. If it returns anything else, the
            request is tracked without a user and a warning is logged. An exception ends the request, as in every
            dependency: an app may answer 401 this way.
        consent: plain or `async` function from the request to whether its visitor may be tracked. Without consent, the
            bound client does nothing, no cookie is set, and existing cookies are deleted. None tracks every visitor.
            If it raises, or returns anything but a bool, nothing is tracked either, but existing cookies stay.
        cookie: settings of the cookie that stores the anonymous id.
        trusted_proxies: as in `mixpanel_async.integrations.starlette`.
        geolocate: whether to pass the visitor's IP address to Mixpanel, which stores the location, not the address.
        track_requests: as in `mixpanel_async.integrations.starlette`. The event has a user id only in requests that
            depend on `bound`; use `FastAPI(dependencies=[Depends(mixpanel.bound)])` to include all requests.
        sign_in_timeout: as in `mixpanel_async.integrations.starlette`.

    Raises:
        ConfigurationError: if a value is out of bounds.
    """

    bound: Callable[..., Awaitable[BoundMixpanel]]  # type: ignore[assignment]

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        user_id: Callable[..., Any] | None = None,
        consent: HasConsent[HTTPConnection] | None = None,
        cookie: CookiePolicy = _COOKIE,
        trusted_proxies: int | Sequence[str] = 0,
        geolocate: bool = True,
        track_requests: str | None = None,
        sign_in_timeout: float | None = SIGN_IN_TIMEOUT,
    ) -> None:
        super().__init__(
            client,
            consent=consent,
            cookie=cookie,
            trusted_proxies=trusted_proxies,
            geolocate=geolocate,
            track_requests=track_requests,
            sign_in_timeout=sign_in_timeout,
        )
        self.bound = self._dependency(user_id)

    def _dependency(self, user: Callable[..., Any] | None) -> Callable[..., Awaitable[BoundMixpanel]]:
        if user is None:
            return self._bound_to_visitor

        async def bound(connection: HTTPConnection, user_id: Annotated[Any, Depends(user)]) -> BoundMixpanel:
            return await self._bind(connection.scope, user_id)

        return bound

    async def _bound_to_visitor(self, connection: HTTPConnection) -> BoundMixpanel:
        return await self._bind(connection.scope)
