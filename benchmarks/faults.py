"""`python -m benchmarks.faults`: compare how libraries behave under the same faults.

Each run is a child process that tracks events to a local server with scripted faults. The table shows lost events, lost
events that the library did not report, updates applied twice, the longest stall of the event loop, and the duration of
the shutdown.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .sink import Received, SinkProtocol, plain, records

_TOKEN: Final = "fault-token-0123456789"
_PORTAL: Final = b"<!DOCTYPE html><title>Sign in</title>"


@dataclass(frozen=True)
class Scenario:
    """A fault and the number of events sent."""

    title: str
    events: int = 500
    plan: tuple[str, ...] = ()
    """Faults of the first requests. Later requests get the fault `always`, or succeed if it is empty."""
    always: str = ""
    updates: bool = False
    """Increment counters instead of tracking events."""
    killed: bool = False
    """Kill the process after tracking, then restart it with a working server."""
    libraries: tuple[str, ...] = ("ours", "official", "posthog")


SCENARIOS: Final[dict[str, Scenario]] = {
    "answer": Scenario("answers to the first two requests are lost", plan=("cut", "cut")),
    "portal": Scenario("a captive portal answers the first two requests", plan=("portal", "portal")),
    "outage": Scenario("503 to the first eight requests", plan=("503",) * 8),
    "slow": Scenario("each answer takes 100 ms", always="slow"),
    "dead": Scenario("the server never answers; close within 1 s", always="hang"),
    "killed": Scenario("SIGKILL during an outage, then a restart", always="503", killed=True),
    "counter": Scenario(
        "the answer to one $add is lost", events=20, plan=("cut",), updates=True, libraries=("ours", "official")
    ),
}


@dataclass
class Plan:
    """Faults of the server and the records it received."""

    scenario: Scenario
    requests: int = 0
    is_healthy: bool = False
    seen: Counter[str] = field(default_factory=Counter)
    added: int = 0

    def next(self) -> str:
        """Return the fault of the next request; empty for success."""
        number, self.requests = self.requests, self.requests + 1
        if self.is_healthy:
            return ""
        return self.scenario.plan[number] if number < len(self.scenario.plan) else self.scenario.always

    def store(self, head: bytes, body: bytes) -> None:
        """Count the records of a request."""
        for record in records(plain(head, body)):
            if "$add" in record:
                self.added += record["$add"]["n"]
            else:
                self.seen[record.get("uuid") or record["properties"]["$insert_id"]] += 1


class FaultySinkProtocol(SinkProtocol):
    """The sink of the benchmarks with scripted faults."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(Received())
        self._plan = plan

    def _answer(self, head: bytes, body: bytes) -> None:
        fault = self._plan.next()
        if fault in {"", "cut", "slow", "hang"}:
            self._plan.store(head, body)
        if fault == "cut":
            self._transport.abort()
        elif fault == "portal":
            self._send(b"200 OK", b"text/html", _PORTAL)
        elif fault == "503":
            self._send(b"503 Service Unavailable", b"application/json", b'{"error":"down","status":0}')
        elif fault == "slow":
            asyncio.get_running_loop().call_later(0.1, self._succeed, head)
        elif fault != "hang":
            self._succeed(head)

    def _succeed(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        self._send(
            b"200 OK", b"application/json", b'{"status":"Ok"}' if b"batch" in path else b'{"error":null,"status":1}'
        )

    def _send(self, status: bytes, kind: bytes, content: bytes) -> None:
        head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(content))
        self._transport.write(head + content)


