"""Prometheus: the scraped metrics are those of the reference, and the alert rules use them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import anyio.to_thread
import httpx
import pytest
import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import start_http_server
from prometheus_client.parser import text_string_to_metric_families

from mixpanel_async import DropReason, SqliteSpool
from mixpanel_async.emulator import Emulator
from mixpanel_async.flags import LocalFlags
from mixpanel_async.integrations.otel import MixpanelMetrics
from tools.reference.metrics import client_instruments

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/guides/observability.md").read_text(encoding="utf-8")
# Name in Prometheus of each instrument of a client.
DOCUMENTED = {one.name.removeprefix("mixpanel.client."): one.prometheus for one in client_instruments()}
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "examples/prometheus/mixpanel.rules.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
# Added to the name of a histogram.
HISTOGRAM = ("_bucket", "_sum", "_count")


@pytest.fixture
def scraped() -> Iterator[tuple[MixpanelMetrics, str]]:
    """Return metrics, and the address at which a Prometheus server would scrape them."""
    provider = MeterProvider([PrometheusMetricReader()])
    server, thread = start_http_server(0, addr="127.0.0.1")
    assert isinstance(server, WSGIServer)
    assert isinstance(thread, threading.Thread)
    yield MixpanelMetrics(provider), f"http://127.0.0.1:{server.server_port}/metrics"
    server.shutdown()
    server.server_close()
    thread.join()
    provider.shutdown()


def scrape(url: str) -> dict[str, list[Any]]:
    """Return the samples of each metric of this package."""
    text = httpx.get(url, trust_env=False).raise_for_status().text
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("mixpanel_"):
                found.setdefault(sample.name, []).append(sample)
    return found


@pytest.mark.anyio
async def test_scraped_metrics_are_the_documented_ones(scraped: tuple[MixpanelMetrics, str], tmp_path: Path) -> None:
    metrics, url = scraped
    spool = SqliteSpool(tmp_path / "spool.db")
    async with Emulator().client(spool=spool, local_flags=LocalFlags(), on_delivered=metrics.on_delivered) as mp:
        metrics.watch(mp)
        assert await mp.local_flags.wait_ready()
        await mp.track("user", "Event")
        await mp.flush()
        seen = await anyio.to_thread.run_sync(scrape, url)
    names = {name for name in seen if not name.endswith(HISTOGRAM)}
    histograms = {name.removesuffix("_bucket") for name in seen if name.endswith("_bucket")}
    assert names | histograms == set(DOCUMENTED.values())
    assert [sample.value for sample in seen["mixpanel_client_records_delivered_total"]] == [1.0]
    lost = {sample.labels["reason"]: sample.value for sample in seen["mixpanel_client_records_lost_total"]}
    assert lost == {reason.value: 0.0 for reason in DropReason}


def test_names_follow_from_the_names_of_the_instruments() -> None:
    assert len(DOCUMENTED) > 20
    for instrument, name in DOCUMENTED.items():
        base = f"mixpanel_client_{instrument.replace('.', '_')}"
        assert name in {base, f"{base}_total", f"{base}_bytes", f"{base}_seconds"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alert_rule_uses_documented_metrics_and_labels(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "annotations"}
    used = set(re.findall(r"\bmixpanel_[a-z_]+", rule["expr"]))
    assert used
    assert used <= set(DOCUMENTED.values())
    reasons = {reason.value for reason in DropReason}
    for values in re.findall(r'reason!?[=~]+"([a-z_|]+)"', rule["expr"]):
        assert set(values.split("|")) <= reasons
    assert f"\n| `{rule['alert']}` |" in GUIDE
