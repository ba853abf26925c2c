"""Metrics of a worker and its queue, scraped from the endpoint of `mixpanel-async worker --metrics-port`."""

from __future__ import annotations

import gc
import re
import socket
from typing import Any, Final

import anyio
import anyio.to_thread
import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client.parser import text_string_to_metric_families

from mixpanel_async import ConfigurationError, DropReason
from mixpanel_async._http.asgi import asgi_client
from mixpanel_async.cli.metrics import reporting
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations import otel
from mixpanel_async.integrations.otel import WorkerMetrics
from mixpanel_async.outbox import MemoryOutbox
from mixpanel_async.worker import Worker

pytestmark = pytest.mark.anyio
TOKEN: Final = "emulator-token"
# Rows of the table in the module: instrument.
DOCUMENTED: Final = set(
    re.findall(r"^\| `(mixpanel\.(?:worker|queue)\.[a-z_.]+)` \|", otel.__doc__ or "", re.MULTILINE)
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def scrape(port: int) -> dict[str, Any]:
    text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status().text
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("mixpanel_") and not sample.labels.get("reason")
    }


def values(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def waiting_outbox(emulator: Emulator) -> MemoryOutbox:
    """Return an outbox with three events."""
    outbox = MemoryOutbox()
    async with emulator.client(TOKEN, outbox=outbox) as mp:
        for number in range(3):
            await mp.track("ada", "Viewed", {"number": number})
    return outbox


def worker_of(emulator: Emulator, outbox: MemoryOutbox, **options: Any) -> Worker:
    return Worker(outbox, TOKEN, api_host="http://127.0.0.1", http_client=asgi_client(emulator.app), **options)


async def test_endpoint_serves_the_queue_and_the_worker() -> None:
    emulator, port = Emulator(), free_port()
    outbox = await waiting_outbox(emulator)
    worker = worker_of(emulator, outbox, kinds=["people"])
    with reporting(worker, host="127.0.0.1", port=port):
        async with worker:
            assert await worker.drain()
        found = await anyio.to_thread.run_sync(scrape, port)
        with pytest.raises(ConfigurationError, match=f"cannot serve metrics on 127.0.0.1 port {port}"):
            reporting(worker, host="127.0.0.1", port=port).__enter__()
    assert found["mixpanel_worker_records_delivered_total"] == 0
    # This worker does not serve events.
    assert found["mixpanel_queue_records"] == 3
    assert found["mixpanel_queue_bytes"] > 0
    assert (found["mixpanel_queue_workers"], found["mixpanel_queue_dead"]) == (1, 0)
    assert found["mixpanel_queue_oldest_seconds"] >= 0
    with pytest.raises(httpx.ConnectError):
        await anyio.to_thread.run_sync(scrape, port)


async def test_delivered_records_are_counted() -> None:
    emulator, reader = Emulator(), InMemoryMetricReader()
    provider = MeterProvider([reader])
    worker = worker_of(emulator, await waiting_outbox(emulator))
    WorkerMetrics(provider).watch(worker)
    async with worker:
        assert await worker.drain()
    assert [point.value for point in values(reader)["mixpanel.worker.records.delivered"]] == [3]
    provider.shutdown()


async def test_metrics_are_the_documented_ones() -> None:
    emulator, reader = Emulator(), InMemoryMetricReader()
    provider = MeterProvider([reader])
    metrics = WorkerMetrics(provider)
    first, second = (worker_of(emulator, MemoryOutbox()) for _ in range(2))
    metrics.watch(first)
    metrics.watch(second, "second")
    with pytest.raises(ValueError, match="another worker is already watched"):
        metrics.watch(second)
    found = values(reader)
    assert set(found) == DOCUMENTED
    lost = {point.attributes["reason"] for point in found["mixpanel.worker.records.lost"]}
    assert lost == {reason.value for reason in DropReason}
    assert [dict(point.attributes) for point in found["mixpanel.queue.records"]] == [{}, {"worker": "second"}]
    await first.aclose()
    await second.aclose()
    del first, second
    gc.collect()
    provider.shutdown()


async def test_worker_without_a_port_is_watched_by_the_global_provider() -> None:
    worker = worker_of(Emulator(), MemoryOutbox())
    with reporting(worker, host="127.0.0.1", port=None):
        pass
    await worker.aclose()
