"""Metrics of `mixpanel-async worker`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mixpanel_async import ConfigurationError

from . import require

if TYPE_CHECKING:
    from mixpanel_async.worker import Worker


@contextmanager
def reporting(worker: Worker, *, host: str, port: int | None) -> Iterator[None]:
    """Export the metrics of a worker for the length of the block.

    With a port, they are served to Prometheus. Otherwise they go to the provider of the process, which
    `opentelemetry-instrument` sets; without OpenTelemetry, nothing happens.

    Args:
        worker: the worker.
        host: address on which to serve.
        port: port on which to serve `/metrics`; 0 picks a free one.

    Raises:
        SystemExit: if the extra is missing.
        ConfigurationError: if the port cannot be used.
    """
    if port is not None:
        require("prometheus", "opentelemetry", "prometheus_client")
        with _serving(worker, host, port):
            yield
        return
    if find_spec("opentelemetry") is not None:
        from mixpanel_async.integrations.otel import WorkerMetrics

        WorkerMetrics().watch(worker)
    yield


@contextmanager
def _serving(worker: Worker, host: str, port: int) -> Iterator[None]:
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import start_http_server

    from mixpanel_async.integrations.otel import WorkerMetrics

    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise ConfigurationError(f"cannot serve metrics on {host} port {port}: {error.strerror}") from None
    provider = MeterProvider([PrometheusMetricReader()])
    WorkerMetrics(provider).watch(worker)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        provider.shutdown()
