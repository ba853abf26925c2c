"""What all web frameworks share: the client's life, the app's own answers about a request, the request that runs."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from inspect import isawaitable
from typing import Final, Generic, TypeVar

from mixpanel_async import AsyncMixpanel, BoundMixpanel, ConfigurationError, MixpanelException

from ._headers import Proxies
from ._visits import CookiePolicy, RequestInfo, VisitorSession, VisitorSessions

R = TypeVar("R")
A = TypeVar("A")

MakeClient = Callable[[], AsyncMixpanel]

_log = logging.getLogger("mixpanel_async")
_COOKIE: Final = CookiePolicy()


class RequestState:
    """One request and its response, and the visit once somebody has asked for it."""

    __slots__ = ("status", "visit")

    def __init__(self) -> None:
        self.visit: VisitorSession | None = None
        self.status = 500


CURRENT: Final[ContextVar[RequestState]] = ContextVar("mixpanel_async.integrations.exchange")


def current_mixpanel() -> BoundMixpanel:
    """The client bound to the request that runs, for code that has no request at hand.

    It follows the request into tasks, threads and background tasks that are started by it.

    Raises:
        LookupError: outside a request, or in one that nobody has asked for its client yet.
    """
    exchange = CURRENT.get(None)
    if exchange is None or exchange.visit is None:
        raise LookupError("no request is running whose client has been asked for")
    return exchange.visit.bound


class BaseIntegration(Generic[R]):
    """See the integrations of the frameworks.

    Args:
        client: makes the client, each time the app starts; or a client, which then serves one start.
        user_id: given the request, the id of the user who is signed in, or None.
        consent: given the request, whether its visitor may be tracked.
        cookie: where the anonymous id is kept.
        trusted_proxies: how many proxies there are in front of the app, or their networks.
        geolocate: pass the visitor's address to Mixpanel.
        track_requests: the name of an event to track for each request, or None.
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
                raise ConfigurationError(f"{name} must be callable, not {type(hook).__name__}")
        if not (callable(client) or isinstance(client, AsyncMixpanel)):
            raise ConfigurationError("client must be an AsyncMixpanel, or make one when it is called")
        if track_requests is not None and not (isinstance(track_requests, str) and track_requests.strip()):
            raise ConfigurationError("track_requests must be the name of an event, or None")
        self._make = client
        self._client = client if isinstance(client, AsyncMixpanel) else None
        self._user_id = user_id
        self._consent = consent
        self._visitors = VisitorSessions(cookie, Proxies(trusted_proxies), geolocate=geolocate)
        self._event_name = track_requests
        self._is_lent = False
        self._said: set[str] = set()

    @property
    def client(self) -> AsyncMixpanel:
        """The app's client, bound to nobody.

        Raises:
            RuntimeError: if the app has not started.
        """
        if self._client is None:
            raise RuntimeError("the app has no Mixpanel client yet: it comes with the lifespan or cleanup context")
        return self._client

    @contextmanager
    def using(self, client: AsyncMixpanel) -> Iterator[None]:
        """Put another client in the place of the app's own, for tests. It stays yours to close."""
        before = (self._client, self._is_lent)
        self._client, self._is_lent = _require_id_merge(client), True
        try:
            yield
        finally:
            self._client, self._is_lent = before

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncMixpanel]:
        """The client for as long as the app runs; leaving delivers what is queued."""
        if self._is_lent:
            yield self.client
            return
        client = self._make if isinstance(self._make, AsyncMixpanel) else self._make()
        async with _require_id_merge(client):
            self._client = client
            try:
                yield client
            finally:
                self._client = client if client is self._make else None

    async def _visit(self, request: R, facts: RequestInfo, user_id: str | None = None) -> VisitorSession:
        client = self.client
        if self._consent is not None and not await _answer(self._consent, request):
            return self._visitors.without_consent(client, facts)
        if user_id is None and self._user_id is not None:
            user_id = await _answer(self._user_id, request)
        return self._visitors.with_consent(client, facts, user_id)

    def _track_request(self, exchange: RequestState, *, method: str, path: str, duration: float) -> None:
        """A request ended. That no event can be taken must not concern it."""
        if exchange.visit is None:
            return
        properties = {"method": method, "path": path, "status": exchange.status, "duration": duration}
        try:
            exchange.visit.bound.track_nowait(self._event_name or "", properties)
        except MixpanelException as error:
            self._warn("a request was not tracked: %s", error)

    def _check_told(self, exchange: RequestState) -> None:
        if exchange.visit is not None and exchange.visit.cookie_not_sent():
            self._warn(
                "a visitor came, signed in or signed out after the response had begun; the browser knows nothing"
            )

    def _warn(self, words: str, *details: object) -> None:
        # Once: what an app does, it does for every request.
        if words not in self._said:
            self._said.add(words)
            _log.warning(words, *details)


def _require_id_merge(client: AsyncMixpanel) -> AsyncMixpanel:
    if client.id_merge is None:
        raise ConfigurationError(
            "the client must know how the project joins ids, which its settings show: "
            "AsyncMixpanel(id_merge=IdMerge.SIMPLIFIED), or MIXPANEL_ID_MERGE=simplified"
        )
    return client


async def _answer(hook: Callable[[R], Awaitable[A] | A], request: R) -> A:
    given = hook(request)
    return await given if isawaitable(given) else given
