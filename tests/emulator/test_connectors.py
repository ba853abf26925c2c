"""Two connectors from PyPI, unmodified, against `mixpanel-async emulator --tls`.

Both have fixed hosts. An HTTPS proxy connects every host to the emulator, which has `--allow-host` for their names. The
connectors trust the emulator's authority: tap-mixpanel through REQUESTS_CA_BUNDLE, and Airbyte, which ignores that
variable, through the bundle of certifi in its own environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

# airbyte-source-mixpanel supports Python 3.10 and 3.11.
PYTHON: Final = "3.11"
HOSTS: Final = ("mixpanel.com", "data.mixpanel.com")
COMMAND: Final = "import sys; from mixpanel_async.cli import main; sys.exit(main())"
SECRET: Final = "s3cret"

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("connectors"), pytest.mark.timeout(900)]


class ConnectAll(socketserver.BaseRequestHandler):
    """Answer CONNECT for any host with a tunnel to the emulator."""

    def handle(self) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            chunk = self.request.recv(1)
            if not chunk:
                return
            head += chunk
        assert isinstance(self.server, Proxy)
        with socket.create_connection(("127.0.0.1", self.server.emulator_port)) as emulator:
            self.request.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=copy_all, args=(emulator, self.request), daemon=True)
            back.start()
            copy_all(self.request, emulator)
            back.join()


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    emulator_port = 0


def copy_all(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Site:
    """Running emulator, and the environment in which a connector reaches it as mixpanel.com."""

    url: str
    ca_file: Path
    environment: dict[str, str]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Provide an emulator with three days of events and three profiles."""
    folder = tmp_path_factory.mktemp("emulator")
    command = [sys.executable, "-c", COMMAND, "emulator", "--port", "0", "--quiet", "--tls", "--tls-dir", str(folder)]
    command += ["--secret", SECRET, "--service-account", f"robot:{SECRET}:42"]
    command += [word for host in HOSTS for word in ("--allow-host", host)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process,
        Proxy(("127.0.0.1", 0), ConnectAll) as proxy,
    ):
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        proxy.emulator_port = int(url.rpartition(":")[2])
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        fill(url)
        ca_file = folder / "ca.pem"
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(folder),
            "HTTPS_PROXY": f"http://127.0.0.1:{proxy.server_address[1]}",
            "REQUESTS_CA_BUNDLE": str(ca_file),
        }
        yield Site(url, ca_file, environment)
        proxy.shutdown()
        process.send_signal(signal.SIGTERM)


def day(ago: int) -> str:
    return (datetime.now(timezone.utc) - timedelta(days=ago)).strftime("%Y-%m-%dT00:00:00Z")


def fill(url: str) -> None:
    now = int(time.time())
    events = [
        {
            "event": "Viewed",
            "properties": {
                "time": now - (n % 3 + 1) * 86_400,
                "distinct_id": f"u{n % 3}",
                "$insert_id": f"i{n}",
                "n": n,
            },
        }
        for n in range(600)
    ]
    people = [{"$token": "t", "$distinct_id": f"u{n}", "$set": {"$email": f"u{n}@example.com"}} for n in range(3)]
    assert httpx.post(f"{url}/import?strict=1", json=events, auth=(SECRET, "")).status_code == 200
    assert httpx.post(f"{url}/engage", json=people).text == "1"


