"""`AsyncMixpanel`: constructors, bound and blocking clients, and statistics. `factory.py` connects the parts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from functools import lru_cache, partial
from inspect import signature
from typing import TYPE_CHECKING, Any, Final, NoReturn

from .._delivery.callbacks import Callbacks, OnDelivered, OnDrop
from .._encoding.hooks import BeforeSend, SerializerOption
from .._http.transport import HttpClient
from .._model.config import (
    DEFAULT_BATCHING,
    DEFAULT_RETRY,
    BatchPolicy,
    ClientOptions,
    EventsEndpoint,
    IdMergeOption,
    InvalidOption,
    NestingOption,
    Overflow,
    Region,
    RetryPolicy,
    as_id_merge,
    check_number,
    env_options,
    outbox_url,
)
from .._model.credentials import ServiceAccountCredentials
from .._model.errors import (
    ClientClosedError,
    MixpanelException,
    without_traceback,
)
from .._model.unsupported import unsupported_arguments
from .._runtime.environment import real_environment
from .._runtime.event_loop import preload_backend
from .base import Properties
from .bound import BoundMixpanel
from .bound_properties import BoundProperties, BoundServices, BoundTracker
from .events import EventMethods
from .factory import Pipeline, build_encoder, build_pipeline
from .flag_access import FlagAccess
from .groups import GroupMethods
from .identity import IdentityMethods
from .invalid import as_refusal
from .lifecycle import LifecycleMethods
from .profiles import ProfileMethods

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .._spool.spool import SqliteSpool
    from ..flags.exposures import Track
    from ..flags.options import LocalFlags, RemoteFlags
    from ..flags.providers import Providers
    from ..outbox.protocol import Outbox
    from .arguments import ClientArguments
    from .blocking import BlockingMixpanel

_IDENTITY_RETRY: Final = RetryPolicy(attempts=3, initial=0.5, maximum=4.0, total_timeout=15.0)


class AsyncMixpanel(LifecycleMethods, FlagAccess, EventMethods, IdentityMethods, ProfileMethods, GroupMethods):
    """Asynchronous Mixpanel client for asyncio and trio.

    All calls share one connection pool and one batching queue. `track`, `people_*`, `group_*` and `import_data`
    validate and queue a record, and return. `alias`, `merge`, `identify` and `track_immediate` send at once. They
    return when Mixpanel has accepted the request, or raise.

    A client can be created anywhere, also at import time. It starts with `async with`, with `await start()`, or at the
    first call inside a running event loop. Close it with `aclose()`, which `async with` does.

    Every method can be called from every event loop and thread. The client runs in one event loop at a time: requests
    for callers in other event loops are made there. When that event loop ends, the client delivers waiting records for
    up to `loop_end_timeout` seconds, and the event loop of a later call takes over. At the exit of the interpreter,
    records that still wait are delivered for as long.

    Example:
        ```python
        import asyncio

        from mixpanel_async import AsyncMixpanel


        async def main() -> None:
            async with AsyncMixpanel("PROJECT_TOKEN", region="eu") as mp:
                await mp.track("user-1", "Order placed", {"amount": 19.99})


        asyncio.run(main())
        ```

    Args:
        token: the project's token. Surrounding white space is removed.
        credentials: service account. With it, events go to `/import`, which reports each record that it rejects.
        region: data residency of the project: `us`, `eu` or `in`; default `us`.
        api_host: host or origin that replaces the region's, such as a proxy or `http://127.0.0.1:8080`.
        id_merge: the project's ID Merge system, an `IdMerge` or its text, such as `simplified`. With it, identity calls
            that the project would ignore raise `IdentityError`.
        batching: size and timing of batches; see `BatchPolicy`.
        retry: retries of queued records; see `RetryPolicy`. Unlimited by default: the queue is the limit.
        identity_retry: retries of awaited calls; by default 3 attempts within 15 seconds. It must have a limit.
        overflow: policy for records that do not fit into the queue; see `Overflow`. Default: drop the new record.
        events_endpoint: endpoint of events: `track`, `import`, or `auto` (default), which is `import` with credentials
            and `track` without.
        super_properties: defaults for the properties of every event.
        serializer: a function that converts a value of an unsupported type to a supported one, or a `json.JSONEncoder`
            class.
        before_send: plain function that is called with every queued message as a dict, in the tracking call. It returns
            the message, changed or not, or None to drop it. If it raises, the message is dropped, because the function
            may be what removes personal data. Identity calls bypass it.
        on_drop: called with a list of `LostRecord` and a `DropReason` for every loss. A plain function runs in a worker
            thread, a coroutine function in the event loop.
        on_delivered: called with a `Delivery` for each request that Mixpanel accepted, in the same way.
        spool: stores accepted records on disk until Mixpanel, or the outbox, has accepted them; see `SqliteSpool`.
        outbox: hands records over to an engine that many hosts share, from which `mixpanel-async worker` delivers them;
            see `mixpanel_async.outbox`. "Delivered" then means handed over, and only awaited calls go to Mixpanel. The
            default of `batching` is then 500 records and 0.25 s (0.002 s with `confirm`), that of `retry` 0.25 to 5 s.
        local_flags: options for feature flags that are evaluated in this process; see `LocalFlags`. None disables them.
        remote_flags: options for feature flags that Mixpanel evaluates; see `RemoteFlags`. None disables them.
        http_client: your own `httpx.AsyncClient`. The client does not close it.
        timeout: seconds for one whole request, from waiting for a connection to the last byte of the response; 0.001 to
            3,600, default 10.
        shutdown_timeout: seconds that `aclose()` may take to deliver; 0 to 3,600, default 10. A `flush()` without a
            timeout ends after so many seconds without progress.
        loop_end_timeout: seconds to deliver waiting records when the event loop of the client ends, or the interpreter
            exits, without `aclose()`; 0 to 3,600, default 3.
        allow_http: accept an `http://` origin on another machine, for example an emulator in another container.
        invalid: policy for data that Mixpanel would not accept, in the methods that queue a record and in `bind`.
            `raise` (default) raises `ValidationError`. `drop` counts the record as dropped with the reason `invalid`,
            passes it to `on_drop`, logs each call site once, and returns. Identity calls and `track_immediate`
            always raise.
        nesting: policy for objects and lists nested more than 3 levels deep, in events that go to `/import`: those of
            `import_data`, and all events with credentials or `events_endpoint="import"`. Mixpanel documents 3 levels
            there. `text` (default) sends the JSON text of what is below, so that the event arrives with all its data.
            `keep` sends the values as they are, as the official SDK does; Mixpanel may reject the event. `reject` is
            a `ValidationError`. Events for `/track`, and profiles, are sent as they are.
        enabled: False turns the client off: no network, no thread, no task and no spool. Every method returns at once,
            and neither validates data nor calls a hook; `stats()` stays at zero, and flags return their fallbacks.
            Only `sign_in` still validates its ids, because it binds them. The token may then be blank.

    Raises:
        ConfigurationError: if an option is invalid.
        TypeError: if there is no such option. For options of the official SDK it says what to use instead.
        ImportError: if `local_flags` is given and the extra `flags` is not installed.
    """

    _make_environment = staticmethod(real_environment)

    def __init__(
        self,
        token: str,
        *positional: NoReturn,
        credentials: ServiceAccountCredentials | None = None,
        region: Region = "us",
        api_host: str | None = None,
        id_merge: IdMergeOption | None = None,
        batching: BatchPolicy = DEFAULT_BATCHING,
        retry: RetryPolicy = DEFAULT_RETRY,
        identity_retry: RetryPolicy = _IDENTITY_RETRY,
        overflow: Overflow = Overflow.DROP_NEWEST,
        events_endpoint: EventsEndpoint = "auto",
        super_properties: Mapping[str, Any] | None = None,
        serializer: SerializerOption = None,
        before_send: BeforeSend | None = None,
        on_drop: OnDrop | None = None,
        on_delivered: OnDelivered | None = None,
        spool: SqliteSpool | None = None,
        outbox: Outbox | None = None,
        local_flags: LocalFlags | None = None,
        remote_flags: RemoteFlags | None = None,
        http_client: HttpClient | None = None,
        timeout: float = 10.0,
        shutdown_timeout: float = 10.0,
        loop_end_timeout: float = 3.0,
        allow_http: bool = False,
        invalid: InvalidOption = "raise",
        nesting: NestingOption = "text",
        enabled: bool = True,
        **unsupported: NoReturn,
    ) -> None:
        try:
            if positional or unsupported:
                raise _unsupported([*unsupported], is_positional=bool(positional))
            options = ClientOptions(
                token=token,
                credentials=credentials,
                region=region,
                api_host=api_host,
                allow_http=allow_http,
                id_merge=as_id_merge(id_merge),
                batching=batching,
                retry=retry,
                identity_retry=identity_retry,
                overflow=overflow,
                events_endpoint=events_endpoint,
                timeout=timeout,
                shutdown_timeout=shutdown_timeout,
                loop_end_timeout=loop_end_timeout,
                invalid=invalid,
                nesting=nesting,
                enabled=enabled,
                outbox=outbox,
                has_spool=spool is not None,
            )
            self._origin = options.origin
            preload_backend()
            environment = self._make_environment()
            encoder = build_encoder(options, super_properties, serializer, before_send)
            callbacks = Callbacks(on_drop, on_delivered)
            pipeline = build_pipeline(options, callbacks, spool, outbox, http_client, environment)
            super().__init__(
                options=options,
                encoder=encoder,
                environment=environment,
                queue=pipeline.queue,
                sender=pipeline.sender,
                direct_sender=pipeline.direct_sender,
                watchdog=pipeline.watchdog,
                closer=pipeline.closer,
            )
            services = BoundServices(
                invalid=self._invalid,
                silent=_silent_client,
                on_failure=self._queue.sign_in_failed,
                make_tracker=partial(BoundTracker, self._staging, self._event_stage, encoder),
                enqueue=partial(self._sender.enqueue, self._events, wait_timeout=options.batching.wait_timeout),
                id_merge=options.id_merge,
            )
            self._nothing_bound = BoundProperties({}, services)
            self._flags = self._make_flags(local_flags, remote_flags, pipeline)
            weakref.finalize(self, pipeline.closer.finish_unclosed)
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # Error reporters may show the locals of this frame.
            del token, positional, unsupported

    def _make_flags(
        self, local_flags: LocalFlags | None, remote_flags: RemoteFlags | None, pipeline: Pipeline
    ) -> Providers | None:
        """Return the providers of feature flags; None if neither kind is enabled."""
        if local_flags is None and remote_flags is None:
            return None
        # Imported only if used, to keep the import of the package fast.
        from ..flags.providers import FlagDependencies, make_providers  # noqa: PLC0415

        track = _tracker(weakref.ref(self))
        dependencies = FlagDependencies(
            self._options, pipeline.queue, pipeline.sender, pipeline.transport, self._environment, track
        )
        return make_providers(local_flags, remote_flags, dependencies)

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, token: str | None = None, **options: Unpack[ClientArguments]
    ) -> Self:
        """Create a client from environment variables.

        It reads `MIXPANEL_TOKEN` and, if set, `MIXPANEL_SERVICE_ACCOUNT_USERNAME`, `MIXPANEL_SERVICE_ACCOUNT_SECRET`,
        `MIXPANEL_PROJECT_ID`, `MIXPANEL_REGION`, `MIXPANEL_API_HOST` and `MIXPANEL_ID_MERGE`. `MIXPANEL_ALLOW_HTTP`
        set to 1, true, yes or on is the option `allow_http`. `MIXPANEL_OUTBOX` is the URL of a `RedisOutbox`.

        With `MIXPANEL_DISABLED` set to 1, true, yes or on, the client is disabled. It then reads only
        `MIXPANEL_TOKEN` and `MIXPANEL_ID_MERGE`, and needs neither. 0, false, no, off and blank have no effect.

        Example:
            ```python
            import asyncio
            import os

            from mixpanel_async import AsyncMixpanel

            os.environ.setdefault("MIXPANEL_TOKEN", "PROJECT_TOKEN")


            async def main() -> None:
                async with AsyncMixpanel.from_env(timeout=5.0) as mp:
                    await mp.track("user-1", "Order placed", {"amount": 19.99})


            asyncio.run(main())
            ```

        Args:
            environ: variables to use instead of the process's environment.
            token: the project's token. It overrides `MIXPANEL_TOKEN`.
            **options: options of `AsyncMixpanel`. They override the variables.

        Returns:
            The client. It is not started.

        Raises:
            ConfigurationError: if the token is missing or a value is invalid.
            TypeError: if there is no such option.
        """
        try:
            variables = os.environ if environ is None else environ
            given: dict[str, Any] = {**options} if token is None else {**options, "token": token}
            found = {**env_options(variables, given), **given}
            if (url := outbox_url(variables, found)) is not None:
                from ..outbox import RedisOutbox  # noqa: PLC0415  only imported if used

                found["outbox"] = RedisOutbox(url)
            return cls(**found)
        except MixpanelException as error:
            raise without_traceback(error) from None
        finally:
            # Error reporters may show the locals of this frame.
            variables = given = found = url = environ = token = options = None  # type: ignore[assignment]

    def in_thread(self) -> BlockingMixpanel:
        """Return a context manager that runs the client in a background thread, for programs without an event loop.

        Example:
            ```python
            from mixpanel_async import AsyncMixpanel

            with AsyncMixpanel("PROJECT_TOKEN", id_merge="original").in_thread() as mp:
                visitor = mp.new_device_id()
                mp.track(visitor, "Page viewed")
                mp.identify("user-1", visitor)
            ```

        Returns:
            A client with blocking methods of the same names and arguments. Leaving the block delivers and closes,
            unless the client runs in another event loop, such as that of a web app: it then stays open there.
        """
        from .blocking import BlockingMixpanel  # noqa: PLC0415  only imported if used

        # A commit, and `Overflow.WAIT`, need an event loop to wait in.
        can_wait = self._queue.has_commits or self._options.overflow is Overflow.WAIT
        return BlockingMixpanel(
            self, can_wait=can_wait, is_interrupted=self._queue.is_interrupted, runs_here=self._sender.attach
        )

    def start_in_thread(self) -> BlockingMixpanel:
        """Run the client in a background thread until `BlockingMixpanel.close()`, or until the program ends.

        Example:
            ```python
            from mixpanel_async import AsyncMixpanel

            mp = AsyncMixpanel("PROJECT_TOKEN").start_in_thread()
            mp.track("user-1", "Report sent")
            mp.close()
            ```

        Returns:
            A client with blocking methods; see `in_thread`.

        Raises:
            ClientClosedError: if the client is closed.
        """
        blocking = self.in_thread()
        blocking.start()
        return blocking

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
    ) -> BoundMixpanel:
        """Bind the client to one user or request.

        Example:
            ```python
            import asyncio

            from mixpanel_async import AsyncMixpanel


            async def main() -> None:
                async with AsyncMixpanel("PROJECT_TOKEN", id_merge="simplified") as mp:
                    visitor = mp.bind(device_id=mp.new_device_id(), ip="203.0.113.7", properties={"app": "shop"})
                    await visitor.track("Page viewed", {"page": "/pricing"})
                    await visitor.sign_in("user-1", is_new=True)
                    await visitor.people_set({"plan": "free"})


            asyncio.run(main())
            ```

        Args:
            distinct_id: `distinct_id` of every call.
            user_id: `$user_id` of every event.
            device_id: `$device_id` of every event. In Original and Legacy projects it is also the id of an anonymous
                visitor. The browser SDK writes `$device:` in front of it there: bind the id with this prefix if the
                page sends it so. `$device_id` never has the prefix.
            ip: IP address of the user, for geolocation.
            properties: defaults for the properties of every event. They are copied now.
            link: value of `BoundMixpanel.link` after the last request of this device; see `BoundMixpanel.sign_in`.
            last_user_id: user who last used the device according to a source that need not be trusted, such as a
                cookie of the browser SDK. It is sent nowhere: if another user signs in, the device gets a new id.
            sign_in_timeout: seconds that `BoundMixpanel.sign_in` waits for Mixpanel before it puts the identity event
                into the queue, 0.001 to 86,400. By default it waits as long as `identity_retry` allows, and raises.

        Returns:
            A client with the same methods, without the ids. It needs no closing.

        Raises:
            ValidationError: if a property cannot be sent. With `invalid="drop"`, the events of the bound client are
                dropped instead.
            ConfigurationError: if `sign_in_timeout` is out of bounds.
        """
        if sign_in_timeout is not None:
            check_number("sign_in_timeout", sign_in_timeout, minimum=0.001, maximum=86_400.0)
        return BoundMixpanel(
            self,
            self._nothing_bound if properties is None else self._bound_properties(properties),
            distinct_id,
            user_id,
            device_id,
            ip,
            link,
            last_user_id,
            sign_in_timeout,
        )

    def _bound_properties(self, properties: Properties) -> BoundProperties:
        """Return a copy of bound properties, and why they cannot be sent unless that is raised."""
        services = self._nothing_bound.services
        try:
            return BoundProperties(self._encoder.clean_properties(properties, "properties"), services)
        except Exception as error:  # noqa: BLE001  a user's mapping may raise anything
            problem = as_refusal(error)
        return BoundProperties({}, services, self._invalid.keep(problem))

    def __repr__(self) -> str:
        try:
            queue = self._queue
        except AttributeError:
            # The traceback of an error in `__init__` may show an incomplete client.
            return "<AsyncMixpanel>"
        return f"<AsyncMixpanel {self._origin} pending={queue.pending}{' closed' if queue.closed else ''}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an AsyncMixpanel holds connections and credentials and cannot be pickled")


@lru_cache(maxsize=1)
def _silent_client() -> AsyncMixpanel:
    """Return the disabled client behind every `BoundMixpanel.silenced`."""
    return AsyncMixpanel("", enabled=False)


def _unsupported(names: list[str], *, is_positional: bool) -> TypeError:
    """Return the error for arguments that the constructor does not have. Their values may be secret."""
    if is_positional:
        return TypeError(
            "AsyncMixpanel() takes one positional argument, the token; a consumer is not needed: pass options such as "
            "batching= and api_host= by name"
        )
    options = signature(AsyncMixpanel).parameters.values()
    return TypeError(unsupported_arguments(names, [one.name for one in options if one.kind is one.KEYWORD_ONLY]))


def _tracker(client: weakref.ref[AsyncMixpanel]) -> Track:
    """Return a function that tracks exposure events, with a weak reference: flags must not keep the client alive."""

    def track(distinct_id: str, event_name: str, properties: Mapping[str, Any]) -> None:
        alive = client()
        if alive is None:
            raise ClientClosedError("the client was garbage-collected")
        alive.track_nowait(distinct_id, event_name, properties)

    return track
