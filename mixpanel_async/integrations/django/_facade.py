"""Clients for sync and async code: their methods block in sync code, and are awaited in async code."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest

from mixpanel_async import BoundMixpanel

from .._base import RequestState
from ._loop import is_in_event_loop

if TYPE_CHECKING:
    from ._host import Host


class ClientFacade:
    """The client of this process, for code outside requests: `mixpanel.track("user-1", "Report sent")`.

    In sync code it is a `BlockingMixpanel`; in async code it is the `AsyncMixpanel`, whose coroutines are awaited. The
    client starts at its first use. The end of the process delivers and closes it.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def __getattr__(self, name: str) -> Any:
        integration = self._host.integration
        if is_in_event_loop():
            return getattr(integration.client, _public(name))
        return _blocking_member(integration.blocking, integration.client, name)


class RequestMixpanel:
    """`request.mixpanel`: the client bound to the visitor and the signed-in user of a request.

    It has the methods of `BoundMixpanel`. In sync views they block; in async views all of them are awaited:

        def view(request):
            request.mixpanel.track("Page viewed")

        async def view(request):
            await request.mixpanel.track("Page viewed")
            mp = await request.mixpanel  # a BoundMixpanel

    The first use loads the user. Requests that do not use it load no user and set no cookie. A call in an async view
    that is not awaited runs after the view.

    Args:
        request: the request.
        host: the client of this process and its settings.
    """

    def __init__(self, request: HttpRequest, host: Host) -> None:
        self._request = request
        self._host = host
        self._calls: list[_Call] = []
        self.state = RequestState()

    def __getattr__(self, name: str) -> Any:
        member = getattr(BoundMixpanel, _public(name))
        if isinstance(member, property):
            if self.state.session is None and is_in_event_loop():
                raise RuntimeError(f"the user is not loaded yet; use (await request.mixpanel).{name} in async code")
            return getattr(self._bound(), name)

        @wraps(member)
        def method(*arguments: Any, **options: Any) -> Any:
            if not is_in_event_loop():
                return self._blocking_method(name)(*arguments, **options)
            call = _Call(self, name, arguments, options)
            self._calls.append(call)
            return call

        return method

    def __await__(self) -> Generator[Any, None, BoundMixpanel]:
        return self._abound().__await__()

    def _blocking_method(self, name: str) -> Any:
        bound = self._bound()
        return _blocking_member(self._host.integration.blocking.wrap(bound), bound, name)

    def _bound(self) -> BoundMixpanel:
        if self.state.session is None:
            self.state.keep(self._host.integration.session(self._request))
        assert self.state.session is not None
        return self.state.session.bound

    async def _abound(self) -> BoundMixpanel:
        if self.state.session is None:
            self.state.keep(await self._host.integration.asession(self._request))
        assert self.state.session is not None
        return self.state.session.bound

    def on_login(self, user: Any) -> None:
        """Sign the visitor in, unless the view has done so. The identity event is queued, so login does not wait.

        Args:
            user: the user who has logged in.
        """
        integration = self._host.integration
        user_id = integration.id_of(user)
        # Django has already changed `request.user`; the visitor was anonymous before.
        session = self.state.session or self.state.keep(integration.session(self._request, is_anonymous=True))
        if user_id and session.bound.user_id != user_id:
            integration.blocking.wrap(session.bound).sign_in(user_id, deferred=True)

    def on_logout(self) -> None:
        """Sign the visitor out."""
        session = self.state.session or self.state.keep(
            self._host.integration.session(self._request, is_anonymous=True)
        )
        session.bound.sign_out()

    def finish(self) -> None:
        """Run the calls that the view has not awaited, and bind the visitor if each request is tracked; sync code."""
        for call in self._unawaited():
            with self._failures_logged():
                self._blocking_method(call.name)(*call.arguments, **call.options)
        if self._must_bind:
            with self._failures_logged():
                self._bound()

    async def afinish(self) -> None:
        """Do the same as `finish` in async code."""
        for call in self._unawaited():
            with self._failures_logged():
                await call
        if self._must_bind:
            with self._failures_logged():
                await self

    @contextmanager
    def _failures_logged(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001  the response is complete
            self._host.integration.warn_call_failed(error)

    def _unawaited(self) -> list[_Call]:
        calls, self._calls = self._calls, []
        return [call for call in calls if not call.is_awaited]

    @property
    def _must_bind(self) -> bool:
        return self._host.integration.tracks(self._request)


class _Call:
    """Call in async code. It runs when it is awaited."""

    def __init__(
        self, mixpanel: RequestMixpanel, name: str, arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self._mixpanel = mixpanel
        self.name = name
        self.arguments = arguments
        self.options = options
        self.is_awaited = False

    def __await__(self) -> Generator[Any, None, Any]:
        self.is_awaited = True
        return self._run().__await__()

    async def _run(self) -> Any:
        result = getattr(await self._mixpanel, self.name)(*self.arguments, **self.options)
        return await result if isawaitable(result) else result


def _public(name: str) -> str:
    if name.startswith("_"):
        raise AttributeError(f"a Mixpanel client has no attribute {name!r}")
    return name


def _blocking_member(blocking: object, client: object, name: str) -> Any:
    """Return an attribute of a blocking client; of the client itself if its method does not wait."""
    return getattr(blocking, name) if hasattr(blocking, _public(name)) else getattr(client, name)
