"""OpenTelemetry metrics of a client, and of a worker with its queue.

    metrics = MixpanelMetrics()
    async with AsyncMixpanel.from_env(on_delivered=metrics.on_delivered) as mp:
        metrics.watch(mp)

| instrument | kind | unit | attributes |
| --- | --- | --- | --- |
| `mixpanel.client.records.accepted` | counter | `{record}` | |
| `mixpanel.client.records.delivered` | counter | `{record}` | |
| `mixpanel.client.records.lost` | counter | `{record}` | `reason`: the value of a `DropReason` |
| `mixpanel.client.requests` | counter | `{request}` | |
| `mixpanel.client.retries` | counter | `{request}` | |
| `mixpanel.client.identity.calls` | counter | `{call}` | `outcome`: `succeeded`, `failed` or `deferred` |
| `mixpanel.client.identity.deferred` | counter | `{record}` | `outcome`: `delivered` or `lost` |
| `mixpanel.client.requests.in_flight` | gauge | `{request}` | |
| `mixpanel.client.queue.records` | gauge | `{record}` | |
| `mixpanel.client.queue.size` | gauge | `By` | |
| `mixpanel.client.queue.oldest_age` | gauge | `s` | |
| `mixpanel.client.spool.records` | gauge | `{record}` | |
| `mixpanel.client.spool.size` | gauge | `By` | |
| `mixpanel.client.spool.dead_letters` | gauge | `{record}` | |
| `mixpanel.client.flags.polls` | counter | `{request}` | |
| `mixpanel.client.flags.poll_failures` | counter | `{request}` | |
| `mixpanel.client.flags.remote_requests` | counter | `{request}` | |
| `mixpanel.client.flags.remote_failures` | counter | `{evaluation}` | |
| `mixpanel.client.flags.undecidable` | counter | `{evaluation}` | |
| `mixpanel.client.flags.exposures` | counter | `{exposure}` | `outcome`: `tracked`, `repeated` or `lost` |
| `mixpanel.client.flags.definitions` | gauge | `{flag}` | |
| `mixpanel.client.flags.age` | gauge | `s` | |
| `mixpanel.client.batch.records` | histogram | `{record}` | `kind` |
| `mixpanel.client.batch.size` | histogram | `By` | `kind` |
| `mixpanel.client.batch.attempts` | histogram | `{request}` | `kind` |
| `mixpanel.client.request.duration` | histogram | `s` | `kind` |

`kind` is `events`, `imports`, `people`, `groups` or `identity`. The metrics of a named client also have the attribute
`client`.
Lost records are those that failed, were dropped or are uncertain; `reason` distinguishes them. Accepted records that
are neither delivered nor lost are in the queue. Counters exist from the start, with 0 for every reason and outcome;
those of `flags` exist if the client has feature flags. `spool.records` are the queued records that are only on disk,
and `spool.size` the bytes in use in the file. Metrics never contain a record, an id or a token.

A worker of an outbox:

    async with Worker(outbox, token) as worker:
        WorkerMetrics().watch(worker)
        await worker.run()

| instrument | kind | unit | attributes |
| --- | --- | --- | --- |
| `mixpanel.worker.records.delivered` | counter | `{record}` | |
| `mixpanel.worker.records.lost` | counter | `{record}` | `reason`: the value of a `DropReason` |
| `mixpanel.worker.requests` | counter | `{request}` | |
| `mixpanel.worker.retries` | counter | `{request}` | |
| `mixpanel.queue.losses` | counter | `{loss}` | |
| `mixpanel.queue.lost_records` | counter | `{record}` | |
| `mixpanel.queue.records` | gauge | `{record}` | |
| `mixpanel.queue.bytes` | gauge | `By` | |
| `mixpanel.queue.dead` | gauge | `{record}` | |
| `mixpanel.queue.workers` | gauge | `{worker}` | |
| `mixpanel.queue.oldest_seconds` | gauge | `s` | |

Those of the queue are about the whole queue, as the worker saw it at its last heartbeat, at most 5 s ago. All workers
report the same: use the maximum, not the sum. For `losses` and `lost_records`, each worker counts what it has noticed
itself: that the queue, or a part of it, was removed, and the records that were known to wait there.
`mixpanel-async worker` watches itself if OpenTelemetry is installed.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, MeterProvider, Observation, get_meter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ImportError(
        'the OpenTelemetry metrics need an extra: run pip install ".[otel]" in a clone of the repository',
        name=error.name,
    ) from error

from mixpanel_async import AsyncMixpanel, Delivery, DropReason, Stats, __version__
from mixpanel_async.worker import Worker, WorkerStats

__all__ = ["MixpanelMetrics", "WorkerMetrics"]

_ReadNumbers = Callable[[Any], Mapping[str, float]]
_SCOPE: Final = "mixpanel_async"


class _Instrument(NamedTuple):
    """Instrument whose values are read from the statistics.

    `read` returns the values by attribute; the attribute is empty for instruments without one.
    """

    name: str
    unit: str
    description: str
    read: _ReadNumbers
    attribute: str = ""


def _field(name: str) -> _ReadNumbers:
    """Read one field of `Stats`."""
    return lambda stats: {"": getattr(stats, name)}


def _flags_field(name: str) -> _ReadNumbers:
    """Read one field of `FlagStats`. There is no value without flags, or if the field is None."""

    def read(stats: Stats) -> Mapping[str, float]:
        value = getattr(stats.flags, name, None)
        return {} if value is None else {"": value}

    return read


def _losses(stats: Stats | WorkerStats) -> Mapping[str, float]:
    return {reason.value: stats.losses.get(reason.value, 0) for reason in DropReason}


def _identity_calls(stats: Stats) -> Mapping[str, float]:
    calls = stats.identity
    return {"succeeded": calls.succeeded, "failed": calls.failed, "deferred": calls.deferred}


def _deferred_calls(stats: Stats) -> Mapping[str, float]:
    return {"delivered": stats.identity.delivered, "lost": stats.identity.lost}


def _exposures(stats: Stats) -> Mapping[str, float]:
    flags = stats.flags
    if flags is None:
        return {}
    return {"tracked": flags.exposures, "repeated": flags.exposures_repeated, "lost": flags.exposures_lost}


_COUNTERS: Final = (
    _Instrument("records.accepted", "{record}", "Records accepted from the application.", _field("accepted")),
    _Instrument("records.delivered", "{record}", "Records accepted by Mixpanel.", _field("delivered")),
    _Instrument("records.lost", "{record}", "Records that ended without delivery.", _losses, "reason"),
    _Instrument("requests", "{request}", "Requests started, including identity calls.", _field("requests")),
    _Instrument("retries", "{request}", "Requests that repeated an earlier request.", _field("retries")),
    _Instrument("identity.calls", "{call}", "Calls of alias, identify and merge.", _identity_calls, "outcome"),
    _Instrument("identity.deferred", "{record}", "Ended deferred identity calls.", _deferred_calls, "outcome"),
    _Instrument("flags.polls", "{request}", "Requests for flag definitions.", _flags_field("polls")),
    _Instrument("flags.poll_failures", "{request}", "Polls without valid definitions.", _flags_field("failures")),
    _Instrument("flags.remote_requests", "{request}", "Requests for evaluation.", _flags_field("remote_requests")),
    _Instrument("flags.remote_failures", "{evaluation}", "Failed evaluations.", _flags_field("remote_failures")),
    _Instrument("flags.undecidable", "{evaluation}", "Failed local evaluations.", _flags_field("undecidable")),
    _Instrument("flags.exposures", "{exposure}", "Exposures of flags.", _exposures, "outcome"),
)
_AMOUNTS: Final = (
    _Instrument("queue.records", "{record}", "Records waiting or in flight.", _field("pending")),
    _Instrument("queue.size", "By", "Encoded size of the queued records.", _field("pending_bytes")),
    _Instrument("requests.in_flight", "{request}", "Requests under way.", _field("in_flight")),
    _Instrument("spool.records", "{record}", "Queued records that are only on disk.", _field("on_disk")),
    _Instrument("spool.size", "By", "Bytes in use in the spool file.", _field("spool_bytes")),
    _Instrument("spool.dead_letters", "{record}", "Dead letters in the spool file.", _field("dead_letters")),
    _Instrument("flags.definitions", "{flag}", "Flags in the definitions.", _flags_field("definitions")),
)
_AGES: Final = (
    _Instrument("queue.oldest_age", "s", "Age of the oldest queued record.", _field("oldest_age")),
    _Instrument("flags.age", "s", "Time since the last valid definitions.", _flags_field("age")),
)

_WORKER_COUNTERS: Final = (
    _Instrument("worker.records.delivered", "{record}", "Records accepted by Mixpanel.", _field("delivered")),
    _Instrument("worker.records.lost", "{record}", "Records that ended without delivery.", _losses, "reason"),
    _Instrument("worker.requests", "{request}", "Requests started.", _field("requests")),
    _Instrument("worker.retries", "{request}", "Requests that repeated an earlier request.", _field("retries")),
    _Instrument("queue.losses", "{loss}", "Times the queue or a part of it was removed.", _field("queue_losses")),
    _Instrument("queue.lost_records", "{record}", "Records removed with it, if known.", _field("queue_lost_records")),
)
_WORKER_AMOUNTS: Final = (
    _Instrument("queue.records", "{record}", "Records waiting in the whole queue.", _field("waiting")),
    _Instrument("queue.bytes", "By", "Stored size of the waiting records.", _field("waiting_bytes")),
    _Instrument("queue.dead", "{record}", "Dead letters in the queue.", _field("dead")),
    _Instrument("queue.workers", "{worker}", "Workers that are alive.", _field("workers")),
)
_WORKER_AGES: Final = (
    _Instrument("queue.oldest_seconds", "s", "Age of the oldest waiting record.", _field("oldest_age")),
)

# Bucket boundaries in the unit of the histogram. Users can override them with a view of the OpenTelemetry SDK.
_RECORDS: Final = (1, 10, 50, 100, 250, 500, 1_000, 2_000)
_BYTES: Final = (1_000, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000)
_ATTEMPTS: Final = (1, 2, 3, 5, 10, 20)
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class _Source(Protocol):
    """Object with statistics."""

    def stats(self) -> object: ...


class _Watched:
    """Sources of the values of observable instruments, by the value of an attribute that distinguishes them.

    Args:
        attribute: name of the attribute.
    """

    def __init__(self, attribute: str) -> None:
        self._attribute = attribute
        self._sources: dict[str, weakref.ref[_Source]] = {}

    def add(self, source: _Source, name: str) -> None:
        known = self._sources.get(name, lambda: None)()
        if known is not None and known is not source:
            raise ValueError(f"another {self._attribute} is already watched as {name!r}; pass a different name")
        self._sources[name] = weakref.ref(source)

    def create(
        self,
        meter: Meter,
        prefix: str,
        *,
        counters: Sequence[_Instrument],
        amounts: Sequence[_Instrument],
        ages: Sequence[_Instrument],
    ) -> None:
        """Create the instruments that are read from the statistics."""
        creators = (
            (meter.create_observable_counter, counters),
            (meter.create_observable_up_down_counter, amounts),
            (meter.create_observable_gauge, ages),
        )
        for create, instruments in creators:
            for one in instruments:
                create(f"{prefix}{one.name}", [self._observer(one)], one.unit, one.description)

    def _observer(self, instrument: _Instrument) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG001  OpenTelemetry's signature
            for name, reference in list(self._sources.items()):
                source = reference()
                if source is not None:
                    attributes = {self._attribute: name} if name else {}
                    for value, number in instrument.read(source.stats()).items():
                        yield Observation(
                            number, {**attributes, instrument.attribute: value} if instrument.attribute else attributes
                        )

        return observe


class MixpanelMetrics:
    """Instruments of one meter, for one or more clients.

    Example:
        ```python
        import asyncio

        from mixpanel_async import AsyncMixpanel
        from mixpanel_async.integrations.otel import MixpanelMetrics


        async def main() -> None:
            metrics = MixpanelMetrics()
            async with AsyncMixpanel("PROJECT_TOKEN", on_delivered=metrics.on_delivered) as mp:
                metrics.watch(mp)
                await mp.track("user-1", "Order placed", {"amount": 19.99})


        asyncio.run(main())
        ```

    Args:
        meter_provider: provider of the meter; None uses the global provider, even if that is set later.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._clients = _Watched("client")
        meter = get_meter(_SCOPE, __version__, meter_provider)

        def histogram(name: str, unit: str, description: str, bounds: tuple[float, ...]) -> Histogram:
            full = f"mixpanel.client.{name}"
            return meter.create_histogram(full, unit, description, explicit_bucket_boundaries_advisory=bounds)

        self._records = histogram("batch.records", "{record}", "Records in an accepted request.", _RECORDS)
        self._size = histogram("batch.size", "By", "Uncompressed size of an accepted request.", _BYTES)
        self._attempts = histogram(
            "batch.attempts", "{request}", "Requests sent until these records were accepted.", _ATTEMPTS
        )
        self._duration = histogram("request.duration", "s", "Duration of an accepted request.", _SECONDS)
        self._clients.create(meter, "mixpanel.client.", counters=_COUNTERS, amounts=_AMOUNTS, ages=_AGES)

    def watch(self, client: AsyncMixpanel, name: str = "") -> None:
        """Export the counts of a client as long as it exists.

        Args:
            client: the client; only a weak reference is kept.
            name: value of the attribute `client`, to distinguish several clients; see `named`.

        Raises:
            ValueError: if another client is watched under that name.
        """
        self._clients.add(client, name)

    async def on_delivered(self, delivery: Delivery) -> None:
        """Record a delivery. Pass this method to the client as `on_delivered`, or call it from your own callback.

        Args:
            delivery: the delivery.
        """
        self._record(delivery, {"kind": delivery.kind})

    def named(self, name: str) -> Callable[[Delivery], Awaitable[None]]:
        """Return an `on_delivered` callback for the client watched under this name.

        Args:
            name: name that `watch` was given.
        """

        async def on_delivered(delivery: Delivery) -> None:
            self._record(delivery, {"kind": delivery.kind, "client": name})

        return on_delivered

    def _record(self, delivery: Delivery, attributes: Mapping[str, str]) -> None:
        self._records.record(delivery.records, attributes)
        self._size.record(delivery.body_bytes, attributes)
        self._attempts.record(delivery.attempts, attributes)
        self._duration.record(delivery.duration, attributes)


class WorkerMetrics:
    """Instruments of one meter, for the workers of this process and their queue.

    Args:
        meter_provider: provider of the meter; None uses the global provider, even if that is set later.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._workers = _Watched("worker")
        meter = get_meter(_SCOPE, __version__, meter_provider)
        self._workers.create(meter, "mixpanel.", counters=_WORKER_COUNTERS, amounts=_WORKER_AMOUNTS, ages=_WORKER_AGES)

    def watch(self, worker: Worker, name: str = "") -> None:
        """Export the counts of a worker, and what it knows of its queue, as long as it exists.

        Args:
            worker: the worker; only a weak reference is kept.
            name: value of the attribute `worker`, to distinguish several workers of one process.

        Raises:
            ValueError: if another worker is watched under that name.
        """
        self._workers.add(worker, name)
