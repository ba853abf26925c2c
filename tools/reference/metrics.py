"""Page of the metrics, from the instruments that the code creates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, NoOpMeter

from mixpanel_async import AsyncMixpanel, DropReason
from mixpanel_async._model.records import RecordKind
from mixpanel_async.flags import LocalFlags, RemoteFlags
from mixpanel_async.integrations.otel import MixpanelMetrics, WorkerMetrics
from mixpanel_async.outbox import MemoryOutbox
from mixpanel_async.worker import Worker

from .markdown import code, page, section, table

_UNITS: Final = {"By": "bytes", "s": "seconds"}


class Instrument(NamedTuple):
    """Instrument of a meter.

    Args:
        name: name in OpenTelemetry.
        kind: `counter`, `up-down counter`, `gauge` or `histogram`.
        unit: unit in UCUM.
        description: meaning.
        values: values of each attribute.
    """

    name: str
    kind: str
    unit: str
    description: str
    values: dict[str, list[str]]

    @property
    def prometheus(self) -> str:
        """Name in Prometheus."""
        unit = f"_{_UNITS[self.unit]}" if self.unit in _UNITS else ""
        name = self.name.replace(".", "_")
        name = name if name.endswith(unit) else name + unit
        return f"{name}_total" if self.kind == "counter" else name


class _Created(NamedTuple):
    """Arguments with which the code creates an instrument."""

    name: str
    kind: str
    unit: str
    description: str
    callbacks: Sequence[Any]


class _Meter(NoOpMeter):
    """Meter that keeps the arguments of each instrument."""

    def __init__(self, created: list[_Created]) -> None:
        super().__init__("reference")
        self._created = created

    def create_observable_counter(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        self._created.append(_Created(name, "counter", unit, description, callbacks))

    def create_observable_up_down_counter(
        self, name: str, callbacks: Any = None, unit: str = "", description: str = ""
    ) -> Any:
        self._created.append(_Created(name, "up-down counter", unit, description, callbacks))

    def create_observable_gauge(self, name: str, callbacks: Any = None, unit: str = "", description: str = "") -> Any:
        self._created.append(_Created(name, "gauge", unit, description, callbacks))

    def create_histogram(self, name: str, unit: str = "", description: str = "", **_: Any) -> Any:
        self._created.append(_Created(name, "histogram", unit, description, ()))


class _Provider(MeterProvider):
    def __init__(self) -> None:
        self.created: list[_Created] = []

    def get_meter(self, name: str, *_: Any, **__: Any) -> Meter:  # noqa: ARG002  OpenTelemetry's signature
        return _Meter(self.created)


def client_instruments() -> list[Instrument]:
    """Return the instruments of `MixpanelMetrics`."""
    provider = _Provider()
    metrics = MixpanelMetrics(provider)
    # It is never started. With flags, it has every number.
    client = AsyncMixpanel("reference", local_flags=LocalFlags(), remote_flags=RemoteFlags())
    metrics.watch(client)
    return _instruments(provider.created)


def worker_instruments() -> list[Instrument]:
    """Return the instruments of `WorkerMetrics`."""
    provider = _Provider()
    metrics = WorkerMetrics(provider)
    worker = Worker(MemoryOutbox(), "reference")
    metrics.watch(worker)
    return _instruments(provider.created)


def _instruments(created: Iterable[_Created]) -> list[Instrument]:
    found = [Instrument(one.name, one.kind, one.unit, one.description, _values(one)) for one in created]
    return sorted(found, key=lambda one: (one.kind == "histogram", one.name))


def _values(created: _Created) -> dict[str, list[str]]:
    """Return the values of each attribute, which the callbacks of an instrument report."""
    if created.kind == "histogram":
        return {"kind": [kind.value for kind in RecordKind]}
    values: dict[str, list[str]] = {}
    for callback in created.callbacks:
        for observation in callback(CallbackOptions()):
            for name, value in observation.attributes.items():
                values.setdefault(name, []).append(value)
    return values


def metrics_page() -> str:
    """Return the page of the metrics."""
    return page(
        "Metrics",
        "The client and the worker report their statistics to OpenTelemetry. The guide is "
        "[Monitor delivery](../guides/observability.md), the classes are in "
        "[Integrations](integrations.md#opentelemetry).",
        "Counters have a value for each value of their attribute from the start, so that the first loss is an increase "
        "from 0. The names in Prometheus are those of OpenTelemetry's exporter. No metric contains a record, an id or "
        "a token.",
        section(
            "Client",
            "`MixpanelMetrics` creates these instruments. The metrics of a client that was watched under a name have "
            "the attribute `client`. Those of `flags` have values if the client has feature flags.",
            _table(client_instruments()),
            "Accepted records that are neither delivered nor lost are in the queue. `mixpanel.client.spool.records` "
            "counts the queued records that are only on disk.",
        ),
        section(
            "Worker and queue",
            "`WorkerMetrics` creates these instruments; `mixpanel-async worker` does so if OpenTelemetry is installed, "
            "and serves them to Prometheus with `--metrics-port`. A worker that was watched under a name has the "
            "attribute `worker`.",
            _table(worker_instruments()),
            "Those of `mixpanel.queue` are about the whole queue, as the worker saw it at its last heartbeat, at most "
            "5 seconds ago. All workers report the same numbers: use the maximum, not the sum.",
        ),
    )


def _table(instruments: Iterable[Instrument]) -> str:
    head = ("OpenTelemetry, Prometheus", "Instrument", "Unit", "Attributes", "Meaning")
    return table(head, map(_row, instruments))


def _row(one: Instrument) -> tuple[str, ...]:
    attributes = "; ".join(f"{code(name)}: {_shown(values)}" for name, values in one.values.items())
    return f"{code(one.name)}<br>{code(one.prometheus)}", one.kind, code(one.unit), attributes, one.description


def _shown(values: list[str]) -> str:
    if values == [reason.value for reason in DropReason]:
        return "a [reason](reasons.md)"
    return ", ".join(map(code, values))
