"""The client: it puts the parts together, and turns calls into records and records into answers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anyio.lowlevel

from ._bound import BoundMixpanel
from ._buffer import Batch, Buffer, Lane
from ._config import (
    BatchPolicy,
    ClientOptions,
    EventsEndpoint,
    IdMerge,
    Overflow,
    Region,
    RetryPolicy,
    Secret,
    ServiceAccountCredentials,
    as_secret,
    env_options,
)
from ._errors import ClientClosedError, ConfigurationError, IdentityError, ValidationError
from ._hooks import Hooks, OnDelivered, OnDrop
from ._identity import Caller, reason_of
from ._profiles import Meta, Profiles, Properties
from ._records import DropReason, FlushResult, Kind, Stats
from ._runtime import Runtime, real_runtime
from ._sender import Sender
from ._transport import HttpClient, Transport
from ._wire.build import BeforeSend, Builder, Discarded
from ._wire.encode import Encoder, best_compressor
from ._wire.values import check_id, is_uuid4

if TYPE_CHECKING:
    from typing_extensions import Self

# A coroutine that never waits keeps the event loop to itself; after this many records track() lets others run.
_YIELD_EVERY: Final = 64
# Beside the lanes' own requests, for calls that are awaited.
_SPARE_CONNECTIONS: Final = 12
_IDENTITY_RETRY: Final = RetryPolicy(attempts=3, initial=0.5, maximum=4.0, total_timeout=15.0)


class AsyncMixpanel(Profiles):
    """An asynchronous Mixpanel client for asyncio and trio.

    One connection pool and one batching queue serve everything. `track`, `people_*`, `group_*` and `import_data` check
    and queue a record and return; `alias`, `merge`, `identify` and `track_immediate` are sent at once and return when
    Mixpanel has taken them, or raise.

    It may be made anywhere, also at import time. It starts with `async with`, with `await start()`, or by itself at
    the first call inside a running event loop, and must be closed with `aclose()` (which `async with` does), or what
    is still queued is lost, and said to be.

    Args:
        token: the project's token.
        credentials: a service account. With one, events go to `/import`, which names each record that it refuses.
        region: `us`, `eu` or `in`: where the project's data lives.
        api_host: a host or an origin instead of the region's, such as a proxy or `http://127.0.0.1:8080`.
        id_merge: how the project joins ids. If given, calls that do nothing in such projects raise `IdentityError`.
        batching: see `BatchPolicy`.
        retry: for queued records; see `RetryPolicy`. Without limits by default: the queue is the limit.
        identity_retry: for awaited calls; by default 3 attempts within 15 seconds. It must have a limit.
        overflow: what happens without room in the queue; see `Overflow`.
        events_endpoint: `auto` (`import` with credentials, else `track`), `track` or `import`.
        super_properties: put under the properties of every event.
        serializer: a function that turns a value of an unknown type into one that can be sent, or a
            `json.JSONEncoder` class.
        before_send: sees every queued message as a dict, may change it, and drops it by returning None. A plain
            function, called at the caller's line. If it raises, the message is dropped, as it may be what removes
            personal data. Identity calls do not pass through it.
        on_drop: called with a list of `LostRecord` and a `DropReason` for every loss; a plain function is called in
            a worker thread, a coroutine function in the event loop.
        on_delivered: called with a `Delivery` for each request that Mixpanel took, in the same way.
        http_client: an `httpx.AsyncClient` of your own. It stays yours to close.
        timeout: seconds for one request as a whole, from the wait for a connection to the last byte; 0.001 to 3,600.
        shutdown_timeout: seconds that `aclose()` may take to deliver; 0 to 3,600. Also how long a `flush()` without a
            time-out waits without any progress.
        allow_http: take an `http://` origin that is not on this machine. For an emulator in another container.

    Raises:
        ConfigurationError: if an option is out of bounds.
    """

    def __init__(
        self,
        token: str,
        *,
        credentials: ServiceAccountCredentials | None = None,
        region: Region = "us",
        api_host: str | None = None,
        id_merge: IdMerge | None = None,
        batching: BatchPolicy = BatchPolicy(),
        retry: RetryPolicy = RetryPolicy(),
        identity_retry: RetryPolicy = _IDENTITY_RETRY,
        overflow: Overflow = Overflow.DROP_NEWEST,
        events_endpoint: EventsEndpoint = "auto",
        super_properties: Mapping[str, Any] | None = None,
        serializer: object = None,
        before_send: BeforeSend | None = None,
        on_drop: OnDrop | None = None,
        on_delivered: OnDelivered | None = None,
        http_client: HttpClient | None = None,
        timeout: float = 10.0,
        shutdown_timeout: float = 10.0,
        allow_http: bool = False,
        _runtime: Runtime | None = None,
    ) -> None:
        options = ClientOptions(
            token=token,
            credentials=credentials,
            region=region,
            api_host=api_host,
            allow_http=allow_http,
            id_merge=id_merge,
            batching=batching,
            retry=retry,
            identity_retry=identity_retry,
            overflow=overflow,
            events_endpoint=events_endpoint,
            timeout=timeout,
            shutdown_timeout=shutdown_timeout,
        )
        self._options = options
        self._origin = options.origin
        self._runtime = runtime = _runtime or real_runtime()
        self._builder = Builder(
            token,
            super_properties=super_properties,
            serializer=serializer,
            before_send=before_send,
            recent=not options.by_import,
        )
        compress, off_loop_from = best_compressor()
        encoder = Encoder(token=token, credentials=credentials, events_by_import=options.by_import, compress=compress)
        transport = Transport(
            options.origin,
            timeout=timeout,
            http_client=http_client,
            max_connections=2 * batching.max_in_flight + _SPARE_CONNECTIONS,
        )
        self._sender = Sender(
            buffer=Buffer(batching, retry, overflow),
            transport=transport,
            encoder=encoder,
            off_loop_from=off_loop_from,
            overflow=overflow,
            retry=retry,
            hooks=Hooks(on_drop, on_delivered),
            runtime=runtime,
            patience=shutdown_timeout,
        )
        self._caller = Caller(self._sender.attempt, encoder, identity_retry, runtime)
        self._lanes = {kind: self._sender.lane(kind) for kind in (Kind.EVENTS, Kind.PEOPLE, Kind.GROUPS)}
        # With a service account, imports and events are the same request: they share a lane, and so their batches.
        same = credentials is not None and options.by_import
        self._lanes[Kind.IMPORTS] = self._lanes[Kind.EVENTS] if same else self._sender.lane(Kind.IMPORTS)
        self._events = self._lanes[Kind.EVENTS]
        self._until_yield = _YIELD_EVERY

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Self:
        """A client from `MIXPANEL_TOKEN` and, if set, `MIXPANEL_SERVICE_ACCOUNT_USERNAME`,
        `MIXPANEL_SERVICE_ACCOUNT_SECRET`, `MIXPANEL_PROJECT_ID`, `MIXPANEL_REGION`, `MIXPANEL_API_HOST` and
        `MIXPANEL_ID_MERGE`.

        Args:
            environ: read instead of the process's environment.
            options: any option of the client; these win.

        Raises:
            ConfigurationError: if the token is missing or a value cannot work.
        """
        return cls(**{**env_options(os.environ if environ is None else environ, options), **options})

    async def start(self) -> None:
        """Bind to the running event loop, start there and make the connection pool ready, off the loop.

        It need not be called: the first call does the same. `aclose()` may come from another task.

        Raises:
            ClientClosedError: if the client was closed, or is in use in another loop that is still running.
        """
        await self._sender.open()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> FlushResult:
        """Take no more records, deliver those that were accepted, and close the pool if it is the client's own.

        It takes `shutdown_timeout` seconds at most, and up to two more to stop what is left and to finish callbacks.
        It may be called again, also after a call that was cancelled, and then waits for and returns the same.

        Returns:
            What became of the records that were waiting.
        """
        return await self._sender.aclose(self._options.shutdown_timeout)

    async def flush(self, timeout: float | None = None) -> FlushResult:
        """Deliver everything accepted so far, now.

        Args:
            timeout: seconds, at least 0. None goes on for as long as records are being settled, and ends when none
                was for `shutdown_timeout` seconds. If Mixpanel has asked to wait beyond the end, it returns at once.

        Returns:
            What became of those records; `pending` ones stay queued.

        Raises:
            ValidationError: if `timeout` is negative or not a number.
        """
        if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
            raise ValidationError("timeout", "must be a number of seconds, at least 0, or None")
        return await self._sender.flush(timeout)

    def stats(self) -> Stats:
        """A snapshot of what became of everything so far. From any thread."""
        return self._sender.stats()

    def bind(
        self,
        *,
        distinct_id: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        properties: Properties | None = None,
    ) -> BoundMixpanel:
        """The same client, seen through one user or request.

        Args:
            distinct_id: for every call.
            user_id: `$user_id` of every event.
            device_id: `$device_id` of every event.
            ip: the user's address, for Mixpanel to locate them.
            properties: put under the properties of every event; copied now.

        Raises:
            ValidationError: if a property cannot be sent.
        """
        return BoundMixpanel(
            self,
            distinct_id=distinct_id,
            user_id=user_id,
            device_id=device_id,
            ip=ip,
            properties=self._builder.clean(properties, "properties"),
        )

    async def track(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Queue an event. It costs microseconds and does not wait for Mixpanel.

        Args:
            distinct_id: who did it. An empty string means nobody; None derives it from `user_id` or `device_id`.
            event_name: at most 255 characters.
            properties: details; they win over the arguments below and over the client's own fields.
            meta: merged beside `event`, as the official SDK does; Mixpanel documents no effect.
            user_id: `$user_id`, for projects with Simplified ID Merge.
            device_id: `$device_id`, likewise; without the `$device:` prefix.
            ip: the user's address, or `"0"`. Without it Mixpanel locates nobody.
            time: when it happened: seconds or milliseconds since 1970, or a `datetime` with a time zone. Now if None.
            insert_id: at most 36 of A-Z, a-z, 0-9 and dash; made up if None. A repeat of the same event with the
                same id and time is counted once by Mixpanel.

        Raises:
            ValidationError: naming the path of what Mixpanel would not take.
            QueueFullError: under `Overflow.RAISE`, or under `Overflow.WAIT` after `wait_timeout`.
            ClientClosedError: after `aclose()`.
        """
        item = self._event(
            distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id, self._events
        )
        if item is not None:
            await self._admit(self._events, item)

    def track_nowait(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Queue an event from a plain function, in any thread. Arguments and errors are those of `track`.

        Raises:
            QueueFullError: under `Overflow.RAISE` and, as it cannot wait, under `Overflow.WAIT`.
        """
        item = self._event(
            distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id, self._events
        )
        if item is not None:
            if not self._sender.offer(self._events, item):
                raise self._sender.full()
            self._sender.attach_if_idle()

    async def track_immediate(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None = None,
        meta: Meta = None,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        time: float | datetime | None = None,
        insert_id: str | None = None,
    ) -> None:
        """Send one event now and return once Mixpanel has taken it. Arguments are those of `track`.

        Tries are limited by `identity_retry`. The event keeps its `time` and `$insert_id`, so that tries are one.

        Raises:
            ApiError: Mixpanel answered and did not take it.
            TransportError: no answer could be had.
            ValidationError: naming the path of what Mixpanel would not take.
            QueueFullError: there is no room for it, whatever the overflow policy.
            ClientClosedError: after `aclose()`.
        """
        item = self._event(
            distinct_id, event_name, properties, meta, user_id, device_id, ip, time, insert_id, self._events
        )
        if item is None:
            return
        batch = self._sender.lease_alone(self._events, item)
        await self._awaited(Kind.EVENTS, item, None, batch)

    async def import_data(
        self,
        api_key: str | None,
        distinct_id: str | None,
        event_name: str,
        timestamp: float | datetime,
        properties: Properties | None = None,
        meta: Meta = None,
        api_secret: str | None = None,
    ) -> None:
        """Queue an event of any age since 1971, for `/import`.

        Args:
            api_key: taken for the official SDK's sake and not sent: Mixpanel no longer documents it.
            distinct_id: who did it.
            event_name: at most 255 characters.
            timestamp: when it happened: seconds or milliseconds since 1970, or a `datetime` with a time zone.
            properties: details.
            meta: as in `track`.
            api_secret: the project's secret, if the client has no service account; Mixpanel retires it on 2027-03-03.
                Without either, the token signs the request.

        Raises:
            ValidationError, QueueFullError, ClientClosedError: as `track` does.
            ConfigurationError: if `api_secret` cannot be sent.
        """
        lane = self._lanes[Kind.IMPORTS]
        secret = as_secret(api_secret)
        if self._options.credentials is None and secret is not None:
            lane = self._sender.lane(Kind.IMPORTS, secret)
        if timestamp is None:
            raise ValidationError("timestamp", "must be a number or a datetime with a time zone, not NoneType")
        item = self._event(
            distinct_id, event_name, properties, meta, None, None, None, timestamp, None, lane, recent=False
        )
        if item is not None:
            await self._admit(lane, item)

    async def alias(self, alias_id: str, original: str, meta: Meta = None) -> None:
        """Let `alias_id` mean the person known as `original`, from now on and (Original ID Merge) for the past.

        Args:
            alias_id: the new id. It can be an alias once only.
            original: the id that Mixpanel knows already.
            meta: merged beside `event`.

        Raises:
            IdentityError: the project's `id_merge` ignores aliases, or both ids are the same.
            ValidationError: an id is blank or a placeholder that Mixpanel refuses.
            ApiError, TransportError: it did not succeed; `attempts`, `status` and `endpoint` tell how.
            ClientClosedError: after `aclose()`.
        """
        self._check_identity("alias", {"alias_id": alias_id, "original": original}, IdMerge.SIMPLIFIED)
        properties = {"distinct_id": original, "alias": alias_id}
        await self._awaited(Kind.IDENTITY, self._builder.identity("$create_alias", properties, meta))

    async def merge(
        self,
        api_key: str | None = None,
        distinct_id1: str | None = None,
        distinct_id2: str | None = None,
        meta: Meta = None,
        api_secret: str | None = None,
    ) -> None:
        """Make one person of two ids. It cannot be undone.

        Args:
            api_key: taken for the official SDK's sake and not sent.
            distinct_id1: one id.
            distinct_id2: the other.
            meta: merged beside `event`.
            api_secret: the project's secret, if the client has no service account.

        Raises:
            ConfigurationError: there is neither a service account nor `api_secret`; Mixpanel wants one.
            IdentityError, ValidationError, ApiError, TransportError, ClientClosedError: as `alias` does.
        """
        ids = {"distinct_id1": distinct_id1, "distinct_id2": distinct_id2}
        self._check_identity("merge", ids, IdMerge.SIMPLIFIED, IdMerge.LEGACY)
        secret = as_secret(api_secret)
        if self._options.credentials is None and secret is None:
            raise ConfigurationError("merge needs a service account (credentials=) or api_secret=")
        properties = {"$distinct_ids": [distinct_id1, distinct_id2]}
        await self._awaited(Kind.IMPORTS, self._builder.identity("$merge", properties, meta), secret)

    async def identify(self, identified_id: str, anon_id: str, meta: Meta = None) -> None:
        """Join the anonymous visitor `anon_id` to the person `identified_id`.

        Args:
            identified_id: the user's id.
            anon_id: a UUID of version 4 with dashes. Mixpanel takes any other form and silently ignores it.
            meta: merged beside `event`.

        Raises:
            IdentityError: the project's `id_merge` ignores it, or `anon_id` is one that Mixpanel would ignore.
            ValidationError, ApiError, TransportError, ClientClosedError: as `alias` does.
        """
        ids = {"identified_id": identified_id, "anon_id": anon_id}
        self._check_identity("identify", ids, IdMerge.SIMPLIFIED, IdMerge.LEGACY)
        if not is_uuid4(anon_id):
            raise IdentityError("anon_id", "must be a UUID of version 4 with dashes; Mixpanel silently ignores others")
        properties = {"$identified_id": identified_id, "$anon_id": anon_id}
        await self._awaited(Kind.IDENTITY, self._builder.identity("$identify", properties, meta))

    def _check_identity(self, call: str, ids: Mapping[str, object], *without: IdMerge) -> None:
        for name, value in ids.items():
            check_id(value, name)
        if self._options.id_merge in without:
            advice = (
                "; track an event with user_id and device_id instead"
                if self._options.id_merge is IdMerge.SIMPLIFIED
                else "; use alias instead"
            )
            raise IdentityError(call, f"does nothing in a project with {self._options.id_merge.value} ID merge{advice}")
        first, second = ids.values()
        if first == second:
            raise IdentityError(" and ".join(ids), "are the same id; there is nothing to join")

    async def _update(self, kind: Kind, message: Mapping[str, Any], meta: Meta) -> None:
        lane = self._lanes[kind]
        try:
            item = self._builder.profile(message, meta, now=self._runtime.wall())
        except Discarded as kept:
            self._sender.discard(lane, kept.record, kept.reason)
        else:
            await self._admit(lane, item)

    def _event(
        self,
        distinct_id: str | None,
        event_name: str,
        properties: Properties | None,
        meta: Meta,
        user_id: str | None,
        device_id: str | None,
        ip: str | None,
        time: object,
        insert_id: str | None,
        lane: Lane,
        *,
        recent: bool | None = None,
    ) -> bytes | None:
        """The encoded event, or None if `before_send` kept it back."""
        try:
            return self._builder.event(
                distinct_id,
                event_name,
                properties,
                meta,
                now=self._runtime.wall(),
                new_id=self._runtime.new_id,
                user_id=user_id,
                device_id=device_id,
                ip=ip,
                time=time,
                insert_id=insert_id,
                recent=recent,
            )
        except Discarded as kept:
            self._sender.discard(lane, kept.record, kept.reason)
            return None

    async def _admit(self, lane: Lane, item: bytes) -> None:
        self._sender.attach()
        if not self._sender.offer(lane, item):
            deadline = self._runtime.monotonic() + self._options.batching.wait_timeout
            while await self._sender.room(len(item), deadline):
                if self._sender.offer(lane, item):
                    break
            else:
                raise self._sender.full()
        self._until_yield -= 1
        if self._until_yield <= 0:
            self._until_yield = _YIELD_EVERY
            await anyio.lowlevel.checkpoint()

    async def _awaited(
        self, kind: Kind, item: bytes, secret: Secret | None = None, batch: Batch | None = None
    ) -> None:
        """Send a message in a task of the package's own, and wait for what becomes of it."""
        is_gone = False

        async def work() -> None:
            reason: DropReason | None = DropReason.CLOSED
            message = ""
            try:
                await self._caller.call(kind, item, secret, lambda: is_gone)
                reason = None
            except Exception as error:
                reason, message = reason_of(error), str(error)
                raise
            finally:
                if batch is not None:
                    self._sender.conclude(batch, reason, message)

        try:
            job = self._sender.spawn(work, f"mixpanel {kind.value}")
        except ClientClosedError:
            if batch is not None:
                self._sender.conclude(batch, DropReason.CLOSED, "")
            raise
        try:
            await job.result()
        except BaseException:
            is_gone = True
            raise

    def __repr__(self) -> str:
        return f"<AsyncMixpanel {self._origin} pending={self._sender.pending}{' closed' if self._sender.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncMixpanel holds connections and credentials and cannot be pickled")

    def __del__(self) -> None:
        sender: Sender | None = getattr(self, "_sender", None)
        if sender is None or sender.closed:
            return
        pending = sender.pending
        sender.abandon()
        if pending:
            warnings.warn(
                f"an AsyncMixpanel was dropped without aclose(); {pending} records were not delivered",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
