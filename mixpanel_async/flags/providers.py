"""The parts of feature flags, joined to one another and to the client's own."""

from __future__ import annotations

from dataclasses import dataclass

from .._config import ClientOptions
from .._errors import refuse
from .._queue import Queue
from .._records import FlagStats
from .._runtime import Runtime
from .._sender import Sender
from .._transport import Transport
from .exposures import Exposures, Track
from .local import LocalFeatureFlagsProvider
from .options import LocalFlags, RemoteFlags
from .poller import Poller
from .remote import RemoteFeatureFlagsProvider
from .rules import load_library
from .tally import Tally
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
    tally: Tally

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


def make_providers(
    local: LocalFlags | None,
    remote: RemoteFlags | None,
    *,
    options: ClientOptions,
    queue: Queue,
    sender: Sender,
    transport: Transport,
    runtime: Runtime,
    track: Track,
) -> Providers:
    """Make what was asked for.

    Args:
        local: options of local evaluation, or None for none.
        remote: options of remote evaluation, or None for none.
        options: of the client.
        queue: of the client.
        sender: owns tasks; told to start and to stop the polling with itself.
        transport: the pool.
        runtime: clocks, chance and ids.
        track: queues an event.

    Raises:
        ConfigurationError: if an option is of the wrong type.
        ImportError: if local evaluation is asked for and the extra `flags` is missing.
    """
    for name, given, kind in (("local_flags", local, LocalFlags), ("remote_flags", remote, RemoteFlags)):
        if given is not None and not isinstance(given, kind):
            refuse(f"{name} must be an instance of {kind.__name__}, not {type(given).__name__}")
    tally = Tally(runtime.monotonic)
    encoder = FlagsEncoder(options.token, options.credentials, runtime.new_id)
    poller = local_provider = remote_provider = None
    if local is not None:
        poller = Poller(
            local,
            timeout=min(options.timeout, local.timeout or options.timeout),
            encoder=encoder,
            queue=queue,
            sender=sender,
            transport=transport,
            library=load_library(),
            tally=tally,
            runtime=runtime,
        )
        sender.on_start, sender.on_close = poller.start, poller.stop
        exposures = Exposures(
            track, mode="local", window=local.exposure_window, tally=tally, monotonic=runtime.monotonic
        )
        local_provider = LocalFeatureFlagsProvider(poller, exposures, tally, runtime)
    if remote is not None:
        remote_provider = RemoteFeatureFlagsProvider(
            remote,
            timeout=min(options.timeout, remote.timeout or options.timeout),
            encoder=encoder,
            sender=sender,
            transport=transport,
            exposures=Exposures(
                track, mode="remote", window=remote.exposure_window, tally=tally, monotonic=runtime.monotonic
            ),
            tally=tally,
            runtime=runtime,
        )
    return Providers(local=local_provider, remote=remote_provider, poller=poller, tally=tally)
