"""`Worker`: constructor, run, drain and statistics."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio

from .._delivery.callbacks import Callbacks, OnDelivered, OnDrop
from .._http.transport import HttpClient
from .._model.config import (
    BatchPolicy,
    ClientOptions,
    EventsEndpoint,
    Overflow,
    Region,
    RetryPolicy,
    check_count,
    env_options,
    refuse_outbox,
)
from .._model.credentials import ServiceAccountCredentials
from .._model.errors import (
    ClientClosedError,
    MixpanelException,
    OutboxError,
    raise_configuration_error,
    without_traceback,
)
from .._runtime.environment import real_environment
from .._runtime.event_loop import BackgroundTask, EventLoop, current_loop, preload_backend
from .._runtime.fork import ForkMarker
from ..outbox.lanes import check_kinds
from .assembly import Assembly

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from ..outbox.protocol import Inbox, Outbox
    from .arguments import WorkerArguments
    from .outage import Outage
    from .session import Session

_BATCHING: Final = BatchPolicy()
_RETRY: Final = RetryPolicy()
_IDENTITY_RETRY: Final = RetryPolicy(attempts=1)
_MAX_NAME: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """Snapshot of the counters of one worker. `claimed == delivered + failed + dropped + uncertain + pending`.

    Args:
        claimed: records that the worker has read, except those that were given back or taken over by another worker.
        delivered: records accepted by Mixpanel.
        failed: records refused by Mixpanel, out of attempts, too old, or of an entry that could not be sent. They are
            dead letters.
        dropped: records about persons whose data was erased.
        uncertain: records sent once without a conclusive response that are not safe to send again. They are dead
            letters.
        pending: records waiting or in flight in this worker.
        entries: entries of these records.
        in_flight: requests in flight.
        requests: requests started.
        retries: part of `requests` that repeated an earlier one.
        losses: number of records by the value of their `DropReason`.
        lanes: number of ordered lanes that only this worker serves now.
        waiting: records in the outbox at the last heartbeat, those of all workers included.
        oldest_age: seconds since the oldest of these was accepted, at the last heartbeat; 0 without any.
        dead: dead letters in the outbox at the last heartbeat.
        last_error: message of the last error of a request or, while the outbox is not available, of the outbox; None
            without.
        waiting_bytes: size of the records in the outbox as they are stored, at the last heartbeat.
        workers: workers that were alive at the last heartbeat.
        queue_losses: times that this worker found the queue, or a part of it, removed from the outbox.
        queue_lost_records: records that waited there at the heartbeat before, as far as their number is known. They are
            in no other counter, unless the worker had read them.
    """

    claimed: int = 0
    delivered: int = 0
    failed: int = 0
    dropped: int = 0
    uncertain: int = 0
    pending: int = 0
    entries: int = 0
    in_flight: int = 0
    requests: int = 0
    retries: int = 0
    losses: Mapping[str, int]
    lanes: int = 0
    waiting: int = 0
    oldest_age: float = 0.0
    dead: int = 0
    last_error: str | None = None
    waiting_bytes: int = 0
    workers: int = 0
    queue_losses: int = 0
    queue_lost_records: int = 0


class Worker:
    """Reads the entries of an outbox and delivers their records to Mixpanel, on asyncio and trio.

    Several workers share the load of one outbox. Events go to any of them. Updates of one profile or group reach
    Mixpanel in the order in which they were handed over, because one worker at a time serves their lane. When a worker
    ends, the others take over its entries: at once after `stop`, and 15 seconds after it was killed.

    Requests are those of `AsyncMixpanel`: batches of up to 2,000 records, retries with jitter, smaller requests after a
    413, and only the rejected records are lost. These become dead letters in the outbox, which
    `mixpanel-async queue` lists and sends again.

    Example:
        ```python
        import asyncio

        from mixpanel_async.outbox import RedisOutbox
        from mixpanel_async.worker import Worker


        async def main() -> None:
            outbox = RedisOutbox("redis://queue:6379/0")
            async with Worker.from_env(outbox, token="PROJECT_TOKEN") as worker:
                await worker.drain(timeout=10.0)  # or worker.run(), which ends after worker.stop()
                print(worker.stats().delivered, "delivered")


        asyncio.run(main())
        ```

    Args:
        outbox: the outbox, such as a `RedisOutbox`.
        token: the project's token.
        credentials: service account. With it, events go to `/import`, which reports each record that it rejects.
        region: data residency of the project: `us`, `eu` or `in`; default `us`.
        api_host: host or origin that replaces the region's.
        events_endpoint: as in `AsyncMixpanel`.
        batching: size of batches and the seconds for which small entries are gathered (`linger`); see `BatchPolicy`.
            `concurrency` replaces its `max_in_flight`. The limits of waiting records have no effect.
        retry: retries of batches; see `RetryPolicy`. Unlimited by default. With a limit, records that are out of
            attempts become dead letters.
        kinds: kinds of records that this worker delivers, of `events`, `imports`, `people`, `groups` and `identity`;
            None, the default, for all. Each kind needs a worker.
        name: name of the worker in `mixpanel-async queue status`, 1 to 100 characters; by default the process id.
        concurrency: requests with events in flight at once, and as many with imports; 1 to 100, default 4. Updates of
            profiles, updates of groups, and identity events have one request in flight each, to keep their order.
        shutdown_timeout: seconds for requests in flight to end when the worker stops; 0 to 3,600, default 10.
        timeout: seconds for one whole request; 0.001 to 3,600, default 10.
        http_client: your own `httpx.AsyncClient`. The worker does not close it.
        allow_http: accept an `http://` origin on another machine.
        on_drop: called with a list of `LostRecord` and a `DropReason` for every record that ends without delivery; see
            `AsyncMixpanel`.
        on_delivered: called with a `Delivery` for each request that Mixpanel accepted.

    Raises:
        ConfigurationError: if an option is invalid.
    """

    # A simulation overrides it.
    _make_environment = staticmethod(real_environment)

    def __init__(
        self,
        outbox: Outbox,
        token: str,
        *,
        credentials: ServiceAccountCredentials | None = None,
        region: Region = "us",
        api_host: str | None = None,
        events_endpoint: EventsEndpoint = "auto",
        batching: BatchPolicy = _BATCHING,
        retry: RetryPolicy = _RETRY,
        kinds: Collection[str] | None = None,
        name: str | None = None,
        concurrency: int = 4,
        shutdown_timeout: float = 10.0,
        timeout: float = 10.0,
        http_client: HttpClient | None = None,
        allow_http: bool = False,
        on_drop: OnDrop | None = None,
        on_delivered: OnDelivered | None = None,
    ) -> None:
        try:
            check_count("concurrency", concurrency, maximum=100)
            options = ClientOptions(
                token=token,
                credentials=credentials,
                region=region,
                api_host=api_host,
                allow_http=allow_http,
                id_merge=None,
                batching=batching,
                retry=retry,
                identity_retry=_IDENTITY_RETRY,
                overflow=Overflow.DROP_NEWEST,
                events_endpoint=events_endpoint,
                timeout=timeout,
                shutdown_timeout=shutdown_timeout,
            )
            check_kinds(kinds)
            _check_outbox(outbox)
            self._kinds = None if kinds is None else frozenset(kinds)
            self._given_name = name
            self._name = _worker_name(name)
            self._outbox = outbox
            self._options = replace(options, batching=replace(batching, max_in_flight=concurrency))
            self._assemble = partial(
                Assembly,
                self._options,
                Callbacks(on_drop, on_delivered),
                http_client,
                self._make_environment(),
            )
            self._assembly = self._assemble()
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # Error reporters may show the locals of this frame.
            del token
        preload_backend()
        self._session: Session | None = None
        self._stop: anyio.Event | None = None
        self._is_stop_due = False
        self._is_closed = False
        self._fork_marker = ForkMarker()
        # Collecting the connections of the parent process would use its event loop.
        self._inherited: list[tuple[Assembly, Session | None]] = []

    @classmethod
    def from_env(
        cls,
        outbox: Outbox,
        environ: Mapping[str, str] | None = None,
        *,
        token: str | None = None,
        **options: Unpack[WorkerArguments],
    ) -> Self:
        """Create a worker from environment variables, the same as in `AsyncMixpanel.from_env`.

        Args:
            outbox: the outbox.
            environ: variables to use instead of the process's environment.
            token: the project's token. It overrides `MIXPANEL_TOKEN`.
            **options: options of `Worker`. They override the variables.

        Returns:
            The worker. It is not started.

        Raises:
            ConfigurationError: if the token is missing or a value is invalid.
        """
        try:
            given: dict[str, Any] = {**options} if token is None else {**options, "token": token}
            found = env_options(os.environ if environ is None else environ, {**given, "enabled": True})
            found.pop("id_merge", None)
            return cls(outbox, **{**found, **given})
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # Error reporters may show the locals of this frame.
            given = found = environ = token = options = None  # type: ignore[assignment]

    @property
    def name(self) -> str:
        """Name of the worker."""
        return self._name

    @property
    def api_host(self) -> str:
        """Host to which the worker sends, with scheme: `https://api.mixpanel.com` unless an option changes it."""
        return self._options.origin

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def run(self) -> None:
        """Deliver until `stop` is called or the call is cancelled, and hand over then.

        While the outbox cannot be reached, the worker tries again, and also if it refuses commands of a worker that has
        been connected. After `stop`, or a cancellation, requests in flight have `shutdown_timeout` seconds to end;
        records that are not delivered then wait for another worker, or for the next call of `run`, which may be in
        another event loop.

        Raises:
            OutboxError: if the outbox refuses the first connection, because of a wrong password for example.
            ConfigurationError: if the queue belongs to another project, or its settings do not fit.
            ClientClosedError: if the worker is closed or runs already, or its event loop ended.
        """
        await self._run(until_empty=False)

    async def drain(self, *, timeout: float | None = None) -> bool:
        """Deliver all records of the outbox, and end.

        Entries that another worker holds are left to it.

        Args:
            timeout: seconds after which the worker hands over; None, the default, for no limit.

        Returns:
            Whether everything that this worker may deliver has ended.

        Raises:
            OutboxError: if the outbox cannot be reached at the start, or refuses.
            ConfigurationError: if the queue belongs to another project, or its settings do not fit.
            ClientClosedError: if the worker is closed or runs already, or its event loop ended.
        """
        with anyio.move_on_after(timeout):
            return await self._run(until_empty=True)
        return False

    def stop(self) -> None:
        """Let `run` or `drain` hand over and return. Call it in their event loop.

        If neither has begun, the next one returns at once.
        """
        if self._stop is None:
            self._is_stop_due = True
        else:
            self._stop.set()
        if self._session is not None:
            self._session.stop()

    async def aclose(self) -> None:
        """Close the connections to Mixpanel. Call it after `run` or `drain` has ended; `async with` does."""
        self._is_closed = True
        await self._assembly.transport.aclose()

    def stats(self) -> WorkerStats:
        """Return a snapshot of the counters."""
        stats, held = self._assembly.queue.stats(), self._assembly.state.held
        oldest = None if held is None else held.oldest_at
        age = 0.0 if oldest is None else max(0.0, self._assembly.environment.machine_time() - oldest)
        return WorkerStats(
            claimed=stats.accepted,
            delivered=stats.delivered,
            failed=stats.failed,
            dropped=stats.dropped,
            uncertain=stats.uncertain,
            pending=stats.pending,
            entries=self._assembly.claims.entries,
            in_flight=stats.in_flight,
            requests=stats.requests,
            retries=stats.retries,
            losses=stats.losses,
            lanes=0 if held is None else len(held.lanes),
            waiting=0 if held is None else held.waiting,
            oldest_age=age,
            dead=0 if held is None else held.dead,
            waiting_bytes=0 if held is None else held.waiting_bytes,
            workers=0 if held is None else held.workers,
            queue_losses=self._assembly.state.losses,
            queue_lost_records=self._assembly.state.lost_records,
            last_error=self._assembly.outage.last_error or stats.last_error,
        )

    # Task

    async def _run(self, *, until_empty: bool) -> bool:
        """Run in a separate task, so that a cancelled caller does not cut off the requests in flight."""
        self._leave_parent()
        loop = current_loop()
        if loop is None or self._is_closed or self._stop is not None:
            raise ClientClosedError(
                "no event loop is running; call this inside asyncio or trio" if loop is None
                else "the worker is closed; create a new worker" if self._is_closed
                else "the worker runs already"
            )  # fmt: skip
        if self._is_stop_due:
            self._is_stop_due = False
            return False
        self._stop = anyio.Event()
        task: BackgroundTask[bool] = BackgroundTask(_nothing, _nothing)
        loop.spawn(task, partial(self._work, loop, until_empty=until_empty), "mixpanel worker", Context())
        try:
            await task.done.wait()
        finally:
            if not task.is_done:
                self.stop()
                with anyio.CancelScope(shield=True):
                    await task.done.wait()
            self._stop = self._session = None
        if task.is_cut:
            raise ClientClosedError(
                "the worker's tasks were cut off by the event loop or a signal handler", uncertain=True
            )
        return task.result()

    def _leave_parent(self) -> None:
        """Begin without records and connections after a fork: those that are here belong to the parent process."""
        if self._fork_marker.is_current:
            return
        self._fork_marker = ForkMarker()
        self._inherited.append((self._assembly, self._session))
        self._assembly = self._assemble()
        self._name = _worker_name(self._given_name)
        self._stop = self._session = None

    async def _work(self, loop: EventLoop, *, until_empty: bool) -> bool:
        token = self._options.token
        inbox = self._outbox.inbox(token, self._name, kinds=self._kinds)
        try:
            if not await self._open(inbox, is_retried=not until_empty):
                return False
            self._assembly.transport.bind_loop(loop)
            await self._assembly.transport.open()
            session = self._session = self._assembly.session(inbox, self._kinds)
            assert self._stop is not None
            if self._stop.is_set():
                session.stop()
            return await session.run(loop, until_empty=until_empty)
        finally:
            self._session = None
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await inbox.aclose()

    async def _open(self, inbox: Inbox, *, is_retried: bool) -> bool:
        """Connect to the outbox. Return False if the worker was stopped before."""
        assert self._stop is not None
        stop, outage = self._stop, self._assembly.outage
        failure: MixpanelException | None = None
        is_open = False

        async def cancel_when_stopped(scope: anyio.CancelScope) -> None:
            await stop.wait()
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel_when_stopped, tasks.cancel_scope)
            while not (is_open or failure):
                is_open, failure = await _try_to_open(inbox, outage, is_retried=is_retried)
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return is_open


async def _try_to_open(inbox: Inbox, outage: Outage, *, is_retried: bool) -> tuple[bool, MixpanelException | None]:
    """Return whether the inbox is open, and the error with which the attempts end."""
    try:
        await inbox.open()
    except OutboxError as error:
        if error.refused or not is_retried:
            return False, error
        await outage.wait("open", error)
        return False, None
    except MixpanelException as error:
        return False, error
    outage.ended("open")
    return True, None


def _check_outbox(outbox: object) -> None:
    if isinstance(outbox, type) or not callable(getattr(outbox, "inbox", None)):
        refuse_outbox(outbox)


def _worker_name(name: str | None) -> str:
    if name is None:
        return str(os.getpid())
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise_configuration_error(f"name must be 1 to {_MAX_NAME} printable characters")
    return name


def _nothing(_: object = None) -> None:
    return None
