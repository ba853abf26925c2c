"""Celery workers as processes: whatever their tasks track is delivered before they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from app_servers import App
from forked_python import popen
from forked_python import run as run_forked

from mixpanel_async import ConfigurationError
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.celery import MixpanelIntegration, current_mixpanel

pytestmark = pytest.mark.sample(every=4)

HERE = Path(__file__).parent
TASKS = 12
PROCESSES = 4
MODULES = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.prefork",
    "celery.worker.consumer",
    "kombu.transport.filesystem",
    "mixpanel_async.integrations.celery",
)


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


def environment(folder: Path, api_host: str) -> dict[str, str]:
    return {
        **os.environ,
        "CELERY_FOLDER": str(folder),
        "MIXPANEL_TOKEN": "token",
        "MIXPANEL_API_HOST": api_host,
        "PYTHONPATH": str(HERE),
    }


def run(code: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = run_forked(command, env=variables, capture_output=True, text=True, timeout=20, modules=MODULES)
    assert done.returncode == 0, done.stderr
    return done


@contextmanager
def worker(emulator: Emulator, folder: Path, tasks: str, pool: str, *options: str, **more: str) -> Iterator[App]:
    """Queue tasks and start a worker of `celery_program.py`.

    Args:
        emulator: the emulator that its client connects to.
        folder: folder of the queue.
        tasks: Python code that queues the tasks.
        pool: pool of the worker.
        options: more options of the command.
        more: more variables of the environment.
    """
    for name in ("queue", "control"):
        (folder / name).mkdir()
    with emulator.serve() as server:
        variables = {**environment(folder, server.url), **more}
        run(f"from celery_program import *\n{tasks}", variables)
        command = [sys.executable, "-m", "celery", "--app", "celery_program", "worker", "--loglevel", "info"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        # gevent must change the standard library before anything imports it.
        process: Any = (subprocess.Popen if pool == "gevent" else partial(popen, modules=MODULES))(
            [*command, *quiet, "--pool", pool, "--concurrency", str(PROCESSES), *options],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        app = App(process)
        try:
            yield app
        finally:
            app.kill()
            assert process.stdout is not None
            process.stdout.close()


def wait_for_tasks(app: App, number: int) -> None:
    app.wait_for(re.compile(rf"(?:(?:succeeded in|raised unexpected)(?s:.*?)){{{number}}}"))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 15.0
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize(
    ("pool", "number", "options"),
    [
        ("prefork", signal.SIGTERM, []),
        ("prefork", signal.SIGTERM, ["--max-tasks-per-child", "2"]),
        ("prefork", signal.SIGQUIT, []),
        ("threads", signal.SIGTERM, []),
        ("threads", signal.SIGQUIT, []),
        ("solo", signal.SIGTERM, []),
        ("gevent", signal.SIGTERM, []),
    ],
    ids=["prefork", "prefork recycled", "prefork cold", "threads", "threads cold", "solo", "gevent"],
)
def test_worker_delivers_before_it_ends(
    pool: str, number: signal.Signals, options: list[str], emulator: Emulator, tmp_path: Path
) -> None:
    processes = PROCESSES if pool == "prefork" else 1
    # asyncio cannot run in a greenlet while the event loop of the client runs in another one.
    odd = "work" if pool == "gevent" else "work_async"
    tasks = f"for n in range({TASKS}): send({odd} if n % 2 else work, n, {processes})"
    with worker(emulator, tmp_path, tasks, pool, *options) as app:
        wait_for_tasks(app, TASKS)
        app.stop(number)
        # No traceback of the client. Celery prints in a signal handler, which can make one of its own.
        assert f"{os.sep}mixpanel_async{os.sep}" not in app.output, app.output
    events = [event["properties"] for event in emulator.events("Worked")]
    assert sorted(event["number"] for event in events) == list(range(TASKS))
    assert len({event["process"] for event in events}) >= processes
    assert (emulator.profile("user") or {})["tasks"] == TASKS


def test_slow_mixpanel_delays_the_shutdown_only(emulator: Emulator, tmp_path: Path) -> None:
    emulator.latency = 1.5
    with worker(emulator, tmp_path, "for n in range(4): send(work, n, 4)", "prefork") as app:
        wait_for_tasks(app, 4)
        app.stop()
    assert len(emulator.events("Worked")) == 4
    assert (emulator.profile("user") or {})["tasks"] == 4


def test_unreachable_mixpanel_delays_the_shutdown_for_a_limited_time(emulator: Emulator, tmp_path: Path) -> None:
    unreachable = {"MIXPANEL_API_HOST": "http://127.0.0.1:9", "CELERY_CLOSE": "1"}
    with worker(emulator, tmp_path, "send(work, 1, 1)", "threads", **unreachable) as app:
        wait_for_tasks(app, 1)
        began = time.monotonic()
        assert app.stop() == 0
        assert time.monotonic() - began < 9.0
        assert "closed: 0 delivered, 2 lost" in app.output, app.output


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_flush_after_each_task_delivers_before_the_worker_is_killed(
    pool: str, emulator: Emulator, tmp_path: Path
) -> None:
    tasks = "for n in range(4): send(work_async if n % 2 else work, n, 1)"
    with worker(emulator, tmp_path, tasks, pool, CELERY_FLUSH="1"):
        wait_until(lambda: (emulator.profile("user") or {}).get("tasks") == 4)
    assert sorted(event["properties"]["number"] for event in emulator.events("Worked")) == [0, 1, 2, 3]
    assert (emulator.profile("user") or {})["tasks"] == 4


def test_events_of_tasks_that_exceed_the_soft_limit_or_fail_are_delivered(emulator: Emulator, tmp_path: Path) -> None:
    with worker(emulator, tmp_path, "for task in (exceed_soft_limit, fail): send(task)", "prefork") as app:
        wait_for_tasks(app, 2)
        app.stop()
        assert "SoftTimeLimitExceeded" in app.output
    assert {event["properties"]["end"] for event in emulator.events("Began")} == {"limit", "error"}


def test_spool_keeps_the_events_of_a_killed_child(emulator: Emulator, tmp_path: Path) -> None:
    with worker(emulator, tmp_path, "send(die)", "prefork", CELERY_SPOOL="1"):
        # The child that replaces it opens the spool.
        wait_until(lambda: bool(emulator.events("Began")))
    assert len(emulator.events("Began")) == 1


EAGER = {
    "client of the process": """
        work.apply((1, 1)).get()
        """,
    "client of the caller": """
        from mixpanel_async import AsyncMixpanel
        other = AsyncMixpanel.from_env()
        with mixpanel.using(other):
            work.apply((1, 1)).get()
            assert mixpanel.client is other
            assert other.stats().accepted == 2
        other.in_thread().close()
        assert mixpanel.client is not other
        """,
}


@pytest.mark.parametrize("code", EAGER)
def test_eager_task_uses_the_client_of_its_process(code: str, emulator: Emulator, tmp_path: Path) -> None:
    with emulator.serve() as server:
        program = f"from celery_program import *\n{textwrap.dedent(EAGER[code])}"
        assert run(program, environment(tmp_path, server.url)).stderr == ""
    assert len(emulator.events("Worked")) == 1


def test_process_that_only_sends_tasks_creates_no_client(tmp_path: Path) -> None:
    for name in ("queue", "control"):
        (tmp_path / name).mkdir()
    variables = environment(tmp_path, "")
    del variables["MIXPANEL_TOKEN"]
    code = """
        from celery_program import *
        import threading
        send(work, 1, 1)
        assert "mixpanel client" not in [thread.name for thread in threading.enumerate()]
        """
    assert run(code, variables).stderr == ""


def test_missing_token_is_logged_at_start_and_the_worker_continues(tmp_path: Path) -> None:
    variables = environment(tmp_path, "")
    del variables["MIXPANEL_TOKEN"]
    code = """
        import logging
        from celery import signals
        from celery_program import *
        logging.basicConfig()
        signals.worker_init.send(sender=None)
        """
    assert "ConfigurationError" in run(code, variables).stderr


def test_eventlet_is_refused_in_the_log(tmp_path: Path) -> None:
    code = """
        import logging
        from celery import signals
        from celery_program import *
        class Worker:
            pool_cls = "eventlet"
        logging.basicConfig()
        signals.worker_init.send(sender=Worker())
        """
    assert "the Celery pool eventlet is not supported" in run(code, environment(tmp_path, "http://127.0.0.1:9")).stderr


def test_worker_that_starts_again_in_the_same_process_has_a_new_client(emulator: Emulator, tmp_path: Path) -> None:
    code = """
        from celery import signals
        from celery_program import *
        for number in range(2):
            signals.worker_init.send(sender=None)
            mixpanel.blocking.track("user", "Worked", {"number": number})
            signals.worker_shutdown.send(sender=None)
        """
    with emulator.serve() as server:
        assert run(code, environment(tmp_path, server.url)).stderr == ""
    assert len(emulator.events("Worked")) == 2


def test_missing_library_says_which_extra_to_install() -> None:
    code = "import sys; sys.modules['celery'] = None; import mixpanel_async.integrations.celery"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (
        'ImportError: the Celery integration needs an extra: run pip install ".[celery]" in a clone of the repository'
        in done.stderr
    )


def test_current_client_needs_a_task() -> None:
    with pytest.raises(LookupError, match="no Celery task with a Mixpanel client"):
        current_mixpanel()


@pytest.mark.parametrize("timeout", [0, -1, 901, True, "1", float("nan")])
def test_invalid_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"task_flush_timeout must be between 0\.001 and 900 seconds"):
        MixpanelIntegration(task_flush_timeout=timeout)


def test_invalid_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="client must be an AsyncMixpanel or a function"):
        MixpanelIntegration("token")  # type: ignore[arg-type]
