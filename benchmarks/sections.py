"""All sections except the burst: run child processes and convert their figures to rows."""

from __future__ import annotations

import os
import socket
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from .bench import Bench
from .event import NAME, TOKEN, distinct_id, properties
from .report import Row

_SENDERS: Final = ("harness", "mixpanel_async")
_BATCH: Final = 2_000
_GROWTH_TURNS: Final = 6


def paced(bench: Bench) -> Iterator[Row]:
    """Measure the delay of a 1 ms heartbeat at 2,000 events per second, with and without the client and isal."""
    seconds = min(3.0, bench.events / 10_000)
    with bench.delay(30):
        for speedups in (True, False):
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in _SENDERS}
            for _ in bench.few_rounds:
                for name, figures in runs.items():
                    figures.append(
                        bench.child(
                            "paced", subject=name, origin=bench.origin, rate=2_000, seconds=seconds, speedups=speedups
                        )
                    )
            counts = bench.take()
            late, base = (1e3 * median(run["late"] for run in runs[name]) for name in reversed(_SENDERS))
            held = 1e3 * median(run["held"] for run in runs["mixpanel_async"])
            yield Row(
                section="paced",
                name=f"2,000 events/s, heartbeat, {'isal' if speedups else 'without isal'}",
                measured=f"at most {late:.2f} ms late, {base:.2f} ms without the client; "
                f"loop blocked for {held:.2f} ms of CPU",
                ratio=f"{late - base:+.2f} ms",
                wanted="<= 2 ms",
                met=late - base <= 2.0,
                figures={
                    "late_ms": late, "base_ms": base, "held_cpu_ms": held,
                    "complete": counts["distinct"] == int(2_000 * seconds) * len(bench.few_rounds),
                },
            )  # fmt: skip


