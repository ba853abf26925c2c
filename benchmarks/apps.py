"""What tracking adds to the latency of a web request: `python -m benchmarks.apps`.

The example apps run under uvicorn and aiohttp's own server, each in a process of its own: without Mixpanel, with it,
with one that refuses connections, and with one that takes them and never answers. They take turns of 200 requests each,
in an order drawn anew for every turn, so that what the machine does meanwhile counts for all alike. The first requests
of a turn do not count: the processor's caches are full of another app then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Final

from .bench import environment, sink
from .report import machine

VARIANTS: Final = {
    "plain": "without tracking",
    "tracked": "with tracking",
    "refused": "Mixpanel refuses connections",
    "silent": "Mixpanel never answers",
}
TITLES: Final = {"fastapi": "FastAPI example, uvicorn", "aiohttp": "aiohttp example"}
# What tracking may add to the 99th percentile: this part of it, and these seconds.
SHARE: Final = 0.05
SECONDS: Final = 0.0002
# In one turn of each connection: those that count, and those before.
REQUESTS: Final = 200
WARM_UP: Final = 20

_VISITOR: Final = "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11"
_REQUEST: Final = (
    b"GET / HTTP/1.1\r\nHost: shop.example\r\nCookie: mp_visitor=%b\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36\r\n"
    b"Referer: https://shop.example/pricing\r\n\r\n"
) % _VISITOR.encode()


class Variant:
    """An app under test, and what its answers took so far, in seconds.

    Args:
        port: where it listens.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.latencies: list[float] = []
        self.answers = 0

    async def until_up(self) -> None:
        """Ask until there is an answer, and forget what it took."""
        for _ in range(400):
            with contextlib.suppress(OSError):
                await self._ask(0)
                return
            await asyncio.sleep(0.05)
        raise RuntimeError("an app did not start")

    async def turn(self, requests: int, connections: int) -> None:
        """Some browsers that each ask again as soon as they have their answer."""
        await asyncio.gather(*(self._ask(max(1, requests // connections)) for _ in range(connections)))

    async def _ask(self, requests: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        clock = time.perf_counter
        for number in range(WARM_UP + requests):
            began = clock()
            writer.write(_REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            self.answers += 1
            if number >= WARM_UP:
                self.latencies.append(clock() - began)
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"the app answered {head[:40]!r}")
        writer.close()
        await writer.wait_closed()

    def percentile(self, part: float) -> float:
        return sorted(self.latencies)[int(len(self.latencies) * part)]


@contextmanager
def _app(framework: str, variant: str, origin: str, variables: Mapping[str, str]) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.app_child", framework, variant]
    told = {**variables, "MIXPANEL_TOKEN": "benchmark", "MIXPANEL_API_HOST": origin}
    # What the app says of an outage is not what is measured here.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=told, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            # Those without Mixpanel would try to deliver until their time is up.
            process.send_signal(signal.SIGTERM if variant in {"plain", "tracked"} else signal.SIGKILL)


@contextmanager
def _nobody() -> Iterator[str]:
    """An address at which connections are refused."""
    with socket.socket() as held:
        # Bound, so that nobody else gets it, and not listening.
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def _mute() -> Iterator[str]:
    """An address at which connections are taken, and nothing is answered."""
    with socket.create_server(("127.0.0.1", 0), backlog=1_000) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def _events(origin: str) -> int:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{origin}/take") as reply:
        return int(json.load(reply)["distinct"])


async def measure(framework: str, options: argparse.Namespace) -> tuple[dict[str, Variant], int]:
    """All variants of one framework, and how many events arrived from the one with a Mixpanel that works."""
    variables = environment()
    with ExitStack() as stack:
        origin = stack.enter_context(sink(variables))
        origins = {"plain": origin, "tracked": origin, "refused": stack.enter_context(_nobody())}
        origins["silent"] = stack.enter_context(_mute())
        with ExitStack() as apps:
            found = {
                name: Variant(apps.enter_context(_app(framework, name, origins[name], variables))) for name in VARIANTS
            }
            for one in found.values():
                await one.until_up()
            for turn in range(options.turns):
                if turn % 50 == 0:
                    print(f"{TITLES[framework]}: turn {turn} of {options.turns}", file=sys.stderr, flush=True)
                for one in random.sample(list(found.values()), len(found)):
                    await one.turn(REQUESTS, options.connections)
        return found, await asyncio.to_thread(_events, origin)


def main() -> int:
    """Measure, print, and say by the exit status whether every event arrived."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.apps", description="What tracking adds to a request.")
    parser.add_argument("--turns", type=int, default=100, help=f"of {REQUESTS} requests, each variant (default: 100)")
    parser.add_argument("--connections", type=int, default=1, help="at once, 1 to 200 (default: 1)")
    parser.add_argument("--framework", choices=TITLES, action="append", help="one of them only")
    options = parser.parse_args()

    print(*machine(), f"{options.turns} turns of {REQUESTS} requests, {options.connections} at once", sep="\n")
    complete = True
    for framework in options.framework or TITLES:
        found, events = asyncio.run(measure(framework, options))
        sent = found["tracked"].answers
        complete &= events == sent
        print(f"\n{TITLES[framework]:32}{'median':>10}{'p99':>10}{'allowed':>10}")
        allowed = found["plain"].percentile(0.99) * (1 + SHARE) + SECONDS
        for name, words in VARIANTS.items():
            middle, high = found[name].percentile(0.5), found[name].percentile(0.99)
            verdict = "" if name == "plain" else f"{allowed * 1e3:7.3f} ms  {'within' if high <= allowed else 'OVER'}"
            print(f"{words:32}{middle * 1e3:7.3f} ms{high * 1e3:7.3f} ms{verdict}")
        print(f"{events:,} of {sent:,} events delivered")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
