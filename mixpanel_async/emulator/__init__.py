"""Local Mixpanel emulator. It accepts the requests of every official client and resolves identities as Mixpanel does.

    emulator = Emulator(IdMerge.ORIGINAL)
    visitor = str(uuid.uuid4())
    async with emulator.client() as mp:
        await mp.track(visitor, "Viewed page")
        await mp.identify("user-1", visitor)
    assert emulator.cluster("user-1") == {"user-1", visitor}
    assert emulator.events("Viewed page")[0]["properties"]["distinct_id"] == "user-1"

The emulator shares no code with the client, so that a mistake in one is not repeated in the other. The rules that join
ids are in `mixpanel_async.identity`, which the client does not use. Where Mixpanel's
documents are silent or contradict each other, each module lists its choices under "Decisions where Mixpanel's documents
are silent".

Sub-packages, each importing only from those to its right: `http` -> `page` -> `storage`, `flags` -> `project`.
From outside, the emulator imports only `IdMerge` and `identity`. `Emulator.client` imports the client when called.
Start reading at `Emulator`, then at `http/app.py`, which handles a request, and `project/project.py`, which holds the
data.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from mixpanel_async._model.config import IdMerge
from mixpanel_async.identity.systems import (
    Identities,
    LegacyIdentities,
    OriginalIdentities,
    SimplifiedIdentities,
    keep_first,
)

from .project.access import Access
from .project.health import audit_events
from .project.project import Project

try:
    from .http.app import Clock, EmulatorState, RecordedRequest, build_app
    from .http.cors import parse_origins
    from .http.request_log import RequestDigest, RequestEntry
    from .http.routes import routes_of
    from .http.server import Server
    from .http.tls import Tls, TlsError
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"starlette", "uvicorn", "h11"}:
        raise
    raise ImportError(
        'the emulator needs an extra: run pip install ".[emulator]" in a clone of the repository', name=error.name
    ) from error

from .flags.flags import FlagDefinitions
from .http.fault_controls import FaultControls
from .http.faults import KINDS, TRANSIENT, FaultKind
from .http.flag_controls import FlagControls
from .http.received import ReceivedData
from .page.feed import activity_counts
from .project.propagation import DelayedIdentities
from .project.reports import arrived_events, count_duplicates, identity_entries, reported_events
from .storage.store import ProjectStore, StoreError

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from mixpanel_async import AsyncMixpanel
    from mixpanel_async.identity import AuditReport
    from mixpanel_async.types import ClientArguments, IdMergeOption

__all__ = [
    "KINDS",
    "TRANSIENT",
    "Emulator",
    "FaultKind",
    "RecordedRequest",
    "RequestDigest",
    "RequestEntry",
    "Server",
    "Tls",
    "TlsError",
]

DEFAULT_TOKEN: Final = "emulator-token"  # noqa: S105  names no real project


def wall_time() -> float:
    """Return the seconds since the epoch. Not a reference to `time.time`, which freezegun would not replace here."""
    return time.time()


class Emulator(FaultControls, FlagControls, ReceivedData):
    """Emulated Mixpanel project, in memory or in a directory.

    Example:
        ```python
        import asyncio

        from mixpanel_async.emulator import Emulator


        async def main() -> None:
            emulator = Emulator("original")
            async with emulator.client() as mp:
                visitor = mp.new_device_id()
                await mp.track(visitor, "Page viewed", {"page": "/pricing"})
                await mp.identify("user-1", visitor)
                await mp.people_set("user-1", {"plan": "pro"})
            assert emulator.cluster("user-1") == {"user-1", visitor}
            assert emulator.events("Page viewed")[0]["properties"]["distinct_id"] == emulator.resolve("user-1")
            print(emulator.profile("user-1"))


        asyncio.run(main())
        ```

    Args:
        id_merge: ID merge system of the project.
        token: project token. None accepts every token. Otherwise, `/track`, `/engage` and `/groups` silently ignore
            records with another token, as Mixpanel does.
        secret: project secret for `/import`; None if the project has none.
        service_account: user name, secret and project id for `/import`; None if the project has none. If token, secret
            and service account are all None, `/import` accepts any HTTP Basic credentials, but requires some.
        cluster_limit: maximum number of ids of one person in an Original project, at least 2. Mixpanel documents 500,
            and 499 in a diagram.
        choose_canonical: function that receives the canonical ids of two clusters about to merge in an Original
            project, and returns the one to keep. The first argument belongs to the id that the identity call names
            first. Mixpanel does not document its choice: pass `lambda first, second: second` to find code that depends
            on it.
        max_events: maximum number of events kept, at least 1. The oldest events are removed first.
        max_bytes: maximum size of the events kept, in bytes of JSON, at least 1. The oldest events are removed first.
        propagation_delay: delay in seconds, at least 0, until reports (`events`, `resolve`, the export) apply a new
            mapping between ids. Ingestion, profiles, `cluster` and `identity_log` apply it at once. Mixpanel states up
            to 24 hours.
        data_dir: directory in which events, profiles, groups and identities are stored. It is created if it does not
            exist. None keeps the data in memory. Each request is on disk before it is answered, so that a killed
            process loses no confirmed data. Only one emulator at a time can use a directory, until `close` releases it.
            An unreadable file is renamed to `*.corrupt-<n>`, with a warning in the log.
        geolocate: function that returns `$city`, `$region`, `$country_code` and `$timezone` for an IP address. Every
            `$set` and `$set_once` writes them to the user's profile, as in Mixpanel, unless the update has `$ip` 0, or
            has no `$ip` and comes with `ip=0`. None disables geolocation.
        flags: definitions of feature flags, or the path of a JSON file with definitions, which is read again after each
            change. A definition needs a `key` and a `ruleset` in the format of `/flags/definitions`. The emulator fills
            in the rest.
        allow_origins: origins of web pages that may read the responses of ingestion and flags, such as
            `https://app.example.com`, or `*` for every origin. Pages on `localhost`, `127.0.0.1` and `[::1]` always
            may, on every port.
        now: clock that returns seconds since the epoch. The default also follows a test that replaces `time.time`.

    Raises:
        ValueError: if a value is out of bounds, a flag or an origin is malformed, or `data_dir` holds a project with
            another `id_merge`.
        OSError: if `data_dir` cannot be used or another emulator uses it, or if the file of `flags` cannot be read.
    """

    def __init__(
        self,
        id_merge: IdMergeOption = IdMerge.SIMPLIFIED,
        *,
        token: str | None = None,
        secret: str | None = None,
        service_account: tuple[str, str, str] | None = None,
        cluster_limit: int = 500,
        choose_canonical: Callable[[str, str], str] = keep_first,
        max_events: int = 1_000_000,
        max_bytes: int = 1_000_000_000,
        propagation_delay: float = 0.0,
        data_dir: str | os.PathLike[str] | None = None,
        geolocate: Callable[[str], Mapping[str, Any]] | None = None,
        flags: Iterable[Mapping[str, Any]] | str | os.PathLike[str] = (),
        allow_origins: Iterable[str] = (),
        now: Callable[[], float] = wall_time,
    ) -> None:
        if token is not None and not token.strip():
            raise ValueError("token must not be blank; use None to accept any token")
        if cluster_limit < 2:
            raise ValueError(f"cluster_limit must be at least 2, not {cluster_limit}")
        if max_events < 1 or max_bytes < 1:
            raise ValueError(f"max_events and max_bytes must be at least 1, not {max_events} and {max_bytes}")
        if not (math.isfinite(propagation_delay) and propagation_delay >= 0):
            raise ValueError(f"propagation_delay must be at least 0 seconds, not {propagation_delay}")
        origins = parse_origins(allow_origins)
        self.id_merge = IdMerge(id_merge)
        self._cluster_limit = cluster_limit
        token = token and token.strip()
        self.token = token

        def identities() -> Identities:
            if self.id_merge is IdMerge.LEGACY:
                return LegacyIdentities()
            if self.id_merge is IdMerge.ORIGINAL:
                return OriginalIdentities(cluster_limit, choose_canonical)
            return SimplifiedIdentities()

        clock = Clock(now)
        flag_definitions = FlagDefinitions(Path(flags) if isinstance(flags, (str, os.PathLike)) else flags)
        store = None if data_dir is None else ProjectStore(Path(data_dir), self.id_merge.value)

        def project() -> Project:
            live = identities()
            return Project(
                live,
                max_events=max_events,
                max_bytes=max_bytes,
                delayed=DelayedIdentities(live, identities, propagation_delay, clock),
                changes=None if store is None else store.changes,
                geolocate=geolocate,
            )

        access = Access(token=token, secret=secret, service_account=service_account)
        super().__init__(EmulatorState(project, access, clock, store, flag_definitions))
        if store is not None:
            self._state.project.restore(store.take_saved())
        self.app = build_app(self._state, routes_of(self, self._state), origins)

    def client(self, token: str | None = None, **options: Unpack[ClientArguments]) -> AsyncMixpanel:
        """Return a client that talks to this emulator in-process, without a socket.

        Example:
            ```python
            from mixpanel_async.emulator import Emulator

            emulator = Emulator()
            with emulator.client().in_thread() as mp:
                mp.track("user-1", "Order placed", {"amount": 19.99})
            assert emulator.events("Order placed")[0]["properties"]["distinct_id"] == "user-1"
            ```

        Args:
            token: project token. None uses the emulator's token, or `emulator-token` if the emulator accepts any.
            **options: options of `AsyncMixpanel`. They override those that the emulator sets.

        Returns:
            A client. Close it as any other.
        """
        # Imported here so that the emulator works without the client.
        from mixpanel_async import AsyncMixpanel  # noqa: PLC0415
        from mixpanel_async._http.asgi import asgi_client  # noqa: PLC0415

        client_options: ClientArguments = {"api_host": "http://127.0.0.1", **options}
        if "http_client" not in client_options:
            client_options["http_client"] = asgi_client(self.app)
        return AsyncMixpanel(token or self.token or DEFAULT_TOKEN, **client_options)

    def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        allow_remote: bool = False,
        allow_hosts: Iterable[str] = (),
        tls: Tls | bool = False,
    ) -> Server:
        """Return a server for this emulator.

        The server runs in its own thread, installs no signal handlers and writes no request log.

        Example:
            ```python
            from mixpanel_async import AsyncMixpanel
            from mixpanel_async.emulator import Emulator

            emulator = Emulator()
            with emulator.serve() as server:  # or `async with`
                with AsyncMixpanel("PROJECT_TOKEN", api_host=server.url).in_thread() as mp:
                    mp.track("user-1", "Order placed")
            assert len(emulator.events("Order placed")) == 1
            ```

        Args:
            host: address to listen on. Must be a loopback address unless `allow_remote` is set.
            port: port to listen on, 0 to 65535; 0 picks a free port.
            allow_remote: allow an address that other machines can reach. The emulator has no protection against them.
            allow_hosts: names of the server besides its address, such as `emulator.test`. Requests may name them as
                `Host`, and the certificate has them.
            tls: certificates for https. True means `Tls()`: the emulator makes a certificate authority on first use.

        Raises:
            ValueError: if the host is not a loopback address and `allow_remote` is not set, or a name of `allow_hosts`
                is not a host name.
        """
        return Server(
            self.app,
            host,
            port,
            allow_remote=allow_remote,
            allow_hosts=allow_hosts,
            tls=(Tls() if tls else None) if isinstance(tls, bool) else tls,
            now=self._state.now,
            on_unread=self._state.log_unread_request,
        )

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return the events as reports show them now: deduplicated, each under the person it counts for.

        Events with the same name, time, `distinct_id` as sent and `$insert_id` are duplicates, of which the latest is
        kept. `properties.distinct_id` is the canonical id of the person, and `$distinct_id_before_identity` the id as
        sent. Identity calls are included as events, with `$failure_reason` if they failed.

        Example:
            ```python
            from mixpanel_async.emulator import Emulator

            emulator = Emulator()
            with emulator.client().in_thread() as mp:
                mp.track("user-1", "Order placed", {"amount": 19.99})
            assert emulator.events("Order placed")[0]["properties"]["distinct_id"] == "user-1"
            ```

        Args:
            name: return only events with this name; None returns all.
        """
        with self._state.lock:
            rows = self._state.project.reported_rows(name)
        return reported_events(rows)

    def raw_events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Return all events, duplicates included, in order of arrival, under the id they counted under at arrival.

        Args:
            name: return only events with this name; None returns all.
        """
        with self._state.lock:
            rows = self._state.project.rows(name)
        return arrived_events(rows)

    def profile(self, distinct_id: str) -> dict[str, Any] | None:
        """Return the profile properties of a person, given any of the person's ids; None without a profile.

        Args:
            distinct_id: any id of the person.
        """
        with self._state.lock:
            return self._state.project.profile(distinct_id)

    def profiles(self) -> dict[str, dict[str, Any]]:
        """Return all user profiles by canonical id."""
        with self._state.lock:
            profiles = self._state.project.all_profiles()
        return copy.deepcopy(profiles)

    def group(self, group_key: str, group_id: str) -> dict[str, Any] | None:
        """Return the profile properties of a group; None without a profile.

        Args:
            group_key: property that names the kind of group, such as `company_id`.
            group_id: id of the group.
        """
        with self._state.lock:
            return self._state.project.group(group_key, str(group_id))

    def resolve(self, distinct_id: str) -> str:
        """Return the canonical id that reports show for an id. An unknown id is returned unchanged.

        Args:
            distinct_id: any id of the person.
        """
        with self._state.lock:
            return self._state.project.reported_canonical_id(distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        """Return all ids of the person with this id, the given id included.

        Args:
            distinct_id: any id of the person.
        """
        with self._state.lock:
            return self._state.project.cluster(distinct_id)

    def clusters(self) -> list[set[str]]:
        """Return the ids of each person in an event, a profile or an identity call, in order of first appearance."""
        with self._state.lock:
            return self._state.project.clusters()

    def identity_log(self) -> list[dict[str, Any]]:
        """Return the log of `$identify`, `$create_alias` and `$merge` calls, and of device links in Simplified.

        An entry has `event`, `properties` as sent, `outcome`, `$failure_reason` (Mixpanel's code, or None) and
        `$failure_description` (an explanation; Mixpanel does not document its texts). The outcome is `merged`,
        `unchanged` (the ids were one person already), `failed` or `ignored` (no effect in this ID merge system). The
        latest 100,000 entries are kept.
        """
        with self._state.lock:
            rows = list(self._state.project.identity_rows)
        return identity_entries(rows)

    def audit(self) -> AuditReport:
        """Return what is wrong with the ids of the stored events, as `mixpanel-async identity audit` finds it.

        It takes about ten seconds for a million events.
        """
        with self._state.lock:
            rows = self._state.project.rows()
        return audit_events(rows, self.id_merge, self._cluster_limit)

    def stats(self) -> dict[str, Any]:
        """Return the statistics of `GET /_emulator/stats`. The cost is proportional to the number of events kept."""
        with self._state.lock:
            project = self._state.project
            figures = activity_counts(self._state)
            figures["clusters"] = len(project.clusters())
            figures["id_merge"] = self.id_merge.value
            figures["uptime"] = self._state.now() - self._state.started
            rows = project.rows()
        figures["events"]["duplicates"] = count_duplicates(rows)
        return figures

    def reset(self) -> None:
        """Delete all data and planned faults.

        This removes events, people, groups, recordings and requests, in memory and on disk, and restores the initial
        feature flags. `latency` is not changed.

        Raises:
            OSError: if `data_dir` cannot be written.
        """
        with self._state.lock:
            self._state.reset()
        self._flush()

    def close(self) -> None:
        """Release `data_dir`. Does nothing without one, or if called again.

        The data can still be read. Later requests are answered with 503. Closing a server of `serve()` does not close
        the emulator, which may be served again.
        """
        if self._state.store is not None:
            self._state.store.close(self._state.lock)

    def _flush(self) -> None:
        try:
            self._state.flush()
        except StoreError as error:
            raise OSError(str(error)) from error

    def __enter__(self) -> Emulator:  # noqa: PYI034  `Self` would need another dependency before Python 3.11
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
