"""Test of `examples/outbox`: its files, and the commands of its compose file as processes without containers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import yaml
from redis_server import free_port, require_binary

from mixpanel_async.integrations import otel

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDER: Final = ROOT / "examples/outbox"
DOCKERFILE: Final = (ROOT / "examples/docker/Dockerfile").read_text(encoding="utf-8")
RUN: Final = [sys.executable, "-c", "from mixpanel_async.cli import main; main()"]
# Names in Prometheus of the metrics of workers.
METRICS: Final = {
    name.replace(".", "_") + ("_total" if kind == "counter" else "")
    for name, kind in re.findall(
        r"^\| `(mixpanel\.(?:worker|queue)\.[a-z_.]+)` \| (\w+)", otel.__doc__ or "", re.MULTILINE
    )
}


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


COMPOSE: Final = load("compose.yaml")


def test_compose_file_names_existing_stages_services_and_volumes() -> None:
    stages = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE))
    for service in COMPOSE["services"].values():
        if "build" in service:
            assert (FOLDER / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()
            assert service["build"]["target"] in stages
        for volume in service.get("volumes", ()):
            assert volume.split(":")[0] in COMPOSE["volumes"]
        assert service["restart"] == "unless-stopped"
    assert COMPOSE["services"]["worker"]["deploy"]["replicas"] == 2
    # A producer has no way to Mixpanel.
    assert "MIXPANEL_API_HOST" not in COMPOSE["services"]["app"]["environment"]


def test_deployment_and_scaler_name_the_same_workers() -> None:
    deployment, scaler = load("kubernetes.yaml"), load("keda.yaml")
    name = deployment["metadata"]["name"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == name
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == COMPOSE["services"]["worker"]["command"]
    (trigger,) = scaler["spec"]["triggers"]
    assert trigger["type"] == "redis-streams"
    assert trigger["metadata"]["stream"] == "{mixpanel}:events"
    # The others would make it count what is under way.
    assert not {"consumerGroup", "pendingEntriesCount", "lagCount"} & set(trigger["metadata"])
    assert scaler["spec"]["minReplicaCount"] == deployment["spec"]["replicas"] == 2


def test_prometheus_scrapes_the_workers_and_alerts_on_their_metrics() -> None:
    config = load("prometheus.yml")
    (job,) = config["scrape_configs"]
    (names,) = job["dns_sd_configs"]
    assert set(names["names"]) <= set(COMPOSE["services"])
    assert str(names["port"]) in COMPOSE["services"]["worker"]["command"]
    (rules,) = config["rule_files"]
    guide = (ROOT / "docs/guides/observability.md").read_text("utf-8")
    for rule in load(rules)["groups"][0]["rules"]:
        assert f"\n| `{rule['alert']}` |" in guide
        used = set(re.findall(r"\bmixpanel_[a-z_]+", rule["expr"]))
        assert used
        assert used <= METRICS


class Part:
    """Service of the compose file, as a process that can be killed and started again.

    Args:
        command: its command.
        environment: its variables.
        url: address that answers once it is ready; None for a part without one.
        folder: directory of its log.
        name: name of its log.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], folder: Path, name: str, url: str | None = None
    ) -> None:
        self._command = command
        self._environment = {**os.environ, **environment}
        self._log = folder / f"{name}.log"
        self._url = url
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT / "examples", env=self._environment, stdout=log, stderr=log
            )
        if self._url is not None:
            wait_until(lambda: is_served(str(self._url)))

    def kill(self, number: int = signal.SIGKILL) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(timeout=30)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def is_served(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, trust_env=False).status_code == 200
    return False


