"""OpenTelemetry metrics match the client's statistics and contain no other data."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mixpanel_async import ApiError, BatchPolicy, DropReason, RetryPolicy, SqliteSpool
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import LocalFlags
from mixpanel_async.integrations.otel import MixpanelMetrics

pytestmark = pytest.mark.anyio


class Exported:
    """Return metrics as an exporter gets them: name -> values or histograms by attributes."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.provider = MeterProvider([self._reader])

    def read(self) -> dict[str, dict[tuple[tuple[str, str], ...], Any]]:
        data = self._reader.get_metrics_data()
        found: dict[str, dict[tuple[tuple[str, str], ...], Any]] = {}
        for resource in data.resource_metrics if data else ():
            for scope in resource.scope_metrics:
                assert scope.scope.name == "mixpanel_async"
                for metric in scope.metrics:
                    points = found.setdefault(metric.name.removeprefix("mixpanel.client."), {})
                    for point in metric.data.data_points:
                        attributes: Any = point.attributes or {}
                        points[tuple(sorted(attributes.items()))] = getattr(point, "value", point)
        return found


async def test_counts_queue_and_batches_are_exported() -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    emulator = Emulator()
    batching = BatchPolicy(linger=3600.0, max_pending_events=5)
    retry = RetryPolicy(initial=0.0, maximum=0.0)
    async with emulator.client(on_delivered=metrics.on_delivered, batching=batching, retry=retry) as mp:
        metrics.watch(mp)
        for number in range(6):
            await mp.track("user", "Event", {"number": number})
        queued = exported.read()
        assert queued["queue.records"] == {(): 5}
        assert queued["queue.size"] == {(): mp.stats().pending_bytes}
        emulator.fail_next(status=503, times=1)
        await mp.flush()
        await mp.people_set("user", {"plan": "free"})
        await mp.flush()
        seen = exported.read()
        stats = mp.stats()
    assert seen["records.accepted"] == {(): stats.accepted} == {(): 7}
    assert seen["records.delivered"] == {(): 6}
    assert {key: number for key, number in seen["records.lost"].items() if number} == {(("reason", "queue_full"),): 1}
    assert seen["requests"] == {(): 3}
    assert seen["retries"] == {(): 1}
    assert seen["queue.records"] == seen["queue.size"] == seen["requests.in_flight"] == {(): 0}
    events, people = ((("kind", kind),) for kind in ("events", "people"))
    assert {kind: point.sum for kind, point in seen["batch.records"].items()} == {events: 5, people: 1}
    assert {kind: point.sum for kind, point in seen["batch.attempts"].items()} == {events: 2, people: 1}
    assert seen["batch.size"][events].sum > seen["batch.size"][people].sum > 0
    for point in seen["request.duration"].values():
        assert point.count == 1
        assert 0 < point.sum < 20


async def test_counters_exist_from_the_start_with_0_for_every_reason() -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    async with Emulator().client() as mp:
        metrics.watch(mp)
        seen = exported.read()
    assert seen["records.lost"] == {(("reason", reason.value),): 0 for reason in DropReason}
    for name in ("records.accepted", "records.delivered", "requests", "retries", "queue.records", "queue.oldest_age"):
        assert seen[name] == {(): 0}
    for name in ("spool.records", "spool.size", "spool.dead_letters"):
        assert seen[name] == {(): 0}
    # A client without flags has no metrics of flags.
    assert not [name for name in seen if name.startswith("flags.")]


async def test_metrics_of_a_spool_match_the_statistics(tmp_path: Path) -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    emulator = Emulator()
    batching = BatchPolicy(linger=3600.0)
    async with emulator.client(spool=SqliteSpool(tmp_path / "spool.db"), batching=batching) as mp:
        metrics.watch(mp)
        for _ in range(4):
            await mp.track("user", "Event")
        seen, stats = exported.read(), mp.stats()
        assert seen["queue.records"] == {(): 4}
        assert seen["spool.records"] == {(): stats.on_disk}
        assert seen["spool.size"] == {(): stats.spool_bytes}
        assert 0 < seen["queue.oldest_age"][()] <= stats.oldest_age
        emulator.break_next("zero", times=100)
        await mp.flush()
        with anyio.fail_after(10):
            while exported.read()["spool.dead_letters"] != {(): 4}:  # noqa: ASYNC110  a thread changes the condition
                await anyio.sleep(0.001)


