"""What every section measures with: child processes one after the other, and the server that they send to."""

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
        events: in a burst; the other sections take their size from it.
        rounds: how often each subject of the burst is measured.
        pythons: further interpreters for the burst.
        origin: of the sink.
        environment: of the child processes.
    """

    events: int
    rounds: int
    pythons: tuple[str, ...]
    origin: str
    environment: dict[str, str]

    @property
    def few(self) -> range:
        """The rounds of the other sections."""
        return range(min(self.rounds, 3))

    def child(self, section: str, python: str = sys.executable, **arguments: Any) -> dict[str, Any]:
        """What `measure` of a section gives in a process of its own."""
        command = [python, "-m", "benchmarks.child", section, json.dumps(arguments)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True, check=True)
        figures: dict[str, Any] = json.loads(done.stdout)
        return figures

    def take(self) -> dict[str, int]:
        """What the sink was sent since it was asked last."""
        return ask(self.origin, "/take")

    @contextmanager
    def delay(self, milliseconds: int) -> Iterator[None]:
        """Let the sink take so long for each answer."""
        ask(self.origin, f"/delay?{milliseconds}")
        try:
            yield
        finally:
            ask(self.origin, "/delay?0")

    @contextmanager
    def process(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """A server in a process of its own, until the end of the block."""
        with _server(self.environment, *arguments) as process:
            yield process


def environment() -> dict[str, str]:
    """This process's environment without proxies, which would come between the subjects and the server."""
    variables = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), variables.get("PYTHONPATH"))))
    return variables


@contextmanager
def opened(events: int, rounds: int, pythons: tuple[str, ...]) -> Iterator[Bench]:
    """A bench with its sink running."""
    variables = environment()
    with sink(variables) as origin:
        yield Bench(events, rounds, pythons, origin, variables)


@contextmanager
def sink(variables: dict[str, str]) -> Iterator[str]:
    """The origin of the server that all subjects talk to."""
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
