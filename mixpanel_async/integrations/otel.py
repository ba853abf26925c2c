"""OpenTelemetry metrics of a client.

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
| `mixpanel.client.queue.records` | gauge | `{record}` | |
| `mixpanel.client.queue.size` | gauge | `By` | |
| `mixpanel.client.requests.in_flight` | gauge | `{request}` | |
| `mixpanel.client.batch.records` | histogram | `{record}` | `kind` |
| `mixpanel.client.batch.size` | histogram | `By` | `kind` |
| `mixpanel.client.batch.attempts` | histogram | `{request}` | `kind` |
| `mixpanel.client.request.duration` | histogram | `s` | `kind` |

`kind` is `events`, `imports`, `people` or `groups`. The metrics of a named client also have the attribute `client`.
Lost records are those that failed, were dropped or are uncertain; `reason` distinguishes them. Accepted records that
are neither delivered nor lost are in the queue. Metrics never contain a record, an id or a token.
"""

from __future__ import annotations

import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

try:
    from opentelemetry.metrics import CallbackOptions, Histogram, MeterProvider, Observation, get_meter
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    raise ImportError(
        'the OpenTelemetry metrics need an extra: pip install "mixpanel-async[otel]"', name=error.name
    ) from error

from mixpanel_async import AsyncMixpanel, Delivery, Stats, __version__

__all__ = ["MixpanelMetrics"]

_ReadNumbers = Callable[[Stats], Mapping[str, int]]
_SCOPE: Final = "mixpanel_async"
_REASON: Final = "reason"

# Name, unit, description, and a function that returns the numbers by reason. The reason is empty for instruments
# without that attribute.
_COUNTERS: Final[tuple[tuple[str, str, str, _ReadNumbers], ...]] = (
    ("records.accepted", "{record}", "Records accepted from the application.", lambda stats: {"": stats.accepted}),
    ("records.delivered", "{record}", "Records accepted by Mixpanel.", lambda stats: {"": stats.delivered}),
    ("records.lost", "{record}", "Records that ended without delivery.", lambda stats: stats.losses),
    ("requests", "{request}", "Requests started, including identity calls.", lambda stats: {"": stats.requests}),
    ("retries", "{request}", "Requests that repeated an earlier request.", lambda stats: {"": stats.retries}),
)
_GAUGES: Final[tuple[tuple[str, str, str, _ReadNumbers], ...]] = (
    ("queue.records", "{record}", "Records waiting or in flight.", lambda stats: {"": stats.pending}),
    ("queue.size", "By", "Encoded size of the queued records.", lambda stats: {"": stats.pending_bytes}),
    ("requests.in_flight", "{request}", "Requests under way.", lambda stats: {"": stats.in_flight}),
)

# Bucket boundaries in the unit of the histogram. Users can override them with a view of the OpenTelemetry SDK.
_RECORDS: Final = (1, 10, 50, 100, 250, 500, 1_000, 2_000)
_BYTES: Final = (1_000, 10_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_000_000)
_ATTEMPTS: Final = (1, 2, 3, 5, 10, 20)
_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class MixpanelMetrics:
    """Instruments of one meter, for one or more clients.

    Args:
        meter_provider: provider of the meter; None uses the global provider, even if that is set later.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        self._clients: dict[str, weakref.ref[AsyncMixpanel]] = {}
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
        for name, unit, description, read in _COUNTERS:
            meter.create_observable_counter(f"mixpanel.client.{name}", [self._observer(read)], unit, description)
        for name, unit, description, read in _GAUGES:
            meter.create_observable_up_down_counter(
                f"mixpanel.client.{name}", [self._observer(read)], unit, description
            )

    def watch(self, client: AsyncMixpanel, name: str = "") -> None:
        """Export the counts of a client as long as it exists.

        Args:
            client: the client; only a weak reference is kept.
            name: value of the attribute `client`, to distinguish several clients; see `named`.

        Raises:
            ValueError: if another client is watched under that name.
        """
        known = self._clients.get(name, lambda: None)()
        if known is not None and known is not client:
            raise ValueError(f"another client is already watched as {name!r}; pass a different name")
        self._clients[name] = weakref.ref(client)

    async def on_delivered(self, delivery: Delivery) -> None:
        """Record a delivery. Pass this method to the client as `on_delivered`, or call it from your own callback."""
        self._record(delivery, {"kind": delivery.kind})

    def named(self, name: str) -> Callable[[Delivery], Awaitable[None]]:
        """Return an `on_delivered` callback for the client watched under this name."""

        async def on_delivered(delivery: Delivery) -> None:
            self._record(delivery, {"kind": delivery.kind, "client": name})

        return on_delivered

    def _record(self, delivery: Delivery, attributes: Mapping[str, str]) -> None:
        self._records.record(delivery.records, attributes)
        self._size.record(delivery.body_bytes, attributes)
        self._attempts.record(delivery.attempts, attributes)
        self._duration.record(delivery.duration, attributes)

    def _observer(self, read: _ReadNumbers) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:  # noqa: ARG001  OpenTelemetry's signature
            for name, reference in list(self._clients.items()):
                client = reference()
                if client is not None:
                    attributes = {"client": name} if name else {}
                    for reason, number in read(client.stats()).items():
                        yield Observation(number, {**attributes, _REASON: reason} if reason else attributes)

        return observe
