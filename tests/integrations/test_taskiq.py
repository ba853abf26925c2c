"""taskiq: tasks in this process with `InMemoryBroker`, and a worker process with a broker of the test."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from app_servers import App
from taskiq import InMemoryBroker, TaskiqDepends

from mixpanel_async import AsyncMixpanel, BatchPolicy, ClientClosedError, ConfigurationError
from mixpanel_async.emulator import Emulator
from mixpanel_async.integrations.taskiq import MixpanelMiddleware, current_mixpanel

HERE = Path(__file__).parent
TASKS = 12
MIXPANEL: AsyncMixpanel = TaskiqDepends(current_mixpanel)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # taskiq supports no other


@pytest.fixture
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def make(emulator: Emulator) -> Callable[[], AsyncMixpanel]:
    return lambda: emulator.client(batching=BatchPolicy(linger=3600.0))


@asynccontextmanager
async def running(middleware: MixpanelMiddleware) -> AsyncIterator[InMemoryBroker]:
    broker = InMemoryBroker(await_inplace=True)
    broker.add_middlewares(middleware)
    await broker.startup()
    try:
        yield broker
    finally:
        await broker.shutdown()


@pytest.mark.anyio
async def test_shutdown_delivers_what_tasks_have_tracked(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    async with running(MixpanelMiddleware(make)) as broker:

        @broker.task
        async def work(number: int, mp: AsyncMixpanel = MIXPANEL) -> None:
            await mp.track("user", "Worked", {"number": number})

        @broker.task
        def work_in_thread(number: int, mp: AsyncMixpanel = MIXPANEL) -> None:
            mp.track_nowait("user", "Worked", {"number": number})

        for number in range(4):
            task = await (work if number % 2 else work_in_thread).kiq(number)
            assert not (await task.wait_result()).is_err
        assert not emulator.events("Worked")
    assert sorted(event["properties"]["number"] for event in emulator.events("Worked")) == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_flush_after_each_task(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    async with running(MixpanelMiddleware(make, task_flush_timeout=5.0)) as broker:

        @broker.task
        async def work(number: int, mp: AsyncMixpanel = MIXPANEL) -> None:
            await mp.track("user", "Worked")
            if number:
                raise RuntimeError("of the task")

        for number in range(2):
            await (await work.kiq(number)).wait_result()
            assert len(emulator.events("Worked")) == number + 1


@pytest.mark.anyio
async def test_flush_that_fails_does_not_fail_the_task(emulator: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    emulator.latency = 0.5
    middleware = MixpanelMiddleware(emulator.client, task_flush_timeout=0.01)
    async with running(middleware) as broker:

        @broker.task
        async def work(mp: AsyncMixpanel = MIXPANEL) -> int:
            await mp.track("user", "Worked")
            return 7

        assert (await (await work.kiq()).wait_result()).return_value == 7
    assert "1 record was not delivered at the end of a task; it waits in the queue; last error: " in caplog.text
    assert len(emulator.events("Worked")) == 1


@pytest.mark.anyio
async def test_broker_that_starts_again_has_a_new_client(make: Callable[[], AsyncMixpanel], emulator: Emulator) -> None:
    middleware = MixpanelMiddleware(make)
    for _ in range(2):
        async with running(middleware):
            await middleware.client.track("user", "Worked")
    assert len(emulator.events("Worked")) == 2


@pytest.mark.anyio
async def test_client_object_serves_one_start(make: Callable[[], AsyncMixpanel]) -> None:
    client = make()
    middleware = MixpanelMiddleware(client)
    async with running(middleware):
        assert middleware.client is client
    async with running(middleware):
        with pytest.raises(ClientClosedError):
            await middleware.client.track("user", "Worked")


@pytest.mark.anyio
async def test_process_that_only_sends_tasks_creates_no_client() -> None:
    def refuse() -> AsyncMixpanel:
        raise AssertionError

    async with running(MixpanelMiddleware(refuse)):
        pass


@pytest.mark.anyio
async def test_dependency_without_middleware_says_what_is_missing() -> None:
    broker = InMemoryBroker(await_inplace=True)

    @broker.task
    async def work(mp: AsyncMixpanel = MIXPANEL) -> None: ...

    result = await (await work.kiq()).wait_result()
    assert "add one with broker.with_middlewares" in str(result.error)
    await broker.shutdown()


@pytest.mark.parametrize("timeout", [0, -1, 901, True, "1"])
def test_invalid_timeout_is_refused(timeout: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"task_flush_timeout must be between 0\.001 and 900 seconds"):
        MixpanelMiddleware(task_flush_timeout=timeout)


def test_invalid_client_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="client must be an AsyncMixpanel or a function"):
        MixpanelMiddleware("token")  # type: ignore[arg-type]


def test_missing_library_says_which_extra_to_install() -> None:
    code = "import sys; sys.modules['taskiq'] = None; import mixpanel_async.integrations.taskiq"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert (
        'ImportError: the taskiq integration needs an extra: run pip install ".[taskiq]" in a clone of the repository'
        in done.stderr
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_process_delivers_before_it_ends(number: signal.Signals, emulator: Emulator) -> None:
    with emulator.serve() as server:
        variables = {
            **os.environ,
            "MIXPANEL_TOKEN": "token",
            "MIXPANEL_API_HOST": server.url,
            "PYTHONPATH": str(HERE),
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "taskiq", "worker", "taskiq_program:broker", "--workers", "1"],
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        app = App(process)
        try:
            app.wait_for(re.compile(rf"(?:worked(?s:.*?)){{{TASKS}}}"))
            app.stop(number)
            assert "Traceback" not in app.output, app.output
        finally:
            app.kill()
            assert process.stdout is not None
            process.stdout.close()
    assert sorted(event["properties"]["number"] for event in emulator.events("Worked")) == list(range(TASKS))
    assert (emulator.profile("user") or {})["tasks"] == TASKS
