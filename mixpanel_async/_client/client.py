"""The client: it puts the parts together, and opens and closes them."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .._delivery.callbacks import Callbacks, OnDelivered, OnDrop
from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._encoding.records import BeforeSend, RecordEncoder, SerializerOption
from .._http.transport import HttpClient
from .._model.config import (
    BatchPolicy,
    ClientOptions,
    EventsEndpoint,
    IdMerge,
    Overflow,
    Region,
    RetryPolicy,
    env_options,
)
from .._model.credentials import ServiceAccountCredentials
from .._model.errors import (
    ClientClosedError,
    MixpanelException,
    ValidationError,
    raise_configuration_error,
    without_traceback,
)
from .._model.stats import FlushResult, Stats
from .._runtime.clock import Environment, real_environment
from .._runtime.event_loop import preload_backend
from .base import Properties
from .bound import BoundMixpanel
from .events import EventMethods
from .factory import build_pipeline
from .identity import IdentityMethods
from .profiles import ProfileMethods

if TYPE_CHECKING:
    from typing_extensions import Self

    from .._spool.spool import SqliteSpool
    from ..flags.exposures import Track
    from ..flags.local import LocalFeatureFlagsProvider
    from ..flags.options import LocalFlags, RemoteFlags
    from ..flags.providers import Providers
    from ..flags.remote import RemoteFeatureFlagsProvider

_log = logging.getLogger("mixpanel_async")
_BATCHING: Final = BatchPolicy()
_RETRY: Final = RetryPolicy()
_LONGEST: Final = 1e9
_IDENTITY_RETRY: Final = RetryPolicy(attempts=3, initial=0.5, maximum=4.0, total_timeout=15.0)


class AsyncMixpanel(EventMethods, IdentityMethods, ProfileMethods):
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
        spool: keeps accepted records on disk until Mixpanel has taken them; see `SqliteSpool`.
        local_flags: evaluate feature flags in this process; see `LocalFlags`. None for not.
        remote_flags: evaluate feature flags by asking Mixpanel; see `RemoteFlags`. None for not.
        http_client: an `httpx.AsyncClient` of your own. It stays yours to close.
        timeout: seconds for one request as a whole, from the wait for a connection to the last byte; 0.001 to 3,600.
        shutdown_timeout: seconds that `aclose()` may take to deliver; 0 to 3,600. Also how long a `flush()` without a
            time-out waits without any progress.
        allow_http: take an `http://` origin that is not on this machine. For an emulator in another container.

    Raises:
        ConfigurationError: if an option is out of bounds.
        ImportError: if `local_flags` is given and the extra `flags` is missing.
    """

    def __init__(
        self,
        token: str,
        *,
        credentials: ServiceAccountCredentials | None = None,
        region: Region = "us",
        api_host: str | None = None,
        id_merge: IdMerge | None = None,
        batching: BatchPolicy = _BATCHING,
        retry: RetryPolicy = _RETRY,
        identity_retry: RetryPolicy = _IDENTITY_RETRY,
        overflow: Overflow = Overflow.DROP_NEWEST,
        events_endpoint: EventsEndpoint = "auto",
        super_properties: Mapping[str, Any] | None = None,
        serializer: SerializerOption = None,
        before_send: BeforeSend | None = None,
        on_drop: OnDrop | None = None,
        on_delivered: OnDelivered | None = None,
        spool: SqliteSpool | None = None,
        local_flags: LocalFlags | None = None,
        remote_flags: RemoteFlags | None = None,
        http_client: HttpClient | None = None,
        timeout: float = 10.0,
        shutdown_timeout: float = 10.0,
        allow_http: bool = False,
        _runtime: Environment | None = None,
    ) -> None:
        try:
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
            self._origin = options.origin
            preload_backend()
            runtime = _runtime or real_environment()
            builder = RecordEncoder(
                token,
                super_properties=super_properties,
                serializer=serializer,
                before_send=before_send,
                recent=not options.by_import,
            )
            parts = build_pipeline(options, Callbacks(on_drop, on_delivered), spool, http_client, runtime)
            super().__init__(
                options=options,
                encoder=builder,
                environment=runtime,
                queue=parts.queue,
                sender=parts.sender,
                direct_sender=parts.direct_sender,
            )
            self._flags: Providers | None = None
            if local_flags is not None or remote_flags is not None:
                # Nobody who has no flags pays for them.
                from ..flags.providers import FlagDependencies, make_providers  # noqa: PLC0415

                track = _tracker(weakref.ref(self))
                wiring = FlagDependencies(options, parts.queue, parts.sender, parts.transport, runtime, track)
                self._flags = make_providers(local_flags, remote_flags, wiring)
            weakref.finalize(self, _warn_if_unclosed, parts.queue, parts.sender)
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # What reports errors may show the locals of this frame.
            del token

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
        try:
            return cls(**{**env_options(os.environ if environ is None else environ, options), **options})
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # What reports errors may show the locals of this frame.
            del environ, options

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

        It takes `shutdown_timeout` seconds at most, and up to two more to stop what is left and to finish callbacks; up
        to four with a spool whose disk does not answer either.
        It may be called again, also after a call that was cancelled, and then waits for and returns the same.

        Returns:
            What became of the records that were waiting.
        """
        return await self._sender.aclose(self._options.shutdown_timeout)

    async def flush(self, timeout: float | None = None) -> FlushResult:
        """Deliver everything accepted so far, now.

        Args:
            timeout: seconds, at least 0. None goes on for as long as records are being settled, and ends when none
                was for `shutdown_timeout` seconds. While it waits, records in trouble are tried again every
                `RetryPolicy.initial` seconds. If no try can be made before the end, as Mixpanel has asked to wait for
                longer or so many have failed that pauses are kept, it lets other tasks run and returns.

        Returns:
            What became of the records that were waiting when it began; `pending` ones stay queued. What had ended
            before is in `stats()`. Losses have been reported to `on_drop` by then, unless that takes over a second.

        Raises:
            ValidationError: if `timeout` is negative or not a number.
        """
        if timeout is None:
            return await self._sender.flush(None)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
            raise ValidationError("timeout", "must be a number of seconds, at least 0, or None")
        return await self._sender.flush(float(min(timeout, _LONGEST)))

    def stats(self) -> Stats:
        """A snapshot of what became of everything so far. From any thread."""
        stats = self._queue.stats()
        return stats if self._flags is None else replace(stats, flags=self._flags.stats())

    @property
    def local_flags(self) -> LocalFeatureFlagsProvider:
        """Feature flags, evaluated in this process.

        Raises:
            ConfigurationError: if the client was made without `local_flags`.
        """
        found = self._flags and self._flags.local
        return found or raise_configuration_error("the client was made without local_flags=LocalFlags()")

    @property
    def remote_flags(self) -> RemoteFeatureFlagsProvider:
        """Feature flags, evaluated by Mixpanel.

        Raises:
            ConfigurationError: if the client was made without `remote_flags`.
        """
        found = self._flags and self._flags.remote
        return found or raise_configuration_error("the client was made without remote_flags=RemoteFlags()")

    def bind(
        self,
        *,
        distinct_id: str | None = None,
        user_id: str | None = None,
        device_id: str | None = None,
        ip: str | None = None,
        properties: Properties | None = None,
        link: str | None = None,
    ) -> BoundMixpanel:
        """The same client, seen through one user or request.

        Args:
            distinct_id: for every call.
            user_id: `$user_id` of every event.
            device_id: `$device_id` of every event.
            ip: the user's address, for Mixpanel to locate them.
            properties: put under the properties of every event; copied now.
            link: what `BoundMixpanel.link` was at the end of this device's last request; see `BoundMixpanel.sign_in`.

        Raises:
            ValidationError: if a property cannot be sent.
        """
        return BoundMixpanel(
            self,
            distinct_id=distinct_id,
            user_id=user_id,
            device_id=device_id,
            ip=ip,
            properties=self._encoder.clean_properties(properties, "properties"),
            link=link,
        )

    def __repr__(self) -> str:
        queue: Queue | None = getattr(self, "_queue", None)
        if queue is None:
            # An error's traceback may show one that is only half made.
            return "<AsyncMixpanel>"
        return f"<AsyncMixpanel {self._origin} pending={queue.pending}{' closed' if queue.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncMixpanel holds connections and credentials and cannot be pickled")


def _tracker(client: weakref.ref[AsyncMixpanel]) -> Track:
    """What queues an event for flags, which outlive a client that is dropped and must not keep it."""

    def track(distinct_id: str, event_name: str, properties: Mapping[str, Any]) -> None:
        found = client()
        if found is None:
            raise ClientClosedError("the client was dropped")
        found.track_nowait(distinct_id, event_name, properties)

    return track


def _warn_if_unclosed(queue: Queue, sender: Sender) -> None:
    """What happens when a client is dropped, or the interpreter exits, without `aclose()`."""
    queue.check_fork()
    if sender.is_closed:
        return
    pending = queue.pending
    sender.abandon()
    if pending:
        where = "were not delivered" if queue.spool is None else "wait in the spool"
        text = f"an AsyncMixpanel was dropped without aclose(); {pending} records {where}"
        # For the operator as well: ResourceWarning is hidden unless the interpreter is told to show it.
        _log.warning(text)
        warnings.warn(text, ResourceWarning, stacklevel=2)
