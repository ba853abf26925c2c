"""Test of `examples/docker`: the commands of its files, run without containers."""

from __future__ import annotations

import json
import os
import shlex
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml

# Each test starts several processes.
pytestmark = pytest.mark.timeout(120)

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "examples/docker"
COMPOSE: Final = ("compose.yaml", "compose.tls.yaml")
EMULATOR: Final = [sys.executable, "-c", "from mixpanel_async.cli import main; main()"]


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def services(*names: str) -> dict[str, Any]:
    """Return the services of Compose files, each of which replaces settings of the one before."""
    merged: dict[str, Any] = {}
    for name in names:
        for service, settings in load(name)["services"].items():
            before = merged.setdefault(service, {})
            environment = {**before.get("environment", {}), **settings.get("environment", {})}
            merged[service] = {**before, **settings, "environment": environment}
    return merged


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with continued lines joined."""
    lines = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    parts = [line.partition(" ") for line in lines if line and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in parts]


def healthcheck() -> list[str]:
    ((_, command),) = (one for one in instructions() if one[0] == "HEALTHCHECK")
    found: list[str] = json.loads(command[command.index("CMD") + 3 :])
    return found


@contextmanager
def running(command: list[str], folder: Path, environment: Mapping[str, str], ready: str) -> Iterator[str]:
    """Run a command. Yield the first line of its output that contains a text."""
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield next(line.strip() for line in process.stdout if ready in line)
        finally:
            process.terminate()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def test_every_copied_file_is_in_the_build_context() -> None:
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for name, rest in instructions():
        if name == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_compose_files_name_existing_stages_services_and_volumes() -> None:
    stages = {rest.split()[-1] for name, rest in instructions() if name == "FROM"}
    for name in COMPOSE:
        content = load(name)
        for service in content["services"].values():
            for volume in service.get("volumes", ()):
                assert volume.split(":")[0] in content["volumes"]
    for service in services(*COMPOSE).values():
        assert (FOLDER / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        assert service["build"]["target"] in stages
        assert set(service.get("depends_on", {})) <= set(services(*COMPOSE))


@pytest.mark.sample(every=2)
@pytest.mark.parametrize("files", [COMPOSE[:1], COMPOSE], ids=["http", "https"])
def test_app_and_emulator_of_compose_work_together(files: tuple[str, ...], tmp_path: Path) -> None:
    emulator, app = services(*files)["emulator"], services(*files)["app"]
    places = {"8080": "0", "/data/project": str(tmp_path / "project"), "/tls": str(tmp_path / "tls")}
    command = [places.get(word, word) for word in emulator["command"]]
    with running([*EMULATOR, *command], tmp_path, {}, "http://") as address:
        port = address.rpartition(":")[2]
        # The name of the service is that of this machine.
        check = [sys.executable if word == "python" else word.replace("8080", port) for word in healthcheck()]
        assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0

        environment = {name: value.replace("/tls/", f"{tmp_path}/tls/") for name, value in app["environment"].items()}
        host = environment["MIXPANEL_API_HOST"]
        verify = ssl.create_default_context(cafile=environment.get("SSL_CERT_FILE"))
        with httpx.Client(verify=verify, trust_env=False) as http:
            stats = host.replace("emulator:8080", f"127.0.0.1:{port}") + "/_emulator/stats"
            named = http.get(stats, headers={"host": "emulator:8080"}, extensions={"sni_hostname": "emulator"})
            assert named.status_code == 200

            environment["MIXPANEL_API_HOST"] = host.replace("emulator:8080", f"localhost:{port}")
            app_port = str(free_port())
            ((_, run),) = [one for one in instructions() if one[0] == "CMD" and "uvicorn" in one[1]]
            words = [word.replace("8000", app_port) for word in json.loads(run)]
            with running([sys.executable, "-m", *words], ROOT / "examples", environment, "Uvicorn running"):
                url = f"http://127.0.0.1:{app_port}/signup"
                assert httpx.post(url, json={"email": "maya@example.com"}, trust_env=False).status_code == 201
            # The app delivers before it ends.
            events = http.get(f"http://127.0.0.1:{port}/_emulator/events").json()
    assert "Signed up" in {event["event"] for event in events}
    assert subprocess.run(check, cwd=tmp_path, check=False, stderr=subprocess.DEVNULL).returncode == 1


@pytest.mark.long
def test_workflow_starts_the_emulator(tmp_path: Path) -> None:
    steps = {step.get("name"): step for step in load("github-actions.yaml")["jobs"]["tests"]["steps"]}
    port = str(free_port())
    script = steps["Start the emulator"]["run"].replace("8080", port)
    script = script.replace("mixpanel-async", shlex.join(EMULATOR), 1)
    environment = {name: value for name, value in steps["Test"]["env"].items() if name.startswith("MIXPANEL")}
    program = "import asyncio, mixpanel_async as m; mp = m.AsyncMixpanel.from_env(); asyncio.run(mp.alias('u', 'v'))"
    program = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}"
    result = subprocess.run(
        ["bash", "-ec", f"{script}\ntrap 'kill %1' EXIT\n{program}"],
        cwd=tmp_path,
        env={
            **os.environ,
            **{name: value.replace("8080", port) for name, value in environment.items()},
            "SSL_CERT_FILE": steps["Test"]["env"]["SSL_CERT_FILE"].replace("${{ github.workspace }}", str(tmp_path)),
        },
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert result.returncode == 0, result.stderr
    assert "/track" in (tmp_path / "emulator.log").read_text()
