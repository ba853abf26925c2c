"""Command `mixpanel-async worker`: output, exit status, signals and secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from forked_python import popen, run
from redis_server import RedisServer, free_port
from typer.testing import CliRunner

from mixpanel_async import AsyncMixpanel
from mixpanel_async.cli.app import app
from mixpanel_async.emulator import Emulator
from mixpanel_async.outbox import RedisOutbox

TOKEN = "0123456789abcdef0123456789abcdef"
RUN = [sys.executable, "-W", "error", "-c", "from mixpanel_async.cli import main; main()", "worker"]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(redis: RedisServer) -> str:
    redis.command("FLUSHALL")
    return redis.url


@pytest.fixture
def _restored_log() -> Iterator[None]:
    """Undo what the command does to the log of this process."""
    logger = logging.getLogger("mixpanel_async")
    handlers, level = [*logger.handlers], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


def environment(api_host: str) -> dict[str, str]:
    return {**os.environ, "MIXPANEL_TOKEN": TOKEN, "MIXPANEL_API_HOST": api_host}


def hand_over(url: str, events: int) -> None:
    async def main() -> None:
        async with AsyncMixpanel(TOKEN, outbox=RedisOutbox(url)) as mp:
            for at in range(events):
                await mp.track(f"user-{at}", "Signed up")
            await mp.people_increment("ada", {"visits": 1})

    asyncio.run(main())


def test_once_delivers_what_waits_and_exits(url: str) -> None:
    hand_over(url, 30)
    emulator = Emulator(token=TOKEN)
    with emulator.serve() as server:
        address = server.url
        command = [*RUN, "--from", url, "--once", "--name", "cron-1"]
        done = run(command, env=environment(address), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(emulator.events("Signed up")) == 30
    start, line = done.stdout.splitlines()
    assert start.endswith(f"cron-1: reads {url}, queue mixpanel; delivers to {address}")
    assert "cron-1: delivered" in line
    assert "31 in all; 0 wait in the queue, oldest 0.0 s; 0 dead letters" in line


def test_signal_hands_over_and_prints_json(url: str) -> None:
    emulator = Emulator(token=TOKEN)
    with emulator.serve() as server:
        command = [*RUN, "--from", url, "--log", "json", "--kinds", "events,people", "--concurrency", "2"]
        process = popen(command, env=environment(server.url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        hand_over(url, 10)
        end = time.monotonic() + 30
        while len(emulator.events("Signed up")) < 10 and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert (last["event"], last["failed"], last["held"], last["last_error"]) == ("worker", 0, 0, None)
    assert last["delivered"] >= 10
    assert last["worker"].endswith(str(process.pid))


def test_second_signal_ends_the_first_process_of_a_container(url: str) -> None:
    hand_over(url, 1)
    first_process = [RUN[0], "-c", f"import os; os.getpid = lambda: 1; {RUN[4]}", *RUN[5:]]
    with socket.create_server(("127.0.0.1", 0)) as mixpanel:
        api_host = f"http://127.0.0.1:{mixpanel.getsockname()[1]}"
        with popen([*first_process, "--from", url], env=environment(api_host)) as process:
            mixpanel.settimeout(30)
            request, _ = mixpanel.accept()
            end = time.monotonic() + 9
            while process.poll() is None and time.monotonic() < end:
                process.terminate()
                time.sleep(0.05)
            request.close()
            process.kill()
    assert process.returncode == 128 + signal.SIGTERM


def test_outbox_that_cannot_be_reached_is_named_without_its_password() -> None:
    url = f"redis://user:s3cret@127.0.0.1:{free_port()}/0"
    variables = {**environment("http://127.0.0.1:1"), "MIXPANEL_OUTBOX": url}
    done = run([*RUN, "--once"], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("mixpanel-async worker: ")
    assert "s3cret" not in done.stdout + done.stderr
    assert "user" not in done.stdout + done.stderr
    assert "reads redis://127.0.0.1:" in done.stdout
    assert "; delivers to http://127.0.0.1:1\n" in done.stdout


@pytest.mark.usefixtures("_restored_log")
@pytest.mark.parametrize(
    ("options", "user", "status", "words"),
    [
        (["--requirepass", "right"], ":s3cret@", 1, "Redis refuses the login: check user and password"),
        (["--user", "limited", "on", ">s3cret", "~other:*", "+@all"], "limited:s3cret@", 1, "Redis refuses: "),
        (["--maxmemory-policy", "allkeys-lru"], "", 2, "allkeys-lru"),
    ],
)
def test_worker_ends_if_redis_refuses_its_first_connection(
    options: list[str], user: str, status: int, words: str, new_redis_server: Callable[..., RedisServer]
) -> None:
    url = new_redis_server(*options).url.replace("redis://", f"redis://{user}")
    variables = {"MIXPANEL_TOKEN": TOKEN, "MIXPANEL_OUTBOX": url}
    result = CliRunner().invoke(app, ["worker"], env=variables)
    assert result.exit_code == status, result.output
    assert words in result.output
    assert "s3cret" not in result.output


def test_last_line_of_a_worker_that_never_reached_redis() -> None:
    variables = {**environment("http://127.0.0.1:1"), "MIXPANEL_OUTBOX": f"redis://127.0.0.1:{free_port()}/0"}
    process = popen(RUN, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        assert "the outbox is not available" in process.stderr.readline()
        process.terminate()
        lines, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "0 in all; not connected to the queue yet; last error: no connection to Redis" in lines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--from", "http://user:s3cret@queue"], "--from must be a URL that begins with redis://"),
        (["--from", "redis://:s3cret@queue:port/0"], "url of RedisOutbox must"),
        (["--from", "redis://queue", "--kinds", "event"], "kinds must be"),
        (["--from", "redis://queue", "--log", "xml"], "--log must be text or json"),
        (["--from", "redis://queue", "--queue", "{a}"], "without braces"),
        (["--from", "redis://queue", "--name", "a\x00b"], "--name must"),
    ],
)
def test_wrong_option_is_refused_without_secrets(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["worker", *options], env={"MIXPANEL_TOKEN": TOKEN})
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert "s3cret" not in result.output
    assert TOKEN not in result.output


def test_missing_token_is_named() -> None:
    result = CliRunner().invoke(app, ["worker", "--from", "redis://queue"], env={"MIXPANEL_TOKEN": None})
    assert result.exit_code == 2
    assert "MIXPANEL_TOKEN is not set" in result.output