@contextmanager
def _server(plan: Plan) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(lambda: FaultySinkProtocol(plan), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@dataclass
class Client:
    """One library: `send` tracks an event or update, `end` delivers the rest, `reported` counts reported losses."""

    send: Callable[[int], Awaitable[object]]
    end: Callable[[], Awaitable[object]]
    reported: Callable[[], int]


async def _ours(origin: str, path: str) -> Client:
    from mixpanel_async import AsyncMixpanel, BatchPolicy, RetryPolicy, SqliteSpool

    mp = AsyncMixpanel(
        _TOKEN,
        api_host=origin,
        spool=SqliteSpool(path) if path else None,
        batching=BatchPolicy(max_events=50, linger=0.1),
        retry=RetryPolicy(initial=0.05, maximum=0.5),
        shutdown_timeout=1.0 if not path else 5.0,
    )
    await mp.start()

    async def send(number: int) -> None:
        if number < 0:
            await mp.people_increment("user", {"n": 1})
        else:
            await mp.track("user", "Event", {"number": number})

    def reported() -> int:
        stats = mp.stats()
        return stats.failed + stats.dropped + stats.uncertain

    return Client(send, mp.aclose, reported)


async def _official(origin: str, path: str) -> Client:  # noqa: ARG001  same signature for all libraries
    from mixpanel import BufferedConsumer, Mixpanel, MixpanelException

    consumer = BufferedConsumer(
        max_size=50, events_url=f"{origin}/track", people_url=f"{origin}/engage", request_timeout=1
    )
    mp = Mixpanel(_TOKEN, consumer=consumer)
    errors = 0

    def guarded(call: Callable[[], object]) -> None:
        nonlocal errors
        try:
            call()
        except MixpanelException:
            errors += 1

    async def send(number: int) -> None:
        if number < 0:
            guarded(lambda: mp.people_increment("user", {"n": 1}))
        else:
            guarded(lambda: mp.track("user", "Event", {"number": number}))

    async def end() -> None:
        guarded(consumer.flush)

    # A failed batch raises and stays in the buffer, so after an error the rest of the buffer counts as reported.
    return Client(send, end, lambda: sum(map(len, consumer._buffers.values())) if errors else 0)


async def _posthog(origin: str, path: str) -> Client:  # noqa: ARG001
    from posthog import AsyncPosthog

    lost = 0

    def on_error(_: object, batch: Any) -> None:
        nonlocal lost
        lost += len(batch)

    client = AsyncPosthog(_TOKEN, host=origin, flush_at=50, flush_interval=0.1, on_error=on_error, timeout=1)

    async def send(number: int) -> None:
        client.capture("Event", distinct_id="user", properties={"number": number})

    async def end() -> None:
        await client.flush(timeout_seconds=None)
        await client.shutdown()

    return Client(send, end, lambda: lost)


LIBRARIES: Final = {"ours": _ours, "official": _official, "posthog": _posthog}
TITLES: Final = {
    "ours": "mixpanel-async",
    "official": "mixpanel 5.4.1, BufferedConsumer",
    "posthog": "AsyncPosthog 7.91.1",
}


async def _child(library: str, scenario: Scenario, origin: str, path: str, count: int) -> dict[str, float]:
    client = await LIBRARIES[library](origin, path)
    stall = 0.0

    async def watch() -> None:
        nonlocal stall
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            stall = max(stall, time.perf_counter() - before - 0.001)

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0.02)
    for number in range(count):
        await client.send(-1 if scenario.updates else number)
        await asyncio.sleep(0)
    if scenario.killed and count:
        await asyncio.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    if scenario.killed:
        # Give the new process time to find the records of the old one.
        await asyncio.sleep(1)
    began = time.perf_counter()
    await client.end()
    took = time.perf_counter() - began
    watching.cancel()
    return {"stall": stall, "end": took, "reported": client.reported()}


def measure(library: str, name: str, limit: float) -> dict[str, float]:
    """Run one library in one scenario and return its figures."""
    scenario = SCENARIOS[name]
    plan = Plan(scenario)
    figures: dict[str, float] = {"stall": 0.0, "end": 0.0, "reported": 0}
    with _server(plan) as origin, tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "spool") if scenario.killed and library == "ours" else ""
        for count in (scenario.events, 0) if scenario.killed else (scenario.events,):
            command = [sys.executable, "-m", "benchmarks.faults", "--child", library, name, origin, path, str(count)]
            try:
                child = subprocess.run(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=limit, check=False
                )
                if child.stdout:
                    figures = json.loads(child.stdout.splitlines()[-1])
            except subprocess.TimeoutExpired:
                figures["end"] = limit
            plan.is_healthy = True
    arrived = plan.added if scenario.updates else len(plan.seen)
    twice = max(0, arrived - scenario.events) if scenario.updates else 0
    missing = max(0, scenario.events - arrived)
    return {**figures, "missing": missing, "silent": max(0, missing - figures["reported"]), "twice": twice}


def table(names: list[str], limit: float) -> Iterator[str]:
    """Yield the lines of the Markdown table: one row per fault and library."""
    yield "| fault | library | lost | lost without report | applied twice | longest loop stall | shutdown |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in names:
        scenario = SCENARIOS[name]
        for library in scenario.libraries:
            if (
                importlib.util.find_spec({"ours": "mixpanel_async", "official": "mixpanel"}.get(library, library))
                is None
            ):
                yield f"| {scenario.title} | {TITLES[library]} | not installed | | | | |"
                continue
            row = measure(library, name, limit)
            end = f"{'> ' if row['end'] >= limit else ''}{row['end']:.1f} s"
            yield (
                f"| {scenario.title} | {TITLES[library]} | {row['missing']:.0f} of {scenario.events} "
                f"| {row['silent']:.0f} | {row['twice']:.0f} | {row['stall'] * 1e3:,.0f} ms | {end} |"
            )


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults")
    parser.add_argument(
        "--only", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS), help="run only these scenarios"
    )
    parser.add_argument("--limit", type=float, default=30.0, help="time limit of one run in seconds (default: 30)")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        library, name, origin, path, count = options.child
        print(json.dumps(asyncio.run(_child(library, SCENARIOS[name], origin, path, int(count)))), flush=True)
        return 0
    for line in table(options.only, options.limit):
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
