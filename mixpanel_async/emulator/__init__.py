"""A local Mixpanel: it takes what any official client sends, and resolves identities as Mixpanel does.

    emulator = Emulator(IdMerge.ORIGINAL)
    visitor = str(uuid.uuid4())
    async with emulator.client() as mp:
        await mp.track(visitor, "Viewed page")
        await mp.identify("user-1", visitor)
    assert emulator.cluster("user-1") == {"user-1", visitor}
    assert emulator.events("Viewed page")[0]["properties"]["distinct_id"] == "user-1"

It shares no code with the client, so that the two cannot agree on a mistake. Where Mixpanel's own documents say
nothing or contradict each other, the module concerned lists what was decided, under "Decisions where Mixpanel's
documents are silent".
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from mixpanel_async._model.config import IdMerge

from .project.access import Access
from .project.identity import Identities, LegacyIdentities, OriginalIdentities, SimplifiedIdentities
from .project.project import Project

try:
    from .http.app import EmulatorState, RecordedRequest, build_app
    from .http.routes import routes_of
    from .http.server import Server
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in {"starlette", "uvicorn", "h11"}:
        raise
    raise ImportError('the emulator needs an extra: pip install "mixpanel-async[emulator]"', name=error.name) from error

from .flags.flags import FlagDefinitions, single_variant_definition
from .http.fault_controls import FaultControls
from .http.faults import KINDS, TRANSIENT, FaultKind
from .page.feed import activity_counts
from .project.propagation import DelayedIdentities
from .storage.store import ProjectStore, StoreError

if TYPE_CHECKING:
    from mixpanel_async import AsyncMixpanel

__all__ = ["KINDS", "TRANSIENT", "Emulator", "FaultKind", "RecordedRequest", "Server"]

DEFAULT_TOKEN: Final = "emulator-token"  # noqa: S105  names no real project


def keep_first(first: str, second: str) -> str:  # noqa: ARG001  the signature of a choice
    """The default choice of the canonical id: the cluster that the identity verb names first keeps its own."""
    return first


class Emulator(FaultControls):
    """One emulated Mixpanel project, in memory or in a directory.

    Args:
        id_merge: how the project joins ids into people.
        token: the project's token. If None, any token is taken; else `/track`, `/engage` and `/groups` silently
            ignore records of another, as Mixpanel does.
        secret: the project's secret, for `/import`; None if it has none.
        service_account: user name, secret and project id for `/import`; None if there is none. With none of the
            three configured, `/import` takes any HTTP Basic credentials, but not their absence.
        cluster_limit: ids in the largest person of an Original project; at least 2. Mixpanel documents 500, and in a
            diagram 499.
        choose_canonical: in an Original project, given the canonical ids of two clusters about to merge, the one that
            the identity verb names first in front, returns the one to keep. Mixpanel's own choice is not documented:
            code that depends on it fails with `lambda first, second: second`.
        max_events: events kept, at least 1; the oldest are forgotten beyond that.
        max_bytes: size in bytes of the events kept, as JSON, at least 1; the oldest are forgotten beyond that.
        propagation_delay: seconds, 0 or more, until reports (`events`, `resolve`, the export) know a mapping between
            ids. Ingestion, profiles, `cluster` and `identity_log` know it at once. Mixpanel says: up to 24 hours.
        data_dir: directory in which events, profiles, groups and identities outlast the emulator; made if it is not
            there. None keeps them in memory. A request is on disk before it is answered, so that a killed process
            loses nothing that it confirmed. One emulator at a time uses a directory; `close` lets go of it. A file that
            cannot be read is set aside as `*.corrupt-<n>`, with a warning in the log.
        geolocate: gives `$city`, `$region`, `$country_code` and `$timezone` for an address; what it gives is written to
            the user's profile with every `$set` and `$set_once`, as Mixpanel does, unless the update has `$ip` 0 or,
            without an `$ip`, comes with `ip=0`. None: nobody is geolocated.
        flags: definitions of feature flags, or a JSON file of them, which is read again whenever it has changed. A
            definition needs a `key` and a `ruleset`, as `/flags/definitions` has them; the rest is filled in.
        now: the clock, in seconds since the epoch.

    Raises:
        ValueError: if a value is out of bounds, a flag is malformed, or `data_dir` holds a project of another
            `id_merge`.
        OSError: if `data_dir` cannot be used, or another emulator uses it, or the file of `flags` cannot be read.
    """

    def __init__(
        self,
        id_merge: IdMerge = IdMerge.SIMPLIFIED,
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
        now: Callable[[], float] = time.time,
    ) -> None:
        if token is not None and not token.strip():
            raise ValueError("token must not be blank; None takes any")
        if cluster_limit < 2:
            raise ValueError("cluster_limit must be at least 2")
        if max_events < 1 or max_bytes < 1:
            raise ValueError("max_events and max_bytes must be at least 1")
        if not (math.isfinite(propagation_delay) and propagation_delay >= 0):
            raise ValueError("propagation_delay must be a number of seconds, 0 or more")
        self.id_merge = IdMerge(id_merge)
        self.token = token

        def identities() -> Identities:
            if self.id_merge is IdMerge.LEGACY:
                return LegacyIdentities()
            if self.id_merge is IdMerge.ORIGINAL:
                return OriginalIdentities(cluster_limit, choose_canonical)
            return SimplifiedIdentities()

        known_flags = FlagDefinitions(Path(flags) if isinstance(flags, (str, os.PathLike)) else flags)
        store = None if data_dir is None else ProjectStore(Path(data_dir), self.id_merge.value)

        def project() -> Project:
            live = identities()
            return Project(
                live,
                max_events=max_events,
                max_bytes=max_bytes,
                delayed=DelayedIdentities(live, identities, propagation_delay, now),
                changes=None if store is None else store.changes,
                geolocate=geolocate,
            )

        access = Access(token=token, secret=secret, service_account=service_account)
        super().__init__(EmulatorState(project, access, now, store, known_flags))
        if store is not None:
            self._state.project.restore(store.take_saved())
        self.app = build_app(self._state, routes_of(self, self._state))

    def client(self, token: str | None = None, **options: Any) -> AsyncMixpanel:
        """A client that talks to this emulator in-process, without a socket.

        Args:
            token: project token; by default the emulator's own, or `emulator-token` if it takes any.
            options: of `AsyncMixpanel`; they win over what the emulator would set.
        """
        # Here and not above: the emulator must not need the client to be what it is.
        from mixpanel_async import AsyncMixpanel  # noqa: PLC0415
        from mixpanel_async._http.asgi import asgi_client  # noqa: PLC0415

        wired = {"api_host": "http://127.0.0.1", **options}
        if "http_client" not in wired:
            wired["http_client"] = asgi_client(self.app)
        return AsyncMixpanel(token or self.token or DEFAULT_TOKEN, **wired)

    def serve(self, host: str = "127.0.0.1", port: int = 0, *, allow_remote: bool = False) -> Server:
        """This emulator on a socket: `with emulator.serve() as server:` or `async with`, then `server.url`.

        It runs in a thread of its own, installs no signal handlers and writes no log.

        Args:
            host: address to listen at; a loopback address, unless `allow_remote` is set.
            port: port to listen at; 0 takes a free one.
            allow_remote: listen at an address that other machines reach. Nothing protects the emulator from them.

        Raises:
            ValueError: if the host is not a loopback address and `allow_remote` is not set.
        """
        return Server(self.app, host, port, allow_remote=allow_remote)

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """The events as a report shows them now: each once, under the person whom it counts for.

        Duplicates are told by event, time, `distinct_id` as sent and `$insert_id`; the copy that came last stands.
        `properties.distinct_id` is the canonical id of the person, and `$distinct_id_before_identity` the id as sent.
        Identity verbs are events, too, with `$failure_reason` if they failed.

        Args:
            name: only events of this name; None for all.
        """
        with self._state.lock:
            return self._state.project.events(name)

    def raw_events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Every copy of every event in the order of arrival, under the id that it counted under then.

        Args:
            name: only events of this name; None for all.
        """
        with self._state.lock:
            return self._state.project.raw_events(name)

    def profile(self, distinct_id: str) -> dict[str, Any] | None:
        """A person's profile properties, by any of the person's ids; None if there is no profile."""
        with self._state.lock:
            return self._state.project.profile(distinct_id)

    def profiles(self) -> dict[str, dict[str, Any]]:
        """Every profile, by canonical id."""
        with self._state.lock:
            return self._state.project.profiles()

    def group(self, group_key: str, group_id: str) -> dict[str, Any] | None:
        """A group's profile properties; None if there is no such profile."""
        with self._state.lock:
            return self._state.project.group(group_key, str(group_id))

    def resolve(self, distinct_id: str) -> str:
        """The canonical id of a person by any id, as reports know it; an unknown id is its own."""
        with self._state.lock:
            return self._state.project.reported_canonical_id(distinct_id)

    def cluster(self, distinct_id: str) -> set[str]:
        """All ids of the person whom this id names, itself included."""
        with self._state.lock:
            return self._state.project.cluster(distinct_id)

    def clusters(self) -> list[set[str]]:
        """The ids of every person known from an event, a profile or an identity verb, in the order of appearance."""
        with self._state.lock:
            return self._state.project.clusters()

    def identity_log(self) -> list[dict[str, Any]]:
        """Each `$identify`, `$create_alias` and `$merge`, and each link of a device in Simplified, in order.

        An entry has `event`, `properties` as sent, `outcome` (`merged`; `unchanged`: one person already; `failed`;
        `ignored`: without effect here), `$failure_reason` (Mixpanel's code, or None) and `$failure_description`
        (words; Mixpanel's own are not documented). The last 100,000 are kept.
        """
        with self._state.lock:
            return self._state.project.identity_log()

    def rejected(self) -> list[dict[str, Any]]:
        """Each record, or request as a whole, that was not stored, in order; the last few thousand are kept.

        An entry has `endpoint`, `field` (path of the offending property, or empty), `message`, `record` (shortened;
        None for a request refused as a whole) and `silent`: whether the sender was told that all is well.
        """
        with self._state.lock:
            return [dataclasses.asdict(rejection) for rejection in self._state.project.rejections]

    def flags(self) -> list[dict[str, Any]]:
        """The definitions of all feature flags, complete."""
        with self._state.lock:
            return copy.deepcopy(self._state.flags.all())

    def set_flags(self, definitions: Iterable[Mapping[str, Any]]) -> None:
        """Have these feature flags and no others, until they are set again or the file of `flags` changes.

        Raises:
            ValueError: if one is malformed; nothing has changed then.
        """
        with self._state.lock:
            self._state.flags.replace(definitions)

    def set_flag(self, key: str, value: Any = True, *, variant_key: str = "on") -> None:  # noqa: FBT002  a flag's value
        """Have a feature flag that gives everybody this value.

        Args:
            key: name of the flag; one of this name is replaced.
            value: any JSON value.
            variant_key: name of its only variant.

        Raises:
            ValueError: if the key is empty or the value is none that JSON has.
        """
        with self._state.lock:
            self._state.flags.put(single_variant_definition(key, value, variant_key))

    def remove_flag(self, key: str) -> None:
        """Forget a feature flag. Does nothing if there is none of this name."""
        with self._state.lock:
            self._state.flags.remove(key)

    def stats(self) -> dict[str, Any]:
        """Figures of the project, as `GET /_emulator/stats` gives them. Takes time in proportion to the events kept."""
        with self._state.lock:
            project = self._state.project
            figures = activity_counts(self._state)
            figures["events"]["duplicates"] = project.duplicate_count()
            figures["clusters"] = len(project.clusters())
            figures["id_merge"] = self.id_merge.value
            figures["uptime"] = self._state.now() - self._state.started
        return figures

    def requests(self) -> list[RecordedRequest]:
        """Each request to an endpoint, in order, without its credentials. The last 10,000 are kept."""
        with self._state.lock:
            return list(self._state.requests)

    def reset(self) -> None:
        """Forget events, people, groups, requests and planned failures, also on disk, and have the flags that the
        emulator was made with. `latency` stays.

        Raises:
            OSError: if that cannot be written to `data_dir`.
        """
        with self._state.lock:
            self._state.reset()
        self._flush()

    def close(self) -> None:
        """Let go of `data_dir`. Without one there is nothing to close; a second call does nothing.

        What was kept can still be looked at. Requests are answered 503 from then on. The end of `serve()` does not
        close the emulator, as it may be served again.
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
