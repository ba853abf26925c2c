"""Construction of the flag providers of a client."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._http.api import Api
from .._http.transport import Transport
from .._model.config import ClientOptions
from .._model.errors import raise_configuration_error
from .._model.stats import FlagStats
from .._runtime.environment import Environment
from .endpoints import FlagsEndpoints
from .exposures import Exposures, Track
from .local import LocalFeatureFlagsProvider
from .metrics import FlagMetrics, RequestCount
from .options import LocalFlags, RemoteFlags
from .poller import Poller
from .remote import DisabledRemoteProvider, RemoteFeatureFlagsProvider
from .rules import load_library


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """Flag providers of one client.

    Args:
        local: evaluates flags in this process; None without `local_flags`.
        remote: evaluates flags by asking Mixpanel; None without `remote_flags`.
        poller: fetches the definitions for `local`.
        metrics: counters of both.
    """

    local: LocalFeatureFlagsProvider | None
    remote: RemoteFeatureFlagsProvider | None
    poller: Poller | None
    metrics: FlagMetrics

    def stats(self) -> FlagStats | None:
        """Return a snapshot of the counters, or None without a provider."""
        if self.local is None and self.remote is None:
            return None
        poller = self.poller
        return self.metrics.stats(
            ready=poller is not None and poller.is_ready,
            definitions=0 if poller is None else len(poller.flags),
            age=None if poller is None else poller.age,
        )


class FlagDependencies(NamedTuple):
    """Parts of the client that flags use.

    Args:
        options: options of the client.
        queue: has the flag `closed`.
        sender: owns background tasks, and starts and stops the polling.
        transport: sends requests.
        environment: clocks, randomness and ids.
        track: enqueues an event.
    """

    options: ClientOptions
    queue: Queue
    sender: Sender
    transport: Transport
    environment: Environment
    track: Track


def make_providers(local: LocalFlags | None, remote: RemoteFlags | None, parts: FlagDependencies) -> Providers:
    """Return the providers for the given options.

    Args:
        local: options of local evaluation, or None to leave it out.
        remote: options of remote evaluation, or None to leave it out.
        parts: parts of the client.

    Raises:
        ConfigurationError: an option has the wrong type.
        ImportError: local evaluation is wanted and the extra `flags` is not installed.
    """
    for name, given, kind in (("local_flags", local, LocalFlags), ("remote_flags", remote, RemoteFlags)):
        if given is not None and not isinstance(given, kind):
            raise_configuration_error(f"{name} must be an instance of {kind.__name__}, not {type(given).__name__}")
    metrics = FlagMetrics(parts.environment.monotonic)
    poller = local_provider = remote_provider = None
    if local is not None:
        poller = Poller(
            _endpoints(local, metrics.polls, parts),
            poll_interval=local.poll_interval,
            queue=parts.queue,
            sender=parts.sender,
            library=load_library(),
            metrics=metrics,
            environment=parts.environment,
        )
        if parts.options.enabled:
            parts.sender.subscribe(poller.start, poller.stop)
        else:
            poller.disable()
        exposures = _exposures("local", local, metrics, parts)
        local_provider = LocalFeatureFlagsProvider(poller, exposures, metrics, parts.environment)
    if remote is not None:
        provider_class = RemoteFeatureFlagsProvider if parts.options.enabled else DisabledRemoteProvider
        remote_provider = provider_class(
            _endpoints(remote, metrics.remote_requests, parts),
            parts.sender,
            _exposures("remote", remote, metrics, parts),
            metrics,
            parts.environment,
        )
    return Providers(local=local_provider, remote=remote_provider, poller=poller, metrics=metrics)


def _endpoints(flags: LocalFlags | RemoteFlags, requests: RequestCount, parts: FlagDependencies) -> FlagsEndpoints:
    return FlagsEndpoints(
        Api(parts.transport, parts.environment, requests),
        parts.options.token,
        parts.options.credentials,
        parts.environment.new_id,
        timeout=min(parts.options.timeout, flags.timeout or parts.options.timeout),
        max_bytes=flags.max_bytes,
    )


def _exposures(mode: str, flags: LocalFlags | RemoteFlags, metrics: FlagMetrics, parts: FlagDependencies) -> Exposures:
    clock = parts.environment.monotonic
    return Exposures(parts.track, mode=mode, window=flags.exposure_window, metrics=metrics, monotonic=clock)
