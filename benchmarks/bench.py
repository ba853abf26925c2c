"""Shared tools of the sections: sequential child processes and the server that receives their events."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sink import ask

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Bench:
    """One run of the benchmarks.

    Args:
        events: number of events in a burst; the other sections derive their sizes from it.
        rounds: number of runs of each subject in the burst.
        pythons: additional interpreters for the burst.
        origin: origin of the sink.
        environment: environment of the child processes.
    """

    events: int
    rounds: int
    pythons: tuple[str, ...]
    origin: str
    environment: dict[str, str]

    @property
    def few_rounds(self) -> range:
        """Rounds of the slower sections: at most three."""
        return range(min(self.rounds, 3))

    def child(self, section: str, python: str = sys.executable, **arguments: Any) -> dict[str, Any]:
        """Run `measure` of a section in a child process and return its figures."""
        command = [python, "-m", "benchmarks.child", section, json.dumps(arguments)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True)
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures

    def take(self) -> dict[str, int]:
        """Return the counts of the sink since the last call."""
        return ask(self.origin, "/take")

    @contextmanager
    def delay(self, milliseconds: int) -> Iterator[None]:
        """Delay each response of the sink by this time inside the block."""
        ask(self.origin, f"/delay?{milliseconds}")
        try:
            yield
        finally:
            ask(self.origin, "/delay?0")

    @contextmanager
    def process(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Run a server module in a child process inside the block."""
        with _server(self.environment, *arguments) as process:
            yield process


def environment() -> dict[str, str]:
    """Return the environment of this process without proxies."""
    variables = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), variables.get("PYTHONPATH"))))
    return variables


@contextmanager
def open_bench(events: int, rounds: int, pythons: tuple[str, ...]) -> Iterator[Bench]:
    """Start the sink and yield a bench that uses it."""
    variables = environment()
    with sink(variables) as origin:
        yield Bench(events, rounds, pythons, origin, variables)


@contextmanager
def sink(variables: dict[str, str]) -> Iterator[str]:
    """Start the sink and yield its origin."""
    with _server(variables, "benchmarks.sink") as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"


@contextmanager
def _server(variables: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, text=True) as process:
        assert process.stdin is not None
        try:
            yield process
        finally:
            process.stdin.close()
