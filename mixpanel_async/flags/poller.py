"""Background polling of flag definitions. A failed poll never removes definitions that are in use."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import anyio

from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._http.retry import PROBE_AFTER, backoff
from .._model.config import RetryPolicy
from .._model.errors import ApiError, ClientClosedError, TransportError, count_of
from .._model.outcomes import Response
from .._runtime.environment import Environment
from .._runtime.event_loop import EventLoop
from .._runtime.log_events import log_event
from .._runtime.threads import run_in_worker
from .definitions import Definitions, DefinitionsError, Flag, read_definitions
from .endpoints import FlagsEndpoints, usable_etag
from .metrics import FlagMetrics
from .rules import Library

_JITTER: Final = 0.1
# Backoff in seconds until there are definitions, and after a failure.
_INITIAL_BACKOFF: Final = 1.0
_MAX_BACKOFF: Final = 60.0
_REFUSED: Final = frozenset({401, 402, 403, 404, 405, 407})
# Seconds that a fetch may go on after `stop()`. If it is cancelled while it connects, the pool of a custom HTTP client
# may become unusable.
_STOP_TIMEOUT: Final = 1.0
# Reading this many bytes takes about a millisecond.
_OFF_LOOP_FROM: Final = 8 * 1024
_MAX_LISTED: Final = 5
_SUBJECT: Final = "definitions"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagsUpdate:
    """Argument of a listener that was added with `LocalFeatureFlagsProvider.subscribe`.

    Args:
        kind: `ready` (first definitions), `changed` (definitions differ from those before), `failed` (a fetch failed;
            once per episode) or `recovered` (the first success after `failed`).
        keys: the flags that were added, removed or changed; all flags if `ready`.
        message: description of the failure; empty unless `failed`.
    """

    kind: Literal["ready", "changed", "failed", "recovered"]
    keys: tuple[str, ...] = ()
    message: str = ""


Listener = Callable[[FlagsUpdate], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """Fetch without usable definitions."""

    message: str
    status: int | None = None
    retry_after: float | None = None


class Poller:
    """Owns the definitions and the task that fetches them.

    Args:
        endpoints: fetches definitions.
        poll_interval: seconds between two fetches; None to stop after the first success.
        queue: queue of the client. No fetch begins once it is closed.
        sender: owns the background tasks of the client.
        library: evaluates runtime rules.
        metrics: counters and log.
        environment: clocks and randomness.
    """

    def __init__(
        self,
        endpoints: FlagsEndpoints,
        *,
        poll_interval: float | None,
        queue: Queue,
        sender: Sender,
        library: Library,
        metrics: FlagMetrics,
        environment: Environment,
    ) -> None:
        self.flags: Mapping[str, Flag] = {}
        self.is_ready = False
        self._endpoints = endpoints
        self._poll_interval = poll_interval
        self._queue = queue
        self._sender = sender
        self._library = library
        self._metrics = metrics
        self._environment = environment
        longest = _MAX_BACKOFF if poll_interval is None else poll_interval
        self._retry = RetryPolicy(initial=min(_INITIAL_BACKOFF, longest), maximum=min(_MAX_BACKOFF, longest))
        self._listeners: list[Listener] = []
        self._fresh_at: float | None = None
        self._etag: str | None = None
        self._digest = b""
        self._is_stopped = False
        self.is_idle = True
        """True if nothing fetches definitions although something should."""
        # Identity of the current task. A task that finds another one here belongs to an earlier event loop, and ends.
        self._current: object | None = None
        self._loop: EventLoop | None = None
        self._wakeup: anyio.Event | None = None
        self._updated: anyio.Event | None = None
        self._fetching: anyio.CancelScope | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the definitions were last known to be current; None before the first success."""
        return None if self._fresh_at is None else max(0.0, self._environment.monotonic() - self._fresh_at)

    @property
    def _is_done(self) -> bool:
        return self.is_ready and self._poll_interval is None

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call a function with each `FlagsUpdate`, in the event loop. Return a function that ends the subscription."""
        # A new object, so that two subscriptions of one function end separately.
        subscription: Listener = partial(listener)
        self._listeners.append(subscription)

        def unsubscribe() -> None:
            if subscription in self._listeners:
                self._listeners.remove(subscription)

        return unsubscribe

    def wake(self) -> None:
        """Start polling in the event loop of the client, which is the caller's unless it runs in another one."""
        if not self._queue.closed:
            self._sender.run_in_loop(self.start)

    def start(self) -> None:
        """Start polling, unless a task does that already. Call this in the event loop of the client."""
        if self._is_stopped or self._is_done or not self._sender.attach():
            return
        loop = self._sender.loop
        if self._current is not None and loop is self._loop:
            return
        self._loop = loop
        current = self._current = object()
        self.is_idle = False
        self._fetching = None
        self._wakeup, self._updated = anyio.Event(), anyio.Event()
        try:
            self._sender.spawn(partial(self._run, current), "mixpanel flags", partial(self._ended, current))
        except ClientClosedError:
            self._ended(current)

    def disable(self) -> None:
        """Never poll, and count as ready: a program must not wait for the flags of a disabled client."""
        self._is_stopped = self.is_ready = True
        self.is_idle = False

    def stop(self) -> None:
        """Stop polling. A fetch in progress has one second to finish. Call this in the event loop only."""
        self._is_stopped = True
        self._current = None
        self.is_idle = False
        for event in (self._wakeup, self._updated):
            if event is not None:
                event.set()
        if self._fetching is not None:
            # Our own cancel scope, whose deadline can be set later than its start.
            self._fetching.deadline = min(self._fetching.deadline, anyio.current_time() + _STOP_TIMEOUT)

    async def wait_ready(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for definitions. Return whether there are any."""
        return await self._sender.in_loop(partial(self._wait_ready, timeout), "mixpanel flags")

    async def _wait_ready(self, timeout: float) -> bool:
        deadline = self._environment.monotonic() + timeout
        while not self.is_ready and not self._queue.closed:
            self.start()
            left = deadline - self._environment.monotonic()
            if self._updated is None or left <= 0:
                break
            with anyio.move_on_after(left):
                await self._updated.wait()
        return self.is_ready

    def _ended(self, task: object) -> None:
        if self._current is task:
            self._current = None
            self.is_idle = not self._is_done

    async def _run(self, task: object) -> None:
        failures = 0
        try:
            while self._current is task:
                self._wakeup = anyio.Event()
                failure: _Failure | None = _Failure(message="the fetch was interrupted")
                with anyio.CancelScope() as self._fetching:
                    failure = await self._fetch()
                if self._current is not task:
                    return
                failures = 0 if failure is None else failures + 1
                self._report(failure)
                delay = self._delay(failure, failures)
                if delay is None:
                    return
                with anyio.move_on_after(delay):
                    await self._wakeup.wait()
        finally:
            self._ended(task)

    def _delay(self, failure: _Failure | None, failures: int) -> float | None:
        """Return the seconds until the next fetch, or None after the last one."""
        interval, random = self._poll_interval, self._environment.random()
        if failure is None:
            return None if interval is None else interval * (1 + _JITTER * (2 * random - 1))
        if failure.status in _REFUSED:
            return PROBE_AFTER * (1 + random) / 2
        return backoff(self._retry, failures, failure.retry_after, random)

    async def _fetch(self) -> _Failure | None:
        """Fetch definitions once and use them if they are valid."""
        try:
            response = await self._endpoints.definitions(self._etag if self.is_ready else None)
        except ApiError as error:
            return _Failure(message=f"HTTP {error.status}", status=error.status, retry_after=error.retry_after)
        except TransportError as error:
            return _Failure(message=error.message)
        try:
            if response.status != 304:
                await self._use(response)
        except DefinitionsError as error:
            return _Failure(message=f"the response does not contain flag definitions: {error}")
        except Exception as error:  # noqa: BLE001  an unexpected response must not end the polling
            return _Failure(message=f"the response could not be read ({type(error).__name__})")
        self._fresh_at = self._environment.monotonic()
        return None

    async def _use(self, response: Response) -> None:
        """Use the definitions in a response, if they differ from the current ones."""
        digest = hashlib.blake2b(response.body).digest()
        if digest != self._digest:
            read = partial(read_definitions, response.body, self.flags, self._library)
            if len(response.body) < _OFF_LOOP_FROM:
                definitions = read()
            else:
                definitions = await run_in_worker(read, "mixpanel flags", anyio.CapacityLimiter(1))
            self._digest = digest
            self._replace(definitions)
        self._etag = usable_etag(response)

    def _replace(self, definitions: Definitions) -> None:
        was_ready = self.is_ready
        self._metrics.record_recovery("evaluation")
        self.flags = definitions.flags
        self.is_ready = True
        self._metrics.set_refused(len(definitions.refused))
        if definitions.refused:
            text = "flags: %s their previous definition: %s"
            count = len(definitions.refused)
            malformed = count_of(
                count,
                "definition is malformed; such flags keep",
                "definitions are malformed; these flags keep",
            )
            log_event(logging.WARNING, "flags_refused", text, malformed, _listed(definitions.refused), flags=count)
        changed = [definitions.flags[key] for key in definitions.changed if key in definitions.flags]
        if unmet := [flag for flag in changed if flag.problems]:
            text = "flags: some rules can never match, in flags %s; first problem: %s"
            names = _listed([flag.key for flag in unmet])
            log_event(logging.WARNING, "flags_unmet", text, names, unmet[0].problems[0], flags=len(unmet))
        if self._updated is not None:
            self._updated.set()
            self._updated = anyio.Event()
        if not was_ready:
            self._metrics.count_update()
            self._notify(FlagsUpdate(kind="ready", keys=tuple(definitions.flags)))
        elif definitions.changed:
            self._metrics.count_update()
            self._notify(FlagsUpdate(kind="changed", keys=tuple(definitions.changed)))

    def _report(self, failure: _Failure | None) -> None:
        if failure is None:
            if self._metrics.record_recovery(_SUBJECT):
                log_event(logging.INFO, "flags_recovered", "flags: definitions are up to date again")
                self._notify(FlagsUpdate(kind="recovered"))
            return
        self._metrics.count_poll_failure()
        effect = "the previous ones stay in use" if self.is_ready else "callers get their fallbacks"
        level = logging.ERROR if failure.status in _REFUSED else logging.WARNING
        text = "flags: definitions could not be fetched (%s); %s"
        error = f"definitions: {failure.message}"
        if self._metrics.record_failure(_SUBJECT, error, text, failure.message, effect, level=level):
            self._notify(FlagsUpdate(kind="failed", message=failure.message))

    def _notify(self, update: FlagsUpdate) -> None:
        for listener in tuple(self._listeners):
            _call(listener, update)


def _call(listener: Listener, update: FlagsUpdate) -> None:
    try:
        listener(update)
    except Exception as error:  # noqa: BLE001  a listener may raise anything
        name = type(error).__name__
        log_event(logging.WARNING, "flags_listener_failed", "flags: a listener raised %s", name, error=name)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _MAX_LISTED} more" if len(keys) > _MAX_LISTED else ""
    return ", ".join(f"{key[:100]!r}" for key in keys[:_MAX_LISTED]) + more
