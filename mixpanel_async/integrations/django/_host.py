"""The client of the process, and the visitors of its requests."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final

from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.cache import patch_cache_control
from django.utils.functional import LazyObject

from mixpanel_async import AsyncMixpanel, ConfigurationError, MixpanelException

from .._base import BaseIntegration, RequestState, describe, disabled_client, log_disabled
from .._lifespan import ASGIApp, LifespanApp
from .._visitors import RequestInfo, VisitorSession, user_id_text
from ._loop import complete, is_in_event_loop
from ._settings import DjangoOptions, read_options

# Seconds to deliver after a request if the ASGI server runs no lifespan.
_DELIVERY_TIMEOUT: Final = 3.0


class DjangoIntegration(BaseIntegration[HttpRequest]):
    """Client and visitors of one process.

    Args:
        options: the setting `MIXPANEL`.
        client: the client; it starts in a background thread.

    Raises:
        ConfigurationError: if the client has no `id_merge`.
        MixpanelException: if the client cannot start.
    """

    def __init__(self, options: DjangoOptions, client: AsyncMixpanel) -> None:
        super().__init__(
            client,
            user_id=self._user_id_of,
            consent=None if options.consent is None else partial(_call_anywhere, options.consent),
            **options.common,
        )
        if client.id_merge is None and client.enabled:
            raise ConfigurationError("the client needs id_merge; set MIXPANEL['ID_MERGE'] as in the Mixpanel project")
        self._id_of_user = options.user_id or _primary_key
        self.options = options
        self.blocking = client.in_thread()
        self.blocking.start()

    def session(self, request: HttpRequest, *, is_anonymous: bool = False) -> VisitorSession:
        """Return the visitor of a request, in sync code.

        Args:
            request: the request.
            is_anonymous: whether to ignore the signed-in user.
        """
        start = partial(self._start_session, request, _request_info, _same, "" if is_anonymous else None)
        if is_in_event_loop():
            # Sync code that blocks a loop, such as a sync test client in an async test.
            return self.blocking.run(start)
        # The coroutine does not wait, because the hooks block.
        return complete(start())

    async def asession(self, request: HttpRequest) -> VisitorSession:
        """Return the visitor of a request, in async code. Nothing runs a query in the event loop."""
        return await self._start_session(request, _request_info, _same)

    def id_of(self, user: Any) -> str | None:
        """Return the id of a user, in sync code.

        Raises:
            ValidationError: if it is no id.
        """
        return user_id_text(_call(self._id_of_user, user))

    def tracks(self, request: HttpRequest) -> bool:
        """Return whether an event is tracked for this request: the option is set, and a route matches."""
        return self._event_name is not None and request.resolver_match is not None

    def finish(self, state: RequestState, request: HttpRequest, response: HttpResponseBase, started: float) -> None:
        """Add the visitor's cookies to a response, and track the request."""
        session = state.session
        if session is not None and session.begin_response():
            for name, value in self._response_headers(session, lambda: response.headers.get("Cache-Control", "")):
                if name == "Set-Cookie":
                    response.cookies.load(value)
                else:
                    patch_cache_control(response, private=True)
        if self.tracks(request):
            path, method = partial(_route, request), request.method or ""
            self._track_request(state, path, method=method, status=response.status_code, started=started)

    def warn_call_failed(self, error: Exception) -> None:
        """Log that a call failed that ran after its view."""
        self._warn("late_call_failed", "a call that the view did not await failed: %s", describe(error))

    def warn_login_failed(self, error: Exception) -> None:
        """Log that the signals of login or logout were not tracked."""
        self._warn("login_not_tracked", "login or logout not tracked: %s", describe(error))

    def _user_id_of(self, request: HttpRequest) -> Any:
        """Return the id of the signed-in user; in async code an awaitable of it."""
        if is_in_event_loop():
            return self._aload_user_id(request)
        user = _load_user(request)
        return None if user is None else _call(self._id_of_user, user)

    async def _aload_user_id(self, request: HttpRequest) -> Any:
        user = await _aload_user(request)
        return None if user is None else await _acall(self._id_of_user, user)


