"""Run apps in child processes under uvicorn, hypercorn, gunicorn and aiohttp."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx
from forked_python import ForkedPython, popen

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples"
_ADDRESS: Final = re.compile(r"http://127\.0\.0\.1:([1-9]\d*)")
_TIMEOUT: Final = 20.0
_MODULES: Final = (
    "aiohttp.web",
    "django.core.handlers.asgi",
    "fastapi",
    "gunicorn.app.wsgiapp",
    "hypercorn.asyncio.run",
    "hypercorn.run",
    "mixpanel_async.integrations.aiohttp",
    "mixpanel_async.integrations.fastapi",
    "uvicorn.main",
    "uvicorn_worker",
)

HERE: Final = Path(__file__).resolve().parent
UVICORN: Final = ("uvicorn", "--app-dir", str(EXAMPLES), "--host", "127.0.0.1", "--port", "0")
GUNICORN: Final = ("gunicorn", "--chdir", str(EXAMPLES), "--bind", "127.0.0.1:0", "--no-control-socket")
HYPERCORN: Final = ("hypercorn", "--bind", "127.0.0.1:0")
WITHOUT_LIFESPAN: Final = ("--lifespan", "off")
# Test id of a server -> arguments after `python -m`, or the path of a script.
SERVERS: Final[dict[str, Sequence[str]]] = {
    "uvicorn": (*UVICORN, "fastapi_app:app"),
    "frontend": (*UVICORN, "frontend_app:app"),
    "sign-in": (*UVICORN, "--app-dir", str(Path(__file__).parent), "sign_in_app:app"),
    "gunicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "fastapi_app:app"),
    "gunicorn-asgi": (*GUNICORN, "-k", "asgi", "fastapi_app:app"),
    "aiohttp": (str(EXAMPLES / "aiohttp_app.py"), "--port"),
    "asgi-uvicorn": (*UVICORN, "asgi_app:app"),
    "asgi-hypercorn": (*HYPERCORN, "asgi_app:app"),
    "plain-uvicorn": (*UVICORN, "served_apps:plain"),
    "plain-uvicorn-off": (*UVICORN, *WITHOUT_LIFESPAN, "served_apps:plain"),
    "plain-hypercorn": (*HYPERCORN, "served_apps:plain"),
    "plain-hypercorn-trio": (*HYPERCORN, "-k", "trio", "served_apps:plain"),
    "plain-gunicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "served_apps:plain"),
    "quart-hypercorn": (*HYPERCORN, "served_apps:quart_app"),
    "quart-uvicorn": (*UVICORN, "served_apps:quart_app"),
    "django-uvicorn": (*UVICORN, "django_app:asgi"),
    "django-uvicorn-off": (*UVICORN, *WITHOUT_LIFESPAN, "django_app:asgi"),
    "django-unwrapped": (*UVICORN, "unwrapped_django:app"),
    "django-unwrapped-hypercorn": (*HYPERCORN, "unwrapped_django:app"),
    "django-unwrapped-gunicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "unwrapped_django:app"),
    "django-hypercorn": (*HYPERCORN, "django_app:asgi"),
    "django-gunicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", "django_app:asgi"),
    "django-sync": (*GUNICORN, "django_app:wsgi"),
    "django-gthread": (*GUNICORN, "--threads", "4", "--workers", "2", "django_app:wsgi"),
    "django-preload": (*GUNICORN, "--preload", "--workers", "2", "django_app:wsgi"),
}


class App:
    """A running app process.

    Args:
        process: the process. A thread reads its output continuously, so that it never blocks on a full pipe.
    """

    def __init__(self, process: ForkedPython | subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: list[str] = []
        self._output_changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.url = ""

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._output_changed:
                self._lines.append(line)
                self._output_changed.notify_all()
        with self._output_changed:
            self._lines.append("")
            self._output_changed.notify_all()

    @property
    def output(self) -> str:
        with self._output_changed:
            return "".join(self._lines)

    def wait_for(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """Wait for the first match in the output and return it."""
        found: re.Match[str] | None = None

        def is_found_or_ended() -> bool:
            nonlocal found
            found = pattern.search("".join(self._lines))
            return found is not None or "" in self._lines

        with self._output_changed:
            self._output_changed.wait_for(is_found_or_ended, _TIMEOUT)
        assert found is not None, self.output
        return found

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=_TIMEOUT, trust_env=False)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the process to exit and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(_TIMEOUT)
        self._reader.join(_TIMEOUT)
        return status

    def kill(self) -> None:
        if self.process.poll() is None:
            # Kill the process group, which includes the workers.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(_TIMEOUT)
        self._reader.join(_TIMEOUT)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def started(server: str, api_host: str, **environment: str) -> Iterator[App]:
    """Start an example app under a server and wait until it listens."""
    arguments = list(SERVERS[server])
    if server == "aiohttp":
        # The app prints the requested port, so port 0 would not reveal the real one.
        arguments.append(str(free_port()))
    else:
        arguments.insert(0, "-m")
    command = [sys.executable, "-X", "dev", *arguments]
    variables = {
        **os.environ,
        "MIXPANEL_TOKEN": "example-token",
        "MIXPANEL_API_HOST": api_host,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join((str(EXAMPLES), str(HERE))),
        **environment,
    }
    process = popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=variables,
        start_new_session=True,
        modules=_MODULES,
    )
    app = App(process)
    try:
        app.url = app.wait_for(_ADDRESS)[0]
        yield app
    finally:
        app.kill()
        assert process.stdout is not None
        process.stdout.close()
