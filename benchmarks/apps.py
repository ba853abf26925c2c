"""Latency and CPU time that tracking adds to a web request: `python -m benchmarks.apps`.

The example apps run under uvicorn and aiohttp's server, each in a separate process: without tracking, with tracking,
with a Mixpanel that refuses connections, and with a Mixpanel that accepts connections and never answers. The processes
take turns of 200 requests in random order, so that other load on the machine affects all of them equally. The first
requests of a turn are not counted, because the CPU caches still contain data of another app.

The percentiles are medians over the turns. Other load comes in bursts, which hit few turns: on a busy machine, the 99th
percentile of all requests together differed by a factor of six between three processes of the same app, that of the
median turn by a fifth. Both are printed, because the median does not show what happens in fewer than half of the turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Final

from .bench import environment, sink
from .report import Row, machine, results

VARIANTS: Final = {
    "plain": "without tracking",
    "tracked": "with tracking",
    "refused": "Mixpanel refuses connections",
    "silent": "Mixpanel never answers",
}
TITLES: Final = {
    "fastapi": "FastAPI example, uvicorn",
    "aiohttp": "aiohttp example",
    "django": "Django example, async view, uvicorn",
}
PATHS: Final = {"fastapi": b"/", "aiohttp": b"/", "django": b"/async"}
# Allowed increase of the 99th percentile: a share of it plus a number of seconds.
SHARE: Final = 0.05
SECONDS: Final = 0.0002
# Allowed CPU time that tracking adds to a request.
CPU_SECONDS: Final = 60e-6
# Requests of one turn that are measured, and warm-up requests per connection.
REQUESTS: Final = 200
WARM_UP: Final = 20

_VISITOR: Final = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
_REQUEST: Final = (
    b"GET %%b HTTP/1.1\r\nHost: localhost\r\nCookie: mp_visitor=%b\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36\r\n"
    b"Referer: https://localhost/pricing\r\n\r\n"
) % _VISITOR.encode()


class Variant:
    """An app under test and the latencies of its responses in each turn, in seconds.

    Args:
        port: port of the app.
        pid: process of the app.
        path: path of the page.
    """

    def __init__(self, port: int, pid: int, path: bytes) -> None:
        self._port = port
        self._pid = pid
        self._page = _REQUEST % path
        self._cpu_before, self._answers_before = 0.0, 0
        self._turns: list[list[float]] = []
        self.answers = 0
        self.cpu = 0.0
        """Seconds of CPU time per response."""

    async def until_up(self) -> None:
        """Wait until the app answers a request, which is not measured."""
        for _ in range(400):
            with contextlib.suppress(OSError):
                await self._request(0)
                return
            await asyncio.sleep(0.05)
        raise RuntimeError("an app did not start")

    async def turn(self, requests: int, connections: int) -> None:
        """Send requests over concurrent connections, each with one request at a time."""
        self._turns.append([])
        await asyncio.gather(*(self._request(max(1, requests // connections)) for _ in range(connections)))

    async def _request(self, requests: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        clock = time.perf_counter
        for number in range(WARM_UP + requests):
            began = clock()
            writer.write(self._page)
            head = await reader.readuntil(b"\r\n\r\n")
            length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
            # Django's body is chunked.
            await (reader.readexactly(int(length)) if length else reader.readuntil(b"\r\n0\r\n\r\n"))
            self.answers += 1
            if number >= WARM_UP:
                self._turns[-1].append(clock() - began)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the app answered {head[:40]!r}")
        writer.close()
        await writer.wait_closed()

    def begin_cpu(self) -> None:
        """Count CPU time and responses from now on."""
        self._cpu_before, self._answers_before = _cpu_seconds(self._pid), self.answers

    def end_cpu(self) -> None:
        """Compute the CPU time per response since `begin_cpu`."""
        self.cpu = (_cpu_seconds(self._pid) - self._cpu_before) / (self.answers - self._answers_before)

    def percentile(self, part: float) -> float:
        """Return the median over the turns of a percentile of the latencies."""
        return statistics.median(_percentile(turn, part) for turn in self._turns)

    def percentile_of_all(self, part: float) -> float:
        """Return a percentile of the latencies of all turns together."""
        return _percentile([*chain.from_iterable(self._turns)], part)


def _percentile(latencies: list[float], part: float) -> float:
    return sorted(latencies)[int(len(latencies) * part)]


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process in seconds, with a resolution of 10 ms. Works on Linux."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _app(framework: str, variant: str, origin: str, variables: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    command = [sys.executable, "-m", "benchmarks.app_child", framework, variant]
    child_environment = {**variables, "MIXPANEL_TOKEN": "benchmark", "MIXPANEL_API_HOST": origin}
    # Log lines of the app about an outage are irrelevant here.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            # Without a working Mixpanel, SIGTERM would try to deliver until the shutdown timeout.
            process.send_signal(signal.SIGTERM if variant in {"plain", "tracked"} else signal.SIGKILL)


@contextmanager
def _refusing_origin() -> Iterator[str]:
    """Yield an origin that refuses connections."""
    with socket.socket() as reserved:
        # Binding without listening reserves the port and refuses connections.
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


@contextmanager
def _silent_origin() -> Iterator[str]:
    """Yield an origin that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _events(origin: str) -> int:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{origin}/take") as reply:
        return int(json.load(reply)["distinct"])


