"""Base class of the web framework integrations: client lifetime, the app's hooks and the current request."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from inspect import isawaitable
from types import NoneType
from typing import Final, Generic, TypeAlias, TypeGuard, TypeVar
from uuid import UUID

from mixpanel_async import AsyncMixpanel, BoundMixpanel, ConfigurationError, IdMerge, MixpanelException, ValidationError

from ._proxies import Proxies
from ._visitors import CookiePolicy, RequestInfo, VisitorSession, VisitorSessions, user_id_text

R = TypeVar("R")
S = TypeVar("S")

UserId: TypeAlias = str | int | UUID | None
MakeClient: TypeAlias = Callable[[], AsyncMixpanel]
GetUserId: TypeAlias = Callable[[R], Awaitable[UserId] | UserId]
HasConsent: TypeAlias = Callable[[R], Awaitable[bool] | bool]

_log = logging.getLogger("mixpanel_async")
_COOKIE: Final = CookiePolicy()
SIGN_IN_TIMEOUT: Final = 2.0
_MAX_SIGN_IN_TIMEOUT: Final = 60.0
# Results of hooks that need no await. To find out whether another object can be awaited takes longer.
_PLAIN: Final = (NoneType, str, int, UUID)


class RequestState:
    """One HTTP request; has a visitor session after the first use of the bound client."""

    __slots__ = ("session",)

    def __init__(self) -> None:
        self.session: VisitorSession | None = None

    def keep(self, session: VisitorSession) -> VisitorSession:
        """Store the session unless the request already has one, and return the stored session."""
        if self.session is None:
            self.session = session
        return self.session


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
        sign_in_timeout: seconds that `sign_in` waits for Mixpanel; None waits longer and raises.
    """

    def __init__(
        self,
        client: MakeClient | AsyncMixpanel = AsyncMixpanel.from_env,
        *,
        user_id: GetUserId[R] | None = None,
        consent: HasConsent[R] | None = None,
        cookie: CookiePolicy = _COOKIE,
        trusted_proxies: int | Sequence[str] = 0,
        geolocate: bool = True,
        track_requests: str | None = None,
        sign_in_timeout: float | None = SIGN_IN_TIMEOUT,
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
        if sign_in_timeout is not None and not _is_duration(sign_in_timeout):
            raise ConfigurationError(
                f"sign_in_timeout must be between 0.001 and {_MAX_SIGN_IN_TIMEOUT:.0f} seconds or None, "
                f"not {sign_in_timeout!r}"
            )
        self._make = client
        self._client = client if isinstance(client, AsyncMixpanel) else None
        self._user_id = user_id
        self._consent = consent
        self._visitors = VisitorSessions(
            cookie, Proxies(trusted_proxies), geolocate=geolocate, sign_in_timeout=sign_in_timeout
        )
        self._event_name = track_requests
        self._is_replaced = self._has_ended = False
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
        before = (self._client, self._is_replaced, self._has_ended)
        self._client, self._is_replaced, self._has_ended = _require_id_merge(client), True, False
        try:
            yield
        finally:
            self._client, self._is_replaced, self._has_ended = before

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[AsyncMixpanel]:
        """Open the client while the app runs. Leaving the context delivers queued records."""
        if self._is_replaced:
            yield self.client
            return
        client = self._make if isinstance(self._make, AsyncMixpanel) else self._make()
        async with _require_id_merge(client):
            self._client, self._has_ended = client, False
            try:
                yield client
            finally:
                self._client = client if client is self._make else None
                self._has_ended = True

    @asynccontextmanager
    async def _open_or_disable(self) -> AsyncIterator[None]:
        """Open the client while the app runs. If that fails, the app runs with a client that sends nothing."""
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self._open())
            except Exception as error:  # noqa: BLE001  analytics must not stop the app from starting
                self._disable(error)
            yield

    def _make_or_disable(self) -> None:
        """Create the client unless there is one. If that fails, use a client that sends nothing."""
        if self._client is None and not isinstance(self._make, AsyncMixpanel):
            try:
                self._client = _require_id_merge(self._make())
            except Exception as error:  # noqa: BLE001  analytics must not fail the request
                self._disable(error)

    def _disable(self, error: Exception) -> None:
        log_disabled(error)
        self._client, self._has_ended = disabled_client(), False

    async def _start_session(
        self, source: S, read: Callable[[S], RequestInfo], request: Callable[[S], R], user_id: object = None
    ) -> VisitorSession:
        """Return the session of a request. Analytics must not fail a request, so failures are logged once.

        Args:
            source: the request as the server passes it.
            read: returns the parts of the request that concern its visitor.
            request: returns the request that the app's hooks take.
            user_id: id of the user, if a dependency has returned it.
        """
        client = self._client
        if client is None or self._has_ended:
            self._warn(
                "client_not_open",
                "request not tracked: the app has no open Mixpanel client. Its lifespan or cleanup context opens the "
                "client at startup and closes it at shutdown; connect it, and run the app with lifespan events",
            )
            return self._visitors.untracked()
        try:
            info = read(source)
            if self._consent is not None:
                has_consent = await self._read_consent(self._consent, request(source))
                if has_consent is not True:
                    if has_consent is None:
                        return self._visitors.untracked()
                    return self._visitors.without_consent(client, info)
            user = None
            if user_id is not None or self._user_id is not None:
                user = await self._read_user_id(source, request, user_id)
            session = self._visitors.with_consent(client, info, user)
        except Exception as error:  # noqa: BLE001  neither a header nor the client may fail the request
            self._warn(
                "request_not_tracked", "request not tracked: its visitor could not be read (%s)", type(error).__name__
            )
            return self._visitors.untracked()
        if session.has_replaced:
            self._warn(
                "visitor_replaced",
                "the value of a visitor cookie is not a UUID of version 4 in lower case with dashes; the visitor gets "
                "a new id, and earlier events stay with the old one. See docs/guides/migration.md",
            )
        return session

    async def _read_consent(self, hook: HasConsent[R], request: R) -> bool | None:
        """Return the result of the app's consent function; None if it failed."""
        try:
            result: object = hook(request)
            if _must_await(result):
                result = await result
        except Exception as error:  # noqa: BLE001  the app's function may raise anything
            self._warn("consent_failed", "consent raised %s; the request is not tracked", type(error).__name__)
            return None
        if result is None or isinstance(result, bool):
            return bool(result)
        # Not its truth value: the text "no" would be consent.
        self._warn(
            "consent_failed", "consent must return a bool, not %s; the request is not tracked", type(result).__name__
        )
        return None

    async def _read_user_id(self, source: S, request: Callable[[S], R], user_id: object) -> str | None:
        """Return the user's id as text; None without one, if the function failed, or if Mixpanel rejects the id."""
        try:
            if user_id is None and self._user_id is not None:
                user_id = self._user_id(request(source))
                if _must_await(user_id):
                    user_id = await user_id
            return None if user_id is None else user_id_text(user_id)
        except ValidationError as error:
            self._warn("user_not_read", "request tracked without its user: %s", error)
        except Exception as error:  # noqa: BLE001  the app's function may raise anything
            self._warn("user_not_read", "request tracked without its user: user_id raised %s", type(error).__name__)
        return None

    def _track_request(
        self, state: RequestState, path: Callable[[], str], *, method: str, status: int, started: float
    ) -> None:
        """Track a finished request. Failures are logged, because analytics must not fail the request.

        Args:
            state: the request.
            path: returns the path of its route.
            method: HTTP method.
            status: status of the response.
            started: `time.perf_counter()` at the start of the request.
        """
        if state.session is None or self._event_name is None:
            return
        duration = time.perf_counter() - started
        try:
            properties = {"method": method, "path": path(), "status": status, "duration": duration}
            state.session.bound.track_nowait(self._event_name, properties)
        except MixpanelException as error:
            self._warn("request_not_tracked", "request not tracked: %s", error)
        except Exception as error:  # noqa: BLE001  routes of the app may have any form
            self._warn("request_not_tracked", "request not tracked: %s", type(error).__name__)

    def _response_headers(
        self, session: VisitorSession, read_cache_control: Callable[[], str]
    ) -> list[tuple[str, str]]:
        """Return the headers to add to a response, if `begin_response` wants some. Failures are logged."""
        try:
            return session.headers(read_cache_control)
        except Exception as error:  # noqa: BLE001  analytics must not fail the response
            self._warn("cookie_not_sent", "visitor cookie not sent: %s", type(error).__name__)
            return []

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


