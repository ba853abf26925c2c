"""Each example runs unchanged against the emulator; only environment variables point to it.

The web apps are run by tests/integrations/test_app_servers.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixpanel_async import IdMerge
from mixpanel_async.emulator import Emulator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ACCOUNT = "user-1"


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """Serve an emulator whose address is in the environment."""
    emulator = Emulator(id_merge=IdMerge.ORIGINAL)
    with emulator.serve() as server:
        monkeypatch.setenv("MIXPANEL_TOKEN", "example-token")
        monkeypatch.setenv("MIXPANEL_API_HOST", server.url)
        yield emulator


def run_example(name: str, *runner: str) -> str:
    command = [sys.executable, "-W", "error", *runner, str(EXAMPLES / name)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=25)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


@pytest.mark.parametrize("id_merge", [None, IdMerge.ORIGINAL, IdMerge.LEGACY])
def test_quick_start_joins_ids_in_every_system(id_merge: IdMerge | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable, it needs the system of a new emulator."""
    emulator = Emulator() if id_merge is None else Emulator(id_merge)
    if id_merge is not None:
        monkeypatch.setenv("MIXPANEL_ID_MERGE", id_merge.value)
    monkeypatch.setenv("MIXPANEL_TOKEN", "example-token")
    with emulator.serve() as server:
        monkeypatch.setenv("MIXPANEL_API_HOST", server.url)
        assert run_example("quick_start.py") == "3 records delivered, 0 failed, 0 still to be sent\n"
    (view,), (sign_up,) = emulator.events("Page viewed"), emulator.events("Signed up")
    assert view["properties"]["distinct_id"] == sign_up["properties"]["distinct_id"] == emulator.resolve(ACCOUNT)
    assert len(emulator.cluster(ACCOUNT)) == 2
    assert (emulator.profile(ACCOUNT) or {})["$name"] == "Maya"


def test_sign_up_test_example_passes() -> None:
    # Its header does not install the other plugins of this environment.
    unneeded = [f"-pno:{plugin}" for plugin in ("cacheprovider", "hypothesispytest", "respx", "timeout", "xdist")]
    run_example("test_signup.py", "-m", "pytest", "-q", *unneeded)


def test_lambda_example(emulator: Emulator) -> None:
    assert run_example("lambda_handler.py").splitlines()[-1] == "4 records delivered, 0 waiting"
    assert [event["properties"]["item"] for event in emulator.events("Order placed")] == ["tea", "cup"]


def test_celery_example(emulator: Emulator) -> None:
    """Its tasks run in a worker in a thread of the process that sends them."""
    program = """
import sys
import time
sys.path.insert(0, sys.argv[1])
from celery.contrib.testing.worker import start_worker
import celery_app
with start_worker(celery_app.app, pool="solo", perform_ping_check=False):
    sign_up = celery_app.sign_up.delay("user-1", "3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11")
    celery_app.pay.delay("user-1", 9.5, time.time())
    celery_app.sync_contacts.delay(["user-1"]).get(timeout=10)
"""
    settings = {**os.environ, "CELERY_BROKER_URL": "memory://", "CELERY_RESULT_BACKEND": "cache+memory://"}
    command = [sys.executable, "-c", program, str(EXAMPLES)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=25, env=settings)
    assert result.returncode == 0, result.stderr
    names = {"Paid", "Signed up", "Contacts synced"}
    assert {event["event"] for event in emulator.events()} >= names
    assert emulator.resolve("3f2b0a52-1c1c-4b6e-9d7e-0a4f2c1d8e11") == emulator.resolve(ACCOUNT)
    assert (emulator.profile(ACCOUNT) or {})["payments"] == 1


def test_worker_example(emulator: Emulator) -> None:
    assert run_example("worker.py") == "10,020 events delivered\n"
    for name, number in (("Job finished", 10_000), ("Paid", 20)):
        events = emulator.events(name)
        assert len({event["properties"]["$insert_id"] for event in events}) == len(events) == number


def test_stopped_worker_delivers_its_events(emulator: Emulator) -> None:
    emulator.latency = 0.2
    command = [sys.executable, "-W", "error", str(EXAMPLES / "worker.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as worker:
        while not emulator.requests():
            assert worker.poll() is None
            time.sleep(0.01)
        worker.send_signal(signal.SIGTERM)
        words, errors = worker.communicate(timeout=20)
    assert (worker.returncode, errors) == (0, "")
    delivered = int(words.split()[0].replace(",", ""))
    assert len(emulator.events()) == delivered < 10_020


def test_feature_flags_example(emulator: Emulator) -> None:
    variants = [{"key": "one-page", "value": {"layout": "one page"}, "is_control": False, "split": 1.0}]
    rollout = {"rollout_percentage": 1.0, "runtime_evaluation_rule": {"==": [{"var": "plan"}, "Pro"]}}
    emulator.set_flags([{"key": "checkout", "ruleset": {"variants": variants, "rollout": [rollout]}}])
    printed = run_example("feature_flags.py").splitlines()
    assert printed == ["user-1: classic (NO_ROLLOUT_MATCH)", "user-2: one page", "user-3: one page"]
    exposed = [event["properties"]["distinct_id"] for event in emulator.events("$experiment_started")]
    assert sorted(exposed) == ["user-2", "user-3"]


def test_feature_flags_example_without_definitions(emulator: Emulator) -> None:
    printed = run_example("feature_flags.py").splitlines()
    assert printed == [f"user-{number}: classic (FLAG_NOT_FOUND)" for number in (1, 2, 3)]