def python() -> str:
    """Return an interpreter that the connectors support."""
    if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):
        return sys.executable
    found = shutil.which(f"python{PYTHON}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [found] if found else sorted(map(str, pyenv.glob(f"versions/{PYTHON}.*/bin/python")))
    if not candidates:
        pytest.fail(f"this test needs Python {PYTHON} as python{PYTHON} in PATH or in pyenv")
    return candidates[-1]


def install(folder: Path, requirement: str) -> Path:
    """Return the `bin` directory of a new environment with a package from PyPI."""
    subprocess.run([python(), "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
    result = subprocess.run(pip, capture_output=True, text=True)
    assert result.returncode == 0, f"cannot install {requirement}: {result.stderr[-2000:]}"
    return folder / "bin"


def run(command: list[str | Path], site: Site) -> list[dict[str, Any]]:
    """Run a connector, and return the JSON objects on its standard output."""
    result = subprocess.run(command, env=site.environment, capture_output=True, text=True, timeout=800)
    assert result.returncode == 0, result.stderr[-3000:] + result.stdout[-3000:]
    if result.stdout.startswith("{\n"):
        return [json.loads(result.stdout)]
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def unsupported(site: Site) -> list[str]:
    return [entry["path"] for entry in httpx.get(f"{site.url}/_emulator/unsupported").json()]


def test_tap_mixpanel_discovers_and_syncs(site: Site, tmp_path: Path) -> None:
    tap = install(tmp_path / "venv", "tap-mixpanel~=1.8.0") / "tap-mixpanel"
    config = {
        "project_timezone": "UTC",
        "api_secret": SECRET,
        "attribution_window": "5",
        "start_date": day(5),
        "user_agent": "test",
        "select_properties_by_default": "true",
    }
    command: list[str | Path] = [tap, "--config", write(tmp_path / "config.json", config)]
    (catalog,) = run([*command, "--discover"], site)
    streams = {stream["tap_stream_id"]: stream for stream in catalog["streams"]}
    assert "n" in streams["export"]["schema"]["properties"]
    assert "mp_reserved_email" in streams["engage"]["schema"]["properties"]
    for name in ("export", "engage", "cohorts", "cohort_members"):
        for entry in streams[name]["metadata"]:
            entry["metadata"]["selected"] = True
    messages = run([*command, "--catalog", write(tmp_path / "catalog.json", catalog)], site)
    records = [message for message in messages if message["type"] == "RECORD"]
    assert sorted(int(one["record"]["n"]) for one in records if one["stream"] == "export") == list(range(600))
    emails = [one["record"]["mp_reserved_email"] for one in records if one["stream"] == "engage"]
    assert sorted(emails) == [f"u{n}@example.com" for n in range(3)]
    assert unsupported(site) == []


def test_airbyte_source_checks_and_reads(site: Site, tmp_path: Path) -> None:
    commands = install(tmp_path / "venv", "airbyte-source-mixpanel==4.0.2")
    where = [str(commands / "python"), "-c", "import certifi; print(certifi.where())"]
    bundle = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
    bundle.write_text(f"{bundle.read_text()}\n{site.ca_file.read_text()}")
    config = {
        "credentials": {
            "option_title": "Service Account",
            "username": "robot",
            "secret": SECRET,
            "project_id": 42,
        },
        "start_date": day(10),
        "end_date": day(0),
        "region": "US",
        "project_timezone": "UTC",
        "attribution_window": 0,
    }

    def call(action: str, *arguments: str | Path) -> list[dict[str, Any]]:
        source = commands / "source-mixpanel"
        return run([source, action, "--config", write(tmp_path / "config.json", config), *arguments], site)

    (status,) = [one["connectionStatus"] for one in call("check") if one["type"] == "CONNECTION_STATUS"]
    assert status["status"] == "SUCCEEDED"
    (catalog,) = [one["catalog"] for one in call("discover") if one["type"] == "CATALOG"]
    # The connector sends one request a minute.
    streams = [
        {"stream": stream, "sync_mode": "full_refresh", "destination_sync_mode": "append"}
        for stream in catalog["streams"]
        if stream["name"] in {"export", "engage"}
    ]
    messages = call("read", "--catalog", write(tmp_path / "catalog.json", {"streams": streams}))
    records = [message["record"] for message in messages if message["type"] == "RECORD"]
    assert sorted(int(one["data"]["n"]) for one in records if one["stream"] == "export") == list(range(600))
    emails = [one["data"]["email"] for one in records if one["stream"] == "engage"]
    assert sorted(emails) == [f"u{n}@example.com" for n in range(3)]
    assert unsupported(site) == []


def test_missing_interpreter_fails_clearly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    with pytest.raises(pytest.fail.Exception, match=re.escape(f"needs Python {PYTHON}")):
        python()
