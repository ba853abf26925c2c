"""Processes that start in milliseconds: forks of a process that has imported the package."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_PROGRAM: Final = Path(__file__).with_name("fork_server_program.py")
# What a client imports at the first call, too.
_USUAL: Final = (
    "mixpanel_async",
    "mixpanel_async._delivery.spool_bridge",
    "mixpanel_async._http.certificates",
    "mixpanel_async._http.network",
    "mixpanel_async._spool.spool",
    "mixpanel_async._spool.writer",
    "anyio._backends._asyncio",
    "httpcore",
)


class ForkedProcess:
    """Process of a fork server, with the methods of `subprocess.Popen` that tests need.

    Args:
        server: server that forked it.
        pid: id of the process.
        stdout: standard output of the process.
        stderr: standard error of the process.
    """

    def __init__(self, server: ForkServer, pid: int, stdout: int, stderr: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = os.fdopen(stdout, encoding="utf-8")
        self.stderr = os.fdopen(stderr, encoding="utf-8")
        self._server = server

    def poll(self) -> int | None:
        """Return the exit status, or `None` while the process runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"wait": self.pid, "block": False})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Return the exit status. Kill the process and fail after this number of seconds."""
        if self.returncode is None:
            self._server.send({"wait": self.pid, "block": True})
            is_late = not self._server.has_answer(timeout)
            if is_late:
                os.kill(self.pid, signal.SIGKILL)
            self.returncode = self._server.receive()
            if is_late:
                raise TimeoutError(f"the process has not ended after {timeout} s: {self.stderr.read()}")
        assert self.returncode is not None
        return self.returncode

    def kill(self) -> None:
        """Kill the process, wait for its end, and close its streams."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10.0)
        self.stdout.close()
        self.stderr.close()


class ForkServer:
    """Starts programs as forks of one process.

    Args:
        server: socket to the process.
    """

    def __init__(self, server: socket.socket) -> None:
        self._socket = server
        self._answers = server.makefile("r", encoding="utf-8")

    def start(self, program: Path | str, *arguments: object) -> ForkedProcess:
        """Run a file, or code as `python -c` does, with these arguments."""
        code, file = (program, "-c") if isinstance(program, str) else (program.read_text("utf-8"), str(program))
        request = {"code": code, "file": file, "arguments": [str(one) for one in arguments]}
        stdin = os.open(os.devnull, os.O_RDONLY)
        (stdout, to_stdout), (stderr, to_stderr) = os.pipe(), os.pipe()
        self.send(request, stdin, to_stdout, to_stderr)
        for one in (stdin, to_stdout, to_stderr):
            os.close(one)
        return ForkedProcess(self, self.receive(), stdout, stderr)

    def run(self, program: Path | str, *arguments: object, timeout: float = 25.0) -> tuple[int, str, str]:
        """Run a program that writes little to its end. Return its status, standard output and standard error."""
        process = self.start(program, *arguments)
        try:
            return process.wait(timeout), process.stdout.read(), process.stderr.read()
        finally:
            process.kill()

    def close(self) -> None:
        """End the server."""
        self._answers.close()
        self._socket.close()

    def ask(self, request: Any) -> Any:
        """Send a request and return the answer."""
        self.send(request)
        return self.receive()

    def send(self, request: Any, *streams: int) -> None:
        """Send a request with file descriptors."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], streams)

    def has_answer(self, timeout: float) -> bool:
        """Return whether an answer arrives within this number of seconds."""
        return bool(select.select([self._socket], [], [], timeout)[0])

    def receive(self) -> Any:
        """Return the next answer."""
        return json.loads(self._answers.readline())


@contextmanager
def fork_server(*options: str, modules: tuple[str, ...] = ()) -> Iterator[ForkServer]:
    """Start a fork server.

    Args:
        options: options of Python, such as `-W error`.
        modules: modules to import, in addition to those that most programs use.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, *options, str(_PROGRAM), str(theirs.fileno()), *_USUAL, *modules]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    server = ForkServer(ours)
    try:
        yield server
    finally:
        server.close()
        process.wait(20.0)