def wait_until(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


class Example:
    """All services of the compose file on this machine.

    Args:
        folder: directory for their data and logs.
    """

    def __init__(self, folder: Path) -> None:
        self._ports = {name: str(free_port()) for name in ("redis", "emulator", "app")}
        self.emulator_url = f"http://127.0.0.1:{self._ports['emulator']}"
        self.app_url = f"http://127.0.0.1:{self._ports['app']}"
        (folder / "redis").mkdir()
        places = {"8080": self._ports["emulator"], "/data/project": str(folder / "project"), "9464": "0"}
        services = COMPOSE["services"]
        worker = [places.get(word, word) for word in services["worker"]["command"]]
        app = json.loads(re.findall(r"^CMD (\[\"uvicorn.*)$", DOCKERFILE, re.MULTILINE)[0])
        self.parts = {
            "redis": Part(
                [
                    require_binary(),
                    *services["redis"]["command"][1:],
                    *("--port", self._ports["redis"], "--bind", "127.0.0.1", "--dir", str(folder / "redis")),
                ],
                {},
                folder,
                "redis",
            ),
            "emulator": Part(
                [*RUN, *(places.get(word, word) for word in services["emulator"]["command"])],
                {},
                folder,
                "emulator",
                f"{self.emulator_url}/_emulator/stats",
            ),
            "app": Part(
                [sys.executable, "-m", *(word.replace("8000", self._ports["app"]) for word in app)],
                self._environment("app"),
                folder,
                "app",
                f"{self.app_url}/docs",
            ),
            **{
                name: Part([*RUN, *worker, "--name", name], self._environment("worker"), folder, name)
                for name in ("worker-1", "worker-2")
            },
        }

    def _environment(self, service: str) -> dict[str, str]:
        given: dict[str, str] = COMPOSE["services"][service]["environment"]
        for name, port in (("redis:6379", self._ports["redis"]), ("emulator:8080", self._ports["emulator"])):
            given = {variable: value.replace(name, f"127.0.0.1:{port}") for variable, value in given.items()}
        return given

    @contextmanager
    def running(self) -> Iterator[None]:
        try:
            for part in self.parts.values():
                part.start()
            yield
        finally:
            for part in self.parts.values():
                part.stop()

    def sign_up(self, name: str) -> None:
        """Let a visitor of the app sign up."""
        answer = httpx.post(f"{self.app_url}/signup", json={"email": f"{name}@example.com"}, trust_env=False)
        assert answer.status_code == 201

    def signed_up(self) -> set[str]:
        """Return the names of those whose event and profile have arrived."""
        events = httpx.get(f"{self.emulator_url}/_emulator/events", trust_env=False).json()
        return {one["properties"]["$user_id"] for one in events if one["event"] == "Signed up"}

    def status(self) -> dict[str, Any]:
        command = [*RUN, "queue", "status", "--json"]
        environment = {**os.environ, **self._environment("worker")}
        found: dict[str, Any] = json.loads(subprocess.check_output(command, env=environment))
        return found

    def has_handed_over(self, records: int) -> bool:
        return bool(self.status()["counters"]["in"] >= records)


@pytest.mark.long
@pytest.mark.timeout(280)
def test_each_part_is_killed_once_and_nothing_is_lost(tmp_path: Path) -> None:
    example = Example(tmp_path)
    people = []

    def sign_up(name: str) -> None:
        example.sign_up(name)
        people.append(f"{name}@example.com")

    with example.running():
        sign_up("first")
        wait_until(lambda: example.signed_up() == set(people))
        for name in ("redis", "emulator", "worker-1", "app"):
            before = example.status()["counters"]["in"]
            sign_up(f"before-{name}")
            if name == "app":
                # It loses only what it has not handed over.
                wait_until(lambda: example.has_handed_over(before + 2))  # noqa: B023
            example.parts[name].kill()
            if name != "app":
                sign_up(f"without-{name}")
            example.parts[name].start()
            sign_up(f"after-{name}")
        wait_until(lambda: example.signed_up() == set(people), seconds=120)
        wait_until(lambda: example.status()["records"] == 0)
        counters = example.status()["counters"]
        assert counters["in"] == counters["out"]
        assert [example.parts[name].kill(signal.SIGTERM) for name in ("worker-1", "worker-2")] == [0, 0]
    assert len(people) == 12
