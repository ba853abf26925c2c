"""The parts of feature flags, joined to one another and to the client's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .._delivery.queue import Queue
from .._delivery.sender import Sender
from .._http.transport import Transport
from .._model.config import ClientOptions
from .._model.errors import raise_configuration_error
from .._model.stats import FlagStats
from .._runtime.clock import Environment
from .exposures import Exposures, Track
from .local import LocalFeatureFlagsProvider
from .metrics import FlagMetrics
from .options import LocalFlags, RemoteFlags
from .poller import Poller
from .remote import RemoteFeatureFlagsProvider
from .rules import load_library
from .wire import FlagsEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class Providers:
    """What a client has of feature flags.

    Args:
        local: evaluates in this process; None if that was not asked for.
        remote: asks Mixpanel; None if that was not asked for.
        poller: of `local`.
        tally: of both.
    """

    local: LocalFeatureFlagsProvider | None
    remote: RemoteFeatureFlagsProvider | None
    poller: Poller | None
    tally: FlagMetrics

    def stats(self) -> FlagStats | None:
        """A snapshot, or None without any."""
        if self.local is None and self.remote is None:
            return None
        poller = self.poller
        return self.tally.stats(
            ready=poller is not None and poller.is_ready,
            definitions=0 if poller is None else len(poller.flags),
            age=None if poller is None else poller.age,
        )


class FlagDependencies(NamedTuple):
    """What flags need of the client.

    Args:
        options: of the client.
        queue: of the client.
        sender: owns tasks; told to start and to stop the polling with itself.
        transport: the pool.
        runtime: clocks, chance and ids.
        track: queues an event.
    """

    options: ClientOptions
    queue: Queue
    sender: Sender
    transport: Transport
    runtime: Environment
    track: Track


def make_providers(local: LocalFlags | None, remote: RemoteFlags | None, wiring: FlagDependencies) -> Providers:
    """Make what was asked for.

    Args:
        local: options of local evaluation, or None for none.
        remote: options of remote evaluation, or None for none.
        wiring: see `Wiring`.

    Raises:
        ConfigurationError: if an option is of the wrong type.
        ImportError: if local evaluation is asked for and the extra `flags` is missing.
    """
    for name, given, kind in (("local_flags", local, LocalFlags), ("remote_flags", remote, RemoteFlags)):
        if given is not None and not isinstance(given, kind):
            raise_configuration_error(f"{name} must be an instance of {kind.__name__}, not {type(given).__name__}")
    options, runtime = wiring.options, wiring.runtime
    tally = FlagMetrics(runtime.monotonic)
    encoder = FlagsEncoder(options.token, options.credentials, runtime.new_id)
    poller = local_provider = remote_provider = None
    if local is not None:
        poller = _poller(local, encoder, tally, wiring)
        exposures = _exposures("local", local, tally, wiring)
        local_provider = LocalFeatureFlagsProvider(poller, exposures, tally, runtime)
    if remote is not None:
        remote_provider = _remote(remote, encoder, tally, wiring)
    return Providers(local=local_provider, remote=remote_provider, poller=poller, tally=tally)


def _poller(local: LocalFlags, encoder: FlagsEncoder, tally: FlagMetrics, wiring: FlagDependencies) -> Poller:
    poller = Poller(
        local,
        timeout=_timeout(local, wiring),
        encoder=encoder,
        queue=wiring.queue,
        sender=wiring.sender,
        transport=wiring.transport,
        library=load_library(),
        tally=tally,
        runtime=wiring.runtime,
    )
    wiring.sender.on_start, wiring.sender.on_close = poller.start, poller.stop
    return poller


def _remote(
    remote: RemoteFlags, encoder: FlagsEncoder, tally: FlagMetrics, wiring: FlagDependencies
) -> RemoteFeatureFlagsProvider:
    return RemoteFeatureFlagsProvider(
        remote,
        timeout=_timeout(remote, wiring),
        encoder=encoder,
        sender=wiring.sender,
        transport=wiring.transport,
        exposures=_exposures("remote", remote, tally, wiring),
        tally=tally,
        runtime=wiring.runtime,
    )


def _timeout(flags: LocalFlags | RemoteFlags, wiring: FlagDependencies) -> float:
    return min(wiring.options.timeout, flags.timeout or wiring.options.timeout)


def _exposures(mode: str, flags: LocalFlags | RemoteFlags, tally: FlagMetrics, wiring: FlagDependencies) -> Exposures:
    clock = wiring.runtime.monotonic
    return Exposures(wiring.track, mode=mode, window=flags.exposure_window, tally=tally, monotonic=clock)