def growth(bench: Bench) -> Iterator[Row]:
    """Measure the cost per event for growing numbers of events, properties, callers and bound clients."""
    usual, fewer = bench.events, max(1, bench.events // 4)
    plans: dict[str, tuple[str, list[tuple[int, int]]]] = {
        "events": ("events", [(max(1, usual // 40), usual), (usual, usual), (25 * usual, 25 * usual)]),
        "properties": ("properties per event", [(5, fewer), (25, max(1, fewer // 2)), (100, max(1, fewer // 4))]),
        # Each caller tracks several events, to spread the cost of starting its task.
        "callers": ("concurrent callers", [(1, usual), (100, usual), (10_000, usual)]),
        "clients": ("bound clients", [(1, fewer), (100, fewer), (1_000, fewer)]),
    }
    for what, (words, plan) in plans.items():
        rounds, turns = (bench.few_rounds, _GROWTH_TURNS) if what != "events" else (range(1), 1)
        # Repeat the sizes in turn, so that other load on the machine affects all of them.
        children = [bench.child("growth", what=what, plan=plan * turns, origin=bench.origin)["runs"] for _ in rounds]
        runs = [taken[at : at + len(plan)] for taken in children for at in range(0, len(taken), len(plan))]
        complete = True
        costs: list[float] = []
        for (size, events), measured in zip(plan, zip(*runs, strict=True), strict=True):
            sent = size * (events // size) if what == "events" else events
            complete = complete and all(one["distinct"] == one["events"] == sent for one in measured)
            shares = [one["bytes"] / 1_000 if what == "properties" else sent for one in measured]
            # As in the burst: other load only increases the time, so take the minimum.
            costs.append(min(1e6 * one["cpu"] / share for one, share in zip(measured, shares, strict=True)))
        # A decreasing cost is as good as a constant one.
        worst = max(later / earlier for at, earlier in enumerate(costs) for later in costs[at:])
        unit = "us of CPU per kilobyte" if what == "properties" else "us of CPU per event"
        yield Row(
            section="growth",
            name=" / ".join(f"{size:,}" for size, _ in plan) + f" {words}",
            measured=" / ".join(f"{cost:.2f}" for cost in costs) + f" {unit}",
            ratio=f"{worst:.2f} x",
            wanted="<= 1.2 x",
            met=worst <= 1.2,
            figures={"sizes": [size for size, _ in plan], "costs_us": costs, "times": worst, "complete": complete},
        )


def identity(bench: Bench) -> Iterator[Row]:
    """Compare an awaited call with the same request sent by httpx alone."""
    calls = max(1, bench.events // 40)
    for concurrency in (1, 10, 100):
        runs: dict[str, list[dict[str, float]]] = {"bare": [], "client": []}
        opened = 0
        complete = True
        for _ in bench.few_rounds:
            for name, figures in runs.items():
                figures.append(
                    bench.child("identity", subject=name, origin=bench.origin, calls=calls, concurrency=concurrency)
                )
                counts = bench.take()
                complete = complete and counts["events"] == calls
                if name == "client":
                    opened = max(opened, counts["connections"])
        bare, ours = (1e6 * median(run["cpu"] for run in figures) / calls for figures in runs.values())
        bare_wall, our_wall = (1e6 * median(run["wall"] for run in figures) / calls for figures in runs.values())
        yield Row(
            section="identity",
            name=f"await alias(), {concurrency} concurrent",
            measured=f"{ours:.0f} us of CPU, httpx alone {bare:.0f} us; wall time {our_wall:.0f} and "
            f"{bare_wall:.0f}; {opened} connections opened after warm-up",
            ratio=f"{ours / bare:.2f} x httpx",
            wanted="<= 1.0, no new connection",
            met=ours / bare <= 1.0 and not opened,
            figures={
                "cpu_us": ours, "bare_cpu_us": bare, "times": ours / bare, "wall_us": our_wall,
                "bare_wall_us": bare_wall, "opened": opened, "complete": complete,
            },
        )  # fmt: skip


def backfill(bench: Bench) -> Iterator[Row]:
    """Measure `import_data` against a server with 50 ms latency, which is limited by concurrency or by the CPU."""
    latency = 0.05
    for in_flight, events in ((1, 5 * bench.events), (4, 25 * bench.events)):
        with bench.delay(int(latency * 1e3)):
            figures = bench.child(
                "backfill", origin=bench.origin, events=events, in_flight=in_flight, batch=_BATCH, pending=10 * _BATCH
            )
        counts = bench.take()
        rate, limit = events / figures["wall"], in_flight * _BATCH / latency
        # Time spent waiting for a CPU used by other processes counts as busy.
        busy = min(1.0, (figures["cpu"] + figures["waiting"]) / figures["wall"])
        peak = figures["peak"] / 1e6
        yield Row(
            section="backfill",
            name=f"{events:,} events by import_data, {in_flight} in flight, 50 ms",
            measured=f"{rate:,.0f}/s of {limit:,.0f}/s, CPU {busy:.0%} busy, "
            f"{1e6 * figures['cpu'] / events:.2f} us of CPU per event, {peak:.0f} MB at the peak",
            ratio=f"{rate / limit:.0%}",
            wanted=">= 90%, or CPU-bound",
            met=rate / limit >= 0.9 or busy >= 0.9,
            figures={
                "events_per_second": rate, "share": rate / limit, "busy": busy, "peak_mb": peak,
                "cpu_us": 1e6 * figures["cpu"] / events, "duplicates": counts["events"] - counts["distinct"],
                "complete": counts["distinct"] == events,
            },
        )  # fmt: skip


def first_use(bench: Bench) -> Iterator[Row]:
    """Measure how long the first call and the first request block the event loop."""
    for scheme in ("http", "https"):
        for started in (True, False):
            origin = bench.origin.replace("http://", f"{scheme}://")
            runs = [bench.child("first_use", origin=origin, started=started) for _ in bench.few_rounds]
            bench.take()
            start, call, request = (1e3 * median(run[name] for run in runs) for name in ("start", "call", "request"))
            yield Row(
                section="first use",
                name=f"{scheme}, {'after' if started else 'without'} start()",
                measured=f"loop blocked for {call:.2f} ms of CPU by the first call, "
                f"{request:.2f} until the first response" + (f", {start:.2f} by start()" if started else ""),
                ratio=f"{max(start, call, request):.2f} ms",
                wanted="<= 2 ms",
                met=max(start, call, request) <= 2.0,
                figures={"start_ms": start, "call_ms": call, "request_ms": request},
            )


def spool(bench: Bench) -> Iterator[Row]:
    """Measure `track()` with a spool, which commits each event to disk before it returns, on one core."""
    plans: tuple[tuple[int, int], ...] = ((bench.events, 0), (max(1, bench.events // 8), 2_000))
    for events, rate in plans:
        runs = []
        complete = True
        for _ in bench.few_rounds:
            # /tmp is often a memory file system, so prefer a folder on disk.
            parent = "/var/tmp" if Path("/var/tmp").is_dir() else None
            with tempfile.TemporaryDirectory(dir=parent) as path:
                arguments: dict[str, Any] = {"origin": bench.origin, "path": path, "events": events, "rate": rate}
                runs.append(bench.child("spool", callers=200, **arguments))
            complete = complete and bench.take()["distinct"] == events + 10
        tracked, delivered, p99 = (median(run[name] for run in runs) for name in ("tracked", "delivered", "p99"))
        cpu, harness = (min(1e6 * run[name] / events for run in runs) for name in ("cpu", "harness"))
        met = (cpu <= 100 and p99 <= 0.005) if rate else (cpu <= 20 and events / tracked >= 40_000)
        yield Row(
            section="spool",
            name=f"{rate:,} events/s, one core" if rate else "200 callers without pause, one core",
            measured=f"{events / tracked:,.0f}/s on disk, {events / delivered:,.0f}/s delivered, "
            f"{cpu:.1f} us of CPU per event and {harness:.1f} of the harness; p99 of await track() {1e3 * p99:.2f} ms",
            ratio=f"{cpu:.1f} us, " + (f"{1e3 * p99:.2f} ms" if rate else f"{events / tracked / 1e3:.1f} k/s"),
            wanted="<= 100 us, <= 5 ms" if rate else "<= 20 us, >= 40 k/s",
            met=met,
            figures={
                "tracked_per_second": events / tracked, "delivered_per_second": events / delivered,
                "p99_ms": 1e3 * p99, "cpu_us": cpu, "harness_us": harness, "complete": complete,
            },
        )  # fmt: skip


def start(bench: Bench) -> Iterator[Row]:
    """Compare the import of the package with the import of its dependencies alone."""
    with tempfile.TemporaryDirectory() as folder:
        # Installed packages have bytecode files; give a read-only checkout a place for them, too.
        environment = {**bench.environment, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        yield from _started(replace(bench, environment=environment))


def _started(bench: Bench) -> Iterator[Row]:
    for asyncio in (False, True):
        runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        # The first run fills the caches.
        bench.child("start", whole=True, asyncio=asyncio)
        for _ in range(4 * len(bench.few_rounds) - 1):
            for whole, measured in runs.items():
                measured.append(bench.child("start", whole=whole, asyncio=asyncio))
        ours, base = (1e3 * min(run["cpu"] for run in measured) for measured in runs.values())
        bare = 1e3 * min(run["bare"] for run in runs[True])
        peak, base_peak = (median(run["peak"] for run in measured) / 1e6 for measured in runs.values())
        # Exclude extras that dependencies import: httpx imports rich if it is installed.
        extras = sorted(set(runs[True][0]["extras"]) - set(runs[False][0]["extras"]))
        yield Row(
            section="start",
            name="import of AsyncMixpanel" + ", asyncio already imported" * asyncio,
            measured=f"{ours:.0f} ms of CPU, its dependencies {base:.0f} ms; "
            f"{peak:.1f} MB at the peak, theirs {base_peak:.1f}; "
            f"extras imported: {', '.join(extras) or 'none'}",
            ratio=f"{ours / base:.2f} x",
            wanted="<= 1.3 x, no extra",
            met=ours / base <= 1.3 and not extras,
            figures={
                "cpu_ms": ours, "bare_cpu_ms": bare, "base_ms": base, "times": ours / base, "peak_mb": peak,
                "base_peak_mb": base_peak, "extras": extras,
            },
        )  # fmt: skip


def emulator(bench: Bench) -> Iterator[Row]:
    """Measure the throughput of the emulator on one core with one connection and gzip batches of 2,000."""
    batches = max(1, 2 * bench.events // _BATCH)
    for path, headers in (("/track?verbose=1", ""), ("/import?strict=1", "Authorization: Basic dG9rZW46\r\n")):
        bodies = [_batch(number) for number in range(batches)]
        runs = []
        for _ in bench.few_rounds:
            with bench.process("benchmarks.inside.emulator", "simplified") as process:
                assert process.stdin is not None
                assert process.stdout is not None
                url = urlsplit(process.stdout.readline().strip())
                used = []
                began = time.perf_counter()
                for posted in (bodies[:1], bodies):
                    began = time.perf_counter()
                    _post(url.hostname or "", url.port or 0, path, headers, posted)
                    wall = time.perf_counter() - began
                    process.stdin.write("\n")
                    process.stdin.flush()
                    used.append(float(process.stdout.readline()))
                runs.append((used[1] - used[0], wall))
        events = batches * _BATCH
        cpu, wall = (median(run[index] for run in runs) for index in (0, 1))
        yield Row(
            section="emulator",
            name=path,
            measured=f"{events / cpu:,.0f} events per second of CPU ({1e6 * cpu / events:.1f} us each), "
            f"{events / wall:,.0f}/s wall time",
            ratio=f"{events / cpu / 1e3:.0f} k/s",
            wanted=">= 60 k/s",
            met=events / cpu >= 60_000,
            figures={"events_per_cpu_second": events / cpu, "events_per_second": events / wall},
        )


def _batch(number: int) -> bytes:
    """Return a gzip-compressed batch of the benchmark's event, as a client would send it."""
    now = int(time.time() * 1000)
    events = [
        {
            "event": NAME,
            "properties": {
                "token": TOKEN, "distinct_id": distinct_id(index), "time": now, "$insert_id": os.urandom(16).hex(),
                "mp_lib": "python-async", "$lib_version": "0.1.0", **properties(number * _BATCH + index),
            },
        }
        for index in range(_BATCH)
    ]  # fmt: skip
    packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(orjson.dumps(events)) + packer.flush()


def _post(host: str, port: int, path: str, headers: str, bodies: list[bytes]) -> None:
    with socket.create_connection((host, port)) as connection, connection.makefile("rb") as replies:
        for body in bodies:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n{headers}"
                f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            connection.sendall(head.encode() + body)
            status = replies.readline()
            if b" 200 " not in status:
                raise RuntimeError(f"the emulator rejected a batch: {status!r}")
            length = 0
            while (line := replies.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            replies.read(length)
