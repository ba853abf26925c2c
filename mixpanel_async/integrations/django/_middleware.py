"""Middleware, and the reaction to Django's login and logout signals."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from ._facade import RequestMixpanel
from ._host import HOST

_Response = Callable[[HttpRequest], HttpResponseBase]
_AsyncResponse = Callable[[HttpRequest], Awaitable[HttpResponseBase]]

_CURRENT: Final[ContextVar[RequestMixpanel]] = ContextVar("mixpanel_async.integrations.django")
_ATTRIBUTE: Final = "mixpanel"


def current_mixpanel() -> RequestMixpanel:
    """Return `request.mixpanel` of the current request, for code that has no access to the request.

    Raises:
        LookupError: outside a request.
    """
    current = _CURRENT.get(None)
    if current is None:
        raise LookupError("no request is running; outside requests, import `mixpanel` from this module")
    return current


class MixpanelMiddleware:
    """Middleware that adds `request.mixpanel`, and the visitor's cookies to the response. Its position does not matter.

    It supports sync and async views without a change of thread.

    Args:
        get_response: the next middleware or the view. Django passes it.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: _Response | _AsyncResponse) -> None:
        self._get_response = get_response
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        """Serve one request."""
        return self._serve_async(request) if self._is_async else self._serve(request)

    def _serve(self, request: HttpRequest) -> HttpResponseBase:
        mixpanel, started = _attach(request), time.perf_counter()
        token = _CURRENT.set(mixpanel)
        try:
            response = cast("_Response", self._get_response)(request)
        finally:
            _CURRENT.reset(token)
        mixpanel.finish()
        HOST.integration.finish(mixpanel.state, request, response, started)
        return response

    async def _serve_async(self, request: HttpRequest) -> HttpResponseBase:
        mixpanel, started = _attach(request), time.perf_counter()
        token = _CURRENT.set(mixpanel)
        try:
            response = await cast("_AsyncResponse", self._get_response)(request)
        finally:
            _CURRENT.reset(token)
        await mixpanel.afinish()
        HOST.integration.finish(mixpanel.state, request, response, started)
        return response


def _attach(request: HttpRequest) -> RequestMixpanel:
    HOST.note(request)
    mixpanel = RequestMixpanel(request, HOST)
    setattr(request, _ATTRIBUTE, mixpanel)
    return mixpanel


def sign_in(sender: object, request: HttpRequest | None, user: Any, **_: object) -> None:  # noqa: ARG001  of a signal
    """Sign the visitor in after Django's login."""
    mixpanel = getattr(request, _ATTRIBUTE, None)
    # A test client's `force_login` has a request that passed no middleware.
    if isinstance(mixpanel, RequestMixpanel) and HOST.integration.options.sign_in_on_login:
        try:
            mixpanel.on_login(user)
        except Exception as error:  # noqa: BLE001  analytics must not fail the login
            HOST.integration.warn_login_failed(error)


def sign_out(sender: object, request: HttpRequest | None, user: Any, **_: object) -> None:  # noqa: ARG001  of a signal
    """Sign the visitor out before Django's logout."""
    mixpanel = getattr(request, _ATTRIBUTE, None)
    if isinstance(mixpanel, RequestMixpanel) and HOST.integration.options.sign_in_on_login:
        try:
            mixpanel.on_logout()
        except Exception as error:  # noqa: BLE001  analytics must not fail the logout
            HOST.integration.warn_login_failed(error)
