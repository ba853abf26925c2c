"""Programs and servers in child processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

HERE: Final = Path(__file__).parent
EXAMPLES: Final = HERE.parents[1] / "examples"
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:([1-9]\d*)")
_TIMEOUT: Final = 20.0


class HostProcess:
    """A running process with its output in files, so that it never blocks on a full pipe.

    Args:
        arguments: arguments of the interpreter.
        environment: variables in addition to those of this process.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in `close`
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=self._output,
            stderr=self._errors,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )
        self.url = ""

    @property
    def stdout(self) -> str:
        return _text_of(self._output.fileno())

    @property
    def stderr(self) -> str:
        return _text_of(self._errors.fileno())

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait for the first match in the output and return it."""
        deadline = time.monotonic() + _TIMEOUT
        while True:
            has_ended = self.process.poll() is not None
            found = pattern.search(self.stdout + self.stderr)
            if found is not None:
                return found
            assert not has_ended, self.stdout + self.stderr
            assert time.monotonic() < deadline, self.stdout + self.stderr
            time.sleep(0.01)

    def listen(self) -> None:
        """Wait until the server listens."""
        self.url = self.wait_for(_ADDRESS)[0]

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_TIMEOUT, trust_env=False)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the process to exit and return its exit status."""
        self.process.send_signal(number)
        return self.process.wait(_TIMEOUT)

    def close(self) -> None:
        """Kill the process group, which includes workers of a server."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(_TIMEOUT)
        self._output.close()
        self._errors.close()


def _text_of(descriptor: int) -> str:
    # Without moving the position that the child process shares.
    return os.pread(descriptor, 1_000_000, 0).decode()


@contextmanager
def host_process(*arguments: str, **environment: str) -> Iterator[HostProcess]:
    """Run the interpreter with these arguments until the end of the block."""
    host = HostProcess([*arguments], environment)
    try:
        yield host
    finally:
        host.close()
