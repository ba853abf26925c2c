"""Keeps definitions fresh: one task that fetches, waits and fetches again, and never makes things worse."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal

import anyio
import anyio.to_thread

from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._encoding.responses import parse_retry_after
from .._http.retry import PROBE_AFTER, backoff
from .._http.transport import Transport
from .._model.config import RetryPolicy
from .._model.errors import ClientClosedError
from .._model.outcomes import Response, TransportFailure
from .._runtime.clock import Environment
from .._runtime.event_loop import EventLoop
from .definitions import Definitions, DefinitionsError, Flag, read_definitions
from .metrics import FlagMetrics
from .options import LocalFlags
from .rules import Library
from .wire import FlagsEncoder, usable_etag

_log = logging.getLogger("mixpanel_async")

_JITTER: Final = 0.1
# Until there are definitions, and after trouble, it is tried again sooner than at the next turn.
_INITIAL: Final = 1.0
_MAXIMUM: Final = 60.0
_REFUSED: Final = frozenset({401, 402, 403, 404, 405, 407})
# Seconds that a fetch which is under way at the end may still take: cut off while it connects, it may leave a pool that
# is not ours unusable.
_WIND_UP: Final = 1.0
# Reading that many bytes takes about a millisecond.
_OFF_LOOP_FROM: Final = 8 * 1024
_SHOWN: Final = 5
_EPISODE: Final = "definitions"


@dataclass(frozen=True, slots=True, kw_only=True)
class FlagsUpdate:
    """What a listener is told.

    Args:
        kind: `ready` (there are definitions, for the first time), `changed` (some are others now), `failed` (they
            could not be fetched, once an episode) or `recovered` (they could again).
        keys: the flags that were added, removed or changed; all of them if `ready`.
        message: what went wrong, in words; empty unless `failed`.
    """

    kind: Literal["ready", "changed", "failed", "recovered"]
    keys: tuple[str, ...] = ()
    message: str = ""


Listener = Callable[[FlagsUpdate], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Failure:
    """A fetch without usable definitions."""

    words: str
    status: int | None = None
    retry_after: float | None = None


class Poller:
    """Owns the definitions and the task that fetches them.

    Args:
        options: when and how much.
        timeout: seconds for one fetch.
        encoder: makes requests.
        queue: of the client, which says whether that is closed.
        sender: owns tasks.
        transport: the pool.
        library: for rules.
        tally: counts.
        runtime: clocks and chance.
    """

    def __init__(
        self,
        options: LocalFlags,
        *,
        timeout: float,
        encoder: FlagsEncoder,
        queue: Queue,
        sender: Sender,
        transport: Transport,
        library: Library,
        tally: FlagMetrics,
        runtime: Environment,
    ) -> None:
        self.flags: Mapping[str, Flag] = {}
        self.is_ready = False
        self._options = options
        self._timeout = timeout
        self._encoder = encoder
        self._queue = queue
        self._sender = sender
        self._transport = transport
        self._library = library
        self._tally = tally
        self._runtime = runtime
        interval = _MAXIMUM if options.poll_interval is None else options.poll_interval
        self._retry = RetryPolicy(initial=min(_INITIAL, interval), maximum=min(_MAXIMUM, interval))
        self._listeners: list[Listener] = []
        self._fresh_at: float | None = None
        self._etag: str | None = None
        self._digest = b""
        self._is_stopped = False
        self.is_idle = True
        """Whether nothing fetches definitions although something should."""
        # Whoever holds this polls; a task that finds another in its place, after its event loop went, has no business.
        self._turn: object | None = None
        self._home: EventLoop | None = None
        self._bell: anyio.Event | None = None
        self._news: anyio.Event | None = None
        self._fetching: anyio.CancelScope | None = None

    @property
    def age(self) -> float | None:
        """Seconds since the definitions were last known to be those that Mixpanel has."""
        return None if self._fresh_at is None else max(0.0, self._runtime.monotonic() - self._fresh_at)

    @property
    def _is_done(self) -> bool:
        return self.is_ready and self._options.poll_interval is None

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Have a plain function called in the event loop with each `FlagsUpdate`. Returns what ends that."""
        # Of its own, so that the same function subscribed twice is ended one by one.
        own: Listener = partial(listener)
        self._listeners.append(own)

        def unsubscribe() -> None:
            if own in self._listeners:
                self._listeners.remove(own)

        return unsubscribe

    def wake(self) -> None:
        """Poll in the caller's event loop, if it is in one that the client may use.

        Raises:
            ClientClosedError: if the client is in use in another event loop that is still running.
        """
        if not self._queue.closed and self._sender.bind_loop() is not None:
            self.start()

    def start(self) -> None:
        """Poll in the event loop that the sender is bound to, unless that is being done."""
        if self._is_stopped or self._is_done:
            return
        home = self._sender.bind_loop()
        if self._turn is not None and home is self._home:
            return
        self._home = home
        turn = self._turn = object()
        self.is_idle = False
        self._fetching = None
        self._bell, self._news = anyio.Event(), anyio.Event()
        try:
            self._sender.spawn(partial(self._run, turn), "mixpanel flags", partial(self._ended, turn))
        except ClientClosedError:
            self._ended(turn)

    def stop(self) -> None:
        """Poll no more. A fetch under way has a moment to end. From the loop's own thread only."""
        self._is_stopped = True
        self._turn = None
        self.is_idle = False
        for event in (self._bell, self._news):
            if event is not None:
                event.set()
        if self._fetching is not None:
            self._fetching.deadline = min(self._fetching.deadline, anyio.current_time() + _WIND_UP)

    async def wait_ready(self, timeout: float) -> bool:
        """Wait until there are definitions. False if there are none by then, or none will come."""
        deadline = self._runtime.monotonic() + timeout
        while not self.is_ready and not self._queue.closed:
            self.start()
            left = deadline - self._runtime.monotonic()
            if self._news is None or left <= 0:
                break
            with anyio.move_on_after(left):
                await self._news.wait()
        return self.is_ready

    def _ended(self, turn: object) -> None:
        if self._turn is turn:
            self._turn = None
            self.is_idle = not self._is_done

    async def _run(self, turn: object) -> None:
        failures = 0
        try:
            while self._turn is turn:
                self._bell = anyio.Event()
                failure: _Failure | None = _Failure(words="the fetch was cut off")
                with anyio.CancelScope() as self._fetching:
                    failure = await self._fetch()
                if self._turn is not turn:
                    return
                failures = 0 if failure is None else failures + 1
                self._tell(failure)
                delay = self._delay(failure, failures)
                if delay is None:
                    return
                with anyio.move_on_after(delay):
                    await self._bell.wait()
        finally:
            self._ended(turn)

    def _delay(self, failure: _Failure | None, failures: int) -> float | None:
        """Seconds to the next fetch; None if there is none."""
        interval, draw = self._options.poll_interval, self._runtime.random()
        if failure is None:
            return None if interval is None else interval * (1 + _JITTER * (2 * draw - 1))
        if failure.status in _REFUSED:
            return PROBE_AFTER * (1 + draw) / 2
        return backoff(self._retry, failures, failure.retry_after, draw)

    async def _fetch(self) -> _Failure | None:
        """One fetch, and what came of it taken over if it is usable."""
        self._tally.polls += 1
        request = self._encoder.definitions(self._options.max_bytes, self._etag if self.is_ready else None)
        reply = await self._transport.send(request, timeout=self._timeout)
        if isinstance(reply, TransportFailure):
            return _Failure(words=reply.message)
        if reply.status == 304 and self.is_ready and self._etag is not None:
            self._fresh_at = self._runtime.monotonic()
            return None
        if reply.status != 200:
            wait = parse_retry_after(reply.retry_after, now=self._runtime.wall_time())
            return _Failure(words=f"HTTP {reply.status}", status=reply.status, retry_after=wait)
        try:
            await self._take(reply)
        except DefinitionsError as error:
            return _Failure(words=f"the answer is not one of definitions: {error}")
        except Exception as error:  # noqa: BLE001  what a server says must not end the polling
            return _Failure(words=f"the answer could not be read ({type(error).__name__})")
        self._fresh_at = self._runtime.monotonic()
        return None

    async def _take(self, reply: Response) -> None:
        """Take over what an answer says, if it is not what was said before."""
        digest = hashlib.blake2b(reply.body).digest()
        if digest != self._digest:
            read = partial(read_definitions, reply.body, self.flags, self._library)
            if len(reply.body) < _OFF_LOOP_FROM:
                definitions = read()
            else:
                definitions = await anyio.to_thread.run_sync(read, limiter=anyio.CapacityLimiter(1))
            self._digest = digest
            self._adopt(definitions)
        self._etag = usable_etag(reply)

    def _adopt(self, definitions: Definitions) -> None:
        was_ready = self.is_ready
        self._tally.record_recovery("evaluation")
        self.flags = definitions.flags
        self.is_ready = True
        self._tally.refused = len(definitions.refused)
        if definitions.refused:
            text = "flags: %d definitions are malformed; these flags stay as they were: %s"
            _log.warning(text, len(definitions.refused), _listed(definitions.refused))
        changed = [definitions.flags[key] for key in definitions.changed if key in definitions.flags]
        if unmet := [flag for flag in changed if flag.problems]:
            text = "flags: never met are rules of %s; of the first: %s"
            _log.warning(text, _listed([flag.key for flag in unmet]), unmet[0].problems[0])
        if self._news is not None:
            self._news.set()
            self._news = anyio.Event()
        if not was_ready:
            self._tally.updates += 1
            self._notify(FlagsUpdate(kind="ready", keys=tuple(definitions.flags)))
        elif definitions.changed:
            self._tally.updates += 1
            self._notify(FlagsUpdate(kind="changed", keys=tuple(definitions.changed)))

    def _tell(self, failure: _Failure | None) -> None:
        if failure is None:
            if self._tally.record_recovery(_EPISODE):
                _log.info("flags: definitions are up to date again")
                self._notify(FlagsUpdate(kind="recovered"))
            return
        self._tally.failures += 1
        kept = "the last good ones are used" if self.is_ready else "there are none yet, and fallbacks are given"
        level = logging.ERROR if failure.status in _REFUSED else logging.WARNING
        text = "flags: definitions could not be fetched (%s); %s"
        words = f"definitions: {failure.words}"
        if self._tally.record_failure(_EPISODE, words, text, failure.words, kept, level=level):
            self._notify(FlagsUpdate(kind="failed", message=failure.words))

    def _notify(self, update: FlagsUpdate) -> None:
        for listener in tuple(self._listeners):
            _call(listener, update)


def _call(listener: Listener, update: FlagsUpdate) -> None:
    try:
        listener(update)
    except Exception as error:  # noqa: BLE001  a listener of the user's may raise anything
        _log.warning("flags: a listener raised %s", type(error).__name__)


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(f"{key[:100]!r}" for key in keys[:_SHOWN]) + more