def log_event(level: int, event: str, message: str, *details: object) -> None:
    """Log a message with the name of its event as structured data."""
    _log.log(level, message, *details, extra={"mixpanel": {"event": event}})


def log_disabled(error: Exception) -> None:
    """Log that the app runs without tracking, because its client cannot be made or started."""
    message = "tracking is off, because the Mixpanel client could not start: %s"
    log_event(logging.ERROR, "tracking_off", message, describe(error))


def describe(error: Exception) -> str:
    """Return the message of an error for the log; only its type if it is not an error of this package."""
    return str(error) if isinstance(error, MixpanelException) else type(error).__name__


def disabled_client() -> AsyncMixpanel:
    """Return a client that sends nothing."""
    return AsyncMixpanel("disabled", id_merge=IdMerge.SIMPLIFIED, enabled=False)


def _require_id_merge(client: AsyncMixpanel) -> AsyncMixpanel:
    if client.id_merge is None and client.enabled:
        raise ConfigurationError(
            "the integration needs a client with id_merge, as shown in the settings of the Mixpanel project: "
            "pass AsyncMixpanel(id_merge=IdMerge.SIMPLIFIED) or set MIXPANEL_ID_MERGE=simplified"
        )
    return client


def _is_duration(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0.001 <= value <= _MAX_SIGN_IN_TIMEOUT  # type: ignore[operator]


def _must_await(result: object) -> TypeGuard[Awaitable[object]]:
    return not isinstance(result, _PLAIN) and isawaitable(result)