async def test_metrics_of_identity_calls_match_the_statistics() -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    emulator = Emulator()

    def by_outcome(name: str) -> dict[str, int]:
        return {outcome: number for ((_, outcome),), number in exported.read()[name].items()}

    async with emulator.client(identity_retry=RetryPolicy(attempts=1)) as mp:
        metrics.watch(mp)
        assert by_outcome("identity.calls") == {"succeeded": 0, "failed": 0, "deferred": 0}
        assert by_outcome("identity.deferred") == {"delivered": 0, "lost": 0}
        await mp.alias("user", "visitor")
        emulator.fail_next(status=503)
        with pytest.raises(ApiError):
            await mp.alias("user", "visitor-2")
        await mp.alias("user", "visitor-3", deferred=True)
        await mp.flush()
        assert by_outcome("identity.calls") == {"succeeded": 1, "failed": 1, "deferred": 1}
        assert by_outcome("identity.deferred") == {"delivered": 1, "lost": 0}


async def test_metrics_of_flags_match_the_statistics() -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    emulator = Emulator()
    emulator.set_flag("new-checkout")
    async with emulator.client(local_flags=LocalFlags(exposure_window=60.0)) as mp:
        metrics.watch(mp)
        assert exported.read()["flags.exposures"] == {
            (("outcome", outcome),): 0 for outcome in ("tracked", "repeated", "lost")
        }
        assert await mp.local_flags.wait_ready()
        for _ in range(3):
            mp.local_flags.get_variant_value("new-checkout", None, {"distinct_id": "user"})
        seen, flags = exported.read(), mp.stats().flags
        assert flags is not None
    assert {key: number for ((_, key),), number in seen["flags.exposures"].items()} == {
        "tracked": 1,
        "repeated": 2,
        "lost": 0,
    }
    assert seen["flags.polls"] == {(): flags.polls} != {(): 0}
    assert seen["flags.definitions"] == {(): 1}
    assert 0 <= seen["flags.age"][()] < 20
    for name in ("poll_failures", "remote_requests", "remote_failures", "undecidable"):
        assert seen[f"flags.{name}"] == {(): 0}


async def test_metrics_distinguish_clients_by_name() -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    emulator = Emulator()
    async with (
        emulator.client(on_delivered=metrics.named("shop")) as shop,
        emulator.client(on_delivered=metrics.named("worker")) as worker,
    ):
        metrics.watch(shop, "shop")
        metrics.watch(worker, "worker")
        metrics.watch(worker, "worker")
        with pytest.raises(ValueError, match="another client"):
            metrics.watch(shop, "worker")
        await shop.track("user", "Event")
        await shop.flush()
        seen = exported.read()
    assert seen["records.delivered"] == {(("client", "shop"),): 1, (("client", "worker"),): 0}
    assert list(seen["batch.records"]) == [(("client", "shop"), ("kind", "events"))]


async def test_metrics_do_not_keep_a_client_alive() -> None:
    exported = Exported()
    metrics = MixpanelMetrics(exported.provider)
    mp = Emulator().client()
    metrics.watch(mp)
    await mp.aclose()
    assert exported.read()["records.accepted"] == {(): 0}
    del mp
    gc.collect()
    assert exported.read().get("records.accepted", {}) == {}
    async with Emulator().client() as other:
        metrics.watch(other)
        assert exported.read()["records.accepted"] == {(): 0}


async def test_metrics_without_an_sdk_do_nothing() -> None:
    metrics = MixpanelMetrics()
    async with Emulator().client(on_delivered=metrics.on_delivered) as mp:
        metrics.watch(mp)
        await mp.track("user", "Event")
    assert mp.stats().delivered == 1


def test_import_error_names_the_missing_extra(tmp_path: Path) -> None:
    program = "import sys; sys.modules['opentelemetry'] = None\nimport mixpanel_async.integrations.otel"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=25, cwd=tmp_path)
    assert 'pip install ".[otel]"' in result.stderr.splitlines()[-1]
