"""Base class of the web framework integrations: client lifetime, the app's hooks and the current request."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from inspect import isawaitable
from typing import Final, Generic, TypeVar

from mixpanel_async import AsyncMixpanel, BoundMixpanel, ConfigurationError, MixpanelException

from ._headers import Proxies
from ._visitors import CookiePolicy, RequestInfo, VisitorSession, VisitorSessions

R = TypeVar("R")
A = TypeVar("A")

MakeClient = Callable[[], AsyncMixpanel]

_log = logging.getLogger("mixpanel_async")
_COOKIE: Final = CookiePolicy()


class RequestState:
    """One HTTP request; has a visitor session after the first use of the bound client."""

    __slots__ = ("_session",)

    def __init__(self) -> None:
        self._session: VisitorSession | None = None

    @property
    def session(self) -> VisitorSession | None:
        return self._session

    def keep(self, session: VisitorSession) -> VisitorSession:
        """Store the session unless the request already has one, and return the stored session."""
        self._session = self._session or session
        return self._session


CURRENT_REQUEST: Final[ContextVar[RequestState]] = ContextVar("mixpanel_async.integrations.request")


def current_mixpanel() -> BoundMixpanel:
    """Return the client bound to the current request, for code that has no access to the request object.

    Tasks, threads and background tasks started by the request see the same client.

    Raises:
        LookupError: outside a request, or if the request has not used its bound client yet.
    """
    state = CURRENT_REQUEST.get(None)
    if state is None or state.session is None:
        raise LookupError(
            "no request with a bound Mixpanel client is running; call `bound` in the handler first, "
            "and current_mixpanel() only during a request"
        )
    return state.session.bound


class BaseIntegration(Generic[R]):
    """Shared part of the framework integrations; see their `MixpanelIntegration` classes.

    Args:
        client: function that creates the client at each start of the app; or a client, which serves one start.
        user_id: function from the request to the id of the signed-in user, or None.
        consent: function from the request to whether its visitor may be tracked.
        cookie: settings of the cookie that stores the anonymous id.
        trusted_proxies: number of proxies in front of the app, or their networks.
        geolocate: whether to pass the visitor's IP address to Mixpanel.
        track_requests: name of an event to track for each request; None tracks no requests.
    """

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        user_id: Callable[[R], Awaitable[str | None] | str | None] | None = None,
        consent: Callable[[R], Awaitable[bool] | bool] | None = None,
        cookie: CookiePolicy = _COOKIE,
        trusted_proxies: int | Sequence[str] = 0,
        geolocate: bool = True,
        track_requests: str | None = None,
    ) -> None:
        for name, hook in (("user_id", user_id), ("consent", consent)):
            if hook is not None and not callable(hook):
                raise ConfigurationError(f"{name} must be callable or None, not {type(hook).__name__}")
        if not (callable(client) or isinstance(client, AsyncMixpanel)):
            raise ConfigurationError(
                f"client must be an AsyncMixpanel or a function that returns one, not {type(client).__name__}"
            )
        if track_requests is not None and not (isinstance(track_requests, str) and track_requests.strip()):
            raise ConfigurationError(f"track_requests must be an event name or None, not {track_requests!r}")
        self._make = client
        self._client = client if isinstance(client, AsyncMixpanel) else None
        self._user_id = user_id
        self._consent = consent
        self._visitors = VisitorSessions(cookie, Proxies(trusted_proxies), geolocate=geolocate)
        self._event_name = track_requests
        self._is_replaced = False
        self._logged_warnings: set[str] = set()

    @property
    def client(self) -> AsyncMixpanel:
        """The app's client, not bound to a visitor.

        Raises:
            RuntimeError: if the app has not started.
        """
        if self._client is None:
            raise RuntimeError(
                "the app has no Mixpanel client yet: its lifespan or cleanup context creates the client at startup"
            )
        return self._client

    @contextmanager
    def using(self, client: AsyncMixpanel) -> Iterator[None]:
        """Replace the app's client inside a `with` block, for tests. The caller closes the replacement.

        Args:
            client: replacement; needs `id_merge`.

        Raises:
            ConfigurationError: if the client has no `id_merge`.
        """
        before = (self._client, self._is_replaced)
        self._client, self._is_replaced = _require_id_merge(client), True
        try:
            yield
        finally:
            self._client, self._is_replaced = before

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncMixpanel]:
        """Open the client while the app runs. Leaving the context delivers queued records."""
        if self._is_replaced:
            yield self.client
            return
        client = self._make if isinstance(self._make, AsyncMixpanel) else self._make()
        async with _require_id_merge(client):
            self._client = client
            try:
                yield client
            finally:
                self._client = client if client is self._make else None

    async def _start_session(self, request: R, info: RequestInfo, user_id: str | None = None) -> VisitorSession:
        client = self.client
        if self._consent is not None and not await _call_hook(self._consent, request):
            return self._visitors.without_consent(client, info)
        if user_id is None and self._user_id is not None:
            user_id = await _call_hook(self._user_id, request)
        return self._visitors.with_consent(client, info, user_id)

    def _track_request(self, state: RequestState, *, method: str, path: str, status: int, duration: float) -> None:
        """Track a finished request. Failures are logged, because analytics must not fail the request."""
        if state.session is None:
            return
        properties = {"method": method, "path": path, "status": status, "duration": duration}
        try:
            state.session.bound.track_nowait(self._event_name or "", properties)
        except MixpanelException as error:
            self._warn("request_not_tracked", "request not tracked: %s", error)

    def _warn_if_cookie_not_sent(self, state: RequestState) -> None:
        if state.session is not None and state.session.cookie_not_sent():
            self._warn(
                "cookie_not_sent",
                "visitor cookie not sent: the bound client was first used, or the user signed in or out, "
                "after the response had begun; do it before the response starts",
            )

    def _warn(self, event: str, message: str, *details: object) -> None:
        # Log each message once: the same mistake repeats with every request.
        if event not in self._logged_warnings:
            self._logged_warnings.add(event)
            _log.warning(message, *details, extra={"mixpanel": {"event": event}})


def _require_id_merge(client: AsyncMixpanel) -> AsyncMixpanel:
    if client.id_merge is None and client.enabled:
        raise ConfigurationError(
            "the integration needs a client with id_merge, as shown in the settings of the Mixpanel project: "
            "pass AsyncMixpanel(id_merge=IdMerge.SIMPLIFIED) or set MIXPANEL_ID_MERGE=simplified"
        )
    return client


async def _call_hook(hook: Callable[[R], Awaitable[A] | A], request: R) -> A:
    result = hook(request)
    return await result if isawaitable(result) else result