async def measure(framework: str, options: argparse.Namespace) -> tuple[dict[str, Variant], int]:
    """Measure all variants of one framework; also return the number of events delivered by the variant `tracked`."""
    variables = environment()
    with ExitStack() as stack:
        origin = stack.enter_context(sink(variables))
        origins = {"plain": origin, "tracked": origin, "refused": stack.enter_context(_refusing_origin())}
        origins["silent"] = stack.enter_context(_silent_origin())
        with ExitStack() as apps:
            found = {
                name: Variant(*apps.enter_context(_app(framework, name, origins[name], variables)), PATHS[framework])
                for name in VARIANTS
            }
            for one in found.values():
                await one.until_up()
                one.begin_cpu()
            for turn in range(options.turns):
                if turn % 20 == 0:
                    print(f"{TITLES[framework]}: turn {turn} of {options.turns}", file=sys.stderr, flush=True)
                for one in random.sample(list(found.values()), len(found)):
                    await one.turn(REQUESTS, options.connections)
            for one in found.values():
                one.end_cpu()
        return found, await asyncio.to_thread(_events, origin)


def main() -> int:
    """Measure and print. Return 0 if every event arrived, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.apps", description="Measure the latency that tracking adds to a request."
    )
    parser.add_argument(
        "--turns", type=int, default=40, help=f"turns of {REQUESTS} requests for each variant (default: 40)"
    )
    parser.add_argument("--connections", type=int, default=1, help="concurrent connections, 1 to 200 (default: 1)")
    parser.add_argument(
        "--framework", choices=TITLES, action="append", help="measure only this framework; may be repeated"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for results.json; created if missing")
    options = parser.parse_args()

    print(*machine(), f"{options.turns} turns of {REQUESTS} requests, {options.connections} connections", sep="\n")
    complete = True
    rows: list[Row] = []
    for framework in options.framework or TITLES:
        found, events = asyncio.run(measure(framework, options))
        sent = found["tracked"].answers
        complete &= events == sent
        print(f"\n{TITLES[framework]:36}{'median':>10}{'p99':>10}{'p99 of all':>13}{'CPU':>10}   allowed p99")
        allowed = found["plain"].percentile(0.99) * (1 + SHARE) + SECONDS
        for name, words in VARIANTS.items():
            one = found[name]
            middle, high, high_of_all = one.percentile(0.5), one.percentile(0.99), one.percentile_of_all(0.99)
            verdict = "" if name == "plain" else f"  {allowed * 1e3:7.3f} ms  {'within' if high <= allowed else 'OVER'}"
            measured = f"{middle * 1e3:7.3f} ms{high * 1e3:7.3f} ms{high_of_all * 1e3:10.3f} ms{one.cpu * 1e6:7.0f} us"
            print(f"{words:36}{measured}{verdict}")
            figures = {"median_ms": middle * 1e3, "p99_ms": high * 1e3, "cpu_us": one.cpu * 1e6}
            title = TITLES[framework].partition(" ")[0]
            rows.append(Row(section="apps", name=f"{title}, {words}", measured=measured, figures=figures))
        added = found["tracked"].cpu - found["plain"].cpu
        slower = found["tracked"].percentile(0.99) - found["plain"].percentile(0.99)
        met = "met" if added <= CPU_SECONDS else "NOT MET"
        wanted = f"wanted <= {CPU_SECONDS * 1e6:.0f} us: {met}"
        share = f"{added / found['plain'].cpu:.0%} of the app's own"
        print(f"tracking adds {added * 1e6:.0f} us of CPU time to a request ({share}), {wanted}")
        print(f"and {slower * 1e6:+.0f} us to the p99")
        print(f"{events:,} of {sent:,} events delivered")
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        content = results(rows, options.turns * REQUESTS, 1)
        (options.output / "results.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