class Host:
    """The integration of this process, made at its first use.

    The client runs in a background thread. A forked child starts another one with its first call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: DjangoIntegration | None = None
        self._replacement: DjangoIntegration | None = None
        self._is_wrapped = False
        self._delivers_after_requests = False
        self._delivery = threading.Lock()
        self._must_deliver = False

    @property
    def integration(self) -> DjangoIntegration:
        """The integration. If the settings or the client are unusable, the error is logged and calls do nothing."""
        current = self._replacement or self._current
        if current is not None:
            return current
        with self._lock:
            current = self._current
            if current is None:
                self._current = current = _make_integration()
            return current

    def close(self) -> None:
        """Deliver, and close the client. A later use makes another one, with the settings of that time."""
        with self._lock:
            current, self._current = self._current, None
        if current is not None:
            current.blocking.close()

    @contextmanager
    def using(self, client: AsyncMixpanel) -> Iterator[None]:
        """Use another client inside a `with` block, which delivers and closes it at the end.

        Args:
            client: replacement; needs `id_merge`.
        """
        before, replacement = self._replacement, DjangoIntegration(read_options(), client)
        self._replacement = replacement
        try:
            yield
        finally:
            self._replacement = before
            replacement.blocking.close()

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """Add a lifespan to the outermost ASGI app."""
        self._is_wrapped = True
        return LifespanApp(app, self)

    def note(self, request: HttpRequest) -> None:
        """Take note of a request that comes from an ASGI server which does not run the lifespan of this package."""
        if hasattr(request, "scope") and not self._is_wrapped:
            self._delivers_after_requests = True

    def on_request_finished(self) -> None:
        """Deliver after a response if nothing else delivers at the end of the server, which waits for requests.

        Django calls this in a thread of the request. One thread delivers for all.
        """
        if not self._delivers_after_requests or self._replacement is not None:
            return
        self._must_deliver = True
        while self._must_deliver and self._delivery.acquire(blocking=False):
            try:
                self._must_deliver = False
                current = self._current
                if current is not None and current.client.enabled:
                    with suppress(MixpanelException):
                        current.blocking.flush(_DELIVERY_TIMEOUT)
            finally:
                self._delivery.release()

    # A `LifespanHost`

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the client while an ASGI server runs the app."""
        await sync_to_async(lambda: self.integration, thread_sensitive=False)()
        try:
            yield
        finally:
            await sync_to_async(self.close, thread_sensitive=False)()

    def open_late(self) -> None:
        """Do nothing: the client opens at its first use."""

    async def deliver(self) -> None:
        """Deliver the waiting records, if there is a client."""
        current = self._replacement or self._current
        if current is not None:
            with suppress(MixpanelException):
                await current.client.flush(_DELIVERY_TIMEOUT)


HOST: Final = Host()


def _make_integration() -> DjangoIntegration:
    try:
        options = read_options()
        return DjangoIntegration(options, options.make())
    except Exception as error:  # noqa: BLE001  analytics must not fail the request
        log_disabled(error)
        return DjangoIntegration(DjangoOptions(make=disabled_client), disabled_client())


def _call_anywhere(hook: Callable[[Any], Any], argument: object) -> Any:
    """Call a function of the app. In async code, return an awaitable of its result."""
    return _acall(hook, argument) if is_in_event_loop() else _call(hook, argument)


def _call(hook: Callable[[Any], Any], argument: object) -> Any:
    return async_to_sync(hook)(argument) if iscoroutinefunction(hook) else hook(argument)


async def _acall(hook: Callable[[Any], Any], argument: object) -> Any:
    # A plain function may run queries, which Django forbids in the event loop.
    return await (hook(argument) if iscoroutinefunction(hook) else sync_to_async(hook)(argument))


def _load_user(request: HttpRequest) -> Any:
    """Return the signed-in user, or None; may run a query."""
    user = getattr(request, "user", None)
    return user if user is not None and user.is_authenticated else None


async def _aload_user(request: HttpRequest) -> Any:
    """Return the signed-in user, or None, without a query in the event loop."""
    load = getattr(request, "auser", None)
    if load is None or not isinstance(getattr(request, "user", None), LazyObject):
        # Django 4.2 has no `auser`. Token authentication, which needs no session, sets only `user`.
        return await sync_to_async(_load_user)(request)
    user = await load()
    return user if user.is_authenticated else None


def _primary_key(user: Any) -> str:
    return str(user.pk)


def _route(request: HttpRequest) -> str:
    match = request.resolver_match
    return "" if match is None else f"/{match.route}"


def _same(request: HttpRequest) -> HttpRequest:
    return request


def _request_info(request: HttpRequest) -> RequestInfo:
    meta = request.META
    return RequestInfo(
        cookie=meta.get("HTTP_COOKIE", ""),
        peer=meta.get("REMOTE_ADDR") or None,
        scheme=request.scheme or "http",
        forwarded_for=meta.get("HTTP_X_FORWARDED_FOR", ""),
        forwarded_proto=meta.get("HTTP_X_FORWARDED_PROTO", ""),
        host=meta.get("HTTP_HOST", ""),
        forwarded_host=meta.get("HTTP_X_FORWARDED_HOST", ""),
        user_agent=meta.get("HTTP_USER_AGENT", ""),
        referrer=meta.get("HTTP_REFERER", ""),
    )
