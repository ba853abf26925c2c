"""Blocking methods of a client that runs in a background thread, for programs without an event loop."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, final

from .._model.stats import FlushResult, Stats
from .._runtime.event_loop import current_loop
from .._runtime.log_events import log_event
from .._runtime.loop_thread import InterruptedCallError, LoopThread
from .base import Properties
from .bound import BoundMixpanel
from .bound_profiles import BoundProfileMethods
from .events import EventMethods
from .groups import GroupMethods
from .identity import IdentityMethods
from .profiles import ProfileMethods

if TYPE_CHECKING:
    from .client import AsyncMixpanel

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")


class _Facade:
    """Object whose methods run coroutine methods of another object.

    Args:
        target: the object with coroutine methods.
        thread: event loop of the client.
        can_wait: whether queueing a record may wait for the disk or for room.
    """

    def __init__(self, target: Any, thread: LoopThread, *, can_wait: bool) -> None:
        self._target = target
        self._thread = thread
        self._can_wait = can_wait

    def bind(
        self,
        *,
        distinct_id: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        properties: Properties | None = None,
        link: str | None = None,
        last_user_id: str | None = None,
        sign_in_timeout: float | None = None,
    ) -> BlockingBound:
        """Bind the client to one user or request. See `AsyncMixpanel.bind`."""
        bound = self._target.bind(
            distinct_id=distinct_id,
            user_id=user_id,
            device_id=device_id,
            ip=ip,
            properties=properties,
            link=link,
            last_user_id=last_user_id,
            sign_in_timeout=sign_in_timeout,
        )
        return self._wrap(bound)

    def _wrap(self, bound: BoundMixpanel) -> BlockingBound:
        return BlockingBound(bound, self._thread, can_wait=self._can_wait)

    def _await(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        """Run a coroutine method in the thread of the client."""
        return self._thread.run(partial(method, self._target, *args, **options))

    def _queue(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any, **options: Any) -> T:
        """Run a coroutine method that queues a record: here, unless it may have to wait."""
        # Without an event loop in this thread, such a method does not wait for anything.
        if self._can_wait or current_loop() is not None:
            return self._await(method, *args, **options)
        coroutine = None
        try:
            coroutine = method(self._target, *args, **options)
            coroutine.send(None)
        except StopIteration as ended:
            result: T = ended.value
            return result
        finally:
            if coroutine is not None:
                # A signal handler may have raised before its first step.
                coroutine.close()
        raise AssertionError("a method that queues a record has waited")


def _awaited(method: Callable[Concatenate[M, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[_Facade, P], T]:
    """Return the blocking form of a method that waits for a response."""

    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **options: P.kwargs) -> T:
        return self._await(method, *args, **options)

    return call


def _queueing(method: Callable[Concatenate[M, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[_Facade, P], T]:
    """Return the blocking form of a method that queues a record."""

    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **options: P.kwargs) -> T:
        return self._queue(method, *args, **options)

    return call


class BlockingBound(_Facade):
    """Blocking form of a `BoundMixpanel`: the result of `BlockingMixpanel.bind`."""

    _target: BoundMixpanel

    track = _queueing(BoundMixpanel.track)
    track_immediate = _awaited(BoundMixpanel.track_immediate)
    sign_in = _awaited(BoundMixpanel.sign_in)
    alias = _awaited(BoundMixpanel.alias)
    identify = _awaited(BoundMixpanel.identify)
    people_update = _queueing(BoundMixpanel.people_update)
    people_track_charge = _queueing(BoundMixpanel.people_track_charge)
    people_set = _queueing(BoundProfileMethods.people_set)
    people_set_once = _queueing(BoundProfileMethods.people_set_once)
    people_increment = _queueing(BoundProfileMethods.people_increment)
    people_append = _queueing(BoundProfileMethods.people_append)
    people_union = _queueing(BoundProfileMethods.people_union)
    people_unset = _queueing(BoundProfileMethods.people_unset)
    people_remove = _queueing(BoundProfileMethods.people_remove)
    people_delete = _queueing(BoundProfileMethods.people_delete)
    people_clear_charges = _queueing(BoundProfileMethods.people_clear_charges)

    @property
    def bound(self) -> BoundMixpanel:
        """The bound client with coroutine methods."""
        return self._target

    @property
    def user_id(self) -> str | None:
        """See `BoundMixpanel.user_id`."""
        return self._target.user_id

    @property
    def device_id(self) -> str | None:
        """See `BoundMixpanel.device_id`."""
        return self._target.device_id

    @property
    def link(self) -> str | None:
        """See `BoundMixpanel.link`."""
        return self._target.link

    def sign_out(self) -> None:
        """See `BoundMixpanel.sign_out`."""
        self._target.sign_out()

    def silenced(self) -> BlockingBound:
        """See `BoundMixpanel.silenced`."""
        return self._wrap(self._target.silenced())

    def __repr__(self) -> str:
        return f"<BlockingBound of {self._target!r}>"


@final
class BlockingMixpanel(_Facade):
    """Client with blocking methods: the result of `AsyncMixpanel.in_thread` and `AsyncMixpanel.start_in_thread`.

    Its methods have the names, arguments and errors of the client's coroutine methods. They can be called from every
    thread. Methods that queue a record do so in microseconds, without the thread of the client.

    A forked child starts a thread of its own with the next call. At the exit of the interpreter, the client delivers
    waiting records for up to `loop_end_timeout` seconds.

    Args:
        client: the client. It may also be used from event loops.
        can_wait: whether queueing a record may wait for the disk or for room.
        is_interrupted: returns whether the caller has interrupted code of the client that holds its lock.
        runs_here: returns whether the client runs in the event loop of the caller.
    """

    _target: AsyncMixpanel

    def __init__(
        self,
        client: AsyncMixpanel,
        *,
        can_wait: bool,
        is_interrupted: Callable[[], bool],
        runs_here: Callable[[], bool],
    ) -> None:
        super().__init__(client, LoopThread("mixpanel client", is_interrupted), can_wait=can_wait)
        self._runs_here = runs_here
        self._is_guest = False
        self._result: FlushResult | None = None
        weakref.finalize(self, self._thread.stop_soon)

    track = _queueing(EventMethods.track)
    track_immediate = _awaited(EventMethods.track_immediate)
    import_data = _queueing(EventMethods.import_data)
    alias = _awaited(IdentityMethods.alias)
    merge = _awaited(IdentityMethods.merge)
    identify = _awaited(IdentityMethods.identify)
    people_update = _queueing(ProfileMethods.people_update)
    people_set = _queueing(ProfileMethods.people_set)
    people_set_once = _queueing(ProfileMethods.people_set_once)
    people_increment = _queueing(ProfileMethods.people_increment)
    people_append = _queueing(ProfileMethods.people_append)
    people_union = _queueing(ProfileMethods.people_union)
    people_unset = _queueing(ProfileMethods.people_unset)
    people_remove = _queueing(ProfileMethods.people_remove)
    people_delete = _queueing(ProfileMethods.people_delete)
    people_track_charge = _queueing(ProfileMethods.people_track_charge)
    people_clear_charges = _queueing(ProfileMethods.people_clear_charges)
    group_update = _queueing(GroupMethods.group_update)
    group_set = _queueing(GroupMethods.group_set)
    group_set_once = _queueing(GroupMethods.group_set_once)
    group_union = _queueing(GroupMethods.group_union)
    group_unset = _queueing(GroupMethods.group_unset)
    group_remove = _queueing(GroupMethods.group_remove)
    group_delete = _queueing(GroupMethods.group_delete)

    @property
    def client(self) -> AsyncMixpanel:
        """The client with coroutine methods."""
        return self._target

    def start(self) -> None:
        """Start the thread and the client in it, unless that was done before or the client is disabled.

        Raises:
            ClientClosedError: if the client is closed.
        """
        if self._target.enabled:
            self._is_guest = not self._thread.run(self._start)

    async def _start(self) -> bool:
        await self._target.start()
        return self._runs_here()

    def flush(self, timeout: float | None = None) -> FlushResult:
        """Deliver the waiting records. See `AsyncMixpanel.flush`."""
        if not self._target.enabled:
            return FlushResult(0, 0, 0)
        try:
            return self._thread.run(partial(self._target.flush, timeout))
        except InterruptedCallError as error:
            return self._unfinished(error)

    def close(self) -> FlushResult:
        """Deliver what waits, close the client and end the thread. See `AsyncMixpanel.aclose`.

        If the client ran in another event loop at the start, such as that of a web app, it stays open there, and only
        the thread ends. The result then counts the records that wait.

        A signal handler that has interrupted a call of the same client cannot wait. The client then stays open, and
        delivers at the exit of the program.
        """
        if not self._target.enabled:
            return FlushResult(0, 0, 0)
        if self._is_guest:
            self._thread.close()
            return FlushResult(0, 0, self._target.stats().pending)
        if self._result is None:
            try:
                self._result = self._thread.run(self._target.aclose)
            except InterruptedCallError as error:
                return self._unfinished(error)
            self._thread.close()
        return self._result

    def _unfinished(self, error: InterruptedCallError) -> FlushResult:
        """Return the result of a delivery for which a signal handler cannot wait."""
        pending, text = self._target.stats().pending, str(error)
        log_event(logging.WARNING, "delivery_not_awaited", "%d records wait: %s", pending, text, records=pending)
        return FlushResult(0, 0, pending, last_error=text)

    def run(self, function: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs) -> T:
        """Await a coroutine function in the thread of the client, and return its result.

        Example:
            ```python
            from mixpanel_async import AsyncMixpanel
            from mixpanel_async.flags import RemoteFlags

            with AsyncMixpanel("PROJECT_TOKEN", remote_flags=RemoteFlags()).in_thread() as mp:
                flags = mp.client.remote_flags
                print(mp.run(flags.is_enabled, "new-checkout", {"distinct_id": "user-1"}))
            ```

        Args:
            function: the coroutine function, such as a method of the flag providers.
            *args: its arguments.
            **options: its keyword arguments.

        Raises:
            Exception: the error of the function.
        """
        return self._thread.run(partial(function, *args, **options))

    def stats(self) -> Stats:
        """See `AsyncMixpanel.stats`."""
        return self._target.stats()

    def new_device_id(self) -> str:
        """See `AsyncMixpanel.new_device_id`."""
        return self._target.new_device_id()

    def wrap(self, bound: BoundMixpanel) -> BlockingBound:
        """Return the blocking form of a bound client.

        Args:
            bound: a client that `AsyncMixpanel.bind` has returned.
        """
        return self._wrap(bound)

    def __enter__(self) -> BlockingMixpanel:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<BlockingMixpanel of {self._target!r}>"
